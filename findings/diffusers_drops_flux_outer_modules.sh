#!/usr/bin/env bash
# diffusers: of a kohya-spelled FLUX LoRA only the transformer blocks are loaded, the rest is dropped in silence
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. `load_lora_weights` of a FLUX pipeline renames the keys of a file whose keys begin with lora_unet_. For
# the modules of the blocks the new key begins with "transformer.", for those around them (img_in, txt_in, time_in,
# vector_in, guidance_in, final_layer) it does not. Next, what does not begin with "transformer." is left out before the
# adapter is made. There is nothing unexpected left to warn of, and the call ends well. The same tensors under PEFT's
# names are all loaded.
#
# What most would expect. That a file is loaded whole, or that the loader names what it leaves out: keys that it does
# not know make it raise. The converter renames these modules on purpose, and a mistake in its final layer was mended in
# 2026. sd-scripts trains the input layers if it is asked to (in_dims).
#
# Seen 2026-11-29 (a tiny FLUX transformer; update in the pipeline as a multiple of the file's, - is none):
#   module                                                  kohya   PEFT
#   transformer_blocks.0.attn.to_out.0                       1.00   1.00
#   transformer_blocks.0.norm1.linear                        1.00   1.00
#   single_transformer_blocks.0.proj_out                     1.00   1.00
#   x_embedder                                                  -   1.00
#   context_embedder                                            -   1.00
#   time_text_embed.timestep_embedder.linear_1                  -   1.00
#   time_text_embed.text_embedder.linear_1                      -   1.00
#   time_text_embed.guidance_embedder.linear_1                  -   1.00
#   norm_out.linear                                             -   1.00
#   proj_out                                                    -   1.00
#   messages that name a dropped module: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import logging
import pathlib
import sys
import warnings

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging as its_logging
from safetensors.torch import save_file

folder = pathlib.Path(sys.argv[1])
RANK = 4
NAMES = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks_0_img_attn_proj",
    "transformer_blocks.0.norm1.linear": "double_blocks_0_img_mod_lin",
    "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in_in_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in_in_layer",
    "norm_out.linear": "final_layer_adaLN_modulation_1",
    "proj_out": "final_layer_linear",
}


def pipeline():
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer)


class Heard(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())


messages = []
its_logging.set_verbosity_info()
logging.getLogger("diffusers").addHandler(Heard())
logging.getLogger("diffusers").handlers[0].setLevel(logging.CRITICAL)

torch.manual_seed(1)
model = pipeline().transformer
kohya, peft, updates = {}, {}, {}
for name, other in NAMES.items():
    rows, columns = model.get_submodule(name).weight.shape
    down, up = torch.randn(RANK, columns), torch.randn(rows, RANK)
    updates[name] = up @ down
    kohya[f"lora_unet_{other}.lora_down.weight"] = peft[f"transformer.{name}.lora_A.weight"] = down
    kohya[f"lora_unet_{other}.lora_up.weight"] = peft[f"transformer.{name}.lora_B.weight"] = up
    kohya[f"lora_unet_{other}.alpha"] = torch.tensor(float(RANK))

found = {}
for spelling, tensors in (("kohya", kohya), ("PEFT", peft)):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / f"{spelling}.safetensors")
    pipe = pipeline()
    messages.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe.load_lora_weights(str(folder), weight_name=f"{spelling}.safetensors", adapter_name="a")
    assert any("transformer" in text for text in messages)
    if spelling == "kohya":
        heard = [text for text in messages + [str(warning.message) for warning in said]
                 if any(part in text for part in [*list(NAMES)[3:], *list(NAMES.values())[3:]])]
    for name, update in updates.items():
        module = pipe.transformer.get_submodule(name)
        with torch.no_grad():
            loaded = module.get_delta_weight("a") if hasattr(module, "lora_A") else None
        found[spelling, name] = None if loaded is None else float((loaded * update).sum() / (update * update).sum())
print(f"{'module':52}   {'kohya':>6} {'PEFT':>6}")
for name in NAMES:
    shown = ["-" if found[way, name] is None else f"{found[way, name]:.2f}" for way in ("kohya", "PEFT")]
    print(f"{name:52}   {shown[0]:>6} {shown[1]:>6}")
print(f"messages that name a dropped module: {len(heard)}")
for number, name in enumerate(NAMES):
    assert abs(found["PEFT", name] - 1) < 1e-4
    assert found["kohya", name] is None if number > 2 else abs(found["kohya", name] - 1) < 1e-4
assert not heard
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
