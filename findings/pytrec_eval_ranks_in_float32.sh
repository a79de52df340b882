#!/usr/bin/env bash
# pytrec_eval: scores are ranked as float32, and what is then equal is ranked by name, last name first
#
# Versions: pytrec_eval-terrier 0.5.11, ranx 0.3.21, NumPy 2.4.6, Python 3.11.
#
# What it does. The package hands Python's floats to trec_eval, whose scores are C floats. Two scores that differ by less than
# float32 can tell are a tie, and ties are ranked by the document's name, in descending order. So an order that the scores state
# plainly is undone for cosines of near copies (steps of 6e-8 below 1) and for large scores (from 16,777,216 on whole numbers),
# and the mean average precision follows from how the files are called: renaming them changes it.
#
# What most would expect. That a dictionary of Python floats is ranked as Python sorts it, as another library for the same files does;
# that ties are broken by name is trec_eval's known habit, but these are no ties in what was given.
#
# Seen 2026-11-30 (ten documents, the three with the highest scores are relevant):
#   scores 0.999, 0.998, ...     names a, b, c, ...  average precision: pytrec_eval 1.000, ranx 1.000
#   scores 0.999, 0.998, ...     names j, i, h, ...  average precision: pytrec_eval 1.000, ranx 1.000
#   scores cosines 1e-9 apart    names a, b, c, ...  average precision: pytrec_eval 0.216, ranx 1.000
#   scores cosines 1e-9 apart    names j, i, h, ...  average precision: pytrec_eval 1.000, ranx 1.000
#   scores 16,777,226, 225, ...  names a, b, c, ...  average precision: pytrec_eval 0.806, ranx 1.000
#   scores 16,777,226, 225, ...  names j, i, h, ...  average precision: pytrec_eval 1.000, ranx 1.000
#   scores 4e9 + 10, + 9, ...    names a, b, c, ...  average precision: pytrec_eval 0.216, ranx 1.000
#   scores 4e9 + 10, + 9, ...    names j, i, h, ...  average precision: pytrec_eval 1.000, ranx 1.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  pytrec_eval-terrier==0.5.11 ranx==0.3.21 numpy==2.4.6
cat > "$folder/one.py" <<'PY'
import warnings

warnings.simplefilter("ignore")

import pytrec_eval
from ranx import Qrels, Run, evaluate

FALLING = {
    "0.999, 0.998, ...": [1 - k * 1e-3 for k in range(1, 11)],
    "cosines 1e-9 apart": [1 - k * 1e-9 for k in range(1, 11)],
    "16,777,226, 225, ...": [float(2**24 + 10 - k) for k in range(10)],
    "4e9 + 10, + 9, ...": [4e9 + 10 - k for k in range(10)],
}
NAMES = {"a, b, c, ...": "abcdefghij", "j, i, h, ...": "jihgfedcba"}
seen = {}
for label, scores in FALLING.items():
    assert len(set(scores)) == 10 and sorted(scores, reverse=True) == scores
    for named, names in NAMES.items():
        run = {"query": dict(zip(names, scores))}
        relevant = {"query": {name: int(place < 3) for place, name in enumerate(names)}}
        trec = pytrec_eval.RelevanceEvaluator(relevant, {"map"}).evaluate(run)["query"]["map"]
        ranx = float(evaluate(Qrels(relevant), Run(run), "map"))
        seen[label, named] = round(trec, 3), round(ranx, 3)
        print(f"scores {label:21} names {named:13} average precision: pytrec_eval {trec:.3f}, ranx {ranx:.3f}")
assert all(ranx == 1 for _, ranx in seen.values())
assert [trec for trec, _ in seen.values()] == [1, 1, 0.216, 1, 0.806, 1, 0.216, 1]
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
