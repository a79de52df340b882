"""Find: which known LoRAs do these pictures speak for, by one gradient of the base that the LoRAs are of?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from .. import tensors
from ..code import digest as digest_of_code
from ..collection.chance import LEVEL
from ..collection.known import Known
from ..collection.query import NEAREST, VOTERS, vote
from ..diffusion import base as bases
from ..diffusion.attribution import matrix, of_files, products
from ..loras.container import digest
from ..sections import Attribution, Base, Probe
from ..seeds import derive_seed
from ..weights.products import combine
from . import scores
from .asking import Asker, asker
from .pictures import Picture, QueryError, Set, read


@dataclass(frozen=True)
class _Fitting:
    """A collection of LoRAs of the base: the layers that they change, and the inner products of those updates."""

    known: Known
    layers: list[str]
    gram: np.ndarray


def find(
    query: str | Path,
    collections: Sequence[Known],
    base: Base,
    settings: Attribution,
    probe: Probe,
    *,
    caption: str,
    resolution: int | None,
    cache: str | Path,
    device: str,
    nearest: int = NEAREST,
) -> list[dict[str, Any]]:
    """Rows of the table "attributions" of a picture, a folder of pictures, or a folder of such folders.

    Every set is asked about whole, and each of its pictures by itself; what cannot be decoded is a row with the reason.
    `caption`, `resolution`: where the settings name none. The base's own pictures are kept in the folder `cache`.
    Raises QueryError where no picture is there, or no LoRA of this base; BaseModelError for the base.
    """
    ask = asker(base, settings, caption=caption, resolution=resolution, device=device)
    fitting = [found for known in collections if (found := _fitting(known, ask)) is not None]
    if not fitting:
        raise QueryError(_none_fits(collections, base))
    sets = read(query, ask.resolution)
    rows = []
    for one in fitting:
        reference = _reference(one, ask, base, probe, Path(cache)) if settings.reference else None
        for each in sets:
            rows += _answers(each, one, ask, reference, nearest)
    return rows


def _fitting(known: Known, ask: Asker) -> _Fitting | None:
    """The collection, if all of its LoRAs' layers of this network are layers of the base, of the same shapes."""
    prefix, module = ask.denoiser.prefix, ask.denoiser.module
    there = dict(module.named_modules())
    layers = []
    for name, shape in known.shapes.items():
        if not name.startswith(prefix):
            continue  # a text encoder's: one caption for all pictures tells it nothing
        layer = there.get(name.removeprefix(prefix))
        if layer is None or getattr(layer, "weight", None) is None or matrix(layer) != tuple(shape):
            return None
        layers.append(name.removeprefix(prefix))
    components = sorted({component for component, _ in known.grams} - {"text_encoder"})
    if not layers or not components:
        return None
    return _Fitting(known, sorted(layers), combine(known.grams, components))


def _none_fits(collections: Sequence[Known], base: Base) -> str:
    spaces = ", ".join(known.space for known in collections) or "none"
    return (
        f"base.model: no known LoRA is of {base.model}: its network lacks their layers, or has them in other shapes. "
        f"There are LoRAs of: {spaces}. Name the base that they were trained on: --base FOLDER of lora-atlas, or "
        "--config base='{model: FOLDER}'"
    )


def _values(ask: Asker, latents: Any, one: _Fitting) -> tuple[np.ndarray, np.ndarray]:
    """−⟨ΔW, g⟩ (pictures, LoRAs) over all layers, and losses (pictures,)."""
    memory = ask.settings.memory_mb * 10**6
    with of_files(one.known.files, ask.denoiser.prefix) as loras:
        found = products(ask.question, latents, one.layers, loras, len(one.known.loras), memory=memory)
    return found.values.sum(0), found.losses


def _reference(one: _Fitting, ask: Asker, base: Base, probe: Probe, cache: Path) -> np.ndarray:
    """Values (pictures, LoRAs) of the base's own pictures, kept for these very LoRAs, this base and these settings."""
    files = [digest(file.path) for file in one.known.files]
    asked = [ask.caption, ask.resolution, ask.settings.samples, ask.settings.reference]
    key = [bases.identity(base), files, asked, sorted(probe.plain().items()), digest_of_code("attribution.find")]
    kept = cache / f"{derive_seed('attribution', key):016x}.safetensors"
    try:
        with tensors.reading(kept) as (_, file):
            values: np.ndarray = file.get_tensor("values")
        if values.shape == (ask.settings.reference, len(files)) and np.isfinite(values).all():
            return values
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # there is none, or it is damaged: it is made again
    values = _values(ask, ask.own(probe), one)[0]
    tensors.write(kept, {"values": values}, {})
    return values


