"""UNets of latent diffusion: Stable Diffusion 1 and 2, SDXL, and what was made of them."""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch

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
    def fits(cls, index: Mapping[str, Any]) -> bool:
        return tuple(index.get("unet") or ()) == ("diffusers", "UNet2DConditionModel")

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

    @torch.inference_mode()
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
        """Classifier-free guidance as in Ho & Salimans 2022 where ``guidance > 1``, with the base's own scheduler."""
        n, guided = len(noise) // adapters, guidance > 1
        device = self.device
        scheduler = deepcopy(pipeline.scheduler)
        scheduler.set_timesteps(steps, device=device)
        x = noise.to(device) * scheduler.init_noise_sigma
        own = torch.tensor(index, device=device).view(adapters, n)
        picked = torch.cat([torch.full_like(own, empty), own], 1) if guided else own
        text = text.take(picked.flatten())
        extra = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = list(generators)
        for t in scheduler.timesteps:
            inputs = scheduler.scale_model_input(x, t).view(adapters, n, *x.shape[1:])
            if guided:
                inputs = torch.cat([inputs, inputs], 1)  # adapter-major: each adapter's empty prompts, then its own
            guess = self.predict(inputs.flatten(0, 1), t, text)
            if guided:
                unconditional, conditional = guess.view(adapters, 2, n, *x.shape[1:]).unbind(1)
                guess = (unconditional + guidance * (conditional - unconditional)).flatten(0, 1)
            x = scheduler.step(guess, t, x, **extra).prev_sample
        return x
