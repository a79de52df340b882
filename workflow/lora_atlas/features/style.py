"""Two descriptors of style that no model library ships: CSD, and Gram matrices of VGG.

CSD (Somepalli et al. 2024, arXiv 2404.01292): CLIP's ViT-L/14 trained to tell artists; its style head is the vector.
VGG-Gram (Gatys et al. 2016): correlations between feature maps. Both read their architecture from the weights, so that
any size loads. Gram matrices of VGG-19 have 305,888 numbers a picture; here they are sketched (random Maclaurin
features, Kar & Karnick 2012), which keeps inner products within a few percent, in 1,024 numbers a layer.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..seeds import derive_seed

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = 64  # width of an attention head in every CLIP vision transformer of OpenAI
SKETCH = 1024  # numbers a layer


class StyleError(ValueError):
    """Weights that are not those of such a model; the message names the file."""


def read(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a file: safetensors, or a pickle of tensors and plain values, which can run no code."""
    path = Path(path)
    found: Mapping[str, Any]
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        # What training scripts leave beside their tensors; all of it inert.
        reduced = np.float64(0).__reduce__()
        assert isinstance(reduced, tuple)  # a function and what it is called with
        scalar = reduced[0]
        old = (scalar, "numpy.core.multiarray.scalar")  # its name before NumPy 2
        inert: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            argparse.Namespace,
            scalar,
            old,
            np.dtype,
            type(np.dtype(np.float64)),
        ]
        with torch.serialization.safe_globals(inert):
            found = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model_state_dict", "state_dict"):
        inner = found.get(key)
        if isinstance(inner, Mapping):
            found = inner
    return {str(key).removeprefix("module."): value for key, value in found.items() if torch.is_tensor(value)}


def csd(path: str | Path) -> tuple[torch.nn.Module, Callable]:
    """The network (pictures (n, 3, s, s) → style (n, d)) and its preprocessing; raises StyleError."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    tensors = read(path)
    head, stem = tensors.get("last_layer_style"), tensors.get("backbone.conv1.weight")
    if head is None or stem is None:
        raise StyleError(f"{path}: no CSD: expected last_layer_style and backbone.conv1.weight")
    width, patch = stem.shape[0], stem.shape[-1]
    grid = round((tensors["backbone.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = len({key.split(".")[3] for key in tensors if key.startswith("backbone.transformer.resblocks.")})
    network = VisionTransformer(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=max(width // HEAD, 1),
        mlp_ratio=tensors["backbone.transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        output_dim=head.shape[1],
        act_layer=QuickGELU,
    )
    wanted = {key.removeprefix("backbone."): value for key, value in tensors.items() if key.startswith("backbone.")}
    _load(network, wanted | {"proj": head}, path)
    return network, _transform(grid * patch, CLIP_MEAN, CLIP_STD)


def vgg_gram(path: str | Path, side: int = 224) -> tuple[torch.nn.Module, Callable]:
    """The network (pictures (n, 3, s, s) → sketched Grams (n, 1024 × scales)) and its preprocessing; StyleError."""
    tensors = {key: value for key, value in read(path).items() if key.startswith("features.")}
    convolutions = sorted({int(key.split(".")[1]) for key in tensors})
    if not convolutions or any(tensors.get(f"features.{n}.weight", torch.empty(0)).ndim != 4 for n in convolutions):
        raise StyleError(f"{path}: no plain VGG: expected features.N.weight of convolutions, and no batch norm")
    network = _Gram(convolutions, [tuple(tensors[f"features.{n}.weight"].shape) for n in convolutions])
    _load(network, {**tensors, **{k: v for k, v in network.state_dict().items() if k.startswith("sketch")}}, path)
    return network, _transform(side, IMAGENET_MEAN, IMAGENET_STD)


class _Gram(torch.nn.Module):
    """The convolutions of a VGG; of the first of each scale, after its ReLU, the sketched Gram matrix."""

    def __init__(self, convolutions: list[int], shapes: list[tuple[int, ...]]):
        super().__init__()
        self.features = torch.nn.ModuleDict()
        self.first: set[int] = set()
        before = None
        for number, (out, inner, height, width) in zip(convolutions, shapes, strict=True):
            self.features[str(number)] = torch.nn.Conv2d(inner, out, (height, width), padding=height // 2)
            # Numbers skip a ReLU, and where they skip one more, a pooling: a new scale.
            if before is None or number - before == 3:
                self.first.add(number)
                rng = np.random.Generator(np.random.PCG64(derive_seed("vgg_gram", number, out)))
                signs = rng.integers(0, 2, (2, out, SKETCH)).astype(np.float32) * 2 - 1
                self.register_buffer(f"sketch{number}", torch.from_numpy(signs))
            before = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grams: list[torch.Tensor] = []
        for name, convolution in self.features.items():
            number = int(name)
            if grams and number in self.first:
                x = torch.nn.functional.max_pool2d(x, 2)
            x = torch.relu(convolution(x))
            if number in self.first:
                f = x.flatten(2).transpose(1, 2).float()  # (n, positions, channels)
                left, right = getattr(self, f"sketch{number}")
                # ⟨left_k, G right_k⟩ of G = FᵀF / (positions · channels): E of products is the product of Grams.
                with torch.autocast(x.device.type, enabled=False):
                    grams.append(((f @ left) * (f @ right)).mean(1) / (f.shape[2] * SKETCH**0.5))
        return torch.cat(grams, 1)


def _load(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    missing, extra = network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    if missing or extra:
        raise StyleError(f"{path}: tensors missing {sorted(missing)[:4]}, unknown {sorted(extra)[:4]}")


def _transform(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