def _answers(asked: Set, one: _Fitting, ask: Asker, reference: np.ndarray | None, nearest: int) -> list[dict[str, Any]]:
    """Rows of a set: of the whole, where it has several pictures, and of each picture."""
    blank = dict.fromkeys(("space", "rank", "lora", "artist", "genre", "prominence", "p", "loss", "artist_vote"))
    blank |= {"artist_share": None, "genre_vote": None, "genre_share": None, "status": "refused"}
    row = blank | {"query": asked.name, "pictures": 1}
    refused = [
        row | {"picture": each.name, "sha256": each.sha256, "reason": each.reason}
        for each in asked.pictures
        if each.pixels is None
    ]
    usable = asked.usable
    if not usable:
        return refused
    values, losses = _values(ask, ask.latents([each.pixels for each in usable if each.pixels is not None]), one)

    def scores_of(values: np.ndarray) -> np.ndarray:
        return scores.scored(values, None if reference is None else reference.mean(0), one.gram)

    groups: list[tuple[Picture | None, np.ndarray]] = [(each, np.array([i])) for i, each in enumerate(usable)]
    if len(usable) > 1:
        groups.insert(0, (None, np.arange(len(usable))))
    rows = []
    for picture, members in groups:
        found = scores.prominence(scores_of(values[members].mean(0)[None]))[0]
        p, chance = None, 0.0
        if reference is not None and len(found) >= scores.FEWEST:
            null = scores.null(scores_of, reference, len(members), 0)
            p, chance = scores.p_values(found, null), float(np.quantile(null, 1 - LEVEL))
        name, sha256 = (None, None) if picture is None else (picture.name, picture.sha256)
        rows += _ranked(
            blank | {"query": asked.name, "picture": name, "sha256": sha256, "pictures": len(members), "reason": None},
            one.known, found, p, chance, float(losses[members].mean()), nearest,
        )  # fmt: skip
    return rows + refused


def _ranked(
    row: Mapping[str, Any],
    known: Known,
    found: np.ndarray,
    p: np.ndarray | None,
    chance: float,
    loss: float,
    nearest: int,
) -> list[dict[str, Any]]:
    """Rows of the nearest; by how much the first of them stand out more than by `chance`, they vote."""
    order = np.argsort(-found, kind="stable")
    told = {**row, "space": known.space, "status": "answered", "loss": loss}
    evidence = np.zeros(len(found))
    evidence[order[:VOTERS]] = (found[order[:VOTERS]] - chance).clip(0)
    told |= vote("artist", known.artists, evidence) | vote("genre", known.genres, evidence)
    return [
        told | {
            "rank": rank, "lora": known.loras[n], "artist": known.artists[n], "genre": known.genres[n],
            "prominence": float(found[n]), "p": None if p is None else float(p[n]),
        }
        for rank, n in enumerate(order[:nearest].tolist(), 1)
    ]  # fmt: skip


def told(rows: Sequence[Mapping[str, Any]], nearest: int = 5) -> str:
    """The answers in a few lines a set, then which picture speaks for what."""
    lines = []
    for name, space in dict.fromkeys((row["query"], row["space"]) for row in rows if row["space"] is not None):
        found = [row for row in rows if row["query"] == name and row["space"] == space]
        single = [row for row in found if row["picture"] is not None]
        whole = [row for row in found if row["picture"] is None] or single
        lines.append(f"{name} ({_count(whole[0]['pictures'])}), among the LoRAs of {space}:")
        lines += [f"  {row['rank']:2d}. {row['lora']}  {_said(row)}" for row in whole[:nearest]]
        if whole[0]["p"] is None:
            lines.append("      no p: fewer than 8 LoRAs, or attribution.reference is 0")
        else:  # fifty families of icons, on a base that has drawn none: .24 of false alarms where .05 were promised
            lines.append("      p is held against pictures of the base's own; for what it cannot draw it is too small")
        if whole is not single:
            lines.append("  by picture:")
            lines += [f"      {row['picture']} → {row['lora']}  {_said(row)}" for row in single if row["rank"] == 1]
    lines += [f"{row['query']}/{row['picture']}: not read, {row['reason']}" for row in rows if row["space"] is None]
    return "\n".join(lines)


def _said(row: Mapping[str, Any]) -> str:
    return f"stands out by {row['prominence']:.1f}" + ("" if row["p"] is None else f"  p {row['p']:.3f}")


def _count(pictures: int) -> str:
    return "1 picture" if pictures == 1 else f"{pictures} pictures"
