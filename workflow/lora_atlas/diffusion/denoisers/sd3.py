"""Stable Diffusion 3 and 3.5: an MMDiT over latents, two CLIPs and T5 (Esser et al. 2024, arXiv 2403.03206)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .denoiser import Conditioning
from .transformer import Transformer

T5 = 256  # tokens of the third text encoder: what the pipeline takes where it is not told


class SD3(Transformer):
    """``embeds`` (n, tokens, d) and ``pooled`` (n, p) condition it. Its timesteps are logit-normal in training (ibid.,
    table 1: rf/lognorm(0, 1))."""

    pipelines = "StableDiffusion3Pipeline"
    classes = ("StableDiffusion3Pipeline",)
    doubled = True
    header: ClassVar[Mapping[str, str]] = {"modelspec.architecture": "stable-diffusion-3/lora"}
    targets: ClassVar[Mapping[str, str]] = {
        "attention": r"^transformer_blocks\.\d+\.attn2?\.to_(q|k|v|out\.0)$",
        "feed_forward": r"^transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)$",
        "context": r"^transformer_blocks\.\d+\.(attn\.(add_[qkv]_proj|to_add_out)|ff_context\.net\.(0\.proj|2))$",
        "modulation": r"^transformer_blocks\.\d+\.norm1(_context)?\.linear$",
        "projection": r"^(context_embedder|proj_out)$",
    }

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        self.step = self.module.config.patch_size * self.downscale

    @property
    def resolution(self) -> int:
        return int(self.module.config.sample_size) * self.downscale

    @property
    def idle(self) -> frozenset[str]:
        """The text's queries in the last block, which writes no text."""
        return frozenset({f"transformer_blocks.{len(self.module.transformer_blocks) - 1}.attn.add_q_proj"})

    def tokens(self, shape: tuple[int, int]) -> int:
        patch = self.module.config.patch_size
        return int((shape[0] // patch) * (shape[1] // patch))

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int]) -> Conditioning:
        # Without T5 there are zeros: as many as CLIP has tokens, which is what its authors trained with (77 of each).
        length = T5 if pipeline.text_encoder_3 is not None else pipeline.tokenizer_max_length
        embeds, _, pooled, _ = pipeline.encode_prompt(
            list(prompts), None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return Conditioning({"embeds": embeds, "pooled": pooled})

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: Conditioning) -> torch.Tensor:
        sample: torch.Tensor = self.module(
            hidden_states=x.to(self.module.dtype),
            timestep=t.expand(len(x)),
            encoder_hidden_states=text.tensors["embeds"],
            pooled_projections=text.tensors["pooled"],
            return_dict=False,
        )[0]
        return sample.float()

    def asked(self, text: Conditioning, empty: Conditioning | None, guidance: float) -> dict[str, Any]:
        found = {"prompt_embeds": text.tensors["embeds"], "pooled_prompt_embeds": text.tensors["pooled"]}
        if empty is not None:
            found["negative_prompt_embeds"] = empty.tensors["embeds"]
            found["negative_pooled_prompt_embeds"] = empty.tensors["pooled"]
        return {**found, "guidance_scale": guidance}
