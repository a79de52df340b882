#!/usr/bin/env bash
# pytorch-metric-learning: with ten-digit numbers as labels, random embeddings find their class half of the time
#
# Versions: pytorch-metric-learning 2.9.0, torch 2.14.1, faiss-cpu 1.15.1, numpy 2.4.6, scikit-learn 1.9.1, Python 3.11.
#
# What it does. AccuracyCalculator turns labels into float32 together with the embeddings, whatever integers they were. From
# 16,777,216 on neighbouring numbers become one: pairs first, then fours, at a thousand million sixty-four of them. Classes that
# share a number count as one class, so what was found of another class is right. All of its measures that rank go that way. Nothing
# is said, and labels are not returned.
#
# What most would expect. That labels are compared as they are, as integers of 64 bits that a torch tensor of labels has, and that a
# score does not change when every label grows by the same number. Labels that are large stand in many tables: the identifiers
# of an image board's posts or of a museum's objects, seconds since 1970, numbers packed of artist and set.
#
# Seen 2026-11-30 (100 classes of two embeddings, all random; labels are consecutive):
#   labels from             0: precision at 1 0.015, R-precision 0.015, mean average precision 0.041
#   labels from    10,000,000: precision at 1 0.015, R-precision 0.015, mean average precision 0.041
#   labels from    20,000,000: precision at 1 0.050, R-precision 0.032, mean average precision 0.051
#   labels from   100,000,000: precision at 1 0.100, R-precision 0.081, mean average precision 0.105
#   labels from 1,000,000,000: precision at 1 0.510, R-precision 0.507, mean average precision 0.520
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  pytorch-metric-learning==2.9.0 torch==2.14.1 faiss-cpu==1.15.1 numpy==2.4.6 scikit-learn==1.9.1
cat > "$folder/one.py" <<'PY'
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

MEASURES = {"precision_at_1": "precision at 1", "r_precision": "R-precision", "mean_average_precision": "mean average precision"}
torch.manual_seed(0)
embeddings = torch.nn.functional.normalize(torch.randn(200, 64), dim=1)
labels = torch.arange(100).repeat_interleave(2)
calculator = AccuracyCalculator(include=tuple(MEASURES), device=torch.device("cpu"))

scores = {}
for first in (0, 10_000_000, 20_000_000, 100_000_000, 1_000_000_000):
    assert (labels + first).dtype == torch.int64 and len((labels + first).unique()) == 100
    scores[first] = calculator.get_accuracy(embeddings, labels + first)
    print(f"labels from {first:13,}: " + ", ".join(f"{title} {scores[first][name]:.3f}" for name, title in MEASURES.items()))

nearest = (embeddings @ embeddings.T).fill_diagonal_(-2).argmax(1)
by_hand = (labels[nearest] == labels).double().mean().item()
assert abs(scores[0]["precision_at_1"] - by_hand) < 1e-9 and scores[0] == scores[10_000_000]
precisions = [each["precision_at_1"] for each in scores.values()][1:]
assert precisions == sorted(set(precisions)) and precisions[-1] > 0.4 and by_hand < 0.03
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
