"""What the tables of a study and of its replicates say together.

Settings are chosen on the study's own seed; where it has replicates (the same study under other seeds), these alone are
the evidence. Scores of queries are pooled over seeds and artists as crossed random factors (intervals.crossed): seeds
have the same artists with other pictures and other LoRAs. Everything else (clusters, ablation) is the mean over seeds
with an interval from the lowest low to the highest high.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import tables
from ..descriptors import CONTROL, Descriptor, restored
from ..metrics import BEST_CONTROL, intervals
from ..metrics.intervals import Estimate
from ..views import View


def two(value: float) -> str:
    """Two decimals; no minus before nothing."""
    return f"{round(value, 2) + 0.0:.2f}"


def row_of(cells: Iterable[Any]) -> str:
    """A line of a table of Markdown."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def p_text(value: float) -> str:
    """A p-value as pages say it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class Score:
    """A value with its interval, and what chance would give; `n` is the number of seeds behind it, `larger` and
    `smaller` the one-sided p-values of being so, than zero for a difference, than chance for a score."""

    value: float
    low: float
    high: float
    chance: float | None = None
    n: int = 1
    larger: float = 1.0
    smaller: float = 1.0

    def __str__(self) -> str:
        return f"{two(self.value)} ({two(self.low)} to {two(self.high)})"


@dataclass(frozen=True)
class Study:
    """One folder of results. Tables are read once. `given`: the files that may be read, None: all that are there. What
    else lies in the folder may be of other settings."""

    folder: Path
    given: frozenset[Path] | None = None
    _read: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def frame(self, name: str, schema: str | None = None) -> pd.DataFrame:
        """A table as a data frame; raises TableError where it is absent."""
        key = f"{name} frame"
        if key not in self._read:
            self._read[key] = self.table(name, schema).to_pandas()
        return self._read[key]

    def table(self, name: str, schema: str | None = None) -> Any:
        if name not in self._read:
            path = self._place(name)
            if not self._may(path):
                raise tables.TableError(f"{path}: read, and none of the job's inputs")
            self._read[name] = tables.read(path, schema or name)
        return self._read[name]

    def has(self, name: str) -> bool:
        path = self._place(name)
        return self._may(path) and path.is_file()

    def plan(self) -> Any:
        """The table "plan"; None of a study that shares another's."""
        path = self.folder / "plan.parquet"
        return tables.read(path, "plan") if self._may(path) and path.is_file() else None

    def _place(self, name: str) -> Path:
        return self.folder / "tables" / f"{name}.parquet"

    def _may(self, path: Path) -> bool:
        return self.given is None or path in self.given


def settings_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant changes of the study's settings: seeds repeat them, and extractors only look."""
    return {key: value for key, value in changes.items() if key != "seed" and not key.startswith("extractors.")}


@dataclass(frozen=True)
class Evidence:
    """A study, its replicates, and its variants (name → keys that differ, and the folder)."""

    study: Study
    replicates: Sequence[Study]
    variants: Mapping[str, tuple[Mapping[str, Any], Study]]
    bootstrap: int
    confidence: float
    seed: int
    _pooled: dict[Any, "Pooled"] = field(default_factory=dict, compare=False, repr=False)

    @property
    def seeds(self) -> list[Study]:
        """The studies that verdicts come from: the replicates, or the study itself where it has none."""
        return list(self.replicates) or [self.study]

    @cached_property
    def told(self) -> Mapping[str, Any]:
        return tables.metadata(self.study.table("retrieval"))

    @property
    def kinds(self) -> dict[str, str]:
        return self.told["kinds"]

    @cached_property
    def described(self) -> dict[str, Descriptor]:
        return restored(self.told["descriptors"])

    @property
    def view(self) -> View:
        """The headline."""
        return View(**self.told["view"])

    def of_kind(self, *kinds: str) -> list[str]:
        return [descriptor for descriptor, kind in self.kinds.items() if kind in kinds]

    def alike(self, **changes: Any) -> list[Study]:
        """The variants that differ from the study in these keys (with dots for __) alone, besides seed and
        extractors."""
        wanted = {key.replace("__", "."): value for key, value in changes.items()}
        return [study for changed, study in self.variants.values() if settings_of(changed) == wanted]


def gather(
    folder: str | Path,
    replicates: Sequence[str],
    variants: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    seed: int,
    given: Iterable[str | Path] | None = None,
) -> Evidence:
    """The evidence in a study's folder; `variants`: name → keys that differ, `given`: the files that may be read."""
    folder = Path(folder)
    may = None if given is None else frozenset(map(Path, given))
    return Evidence(
        Study(folder, may),
        [Study(folder / "variants" / name, may) for name in replicates],
        {name: (changed, Study(folder / "variants" / name, may)) for name, changed in variants.items()},
        evaluation["bootstrap"],
        evaluation["confidence"],
        seed,
    )


