#!/usr/bin/env bash
# OpenVINO GenAI: a LoRA of Stable Diffusion as diffusers saves it reaches no layer, and a DoRA is applied without its magnitudes
#
# Versions: openvino-genai 2026.4.1.0, optimum-intel 2.2.0, diffusers 0.39.0, peft 0.21.2, lycoris-lora 4.1.3, Python 3.11.
#
# What it does. For a UNet, Text2ImagePipeline knows the names of kohya's files. Names as `save_lora_weights` of diffusers writes them
# ("unet.down_blocks.0…lora_A.weight") get kohya's prefix put before them and then match nothing: each layer is printed as unused, and
# the call ends well with the picture of the base. Of a DoRA in kohya's names `dora_scale` is not read: the picture is that of
# the same file without it, to the last bit, and nothing is said. (LoHa and LoKr are refused; of convolutions only pointwise ones are taken.)
#
# What most would expect. That the file of the library whose models it converts is known, or an error where nothing of a
# file is used; and that an update which needs the base's norms is refused as LoHa and LoKr are, since magnitudes decide what it does.
#
# Seen 2026-11-30 (a tiny Stable Diffusion 1 with random weights; the DoRA's magnitudes are three times those of the base):
#   LyCORIS itself: a DoRA changes the UNet's output by 0.98, without its magnitudes by 0.11
#   kohya's names   : unlike the picture of no LoRA by 4.2 levels of 255; layers named as unused: 0
#   diffusers' names: unlike the picture of no LoRA by 0.0 levels of 255; layers named as unused: 24
#   DoRA of LyCORIS : unlike the picture of no LoRA by 2.6 levels of 255; layers named as unused: 0
#   DoRA of LyCORIS : unlike the picture of the same without magnitudes by 0.0 levels of 255; layers named as unused: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0 openvino==2026.4.1 "optimum-intel[openvino]==2.2.0" \
  diffusers==0.39.0 peft==0.21.2 transformers==5.5.4 lycoris-lora==4.1.3 torch==2.14.1 torchvision==0.29.2
cat > "$folder/one.py" <<'PY'
import json
import logging
import pathlib
import subprocess
import sys

import numpy
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from optimum.exporters.openvino import main_export
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

logging.disable(logging.WARNING)
from lycoris import create_lycoris  # noqa: E402
from lycoris.wrapper import LycorisNetwork  # noqa: E402

folder = pathlib.Path(sys.argv[1])

# A tiny Stable Diffusion 1 with random weights, every byte a token.
torch.manual_seed(0)
characters = [chr(256 + n) for n in range(256)]
for byte in (*range(33, 127), *range(161, 173), *range(174, 256)):
    characters[byte] = chr(byte)
for place, byte in enumerate(n for n in range(256) if n not in (*range(33, 127), *range(161, 173), *range(174, 256))):
    characters[byte] = chr(256 + place)
words = [*characters, *(f"{one}</w>" for one in characters), "<|startoftext|>", "<|endoftext|>"]
(folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
(folder / "merges.txt").write_text("#version: 0.2\n")
ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
pipeline = StableDiffusionPipeline(
    unet=UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), cross_attention_dim=32, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    vae=AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, sample_size=64,
        block_out_channels=(16,) * 4, norm_num_groups=8,
    ),
    text_encoder=CLIPTextModel(
        CLIPTextConfig(vocab_size=514, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **ends)
    ),
    tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
    scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)
pipeline.save_pretrained(folder / "sd")
main_export(str(folder / "sd"), folder / "ov", task="text-to-image", convert_tokenizer=True, weight_format="fp32")

ASKED = """
import sys
import numpy
import openvino_genai
_, model, picture, *files = sys.argv
adapters = openvino_genai.AdapterConfig()
for file in files:
    adapters.add(openvino_genai.Adapter(file), 1.0)
pipeline = openvino_genai.Text2ImagePipeline(model, "CPU", adapters=adapters, INFERENCE_PRECISION_HINT="f32")
options = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 1.0}
numpy.save(picture, pipeline.generate("a", generator=openvino_genai.TorchGenerator(7), **options).data)
"""


def painted(*files):
    """A picture by GenAI with these files, and what it says of their tensors."""
    told = subprocess.run(
        [sys.executable, "-c", ASKED, str(folder / "ov"), str(folder / "picture.npy"), *map(str, files)],
        check=True, text=True, capture_output=True,
    )
    return numpy.load(folder / "picture.npy").astype(float), (told.stdout + told.stderr).count("Unused LoRA tensor")


# The same LoRA of all attention layers twice: as diffusers saves it, and by kohya's names.
unet = pipeline.unet
unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
state = get_peft_model_state_dict(unet)
StableDiffusionPipeline.save_lora_weights(folder / "diffusers", unet_lora_layers=state)
kohya = {}
for name, value in state.items():
    module, kind, _ = name.rsplit(".", 2)
    place = "lora_unet_" + module.replace(".", "_")
    kohya[f"{place}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value.contiguous()
    kohya[f"{place}.alpha"] = torch.tensor(4.0)
save_file(kohya, folder / "kohya.safetensors")

# A DoRA as LyCORIS saves it, its magnitudes three times those of the base; and the same without magnitudes.
unet = UNet2DConditionModel.from_pretrained(folder / "sd" / "unet")
LycorisNetwork.LORA_PREFIX = "lora_unet"
LycorisNetwork.apply_preset({"target_module": ["Attention"], "target_name": [], "enable_conv": False})
network = create_lycoris(unet, linear_dim=4, linear_alpha=4, algo="locon", dora_wd=True)
with torch.no_grad():
    for module in network.loras:
        module.lora_up.weight.normal_(std=0.2)
        module.dora_scale.mul_(3)
    batch = torch.randn(1, 4, 8, 8), 500, torch.randn(1, 77, 32)
    before = unet(*batch).sample
    network.apply_to()
    with_magnitudes = unet(*batch).sample
    for module in network.loras:
        module.wd = False
    without = unet(*batch).sample
network.save_weights(str(folder / "dora.safetensors"), torch.float32, None)
plain = {key: value for key, value in load_file(folder / "dora.safetensors").items() if not key.endswith("dora_scale")}
save_file(plain, folder / "lora.safetensors")
print(f"LyCORIS itself: a DoRA changes the UNet's output by {float((with_magnitudes - before).norm() / before.norm()):.2f}, "
      f"without its magnitudes by {float((without - before).norm() / before.norm()):.2f}")

NONE, PLAIN = "no LoRA", "the same without magnitudes"
for title, file, other, reference, differs, left_out in (
    ("kohya's names", "kohya", NONE, (), True, 0),
    ("diffusers' names", "diffusers/pytorch_lora_weights", NONE, (), False, 24),
    ("DoRA of LyCORIS", "dora", NONE, (), True, 0),
    ("DoRA of LyCORIS", "dora", PLAIN, (folder / "lora.safetensors",), False, 0),
):
    picture, unused = painted(folder / f"{file}.safetensors")
    off = numpy.abs(picture - painted(*reference)[0]).mean()
    print(f"{title:16}: unlike the picture of {other} by {off:.1f} levels of 255; layers named as unused: {unused}")
    assert off > 1 if differs else off == 0
    assert unused == left_out
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/one.py" "$folder" > "$folder/seen" 2> "$folder/said" || { tail -n 5 "$folder/said"; exit 1; }
grep -E "magnitudes|unused" "$folder/seen"
echo "as seen"
