"""Sensitivity: how much each layer of the frozen base matters, asked of the base alone, once.

Adam gives the updates of all modules a like size, whatever they do to the picture. What an update does, to first order,
is ⟨∂L/∂W, ΔW⟩, and over samples its mean square is vec(ΔW)ᵀ E[xxᵀ ⊗ ggᵀ] vec(ΔW), with x a layer's input and
g = ∂L/∂y the gradient of the loss in its output: the Fisher metric of that layer, which Martens & Grosse (2015,
arXiv 1503.05671, eq. 1) approximate by Σ ⊗ G, Σ = E[xxᵀ] and G = E[ggᵀ]. Its crudest form, one scalar a layer, is
w = tr(G)/d_out: with G ≈ w·I and Σ ≈ I the metric is w‖ΔW‖². docs/method.md has the derivation and its limits.

The base generates samples of its own (seeded prompts and noise, no LoRA, no artist's picture), noises them at
stratified timesteps as training would, and the summed squared error of its noise prediction is differentiated:

    w = (1/d_out) · Σ over tokens of ‖∂L/∂y‖², averaged over samples.

The sum over tokens counts: fine layers have more of them.
"""

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from .. import progress, tensors
from ..sections import Base, Probe
from ..seeds import derive_seed
from ..settings import Setting
from ..tables import replacing
from . import base as bases
from . import room
from .denoisers import Conditioning, denoiser_of
from .generate import denoise, initial_noise, noise_seed
from .objectives import objective_of
from .streams import stratified
from .tokens import error_of, tokens

WIDEST = 8192  # a wider side has no second moment: its matrix would be larger than the layer


