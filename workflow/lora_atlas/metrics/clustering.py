"""Clustering: does a descriptor, told nothing, fall into artists and into genres?

Clusters are found once, on all LoRAs together (no LoRA is unseen, so there is no drift to correct), on principal
components and without any basis (column `scenario`): by k-means and
Ward's method with the true number of groups and with an estimated one, and by HDBSCAN, which finds its own. Level
"artist in genre" clusters each genre's LoRAs apart, into its artists: it asks for the hand within the school.

Algorithm "labels" needs no clusters: the silhouette of the true groups, leave-one-out nearest neighbours (1-NN; 5-NN by
majority, ties shared), and a linear probe (logistic regression): for artists fitted on gallery LoRAs and asked about
query LoRAs, whose pictures it never saw; for genres fitted on other artists than those that it is asked about.

Intervals are over artists (intervals.py), all by leaving one artist out. Chance is the mean over random permutations of
the LoRAs' artists, and of the artists' genres, since a genre belongs to an artist; for the same reason an artist's own
LoRAs are no neighbours at genre level. Differences of descriptors are paired: the same artist is left out of both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ..seeds import derive_seed
from ..tables import KNOWN, TOGETHER, WHOLE
from . import BEST_CONTROL, intervals
from .labels import majority, nearest, probe
from .partitions import ALGORITHMS, METRICS, Crossed, Points, estimated_groups, hdbscan, silhouette

AMI_PERMUTATIONS = 100
SILHOUETTES = 20  # permutations behind the chance of a silhouette
WITHIN = "artist in genre"
NEIGHBOURS = 5
FOLDS = 5  # of the probe for genres
COMPARED = {("Ward", "ARI"), ("k-means", "ARI"), ("labels", "1-NN")}  # at artist level


@dataclass(frozen=True)
class Row:
    """A row of the table, and what its differences are made of: the values without each artist."""

    level: str
    algorithm: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    without: np.ndarray | None = None
    scenario: str = TOGETHER

    def told(self, descriptor: str) -> dict[str, Any]:
        names = ("scenario", "level", "algorithm", "metric", "value", "low", "high", "chance")
        values = {name: getattr(self, name) for name in names}
        return {"descriptor": descriptor} | {
            name: value if value is None or isinstance(value, str) else float(value) for name, value in values.items()
        }


@dataclass(frozen=True)
class _Setting:
    confidence: float
    restarts: int
    permutations: int
    seed: int
    calibration: str | None = None

    def rng(self, *what: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(derive_seed("clustering", *what, self.seed)))


@dataclass(frozen=True)
class _Space:
    """LoRAs of one scenario: vectors (n, k), artists (n,), genres (n,) or None, splits."""

    points: Points
    artists: np.ndarray
    genres: np.ndarray | None
    gallery: np.ndarray

    @property
    def X(self) -> np.ndarray:
        return self.points.X

    @property
    def D(self) -> np.ndarray:
        """(n, n)."""
        return self.points.distances


def clustering(
    embeddings: pa.Table,
    descriptor: str,
    *,
    confidence: float,
    restarts: int,
    permutations: int,
    seed: int,
    calibration: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table "clustering" for one descriptor's embeddings table.

    `calibration`: of the vectors that the probe for artists is asked about; None, or none of them: those of all
    together. Raises ValueError where the table has no rows of the scenario together.
    """
    setting = _Setting(confidence, restarts, permutations, seed, calibration)
    return [row.told(descriptor) for row in _measure(embeddings, descriptor, setting)]


