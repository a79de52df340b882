"""FLUX.1: blocks of two streams, then of one, over packed latents; CLIP and T5; distilled guidance."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline

from .denoiser import Conditioning
from .transformer import Packed


class Flux(Packed):
    """``embeds`` (n, tokens, d) and ``pooled`` (n, p) condition it.

    Its timesteps are logit-normal in training, their mode shifted by the resolution (Black Forest Labs 2025, arXiv
    2506.15742, §3). A network that was told of its guidance is trained at guidance 1: that of the data.
    """

    pipelines = "FluxPipeline"
    classes = ("FluxPipeline",)
    packing = FluxPipeline
    header: ClassVar[Mapping[str, str]] = {"modelspec.architecture": "flux-1/lora"}
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"^transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)$",
        "feed_forward": r"^transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)$",
        "context": r"^transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|ff_context\.net\.(0\.proj|2))$",
        "single": r"^single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)$",
        "modulation": r"^(transformer_blocks\.\d+\.norm1(_context)?|single_transformer_blocks\.\d+\.norm)\.linear$",
        "projection": r"^(x_embedder|context_embedder|proj_out)$",
    }

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeds, pooled, _ = pipeline.encode_prompt(list(prompts), device=self.device)
        return Conditioning({"embeds": embeds, "pooled": pooled})

    def unpacked(self, latents: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        # Sides in pixels of an autoencoder that does not shrink: those of the latents.
        unpacked: torch.Tensor = FluxPipeline._unpack_latents(latents, *shape, 1)
        return unpacked

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        n, (height, width), dtype = len(x), x.shape[2:], self.module.dtype
        embeds = text.tensors["embeds"]
        found = self.module(
            hidden_states=self.packed(x.to(dtype)),
            timestep=t.expand(n) / 1000,
            guidance=torch.ones(n, device=x.device) if self.distilled else None,
            pooled_projections=text.tensors["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, x.device, dtype),
            return_dict=False,
        )[0]
        return self.unpacked(found, (height, width)).float()

    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        found = {"prompt_embeds": text.tensors["embeds"], "pooled_prompt_embeds": text.tensors["pooled"]}
        if self.distilled or empty is None:
            return {**found, "guidance_scale": guidance}
        return {
            **found,
            "negative_prompt_embeds": empty.tensors["embeds"],
            "negative_pooled_prompt_embeds": empty.tensors["pooled"],
            "true_cfg_scale": guidance,
        }
