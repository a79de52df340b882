#!/usr/bin/env bash
# safetensors: no tensors together with an empty metadata are saved as a file that safetensors cannot read
#
# Versions: safetensors 0.8.0, numpy 2.3.5, Python 3.11 to 3.13; no torch.
#
# What it does. Without tensors the header is written as an object that is closed at once, and an empty metadata is then appended
# behind it, so the header is no JSON. `save_file` returns as always; the file is there, and every later read of it fails. Nothing
# saved with metadata None, nothing saved with one entry of metadata, and tensors with empty metadata are all read.
#
# What most would expect. Four harmless cases. A trainer that collects the tensors of an adapter and the metadata in two dicts meets
# this one when its filter matched no module, and learns of it when the file is opened.
#
# Seen 2026-11-29:
#   tensors 0, metadata None            : read again: 0
#   tensors 0, metadata {}              : SafetensorError: Error while deserializing header: invalid JSON in header: trailing characters at line 1 column 3
#   tensors 0, metadata {'format': 'np'}: read again: 0
#   tensors 1, metadata None            : read again: 1
#   tensors 1, metadata {}              : read again: 1
#   tensors 1, metadata {'format': 'np'}: read again: 1
#   the header that is not read: {},"__metadata__":{}}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.3.5
cat > "$folder/one.py" <<'PY'
import pathlib
import sys

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

file = pathlib.Path(sys.argv[1]) / "file.safetensors"
for tensors in ({}, {"a": np.zeros(2, dtype=np.float32)}):
    for metadata in (None, {}, {"format": "np"}):
        save_file(tensors, file, metadata)
        try:
            outcome = f"read again: {len(load_file(file))}"
        except safetensors.SafetensorError as error:
            outcome = f"SafetensorError: {error}"
        print(f"tensors {len(tensors)}, metadata {metadata!s:16}: {outcome}")
        assert ("Error" in outcome) == (not tensors and metadata == {})
save_file({}, file, {})
print("the header that is not read:", file.read_bytes()[8:].decode().strip())
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
