"""Qwen-Image: blocks of two streams over packed latents of a video autoencoder; a vision-language model for the text
(Wu et al. 2025, arXiv 2508.02324)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline

from .denoiser import MASK, Conditioning
from .transformer import Packed


class QwenImage(Packed):
    """``embeds`` (n, tokens, d) condition it, and a mask where prompts differ in length. Its timesteps are logit-normal
    in training (ibid., §4.1)."""

    pipelines = "QwenImagePipeline"
    classes = ("QwenImagePipeline",)
    packing = QwenImagePipeline
    header: ClassVar[Mapping[str, str]] = {"modelspec.architecture": "qwen-image/lora"}
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"^transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)$",
        "feed_forward": r"^transformer_blocks\.\d+\.img_mlp\.net\.(0\.proj|2)$",
        "context": r"^transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|txt_mlp\.net\.(0\.proj|2))$",
        "modulation": r"^transformer_blocks\.\d+\.(img|txt)_mod\.1$",
        "projection": r"^(img_in|txt_in|proj_out)$",
    }

    @property
    def idle(self) -> frozenset[str]:
        """What the last block does to the text but for keys and values."""
        last = f"transformer_blocks.{len(self.module.transformer_blocks) - 1}"
        names = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
        return frozenset(f"{last}.{name}" for name in names)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeds, mask = pipeline.encode_prompt(list(prompts), device=self.device)
        return Conditioning({"embeds": embeds} if mask is None else {"embeds": embeds, MASK: mask.bool()})

    def encode_pictures(self, vae: Any, pictures: torch.Tensor) -> torch.Tensor:
        z = vae.encode(pictures[:, :, None]).latent_dist.mode()[:, :, 0].float()
        mean, std = _norm(vae)
        latents: torch.Tensor = (z - mean) / std
        return latents

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        mean, std = _norm(vae)
        z = latents.to(vae.device) * std + mean
        pictures: torch.Tensor = vae.decode(z[:, :, None].to(vae.dtype)).sample[:, :, 0]
        return pictures

    def unpacked(self, latents: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        unpacked: torch.Tensor = QwenImagePipeline._unpack_latents(latents, *shape, 1)[:, :, 0]
        return unpacked

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        n, (height, width) = len(x), x.shape[2:]
        found = self.module(
            hidden_states=self.packed(x.to(self.module.dtype)),
            timestep=t.expand(n) / 1000,
            guidance=torch.ones(n, device=x.device) if self.distilled else None,
            encoder_hidden_states=text.tensors["embeds"],
            encoder_hidden_states_mask=text.tensors.get(MASK),
            img_shapes=[[(1, height // 2, width // 2)]] * n,
            return_dict=False,
        )[0]
        return self.unpacked(found, (height, width)).float()

    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_embeds": text.tensors["embeds"], "prompt_embeds_mask": text.tensors.get(MASK)}
        if self.distilled or empty is None:
            return {**found, "true_cfg_scale": 1.0, "guidance_scale": guidance if self.distilled else None}
        found |= {"negative_prompt_embeds": empty.tensors["embeds"], "true_cfg_scale": guidance}
        return {**found, "negative_prompt_embeds_mask": empty.tensors.get(MASK)}


def _norm(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (1, c, 1, 1) of the channels of latents."""
    numbers = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(each, device=vae.device).view(1, -1, 1, 1) for each in numbers)
    return mean, std
