"""The mini base: a latent text-to-image diffusion model in diffusers' own folder format.

The text encoder (a CLIP text model of 64 dimensions) learns together with the UNet. The first level of the UNet is
convolutional: on a CPU, self-attention at the top resolution would cost as much as all the rest.
Loads with ``StableDiffusionPipeline.from_pretrained(folder)``.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import encode
from .corpus import HUES, MANNER, content_caption, load
from .loop import batch, fit, stage_seed, write_log

MAX_TOKENS = 16
PARTS = ("unet", "text_encoder")  # what is trained


def tokenizer(contents: tuple[str, ...], noun: str = "painting") -> CLIPTokenizer:
    """A CLIP tokenizer with the merges of the words that the corpus uses, in alphabetical order.

    Most are one token; a word whose beginning an earlier word has merged otherwise falls into several ("landscape").
    Captions stay within MAX_TOKENS.
    """
    alphabet = _byte_alphabet()
    plain = f"a an the in of and {noun} picture dark dim bright with"
    text = " ".join([*contents, *MANNER.values(), *HUES, plain])
    words = sorted(set(text.split()))
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    symbols = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    symbols = [*dict.fromkeys(symbols), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of bytes that CLIP's byte-pair encoding is written in."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


class Captions:
    """What pictures of these contents (N) are trained with: a tenth of the captions is empty (classifier-free guidance,
    Ho & Salimans 2022), a sixth is the generic one with which the studies train their LoRAs, and the others say what is
    there."""

    def __init__(self, contents: tuple[str, ...], noun: str):
        names = tuple(sorted(set(contents)))
        self.words = tokenizer(names, noun)
        texts = [content_caption(name, noun) for name in names] + [content_caption("", noun), ""]
        self._tokens = self.words(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        self._labels = torch.tensor([names.index(content) for content in contents])
        self._generic = len(names)

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of each caption once (captions, MAX_TOKENS), and which of them each picture of a batch has."""
        chance = torch.rand(len(index), generator=generator)
        generic = self._generic
        said, which = (
            self._labels[index]
            .where(chance > 0.27, generic)
            .where(chance > 0.10, generic + 1)
            .unique(return_inverse=True)
        )
        return self._tokens[said], which


def text_config(vocabulary: int, start: int, end: int, width: int = 64) -> CLIPTextConfig:
    """A text encoder of two layers."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )


class Denoiser(torch.nn.Module):
    """UNet and text encoder, trained as one."""

    def __init__(self, vocabulary: int, start: int, end: int, sample_size: int):
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=(2, 4, 6),  # the number of heads, whatever its name says
            norm_num_groups=8,
        ).to(memory_format=torch.channels_last)
        self.text = CLIPTextModel(text_config(vocabulary, start, end))


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


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
    """Train on scaled latents (N, 4, h, w) and their contents; returns (pipeline, log)."""
    torch.manual_seed(seed)
    captions = Captions(contents, noun)
    words = captions.words
    model = Denoiser(len(words), words.bos_token_id, words.eos_token_id, latents.shape[-1])
    noise_schedule = scheduler()

    def loss(mean: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        index = batch(len(latents), size, generator)
        said, which = captions.draw(index, generator)
        x = latents[index]
        epsilon = torch.randn(x.shape, generator=generator)
        t = torch.randint(noise_schedule.config.num_train_timesteps, (size,), generator=generator)
        noisy = noise_schedule.add_noise(x, epsilon, t).contiguous(memory_format=torch.channels_last)
        text = model.text(said).last_hidden_state[which]
        return (model.unet(noisy, t, text).sample - epsilon).square().mean()

    mean, log = fit(
        "base", model, loss, steps=steps, learning_rate=1.5e-3, seed=seed, state=state, data=latents.numpy()
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=mean.text,
        tokenizer=words,
        unet=mean.unet.to(memory_format=torch.contiguous_format),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, log


def load_pipeline(folder: str | Path) -> StableDiffusionPipeline:
    """The base of a folder that `build` wrote, in single precision."""
    return StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)


@torch.no_grad()
def samples(
    pipeline: StableDiffusionPipeline, contents: tuple[str, ...], each: int, seed: int, noun: str = "painting"
) -> np.ndarray:
    """Sampled pictures uint8 (contents × each, S, S, 3): 30 DDIM steps, guidance 3."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return sampled(pipeline, contents, each, seed, noun, height=side, width=side)


def sampled(pipeline: Any, contents: tuple[str, ...], each: int, seed: int, noun: str, **sizes: int) -> np.ndarray:
    """The same of a pipeline that is told what it needs to know of sizes."""
    pipeline.set_progress_bar_config(disable=True)
    rows = [
        pipeline(
            content_caption(content, noun),
            num_images_per_prompt=each,
            num_inference_steps=30,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **sizes,
        ).images
        for content in contents
    ]
    return (np.concatenate(rows) * 255).round().astype(np.uint8)


def build(
    corpus: str | Path,
    autoencoder: str | Path,
    folder: str | Path,
    log: str | Path,
    *,
    steps: int,
    seed: int,
    state: str | Path,
    name: str = "base",
    train: Callable[..., tuple[Any, list[dict]]] = pretrain,
) -> None:
    """The stage: corpus file and autoencoder folder → pipeline folder and loss log, of what `train` trains."""
    painted = load(corpus)
    vae = AutoencoderTiny.from_pretrained(autoencoder, use_safetensors=True).eval()
    latents = encode(vae, painted.pictures) * vae.config.scaling_factor
    pipeline, losses = train(
        vae,
        latents,
        painted.contents,
        steps=steps,
        seed=stage_seed(seed, name),
        state=Path(state),
        noun=painted.noun,
    )
    # As it is stored; loaders give float32 back unless told otherwise.
    (getattr(pipeline, "unet", None) or pipeline.transformer).half()
    pipeline.save_pretrained(folder)
    # diffusers notes where a part was loaded from: a path of the machine that trained it.
    for config in Path(folder).glob("*/config.json"):
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    write_log(log, losses)
    Path(state).unlink(missing_ok=True)
