#!/usr/bin/env bash
# LyCORIS: a DyLoRA is saved with an alpha that gives its file another strength than it was trained with
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0 (the same with 2.15.0), Python 3.11.
#
# What it does. A DyLoRA uses the first so many blocks of its rank, their number drawn at random, and divides alpha by the number of
# blocks that it uses. Its file is a plain LoRA of all blocks: A, B and the alpha as it was given, of which every reader takes
# alpha / rank. So with block_size b, whose default is 4, the file's update is one b-th of the network's with all blocks. LyCORIS
# itself reads the file as LoCon, with the same part. And the number of blocks is drawn in eval() too: a trained network, asked
# twice with one input, answers twice differently.
#
# What most would expect. That a file computes what the network with all its blocks computes, as for the other algorithms, and that
# eval() ends the drawing.
#
# Seen 2026-11-29 (rank 8, alpha 4, a linear layer; 80 forward passes with one input):
#   block_size 1: 8 outputs in eval(); file as a LoRA / whole network 1.000; loaded by LyCORIS, LoConModule, / whole network 1.000
#   block_size 2: 4 outputs in eval(); file as a LoRA / whole network 0.500; loaded by LyCORIS, LoConModule, / whole network 0.500
#   block_size 4: 2 outputs in eval(); file as a LoRA / whole network 0.250; loaded by LyCORIS, LoConModule, / whole network 0.250
#   block_size 8: 1 outputs in eval(); file as a LoRA / whole network 0.125; loaded by LyCORIS, LoConModule, / whole network 0.125
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import logging
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris, create_lycoris_from_weights  # noqa: E402

file = pathlib.Path(sys.argv[1]) / "dylora.safetensors"
RANK, ALPHA = 8, 4.0
INPUTS = torch.randn(256, 32, generator=torch.manual_seed(2))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48))


def along(change, other):
    return float((change * other).sum() / (other * other).sum())


for block in (1, 2, 4, 8):
    trained = model()
    network = create_lycoris(trained, linear_dim=RANK, linear_alpha=ALPHA, algo="dylora", block_size=block)
    with torch.no_grad():
        for parameter in network.loras[0].parameters():
            parameter.normal_(std=0.3)
        plain = trained(INPUTS)
        network.apply_to()
        network.save_weights(str(file), torch.float32, None)
        tensors = load_file(file)
        (up,) = (value for key, value in tensors.items() if "lora_up" in key)
        (down,) = (value for key, value in tensors.items() if "lora_down" in key)
        (alpha,) = (float(value) for key, value in tensors.items() if key.endswith("alpha"))
        # What every reader of a LoRA makes of these three tensors.
        as_lora = alpha / down.shape[0] * INPUTS @ (up @ down).T
        network.eval()
        outputs = [trained(INPUTS) - plain for _ in range(80)]
        # A forward pass uses the first so many blocks, their number drawn anew. Here: the one that uses all of them.
        whole = INPUTS @ network.loras[0].get_diff_weight(rank=RANK - block)[0].T
        assert any(torch.allclose(each, whole, atol=1e-4) for each in outputs)
        ranks = {round(float(each.norm()), 3) for each in outputs}
        own = model()
        again, _ = create_lycoris_from_weights(1.0, "", own, weights_sd=tensors)
        again.apply_to()
        loaded = own(INPUTS) - plain
    aligned = along(as_lora, whole)
    print(f"block_size {block}: {len(ranks)} outputs in eval(); file as a LoRA / whole network {aligned:.3f}; "
          f"loaded by LyCORIS, {type(again.loras[0]).__name__}, / whole network {along(loaded, whole):.3f}")
    assert alpha == ALPHA and down.shape[0] == RANK
    assert len(ranks) == RANK // block
    assert abs(aligned - 1 / block) < 1e-3 and torch.allclose(loaded, as_lora, atol=1e-3)
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
