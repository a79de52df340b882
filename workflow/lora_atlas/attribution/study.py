"""One gradient, tried on a study: do the pictures of a query LoRA find the gallery LoRAs of its artist?

Each picture of the plan has its products with every LoRA, layer by layer (measure.py); all that is asked afterwards is
sums of them (`ask`): whole training sets or parts of them, modules weighted or as they are, LoRAs and gradients centred
or not. The LoRAs of the queries take no part in that: their pictures alone are the queries.

Nothing here runs a network, or imports a library for that.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError

from .. import tensors
from ..descriptors import CONSENSUS, GRADIENT, PLAIN
from ..embeddings.components import halves
from ..embeddings.describe import FEWEST_ARTISTS
from ..metrics import intervals
from ..metrics.ranking import chance, score
from ..seeds import derive_seed
from ..tables import WHOLE, WHOLE_UNSEEN
from ..weights.modules import read_modules, stacked_grams
from ..weights.weighting import module_weights
from . import scores

ABSENT = "absent artist"
# What is less its mean: gradients by that of the base's own pictures, or of the pictures of artists that are known: of
# the gallery, or where queries are of artists unseen, of the other half. Whose a query is never plays a part: less the
# mean of all *other* artists of the gallery, every LoRA but the right ones would be held against its own pictures.
NONE, LORAS, BOTH, ARTISTS = "none", "LoRAs", "LoRAs and gradients", "LoRAs and gradients, by known artists"
CENTRINGS = (NONE, LORAS, BOTH, ARTISTS)
SIZES = (1, 2, 4, 8)  # pictures of a query, besides all that it has
DRAWS = 16  # sets of these sizes, of each query
METRICS = ("mAP", "R@1")
ALPHA = 0.05
ALARM = f"p ≤ {ALPHA}"


class AttributionError(ValueError):
    """Products are absent or damaged, or not of this study; the message names the file."""


@dataclass(frozen=True)
class Measured:
    """What measure.py wrote: −⟨ΔW, g⟩, `values` (modules, pictures, LoRAs), and `reference` (modules, own pictures of
    the base, LoRAs)."""

    modules: list[str]  # as LoRA files name them
    pictures: list[str]
    loras: list[str]
    values: np.ndarray
    reference: np.ndarray


def read(path: str | Path) -> Measured:
    """What measure.py wrote; raises AttributionError naming a file that is absent or damaged."""
    try:
        with opened(path) as (header, file):
            values, reference = file.get_tensor("values"), file.get_tensor("reference")
        found = Measured(header["modules"], header["pictures"], header["loras"], values, reference)
    except KeyError as error:
        raise _damaged(path, error) from error
    shape = (len(found.modules), len(found.pictures), len(found.loras))
    if values.shape != shape or reference.shape[::2] != shape[::2] or not np.isfinite(values).all():
        raise _damaged(path, f"its numbers are not {shape}")
    return found


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Header and open file of what a stage of attribution wrote; raises AttributionError naming a file that is absent
    or damaged, there or while it is read."""
    try:
        with tensors.reading(path) as found:
            yield found
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str | Path, why: object) -> AttributionError:
    return AttributionError(f"{path}: absent or damaged ({why}); {tensors.AGAIN}")


@dataclass(frozen=True)
class _Asked:
    """One weighting of modules: values (pictures, G) of the gallery, (b, G) of the base's own, their Gram (G, G)."""

    values: np.ndarray
    reference: np.ndarray
    gram: np.ndarray

    def scored(
        self, values: np.ndarray, among: np.ndarray, centring: str, shown: np.ndarray | None = None
    ) -> np.ndarray:
        """Scores (s, g) of sets, by their values (s, G), among some of the gallery (g); `shown` (G,): the mean values
        of known artists' pictures."""
        off = None
        if centring == BOTH:
            off = self.reference[:, among].mean(0)
        elif centring == ARTISTS:
            assert shown is not None  # who centres by artists has their pictures
            off = shown[among]
        gram = self.gram[np.ix_(among, among)]
        return scores.scored(values[:, among], off, gram, centred=centring != NONE)


