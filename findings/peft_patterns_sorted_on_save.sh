#!/usr/bin/env bash
# PEFT: a saved adapter comes back with other scales where two patterns match one module
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. `alpha_pattern` and `rank_pattern` are dicts from a pattern to a value, and a module takes the value of
# the first pattern that matches its name, in the order of the dict. A pattern matches from a dot to the end, so "to_q"
# matches what "up.to_q" matches. `save_pretrained` writes adapter_config.json with sorted keys, those of the two dicts
# too. After `from_pretrained` another pattern may be the first: the special one, placed before the general one, is
# behind it if its name sorts behind it. Alphas then change in silence (the check for patterns that match no module
# finds nothing, as each still matches one), and ranks make loading fail with a mismatch of sizes.
#
# What most would expect. That an adapter which is saved and loaded again computes what it did, or that the most special
# pattern wins in whatever order. Special before general is the natural way to write "this for all, but that for these".
#
# Seen 2026-11-29 (lora_alpha 8, r 4; scale = alpha / r):
#   alpha {'up.to_q': 32, 'to_q': 4} in the file: {'to_q': 4, 'up.to_q': 32}
#     scales before {'down.to_q': 1.0, 'up.to_q': 8.0} after {'down.to_q': 1.0, 'up.to_q': 1.0}, update of up.to_q 0.125
#   alpha {'down.to_q': 32, 'to_q': 4} in the file: {'down.to_q': 32, 'to_q': 4}
#     scales before {'down.to_q': 8.0, 'up.to_q': 1.0} after {'down.to_q': 8.0, 'up.to_q': 1.0}, update of up.to_q 1.000
#   rank {'up.to_q': 2, 'to_q': 3}: RuntimeError when loading
#   rank {'down.to_q': 2, 'to_q': 3}: loaded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import copy
import json
import pathlib
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
base = nn.ModuleDict({place: nn.ModuleDict({"to_q": nn.Linear(8, 8)}) for place in ("down", "up")})


def modules(model):
    return {name.removeprefix("base_model.model."): module for name, module in model.named_modules()
            if getattr(module, "scaling", None)}


def scales(model):
    return {name: module.scaling["default"] for name, module in modules(model).items()}


def adapter(**patterns):
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False, **patterns)
    return get_peft_model(copy.deepcopy(base), config)


for number, special in enumerate(("up.to_q", "down.to_q")):
    pattern = {special: 32, "to_q": 4}
    model = adapter(alpha_pattern=dict(pattern))
    model.save_pretrained(folder / f"alpha{number}")
    stored = json.loads((folder / f"alpha{number}" / "adapter_config.json").read_text())["alpha_pattern"]
    with warnings.catch_warnings(record=True) as said:
        again = PeftModel.from_pretrained(copy.deepcopy(base), folder / f"alpha{number}")
    assert not [warning for warning in said if "pattern" in str(warning.message)]
    with torch.no_grad():
        old, new = (modules(one)["up.to_q"].get_delta_weight("default") for one in (model, again))
    ratio = float((old * new).sum() / (old * old).sum())
    print(f"alpha {pattern} in the file: {stored}")
    print(f"  scales before {scales(model)} after {scales(again)}, update of up.to_q {ratio:.3f}")
    assert list(stored) == sorted(pattern)
    assert (scales(model) == scales(again)) == (number == 1)
    assert abs(ratio - (0.125, 1.0)[number]) < 1e-4
for number, special in enumerate(("up.to_q", "down.to_q")):
    pattern = {special: 2, "to_q": 3}
    adapter(rank_pattern=dict(pattern)).save_pretrained(folder / f"rank{number}")
    try:
        PeftModel.from_pretrained(copy.deepcopy(base), folder / f"rank{number}")
        outcome = "loaded"
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        outcome = "RuntimeError when loading"
    print(f"rank {pattern}: {outcome}")
    assert outcome == ("RuntimeError when loading", "loaded")[number]
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
