"""mini-flow: the same small world as the mini base, by a diffusion transformer with rectified flow.

The classes are those of Stable Diffusion 3.5 (Esser et al. 2024, arXiv 2403.03206): an MMDiT with query and key norms
over 2 × 2 patches of the mini autoencoder's latents, and two CLIP text encoders, which learn together with it. There is
no T5, which stock pipelines replace by zeros: here by as many as CLIP has tokens, of each as many as there. The
corpus, its captions, the batch and the number of steps are those of the mini base.

Loads with ``StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)``; call it with
``max_sequence_length=16``.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection

from ..pictures.synthetic import CONTENTS
from ..seeds import derive_seed
from . import base
from .base import MAX_TOKENS, Captions, text_config
from .card import count_parameters, grid
from .loop import batch, fit

TEXT = 64  # width of each text encoder
PARTS = ("transformer", "text_encoder", "text_encoder_2")  # what is trained

CARD = """\
# The mini transformer

A latent text-to-image base of {parameters:,} parameters by rectified flow (classes of Stable Diffusion 3.5), beside
the mini UNet of workflow/resources/mini: the same pictures, captions, autoencoder, batch and learning rate. It knows
procedural pictures and nothing else: never use it to judge real art.

![samples of the transformer above, of the UNet below: {contents}](samples.png)

*Samples, one row a content ({contents}) of the transformer, then as many of the UNet; 30 steps, guidance 3.*

## Pretraining
{steps:,} steps of batches of 32 in {seconds:,.0f} s on a CPU; mean squared error of the velocity ε − x,
{first:.3f} → {last:.3f}. AdamW, a one-cycle learning rate, a moving average of the weights, logit-normal timesteps. The
transformer is stored in half precision. There is no T5: stock diffusers loads the folder with `text_encoder_3=None,
tokenizer_3=None`, and is to be called with `max_sequence_length={tokens}`.

## Made by
`snakemake pretrain_flow`, which writes to `results/mini-flow/`. Nothing is downloaded and no third party's weights or
pictures are involved. Licence: Apache-2.0, as the project.
"""


class Denoiser(torch.nn.Module):
    """Transformer and text encoders, trained as one."""

    def __init__(self, vocabulary: int, start: int, end: int, sample_size: int):
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=32,
            num_attention_heads=3,
            joint_attention_dim=2 * TEXT,
            caption_projection_dim=96,
            pooled_projection_dim=2 * TEXT,
            pos_embed_max_size=sample_size,
            qk_norm="rms_norm",
        )
        # Each block begins as the identity (Peebles & Xie 2023, arXiv 2212.09748, §3.2), and the first guess is zero.
        for name, layer in self.transformer.named_modules():
            if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
        self.text, self.text_2 = (
            CLIPTextModelWithProjection(text_config(vocabulary, start, end, TEXT)) for _ in range(2)
        )

    def conditioning(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (n, 2 · MAX_TOKENS, 2 · TEXT) and pooled ones (n, 2 · TEXT) of prompts, as the pipeline's
        encode_prompt makes them: the last hidden state but one of both encoders, then zeros for those of T5."""
        found = [text(tokens, output_hidden_states=True) for text in (self.text, self.text_2)]
        both = torch.cat([each.hidden_states[-2] for each in found], -1)
        return torch.cat([both, torch.zeros_like(both)], 1), torch.cat([each.text_embeds for each in found], -1)


def pretrain(
    vae: AutoencoderTiny,
    latents: torch.Tensor,
    contents: tuple[str, ...],
    *,
    steps: int,
    seed: int,
    state: Path,
    size: int = 32,
    noun: str = "painting",
):
    """Train on scaled latents (N, 4, h, w) and their contents; returns (pipeline, log).

    Rectified flow: x_σ = (1 − σ)x + σε, the velocity ε − x is predicted, and σ is logit-normal (Esser et al. 2024,
    §3.1), stratified over the batch. Captions are drawn as for the mini base.
    """
    torch.manual_seed(seed)
    captions = Captions(contents, noun)
    words = captions.words
    model = Denoiser(len(words), words.bos_token_id, words.eos_token_id, latents.shape[-1])
    schedule = FlowMatchEulerDiscreteScheduler()
    T = schedule.config.num_train_timesteps

    def loss(mean: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        index = batch(len(latents), size, generator)
        said, which = captions.draw(index, generator)
        x = latents[index]
        epsilon = torch.randn(x.shape, generator=generator)
        u = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        sigma = torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
        share = sigma.view(-1, 1, 1, 1)
        embeds, pooled = model.conditioning(said)
        guess = model.transformer((1 - share) * x + share * epsilon, embeds[which], pooled[which], sigma * T).sample
        return (guess - (epsilon - x)).square().mean()

    mean, log = fit(
        "flow", model, loss, steps=steps, learning_rate=1.5e-3, seed=seed, state=state, data=latents.numpy()
    )
    pipeline = StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=mean.text,
        tokenizer=words,
        text_encoder_2=mean.text_2,
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=mean.transformer,
        scheduler=schedule,
    )
    return pipeline, log


def load_pipeline(folder: str | Path) -> StableDiffusion3Pipeline:
    """The base of a folder that `build` wrote, in single precision."""
    return StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, use_safetensors=True, dtype=torch.float32
    )


@torch.no_grad()
def samples(
    pipeline: StableDiffusion3Pipeline, contents: tuple[str, ...], each: int, seed: int, noun: str = "painting"
) -> np.ndarray:
    """Sampled pictures uint8 (contents × each, S, S, 3): 30 Euler steps, guidance 3."""
    return base.sampled(pipeline, contents, each, seed, noun, max_sequence_length=MAX_TOKENS)


def build(
    corpus: str | Path, autoencoder: str | Path, folder: str | Path, log: str | Path,
    *, steps: int, seed: int, state: str | Path,
) -> None:  # fmt: skip
    """The stage: corpus file and autoencoder folder → pipeline folder and loss log."""
    base.build(corpus, autoencoder, folder, log, steps=steps, seed=seed, state=state, name="flow", train=pretrain)


def write_card(
    model: str | Path, other: str | Path, log: str | Path, folder: Path, *, seed: int, each: int = 10
) -> None:
    """The card of the transformer `model` in `folder`, and its samples, above those of the UNet `other`, `each` of a
    content."""
    ours, theirs = load_pipeline(model), base.load_pipeline(other)
    drawn = derive_seed("card", seed)
    both = [samples(ours, CONTENTS, each, drawn), base.samples(theirs, CONTENTS, each, drawn)]
    grid(np.concatenate(both), each, 2).save(folder / "samples.png")
    losses = json.loads(Path(log).read_text())
    text = CARD.format(
        parameters=sum(count_parameters(Path(model) / part) for part in PARTS),
        contents=", ".join(CONTENTS),
        steps=losses[-1]["step"],
        seconds=losses[-1]["seconds"],
        first=losses[0]["loss"],
        last=losses[-1]["loss"],
        tokens=MAX_TOKENS,
    )
    (folder / "README.md").write_text(text)
