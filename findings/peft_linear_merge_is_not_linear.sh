#!/usr/bin/env bash
# PEFT: a "linear" merge of two LoRAs is not their weighted sum, and depends on how each is factored
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. `add_weighted_adapter(..., combination_type="linear")` adds the As and the Bs, each times the square root of its
# weight. The product of the sums has, beside the two updates, the cross terms of one adapter's B with the other's A, which nobody
# trained. An update is the same when A is turned by a rotation and B back, or when both change sign; the merge is not. Half of an
# adapter and half of its own copy with other factors is another update, and with both signs changed it is zero. "cat" gives the
# sum; "svd" gives the sum cut to the larger rank.
#
# What most would expect. The weighted sum of the updates, as its name says and as diffusers' set_adapters computes. Of two
# unrelated adapters in equal parts, what comes out is half as strong again and points elsewhere.
#
# Seen 2026-11-29 (one linear layer, rank 4; "rotated" and "negated" compute what "one" computes):
#   norm and cosine of the result, against the weighted sum of the updates
#   one x 0.5 + other   x  0.5, linear: norm 1.53, cosine 0.77
#   one x 0.5 + other   x  0.5, cat   : norm 1.00, cosine 1.00
#   one x 0.5 + other   x  0.5, svd   : norm 0.86, cosine 0.86
#   one x 1.0 + other   x -1.0, linear: norm 1.32, cosine 0.66
#   one x 1.0 + other   x -1.0, cat   : norm 1.00, cosine 1.00
#   one x 1.0 + other   x -1.0, svd   : norm 0.87, cosine 0.87
#   one x 0.5 + rotated x  0.5, linear: norm 1.07, cosine 0.70
#   one x 0.5 + rotated x  0.5, cat   : norm 1.00, cosine 1.00
#   one x 0.5 + rotated x  0.5, svd   : norm 1.00, cosine 1.00
#   one x 0.5 + negated x  0.5, linear: norm 0.00, cosine 0.00
#   one x 0.5 + negated x  0.5, cat   : norm 1.00, cosine 1.00
#   one x 0.5 + negated x  0.5, svd   : norm 1.00, cosine 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 48, bias=False))
LORA = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
model = get_peft_model(model, LORA, "one")
for name in ("other", "rotated", "negated"):
    model.add_adapter(name, LORA)
layer = model.base_model.model[0]
rotation = torch.linalg.qr(torch.randn(4, 4)).Q
with torch.no_grad():
    # One update in other factors: (B R') (R A), and (-B) (-A).
    for name, turn in (("rotated", rotation), ("negated", -torch.eye(4))):
        layer.lora_A[name].weight.copy_(turn @ layer.lora_A["one"].weight)
        layer.lora_B[name].weight.copy_(layer.lora_B["one"].weight @ turn.T)
update = {name: layer.get_delta_weight(name).detach() for name in ("one", "other", "rotated", "negated")}
for name in ("rotated", "negated"):
    assert torch.allclose(update[name], update["one"], atol=1e-5)


def merged(pair, weights, kind):
    name = f"{'_'.join(pair)}_{kind}_{weights[1]}".replace(".", "_")
    model.add_weighted_adapter(list(pair), list(weights), name, combination_type=kind)
    found = layer.get_delta_weight(name).detach()
    sum_of_both = weights[0] * update[pair[0]] + weights[1] * update[pair[1]]
    cosine = float((found * sum_of_both).sum() / (found.norm() * sum_of_both.norm()).clamp_min(1e-9))
    return float(found.norm() / sum_of_both.norm()), cosine


print("norm and cosine of the result, against the weighted sum of the updates")
seen = {}
for pair, weights in ((("one", "other"), (0.5, 0.5)), (("one", "other"), (1.0, -1.0)), (("one", "rotated"), (0.5, 0.5)),
                      (("one", "negated"), (0.5, 0.5))):
    for kind in ("linear", "cat", "svd"):
        seen[pair, kind] = norm, cosine = merged(pair, weights, kind)
        print(f"{pair[0]} x {weights[0]} + {pair[1]:7} x {weights[1]:4}, {kind:6}: norm {norm:.2f}, cosine {cosine:.2f}")
        if kind == "cat" or (kind == "svd" and pair[1] != "other"):
            assert abs(norm - 1) < 1e-3 and cosine > 0.999
assert seen[("one", "negated"), "linear"][0] < 1e-5
assert seen[("one", "rotated"), "linear"][1] < 0.9
assert 0.6 < seen[("one", "other"), "linear"][1] < 0.85 and seen[("one", "other"), "linear"][0] > 1.2
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
