"""What training, generation and sensitivity know of the network of a base: its layers, its latents, its text, and one
prediction. All that differs between architectures is behind this."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: name → tensor (n, …). The denoiser that made it knows what the names mean."""

    tensors: Mapping[str, torch.Tensor]

    def take(self, index: torch.Tensor) -> "Conditioning":
        """The prompts of an index (m,), which may repeat."""
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def first(self, n: int) -> "Conditioning":
        """The first prompt n times."""
        device = next(iter(self.tensors.values())).device
        return self.take(torch.zeros(n, dtype=torch.long, device=device))

    def join(self, other: "Conditioning") -> "Conditioning":
        """These prompts, then the other's."""
        return Conditioning({name: torch.cat([t, other.tensors[name]]) for name, t in self.tensors.items()})

    def float(self) -> "Conditioning":
        """The same in float32."""
        return Conditioning({name: tensor.float() for name, tensor in self.tensors.items()})


class Denoiser(ABC):
    """The frozen network of a pipeline, apart from it: autoencoder and text encoders can leave the device.

    A subclass states `component` (the network's name in the pipeline and its folder in a diffusers model, and with a
    point the prefix of its layers in LoRA files), `pipelines` (examples of diffusers' classes), and `targets` (name in
    training.targets → pattern of the layers' names).
    """

    component: ClassVar[str]
    pipelines: ClassVar[str]
    targets: ClassVar[Mapping[str, str]]
    module: Any  # a torch module of diffusers, which says nothing of its types
    channels: int  # of latents
    step: int  # pixels: sides of pictures are its multiples
    downscale: int  # pixels of a picture's side to one of its latent's

    @classmethod
    @abstractmethod
    def fits(cls, pipeline: Any) -> bool:
        """Whether the pipeline's network is of this architecture."""

    @abstractmethod
    def __init__(self, pipeline: Any): ...

    @abstractmethod
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        """Conditioning of each prompt by the pipeline's own encoders, for pictures of `size` (height, width, px)."""

    @abstractmethod
    def unconditional(self, pipeline: Any, size: tuple[int, int]) -> Conditioning:
        """Conditioning (1, …) without a prompt, for guidance."""

    @abstractmethod
    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        """The prediction float32 (n, c, h, w) for noisy latents (n, c, h, w) at timesteps (n,) or one for all."""

    @property
    def prefix(self) -> str:
        return f"{self.component}."

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def resolution(self) -> int:
        """The side (px) of the square pictures that the base was made for, as its configuration says."""
        size = self.module.config.sample_size
        return int(size if isinstance(size, int) else max(size)) * self.downscale

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latent of a square picture of side `resolution` (px)."""
        side = resolution // self.downscale
        return self.channels, side, side
