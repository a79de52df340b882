"""The values of LoRAs for pictures by every other way to ask (ways.py): what that study asks the network for."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from safetensors import safe_open

from .. import tables
from ..diffusion.attribution import LoRAs, Question, contracted, of_files, products, samples
from ..diffusion.classifier import LoRA, losses_under
from ..diffusion.one_step import inverse_power
from ..loras.factors import expanded
from ..loras.files import open_lora, read_lora
from ..sections import Attribution, Base, Training, Ways
from ..weights.metric import read_metric, warped
from .asking import Asker, asker
from .study import AttributionError
from .ways import CAPTION, CLASSIFIER, GENERATED, LESS, NATURAL, SAME, SAMPLES, Way, write

DAMPING = 0.1  # of a K-FAC factor's eigenvalues, as a share of their mean


def measure(
    plan: pa.Table,
    pictures: pa.Table,
    loras: Mapping[str, str | Path],
    base: Base,
    settings: Attribution,
    ways: Ways,
    training: Training,
    *,
    generated: Mapping[str, Sequence[str | Path]],
    moments: str | Path | None,
    device: str,
    output: str | Path,
) -> tuple[int, str]:
    """Write the values of all ways; returns how many pictures were asked about, and the device.

    `loras`: id → path, of the plan; `generated`: setting → tables of what they generated; `moments`: the base's K-FAC
    factors, None: that way is left out. Raises AttributionError where a caption needs subjects that are not there.
    """
    rows = plan.to_pylist()
    gallery = [row["lora"] for row in rows if row["split"] == "gallery"]
    queries = [row for row in rows if row["split"] == "query"]
    wanted = sorted({picture for row in queries for picture in row["pictures"]})
    shown = {row["picture"]: row for row in pictures.select(["picture", "image", "subject", "status"]).to_pylist()
             if row["status"] == "kept"}  # fmt: skip
    ask = asker(base, settings, caption=training.caption, resolution=training.resolution, device=device)
    names = ask.denoiser.layers(training.targets)
    files = [open_lora(loras[lora]) for lora in gallery]
    latents = ask.latents_of([shown[each]["image"]["bytes"] for each in wanted])
    with of_files(files, ask.denoiser.prefix) as read:
        bench = _Bench(ask, names, read, len(gallery), settings.memory_mb * 10**6)
        found = list(_by_samples(bench, latents, wanted, [*ways.samples, settings.samples]))
        found += _by_caption(bench, latents, wanted, ways.captions, {p: shown[p]["subject"] for p in wanted})
        if moments is not None:
            found += _natural(bench, latents, wanted, ways.powers, moments)
        few = [row for row in queries if len(row["pictures"]) <= ways.few]
        if ways.classifier and few:
            found += _exact(bench, latents, wanted, few, ways.classifier, [loras[lora] for lora in gallery])
        if ways.generated:
            chosen = gallery[:: max(1, -(-len(gallery) // ways.generated))]
            found += _of_generated(bench, generated, chosen)
    write(output, found, gallery)
    return len(wanted) + sum(len(way.of) for way in found if way.name == GENERATED), str(ask.denoiser.device)


@dataclass(frozen=True)
class _Bench:
    """What all ways have in common: the base that is asked, the layers, and the gallery's LoRAs."""

    ask: Asker
    names: list[str]
    loras: LoRAs
    count: int
    memory: int

    def values(self, question: Question, latents: torch.Tensor, seen: Callable[..., None] | None = None) -> np.ndarray:
        """−⟨ΔW, g⟩ (pictures, LoRAs) over all layers."""
        found = products(question, latents, self.names, self.loras, self.count, memory=self.memory, seen=seen)
        return found.values.sum(0)

    def question(self, count: int, seed: int = 0) -> Question:
        shape = self.ask.denoiser.latent_shape(self.ask.resolution)
        return replace(self.ask.question, asked=samples(count, shape, seed))


def _by_samples(bench: _Bench, latents: torch.Tensor, of: Sequence[str], counts: Sequence[int]) -> Iterator[Way]:
    """Each count goes on from the next smaller one: a gradient of 64 samples is the mean of its parts."""
    whole, there = np.zeros((len(latents), bench.count)), 0
    for seed, count in enumerate(sorted(set(counts))):
        more = count - there
        whole = (whole * there + bench.values(bench.question(more, seed), latents) * more) / count
        there = count
        yield Way(SAMPLES, str(count), tuple(of), whole)


def _by_caption(
    bench: _Bench, latents: torch.Tensor, of: Sequence[str], captions: Sequence[str], subjects: Mapping[str, str | None]
) -> Iterator[Way]:
    """The samples of the study with other captions; "{subject}" stands for what a picture shows."""
    ask, question = bench.ask, bench.ask.question
    side = (ask.resolution, ask.resolution)
    for caption in captions:
        if "{subject}" in caption and (bare := next((p for p in of if not subjects[p]), None)):
            raise AttributionError(
                f"attribution.ways.captions: {caption!r} needs a subject of every picture, and {bare} has none; leave "
                "that caption out"
            )
        told = [caption.replace("{subject}", (subjects[p] or "").replace("-", " ")) for p in of]
        values = np.zeros((len(latents), bench.count))
        for text in sorted(set(told)):
            members = np.flatnonzero([each == text for each in told])
            asked = replace(question, text=ask.denoiser.encode_text(ask.pipeline, [text], side))
            values[members] = bench.values(asked, latents[members])
        yield Way(CAPTION, repr(caption), tuple(of), values)


