#!/usr/bin/env bash
# InvokeAI: the magnitudes of a DoRA as LyCORIS saves it by default are applied along the other axis
#
# Versions: InvokeAI 6.14.2, lycoris-lora 4.1.3, torch 2.14.1, Python 3.11.
#
# What it does. dora_scale holds one magnitude for each output, shape (out, 1), or for each input, (1, in), and says which by its
# shape. LyCORIS has wd_on_output=True as its default, which is one for each output. InvokeAI takes every dora_scale to be for
# inputs: it divides the columns of the sum by their norms, whatever the shape, and multiplies by what is there. With (out, 1) the
# two shapes broadcast, so nothing is raised on any layer, square or not, and each weight is scaled by another row's and column's
# numbers. A network that was never trained, and changes nothing, changes the model by a fifth of its output.
#
# What most would expect. W' = m V / |V| with the norm along the axis that the magnitudes have, as LyCORIS computes, or a
# message. Magnitudes for inputs (wd_on_output=False) come out right.
#
# Seen 2026-11-29 (rank 4; changes of the output relative to the output):
#   linear 32 to 48      as it comes        dora_scale (48, 1)       : untrained, should change the output by 0.00, off by 0.20; trained, by 0.18, off by 0.21
#   linear 32 to 48      wd_on_output=False dora_scale (1, 32)       : untrained, should change the output by 0.00, off by 0.00; trained, by 0.18, off by 0.00
#   linear 32 to 32      as it comes        dora_scale (32, 1)       : untrained, should change the output by 0.00, off by 0.11; trained, by 0.16, off by 0.10
#   linear 32 to 32      wd_on_output=False dora_scale (1, 32)       : untrained, should change the output by 0.00, off by 0.00; trained, by 0.16, off by 0.00
#   convolution 32 to 48 as it comes        dora_scale (48, 1, 1, 1) : untrained, should change the output by 0.00, off by 0.18; trained, by 0.21, off by 0.19
#   convolution 32 to 48 wd_on_output=False dora_scale (1, 32, 1, 1) : untrained, should change the output by 0.00, off by 0.00; trained, by 0.21, off by 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  invokeai==6.14.2 lycoris-lora==4.1.3 torch==2.14.1 torchvision==0.29.2
cat > "$folder/one.py" <<'PY'
import logging
import pathlib
import sys

import invokeai.backend.model_manager.load  # noqa: F401 (first: the modules import each other)
import torch
from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import lora_model_from_sd_state_dict
from safetensors.torch import load_file
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris  # noqa: E402

file = pathlib.Path(sys.argv[1]) / "dora.safetensors"
LAYERS = {
    "linear 32 to 48": (lambda: nn.Linear(32, 48), (64, 32)),
    "linear 32 to 32": (lambda: nn.Linear(32, 32), (64, 32)),
    "convolution 32 to 48": (lambda: nn.Conv2d(32, 48, 3, padding=1), (4, 32, 7, 7)),
}


def seen(title, trained, **options):
    layer, shape = LAYERS[title]
    torch.manual_seed(0)
    model = nn.Sequential(layer())
    inputs = torch.randn(shape)
    network = create_lycoris(model, linear_dim=4, linear_alpha=4, algo="locon", dora_wd=True, **options)
    with torch.no_grad():
        plain = model(inputs)
        if trained:
            network.loras[0].lora_up.weight.normal_(std=0.1)
        network.apply_to()
        told = model(inputs) - plain
        network.save_weights(str(file), torch.float32, None)
        network.restore()
        ((_, patch),) = lora_model_from_sd_state_dict(load_file(file)).layers.items()
        originals = {name: value.detach().clone() for name, value in model[0].named_parameters()}
        for name, change in patch.get_parameters(originals, 1.0).items():
            getattr(model[0], name).add_(change)
        got = model(inputs) - plain
    (shape,) = (tuple(value.shape) for key, value in load_file(file).items() if key.endswith("dora_scale"))
    return float(told.norm() / plain.norm()), float((got - told).norm() / plain.norm()), shape


for title in LAYERS:
    for options in ({}, {"wd_on_output": False}):
        untrained, trained = seen(title, False, **options), seen(title, True, **options)
        print(f"{title:20} {'as it comes' if not options else 'wd_on_output=False':18} dora_scale {trained[2]!s:14}: "
              f"untrained, should change the output by {untrained[0]:.2f}, off by {untrained[1]:.2f}; "
              f"trained, by {trained[0]:.2f}, off by {trained[1]:.2f}")
        assert untrained[0] < 1e-4
        assert min(untrained[1], trained[1]) > 0.1 if not options else max(untrained[1], trained[1]) < 1e-4
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
