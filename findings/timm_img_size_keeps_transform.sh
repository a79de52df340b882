#!/usr/bin/env bash
# timm: a model made with img_size still recommends the transform of its pretrained size, whose pictures it may refuse
#
# Versions: timm 1.0.31, torch 2.14.1, torchvision 0.29.2, Python 3.11.
#
# What it does. `create_model(..., img_size=...)` builds the patch embedding and positions for that size. The model's pretrained_cfg
# stays as it is, and `resolve_model_data_config` takes the input size from there. So the transform made for this very model by
# the documented way gives pictures of another size: DINOv2, SigLIP and EVA-02 then refuse them, and DINOv3, whose positions are
# rotary, takes them in silence and computes at the size that was not asked for.
#
# What most would expect. That the model's own data config follows the size it was built with. DINOv2 comes at 518 pixels, which
# costs five times what 224 does, so its users set img_size.
#
# Seen 2026-11-29 (random weights, one picture of 640 x 480):
#   vit_small_patch14_dinov2    img_size=224: its transform makes 518; AssertionError: Input height (518) doesn't match model (224).
#   vit_base_patch16_siglip_224 img_size=256: its transform makes 224; AssertionError: Input height (224) doesn't match model (256).
#   eva02_tiny_patch14_336      img_size=224: its transform makes 336; AssertionError: Input height (336) doesn't match model (224).
#   vit_small_patch16_dinov3    img_size=224: its transform makes 256; embedding of 384 numbers from 256 x 256 pixels
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.2 numpy==2.4.6 pillow==13.0.0 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

torch.manual_seed(0)
picture = Image.new("RGB", (640, 480), (99, 50, 200))
SIZES = {
    "vit_small_patch14_dinov2.lvd142m": 224, "vit_base_patch16_siglip_224.webli": 256,
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": 224, "vit_small_patch16_dinov3.lvd1689m": 224,
}
for name, size in SIZES.items():
    model = timm.create_model(name, pretrained=False, img_size=size, num_classes=0).eval()
    told = resolve_model_data_config(model)
    pixels = create_transform(**told)(picture)[None]
    try:
        with torch.no_grad():
            outcome = f"embedding of {model(pixels).shape[1]} numbers from {pixels.shape[-1]} x {pixels.shape[-2]} pixels"
    except AssertionError as error:
        outcome = f"AssertionError: {error}"
    print(f"{name.split('.')[0]:27} img_size={size}: its transform makes {pixels.shape[-1]:3}; {outcome}")
    assert model.patch_embed.img_size == (size, size)
    assert pixels.shape[-1] != size
    assert ("AssertionError" in outcome) == ("dinov3" not in name)
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
