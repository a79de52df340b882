#!/usr/bin/env bash
# mflux: a LoRA trained with alpha 8 and rank 16 comes back at twice its strength, in mflux's own resumed training too
#
# Versions: mflux 0.24.0, mlx 0.32.2 (on a CPU under Linux), Python 3.11.
#
# What it does. A target of mflux's trainers may have an alpha beside its rank: layers then compute with alpha / rank while they are
# trained. The adapter's file has A and B alone; no tensor and no entry of its header says alpha, and the factors are not scaled by it.
# Reading it again, to generate pictures or to resume training from a checkpoint, applies them at 1, although the checkpoint has a
# copy of the settings beside it. The trainers of Z-Image, FLUX.2, Krea 2 and ERNIE-Image save in this way. Other programs cannot
# know the strength either.
#
# What most would expect. The strength that was trained: alpha in the file, as kohya's and PEFT's files have it (mflux reads both),
# or factors that hold it. Without alpha, or with alpha equal to the rank, nothing shows.
#
# Seen 2026-11-30 (Z-Image's transformer with 64 channels, one layer):
#   rank 16, alpha None: saved lora_A.weight, lora_B.weight; applied by the trainer at 1.0 and generation at 1.0 times the trained strength
#   rank 16, alpha 16  : saved lora_A.weight, lora_B.weight; applied by the trainer at 1.0 and generation at 1.0 times the trained strength
#   rank 16, alpha 8   : saved lora_A.weight, lora_B.weight; applied by the trainer at 2.0 and generation at 2.0 times the trained strength
#   rank 16, alpha 32  : saved lora_A.weight, lora_B.weight; applied by the trainer at 0.5 and generation at 0.5 times the trained strength
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
# Under Linux mflux asks for MLX on CUDA; MLX for CPUs computes the same.
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps mflux==0.24.0
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  "mlx[cpu]==0.32.2" transformers==5.5.4 torch==2.14.1 "opencv-python-headless<6" numpy "pillow>=13" safetensors "huggingface-hub<2" \
  tokenizers tqdm toml platformdirs requests regex piexif matplotlib fonttools sentencepiece protobuf filelock pyyaml
cat > "$folder/one.py" <<'PY'
import contextlib
import io
import pathlib
import sys
from types import SimpleNamespace

import mlx.core as mx
from mflux.models.common.lora.mapping.lora_loader import LoRALoader
from mflux.models.common.training.lora.path_util import get_at_path
from mflux.models.common.training.lora.target_injector import inject_lora_targets
from mflux.models.common.training.state.training_spec import LoraTargetSpec
from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer
from mflux.models.z_image.training_adapter.z_image_training_adapter import ZImageTrainingAdapter
from mflux.models.z_image.weights.z_image_lora_mapping import ZImageLoRAMapping

file = pathlib.Path(sys.argv[1]) / "lora.safetensors"
PATH = "layers.0.attention.to_q"


def small():
    """mflux's trainer of Z-Image around a transformer of 64 channels."""
    mx.random.seed(0)
    adapter = ZImageTrainingAdapter.__new__(ZImageTrainingAdapter)  # its __init__ would fetch 12 GB
    adapter._z = SimpleNamespace(
        transformer=ZImageTransformer(dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=32, axes_dims=[8, 12, 12])
    )
    return adapter


inputs = mx.random.normal((5, 64))
for alpha, expected in ((None, 1), (16, 1), (8, 2), (32, 0.5)):
    adapter = small()
    plain = get_at_path(adapter.transformer(), PATH)(inputs)
    targets = [LoraTargetSpec(module_path=PATH, rank=16, alpha=alpha)]
    inject_lora_targets(adapter.transformer(), targets)
    layer = get_at_path(adapter.transformer(), PATH)
    layer.lora_B = mx.random.normal(layer.lora_B.shape) * 0.1
    trained = layer(inputs) - plain
    adapter.save_lora_adapter(path=file, training_spec=SimpleNamespace(lora_layers=SimpleNamespace(targets=targets), model="z-image"))

    found = {}
    with contextlib.redirect_stdout(io.StringIO()) as told:
        resumed, generating = small(), small()
        resumed.load_lora_adapter(path=file)
        LoRALoader.load_and_apply_lora(ZImageLoRAMapping.get_mapping(), generating.transformer(), [str(file)], [1.0])
    for title, model in (("the trainer", resumed), ("generation", generating)):
        change = get_at_path(model.transformer(), PATH)(inputs) - plain
        factor = ((change * trained).sum() / (trained * trained).sum()).item()
        assert mx.abs(change - factor * trained).max().item() < 1e-4  # the same update times one number
        assert abs(factor - expected) < 1e-3, factor
        found[title] = factor
    tensors, header = mx.load(str(file), return_metadata=True)
    assert not [key for key in (*tensors, *header) if "alpha" in key]
    print(f"rank 16, alpha {alpha!s:4}: saved {', '.join(sorted(key.rsplit(f'{PATH}.')[1] for key in tensors))}; "
          f"applied by {' and '.join(f'{title} at {factor:.1f}' for title, factor in found.items())} times the trained strength")
PY
"$folder/env/bin/python" "$folder/one.py" "$folder"
echo "as seen"
