#!/usr/bin/env bash
# LyCORIS: a LoHa or LoKr whose alpha is not its rank is merged with another strength than it was trained with
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. The scale of a module is alpha / rank. In LoHa and LoKr the method that rebuilds the update already
# applies it, and the forward pass uses that result as it is. `get_diff_weight` takes the same result and applies the
# scale once more. What rests on it, `get_merged_weight`, `merge_to` and `onfly_merge`, adds scale * update where
# training and the network's forward pass add the update. With alpha 1 and rank 4 a quarter of the effect is left after
# merging, with alpha 8 it is doubled. LoCon applies the scale in one place. With alpha equal to the rank, or in a LoKr
# of two full factors, which has the scale 1, nothing shows.
#
# What most would expect. That a merged model computes what the model with the network computes. The default alpha is 1
# and the default rank 4, so the default settings show it.
#
# Seen 2026-11-29 (change of the output after merge_to, as a multiple of the change by the network's forward pass):
#   linear locon  alpha 1: 1.00  alpha 4: 1.00  alpha 8: 1.00
#   linear loha   alpha 1: 0.25  alpha 4: 1.00  alpha 8: 2.00
#   linear lokr   alpha 1: 0.25  alpha 4: 1.00  alpha 8: 2.00
#   conv   locon  alpha 1: 1.00  alpha 4: 1.00  alpha 8: 1.00
#   conv   loha   alpha 1: 0.25  alpha 4: 1.00  alpha 8: 2.00
#   conv   lokr   alpha 1: 0.25  alpha 4: 1.00  alpha 8: 2.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  lycoris-lora==4.1.3 einops==0.8.2 toml==0.10.2 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import logging

import torch
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris  # noqa: E402


def ratio(kind, algo, alpha):
    torch.manual_seed(0)
    layer, inputs = {
        "linear": (nn.Linear(32, 48), torch.randn(4, 32)),
        "conv": (nn.Conv2d(32, 48, 3, padding=1), torch.randn(4, 32, 5, 5)),
    }[kind]
    model = nn.Sequential(layer)
    network = create_lycoris(model, linear_dim=4, linear_alpha=alpha, algo=algo, factor=4)
    with torch.no_grad():
        for parameter in network.loras[0].parameters():
            parameter.normal_(std=0.3)
        plain = model(inputs)
        network.apply_to()
        trained = model(inputs) - plain
        network.restore()
        assert torch.equal(model(inputs), plain)
        network.merge_to(1.0)
        merged = model(inputs) - plain
        factor = float((merged * trained).sum() / (trained * trained).sum())
        # The merged change is the trained one times one number, nothing else.
        assert float((merged - factor * trained).norm() / merged.norm()) < 1e-4
    return factor


for kind in ("linear", "conv"):
    for algo in ("locon", "loha", "lokr"):
        found = {alpha: ratio(kind, algo, alpha) for alpha in (1, 4, 8)}
        print(f"{kind:6} {algo:5}", *(f" alpha {alpha}: {factor:.2f}" for alpha, factor in found.items()))
        for alpha, factor in found.items():
            assert abs(factor - (1 if algo == "locon" else alpha / 4)) < 1e-3
PY
"$folder/env/bin/python" "$folder/one.py"
echo "as seen"
