"""FLUX.2 and its small kin (klein): fused layers, one modulation for all blocks, and a language model for the text."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from .denoiser import Conditioning
from .transformer import Transformer

STEPS = 50  # of its pipelines, where nothing else is said


class Flux2(Transformer):
    """``embeds`` (n, tokens, d) condition it. Latents are those of the autoencoder in patches of 2 × 2 pixels, each
    channel with the mean and variance of the autoencoder's batch norm.

    How its timesteps were drawn in training is not published; diffusers' script of it draws them uniformly. They are
    shifted as those of its pipelines are at STEPS, which is further than its schedule's own numbers would say.
    """

    pipelines = "Flux2Pipeline, Flux2KleinPipeline"
    classes = ("Flux2Pipeline", "Flux2KleinPipeline")
    density = "uniform"
    shift = staticmethod(lambda tokens: compute_empirical_mu(tokens, STEPS))
    header: ClassVar[Mapping[str, str]] = {"modelspec.architecture": "flux-2/lora"}
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"^transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)$",
        "feed_forward": r"^transformer_blocks\.\d+\.ff\.linear_(in|out)$",
        "context": r"^transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|ff_context\.linear_(in|out))$",
        "single": r"^single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)$",
        "modulation": r"^(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear$",
        "projection": r"^(x_embedder|context_embedder|proj_out)$",
    }

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.downscale = self.step
        self.distilled = bool(self.module.config.guidance_embeds)
        self.klein = "is_distilled" in pipeline.config  # its pipeline has classifier-free guidance
        self.norm = _norm(pipeline.vae)

    def tokens(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(list(prompts), device=self.device)
        return Conditioning({"embeds": embeds})

    def encode_pictures(self, vae: Any, pictures: torch.Tensor) -> torch.Tensor:
        z = Flux2Pipeline._patchify_latents(vae.encode(pictures).latent_dist.mode()).float()
        mean, std = _norm(vae)
        latents: torch.Tensor = (z - mean) / std
        return latents

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        mean, std = _norm(vae)
        z = Flux2Pipeline._unpatchify_latents(latents.to(vae.device) * std + mean)
        pictures: torch.Tensor = vae.decode(z.to(vae.dtype)).sample
        return pictures

    def unpacked(self, latents: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        if latents.ndim == 3:
            return latents.transpose(1, 2).unflatten(2, shape)
        # klein's pipeline returns those of the autoencoder.
        mean, std = (each.to(latents.device) for each in self.norm)
        patched: torch.Tensor = Flux2Pipeline._patchify_latents(latents)
        return (patched - mean) / std

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        embeds = text.tensors["embeds"]
        found = self.module(
            hidden_states=Flux2Pipeline._pack_latents(x.to(self.module.dtype)),
            timestep=t.expand(len(x)) / 1000,
            guidance=torch.ones(len(x), device=x.device) if self.distilled else None,
            encoder_hidden_states=embeds,
            txt_ids=Flux2Pipeline._prepare_text_ids(embeds).to(x.device),
            img_ids=Flux2Pipeline._prepare_latent_ids(x).to(x.device),
            return_dict=False,
        )[0]
        return self.unpacked(found, (x.shape[2], x.shape[3])).float()

    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_embeds": text.tensors["embeds"], "guidance_scale": guidance}
        if self.klein and empty is not None:
            found["negative_prompt_embeds"] = empty.tensors["embeds"]
        return found


def _norm(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (1, c, 1, 1) of the channels of patched latents."""
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    return mean.view(1, -1, 1, 1), (variance + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
