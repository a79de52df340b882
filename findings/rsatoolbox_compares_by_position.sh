#!/usr/bin/env bash
# rsatoolbox: RDMs are compared by position; that both name their patterns, and name them in other orders, is not looked at
#
# Versions: rsatoolbox 0.3.2, numpy 2.4.6, scipy 1.17.1, Python 3.11 to 3.13.
#
# What it does. An RDM carries descriptors of its patterns. `calc_rdm` with a descriptor averages by its values and puts the
# conditions in sorted order, so ten stands before two; without one it keeps the order of the data. `compare` reads the two
# vectors of dissimilarities and nothing else. An RDM and one of the very same data, made by descriptor, or from rows that stand
# the other way round with their labels, come out as unrelated. Nothing is said.
#
# What most would expect. That patterns of the same names are held against each other, as pandas aligns an index, or that two
# RDMs whose names disagree are refused. `reorder` does it by hand.
#
# Seen 2026-11-29 (twelve patterns with eight features; correlation of RDMs):
#   order by descriptor: lora1, lora10, lora11, lora12, lora2, lora3 ...
#   compare(rdm, itself): 1.00
#   compare(rdm, of the same data by descriptor): 0.02
#   compare(rdm, of the same data, rows and labels reversed): -0.17
#   labels that the reversed one carries: lora12, lora11, lora10 ...
#   messages: 0
#   after reorder() by hand: 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  rsatoolbox==0.3.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/one.py" <<'PY'
import warnings

import numpy as np
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm, compare

rng = np.random.default_rng(0)
features = rng.normal(size=(12, 8))
labels = [f"lora{n}" for n in range(1, 13)]  # lora10 sorts before lora2
data = Dataset(features, obs_descriptors={"lora": labels})

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    as_given, by_label = calc_rdm(data), calc_rdm(data, descriptor="lora")
    names = [str(name) for name in by_label.pattern_descriptors["lora"]]
    shuffled = calc_rdm(Dataset(features[::-1], obs_descriptors={"lora": labels[::-1]}))
    found = {
        "itself": float(compare(as_given, as_given, method="corr")[0, 0]),
        "of the same data by descriptor": float(compare(as_given, by_label, method="corr")[0, 0]),
        "of the same data, rows and labels reversed": float(compare(as_given, shuffled, method="corr")[0, 0]),
    }
print("order by descriptor:", ", ".join(names[:6]), "...")
for what, value in found.items():
    print(f"compare(rdm, {what}): {value:.2f}")
print(f"labels that the reversed one carries: {', '.join(map(str, shuffled.pattern_descriptors['lora'][:3]))} ...")
print(f"messages: {len(said)}")
by_name = by_label.reorder([names.index(label) for label in labels]) or by_label
aligned = float(compare(as_given, by_name, method="corr")[0, 0])
print(f"after reorder() by hand: {aligned:.2f}")
assert names == sorted(labels) and not said
assert found["itself"] > 0.99 and aligned > 0.99
assert max(list(found.values())[1:]) < 0.5
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
