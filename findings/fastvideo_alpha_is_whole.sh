#!/usr/bin/env bash
# FastVideo: a LoRA of rank 16 and alpha 0.5 is applied at 32 times its strength, one of alpha 1.5 at two thirds
#
# Versions: fastvideo 0.2.1, lycoris-lora 4.1.3, torch 2.12.0, Python 3.11.
#
# What it does. The alpha of a module (keys that end in ".alpha" or ".lora_alpha") is read from the file as a number with a fraction,
# and becomes a whole one where it is set: int(alpha). An alpha below 1 becomes 0, and where the update is merged into the weight, as
# pipelines do, 0 is taken for an alpha that is missing: the update is added at 1 instead of alpha / rank. From 1 on the fraction is cut
# off. Nothing is said.
#
# What most would expect. alpha / rank, as the network computed while it was trained. alpha need not be whole: it is any number in
# the settings of sd-scripts and LyCORIS, and a file that is resized at the same alpha / rank gets what comes of that. With whole alphas,
# which most settings have, nothing shows.
#
# Seen 2026-11-30 (a linear layer; its keys normalized and merged by FastVideo's own functions, on the CPU):
#   rank 16, alpha   16: the file says 16.0, applied at 1.00 times the trained strength
#   rank 16, alpha    8: the file says  8.0, applied at 1.00 times the trained strength
#   rank 16, alpha    1: the file says  1.0, applied at 1.00 times the trained strength
#   rank 16, alpha  1.5: the file says  1.5, applied at 0.67 times the trained strength
#   rank 16, alpha  0.5: the file says  0.5, applied at 32.00 times the trained strength
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
# The layers alone: without what its servers, kernels and training need.
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  lycoris-lora==4.1.3 torch==2.12.0 torchvision==0.27.0 transformers==5.5.4 diffusers==0.39.0 numpy pillow scipy einops \
  "imageio[ffmpeg]" cloudpickle filelock psutil loguru pyyaml aiohttp remote-pdb opencv-python-headless av ftfy
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps fastvideo==0.2.1
cat > "$folder/one.py" <<'PY'
import logging
import pathlib
import sys

import torch
from fastvideo.layers.linear import ReplicatedLinear
from fastvideo.layers.lora import linear as its_layers
from fastvideo.models.loader.lora_patch import normalize_lora_key
from safetensors.torch import load_file
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris  # noqa: E402

its_layers.get_local_torch_device = lambda: torch.device("cpu")  # it merges on a GPU and brings the weights back
file = pathlib.Path(sys.argv[1]) / "lora.safetensors"
for alpha, expected in ((16, 1), (8, 1), (1, 1), (1.5, 2 / 3), (0.5, 32)):
    torch.manual_seed(0)
    layer = nn.Linear(32, 48, bias=False)
    network = create_lycoris(nn.Sequential(layer), linear_dim=16, linear_alpha=alpha, algo="locon")
    with torch.no_grad():
        network.loras[0].lora_up.weight.normal_(std=0.1)
        network.apply_to()
        trained = layer(torch.eye(32)).T - layer.weight  # the forward pass of training
        network.restore()
    network.save_weights(str(file), torch.float32, None)

    # As FastVideo's pipelines read a file: keys normalized, alpha an item, and one call for each layer.
    parts = {normalize_lora_key(key).removesuffix(".weight").rsplit(".")[-1]: value for key, value in load_file(file).items()}
    base = ReplicatedLinear(32, 48, bias=False, params_dtype=torch.float32)
    base.weight.data.copy_(layer.weight.data)
    wrapped = its_layers.get_lora_layer(base)
    wrapped.set_lora_weights(parts["lora_A"], parts["lora_B"], lora_alpha=parts["lora_alpha"].item())
    added = wrapped.base_layer.weight.detach() - layer.weight.detach()
    factor = float((added * trained).sum() / trained.square().sum())
    assert float((added - factor * trained).norm() / added.norm()) < 1e-4
    print(f"rank 16, alpha {alpha:4}: the file says {parts['lora_alpha'].item():4}, applied at {factor:.2f} times the trained strength")
    assert abs(factor / expected - 1) < 1e-3
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
