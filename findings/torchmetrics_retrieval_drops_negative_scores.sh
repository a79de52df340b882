#!/usr/bin/env bash
# torchmetrics: mean average precision of cosines leaves out every relevant item whose cosine is not above 0
#
# Versions: torchmetrics 1.9.0, torch 2.14.1, scikit-learn 1.9.1, NumPy 2.4.6, Python 3.11.
#
# What it does. retrieval_average_precision and RetrievalMAP call an item irrelevant if its score is 0 or less, before they rank.
# Such an item counts neither among what was found nor among what was to be found, so a relevant one in the last place with a
# cosine of -0.1 does not lower the score but vanishes. Reciprocal rank, precision and recall do the same; recall, though, keeps
# it among what was to be found. NDCG, R-precision, hit rate, fall-out, AUROC and the curve of precision and recall of the same
# package look at the order alone. Nothing is said, and validate_args has no objection.
#
# What most would expect. That a measure of a ranking depends on the order alone, so that cosines, negative distances and logits may
# be given as they are, as to scikit-learn. With cosines the score comes out too high, with distances times -1 it is 0 for all.
#
# Seen 2026-11-30:
#   places of the relevant: 1 and 4 of 4   all positive       cosines  minus distances
#   scikit-learn, average precision               0.750         0.750         0.750
#   retrieval_average_precision                   0.750         1.000         0.000
#   RetrievalMAP                                  0.750         1.000         0.000
#   retrieval_reciprocal_rank                     1.000         1.000         0.000
#   retrieval_recall                              1.000         0.500         0.000
#   retrieval_precision                           0.500         0.250         0.000
#   retrieval_r_precision                         0.500         0.500         0.500
#   retrieval_normalized_dcg                      0.877         0.877         0.877
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  torchmetrics==1.9.0 torch==2.14.1 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/one.py" <<'PY'
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional import retrieval
from torchmetrics.retrieval import RetrievalMAP

relevant = torch.tensor([1, 0, 0, 1]).bool()
SCORES = {
    "all positive": torch.tensor([0.9, 0.8, 0.7, 0.6]),
    "cosines": torch.tensor([0.6, 0.3, 0.1, -0.1]),
    "minus distances": torch.tensor([-0.4, -0.7, -0.9, -1.1]),
}
METERS = {
    "scikit-learn, average precision": lambda scores: average_precision_score(relevant.numpy(), scores.numpy()),
    "retrieval_average_precision": lambda scores: retrieval.retrieval_average_precision(scores, relevant),
    "RetrievalMAP": lambda scores: RetrievalMAP()(scores, relevant, indexes=torch.zeros(4).long()),
}
NAMES = ["reciprocal_rank", "recall", "precision", "r_precision", "normalized_dcg"]
METERS |= {f"retrieval_{n}": lambda s, n=n: getattr(retrieval, f"retrieval_{n}")(s, relevant) for n in NAMES}
print(f"{'places of the relevant: 1 and 4 of 4':38}", "  ".join(f"{name:>12}" for name in SCORES))
seen = {}
for name, meter in METERS.items():
    seen[name] = [round(float(meter(scores)), 3) for scores in SCORES.values()]
    print(f"{name:38}", "  ".join(f"{value:12.3f}" for value in seen[name]))
assert seen["retrieval_average_precision"] == seen["RetrievalMAP"] == [0.75, 1.0, 0.0]
assert seen["retrieval_recall"] == [1.0, 0.5, 0.0] and seen["retrieval_reciprocal_rank"] == [1.0, 1.0, 0.0]
assert all(len(set(seen[f"retrieval_{name}"])) == 1 for name in ("r_precision", "normalized_dcg"))
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
