"""The one pretraining loop: AdamW, one-cycle learning rate, moving-average weights, checkpoints that survive a kill."""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .. import tensors
from ..seeds import derive_seed
from ..tables import replacing

Trained = TypeVar("Trained", bound=torch.nn.Module)


def fit(
    name: str,
    module: Trained,
    loss: Callable[[Trained, torch.Generator], torch.Tensor],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    state: Path,
    weight_decay: float = 0.01,
    average: float = 0.999,
    every: int = 200,
    data: np.ndarray | None = None,
) -> tuple[Trained, list[dict]]:
    """Minimise ``loss(mean, generator)`` over the parameters of `module`, where `mean` is its moving average.

    Returns the moving average and a log of rows ``{step, loss, seconds}``. Every `every` steps all that is needed
    to go on is written to `state`; a run that finds the file of its own recipe, and of `data`, goes on from it.
    """
    work = [name, steps, learning_rate, weight_decay, average, seed]
    recipe = json.dumps([*work, "" if data is None else hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()])
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.08)
    mean = copy.deepcopy(module).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    log, start, running, spent = [], 0, 0.0, 0.0
    kept = _kept(state)
    if kept and kept["recipe"] != recipe:
        print(f"{state} belongs to another recipe or other data; starting again", flush=True)
    elif kept:
        module.load_state_dict(kept["module"])
        mean.load_state_dict(kept["mean"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        generator.set_state(kept["generator"])
        log, start, spent = kept["log"], kept["step"], kept["spent"]
    clock = time.perf_counter()
    for step in range(start, steps):
        value = loss(mean, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(average, (step + 1) / (step + 10))  # an early average must not remember the initialisation
        with torch.no_grad():
            ours: list[torch.Tensor] = list(mean.parameters())
            theirs: list[torch.Tensor] = list(module.parameters())
            torch._foreach_lerp_(ours, theirs, 1 - decay)
            for kept_buffer, buffer in zip(mean.buffers(), module.buffers(), strict=True):
                kept_buffer.copy_(buffer)
        running += value.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            spent += time.perf_counter() - clock
            clock = time.perf_counter()
            count = (step % every) + 1
            log.append({"step": step + 1, "loss": running / count, "seconds": spent})
            print(f"{name}: step {step + 1}/{steps}, loss {running / count:.4f}, {spent:.0f} s", flush=True)
            running = 0.0
            kept = {
                "recipe": recipe,
                "module": module.state_dict(),
                "mean": mean.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "log": log,
                "step": step + 1,
                "spent": spent,
            }
            tensors.write_records(state, kept)
    return mean, log


def _kept(state: Path) -> dict[str, Any] | None:
    if not state.exists():
        return None
    try:
        tensors.check_records(state)
        found: dict[str, Any] = torch.load(state, weights_only=True)
    except Exception as error:  # noqa: BLE001 - the unpickler raises whatever it trips on
        print(f"{state} is damaged ({error}); starting again", flush=True)
        return None
    return found


def batch(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of a random batch, drawn with replacement."""
    return torch.randint(count, (size,), generator=generator)


def write_log(path: str | Path, log: list[dict]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(log, indent=1) + "\n")


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one model's pretraining, in 31 bits: some libraries' generators take no more."""
    return derive_seed("pretraining", seed, stage) % 2**31
