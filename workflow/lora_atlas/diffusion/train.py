"""Training: all LoRAs of one or several artists in one process and one model.

Pictures and the caption are encoded once, then the autoencoder and the text encoder leave the device. Each LoRA has
its own pictures, its own noise and timesteps (a generator seeded by LoRA and step), its own gradient clipping and its
own loss; the losses are summed, so no gradient sees a neighbour. Because every draw is a function of (seed, step),
a job that was killed goes on from its last checkpoint to the very same weights.

The state lies in a folder that the workflow does not declare (it would be deleted with the outputs), carries a digest
of all that it depends on, and is removed when the LoRAs are written.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.progress import Progress

from .. import __version__, tables
from ..pictures.decode import crop_square, decode, to_array
from ..seeds import derive_seed
from ..weights.factors import Update
from ..weights.files import write_lora
from . import base as bases
from . import stacked

LOG_EVERY = 10
CHECKPOINT_EVERY = 50


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the LoRA and the step."""


@dataclass(frozen=True)
class Target:
    """What the UNet should predict at (x₀, ε, t), and the weight of its error there."""

    alphas: torch.Tensor  # ᾱ_t, (T,)
    prediction: str
    min_snr_gamma: float | None

    def noisy(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = self.alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * epsilon

    def value(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.prediction == "epsilon":
            return epsilon
        a = self.alphas[t].view(-1, 1, 1, 1)  # v-prediction, Salimans & Ho 2022, eq. 7
        return a.sqrt() * epsilon - (1 - a).sqrt() * x

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Min-SNR-γ (Hang et al. 2023, §3.4), or one."""
        if self.min_snr_gamma is None:
            return torch.ones(len(t), device=t.device)
        snr = self.alphas[t] / (1 - self.alphas[t])
        clipped = snr.clamp(max=self.min_snr_gamma)
        return clipped / snr if self.prediction == "epsilon" else clipped / (snr + 1)


def target(scheduler: Any, training: Mapping[str, Any], device: str) -> Target:
    """The training target that the base's own noise schedule asks for; raises TrainingError for one without it."""
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
        raise TrainingError(
            f"base.model: its scheduler ({type(scheduler).__name__}, prediction_type {prediction!r}) is not a "
            "diffusion of type epsilon or v_prediction; the trainer knows these two"
        )
    gamma = training["min_snr_gamma"] if training["loss"] == "min_snr" else None
    return Target(scheduler.alphas_cumprod.float().to(device), prediction, gamma)


def train(
    plan: pa.Table,
    pictures: pa.Table,
    base: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    seed: int,
    device: str,
    outputs: Mapping[str, str | Path],
    logs: Mapping[str, str | Path],
    state: str | Path,
) -> None:
    """Train the LoRAs named in `outputs` (id → path), as `plan` says, on `pictures` of their artists.

    Writes each LoRA, and each artist's training log (`logs`: artist → path), atomically. Raises BaseModelError,
    TrainingError, or PictureError.
    """
    bases.set_threads()
    device = bases.pick_device(device)
    rows = [row for row in plan.to_pylist() if row["lora"] in outputs]
    recipe = {"training": dict(training), "base": bases.identity(base["model"], base["revision"]), "seed": seed}
    digest = hashlib.sha256(
        json.dumps([recipe, rows, __version__, torch.__version__], sort_keys=True).encode()
    ).hexdigest()

    pipeline = bases.load(base["model"], base["revision"], device)
    wanted = sorted({picture for row in rows for picture in row["pictures"]})
    latents = bases.encode_pictures(pipeline, load_pictures(pictures, wanted, training["resolution"]))
    latents = latents.to(device)
    text = bases.encode_text(pipeline, [training["caption"]], training["resolution"])
    goal = target(pipeline.scheduler, training, device)
    unet = pipeline.unet
    del pipeline

    names = stacked.targeted(unet, training["targets"])
    layers = stacked.stack(unet, names, len(rows), training["rank"], training["alpha"] / training["rank"])
    stacked.initialise(layers, initial_seeds(layers, [row["lora"] for row in rows], seed, training["init"]))
    beginnings = [hash_factors(stacked.factors(layers, k)) for k in range(len(rows))]
    places = [[wanted.index(picture) for picture in row["pictures"]] for row in rows]
    streams = [row["seed"] if training["noise"] == "own" else seed for row in rows]
    history = _run(unet, layers, latents, text, goal, rows, places, streams, training, Path(state), digest)

    for k, row in enumerate(rows):
        updates = {
            f"unet.{name}": Update(f"unet.{name}", A.numpy(), B.numpy())
            for name, (A, B) in stacked.factors(layers, k).items()
        }
        # No caption, no artist: whoever learns from the file must learn from the weights.
        metadata = {
            "format": "pt",
            "lora_atlas.version": __version__,
            "lora_atlas.base": recipe["base"],
            "lora_atlas.recipe": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
            "lora_atlas.initial_A": beginnings[k],
        }
        write_lora(outputs[row["lora"]], updates, metadata)
    artist_of = {row["lora"]: row["artist"] for row in rows}
    for artist, path in logs.items():
        tables.write(path, "training_log", [entry for entry in history if artist_of[entry["lora"]] == artist])
    shutil.rmtree(state, ignore_errors=True)


def load_pictures(pictures: pa.Table, wanted: Sequence[str], resolution: int) -> torch.Tensor:
    """The wanted pictures as (n, 3, resolution, resolution) in -1…1; raises TrainingError naming absent ones."""
    found = {row["picture"]: row["image"]["bytes"] for row in pictures.to_pylist() if row["status"] == "kept"}
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise TrainingError(f"the plan names pictures that the pictures table lacks: {absent}; rerun the plan")
    arrays = [to_array(crop_square(decode(found[picture], min_side=1), resolution)) for picture in wanted]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def initial_seeds(modules: Sequence[str], loras: Sequence[str], seed: int, init: str) -> list[dict[str, int]]:
    """Seeds of the initial A: the same for all LoRAs (`shared`), or each its own (`own`)."""
    return [
        {name: derive_seed("initial A", seed, name, *([lora] if init == "own" else [])) for name in modules}
        for lora in loras
    ]


def hash_factors(factors: Mapping[str, stacked.Factors]) -> str:
    """Hash of the A factors: LoRAs that share it are comparable factor by factor."""
    digest = hashlib.sha256()
    for name, (A, _) in sorted(factors.items()):
        digest.update(name.encode() + A.numpy().tobytes())
    return digest.hexdigest()


def draw(
    stream: int, order: int, step: int, places: Sequence[int], batch: int, shape: Sequence[int], timesteps: int
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Pictures, noise (batch, *shape) and timesteps (batch,) of one LoRA at one step: a function of its arguments.

    Pictures come in epochs, each a new permutation, so that every picture is seen equally often; timesteps are
    stratified over the batch, so that every stretch of the schedule is (Kingma et al. 2021, app. I.1).
    """
    generator, picked = torch.Generator(), []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, len(places))
        generator.manual_seed(derive_seed("epoch", order, epoch))
        picked.append(places[int(torch.randperm(len(places), generator=generator)[place])])
    generator.manual_seed(derive_seed("noise", stream, step))
    epsilon = torch.randn(batch, *shape, generator=generator)
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return picked, epsilon, (strata * timesteps).long().clamp(max=timesteps - 1)


def _run(
    unet: torch.nn.Module,
    layers: Mapping[str, stacked.StackedLinear],
    latents: torch.Tensor,
    text: bases.Conditioning,
    goal: Target,
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[Sequence[int]],
    streams: Sequence[int],
    training: Mapping[str, Any],
    state: Path,
    digest: str,
) -> list[dict[str, Any]]:
    """The steps; returns rows of the training log."""
    device, K, b = latents.device, len(rows), training["batch"]
    params = stacked.parameters(layers)
    optimizer = torch.optim.AdamW(params, training["learning_rate"], weight_decay=training["weight_decay"])
    conditioning = text.take(torch.zeros(K * b, dtype=torch.long, device=device))
    history: list[dict[str, Any]] = []
    start = _resume(state, digest, layers, optimizer, history)
    losses, norms, clock = torch.zeros(K), torch.zeros(K), time.perf_counter()
    since = start
    with Progress(disable=None, transient=True) as progress:
        task = progress.add_task("training", total=training["steps"], completed=start)
        for step in range(start, training["steps"]):
            draws = [
                draw(streams[k], rows[k]["seed"], step, places[k], b, latents.shape[1:], len(goal.alphas))
                for k in range(K)
            ]
            x = latents[torch.tensor([i for picked, _, _ in draws for i in picked], device=device)]
            epsilon = torch.cat([e for _, e, _ in draws]).to(device)
            t = torch.cat([s for _, _, s in draws]).to(device)
            noisy = goal.noisy(x, epsilon, t).to(unet.dtype)
            guess = unet(noisy, t, **conditioning.arguments()).sample.float()
            error = (guess - goal.value(x, epsilon, t)).square().mean(dim=(1, 2, 3)) * goal.weight(t)
            loss = error.view(K, b).mean(1)
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            norm = stacked.clip_gradients(params, training["max_grad_norm"])
            for group in optimizer.param_groups:
                group["lr"] = training["learning_rate"] * min(1.0, (step + 1) / max(1, training["warmup"]))
            optimizer.step()
            losses += loss.detach().cpu()
            norms += norm.cpu()
            progress.advance(task)
            if (step + 1) % LOG_EVERY == 0 or step + 1 == training["steps"]:
                bad = [rows[k]["lora"] for k in range(K) if not torch.isfinite(losses[k])]
                if bad:
                    raise TrainingError(f"the loss of {bad} is not finite between steps {since} and {step + 1}")
                done, now = step + 1 - since, time.perf_counter()
                history += [
                    {
                        "lora": rows[k]["lora"],
                        "step": step + 1,
                        "loss": losses[k].item() / done,
                        "gradient_norm": norms[k].item() / done,
                        "seconds": (now - clock) / K,
                    }
                    for k in range(K)
                ]
                print(f"step {step + 1}/{training['steps']}: mean loss {losses.mean() / done:.4f}", flush=True)
                losses, norms, clock, since = torch.zeros(K), torch.zeros(K), now, step + 1
                if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < training["steps"]:
                    _checkpoint(state, digest, step + 1, layers, optimizer, history)
    return history


def _checkpoint(state: Path, digest: str, step: int, layers, optimizer, history) -> None:
    kept = {
        "digest": digest,
        "step": step,
        "factors": {name: (layer.A, layer.B) for name, layer in layers.items()},
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    with tables.replacing(state / "state.pt") as temporary:
        torch.save(kept, temporary)


def _resume(state: Path, digest: str, layers, optimizer, history) -> int:
    """Load the state if it is of this very work; returns the step to go on from."""
    file = state / "state.pt"
    if not file.exists():
        return 0
    kept = torch.load(file, map_location=next(iter(layers.values())).A.device, weights_only=True)
    if kept["digest"] != digest:
        print(f"{file} belongs to another recipe, plan or version; starting anew", flush=True)
        return 0
    with torch.no_grad():
        for name, (A, B) in kept["factors"].items():
            layers[name].A.copy_(A)
            layers[name].B.copy_(B)
    optimizer.load_state_dict(kept["optimizer"])
    history += kept["history"]
    print(f"going on from step {kept['step']}", flush=True)
    return kept["step"]
