"""Generation: every LoRA of an artist paints every prompt, over a grid of sampler settings, with one loaded base.

K LoRAs share each batch as stacked adapters. The first noise of a picture depends on prompt and seed alone, so all
LoRAs paint the same compositions and differ by what they have learnt: the fairest chance for image features.
"""

import inspect
import io
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress

from .. import tables
from ..seeds import derive_seed
from ..weights.files import read_lora
from . import base as bases
from . import stacked


def setting_name(steps: int, guidance: float) -> str:
    """The part of a path that names a sampler setting: ``s16_g3``, ``s30_g7.5``."""
    return f"s{steps}_g{guidance:g}"


def generate(
    loras: Mapping[str, str | Path],
    base: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    resolution: int,
    seed: int,
    device: str,
    outputs: Mapping[str, str | Path],
) -> int:
    """Paint prompts × seeds with each LoRA (id → path) at each setting; writes a table per setting, returns the count.

    `outputs` maps setting names to paths; pictures are square, of side `resolution` (px). Raises BaseModelError, or
    LoraFileError for a LoRA that cannot be read.
    """
    bases.set_threads()
    device = bases.pick_device(device)
    pipeline = bases.load(**base, device=device)
    updates = {lora: _unet_factors(path) for lora, path in loras.items()}
    tasks = [(prompt, number) for prompt in generation["prompts"] for number in generation["seeds"]]
    prompts = generation["prompts"]
    side = (resolution, resolution)
    text = bases.encode_text(pipeline, prompts, side).join(bases.unconditional(pipeline, side))
    K = min(len(loras), generation["batch"])
    each = max(1, generation["batch"] // K)
    names = list(loras)
    shape = _latent_shape(pipeline, resolution)
    count = 0
    with Progress(disable=None, transient=True) as progress:
        total = len(outputs) * len(names) * len(tasks)
        bar = progress.add_task("generating", total=total)
        rows: dict[str, list[dict[str, Any]]] = {setting: [] for setting in outputs}
        for first in range(0, len(names), K):
            group = names[first : first + K]
            layers = _stack(pipeline.unet, [updates[lora] for lora in group])
            for steps in generation["num_inference_steps"]:
                for guidance in generation["guidance_scale"]:
                    setting = setting_name(steps, guidance)
                    for begin in range(0, len(tasks), each):
                        part = tasks[begin : begin + each]
                        noise = torch.stack([initial_noise(shape, seed, prompt, number) for prompt, number in part])
                        index = [prompts.index(prompt) for prompt, _ in part]
                        seeds = [noise_seed(seed, prompt, number) for prompt, number in part]
                        images = sample(pipeline, len(group), noise, seeds, text, index, len(prompts), steps, guidance)
                        rows[setting] += [
                            {"lora": lora, "prompt": prompt, "seed": number, "image": _png(image)}
                            for lora, of_lora in zip(group, images, strict=True)
                            for (prompt, number), image in zip(part, of_lora, strict=True)
                        ]
                        count += len(group) * len(part)
                        progress.advance(bar, len(group) * len(part))
            stacked.unstack(pipeline.unet, layers)
    for setting, path in outputs.items():
        order = {lora: i for i, lora in enumerate(names)}
        tables.write(path, "generated", sorted(rows[setting], key=lambda row: order[row["lora"]]))
    return count


def initial_noise(shape: Sequence[int], seed: int, prompt: str, number: int) -> torch.Tensor:
    """The latent noise (c, h, w) that a picture starts from, float32 on the CPU."""
    generator = torch.Generator().manual_seed(noise_seed(seed, prompt, number))
    return torch.randn(tuple(shape), generator=generator)


def noise_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of a picture's generator; the same for all LoRAs."""
    return derive_seed("generation", seed, prompt, number)


@torch.inference_mode()
def sample(
    pipeline: Any,
    adapters: int,
    noise: torch.Tensor,
    seeds: Sequence[int],
    text: bases.Conditioning,
    index: Sequence[int],
    empty: int,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """Pictures uint8 (K, n, H, W, 3): K stacked adapters paint n pictures each from noise (n, c, h, w).

    `index` (n) and `empty` point into `text`. Classifier-free guidance as in Ho & Salimans 2022 where
    ``guidance > 1``, with the base's own scheduler. Schedulers that add noise draw it from a generator of each
    picture's own, seeded by `seeds` (n) and past its first noise: as stock pipelines do with ``generator=[…]``.
    """
    unet, n = pipeline.unet, len(noise)
    scheduler = deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps, device=unet.device)
    x = noise.to(unet.device).repeat(adapters, 1, 1, 1) * scheduler.init_noise_sigma
    guided = guidance > 1
    picked = torch.tensor([*([empty] * n if guided else []), *index], device=unet.device).repeat(adapters)
    arguments = text.take(picked).arguments()
    extra = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = [_past_first(number, noise.shape[1:]) for _ in range(adapters) for number in seeds]
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t).view(adapters, n, *x.shape[1:])
        if guided:
            inputs = torch.cat([inputs, inputs], 1)  # adapter-major: each adapter's empty prompts, then its own
        guess = unet(inputs.flatten(0, 1).to(unet.dtype), t, **arguments).sample.float()
        if guided:
            unconditional, conditional = guess.view(adapters, 2, n, *x.shape[1:]).unbind(1)
            guess = (unconditional + guidance * (conditional - unconditional)).flatten(0, 1)
        x = scheduler.step(guess, t, x, **extra).prev_sample
    images = bases.decode_latents(pipeline, x)
    return images.view(adapters, n, *images.shape[1:])


def _past_first(seed: int, shape: Sequence[int]) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.randn(tuple(shape), generator=generator)
    return generator


def _unet_factors(path: str | Path) -> dict[str, stacked.Factors]:
    return {
        name.removeprefix("unet."): (torch.from_numpy(update.A), torch.from_numpy(update.B))
        for name, update in read_lora(path).updates.items()
        if name.startswith("unet.")
    }


def _stack(unet: torch.nn.Module, updates: Sequence[Mapping[str, stacked.Factors]]) -> dict[str, stacked.Stacked]:
    rank = max(A.shape[0] for update in updates for A, _ in update.values())
    layers = stacked.stack(unet, sorted(set().union(*updates)), len(updates), rank, 1.0)
    for k, update in enumerate(updates):
        stacked.put(layers, k, update)
    return layers


def _latent_shape(pipeline: Any, resolution: int) -> tuple[int, int, int]:
    side = resolution // pipeline.vae_scale_factor
    return pipeline.unet.config.in_channels, side, side


def _png(image: torch.Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
