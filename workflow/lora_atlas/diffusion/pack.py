"""One pack: K adapters that are trained together, step by step, each as if it were alone.

Nothing in a step waits for the device: losses, norms and the first step that was not finite stay there, and are read
when a line of the log is written. An adapter that is not finite touches no other (no sum of a step mixes adapters but
that of the losses, whose gradient is one), and is left out from then on.

A step goes through the network in one batch, unless pictures differ in shape or memory is short: then in several, each
of some adapters or, for a single adapter, of some of its pictures, whose gradients are added up. Out of memory halves
the batch, and the step is repeated with the same draws.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import progress
from ..sections import Training
from . import stacked, state
from .denoisers import Conditioning, Denoiser
from .errors import TrainingError
from .objectives import Objective
from .schedule import learning_rate
from .streams import Draw, Shape, draw

LOG_EVERY = 10


class TimeBudgetSpent(TrainingError):
    """The job has stopped in time, and goes on when it is run again."""


@dataclass(frozen=True)
class Material:
    """What all packs of a job share: latents and text (of one prompt) by shape, names of the layers to train."""

    denoiser: Denoiser
    objective: Objective
    latents: Mapping[Shape, torch.Tensor]
    text: Mapping[Shape, Conditioning]
    modules: Sequence[str]


@dataclass(frozen=True)
class Adapter:
    """One LoRA of a pack: its own pictures as indices by shape (with their ids), and the seeds of its streams."""

    lora: str
    pictures: Mapping[Shape, Sequence[tuple[int, str]]]
    stream: int  # of noise and timesteps
    order: int  # of pictures


@dataclass(frozen=True)
class Limits:
    """When a pack saves its state and when it must stop; a deadline is a value of time.monotonic()."""

    checkpoint_every: int = 50
    deadline: float | None = None
    adapters: int | None = None  # in one batch; None: all


@dataclass
class Progression:
    """What changes while a pack is trained, beside factors and moments: all of it is saved."""

    step: int
    adapters: int  # in one batch of the network
    pictures: int  # of one adapter in one batch
    losses: torch.Tensor  # (K,) sums since the last line of the log
    norms: torch.Tensor  # (K,)
    since: int  # the step of that line
    bad_step: torch.Tensor  # (K,) the first step that was not finite, or -1
    bad_samples: torch.Tensor  # (K, b) which of its pictures were not
    history: list[dict[str, Any]]
    failures: dict[str, str]  # LoRA → what happened


def run(
    material: Material,
    layers: Mapping[str, stacked.Stacked],
    adapters: Sequence[Adapter],
    training: Training,
    file: Path,
    limits: Limits,
) -> Progression:
    """Train a pack to its end; the factors are then in `layers`. Returns log and failures.

    `file` is the pack's state. Raises TimeBudgetSpent after saving the state, and TrainingError where not even one
    picture fits into memory.
    """
    flat = stacked.flatten(layers)
    K, b, device = len(adapters), training.batch, flat.values.device
    # A group each: an adapter has its own moments and its own learning rate.
    groups = [{"params": [row], "lr": training.learning_rate} for row in flat.rows]
    optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=True)
    at = Progression(
        step=0,
        adapters=min(K, limits.adapters or K),
        pictures=b,
        losses=torch.zeros(K, device=device),
        norms=torch.zeros(K, device=device),
        since=0,
        bad_step=torch.full((K,), -1, device=device),
        bad_samples=torch.zeros(K, b, dtype=torch.bool, device=device),
        history=[],
        failures={},
    )
    kept = state.load(file, [adapter.lora for adapter in adapters], device)
    if kept is not None:
        with torch.no_grad():
            flat.values.copy_(kept["values"])
        optimizer.load_state_dict(kept["optimizer"])
        at = Progression(**kept["progression"])
        print(f"{file.name}: going on from step {at.step}", flush=True)

    def save() -> None:
        names = [adapter.lora for adapter in adapters]
        progression = {name: getattr(at, name) for name in Progression.__dataclass_fields__}
        kept = {"loras": names, "values": flat.values, "optimizer": optimizer.state_dict(), "progression": progression}
        state.save(file, kept)

    step = _Step(material, layers, flat, b)
    clock = time.perf_counter()
    together = f"{K} LoRAs together" if K > 1 else adapters[0].lora
    with progress.task(together, training.steps, at.step, "steps") as advance:
        while at.step < training.steps:
            draws = {
                k: draw(a.stream, a.order, at.step, a.pictures, b, material.denoiser.channels)
                for k, a in enumerate(adapters)
                if a.lora not in at.failures
            }
            if not draws:
                break
            error = _gradients(step, draws, at)
            loss = error.mean(1)
            norm = stacked.clip_gradients(flat.gradients, training.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, at.step)
            optimizer.step()
            _watch(at, error, loss, norm)
            at.step += 1
            advance(1)
            last = at.step == training.steps
            if at.step % LOG_EVERY == 0 or last:
                clock = _log(at, adapters, step, clock, training)
            late = limits.deadline is not None and time.monotonic() > limits.deadline
            if last or late or at.step % limits.checkpoint_every == 0:
                save()
            if late and not last:
                raise TimeBudgetSpent(
                    f"the time budget is spent at step {at.step} of {training.steps} of the pack of "
                    f"{adapters[0].lora}; its state is saved in {file.parent}: run the same again, and it goes on"
                )
    return at


@dataclass(frozen=True)
class _Step:
    """What every step of a pack goes through: b pictures of each adapter."""

    material: Material
    layers: Mapping[str, stacked.Stacked]
    flat: stacked.Flat
    b: int


def _gradients(step: _Step, draws: Mapping[int, Draw], at: Progression) -> torch.Tensor:
    """Gradients of a step, in `flat`; returns the weighted squared error of each sample (K, b), NaN of left-out ones.

    Where memory is short, `at` is changed to smaller batches and the step is done again.
    """
    flat, b = step.flat, step.b
    while True:
        flat.clear()
        errors = torch.zeros(len(flat.rows), b, device=flat.values.device)
        short = False
        try:
            for part in batches(draws, at.adapters, at.pictures, b):
                _batch(step, draws, part, errors)
        except torch.OutOfMemoryError:
            # Only said here: while the error is handled, its traceback still holds the graph.
            short = True
        if not short:
            flat.gather()
            return errors
        if at.adapters == 1 and at.pictures == 1:
            raise TrainingError(
                f"out of memory at step {at.step + 1} with one picture of one LoRA in a batch; lower "
                "training.resolution, set resources.gradient_checkpointing, or take a device with more memory"
            )
        if at.adapters > 1:
            at.adapters = (at.adapters + 1) // 2
        else:
            at.pictures = (at.pictures + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"out of memory at step {at.step + 1}: going on with {at.adapters} LoRAs × {at.pictures} pictures in a "
            f"batch, gradients added up to the same {b} pictures of each",
            flush=True,
        )


@dataclass(frozen=True)
class Part:
    """One batch of a step: adapters whose pictures have one shape, and which of their b pictures."""

    shape: Shape
    adapters: list[int]
    pictures: slice


def batches(draws: Mapping[int, Draw], adapters: int, pictures: int, b: int) -> Iterator[Part]:
    """Batches of a step, of at most so many adapters and pictures of each; each sample is in exactly one."""
    for shape in sorted({d.shape for d in draws.values()}):
        same = [k for k, d in draws.items() if d.shape == shape]
        for first in range(0, len(same), adapters):
            for begin in range(0, b, pictures):
                yield Part(shape, same[first : first + adapters], slice(begin, min(begin + pictures, b)))


def _batch(step: _Step, draws: Mapping[int, Draw], part: Part, errors: torch.Tensor) -> None:
    """Adds a batch's gradients up, and sets the errors (K, b) of its samples."""
    material, device = step.material, errors.device
    chosen = [draws[k] for k in part.adapters]
    index = torch.tensor([i for d in chosen for i, _ in d.pictures[part.pictures]])
    x = material.latents[part.shape][_moved(index, device)]
    epsilon = _moved(torch.cat([d.epsilon[part.pictures] for d in chosen]), device)
    u = torch.cat([d.u[part.pictures] for d in chosen])
    t = _moved(material.objective.times(u, material.denoiser.tokens(part.shape)), device)
    everyone = len(chosen) == len(errors)
    picked = None if everyone else _moved(torch.tensor(part.adapters), device)
    stacked.select(step.layers, picked)
    noisy = material.objective.noisy(x, epsilon, t)
    guess = material.denoiser.predict(noisy, t, material.text[part.shape].first(len(t)))
    error = (guess - material.objective.value(x, epsilon, t)).square().mean(dim=(1, 2, 3))
    error = (error * material.objective.weight(t)).view(len(chosen), -1)
    (error.sum() / step.b).backward()
    errors[slice(None) if everyone else picked, part.pictures] = error.detach()


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@torch.no_grad()
def _watch(at: Progression, error: torch.Tensor, loss: torch.Tensor, norm: torch.Tensor) -> None:
    at.losses += loss
    at.norms += norm
    new = ~(loss.isfinite() & norm.isfinite()) & (at.bad_step < 0)
    at.bad_step = torch.where(new, at.step, at.bad_step)
    at.bad_samples = torch.where(new[:, None], ~error.isfinite(), at.bad_samples)


