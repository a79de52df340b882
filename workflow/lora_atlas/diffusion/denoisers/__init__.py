"""Architectures of denoising networks, a file each. A new one is its file, and its class in DENOISERS."""

from typing import Any

from ..errors import BaseModelError
from .denoiser import Conditioning, Denoiser
from .unet import UNet

__all__ = ["DENOISERS", "Conditioning", "Denoiser", "denoiser_of"]

DENOISERS: tuple[type[Denoiser], ...] = (UNet,)


def denoiser_of(pipeline: Any) -> Denoiser:
    """The network of a pipeline; raises BaseModelError for an architecture that is not here."""
    for kind in DENOISERS:
        if kind.fits(pipeline):
            return kind(pipeline)
    known = "; ".join(f"{kind.__name__}, as of {kind.pipelines}" for kind in DENOISERS)
    raise BaseModelError(
        f"base.model: a {type(pipeline).__name__}, whose network is of no architecture that can be trained here; there "
        f"are {known}"
    )
