"""Z-Image: blocks of one stream, after refiners of picture and text apart; a language model for the text
(Z-Image team 2025, arXiv 2511.22699)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .denoiser import Conditioning, masked
from .transformer import Transformer


class ZImage(Transformer):
    """``embeds`` (n, tokens, d) condition it, and a mask where prompts differ in length.

    It counts time from noise to picture and predicts x − ε: both are turned round here. Projections into and out of it
    are no targets: it takes the tokens of a whole batch for one row, captions of every length. Its pipeline's guidance
    is what is added: one less than that of other bases, where 1 is none.
    """

    pipelines = "ZImagePipeline"
    classes = ("ZImagePipeline",)
    doubled = True
    header: ClassVar[Mapping[str, str]] = {"modelspec.architecture": "z-image/lora"}
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"^(layers|noise_refiner)\.\d+\.attention\.to_(q|k|v|out\.0)$",
        "feed_forward": r"^(layers|noise_refiner)\.\d+\.feed_forward\.w[123]$",
        "context": r"^context_refiner\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])$",
        "modulation": r"^(layers|noise_refiner)\.\d+\.adaLN_modulation\.0$",
    }

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        return masked(embeds)

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        latents = list(x.to(self.module.dtype).unsqueeze(2))
        found = self.module(latents, 1 - t.expand(len(x)) / 1000, text.embeds(), return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2).float()

    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt_embeds": text.embeds()}
        if empty is not None:
            found["negative_prompt_embeds"] = empty.embeds()
        return {**found, "guidance_scale": guidance - 1 if empty is not None else 0.0}
