#!/usr/bin/env bash
# open_clip: weights from a file are fed pixels prepared as OpenAI's CLIP wants them, whatever the model
#
# Versions: open_clip_torch 3.3.0, timm 1.0.31, torch 2.14.1, torchvision 0.29.2, Python 3.11.
#
# What it does. How pictures are prepared (mean, deviation, resizing to the shortest side or squashed, interpolation) belongs to a
# pretrained tag, not to a model's configuration. Where `pretrained` is the path of a file there is no tag, and
# `create_model_and_transforms` returns OpenAI's preparation for SigLIP 2, MobileCLIP 2 and PE too, without a message. The
# embedding of the very weights that the tag names is then one of other pixels: wide pictures are cropped where they would be
# squashed, and values differ by one to two deviations.
#
# What most would expect. That the same weights under the same model name see the same picture. Copying weights to a machine
# without a network and naming the file is the usual way to a cluster's nodes.
#
# Seen 2026-11-29 (a grey ramp, 300 x 200; "tag" is what open_clip's table says of the published weights):
#   ViT-B-32               tag openai : mean (0.481, 0.458, 0.408), shortest; file: mean (0.481, 0.458, 0.408), shortest; pixels differ by 0.00
#   ViT-B-16-SigLIP2-256   tag webli  : mean (0.5, 0.5, 0.5), squash  ; file: mean (0.481, 0.458, 0.408), shortest; pixels differ by 1.15
#   MobileCLIP2-S0         tag dfndr2b: mean (0.0, 0.0, 0.0), shortest; file: mean (0.481, 0.458, 0.408), shortest; pixels differ by 1.79
#   PE-Core-T-16-384       tag meta   : mean (0.5, 0.5, 0.5), squash  ; file: mean (0.481, 0.458, 0.408), shortest; pixels differ by 1.15
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.2 numpy==2.4.6 pillow==13.0.0 safetensors==0.8.0
cat > "$folder/one.py" <<'PY'
import logging
import pathlib
import sys

import numpy as np
import open_clip
import open_clip.constants
import open_clip.transform
import torch
from PIL import Image
from torchvision import transforms

logging.disable(logging.WARNING)
file = pathlib.Path(sys.argv[1]) / "weights.pt"
rows = np.linspace(0, 255, 200, dtype=np.uint8)[:, None, None].repeat(300, 1).repeat(3, 2)
picture = Image.fromarray(rows)  # 300 wide, 200 high


def pixels(preprocess):
    tensor = preprocess(picture)
    shown = next(each for each in preprocess.transforms if isinstance(each, transforms.Normalize))
    return tensor, tuple(round(float(each), 3) for each in shown.mean)


for name in ("ViT-B-32", "ViT-B-16-SigLIP2-256", "MobileCLIP2-S0", "PE-Core-T-16-384"):
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    told = open_clip.get_pretrained_cfg(name, tag)
    model = open_clip.create_model(name)  # random weights: which they are does not matter here
    torch.save(model.state_dict(), file)
    # What the tag's weights are to be fed, and what the same weights are fed from a file.
    own = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(
        size=model.visual.image_size, mean=told.get("mean", open_clip.constants.OPENAI_DATASET_MEAN),
        std=told.get("std", open_clip.constants.OPENAI_DATASET_STD), interpolation=told.get("interpolation") or "bicubic",
        resize_mode=told.get("resize_mode") or "shortest"), is_train=False)
    loaded, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(file))
    (a, mean_of_tag), (b, mean_of_file) = pixels(own), pixels(preprocess)
    print(f"{name:22} tag {tag:7}: mean {mean_of_tag}, {told.get('resize_mode') or 'shortest':8}; "
          f"file: mean {mean_of_file}, {loaded.visual.preprocess_cfg['resize_mode']}; "
          f"pixels differ by {float((a - b).abs().max()):.2f}")
    assert mean_of_file == (0.481, 0.458, 0.408)
    assert torch.equal(a, b) == (name == "ViT-B-32")
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