def clusterings(
    embeddings: Mapping[str, pa.Table],
    kinds: Mapping[str, str],
    *,
    confidence: float,
    restarts: int,
    permutations: int,
    seed: int,
    calibration: str | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table "clustering" for all descriptors, and of "differences" for every pair of those in `kinds`.

    Raises ValueError for descriptors of `kinds` that have no embeddings, or other artists than the first has.
    """
    _check_paired(embeddings, kinds)
    setting = _Setting(confidence, restarts, permutations, seed, calibration)
    measured = {name: list(_measure(table, name, setting)) for name, table in embeddings.items()}
    rows = [row.told(name) for name, found in measured.items() for row in found]
    return rows, list(_differences({name: measured[name] for name in kinds}, kinds, confidence))


def _check_paired(embeddings: Mapping[str, pa.Table], kinds: Mapping[str, str]) -> None:
    """Artists are paired by their place in the order of names: others would be paired without a word."""
    first = None
    for name in kinds:
        if name not in embeddings:
            raise ValueError(
                f"{name}: to be compared, but no embeddings are given; give them, or leave it out of kinds"
            )
        together = pa.array(np.array(embeddings[name]["scenario"].to_pylist(), object) == TOGETHER)
        artists = set(embeddings[name].filter(together)["artist"].to_pylist())
        first = first or (name, artists)
        if artists != first[1]:
            raise ValueError(
                f"{name}: expected the artists of {first[0]}, with which it is compared artist by artist; "
                f"not in both are {sorted(artists ^ first[1])}; rerun its embeddings"
            )


def _differences(measured: Mapping[str, Sequence[Row]], kinds: Mapping[str, str], confidence: float) -> Iterator[dict]:
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for name, rows in measured.items():
        for row in rows:
            if row.level == "artist" and (row.algorithm, row.metric) in COMPARED:
                found.setdefault((row.scenario, row.algorithm, row.metric), {})[name] = row
    for (scenario, algorithm, metric), compared in found.items():
        names = list(compared)
        controls = [name for name in names if kinds[name] == "control"]

        def difference(left: str, right: str, compared: dict[str, Row] = compared) -> intervals.Estimate:
            here, there = compared[left], compared[right]
            assert here.without is not None and there.without is not None  # all of COMPARED leave artists out
            return intervals.jackknife(here.value - there.value, here.without - there.without, intervals.DIFFERENCE)

        about = {"scenario": scenario, "level": "artist", "algorithm": algorithm, "metric": metric}
        for i, left in enumerate(names):
            for right in names[i + 1 :]:
                estimate = difference(left, right)
                low, high = estimate.interval(confidence)
                yield about | {"left": left, "right": right, "value": estimate.value, "low": low, "high": high}
        for left in names:
            if controls and left not in controls:
                value, low, high, *_ = intervals.against_best([difference(left, name) for name in controls], confidence)
                yield about | {"left": left, "right": BEST_CONTROL, "value": value, "low": low, "high": high}


def _measure(embeddings: pa.Table, descriptor: str, setting: _Setting) -> Iterator[Row]:
    for scenario, known in ((TOGETHER, (KNOWN, setting.calibration)), (WHOLE, (WHOLE, None))):
        space = _space(embeddings, scenario, None)
        if space is not None:
            queried = space if known[1] is None and scenario == TOGETHER else _space(embeddings, *known) or space
            yield from (replace(row, scenario=scenario) for row in _measured(space, queried, setting))
        elif scenario == TOGETHER:
            raise ValueError(f"{descriptor}: no embeddings of scenario {TOGETHER!r}")


def _measured(space: _Space, queried: _Space, setting: _Setting) -> Iterator[Row]:
    """Rows of one space of all LoRAs; the probe for artists is asked about those of `queried`."""
    if len(space.X) < 3:  # no two artists of whom one has two LoRAs
        return
    found, groups = hdbscan(space.X) if len(space.X) > 3 else None, estimated_groups(space.points)
    for name, labels in (("artist", space.artists), ("genre", space.genres)):
        if labels is None or not 1 < len(set(labels)) < len(labels):
            continue
        shuffled = _shuffled(name, labels, space.artists, setting)
        partitions = {}
        for algorithm, cluster in ALGORITHMS.items():
            seed = derive_seed("clustering", algorithm, setting.seed)
            partitions[algorithm] = cluster(space.points, labels.max() + 1, setting.restarts, seed)
            partitions[f"{algorithm}, K estimated"] = cluster(space.points, groups, setting.restarts, seed)
        if found is not None:
            partitions["HDBSCAN"] = found
        for algorithm, clusters in partitions.items():
            yield from _agreement(name, algorithm, labels, clusters, shuffled, space, setting)
        yield from _neighbours(name, labels, shuffled, space, setting)
        yield from _probe(name, queried if name == "artist" else space, setting)
    yield from _within(space, setting)


def _space(embeddings: pa.Table, scenario: str, calibration: str | None) -> _Space | None:
    chosen = np.array(embeddings["scenario"].to_pylist(), object) == scenario
    if calibration is not None:
        chosen &= np.array(embeddings["calibration"].to_pylist(), object) == calibration
    if not chosen.any():
        return None
    part = embeddings.filter(pa.array(chosen))
    X = np.stack(part["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)
    artists = np.unique(part["artist"].to_pylist(), return_inverse=True)[1]
    genres = part["genre"].to_pylist()
    return _Space(
        Points(X),
        artists,
        None if None in genres else np.unique(genres, return_inverse=True)[1],
        np.array(part["split"].to_pylist()) == "gallery",
    )


def _shuffled(name: str, labels: np.ndarray, artists: np.ndarray, setting: _Setting) -> np.ndarray:
    """Label permutations (permutations, n)."""
    rng = setting.rng("permutations", name)
    if name == "genre":  # genres belong to artists: the genres of artists are permuted
        of_artist = labels[np.unique(artists, return_index=True)[1]]
        return np.stack([rng.permutation(of_artist)[artists] for _ in range(setting.permutations)])
    return np.stack([rng.permutation(labels) for _ in range(setting.permutations)])


def _agreement(
    name: str, algorithm: str, labels: np.ndarray, clusters: np.ndarray, shuffled: np.ndarray, space: _Space, setting
) -> Iterator[Row]:
    """Scores of one partition against the true groups."""
    sizes = labels.max() + 1, clusters.max() + 1
    others = np.arange(space.artists.max() + 1)[:, None] != space.artists
    without = Crossed.of_labels(labels, clusters, *sizes, others).agreements()
    chances = Crossed.of_labels(shuffled, clusters, *sizes).agreements(AMI_PERMUTATIONS)
    for metric, (value,) in Crossed.of_labels(labels, clusters, *sizes).agreements().items():
        estimate = intervals.jackknife(value, without[metric], intervals.DIFFERENCE)
        interval = estimate.interval(setting.confidence)
        chance = chances[metric].mean()
        yield Row(name, algorithm, metric, estimate.value, *interval, chance, without=without[metric])
    yield _mean(name, algorithm, "silhouette", silhouette(space.D, clusters), None, space, setting)
    if algorithm.endswith("estimated") or algorithm == "HDBSCAN":
        yield Row(name, algorithm, "K", float(sizes[1]))


def _neighbours(name: str, labels: np.ndarray, shuffled: np.ndarray, space: _Space, setting) -> Iterator[Row]:
    """What needs no clusters."""
    chance_level = np.mean([silhouette(space.D, each).mean() for each in shuffled[:SILHOUETTES]])
    yield _mean(name, "labels", "silhouette", silhouette(space.D, labels), chance_level, space, setting)
    excluded, permuted = np.arange(len(labels)), labels
    if name == "genre":
        excluded, permuted = space.artists, labels[np.unique(space.artists, return_index=True)[1]]
    yield _mean(name, "labels", "1-NN", *nearest(space.D, labels, excluded, permuted), space, setting)
    voted = majority(space.D, labels, excluded, NEIGHBOURS, shuffled, setting.rng("ties", name))
    if voted is not None:
        yield _mean(name, "labels", f"{NEIGHBOURS}-NN", *voted, space, setting)


def _probe(name: str, space: _Space, setting: _Setting) -> Iterator[Row]:
    if name == "artist":
        labels, splits = space.artists, [(space.gallery, ~space.gallery)]
    else:
        assert space.genres is not None  # who has none is not asked
        labels, order = space.genres, setting.rng("probe").permutation(space.artists.max() + 1)
        parts = [np.isin(space.artists, part) for part in np.array_split(order, min(FOLDS, len(order)))]
        splits = [(~part, part) for part in parts]
    found = probe(space.X, labels, splits)
    if found is not None:
        yield _mean(name, "labels", "linear probe", *found, space, setting)


def _within(space: _Space, setting: _Setting) -> Iterator[Row]:
    """Level "artist in genre": each genre's LoRAs apart; scores are means over genres, weighted by their LoRAs."""
    if space.genres is None or space.genres.max() < 1:
        return
    genres = []
    for genre in range(space.genres.max() + 1):
        rows = np.flatnonzero(space.genres == genre)
        names, labels = np.unique(space.artists[rows], return_inverse=True)
        if 1 < len(names) < len(rows):
            genres.append((rows, names, labels))
    if not genres:
        return
    apart = [Points(space.X[rows]) for rows, _, _ in genres]
    for algorithm, cluster in ALGORITHMS.items():
        seed = derive_seed("clustering", algorithm, setting.seed)
        clusters = [
            cluster(points, len(names), setting.restarts, seed)
            for points, (_, names, _) in zip(apart, genres, strict=True)
        ]
        found = [(labels, each, len(names)) for (_, names, labels), each in zip(genres, clusters, strict=True)]
        rng = setting.rng("permutations", WITHIN)
        permuted = [
            Crossed.of_labels(np.stack([rng.permutation(labels) for _ in range(setting.permutations)]), each, K, K)
            for labels, each, K in found
        ]
        crossed = [Crossed.of_labels(labels, each, K, K) for labels, each, K in found]
        left = [Crossed.of_labels(labels, each, K, K, np.arange(K)[:, None] != labels) for labels, each, K in found]
        sizes = np.array([len(rows) for rows, _, _ in genres], float)
        for metric, function in METRICS.items():
            values = np.array([function(each)[0] for each in crossed])
            left_out = []
            for i, (_, names, _) in enumerate(genres):
                rest = function(left[i])
                for a in range(len(names)):
                    now, weights = values.copy(), sizes.copy()
                    weights[i] -= crossed[i].classes[0, a]
                    if len(names) > 2:
                        now[i] = rest[a]
                    else:  # one artist is left, and nothing to distinguish
                        weights[i] = 0
                    left_out.append((now @ weights) / weights.sum() if weights.sum() else np.nan)
            deleted = np.array(left_out)[np.isfinite(left_out)]
            value = float(values @ sizes / sizes.sum())
            chance = np.array([function(each)[:AMI_PERMUTATIONS].mean() for each in permuted]) @ sizes / sizes.sum()
            low = high = None
            if len(deleted) > 1:
                low, high = intervals.jackknife(value, deleted, intervals.DIFFERENCE).interval(setting.confidence)
            yield Row(WITHIN, algorithm, metric, value, low, high, chance)
    hit, chance_level = np.full(len(space.X), np.nan), []
    for rows, _, labels in genres:
        hit[rows], each = nearest(space.D[np.ix_(rows, rows)], labels, np.arange(len(rows)), labels)
        chance_level += [each] * len(rows)
    yield _mean(WITHIN, "labels", "1-NN", hit, float(np.mean(chance_level)), space, setting)


def _mean(
    name: str, algorithm: str, metric: str, values: np.ndarray, chance: float | None, space: _Space, setting: _Setting
) -> Row:
    """The mean over LoRAs that have a value, and the same without each artist."""
    asked = np.isfinite(values)
    bounds = intervals.DIFFERENCE if metric == "silhouette" else intervals.SCORE
    sums = np.bincount(space.artists[asked], values[asked], space.artists.max() + 1)
    counts = np.bincount(space.artists[asked], minlength=len(sums))
    value, rest = sums.sum() / counts.sum(), counts.sum() - counts
    without = np.divide(sums.sum() - sums, rest, out=np.full(len(sums), value), where=rest > 0)
    low, high = intervals.mean(values[asked], space.artists[asked], bounds).interval(setting.confidence)
    return Row(name, algorithm, metric, value, low, high, chance, without=without)
