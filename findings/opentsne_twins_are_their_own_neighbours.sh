#!/usr/bin/env bash
# openTSNE: from 1,000 points on, a point that has a duplicate is its own neighbour, and affinity goes to nobody
#
# Versions: openTSNE 1.0.4 (with the Annoy that it brings), numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1, Python 3.11.
#
# What it does. Below 1,000 points neighbours are found exactly, from there on by Annoy. One neighbour more than wanted is asked for, and the
# first answer dropped as the point itself. Among answers of equal distance Annoy puts the lower number first. So of two equal points
# the later one drops its twin and keeps itself, at distance 0: its largest affinity is to itself, which pulls nothing anywhere. Where
# every point has a twin, more than a sixth of all affinity (half of what belongs to twins) lies on the diagonal of the matrix; where
# points come in fives, four of five have an affinity to themselves. Nothing is said.
#
# What most would expect. That a point is no neighbour of itself, as in the paper (p of i given i is 0) and in openTSNE's own exact
# search; and that 1,000 points are treated as 999 are. Collections of LoRAs and of pictures have many exact duplicates, and where a map
# places them is what one looks at.
#
# Seen 2026-11-30 (pairs or fives of equal points; shares of all affinity):
#   999 points,   pairs, euclidean: on the diagonal 0.00, between equal points 0.36
#   1,000 points, pairs, euclidean: on the diagonal 0.18, between equal points 0.18
#   1,000 points, fives, euclidean: on the diagonal 0.11, between equal points 0.44
#   1,000 points, pairs,    cosine: on the diagonal 0.18, between equal points 0.18
#   1,000 points, pairs, euclidean, neighbors="exact": on the diagonal 0.00, between equal points 0.36
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  openTSNE==1.0.4 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
cat > "$folder/one.py" <<'PY'
import numpy as np
from openTSNE.affinity import PerplexityBasedNN


def shares(points, group, metric, method="auto"):
    """What share of all affinity is a point's to itself, and to the points that equal it."""
    places = np.random.default_rng(0).normal(size=(1000, 20))
    number = np.arange(points) // group
    # What openTSNE.TSNE(perplexity=30, metric=..., neighbors=...) makes of the data before it moves any point.
    found = PerplexityBasedNN(places[number], perplexity=30, metric=metric, method=method, random_state=0, n_jobs=1).P.tocoo()
    itself, equal = found.row == found.col, number[found.row] == number[found.col]
    assert abs(found.data.sum() - 1) < 1e-6
    return found.data[itself].sum(), found.data[equal & ~itself].sum()


CASES = {
    "  999 points, pairs, euclidean": ((999, 2, "euclidean"), (0, 0.36)),
    "1,000 points, pairs, euclidean": ((1000, 2, "euclidean"), (0.18, 0.18)),
    "1,000 points, fives, euclidean": ((1000, 5, "euclidean"), (0.11, 0.44)),
    "1,000 points, pairs,    cosine": ((1000, 2, "cosine"), (0.18, 0.18)),
    '1,000 points, pairs, euclidean, neighbors="exact"': ((1000, 2, "euclidean", "exact"), (0, 0.36)),
}
for title, (case, expected) in CASES.items():
    itself, equal = shares(*case)
    print(f"{title}: on the diagonal {itself:.2f}, between equal points {equal:.2f}")
    assert np.allclose((itself, equal), expected, atol=0.02) and (itself == 0) == (expected[0] == 0)
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
