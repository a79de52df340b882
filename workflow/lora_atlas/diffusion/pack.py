"""One pack: K adapters that are trained together, step by step, each as if it were alone.

Nothing in a step waits for the device: losses, norms and the first step that was not finite stay there, and are read
when a line of the log is written. An adapter that is not finite touches no other (no sum of a step mixes adapters but
that of the losses, whose gradient is one), and is left out from then on.

A step goes through the UNet in one batch, unless pictures differ in shape or memory is short: then in several, each of
some adapters or, for a single adapter, of some of its pictures, whose gradients are added up. Out of memory halves the
batch, and the step begins anew with the same draws.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from . import stacked, state
from .base import Conditioning
from .objective import Target, TrainingError, learning_rate
from .streams import Draw, Shape, draw

LOG_EVERY = 10


class TimeBudgetSpent(TrainingError):
    """The job has stopped in time, and goes on when it is run again."""


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
    adapters: int  # in one batch of the UNet
    pictures: int  # of one adapter in one batch
    losses: torch.Tensor  # (K,) sums since the last line of the log
    norms: torch.Tensor  # (K,)
    since: int  # the step of that line
    bad_step: torch.Tensor  # (K,) the first step that was not finite, or -1
    bad_samples: torch.Tensor  # (K, b) which of its pictures were not
    history: list[dict[str, Any]]
    failures: dict[str, str]  # LoRA → what happened


def run(
    unet: torch.nn.Module,
    layers: Mapping[str, stacked.Stacked],
    adapters: Sequence[Adapter],
    latents: Mapping[Shape, torch.Tensor],
    text: Mapping[Shape, Conditioning],
    goal: Target,
    training: Mapping[str, Any],
    file: Path,
    limits: Limits,
) -> Progression:
    """Train a pack to its end; the factors are then in `layers`. Returns log and failures.

    `latents` and `text` (of one prompt) are by shape; `file` is the pack's state. Raises TimeBudgetSpent after saving
    the state, and TrainingError where not even one picture fits into memory.
    """
    flat = stacked.flatten(layers)
    K, b, device = len(adapters), training["batch"], flat.values.device
    # A group each: an adapter has its own moments and its own learning rate.
    groups = [{"params": [row], "lr": training["learning_rate"]} for row in flat.rows]
    optimizer = torch.optim.AdamW(groups, weight_decay=training["weight_decay"], fused=True)
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

    clock = time.perf_counter()
    with Progress(disable=None, transient=True) as progress:
        task = progress.add_task("training", total=training["steps"], completed=at.step)
        while at.step < training["steps"]:
            draws = {
                k: draw(a.stream, a.order, at.step, a.pictures, b, _channels(latents), len(goal.alphas))
                for k, a in enumerate(adapters)
                if a.lora not in at.failures
            }
            if not draws:
                break
            error = _gradients(unet, layers, draws, latents, text, goal, flat, at, b)
            loss = error.mean(1)
            norm = stacked.clip_gradients(flat.gradients, training["max_grad_norm"])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, at.step)
            optimizer.step()
            _watch(at, error, loss, norm)
            at.step += 1
            progress.advance(task)
            last = at.step == training["steps"]
            if at.step % LOG_EVERY == 0 or last:
                clock = _log(at, adapters, b, clock, training, _channels(latents), len(goal.alphas))
            late = limits.deadline is not None and time.monotonic() > limits.deadline
            if last or late or at.step % limits.checkpoint_every == 0:
                save()
            if late and not last:
                raise TimeBudgetSpent(
                    f"the time budget is spent at step {at.step} of {training['steps']} of the pack of "
                    f"{adapters[0].lora}; its state is saved in {file.parent}: run the same again, and it goes on"
                )
    return at


def _channels(latents: Mapping[Shape, torch.Tensor]) -> int:
    return next(iter(latents.values())).shape[1]


def _gradients(unet, layers, draws: Mapping[int, Draw], latents, text, goal, flat, at: Progression, b: int):
    """Gradients of a step, in `flat`; returns the weighted squared error of each sample (K, b), NaN of left-out ones.

    Where memory is short, `at` is changed to smaller batches and the step is done anew.
    """
    while True:
        flat.clear()
        errors = torch.zeros(len(flat.rows), b, device=flat.values.device)
        short = False
        try:
            for shape, chosen, begin, end in batches(draws, at.adapters, at.pictures, b):
                _batch(unet, layers, draws, latents, text, goal, errors, shape, chosen, begin, end, b)
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


def batches(
    draws: Mapping[int, Draw], adapters: int, pictures: int, b: int
) -> Iterator[tuple[Shape, list[int], int, int]]:
    """Batches of a step: shape, adapters, and which of their b pictures (begin, end); each sample in exactly one."""
    for shape in sorted({d.shape for d in draws.values()}):
        same = [k for k, d in draws.items() if d.shape == shape]
        for first in range(0, len(same), adapters):
            for begin in range(0, b, pictures):
                yield shape, same[first : first + adapters], begin, min(begin + pictures, b)


def _batch(unet, layers, draws, latents, text, goal, errors, shape, chosen, begin, end, b) -> None:
    device = errors.device
    part = [draws[k] for k in chosen]
    index = torch.tensor([i for d in part for i, _ in d.pictures[begin:end]])
    x = latents[shape][_moved(index, device)]
    epsilon = _moved(torch.cat([d.epsilon[begin:end] for d in part]), device)
    t = _moved(torch.cat([d.t[begin:end] for d in part]), device)
    everyone = len(chosen) == len(errors)
    picked = None if everyone else _moved(torch.tensor(chosen), device)
    stacked.select(layers, picked)
    prompt = text[shape].take(torch.zeros(len(t), dtype=torch.long, device=device))
    guess = unet(goal.noisy(x, epsilon, t).to(unet.dtype), t, **prompt.arguments()).sample.float()
    error = (guess - goal.value(x, epsilon, t)).square().mean(dim=(1, 2, 3)) * goal.weight(t)
    error = error.view(len(chosen), end - begin)
    (error.sum() / b).backward()
    errors[slice(None) if everyone else picked, begin:end] = error.detach()


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


def _log(at: Progression, adapters: Sequence[Adapter], b: int, clock: float, training, channels, timesteps) -> float:
    """A line of the log for each adapter that is still trained; the only place where the host waits for the device."""
    now, done = time.perf_counter(), at.step - at.since
    losses, norms, bad = at.losses.tolist(), at.norms.tolist(), at.bad_step.tolist()
    alive = [k for k, adapter in enumerate(adapters) if adapter.lora not in at.failures]
    for k in alive:
        adapter = adapters[k]
        if bad[k] >= 0:
            seen = draw(adapter.stream, adapter.order, bad[k], adapter.pictures, b, channels, timesteps)
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
        print(f"step {at.step}/{training['steps']}: mean loss {sum(still) / len(still):.4f}", flush=True)
    at.losses.zero_()
    at.norms.zero_()
    at.since = at.step
    return now
