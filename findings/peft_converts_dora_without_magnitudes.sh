#!/usr/bin/env bash
# PEFT: convert_to_lora makes a LoRA of a DoRA without its magnitudes, at full rank too
#
# Versions: peft 0.21.2, torch 2.14.1, transformers 5.23.0, Python 3.11.
#
# What it does. convert_to_lora takes an adapter's update and approximates it by one of a given rank, for programs that read LoRA
# alone. It asks layers of LoRA for their update as well, and gets B A times the scale: a DoRA's magnitudes and a LoRA's biases
# (lora_bias) are no part of it. Both are converted, at any rank, into an adapter that does something else. The check for biases asks
# for lora_bias only where a configuration has no `bias`, which that of a LoRA has. The one warning is that of any LoRA: there is
# typically no need for it.
#
# What most would expect. Of a DoRA W' - W of the layer as it computes, which a LoRA of full rank has exactly, as PEFT does for the other
# kinds that it converts; or the refusal that it has for OFT, IA³ and HiRA, whose updates need the base's weights too, and for biases.
#
# Seen 2026-11-30 (a linear layer 32 to 48, converted at rank 32):
#   LoRA                              : the converted adapter is off by 0.00 of what the adapter does; warnings: 1
#   DoRA, its magnitudes as they began: the converted adapter is off by 0.21 of what the adapter does; warnings: 1
#   DoRA, its magnitudes trained      : the converted adapter is off by 0.98 of what the adapter does; warnings: 1
#   LoRA with lora_bias               : the converted adapter is off by 0.69 of what the adapter does; warnings: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  peft==0.21.2 torch==2.14.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/one.py" <<'PY'
import copy
import warnings

import peft
import torch
from torch import nn

KINDS = {
    "LoRA": ({}, 1.0, (0, 1e-4)),
    "DoRA, its magnitudes as they began": ({"use_dora": True}, 1.0, (0.15, 0.3)),
    "DoRA, its magnitudes trained": ({"use_dora": True}, torch.linspace(0.5, 2, 48), (0.9, 1.1)),
    "LoRA with lora_bias": ({"lora_bias": True}, 1.0, (0.6, 0.8)),
}
for title, (options, magnitudes, expected) in KINDS.items():
    torch.manual_seed(0)
    base, inputs = nn.Sequential(nn.Linear(32, 48)), torch.randn(64, 32)
    config = peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=4, **options)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            elif "magnitude" in name:
                parameter.mul_(magnitudes)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            # Rank 32 is all that a layer of 32 inputs can have: any update of its weight fits.
            converted, state = peft.convert_to_lora(model, rank=32)
        other = peft.get_peft_model(copy.deepcopy(base), converted).eval()
        assert not peft.set_peft_model_state_dict(other, state).unexpected_keys
        plain, meant, got = base(inputs), model(inputs), other(inputs)
    off = float((got - meant).norm() / (meant - plain).norm())
    print(f"{title:34}: the converted adapter is off by {off:.2f} of what the adapter does; warnings: {len(told)}")
    assert expected[0] <= off <= expected[1], off
    assert [str(each.message)[:61] for each in told] == ["Converting a PEFT adapter to LoRA that is already a LoRA adap"]
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
