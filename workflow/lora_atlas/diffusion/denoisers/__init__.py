"""Architectures of denoising networks, a file each. A new one is its file, and its class in DENOISERS."""

from collections.abc import Mapping
from typing import Any

from ..errors import BaseModelError
from .denoiser import Conditioning, Denoiser
from .flux import Flux
from .flux2 import Flux2
from .qwen_image import QwenImage
from .sd3 import SD3
from .unet import UNet
from .z_image import ZImage

__all__ = ["DENOISERS", "Conditioning", "Denoiser", "denoiser_of", "kind_of"]

DENOISERS: tuple[type[Denoiser], ...] = (UNet, SD3, Flux, Flux2, QwenImage, ZImage)


def kind_of(index: Mapping[str, Any]) -> type[Denoiser]:
    """The architecture of a pipeline, by its model_index.json; raises BaseModelError for one that is not here."""
    for kind in DENOISERS:
        if kind.fits(index):
            return kind
    known = "; ".join(f"{kind.__name__} ({kind.pipelines})" for kind in DENOISERS)
    raise BaseModelError(
        f"base.model: a {index.get('_class_name')}, which is of no architecture that can be trained here; there are "
        f"{known}"
    )


def denoiser_of(pipeline: Any) -> Denoiser:
    """The network of a pipeline; raises BaseModelError for an architecture that is not here."""
    index = {**getattr(pipeline, "config", {}), "_class_name": type(pipeline).__name__}
    return kind_of(index)(pipeline)
