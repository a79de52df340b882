#!/usr/bin/env bash
# DiffSynth-Studio: an SDXL file in kohya's names with alpha 1 and rank 16 is applied at sixteen times its strength
#
# Versions: diffsynth 2.1.12, lycoris-lora 4.1.3, torch 2.14.1, Python 3.11.
#
# What it does. Its reader of SDXL files renames lora_down, lora_up and alpha of each module to its own names. The name for alpha is
# made from that of lora_down by replacing "lora_A.weight", but the names of its table end in "lora_A.default.weight": nothing is
# replaced, so alpha gets the name of lora_down. A file has its keys in order, alpha first, so lora_down takes its place and alpha is
# gone. What follows would scale by alpha / rank and warn that it does; it finds no alpha, and says nothing. In FLUX files alpha
# is seen, but once: alpha / rank of the first module of the file becomes that of all. (An SDXL file that changes
# convolutions of ResNets as well ends in a KeyError; those of attention and feed-forward, sd-scripts' default, are read.)
#
# What most would expect. alpha / rank of each module, as the network computed while it was trained. The default alpha of sd-scripts
# and of LyCORIS is 1. With alpha equal to the rank nothing shows; a FLUX file shows it where modules have ranks of their own.
#
# Seen 2026-11-30 (two layers a file, as LyCORIS saves them in float16):
#   SDXL  rank 16, alpha 16; rank 16, alpha 16: applied at 1 and 1 times the trained strength, warnings: 0
#   SDXL  rank 16, alpha  8; rank 16, alpha  8: applied at 2 and 2 times the trained strength, warnings: 0
#   SDXL  rank 16, alpha  1; rank 16, alpha  1: applied at 16 and 16 times the trained strength, warnings: 0
#   FLUX  rank 16, alpha  8; rank 16, alpha  8: applied at 1 and 1 times the trained strength, warnings: 0
#   FLUX  rank 16, alpha  8; rank  4, alpha  8: applied at 1 and 0.25 times the trained strength, warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffsynth==2.1.12 lycoris-lora==4.1.3 torch==2.14.1 torchvision==0.29.2
cat > "$folder/one.py" <<'PY'
import contextlib
import io
import logging
import pathlib
import sys
import warnings

import torch
from diffsynth.core import load_state_dict
from diffsynth.utils.lora.flux import FluxLoRALoader
from diffsynth.utils.lora.sdxl import SdxlLoRALoader
from safetensors.torch import save_file
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris  # noqa: E402
from lycoris.wrapper import LycorisNetwork  # noqa: E402

folder = pathlib.Path(sys.argv[1])
LycorisNetwork.LORA_PREFIX = "lora_unet"

# The layers by the names that a file of sd-scripts has, and by those of DiffSynth's own models.
SDXL = {
    "input_blocks.4.1.transformer_blocks.0.attn1.to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks.4.1.transformer_blocks.0.attn2.to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
}
FLUX = {
    "double_blocks.0.img_attn.proj": "blocks.0.attn.a_to_out",
    "single_blocks.0.linear2": "single_blocks.0.proj_out",
}


def model_of(layers):
    """Modules whose paths are the names, each a linear layer."""
    root = nn.Module()
    for path, layer in layers.items():
        *parents, last = path.split(".")
        place = root
        for name in parents:
            if name not in dict(place.named_children()):
                place.add_module(name, nn.Module())
            place = getattr(place, name)
        place.add_module(last, layer)
    return root


def factors(loader, names, settings):
    """For each layer what the loader adds, as a multiple of what the trained network adds."""
    torch.manual_seed(0)
    originals = {name: nn.Linear(32, 48, bias=False) for name in names}
    trained = {}
    tensors = {}
    for (name, layer), (rank, alpha) in zip(originals.items(), settings, strict=True):
        network = create_lycoris(model_of({name: layer}), linear_dim=rank, linear_alpha=alpha, algo="locon")
        with torch.no_grad():
            network.loras[0].lora_up.weight.normal_(std=0.1)
        network.apply_to()
        with torch.no_grad():
            trained[name] = layer(torch.eye(32)).T - layer.weight  # the forward pass of training
        network.restore()
        network.save_weights(str(folder / "part.safetensors"), torch.float16, None)
        tensors |= load_state_dict(str(folder / "part.safetensors"))
    save_file(tensors, folder / "lora.safetensors")
    theirs = {names[name]: nn.Linear(32, 48, bias=False) for name in names}
    before = {path: layer.weight.detach().clone() for path, layer in theirs.items()}
    with warnings.catch_warnings(record=True) as told, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        read = loader(torch_dtype=torch.float32)
        state = read.convert_state_dict(load_state_dict(str(folder / "lora.safetensors"), torch_dtype=torch.float32))
        read.fuse_lora_to_base_model(model_of(theirs), state)
    found = []
    for name, path in names.items():
        added = theirs[path].weight.detach() - before[path]
        factor = float((added * trained[name]).sum() / trained[name].square().sum())
        assert float((added - factor * trained[name]).norm() / added.norm()) < 2e-3  # float16 in the file
        found.append(round(factor, 2))
    return found, len(told)


WAYS = {
    "SDXL": (SdxlLoRALoader, SDXL),
    "FLUX": (FluxLoRALoader, FLUX),
}
SEEN = {
    ("SDXL", (16, 16), (16, 16)): [1, 1],
    ("SDXL", (16, 8), (16, 8)): [2, 2],
    ("SDXL", (16, 1), (16, 1)): [16, 16],
    ("FLUX", (16, 8), (16, 8)): [1, 1],
    ("FLUX", (16, 8), (4, 8)): [1, 0.25],
}
for (title, *settings), expected in SEEN.items():
    found, warned = factors(*WAYS[title], settings)
    print(f"{title}  {'; '.join(f'rank {rank:2}, alpha {alpha:2}' for rank, alpha in settings)}: applied at "
          f"{' and '.join(f'{factor:g}' for factor in found)} times the trained strength, warnings: {warned}")
    assert all(abs(a - b) < 0.02 * b for a, b in zip(found, expected, strict=True)), found
    assert warned == 0
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
