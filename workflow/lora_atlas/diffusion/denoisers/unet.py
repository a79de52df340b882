"""UNets of latent diffusion: Stable Diffusion 1 and 2, SDXL, and what was made of them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel

from .denoiser import Conditioning, Denoiser


class UNet(Denoiser):
    """``embeds`` (n, tokens, d) condition it; SDXL's also ``pooled`` (n, p) and ``time_ids`` (n, 6)."""

    component = "unet"
    pipelines = "StableDiffusionPipeline, StableDiffusionXLPipeline"
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
        "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
        "projection": r"\.proj_(in|out)$",
        "convolution": r"\.(resnets\.\d+\.conv[12]|(down|up)samplers\.\d+\.conv)$",
    }

    @classmethod
    def fits(cls, pipeline: Any) -> bool:
        return isinstance(getattr(pipeline, "unet", None), UNet2DConditionModel)

    def __init__(self, pipeline: Any):
        self.module = pipeline.unet
        config = self.module.config
        self.channels, self.downscale = config.in_channels, pipeline.vae_scale_factor
        self.step = self.downscale * 2 ** (len(config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        device = self.device
        if getattr(pipeline, "text_encoder_2", None) is None:
            embeds, _ = pipeline.encode_prompt(list(prompts), device, 1, False)
            return Conditioning({"embeds": embeds})
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        # Original size, crop corner and target size (SDXL, Podell et al. 2023, §2.2): as if never resized nor cropped.
        ids = torch.tensor([[*size, 0, 0, *size]], device=device, dtype=embeds.dtype)
        return Conditioning({"embeds": embeds, "pooled": pooled, "time_ids": ids.expand(len(prompts), -1)})

    def unconditional(self, pipeline: Any, size: tuple[int, int]) -> Conditioning:
        """That of the empty prompt, or zeros if the base says so."""
        empty = self.encode_text(pipeline, [""], size)
        if not pipeline.config.get("force_zeros_for_empty_prompt", False):
            return empty
        zeros = {name: torch.zeros_like(empty.tensors[name]) for name in ("embeds", "pooled")}
        return Conditioning({**empty.tensors, **zeros})

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        given = text.tensors
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if "pooled" in given else None
        found = self.module(
            x.to(self.module.dtype),
            t,
            encoder_hidden_states=given["embeds"],
            added_cond_kwargs=added,
        )
        sample: torch.Tensor = found.sample
        return sample.float()
