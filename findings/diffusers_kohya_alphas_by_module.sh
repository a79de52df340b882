#!/usr/bin/env bash
# diffusers: of a kohya file whose alphas differ by module, attention and text encoder get another module's alpha
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (the same with 2.14.1), Python 3.11.
#
# What it does. The most frequent alpha of a file becomes that of the adapter, and the others go into PEFT's `alpha_pattern`, whose
# keys are made from the names in the file. For attention these names still have the "processor.to_q_lora.down.weight" of an
# older diffusers, and for a text encoder the last part of the module's name is cut off. No such pattern matches a module, so every
# one of these modules is scaled by the most frequent alpha over its own rank. Feed-forward, projections and convolutions get theirs. Ranks by module are all right. PEFT
# warns that a pattern matched nothing, and the call ends well.
#
# What most would expect. alpha / rank of each module, as the file says and as sd-scripts computes. With one rank and one alpha for
# all, nothing shows; files made small by a rank for each module (sd-scripts' resizing by a share of the singular values keeps
# alpha / rank, so each module has an alpha of its own), and alphas by block, are read wrong.
#
# Seen 2026-11-29 (a tiny UNet and text encoder of Stable Diffusion 1; the applied update as a multiple of the file's, by kind):
#   rank 4, alpha 2          attention: 1.0; other linear: 1.0; convolution: 1.0; text: 1.0; warnings: 0
#   rank 4, alpha 1 or 2     attention: 1.0 2.0; other linear: 1.0; convolution: 1.0; text: 0.5 1.0; warnings: 2
#   rank = alpha = 2 or 8    attention: 1.0 4.0; other linear: 1.0; convolution: 1.0; text: 0.25 1.0; warnings: 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import collections
import pathlib
import sys
import warnings

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as its_logging
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.utils import logging as other_logging

its_logging.set_verbosity_error()
other_logging.set_verbosity_error()
other_logging.disable_progress_bar()
folder = pathlib.Path(sys.argv[1])
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = ("proj_in", "proj_out", "net.0.proj", "net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def pipeline():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        max_position_embeddings=16, bos_token_id=1, eos_token_id=2))
    return StableDiffusionPipeline(
        unet=unet, text_encoder=text, vae=None, tokenizer=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)


def parts(pipe):
    """Kind of module, name in the file, module: what sd-scripts gives an adapter, and what the others are."""
    for name, module in pipe.unet.named_modules():
        if "transformer_blocks" in name or "attentions" in name:
            kind = "attention" if name.endswith(ATTENTION) else "other linear" if name.endswith(LINEAR) else None
        else:
            kind = "convolution" if isinstance(module, torch.nn.Conv2d) and name.endswith(CONVOLUTIONS) else None
        if kind and hasattr(module, "weight"):
            yield kind, "lora_unet_" + name.replace(".", "_"), module
    for name, module in pipe.text_encoder.named_modules():
        if name.endswith(TEXT) and hasattr(module, "weight"):
            yield "text", "lora_te_text_model_" + name.removeprefix("text_model.").replace(".", "_"), module


def factors(pipe, settings):
    """The file's tensors, and each module's update as the file says it."""
    tensors, updates = {}, {}
    for kind, key, module in parts(pipe):
        rank, alpha = (each(key) if callable(each) else each for each in settings[kind])
        weight = module.weight
        down = torch.randn(rank, *weight.shape[1:])
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2))
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(float(alpha))}
        updates[key] = kind, module, alpha / rank * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return tensors, updates


def applied(title, settings):
    torch.manual_seed(1)
    pipe = pipeline()
    tensors, updates = factors(pipe, settings)
    save_file(tensors, folder / "lora.safetensors")
    before = {key: module.weight.detach().clone() for key, (_, module, _) in updates.items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe.load_lora_weights(str(folder), weight_name="lora.safetensors")
    pipe.fuse_lora(components=["unet", "text_encoder"])
    pipe.unload_lora_weights()
    now = {key: module for _, key, module in parts(pipe)}
    ratios = collections.defaultdict(set)
    for key, (kind, _, update) in updates.items():
        change = now[key].weight.detach() - before[key]
        ratio = float((change * update).sum() / (update * update).sum())
        assert float((change - ratio * update).norm() / change.norm()) < 1e-3
        ratios[kind].add(round(ratio, 2))
    ignored = sum("did not match any targeted module" in str(warning.message) for warning in said)
    print(f"{title:24}", *(f"{kind}: {' '.join(map(str, sorted(ratios[kind])))};" for kind in kinds), f"warnings: {ignored}")
    return dict(ratios), ignored


def even(name):
    """A number of the module's name: which of two ranks, or of two alphas, it has."""
    return sum(map(ord, name)) % 2


kinds = ("attention", "other linear", "convolution", "text")
found, warned = applied("rank 4, alpha 2", dict.fromkeys(kinds, (4, 2)))
assert all(each == {1} for each in found.values()) and warned == 0
found, warned = applied("rank 4, alpha 1 or 2", dict.fromkeys(kinds, (4, lambda name: 1 + even(name))))
assert found["other linear"] == found["convolution"] == {1} and found["attention"] == {1, 2} and warned == 2
assert found["text"] == {0.5, 1}
found, warned = applied("rank = alpha = 2 or 8", dict.fromkeys(kinds, (lambda name: 2 + 6 * even(name),) * 2))
assert found["other linear"] == found["convolution"] == {1} and found["attention"] == {1, 4} and warned == 2
assert found["text"] == {0.25, 1}
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