class _Layer:
    """Running sums of one layer; `moments`: also the matrices Σ and G."""

    def __init__(self, module: torch.nn.Module, moments: bool):
        self.module, self.moments = module, moments
        self.counts = True
        self.squares, self.inputs, self.tokens = 0.0, 0.0, 0
        self.sigma: torch.Tensor | None = None
        self.G: torch.Tensor | None = None

    def seen(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook: adds the inputs, and asks for the gradient in the output."""
        x = tokens(module, inputs[0].detach(), entering=True).flatten(0, 1)
        if self.counts:
            self.tokens += len(x)
            self.inputs += float(x.square().sum()) / x.shape[1]
        if self.moments and x.shape[1] <= WIDEST:
            self.sigma = self._added(self.sigma, x)
        output.register_hook(self.differentiated)

    def differentiated(self, gradient: torch.Tensor) -> None:
        g = tokens(self.module, gradient.detach(), entering=False).flatten(0, 1)
        square = float(g.double().square().sum()) / g.shape[1]
        if self.counts:
            self.squares += square
        if self.moments and g.shape[1] <= WIDEST:
            self.G = self._added(self.G, g)

    def _added(self, total: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        """A trial makes the room that sums take, and adds nothing."""
        product = rows.T @ rows
        if not self.counts:
            return product.zero_() if total is None else total
        return product if total is None else total.add_(product)


@dataclass(frozen=True)
class Sensitivity:
    """Module → w (mean squared output gradient), mean squared input, and where they were asked for Σ and G."""

    weights: Mapping[str, float]
    inputs: Mapping[str, float]
    sigma: Mapping[str, torch.Tensor]
    G: Mapping[str, torch.Tensor]


def measure(pipeline: Any, targets: Sequence[str], probe: Probe, *, resolution: int, moments: bool) -> Sensitivity:
    """The sensitivity of the base's targeted layers, by `probe`: samples, num_inference_steps, batch, prompts, seed.

    Names are those of LoRA files (as "unet." and the layer). Raises TrainingError for a base that is no diffusion.
    """
    denoiser = denoiser_of(pipeline)
    module, device, prefix = denoiser.module.float(), denoiser.device, denoiser.prefix
    count, each = probe.samples, probe.batch
    side = (resolution, resolution)
    # In float32: squares of gradients underflow in less.
    text = denoiser.encode_text(pipeline, probe.prompts, side).float()
    latents = own_samples(pipeline, text, probe, resolution)
    objective = objective_of(pipeline.scheduler, str(device), density=denoiser.density, shift=denoiser.shift)
    generator = torch.Generator().manual_seed(derive_seed("sensitivity", probe.seed))
    # Stratified: every part of the schedule is asked alike often, in an order that no prompt shares.
    length = denoiser.tokens((latents.shape[2], latents.shape[3]))
    times = objective.times(stratified(count, generator), length)[torch.randperm(count, generator=generator)].to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    names = denoiser.layers(targets)
    layers = {name: _Layer(module.get_submodule(name), moments) for name in names}
    hooks = [layer.module.register_forward_hook(layer.seen) for layer in layers.values()]

    def asked(part: slice) -> None:
        t, epsilon, x = times[part], noise[part], latents[part]
        index = torch.arange(part.start, part.stop, device=device) % len(probe.prompts)
        error_of(denoiser, objective, x, epsilon, t, text.take(index)).square().sum().backward()

    def counting(whether: bool) -> None:
        for layer in layers.values():
            layer.counts = whether

    try:
        if room.scarce(device):
            counting(False)
            each = room.largest(lambda n: asked(slice(0, n)), min(each, count), "samples through the base", device)
            counting(True)
        with progress.task("sensitivity of the base", count, unit="samples") as advance:
            for start in range(0, count, each):
                part = slice(start, min(start + each, count))
                asked(part)
                advance(part.stop - part.start)
    finally:
        for hook in hooks:
            hook.remove()
    return Sensitivity(
        {prefix + name: layer.squares / count for name, layer in layers.items()},
        {prefix + name: layer.inputs / max(layer.tokens, 1) for name, layer in layers.items()},
        {prefix + name: layer.sigma / layer.tokens for name, layer in layers.items() if layer.sigma is not None},
        {prefix + name: layer.G / count for name, layer in layers.items() if layer.G is not None},
    )


def own_samples(pipeline: Any, text: Conditioning, probe: Probe, resolution: int) -> torch.Tensor:
    """Latents (n, c, h, w) that the base generates by itself, prompts (of `text`) in turn, by its own scheduler."""
    setting = Setting(probe.num_inference_steps, 1.0, tuple(probe.prompts), (0,))
    prompts, shape = probe.prompts, denoiser_of(pipeline).latent_shape(resolution)
    tasks = [(prompts[i % len(prompts)], i) for i in range(probe.samples)]

    def sampled(place: slice) -> torch.Tensor:
        part = tasks[place]
        noise = torch.stack([initial_noise(shape, probe.seed, *task) for task in part])
        seeds = [noise_seed(probe.seed, *task) for task in part]
        index = [i % len(prompts) for _, i in part]
        return denoise(pipeline, 1, noise, seeds, text=text, index=index, empty=0, setting=setting)

    found = room.in_parts(sampled, len(tasks), probe.batch, "samples of the base's own")
    return torch.cat(found).clone()  # the clone, unlike tensors of inference, may be part of a graph


def write(path: str | Path, found: Sensitivity, made: Mapping[str, Any]) -> None:
    """One small safetensors: scalars in the header, ``sigma/module`` and ``G/module`` as float32 tensors."""
    named = {f"{kind}/{name}": X.cpu().numpy() for kind in ("sigma", "G") for name, X in getattr(found, kind).items()}
    header = {"weights": found.weights, "inputs": found.inputs, **made}
    tensors.write(path, named or {"none": np.zeros(1, np.float32)}, header)


def cached(
    output: str | Path,
    cache: str | Path,
    base: Base,
    targets: Sequence[str],
    probe: Probe,
    *,
    resolution: int,
    moments: bool,
    device: str,
    asked: str,
    since: float = 0.0,
) -> tuple[int, str, float]:
    """Write the sensitivity of a base to `output`, from the folder `cache` if a study that `asked` the same has left it
    there, not before `since` (seconds of the epoch, of a run that forces it: its variants ask for one, made once).
    Returns samples, device, and the seconds that measuring took, now or then.

    `asked`: a text of all that it depends on, the content of the base and the versions of libraries too.
    """
    key = [asked, sorted(targets), resolution, dict(sorted(probe.plain().items())), moments]
    kept = Path(cache) / f"{derive_seed('sensitivity', key):016x}.safetensors"
    cost = kept.with_suffix(".json")  # apart: what is measured has the same bytes whenever it is measured
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # variants of a study ask at once: the first measures, the others wait for it
        told = _kept(kept, cost) if kept.is_file() and kept.stat().st_mtime >= since else None
        if told is None:
            start = time.perf_counter()
            bases.set_threads()
            device = bases.pick_device(device)
            found = measure(bases.load(base, device=device), targets, probe, resolution=resolution, moments=moments)
            write(kept, found, {"base": bases.identity(base), "probe": probe.plain()})
            told = {"seconds": time.perf_counter() - start, "device": device}
            with replacing(cost) as temporary:
                temporary.write_text(json.dumps(told))
    with replacing(output) as temporary:
        temporary.write_bytes(kept.read_bytes())
    return probe.samples, told["device"], told["seconds"]


def _kept(path: Path, cost: Path) -> dict[str, Any] | None:
    """What a kept file cost; None where there is none, or a damaged one."""
    try:
        with tensors.reading(path) as (_, file):
            for key in file.keys():  # noqa: SIM118 - no dictionary
                file.get_tensor(key)
        told = json.loads(cost.read_text())
        return {"device": str(told["device"]), "seconds": float(told["seconds"])}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
