"""Other ways to ask which LoRAs pictures speak for, each against the one that is used: more samples or fewer, other
captions, the gradient in the base's own metric, the exact loss under every LoRA, and pictures that LoRAs generated.

measure_ways.py has the values of every way, which cost passes of the network; `ask` makes scores of them. Only pictures
of queries are asked about, and pictures that gallery LoRAs generated; LoRAs are centred by their mean in all ways, and
nothing is taken off gradients: the base's own pictures would have to be asked in every way too.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import tensors
from ..metrics.ranking import chance, score
from ..weights.modules import read_modules
from . import scores
from .study import METRICS, AttributionError, Planned, opened

SAMPLES, CAPTION, NATURAL = "samples", "caption", "the base's metric"
CLASSIFIER, LESS, SAME = "loss under each LoRA", "loss under each LoRA, less its mean", "one gradient, of the same"
GENERATED = "generated pictures"
OWN = "the very LoRA"  # is it ranked first, of pictures that it generated


@dataclass(frozen=True)
class Way:
    """`values` (sets' pictures, LoRAs) of the pictures `of`; `gram` (G, G) in whose norms LoRAs are measured: None, the
    plain one; `exact`: values are losses already, and no norm divides them."""

    name: str
    setting: str
    of: tuple[str, ...]
    values: np.ndarray
    gram: np.ndarray | None = None
    exact: bool = False


def write(path: str | Path, ways: Sequence[Way], gallery: Sequence[str]) -> None:
    """Keep values of ways, and the gallery's LoRAs that they are of."""
    arrays, told = {}, []
    for i, way in enumerate(ways):
        arrays[f"{i}/values"] = way.values.astype(np.float32)
        if way.gram is not None:
            arrays[f"{i}/gram"] = way.gram
        told.append({"name": way.name, "setting": way.setting, "of": way.of, "exact": way.exact})
    tensors.write(path, arrays, {"ways": told, "loras": list(gallery)})


def read(path: str | Path) -> tuple[list[Way], list[str]]:
    """What `write` kept: ways, and the gallery's LoRAs. Raises AttributionError for a file that is damaged."""
    with opened(path) as (header, file):
        there = set(file.keys())
        found = [
            Way(
                each["name"], each["setting"], tuple(each["of"]), file.get_tensor(f"{i}/values"),
                file.get_tensor(f"{i}/gram") if f"{i}/gram" in there else None, each["exact"],
            )
            for i, each in enumerate(header["ways"])
        ]  # fmt: skip
    for way in found:
        if way.values.shape != (len(way.of), len(header["loras"])) or not np.isfinite(way.values).all():
            raise AttributionError(f"{path}: damaged ({way.name} {way.setting}); {tensors.AGAIN}")
    return found, header["loras"]


@dataclass(frozen=True)
class _Gallery(Planned):
    """The plan with its gallery's inner products (G, G)."""

    gram: np.ndarray

    @cached_property
    def loras(self) -> list[str]:
        return [self.plan[i]["lora"] for i in self.gallery]

    @cached_property
    def artist(self) -> dict[str, str]:
        return {row["lora"]: row["artist"] for row in self.plan}

    @cached_property
    def labels(self) -> np.ndarray:
        return self.artists[self.gallery]


def ask(measured: str | Path, modules: str | Path, plan: pa.Table) -> list[dict[str, Any]]:
    """Rows of the table "attribution_way_queries": a query, or a LoRA that generated pictures, by each way, of all of
    its pictures and of single ones. `modules`: Gram matrices of single modules.

    Raises AttributionError or GramError for files that are not of this plan.
    """
    ways, loras = read(measured)
    ids, grams, _ = read_modules(modules)
    whole = sum(grams["delta"].values())
    planned = Planned(plan.to_pylist())
    among = planned.gallery
    if ids != [row["lora"] for row in planned.plan] or loras != [ids[i] for i in among]:
        raise AttributionError(f"{measured}: its LoRAs are not those of the plan any more; rerun its stage")
    gallery = _Gallery(planned.plan, np.asarray(whole)[np.ix_(among, among)])
    return [answer for way in ways for answer in _answers(way, gallery)]


def _answers(way: Way, gallery: _Gallery) -> Iterator[dict[str, Any]]:
    if way.name == GENERATED:
        lora_of = [json.loads(each)[0] for each in way.of]
        sets = {lora: np.flatnonzero([each == lora for each in lora_of]) for lora in dict.fromkeys(lora_of)}
    else:
        place = {picture: i for i, picture in enumerate(way.of)}
        sets = {
            row["lora"]: np.array([place[p] for p in row["pictures"]])
            for row in gallery.queries
            if all(p in place for p in row["pictures"])
        }
    for lora, members in sets.items():
        relevant = gallery.labels == gallery.artist[lora]
        for pictures, values in ((None, way.values[members].mean(0)[None]), (1, way.values[members])):
            s = _scores(way, values, gallery)
            hits = score(-s, np.tile(relevant, (len(s), 1)), METRICS, scale=float(np.abs(s).max() or 1.0))
            told = {metric: (hits[metric], chance(metric, int(relevant.sum()), len(relevant))) for metric in METRICS}
            if way.name == GENERATED:
                told[OWN] = (s.argmax(1) == gallery.loras.index(lora), 1 / len(gallery.loras))
            for metric, (value, by_chance) in told.items():
                yield {
                    "way": way.name, "setting": way.setting, "pictures": pictures, "metric": metric,
                    "lora": lora, "artist": gallery.artist[lora], "value": float(np.mean(value)), "chance": by_chance,
                }  # fmt: skip


def _scores(way: Way, values: np.ndarray, gallery: _Gallery) -> np.ndarray:
    if way.exact:
        return np.asarray(values, float)
    return scores.scored(values, None, gallery.gram if way.gram is None else way.gram)
