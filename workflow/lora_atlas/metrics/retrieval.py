"""Retrieval: does a query LoRA find the gallery LoRAs of its artist, or of its genre?

Every query ranks the whole gallery of its fold by distance; every query counts, also one without a hit. How rankings
are scored, and what chance gives, is in ranking.py. Intervals are over artists (intervals.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..seeds import derive_seed
from ..tables import TOGETHER
from . import intervals
from .ranking import DISTANCES, METRICS, chance, scale_of, score

KEPT = ("mAP", "R@1")  # metrics of which the score of every query is kept, for differences and for seeds


@dataclass(frozen=True)
class Asked:
    """All queries of one setting. `loras` and `artists` name the queries (q,); metric → scores and chances (q,)."""

    scenario: str
    calibration: str
    distance: str
    level: str
    loras: list[str]
    artists: list[str]
    scores: Mapping[str, np.ndarray]
    chances: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Space:
    """Rows of one scenario and calibration: text columns (n,), folds (n,), vectors (n, k)."""

    columns: Mapping[str, np.ndarray]
    folds: np.ndarray
    vectors: np.ndarray

    def of(self, rows: np.ndarray) -> "_Space":
        return _Space({k: v[rows] for k, v in self.columns.items()}, self.folds[rows], self.vectors[rows])


def spaces(embeddings: pa.Table) -> Iterator[tuple[str, str, _Space]]:
    """Scenario, calibration and rows of each space that retrieval is asked in, in the table's order."""
    columns = {name: np.array(embeddings[name].to_pylist(), object) for name in ("lora", "artist", "genre", "split")}
    scenario, calibration = (np.array(embeddings[name].to_pylist(), object) for name in ("scenario", "calibration"))
    folds = embeddings["fold"].to_numpy()
    vectors = embeddings["vector"].to_numpy(zero_copy_only=False)
    for pair in dict.fromkeys(zip(scenario, calibration, strict=True)):
        if pair[0] == TOGETHER:  # a basis that was fitted on the queries answers no question of retrieval
            continue
        rows = np.flatnonzero((scenario == pair[0]) & (calibration == pair[1]))
        X = np.stack(vectors[rows]).astype(np.float64)
        yield *pair, _Space({name: values[rows] for name, values in columns.items()}, folds[rows], X)


def ask(
    embeddings: pa.Table, descriptor: str, *, metrics: Sequence[str] = tuple(METRICS), seed: int
) -> Iterator[Asked]:
    """Every scenario, calibration, level and distance of one descriptor's embeddings table.

    Queries are rows of split "query", the gallery is split "gallery" of the same fold. A query of which the gallery
    holds nothing relevant cannot be asked and is left out. At genre level the artist's own LoRAs are left out of the
    gallery: what is asked is whether other painters of the genre are near. Raises ValueError for an empty table.
    """
    if not len(embeddings):
        raise ValueError(f"{descriptor}: no embeddings")
    for scenario, calibration, space in spaces(embeddings):
        for level in ("artist", "genre"):
            if any(value is None for value in space.columns[level]):
                continue
            for distance in DISTANCES:
                yield _ask(space, scenario, calibration, distance, level, metrics, seed)


def _ask(space: _Space, scenario: str, calibration: str, distance: str, level: str, metrics, seed: int) -> Asked:
    loras: list[str] = []
    artists: list[str] = []
    scores: dict[str, list[np.ndarray]] = {metric: [np.zeros(0)] for metric in metrics}
    chances: dict[str, list[float]] = {metric: [] for metric in metrics}
    for fold in np.unique(space.folds):
        queries, gallery = (
            space.of(np.flatnonzero((space.folds == fold) & (space.columns["split"] == split)))
            for split in ("query", "gallery")
        )
        if not len(queries.vectors) or not len(gallery.vectors):
            continue
        relevant = queries.columns[level][:, None] == gallery.columns[level][None]
        others = queries.columns["artist"][:, None] != gallery.columns["artist"][None]
        considered = np.ones_like(relevant) if level == "artist" else others
        asked = (relevant & considered).any(1)
        D = DISTANCES[distance](queries.vectors, gallery.vectors)
        found = score(
            D,
            relevant,
            metrics,
            considered=considered,
            scale=scale_of(distance, queries.vectors, gallery.vectors),
            seeds=[derive_seed("retrieval", "ties", seed, lora) for lora in queries.columns["lora"]],
        )
        loras += list(queries.columns["lora"][asked])
        artists += list(queries.columns["artist"][asked])
        sizes = [*zip((relevant & considered)[asked].sum(1), considered[asked].sum(1), strict=True)]
        for metric in metrics:
            scores[metric].append(found[metric][asked])
            chances[metric] += [chance(metric, int(R), int(n)) for R, n in sizes]
    joined = {metric: np.concatenate(parts) for metric, parts in scores.items()}
    expected = {metric: np.array(values) for metric, values in chances.items()}
    return Asked(scenario, calibration, distance, level, loras, artists, joined, expected)


def retrieval(embeddings: pa.Table, descriptor: str, *, confidence: float, seed: int) -> list[dict[str, Any]]:
    """Rows of the table "retrieval" for one descriptor: every scenario, calibration, distance, level and metric.

    `queries` says how many queries were asked.
    """
    return rows(list(ask(embeddings, descriptor, seed=seed)), descriptor, confidence=confidence)


def rows(asked: Sequence[Asked], descriptor: str, *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "retrieval" of what was asked of one descriptor."""
    found = []
    for one in asked:
        numbers = np.unique(np.array(one.artists, str), return_inverse=True)[1]
        for metric, values in one.scores.items():
            value = low = high = None
            if len(values):
                estimate = intervals.mean(values, numbers)
                value, (low, high) = estimate.value, estimate.interval(confidence)
            found.append(
                {
                    "scenario": one.scenario,
                    "descriptor": descriptor,
                    "calibration": one.calibration,
                    "distance": one.distance,
                    "level": one.level,
                    "metric": metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "chance": float(one.chances[metric].mean()) if len(values) else None,
                    "queries": len(values),
                }
            )
    return found


def queries(asked: Sequence[Asked], descriptor: str) -> list[dict[str, Any]]:
    """Rows of the table "queries": each query's scores, in every scenario, calibration and distance."""
    return [
        {
            "scenario": one.scenario,
            "descriptor": descriptor,
            "calibration": one.calibration,
            "distance": one.distance,
            "level": one.level,
            "metric": metric,
            "lora": lora,
            "artist": artist,
            "value": value,
            "chance": expected,
        }
        for one in asked
        for metric in KEPT
        for lora, artist, value, expected in zip(
            one.loras, one.artists, one.scores[metric].tolist(), one.chances[metric].tolist(), strict=True
        )
    ]