def _natural(
    bench: _Bench, latents: torch.Tensor, of: Sequence[str], powers: Sequence[float], path: str | Path
) -> Iterator[Way]:  # fmt: skip
    """The gradient as one step of natural gradient descent goes, G⁻ᵖ g Σ⁻ᵖ (K-FAC, Martens & Grosse 2015, eq. 17 with
    p = 1), against LoRAs measured in that metric."""
    prefix, metric = bench.ask.denoiser.prefix, read_metric(path)
    moments = {}
    for name in bench.names:
        with safe_open(path, "pt") as file:
            moments[name] = [file.get_tensor(f"{kind}/{prefix}{name}") for kind in ("G", "sigma")]
    whitening = {
        (power, name): [inverse_power(X, power, DAMPING).float() for X in of_module]
        for power in powers
        for name, of_module in moments.items()
    }
    values = {power: np.zeros((len(latents), bench.count)) for power in powers}

    def seen(part: slice, held: Mapping[str, torch.Tensor]) -> None:
        for (power, name), (G, sigma) in whitening.items():
            natural = G.to(held[name]) @ held[name] @ sigma.to(held[name])
            for members, group in bench.loras(name):
                values[power][part, members] -= contracted(natural, group)

    bench.values(bench.ask.question, latents, seen)
    gram = np.zeros((bench.count, bench.count))
    for name in bench.names:
        gram += _gram(bench, name, metric.roots(prefix + name))
    for power in powers:
        if values[power].any():  # not where no picture's gradients could be held
            yield Way(NATURAL, f"power {power:g}", tuple(of), values[power], gram)


def _gram(bench: _Bench, name: str, roots: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    """Inner products (N, N) of the gallery's updates of one layer in the base's metric."""
    dense = None
    for members, group in bench.loras(name):
        assert roots is not None  # who measured moments measured them of all layers that LoRAs change
        for place, update in zip(members, warped(group, roots).updates(name), strict=True):
            product = (update.B @ update.A).ravel()
            dense = np.zeros((bench.count, product.size), np.float32) if dense is None else dense
            dense[place] = product
    return np.zeros((bench.count, bench.count)) if dense is None else (dense @ dense.T).astype(float)


def _exact(
    bench: _Bench, latents: torch.Tensor, of: Sequence[str], queries: Sequence[Mapping[str, Any]], count: int,
    paths: Sequence[str | Path],
) -> Iterator[Way]:  # fmt: skip
    """The loss of a picture under every LoRA, and one gradient of the same samples."""
    some = sorted({picture for row in queries for picture in row["pictures"]})
    part = latents[np.flatnonzero(np.isin(of, some))]
    question = bench.question(count)
    prefix = bench.ask.denoiser.prefix
    losses = losses_under(question, part, [_factors(path, prefix, bench.names) for path in paths])
    yield Way(SAME, f"{count} samples", tuple(some), bench.values(question, part))
    yield Way(CLASSIFIER, f"{count} samples", tuple(some), -losses, exact=True)
    # What a LoRA does to the loss of every picture is no sign of any.
    yield Way(LESS, f"{count} samples", tuple(some), losses.mean(0) - losses, exact=True)


def _factors(path: str | Path, prefix: str, names: Sequence[str]) -> LoRA:
    """A LoRA's factors of these layers."""
    updates = {name: update for name, update in read_lora(path).updates.items() if name.startswith(prefix)}
    plain = {name.removeprefix(prefix): expanded(update) for name, update in updates.items()}
    return {n: (torch.from_numpy(plain[n].A), torch.from_numpy(plain[n].B)) for n in names if n in plain}


def _of_generated(bench: _Bench, generated: Mapping[str, Sequence[str | Path]], loras: Sequence[str]) -> Iterator[Way]:
    """One picture a prompt of each of the LoRAs, at every sampler setting; those of the first setting also as they come
    after being saved and rescaled."""
    wanted = set(loras)
    for i, (setting, paths) in enumerate(generated.items()):
        first: dict[tuple[str, str], Mapping[str, Any]] = {}
        for path in paths:
            for row in tables.read(path, "generated").to_pylist():
                if row["lora"] in wanted:
                    first.setdefault((row["lora"], row["prompt"]), row)
        painted = sorted(first)
        of = tuple(json.dumps(key) for key in painted)
        bytes_of = [first[key]["image"]["bytes"] for key in painted]
        changes: dict[str, Callable[[bytes], bytes]] = {"": lambda image: image}
        if i == 0:
            changes |= {
                ", JPEG 75": lambda image: saved_again(image, 75, 1.0),
                ", rescaled by 0.75, JPEG 50": lambda image: saved_again(image, 50, 0.75),
            }
        for name, change in changes.items():
            latents = bench.ask.latents_of([change(image) for image in bytes_of])
            yield Way(GENERATED, setting + name, of, bench.values(bench.ask.question, latents))


def saved_again(image: bytes, quality: int, scale: float) -> bytes:
    """A picture as a JPEG of this quality, its sides scaled."""
    with Image.open(io.BytesIO(image)) as opened:
        whole = opened.convert("RGB")
    side = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    kept = io.BytesIO()
    whole.resize(side, Image.Resampling.LANCZOS).save(kept, "JPEG", quality=quality)
    return kept.getvalue()
