"""What the tables of a study and of its replicates say together.

Scores of queries are pooled over seeds and artists, both resampled (intervals.crossed): seeds have the same artists
with other pictures and other LoRAs. Everything else (clusters, structure, ablation) is the mean over seeds with an
interval from the lowest low to the highest high: wide, and never too narrow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import tables
from ..metrics import BEST_CONTROL, intervals
from ..tables import KNOWN


def two(value: float) -> str:
    """Two decimals; no minus before nothing."""
    return f"{round(value, 2) + 0.0:.2f}"


@dataclass(frozen=True)
class Score:
    """A value with its interval, and what chance would give; `n` is the number of seeds behind it."""

    value: float
    low: float
    high: float
    chance: float | None = None
    n: int = 1

    def __str__(self) -> str:
        return f"{two(self.value)} ({two(self.low)} to {two(self.high)})"


@dataclass(frozen=True)
class Study:
    """One folder of results."""

    folder: Path

    def frame(self, name: str, schema: str | None = None) -> pd.DataFrame:
        """A table as a data frame; raises TableError where it is absent."""
        return self.table(name, schema).to_pandas()

    def table(self, name: str, schema: str | None = None) -> Any:
        return tables.read(self.folder / "tables" / f"{name}.parquet", schema or name)

    def has(self, name: str) -> bool:
        return (self.folder / "tables" / f"{name}.parquet").is_file()


@dataclass(frozen=True)
class Evidence:
    """A study, its replicates, and its variants (name → keys that differ, and the folder)."""

    study: Study
    replicates: Sequence[Study]
    variants: Mapping[str, tuple[Mapping[str, Any], Study]]
    bootstrap: int
    level: float
    seed: int

    @property
    def seeds(self) -> list[Study]:
        return [self.study, *self.replicates]

    @property
    def told(self) -> Mapping[str, Any]:
        """Kinds of descriptors, and the headline calibration."""
        return tables.metadata(self.study.table("retrieval"))

    @property
    def kinds(self) -> dict[str, str]:
        return self.told["kinds"]

    @property
    def calibration(self) -> str:
        return self.told["calibration"]

    def of_kind(self, *kinds: str) -> list[str]:
        return [descriptor for descriptor, kind in self.kinds.items() if kind in kinds]


def gather(
    folder: str | Path, replicates: Sequence[str], variants: Mapping[str, Mapping[str, Any]], evaluation, seed: int
) -> Evidence:
    """The evidence in a study's folder; `variants`: name → keys that differ."""
    folder = Path(folder)
    return Evidence(
        Study(folder),
        [Study(folder / "variants" / name) for name in replicates],
        {name: (changed, Study(folder / "variants" / name)) for name, changed in variants.items()},
        evaluation["bootstrap"],
        evaluation["level"],
        seed,
    )


@dataclass(frozen=True)
class Pooled:
    """Scores of descriptors over seeds and artists: values (d,), resamplings (d, bootstrap), chances (d,)."""

    descriptors: list[str]
    values: np.ndarray
    spread: np.ndarray
    chances: np.ndarray
    seeds: int
    level: float
    controls: list[int]

    def score(self, descriptor: str) -> Score:
        i = self.descriptors.index(descriptor)
        return self._score(self.values[i], self.spread[i], float(self.chances[i]))

    def difference(self, left: str, right: str) -> Score:
        """left − right on the same seeds and artists; `right` may be "best control", chosen in every resampling."""
        i = self.descriptors.index(left)
        if right == BEST_CONTROL:
            return self._score(
                self.values[i] - self.values[self.controls].max(), self.spread[i] - self.spread[self.controls].max(0)
            )
        j = self.descriptors.index(right)
        return self._score(self.values[i] - self.values[j], self.spread[i] - self.spread[j])

    def best(self, descriptors: Iterable[str]) -> str:
        return max(descriptors, key=lambda descriptor: self.values[self.descriptors.index(descriptor)])

    def _score(self, value: float, spread: np.ndarray, chance: float | None = None) -> Score:
        return Score(*intervals.percentiles(float(value), spread, self.level), chance, self.seeds)


def pooled(
    evidence: Evidence,
    studies: Sequence[Study] | None = None,
    *,
    scenario: str = KNOWN,
    level: str = "artist",
    metric: str = "mAP",
    distance: str = "L2",
) -> Pooled:
    """Scores of every descriptor that all the studies (None: the study and its replicates) were asked."""
    studies = evidence.seeds if studies is None else studies
    parts = []
    for number, study in enumerate(studies):
        frame = study.frame("queries")
        chosen = frame[
            (frame["scenario"] == scenario)
            & (frame["level"] == level)
            & (frame["metric"] == metric)
            & (frame["distance"] == distance)
        ]
        parts.append(chosen.assign(study=number))
    frame = pd.concat(parts)
    common = set.intersection(*(set(part["descriptor"]) for part in parts))
    descriptors = [d for d in dict.fromkeys(parts[0]["descriptor"]) if d in common]
    frame = frame[frame["descriptor"].isin(descriptors)]
    wide = frame.pivot_table(index=["descriptor", "study"], columns="artist", values="value", aggfunc="mean")
    cube = np.stack([wide.loc[descriptor].to_numpy(float) for descriptor in descriptors])  # (d, seeds, artists)
    chances = frame.groupby("descriptor")["chance"].mean()
    return Pooled(
        descriptors,
        np.nanmean(cube, (1, 2)),
        intervals.crossed(cube, evidence.bootstrap, evidence.seed),
        chances.loc[descriptors].to_numpy(float),
        len(studies),
        evidence.level,
        [i for i, descriptor in enumerate(descriptors) if evidence.kinds.get(descriptor) == "control"],
    )


def over_seeds(evidence: Evidence, name: str, keys: Sequence[str], schema: str | None = None) -> pd.DataFrame:
    """A table's rows by `keys`: value the mean over seeds, low the lowest, high the highest; other numbers their mean
    but p, of which the largest counts."""
    frames = [study.frame(name, schema) for study in evidence.seeds if study.has(name)]
    frame = pd.concat(frames)
    how = {"low": "min", "high": "max", "p": "max"}
    numbers = [c for c in frame.columns if c not in keys and pd.api.types.is_numeric_dtype(frame[c])]
    grouped = frame.groupby(list(keys), sort=False, dropna=False)
    return grouped.agg({column: how.get(column, "mean") for column in numbers}).reset_index()
