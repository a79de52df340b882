"""The frozen base, ready to be asked about pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..diffusion import base as bases
from ..diffusion.attribution import Question, samples
from ..diffusion.denoisers import Denoiser, denoiser_of
from ..diffusion.objectives import objective_of
from ..diffusion.sensitivity import own_samples
from ..sections import Attribution, Base, Probe
from .pictures import pixels_of


@dataclass(frozen=True)
class Asker:
    """A base, and how it is asked: one caption for all pictures, at one resolution (px)."""

    pipeline: Any
    denoiser: Denoiser
    settings: Attribution
    caption: str
    resolution: int

    @cached_property
    def question(self) -> Question:
        """What every picture is asked."""
        side = (self.resolution, self.resolution)
        return Question(
            self.denoiser,
            objective_of(
                self.pipeline.scheduler,
                str(self.denoiser.device),
                density=self.denoiser.density,
                shift=self.denoiser.shift,
            ),
            self.denoiser.encode_text(self.pipeline, [self.caption], side),
            samples(self.settings.samples, self.denoiser.latent_shape(self.resolution), 0),
            self.settings.batch,
        )

    def latents(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Latents (n, c, h, w) of pictures uint8 (side, side, 3)."""
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return bases.encode_pictures(self.pipeline, x, self.settings.batch)

    def latents_of(self, files: Sequence[bytes]) -> torch.Tensor:
        """Latents (n, c, h, w) of the files of pictures; raises PictureError."""
        return self.latents([pixels_of(each, self.resolution) for each in files])

    def own(self, probe: Probe) -> torch.Tensor:
        """Latents of as many pictures as `reference` says that the base generates by itself."""
        probe = probe | {"samples": self.settings.reference}
        side = (self.resolution, self.resolution)
        return own_samples(
            self.pipeline, self.denoiser.encode_text(self.pipeline, probe.prompts, side), probe, self.resolution
        )


def asker(base: Base, settings: Attribution, *, caption: str, resolution: int | None, device: str) -> Asker:
    """The base, loaded; `caption` and `resolution` where the settings name none, the resolution None: the side that the
    base was made for. Raises BaseModelError for a base that cannot be loaded."""
    bases.set_threads()
    pipeline = bases.load(base, device=bases.pick_device(device))
    denoiser = denoiser_of(pipeline)
    side = settings.resolution or resolution or denoiser.resolution
    return Asker(pipeline, denoiser, settings, caption if settings.caption is None else settings.caption, side)
