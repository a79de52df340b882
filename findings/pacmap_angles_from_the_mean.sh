#!/usr/bin/env bash
# PaCMAP: with distance="angular" the angle is taken from the mean of the data, so the length of a vector decides on its neighbours
#
# Versions: pacmap 0.9.1, faiss-cpu 1.15.1, numba 0.68.1, scikit-learn 1.9.1, numpy 2.4.6, Python 3.11.
#
# What it does. Before it looks for neighbours PaCMAP subtracts the mean of all vectors, whatever the distance, and then normalizes what
# is left. Two vectors of one direction and unlike length are no neighbours after that, and short vectors of all directions become
# neighbours of each other, since what remains of each of them is the mean with its sign turned. With a dozen directions whose vectors
# differ in length, a third of the pairs that the map is drawn from join vectors of two directions, although every vector has more
# neighbours than it needs at an angle of nearly 0. Vectors that were made equally long first are treated well.
#
# What most would expect. That the length of a vector has no say in an angle, as in annoy, from which the name is taken. Asked why a
# map changes when the vectors are normalized first, the maintainers named the initialization; init="random", which they
# advise, is used here. Length is what one wants to be rid of with updates of models, whose strength says little of their style.
#
# Seen 2026-11-30 (12 directions of 20 vectors each, in 64 dimensions; share of neighbour pairs within one direction):
#   equal lengths,            angular: 1.00, of the shorter half 1.00
#   lengths from 0.1 to 10,   angular: 0.68, of the shorter half 0.62
#   lengths from 0.1 to 10, euclidean: 0.45, of the shorter half 0.45
#   by angle, without PaCMAP:          1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  pacmap==0.9.1 faiss-cpu==1.15.1 numba==0.68.1 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cat > "$folder/one.py" <<'PY'
import numpy as np
import pacmap

DIRECTIONS, EACH, SIZE, NEIGHBOURS = 12, 20, 64, 10
random = np.random.default_rng(0)
directions = abs(random.normal(size=(DIRECTIONS, SIZE)))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
label = np.repeat(np.arange(DIRECTIONS), EACH)
vectors = directions[label] + random.normal(size=(DIRECTIONS * EACH, SIZE)) * 0.01
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
lengths = np.tile(np.geomspace(0.1, 10, EACH), DIRECTIONS)
scaled = vectors * lengths[:, None]


def within(data, distance):
    """Of all neighbour pairs, and of those that start at a vector of the shorter half."""
    reducer = pacmap.PaCMAP(n_neighbors=NEIGHBOURS, distance=distance, random_state=1, num_iters=(10, 10, 10))
    reducer.fit(data.astype(np.float32), init="random")
    pairs = reducer.pair_neighbors
    assert len(pairs) == len(data) * NEIGHBOURS
    same = label[pairs[:, 0]] == label[pairs[:, 1]]
    return same.mean(), same[lengths[pairs[:, 0]] < 1].mean()


found = {}
for title, data, distance in (
    ("equal lengths,", vectors, "angular"),
    ("lengths from 0.1 to 10,", scaled, "angular"),
    ("lengths from 0.1 to 10,", scaled, "euclidean"),
):
    found[title, distance] = everywhere, shorter = within(data, distance)
    print(f"{title:23} {distance:>9}: {everywhere:.2f}, of the shorter half {shorter:.2f}")

cosines = scaled @ scaled.T / np.outer(lengths, lengths)
np.fill_diagonal(cosines, -2)
nearest = np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]
print(f"by angle, without PaCMAP:          {(label[nearest] == label[:, None]).mean():.2f}")
assert (label[nearest] == label[:, None]).all()
assert found["equal lengths,", "angular"] == (1, 1)
assert 0.55 < found["lengths from 0.1 to 10,", "angular"][0] < 0.8

# The mean is what does it: moved by the mean, angles give the pairs that PaCMAP took for neighbours.
moved = scaled - scaled.mean(0)
moved /= np.linalg.norm(moved, axis=1, keepdims=True)
cosines = moved @ moved.T
np.fill_diagonal(cosines, -2)
nearest = np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]
assert (label[nearest] == label[:, None]).mean() < 0.8
PY
NUMBA_NUM_THREADS=1 "$folder/env/bin/python" "$folder/one.py"
echo "as seen"
