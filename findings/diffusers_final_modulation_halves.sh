#!/usr/bin/env bash
# diffusers: LoRA converters put the update of the final layer's modulation where the model's own converter does not
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. The original FLUX and HunyuanVideo models have the rows of final_layer.adaLN_modulation.1 in the order
# shift, scale; the same layer of diffusers, norm_out.linear, has scale, shift, and the conversion of a checkpoint swaps
# the halves. For an update B A that means the rows of B, and A stays. The LoRA converters do other things. Those for
# HunyuanVideo and for FLUX control files swap the halves of A too, which are ranks, not outputs: what comes out has
# other singular values, so it is no reordering of the file's update. The one for FLUX.2 (LoRA, keys with
# diffusion_model.) swaps nothing: an update of the shift alone becomes one of the scale alone. Ranks of 2 or more are
# loaded without a message, the shapes being right.
#
# What most would expect. W + B A of the original layer, converted, to be what the converted layer with the converted
# LoRA is. The first mistake was reported and mended in 2026 for kohya-spelled FLUX files, not for the other two.
#
# Seen 2026-11-29 (rank 4; distance of the converted B A to the swapped, relative to its norm, and to the unswapped;
# largest change of a singular value, relative to the largest):
#   HunyuanVideo  checkpoint: swapped 0.00    LoRA: swapped 1.21, unswapped 1.28, singular values 0.15
#   FLUX control  checkpoint: not tried       LoRA: swapped 1.21, unswapped 1.28, singular values 0.15
#   FLUX.2        checkpoint: swapped 0.00    LoRA: swapped 1.30, unswapped 0.00, singular values 0.00
#   FLUX.2, an update of the shift alone: norm in the shift's rows 0.00, in the scale's rows 16.38
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import torch
from diffusers import Flux2Pipeline, FluxControlPipeline, HunyuanVideoPipeline
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_hunyuan_video_transformer_to_diffusers,
)

RANK, WIDTH = 4, 8
SOURCE, TARGET = "final_layer.adaLN_modulation.1", "norm_out.linear"
torch.manual_seed(0)
down, up = torch.randn(RANK, WIDTH), torch.randn(2 * WIDTH, RANK)


def swapped(rows):
    first, second = rows.chunk(2)
    return torch.cat([second, first])


def pair(name, rows=WIDTH):
    return {f"{name}.lora_A.weight": torch.ones(RANK, WIDTH), f"{name}.lora_B.weight": torch.ones(rows, RANK)}


def hunyuan(a, b):
    file = {SOURCE + ".lora_A.weight": a, SOURCE + ".lora_B.weight": b}
    file |= pair("double_blocks.0.img_attn_qkv", 3 * WIDTH)
    return HunyuanVideoPipeline.lora_state_dict({"diffusion_model." + key: value for key, value in file.items()})


def flux2(a, b):
    file = {SOURCE + ".lora_A.weight": a, SOURCE + ".lora_B.weight": b}
    return Flux2Pipeline.lora_state_dict({"diffusion_model." + key: value for key, value in file.items()})


def control(a, b):
    # Files of this kind have every module, and the converter asks for each.
    file = {SOURCE + ".lora_A.weight": a, SOURCE + ".lora_B.weight": b, **pair("final_layer.linear")}
    for name in ("img_in", "txt_in", *(f"{one}_in.{layer}_layer" for one in ("time", "vector", "guidance")
                                       for layer in ("in", "out"))):
        file |= pair(name)
    for block in range(19):
        for side in ("img", "txt"):
            for name in ("mod.lin", "attn.proj", "mlp.0", "mlp.2"):
                file |= pair(f"double_blocks.{block}.{side}_{name}")
            file |= pair(f"double_blocks.{block}.{side}_attn.qkv", 3 * WIDTH)
            for one in ("query", "key"):
                file[f"double_blocks.{block}.{side}_attn.norm.{one}_norm.scale"] = torch.ones(WIDTH)
    for block in range(38):
        file |= pair(f"single_blocks.{block}.linear1", 7 * 3072)
        for name in ("modulation.lin", "linear2"):
            file |= pair(f"single_blocks.{block}.{name}")
        for one in ("query", "key"):
            file[f"single_blocks.{block}.norm.{one}_norm.scale"] = torch.ones(WIDTH)
    return FluxControlPipeline.lora_state_dict(file)


def product(converted):
    return converted[f"transformer.{TARGET}.lora_B.weight"] @ converted[f"transformer.{TARGET}.lora_A.weight"]


update = up @ down
values = torch.linalg.svdvals(update)
CASES = {
    "HunyuanVideo": (hunyuan, convert_hunyuan_video_transformer_to_diffusers),
    "FLUX control": (control, None),
    "FLUX.2": (flux2, convert_flux2_transformer_checkpoint_to_diffusers),
}
for label, (lora, checkpoint) in CASES.items():
    said = "not tried"
    if checkpoint:
        weight = checkpoint({SOURCE + ".weight": update.clone()})[TARGET + ".weight"]
        said = f"swapped {float((weight - swapped(update)).norm() / update.norm()):.2f}"
        assert torch.equal(weight, swapped(update))
    found = product(lora(down.clone(), up.clone()))
    near = [float((found - wanted).norm() / update.norm()) for wanted in (swapped(update), update)]
    other = float((torch.linalg.svdvals(found) - values).abs().max() / values.max())
    print(f"{label:13} checkpoint: {said:12}    LoRA: swapped {near[0]:.2f}, unswapped {near[1]:.2f},",
          f"singular values {other:.2f}")
    assert near[0] > 0.5
    assert near[1] < 1e-5 and other < 1e-5 if label == "FLUX.2" else near[1] > 0.5 and other > 0.05
only_shift = torch.cat([up[:WIDTH], torch.zeros(WIDTH, RANK)])
scale, shift = product(flux2(down.clone(), only_shift)).chunk(2)
print(f"FLUX.2, an update of the shift alone: norm in the shift's rows {shift.norm():.2f},",
      f"in the scale's rows {scale.norm():.2f}")
assert not shift.any() and torch.allclose(scale, up[:WIDTH] @ down, atol=1e-5)
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py"
echo "as seen"
