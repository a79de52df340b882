"""What diffusion transformers with rectified flow have in common: their pipeline's own ``__call__`` generates."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .. import stacked
from .denoiser import Conditioning, Denoiser


class Transformer(Denoiser):
    """A subclass states `classes` (of the pipelines that it is for), and how its pipeline is called.

    `doubled`: whether the pipeline passes the latents of a guided step through the network twice in one batch, one
    half after the other; others call the network a second time.
    """

    component = "transformer"
    patched = True
    classes: ClassVar[tuple[str, ...]]
    doubled: ClassVar[bool] = False

    @classmethod
    def fits(cls, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in cls.classes

    def __init__(self, pipeline: Any):
        self.module = pipeline.transformer
        self.channels, self.downscale = self.module.config.in_channels, pipeline.vae_scale_factor
        self.step = 2 * pipeline.vae_scale_factor  # all of them see the latents of the autoencoder in patches of 2 × 2

    @property
    def resolution(self) -> int:
        """1024 px, which the pipelines take where they are not told."""
        return 1024

    def tokens(self, shape: tuple[int, int]) -> int:
        return (shape[0] // 2) * (shape[1] // 2)

    def unconditional(self, pipeline: Any, size: tuple[int, int]) -> Conditioning:
        return self.encode_text(pipeline, [""], size)

    @abstractmethod
    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline for prompts, the empty ones (None: without guidance) and guidance."""

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (n, c, h, w) as the pipeline takes them."""
        return latents

    def unpacked(self, latents: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Latents (n, c, h, w) of those that the pipeline returns."""
        return latents

    # No inference mode: positions that the networks cache would be of no use to a backward pass later.
    @torch.no_grad()
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
        """By the pipeline itself. Guidance is, of distilled networks, that which they were told of in training; else it
        is classifier-free, 1 for none. No scheduler of rectified flow asks for the generators."""
        device, guided = self.device, guidance > 1
        picked = torch.tensor(index, device=device)
        none = text.take(torch.full_like(picked, empty)) if guided else None
        layers = {name: m for name, m in self.module.named_modules() if isinstance(m, stacked.Stacked)}
        everyone = torch.arange(adapters, device=device)
        stacked.select(layers, torch.cat([everyone, everyone]) if guided and self.doubled else None)
        height, width = noise.shape[2:]
        found = pipeline(
            **self.asked(text.take(picked), none, guidance),
            latents=self.packed(noise.to(device)),
            height=height * self.downscale,
            width=width * self.downscale,
            num_inference_steps=steps,
            output_type="latent",
            return_dict=False,
        )[0]
        stacked.select(layers, None)
        return self.unpacked(found, (height, width)).float()


class Packed(Transformer):
    """One whose pipeline, `packing`, lays latents out in patches of 2 × 2 before the network sees them; `distilled`:
    whether the network was told of its guidance in training."""

    packing: ClassVar[Any]

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.channels = self.module.config.in_channels // 4
        self.distilled = bool(self.module.config.guidance_embeds)

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = self.packing._pack_latents(latents.contiguous(), *latents.shape)
        return packed
