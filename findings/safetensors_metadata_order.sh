#!/usr/bin/env bash
# safetensors: the same tensors with the same metadata are not the same file
#
# Versions: safetensors 0.8.0, numpy 2.3.5, Python 3.11 to 3.13; no torch.
#
# What it does. `save` and `save_file` take metadata as a dict of strings and write it into the header in the order of a hash
# map with a random state. With one entry there is one order. With two or more, each process (and each call) may write
# another: the file's bytes and hash differ, while tensors, their order and the header's length are the same. Sorting the
# dict before, or PYTHONHASHSEED, changes nothing, since the order is made in Rust.
#
# What most would expect. That equal input gives equal bytes, as it does without metadata and with one entry: LoRA files are
# deduplicated, cached and pinned by SHA-256, and trainers write dozens of entries (ss_*, modelspec.*), so a LoRA that is
# saved again "unchanged" has another hash. Who needs stable bytes has to write the header's JSON again in a fixed order.
#
# Seen 2026-11-28:
#   metadata entries 0: 1 files in 24 saves, 1 length of the header, 1 content
#   metadata entries 1: 1 files in 24 saves, 1 length of the header, 1 content
#   metadata entries 2: 2 files in 24 saves, 1 length of the header, 1 content
#   metadata entries 8: 24 files in 24 saves, 1 length of the header, 1 content
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.3.5
cat > "$folder/one.py" <<'PY'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

entries = int(sys.argv[1])
tensors = {"lora_unet_a.lora_down.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
metadata = {f"ss_key_{i}": str(i) for i in range(entries)}
for _ in range(3):
    data = save(tensors, metadata=metadata or None)
    print(hashlib.sha256(data).hexdigest(), int.from_bytes(data[:8], "little"), hashlib.sha256(data[-24:]).hexdigest())
PY
for entries in 0 1 2 8; do
  for _ in 1 2 3 4 5 6 7 8; do
    PYTHONHASHSEED=0 "$folder/env/bin/python" "$folder/one.py" "$entries"
  done > "$folder/$entries"
  files=$(cut -d' ' -f1 "$folder/$entries" | sort -u | wc -l)
  lengths=$(cut -d' ' -f2 "$folder/$entries" | sort -u | wc -l)
  contents=$(cut -d' ' -f3 "$folder/$entries" | sort -u | wc -l)
  echo "metadata entries $entries: $files files in 24 saves, $lengths length of the header, $contents content"
  [ "$lengths" = 1 ]
  [ "$contents" = 1 ]
  case $entries in
    0 | 1) [ "$files" = 1 ] ;;
    2) [ "$files" = 2 ] ;;
    8) [ "$files" -gt 12 ] ;;
  esac
done
echo "as seen"
