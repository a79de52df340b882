#!/usr/bin/env bash
# diffusers: its conversion to kohya's spelling writes the rank as every alpha, and leaves a DoRA's magnitudes unreadable
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. `convert_state_dict_to_kohya` makes of PEFT's keys those that WebUIs read, and adds an alpha for each module, as such
# files have: the number of rows of A, which is the rank, so that alpha / rank is 1. Neither the adapter's alpha nor the metadata
# in which diffusers itself keeps it are asked, and the tensors are not scaled for it. An adapter of rank 4 and alpha 16 has a
# quarter of its strength in every program that reads the file, diffusers too. The key of a DoRA's magnitude is to be renamed to
# dora_scale, but behind a test for "unet" that each such key meets first, and stays lora_magnitude_vector.
#
# What most would expect. One adapter in another spelling. With alpha equal to the rank, the default of the training scripts that
# call this, nothing shows.
#
# Seen 2026-11-29 (a tiny UNet; the kohya file loaded by diffusers):
#   trained with rank 4, alpha  1: scale 0.25; its own file: 0.25, same output True ; the kohya file: alpha {4.0}, scale 1.0, same output False
#   trained with rank 4, alpha  4: scale  1.0; its own file:  1.0, same output True ; the kohya file: alpha {4.0}, scale 1.0, same output True
#   trained with rank 4, alpha 16: scale  4.0; its own file:  4.0, same output True ; the kohya file: alpha {4.0}, scale 1.0, same output False
#   endings of a DoRA's keys: alpha, lora_down.weight, lora_up.weight, to_q.lora_magnitude_vector
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import pathlib
import sys
import warnings

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_kohya
from diffusers.utils import logging as its_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

its_logging.set_verbosity_error()
warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1])
INPUTS = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(2)), torch.tensor(5), torch.ones(1, 3, 8)


def pipeline():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return StableDiffusionPipeline(
        unet=unet, text_encoder=None, vae=None, tokenizer=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)


def output(pipe):
    with torch.no_grad():
        return pipe.unet(*INPUTS).sample


def scale(pipe):
    return {each for module in pipe.unet.modules() if hasattr(module, "scaling") for each in module.scaling.values()}


plain = output(pipeline())
for alpha in (1, 4, 16):
    trained = pipeline()
    torch.manual_seed(1)
    trained.unet.add_adapter(LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(trained.unet), weight_name="own.safetensors",
        **_collate_lora_metadata({"unet": trained.unet}))
    tensors = convert_state_dict_to_kohya(load_file(folder / "own.safetensors"))
    save_file(tensors, folder / "kohya.safetensors")
    found = {}
    for file in ("own", "kohya"):
        pipe = pipeline()
        pipe.load_lora_weights(str(folder), weight_name=f"{file}.safetensors")
        found[file] = scale(pipe), torch.allclose(output(pipe), output(trained), atol=1e-5)
    written = {float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    print(f"trained with rank 4, alpha {alpha:2}: scale {alpha / 4:4}; its own file: {found['own'][0].pop():4}, same output "
          f"{found['own'][1]!s:5}; the kohya file: alpha {written}, scale {found['kohya'][0].pop()}, same output "
          f"{found['kohya'][1]}")
    assert written == {4.0} and found["own"][1] and found["kohya"][1] == (alpha == 4)

weight_decomposed = pipeline()
weight_decomposed.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], use_dora=True))
state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(weight_decomposed.unet).items()}
kept = {key.split(".", 1)[1] for key in convert_state_dict_to_kohya(state)}
print("endings of a DoRA's keys:", ", ".join(sorted(kept)))
assert "dora_scale" not in kept
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