def _log(at: Progression, adapters: Sequence[Adapter], step: _Step, clock: float, training: Training) -> float:
    """A line of the log for each adapter that is still trained; the only place where the host waits for the device."""
    now, done = time.perf_counter(), at.step - at.since
    losses, norms, bad = at.losses.tolist(), at.norms.tolist(), at.bad_step.tolist()
    alive = [k for k, adapter in enumerate(adapters) if adapter.lora not in at.failures]
    for k in alive:
        adapter = adapters[k]
        if bad[k] >= 0:
            channels = step.material.denoiser.channels
            seen = draw(adapter.stream, adapter.order, bad[k], adapter.pictures, step.b, channels)
            named = [name for (_, name), wrong in zip(seen.pictures, at.bad_samples[k].tolist(), strict=True) if wrong]
            where = (
                f"picture {', '.join(sorted(set(named)))}"
                if named
                else (f"in the gradient; its pictures were {', '.join(sorted({name for _, name in seen.pictures}))}")
            )
            at.failures[adapter.lora] = f"not finite at step {bad[k] + 1}, {where}"
            print(f"{adapter.lora}: {at.failures[adapter.lora]}; the others go on", flush=True)
            continue
        at.history.append(
            {
                "lora": adapter.lora,
                "step": at.step,
                "loss": losses[k] / done,
                "gradient_norm": norms[k] / done,
                "seconds": (now - clock) / len(alive),
            }
        )
    still = [losses[k] / done for k in alive if bad[k] < 0]
    if still:
        print(f"step {at.step}/{training.steps}: mean loss {sum(still) / len(still):.4f}", flush=True)
    at.losses.zero_()
    at.norms.zero_()
    at.since = at.step
    return now
