"""What training, generation and sensitivity know of the network of a base: its layers, its latents, its text, one
prediction, and how its pipeline samples. All that differs between architectures is behind this."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from .. import stacked
from ..objectives.objective import Shift

MASK = "mask"  # of Conditioning


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: name → tensor (n, …). The denoiser that made it knows what the names mean; only
    MASK means the same to all: which tokens (n, tokens) of ``embeds`` are a prompt's own. Without it all are."""

    tensors: Mapping[str, torch.Tensor]

    def take(self, index: torch.Tensor) -> "Conditioning":
        """The prompts of an index (m,), which may repeat."""
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def first(self, n: int) -> "Conditioning":
        """The first prompt n times."""
        device = next(iter(self.tensors.values())).device
        return self.take(torch.zeros(n, dtype=torch.long, device=device))

    def join(self, other: "Conditioning") -> "Conditioning":
        """These prompts, then the other's; where theirs have other numbers of tokens, the shorter are filled up and
        masked."""
        one, two = dict(self.tensors), dict(other.tensors)
        if MASK in one or MASK in two or any(t.shape[1:] != two[name].shape[1:] for name, t in one.items()):
            for each in (one, two):
                embeds = each["embeds"]
                each.setdefault(MASK, torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device))
            longest = max(one[MASK].shape[1], two[MASK].shape[1])
            for each in (one, two):
                for name in ("embeds", MASK):
                    each[name] = _lengthened(each[name], longest)
        return Conditioning({name: torch.cat([tensor, two[name]]) for name, tensor in one.items()})

    def float(self) -> "Conditioning":
        """The same in float32, masks aside."""
        return Conditioning({name: t if t.dtype == torch.bool else t.float() for name, t in self.tensors.items()})

    def embeds(self) -> list[torch.Tensor]:
        """Embeddings (tokens, d) of each prompt, without those that fill it up."""
        embeds, mask = self.tensors["embeds"], self.tensors.get(MASK)
        return list(embeds) if mask is None else [each[own] for each, own in zip(embeds, mask, strict=True)]


def _lengthened(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """A tensor (n, tokens, …) of `length` tokens, the last of them zero."""
    missing = tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, missing], 1)


def masked(prompts: Sequence[torch.Tensor]) -> Conditioning:
    """Conditioning of prompts whose embeddings (tokens, d) may differ in their number of tokens."""
    found = [Conditioning({"embeds": each[None]}) for each in prompts]
    joined = found[0]
    for each in found[1:]:
        joined = joined.join(each)
    return joined


class Denoiser(ABC):
    """The frozen network of a pipeline, apart from it: autoencoder and text encoders can leave the device.

    A subclass states `component` (the network's name in the pipeline and its folder in a diffusers model, and with a
    point the prefix of its layers in LoRA files), `pipelines` (examples of diffusers' classes), `targets` (name in
    training.targets → pattern of the layers' names); where it has them, `density` (how a flow's timesteps were drawn
    in training, as it was published; one of objectives/flow.py) and `header` (what LoRA files say of their
    architecture: where several have the names of its layers, readers that know no such size believe it).
    """

    component: ClassVar[str]
    pipelines: ClassVar[str]
    targets: ClassVar[Mapping[str, str]]
    density: ClassVar[str] = "logit_normal"
    shift: Shift | None = None  # of timesteps, where its pipeline's is not what its schedule says
    header: ClassVar[Mapping[str, str]] = MappingProxyType({})
    module: Any  # a torch module of diffusers, which says nothing of its types
    channels: int  # of latents
    step: int  # pixels: sides of pictures are its multiples
    patched: ClassVar[bool] = False  # whether no picture can have another side; a UNet pads
    downscale: int  # pixels of a picture's side to one of its latent's

    @classmethod
    @abstractmethod
    def fits(cls, index: Mapping[str, Any]) -> bool:
        """Whether a pipeline is of this architecture, by its model_index.json: ``_class_name``, and its parts' classes
        (part → library, class)."""

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

    @abstractmethod
    def sample(
        self,
        pipeline: Any,
        adapters: int,
        noise: torch.Tensor,
        generators: Sequence[torch.Generator],
        *,
        text: Conditioning,
        index: Sequence[int],
        empty: int,
        steps: int,
        guidance: float,
    ) -> torch.Tensor:
        """Latents (K·n, c, h, w) that K stacked adapters make of as much noise, adapter-major; as in
        `generate.denoise`, with a generator for each picture that is past its first noise."""

    def layers(self, targets: Sequence[str]) -> list[str]:
        """Names of the layers that `targets` mean, without those that no picture depends on; errors as of
        `stacked.targeted`."""
        return [name for name in stacked.targeted(self.module, targets, self.targets) if name not in self.idle]

    @property
    def idle(self) -> frozenset[str]:
        """Layers whose output nothing reads: the text's own in a last block."""
        return frozenset()

    def tokens(self, shape: tuple[int, int]) -> int:
        """How many tokens the network makes of a latent of this height and width: schedules are shifted by it."""
        return shape[0] * shape[1]

    def encode_pictures(self, vae: Any, pictures: torch.Tensor) -> torch.Tensor:
        """Latents float32 (n, c, h, w), as the network knows them, of pictures (n, 3, H, W) in -1…1, on the
        autoencoder's device and in its numbers; a distribution gives its mode."""
        found = vae.encode(pictures)
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (z.float() - _shift(vae)) * vae.config.scaling_factor

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, H, W) in -1…1 of latents."""
        z = latents / vae.config.scaling_factor + _shift(vae)
        pictures: torch.Tensor = vae.decode(z.to(vae.device, vae.dtype)).sample
        return pictures

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


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
