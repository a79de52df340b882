#!/usr/bin/env bash
# datasets: a folder of Monet's paintings is read without them if one is called "train in the snow"
#
# Versions: datasets 5.2.0, pillow 13.0.0, Python 3.11.
#
# What it does. With `data_dir`, "imagefolder" looks for splits in the names of folders and then of files: train, training,
# validation, valid, val, dev, test, testing, eval, evaluation, in lower case, as a word between dashes, dots, underscores, spaces or
# digits. If any picture has one, the pictures that have none belong to no split and are left out. Collections of art name a file
# after its title, as in "claude-monet_train-in-the-snow.jpg": Monet painted a dozen trains, John Brett the Val d'Aosta. One such title
# leaves only that picture of a whole folder. Nothing is said. diffusers' train_unconditional.py reads `--train_data_dir` in this way; its
# scripts for text to image give data_files and are spared.
#
# What most would expect. Folders named after painters and files named after pictures hold no splits, and all of them are read, as
# they are without that one title; or a message of how many were left out. The documentation of `data_dir` says that it is the same
# as data_files=data_dir/**. `data_files={"train": "**"}` reads all.
#
# Seen 2026-11-30:
#   four of Monet           : 4 pictures, of them read: 4 (train)
#   and a train             : 5 pictures, of them read: 1 (train)
#   and a valley of Brett's : 6 pictures, of them read: 1 (validation)
#   and both                : 7 pictures, of them read: 1 (train), 1 (validation)
#   trains in the plural    : 6 pictures, of them read: 6 (train)
#   all, by data_files      : 7 pictures, of them read: 7 (train)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cat > "$folder/one.py" <<'PY'
import pathlib
import sys

import datasets
from PIL import Image

datasets.disable_progress_bars()
MONET = [f"claude-monet_{title}.jpg" for title in ("water-lilies", "haystacks", "poplars", "the-magpie")]
TRAIN, TRAINS = "claude-monet_train-in-the-snow.jpg", "claude-monet_trains-in-the-snow.jpg"
VALLEY, STONES, JOINED = (f"john-brett_{title}.jpg" for title in ("val-d-aosta", "the-stonebreaker", "valdaosta"))
ALL = {"data_files": {"train": "**"}}
SEEN = [
    ("four of Monet", {"monet": MONET}, {}, {"train": 4}),
    ("and a train", {"monet": [*MONET, TRAIN]}, {}, {"train": 1}),
    ("and a valley of Brett's", {"monet": MONET, "brett": [VALLEY, STONES]}, {}, {"validation": 1}),
    ("and both", {"monet": [*MONET, TRAIN], "brett": [VALLEY, STONES]}, {}, {"train": 1, "validation": 1}),
    ("trains in the plural", {"monet": [*MONET, TRAINS], "brett": [JOINED]}, {}, {"train": 6}),
    ("all, by data_files", {"monet": [*MONET, TRAIN], "brett": [VALLEY, STONES]}, ALL, {"train": 7}),
]
for number, (title, painters, options, expected) in enumerate(SEEN):
    folder = pathlib.Path(sys.argv[1]) / str(number)
    for painter, names in painters.items():
        (folder / "pictures" / painter).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8)).save(folder / "pictures" / painter / name)
    told = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "pictures"), cache_dir=str(folder / "cache"), **options
    )
    found = {split: len(rows) for split, rows in told.items()}
    total = sum(map(len, painters.values()))
    print(f"{title:24}: {total} pictures, of them read: {', '.join(f'{n} ({split})' for split, n in found.items())}")
    assert found == expected, found
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
