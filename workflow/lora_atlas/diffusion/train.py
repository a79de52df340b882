"""Training: all LoRAs of one or several artists in one process and one model.

Pictures and the caption are encoded once, then the autoencoder and the text encoders leave the device. Each LoRA has
its own pictures, its own noise and timesteps (streams.py), its own gradient clipping, moments and learning rate, and
its own loss; no gradient sees a neighbour (pack.py). Because every draw is a function of (seed, step), a job that was
killed goes on from its last state (state.py) to the very same weights; on a GPU as far as its kernels repeat
themselves.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from .. import __version__, tables
from ..atomic import clear
from ..loras.factors import Update
from ..loras.files import write_lora
from ..sections import Base, Training
from . import base as bases
from . import examples, size, stacked, state
from .denoisers import Denoiser, denoiser_of
from .errors import TrainingError
from .objectives import objective_of
from .pack import Adapter, Limits, Material, run
from .streams import Shape, hash_factors, initial_seeds


@dataclass(frozen=True)
class Resources:
    """How a job may use its machine. Nothing here changes a LoRA but in its last digits."""

    device: str = "auto"
    loras_per_pack: int | str = "auto"
    checkpoint_every: int = 50  # steps
    time_budget: float | None = None  # minutes; None: no end
    gradient_checkpointing: bool = False
    compile: bool = False


def train(
    plan: pa.Table,
    pictures: pa.Table,
    base: Base,
    training: Training,
    *,
    seed: int,
    resources: Resources,
    outputs: Mapping[str, str | Path],
    logs: Mapping[str, str | Path],
    folder: str | Path,
) -> None:
    """Train the LoRAs named in `outputs` (id → path), as `plan` says, on `pictures` of their artists.

    Writes each LoRA, and each artist's training log (`logs`: artist → path), atomically, and removes the state in
    `folder`. Raises BaseModelError, TimeBudgetSpent, or TrainingError; where some LoRAs failed, the others are in
    ``folder/finished``, which the message says.
    """
    limits = Limits(
        resources.checkpoint_every,
        None if resources.time_budget is None else time.monotonic() + 60 * resources.time_budget,
    )
    bases.set_threads()
    folder, device = Path(folder), bases.pick_device(resources.device)
    rows = [row for row in plan.to_pylist() if row["lora"] in outputs]
    recipe = {"training": training.plain(), "base": bases.identity(base), "seed": seed}
    work = {
        "recipe": recipe,
        "code": state.code_digest(),
        "versions": {"lora-atlas": __version__, "torch": torch.__version__},
        "data": {row["lora"]: _digest({key: row[key] for key in ("seed", "pictures")}) for row in rows},
    }
    packs = state.claim(folder, work)
    for path in [*outputs.values(), *logs.values()]:
        clear(path)
    material, places = _prepare(rows, pictures, base, training, resources, device)
    if packs is None:
        K = _pack_size(material, len(rows), training, resources, recipe, folder)
        packs = size.split([row["lora"] for row in rows], K)
        state.settle(folder, work, packs)

    history: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    finished = {lora: folder / "finished" / f"{lora}.safetensors" for lora in outputs}
    row_of = {row["lora"]: row for row in rows}
    for number, loras in enumerate(packs):
        scale = training.alpha / training.rank
        layers = stacked.stack(material.denoiser.module, material.modules, len(loras), training.rank, scale)
        stacked.initialise(layers, initial_seeds(list(layers), loras, seed, training.init))
        beginnings = [hash_factors(stacked.factors(layers, k)) for k in range(len(loras))]
        adapters = [_adapter(row_of[lora], places, training, seed) for lora in loras]
        file = folder / f"pack-{number:02d}.pt"
        done = run(material, layers, adapters, training, file, limits)
        history += done.history
        failures |= done.failures
        for k, lora in enumerate(loras):
            if lora not in failures:
                _write(finished[lora], layers, k, beginnings[k], recipe, material.denoiser)
        stacked.unstack(material.denoiser.module, layers)
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(rows)} LoRAs failed: "
            + "; ".join(f"{lora}: {what}" for lora, what in sorted(failures.items()))
            + f". The others are whole, in {folder / 'finished'}: copy them from there. To start training again, "
            f"delete {folder}; a lower training.learning_rate, or the plan without these pictures, may help"
        )
    for lora, path in outputs.items():
        with tables.replacing(path) as temporary:
            temporary.write_bytes(finished[lora].read_bytes())
    artist_of = {row["lora"]: row["artist"] for row in rows}
    for artist, path in logs.items():
        entries = [entry for entry in history if artist_of[entry["lora"]] == artist]
        tables.write(path, "training_log", sorted(entries, key=lambda entry: (entry["step"], entry["lora"])))
    state.remove(folder)


def _prepare(
    rows: Sequence[Mapping[str, Any]],
    pictures: pa.Table,
    base: Base,
    training: Training,
    resources: Resources,
    device: str,
) -> tuple[Material, dict[str, tuple[Shape, int]]]:
    """Everything that packs share, encoded once; and picture → its shape and place."""
    pipeline = bases.load(base, device=device)
    denoiser = denoiser_of(pipeline)
    wanted = sorted({picture for row in rows for picture in row["pictures"]})
    latents, places, sizes = examples.encode(pipeline, denoiser, pictures, wanted, training)
    caption = [training.caption]
    text = {shape: denoiser.encode_text(pipeline, caption, pixels) for shape, pixels in sizes.items()}
    gamma = training.min_snr_gamma if training.loss == "min_snr" else None
    objective = objective_of(pipeline.scheduler, device, gamma, denoiser.density, denoiser.shift)
    if resources.gradient_checkpointing:
        denoiser.module.enable_gradient_checkpointing()
    if resources.compile:
        denoiser.module.compile()
    del pipeline  # autoencoder and text encoders with it
    if device == "cuda":
        torch.cuda.empty_cache()
    latents = {shape: z.to(device) for shape, z in latents.items()}
    modules = denoiser.layers(training.targets)
    return Material(denoiser, objective, latents, text, modules), places


def _adapter(row: Mapping[str, Any], places: Mapping[str, tuple[Shape, int]], training: Training, seed: int) -> Adapter:
    own: dict[Shape, list[tuple[int, str]]] = {}
    for picture in row["pictures"]:
        shape, place = places[picture]
        own.setdefault(shape, []).append((place, picture))
    return Adapter(row["lora"], own, row["seed"] if training.noise == "own" else seed, row["seed"])


@dataclass(frozen=True)
class Memory:
    """A device's memory: what it is, how much of it, and its highest use since the last reset (bytes)."""

    name: str
    total: int
    reset: Callable[[], None]
    peak: Callable[[], int]


