#!/usr/bin/env bash
# LyCORIS: files of some of its own options cannot be loaded by create_lycoris_from_weights
#
# Versions: lycoris-lora 4.1.3, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. `create_lycoris_from_weights` builds each module from the tensors of the file, guesses the options from
# their names and shapes, and copies the tensors in. Three guesses are wrong. DoRA's magnitudes are always taken to be
# one per output, while `wd_on_output=False` stores one per input. The rank of a LoKr is read from the second axis of
# lokr_w2_a, which is the rank in an ordinary LoKr and not in one of a convolution with `use_tucker`, where the axes are
# the other way round. And the sizes of a LoKr's blocks are recomputed from the layer and one factor, which does not
# give back those of `unbalanced_factorization`, nor those of a convolution at some factors. The copy then raises.
#
# What most would expect. That a library reads what it has written, or refuses to write it. Nothing is wrong with the
# files: the same files load where the network is first made with the options that they were made with.
#
# Seen 2026-11-29 (64 to 128 channels, rank 4; convolutions 3x3; "same" is the same output as before saving):
#   linear plain                 locon same             loha same             lokr same
#   linear dora                  locon same             loha same             lokr same
#   linear dora, input side      locon RuntimeError     loha RuntimeError     lokr RuntimeError
#   linear tucker                locon same             loha same             lokr same
#   linear unbalanced            locon same             loha same             lokr RuntimeError
#   linear factor 16             locon same             loha same             lokr same
#   conv   plain                 locon same             loha same             lokr same
#   conv   dora                  locon same             loha same             lokr same
#   conv   dora, input side      locon RuntimeError     loha RuntimeError     lokr RuntimeError
#   conv   tucker                locon same             loha same             lokr AttributeError
#   conv   unbalanced            locon same             loha same             lokr RuntimeError
#   conv   factor 16             locon same             loha same             lokr RuntimeError
#   into a network made with the same options: 36 of 36 the same
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
from torch import nn

logging.disable(logging.WARNING)
from lycoris import create_lycoris, create_lycoris_from_weights  # noqa: E402

path = str(pathlib.Path(sys.argv[1]) / "file.safetensors")
OPTIONS = {
    "plain": {},
    "dora": {"dora_wd": True},
    "dora, input side": {"dora_wd": True, "wd_on_output": False},
    "tucker": {"use_tucker": True},
    "unbalanced": {"unbalanced_factorization": True},
    "factor 16": {"factor": 16},
}
FAILS = {
    ("linear", "lokr", "unbalanced"): "RuntimeError",
    ("conv", "lokr", "tucker"): "AttributeError",
    ("conv", "lokr", "unbalanced"): "RuntimeError",
    ("conv", "lokr", "factor 16"): "RuntimeError",
}
for kind in ("linear", "conv"):
    for algo in ("locon", "loha", "lokr"):
        FAILS[kind, algo, "dora, input side"] = "RuntimeError"


def base(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128) if kind == "linear" else nn.Conv2d(64, 128, 3, padding=1))


def made(model, algo, options):
    return create_lycoris(model, linear_dim=4, linear_alpha=4, algo=algo, **options)


def close(one, other):
    return bool((one - other).norm() < 1e-4 * other.norm())


@torch.no_grad()
def trip(kind, algo, options):
    inputs = torch.randn(4, 64) if kind == "linear" else torch.randn(4, 64, 5, 5)
    model = base(kind)
    plain = model(inputs)
    network = made(model, algo, options)
    for name, parameter in network.loras[0].named_parameters():
        parameter.mul_(1.5) if name == "dora_scale" else parameter.normal_(std=0.3)
    network.apply_to()
    wanted = model(inputs)
    assert not close(wanted, plain)
    network.save_weights(path, None, {})
    second = base(kind)
    network = made(second, algo, options)
    network.load_weights(path)
    network.apply_to()
    control = close(second(inputs), wanted)
    third = base(kind)
    try:
        network, _ = create_lycoris_from_weights(1.0, path, third)
        network.apply_to()
        outcome = "same" if close(third(inputs), wanted) else "other"
    except (RuntimeError, AttributeError) as error:
        outcome = type(error).__name__
    return outcome, control


controls = []
for kind in ("linear", "conv"):
    for label, options in OPTIONS.items():
        line = f"{kind:6} {label:20}"
        for algo in ("locon", "loha", "lokr"):
            outcome, control = trip(kind, algo, options)
            controls.append(control)
            line += f"  {algo} {outcome:15}"
            assert outcome == FAILS.get((kind, algo, label), "same"), line
        print(line.rstrip())
print(f"into a network made with the same options: {sum(controls)} of {len(controls)} the same")
assert all(controls)
PY
"$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