@dataclass(frozen=True)
class Planned:
    """The LoRAs of a plan, as they are asked about."""

    plan: list[dict[str, Any]]

    @cached_property
    def gallery(self) -> np.ndarray:
        return np.flatnonzero([row["split"] == "gallery" for row in self.plan])

    @cached_property
    def artists(self) -> np.ndarray:
        return np.array([row["artist"] for row in self.plan])

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """Those whose artist the gallery has."""
        there = set(self.artists[self.gallery])
        return [row for row in self.plan if row["split"] == "query" and row["artist"] in there]


@dataclass(frozen=True)
class _Study(Planned):
    found: Measured
    seed: int

    @cached_property
    def place(self) -> dict[str, int]:
        """Picture → its place among those that were measured."""
        return {picture: i for i, picture in enumerate(self.found.pictures)}

    @cached_property
    def shown(self) -> dict[str, np.ndarray]:
        """Artist → places of the pictures of its gallery LoRAs."""
        found: dict[str, set[int]] = {}
        for i in self.gallery.tolist():
            row = self.plan[i]
            found.setdefault(row["artist"], set()).update(self.place[picture] for picture in row["pictures"])
        return {artist: np.array(sorted(places)) for artist, places in found.items()}

    def sets(self, row: Mapping[str, Any], size: int | None) -> np.ndarray | None:
        """Sets (draws, size) of a query's pictures; None where it has fewer."""
        own = np.array([self.place[picture] for picture in row["pictures"]])
        if size is None or size == len(own):
            return own[None]
        if size > len(own):
            return None
        if size == 1:
            return own[:, None]
        rng = np.random.Generator(np.random.PCG64(derive_seed("attribution", "sets", self.seed, row["lora"])))
        return np.stack([rng.permutation(own)[:size] for _ in range(DRAWS)])