def memory_of(device: torch.device) -> Memory | None:
    """The memory of a GPU; None for a CPU, whose packs need no search."""
    if device.type != "cuda":
        return None

    def reset() -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    total = torch.cuda.get_device_properties(device).total_memory
    return Memory(torch.cuda.get_device_name(device), total, reset, lambda: torch.cuda.max_memory_allocated(device))


def _pack_size(
    material: Material,
    count: int,
    training: Training,
    resources: Resources,
    recipe: Mapping[str, Any],
    folder: Path,
) -> int:
    if resources.loras_per_pack != "auto":
        return min(count, int(resources.loras_per_pack))
    memory = memory_of(next(iter(material.latents.values())).device)
    if memory is None:
        return count
    key = {
        "device": memory.name,
        "memory": memory.total,
        "recipe": _digest({k: v for k, v in recipe.items() if k != "seed"}),
        "shapes": sorted(material.latents),
        "checkpointing": resources.gradient_checkpointing,
        "most": count,
    }

    def trial(K: int) -> int:
        memory.reset()
        trial_step(material, K, training)
        return memory.peak()

    # Beside the jobs' own folders, which are removed: the next job on such a device need not search again.
    file = folder.parent / "pack_sizes.json"
    chosen = size.remembered(file, key, lambda: size.grow(trial, count, memory.total))
    print(f"{chosen} LoRAs in a pack on {memory.name}", flush=True)
    return chosen


def trial_step(material: Material, K: int, training: Training) -> None:
    """One step of K adapters on the largest shape, with moments of the optimizer; nothing of it is kept."""
    denoiser, latents = material.denoiser, material.latents
    layers = stacked.stack(denoiser.module, material.modules, K, training.rank, 1.0)
    try:
        flat = stacked.flatten(layers)
        moments = torch.zeros(2, *flat.values.shape, device=flat.values.device)
        shape = max(latents, key=lambda s: s[0] * s[1])
        n = K * training.batch
        x = torch.zeros(n, *latents[shape].shape[1:], device=moments.device)
        t = material.objective.times(torch.zeros(n, device=moments.device), denoiser.tokens(shape))
        denoiser.predict(x, t, material.text[shape].first(n)).sum().backward()
    finally:
        stacked.unstack(denoiser.module, layers)


def _write(
    path: Path,
    layers: Mapping[str, stacked.Stacked],
    k: int,
    beginning: str,
    recipe: Mapping[str, Any],
    denoiser: Denoiser,
) -> None:
    updates = {}
    for name, (A, B) in stacked.factors(layers, k).items():
        A, B = stacked.as_stored(layers[name].frozen, A, B)
        updates[denoiser.prefix + name] = Update(denoiser.prefix + name, A.numpy(), B.numpy())
    # No caption, no artist: whoever learns from the file must learn from the weights.
    metadata = {
        "format": "pt",
        "lora_atlas.version": __version__,
        "lora_atlas.base": recipe["base"],
        "lora_atlas.recipe": _digest(recipe),
        "lora_atlas.initial_A": beginning,
        **denoiser.header,
    }
    write_lora(path, updates, metadata)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