@dataclass(frozen=True)
class Pooled:
    """Mean scores of descriptors by seed and artist, cubes (d, seeds, artists), and chances (d,)."""

    descriptors: list[str]
    cube: np.ndarray
    chances: np.ndarray
    confidence: float
    controls: list[str]

    @property
    def seeds(self) -> int:
        return self.cube.shape[1]

    def of(self, descriptor: str) -> np.ndarray:
        return self.cube[self.descriptors.index(descriptor)]

    def score(self, descriptor: str) -> Score:
        chance = float(self.chances[self.descriptors.index(descriptor)])
        return self.scored(intervals.crossed(self.of(descriptor)), chance)

    def scored(self, estimate: Estimate, chance: float | None = None) -> Score:
        """An estimate as a score; its p-values are against `chance`, or against zero."""
        low, high = estimate.interval(self.confidence)
        return Score(estimate.value, low, high, chance, self.seeds, *estimate.p(chance or 0.0))

    def difference(self, left: str, right: str, other: "Pooled | None" = None) -> Score:
        """left − right on the same seeds and artists; `right` may be "best control", and of another view, `other`."""
        if right == BEST_CONTROL:
            each = [self._difference(self.of(left) - self.of(control)) for control in self.controls]
            value, low, high, larger, smaller = intervals.against_best(each, self.confidence)
            return Score(value, low, high, None, self.seeds, larger, smaller)
        return self.scored(self._difference(self.of(left) - (other or self).of(right)))

    def _difference(self, table: np.ndarray) -> Estimate:
        return intervals.crossed(table, intervals.DIFFERENCE)

    def alike(self, other: "Pooled") -> bool:
        """Whether both are of the same seeds and artists."""
        return self.cube.shape[1:] == other.cube.shape[1:]

    def mean(self, descriptor: str) -> float:
        return float(np.nanmean(self.of(descriptor)))

    def best(self, descriptors: Iterable[str]) -> str:
        return max((d for d in descriptors if d in self.descriptors), key=self.mean)


def pooled(
    evidence: Evidence,
    studies: Sequence[Study] | None = None,
    *,
    unseen: bool = False,
    level: str = "artist",
    metric: str = "mAP",
    view: View | None = None,
) -> Pooled:
    """Scores of every descriptor that all the studies (None: those that verdicts come from) were asked, under the
    headline or another view. A page asks the same often: what was pooled is kept with the evidence."""
    studies, view = evidence.seeds if studies is None else studies, view or evidence.view
    key = (tuple(studies), unseen, level, metric, view)
    if key not in evidence._pooled:
        evidence._pooled[key] = _pooled(evidence, *key)
    return evidence._pooled[key]


def _pooled(evidence: Evidence, studies: Sequence[Study], unseen: bool, level: str, metric: str, view: View) -> Pooled:
    parts = []
    for number, study in enumerate(studies):
        frame = study.frame("queries")
        chosen = view.rows(frame, unseen=unseen) & (frame["level"] == level) & (frame["metric"] == metric)
        parts.append(frame[chosen].assign(study=number))
    frame = pd.concat(parts)
    common = set.intersection(*(set(part["descriptor"]) for part in parts))
    descriptors = [d for d in dict.fromkeys(parts[0]["descriptor"]) if d in common]
    frame = frame[frame["descriptor"].isin(descriptors)]
    wide = frame.pivot_table(index=["descriptor", "study"], columns="artist", values="value", aggfunc="mean")
    cube = np.stack([wide.loc[descriptor].to_numpy(float) for descriptor in descriptors])  # (d, seeds, artists)
    chances = frame.groupby("descriptor")["chance"].mean()
    return Pooled(
        descriptors,
        cube,
        chances.loc[descriptors].to_numpy(float),
        evidence.confidence,
        [descriptor for descriptor in descriptors if evidence.kinds.get(descriptor) == CONTROL],
    )


def asked_unseen(evidence: Evidence) -> bool:
    """Whether the study has artists enough to ask about unseen ones."""
    return bool((evidence.study.frame("queries")["scenario"] == evidence.view.unseen[0]).any())


def over_seeds(evidence: Evidence, name: str, keys: Sequence[str], schema: str | None = None) -> pd.DataFrame:
    """A table's rows by `keys`: value the mean over seeds, low the lowest, high the highest; other numbers their mean
    but p, of which the largest counts. What a seed does not say of a row is not said of all: seeds without a single
    error have no law of crowds, and the mean of the others would be that of the worse ones."""
    frames = [study.frame(name, schema) for study in evidence.seeds if study.has(name)]
    frame = pd.concat(frames)
    how = {"low": "min", "high": "max", "p": "max"}
    numbers = [c for c in frame.columns if c not in keys and pd.api.types.is_numeric_dtype(frame[c])]
    grouped = frame.groupby(list(keys), sort=False, dropna=False)
    found = grouped.agg({column: how.get(column, "mean") for column in numbers})
    there = grouped[numbers].count().eq(grouped.size(), axis=0)
    return found.where(there).reset_index()
