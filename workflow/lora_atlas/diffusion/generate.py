"""Generation: every LoRA of a pack generates the pictures of every sampler setting, with one loaded base.

K LoRAs share each batch as stacked adapters. The first noise of a picture depends on its prompt and number alone, so
where all LoRAs have the same prompts and numbers, they generate the same compositions and differ by what they have
learnt: the fairest chance for image features. A series of its own for each LoRA (settings.py) has no such help.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import progress, tables
from ..loras.factors import Update
from ..loras.files import read_lora
from ..sections import Base
from ..seeds import derive_seed
from ..settings import Setting
from . import base as bases
from . import stacked
from .denoisers import Conditioning, denoiser_of


def generate(
    loras: Mapping[str, str | Path],
    base: Base,
    wanted: Sequence[Setting],
    *,
    batch: int,
    resolution: int,
    seed: int,
    device: str,
    outputs: Mapping[str, str | Path],
) -> int:
    """Generate the pictures of each `wanted` setting with each LoRA (id → path), `batch` at once; returns their count.

    `outputs` maps names of settings to paths of tables; pictures are square, of side `resolution` (px). Raises
    BaseModelError, or LoraFileError for a LoRA that cannot be read.
    """
    bases.set_threads()
    device = bases.pick_device(device)
    pipeline = bases.load(base, device=device)
    denoiser = denoiser_of(pipeline)
    updates = {lora: _factors(path, denoiser.prefix) for lora, path in loras.items()}
    prompts = list(dict.fromkeys(prompt for setting in wanted for prompt in setting.prompts))
    side = (resolution, resolution)
    text = denoiser.encode_text(pipeline, prompts, side).join(denoiser.unconditional(pipeline, side))
    bases.drop_encoders(pipeline)
    K = min(len(loras), batch)
    each = max(1, batch // K)
    names = list(loras)
    shape = denoiser.latent_shape(resolution)
    count = 0
    with progress.task("generated", len(names) * sum(setting.count for setting in wanted), 0, "pictures") as advance:
        rows: dict[str, list[dict[str, Any]]] = {setting.name: [] for setting in wanted}
        for first in range(0, len(names), K):
            group = names[first : first + K]
            layers = _stack(denoiser.module, [updates[lora] for lora in group])
            for setting in wanted:
                tasks = [setting.tasks(lora) for lora in group]
                for begin in range(0, setting.count, each):
                    part = [of_lora[begin : begin + each] for of_lora in tasks]
                    flat = [task for of_lora in part for task in of_lora]  # adapter-major
                    noise = torch.stack([initial_noise(shape, seed, prompt, number) for prompt, number in flat])
                    index = [prompts.index(prompt) for prompt, _ in flat]
                    seeds = [noise_seed(seed, prompt, number) for prompt, number in flat]
                    latents = denoise(
                        pipeline, len(group), noise, seeds,
                        text=text, index=index, empty=len(prompts), setting=setting,
                    )  # fmt: skip
                    images = bases.decode_latents(pipeline, latents)
                    images = images.view(len(group), -1, *images.shape[1:])
                    rows[setting.name] += [
                        {"lora": lora, "prompt": prompt, "seed": number, "image": _png(image)}
                        for lora, asked, of_lora in zip(group, part, images, strict=True)
                        for (prompt, number), image in zip(asked, of_lora, strict=True)
                    ]
                    count += len(flat)
                    advance(len(flat))
            stacked.unstack(denoiser.module, layers)
    for name, path in outputs.items():
        order = {lora: i for i, lora in enumerate(names)}
        tables.write(path, "generated", sorted(rows[name], key=lambda row: order[row["lora"]]))
    return count


def initial_noise(shape: Sequence[int], seed: int, prompt: str, number: int) -> torch.Tensor:
    """The latent noise (c, h, w) that a picture starts from, float32 on the CPU."""
    generator = torch.Generator().manual_seed(noise_seed(seed, prompt, number))
    return torch.randn(tuple(shape), generator=generator)


def noise_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of a picture's generator, whichever LoRA generates it."""
    return derive_seed("generation", seed, prompt, number)


def denoise(
    pipeline: Any,
    adapters: int,
    noise: torch.Tensor,
    seeds: Sequence[int],
    *,
    text: Conditioning,
    index: Sequence[int],
    empty: int,
    setting: Setting,
) -> torch.Tensor:
    """Latents (K·n, c, h, w): K adapters, stacked in the network, generate n each from as much noise, adapter-major.
    One adapter may be the base alone.

    `index` (K·n) and `empty` point into `text`. Schedulers that add noise draw it from a generator of each picture's
    own, seeded by `seeds` (K·n) and past its first noise: as stock pipelines do with ``generator=[…]``.
    """
    return denoiser_of(pipeline).sample(
        pipeline, adapters, noise, [_past_first(number, noise.shape[1:]) for number in seeds],
        text=text, index=index, empty=empty, steps=setting.steps, guidance=setting.guidance,
    )  # fmt: skip


def _past_first(seed: int, shape: Sequence[int]) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    torch.randn(tuple(shape), generator=generator)
    return generator


def _factors(path: str | Path, prefix: str) -> dict[str, stacked.Factors]:
    found = {}
    for name, update in read_lora(path).updates.items():
        if name.startswith(prefix):
            if not isinstance(update, Update):
                raise ValueError(f"{path}: {name} is no plain LoRA, and only those are generated with")
            found[name.removeprefix(prefix)] = (torch.from_numpy(update.A), torch.from_numpy(update.B))
    return found


def _stack(module: torch.nn.Module, updates: Sequence[Mapping[str, stacked.Factors]]) -> dict[str, stacked.Stacked]:
    rank = max(A.shape[0] for update in updates for A, _ in update.values())
    layers = stacked.stack(module, sorted(set().union(*updates)), len(updates), rank, 1.0)
    for k, update in enumerate(updates):
        stacked.put(layers, k, update)
    return layers


def _png(image: torch.Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