def ask(
    measured: str | Path, modules: str | Path, plan: pa.Table, *, base: Mapping[str, float] | None, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table "attribution_queries".

    `modules`: Gram matrices of single modules; `base`: module → w, where gradients weigh them. Raises AttributionError
    or GramError for files that are not of this plan.
    """
    study, stack = _opened(measured, modules, plan, seed)
    part = np.zeros(len(study.plan), int)
    if len(set(study.artists)) >= FEWEST_ARTISTS:
        part = halves(study.artists.tolist(), seed=derive_seed("folds", seed))
    answers: list[dict[str, Any]] = []
    for how in (PLAIN, *[GRADIENT] * (base is not None), CONSENSUS):
        answers += _retrieved(study, how, stack, base, np.zeros_like(part), WHOLE)
        if part.any():
            answers += _retrieved(study, how, stack, base, part, WHOLE_UNSEEN)
    if study.found.reference.shape[1] and len(study.gallery) >= scores.FEWEST:
        answers += _alarms(study, stack)
    return answers


def _opened(measured: str | Path, modules: str | Path, plan: pa.Table, seed: int) -> tuple[_Study, np.ndarray]:
    """A study with its products, and the Gram matrices (modules, N, N) of its LoRAs."""
    found, rows = read(measured), plan.to_pylist()
    ids, grams, _ = read_modules(modules)
    for path, have in ((measured, found.loras), (modules, ids)):
        if list(have) != [row["lora"] for row in rows]:
            raise AttributionError(f"{path}: its LoRAs are not those of the plan any more; rerun its stage")
    return _Study(rows, found, seed), stacked_grams(grams["delta"], found.modules)


def prominences(measured: str | Path, modules: str | Path, plan: pa.Table) -> dict[str, dict[str, float]]:
    """Query LoRA → gallery LoRA → how far it stands out (scores.prominence) by all pictures of the query."""
    study, stack = _opened(measured, modules, plan, 0)
    asked = _weighted(study, PLAIN, stack, None, study.gallery)
    among = np.arange(len(study.gallery))
    names = [study.plan[i]["lora"] for i in study.gallery]
    found = {}
    for row in study.queries:
        sets = study.sets(row, None)
        assert sets is not None  # all of its pictures
        centring = BOTH if len(asked.reference) else LORAS
        s = scores.prominence(asked.scored(asked.values[sets].mean(1), among, centring))[0]
        found[row["lora"]] = dict(zip(names, s.tolist(), strict=True))
    return found


def _weighted(study: _Study, how: str, stack: np.ndarray, base, fitted: np.ndarray) -> _Asked:
    """The products of the gallery, modules weighted; `fitted`: LoRAs that a weighting is fitted on."""
    w = module_weights(how, study.found.modules, stack, fitted, base=base)
    gallery = study.gallery
    values, reference = (
        np.tensordot(w, each[:, :, gallery], 1) for each in (study.found.values, study.found.reference)
    )
    return _Asked(values, reference, np.tensordot(w, stack, 1)[np.ix_(gallery, gallery)])


def _retrieved(
    study: _Study, how: str, stack: np.ndarray, base, part: np.ndarray, scenario: str
) -> Iterator[dict[str, Any]]:
    """How well queries of each part (N,) of the LoRAs rank the gallery of that part; what is fitted, on the others."""
    gallery = study.gallery
    part_of = {row["lora"]: p for row, p in zip(study.plan, part.tolist(), strict=True)}
    for p in np.unique(part).tolist():
        fitted = gallery[part[gallery] != p] if part.any() else gallery
        asked = _weighted(study, how, stack, base, fitted)
        among = np.flatnonzero(part[gallery] == p)
        labels = study.artists[gallery][among]
        # Of artists that are ranked in the other half where they are unseen: these may be looked at.
        fitting = set(study.artists[fitted])
        means = [asked.values[places].mean(0) for artist, places in study.shown.items() if artist in fitting]
        shown = np.mean(means, 0)
        centrings = [c for c in CENTRINGS if (c != BOTH or len(asked.reference)) and (c != ARTISTS or len(means) > 1)]
        for row in study.queries:
            if part_of[row["lora"]] != p:
                continue
            relevant = labels == row["artist"]
            for size in (None, *SIZES):
                sets = study.sets(row, size)
                if sets is None:
                    continue
                values = asked.values[sets].mean(1)
                for centring in centrings:
                    D = -asked.scored(values, among, centring, shown)
                    hits = score(D, np.tile(relevant, (len(D), 1)), METRICS, scale=float(np.abs(D).max() or 1.0))
                    for metric in METRICS:
                        yield {
                            "scenario": scenario, "pictures": size, "modules": how, "centring": centring,
                            "metric": metric, "lora": row["lora"], "artist": row["artist"],
                            "value": float(hits[metric].mean()),
                            "chance": chance(metric, int(relevant.sum()), len(relevant)),
                        }  # fmt: skip


def _alarms(study: _Study, stack: np.ndarray) -> Iterator[dict[str, Any]]:
    """How often any LoRA is found at p ≤ ALPHA: with the artist's LoRAs in the gallery, and without them."""
    asked = _weighted(study, PLAIN, stack, None, study.gallery)
    labels = study.artists[study.gallery]
    nulls: dict[tuple[str | None, int], np.ndarray] = {}
    for row in study.queries:
        for scenario, without in ((WHOLE, None), (ABSENT, row["artist"])):
            among = np.flatnonzero(labels != without)
            if len(among) < scores.FEWEST:
                continue

            def scores_of(values: np.ndarray, among: np.ndarray = among) -> np.ndarray:
                return asked.scored(values, among, BOTH)

            for size in (None, *SIZES):
                sets = study.sets(row, size)
                if sets is None:
                    continue
                key = (without, sets.shape[1])
                if key not in nulls:
                    nulls[key] = scores.null(scores_of, asked.reference, sets.shape[1], study.seed)
                best = scores.prominence(scores_of(asked.values[sets].mean(1))).max(1)
                yield {
                    "scenario": scenario, "pictures": size, "modules": PLAIN, "centring": BOTH, "metric": ALARM,
                    "lora": row["lora"], "artist": row["artist"],
                    "value": float((scores.p_values(best, nulls[key]) <= ALPHA).mean()), "chance": ALPHA,
                }  # fmt: skip


def summed(answers: pa.Table, *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "attribution", or of "attribution_ways": means over queries with intervals over artists."""
    frame = answers.to_pandas()
    keys = [name for name in answers.column_names if name not in ("lora", "artist", "value", "chance")]
    rows = []
    for key, group in frame.groupby(keys, sort=False, dropna=False):
        numbers = np.unique(group["artist"], return_inverse=True)[1]
        estimate = intervals.mean(group["value"].to_numpy(float), numbers)
        low, high = estimate.interval(confidence)
        found = dict(zip(keys, key, strict=True))
        found["pictures"] = None if found["pictures"] != found["pictures"] else int(found["pictures"])
        rows.append(
            found
            | {"value": estimate.value, "low": low, "high": high}
            | {"chance": float(group["chance"].mean()), "queries": len(group)}
        )
    return rows
