"""Margins: what a score is beside other scores, and beside what permuted labels would give.

A difference of two descriptors is computed query by query, with an interval over artists (intervals.py), so what is
common to them (a hard artist, a few pictures) cancels. A descriptor's headline is its margin over the best control; no
control is chosen for the best, since a maximum that was chosen would flatter one side of the interval: the margin is
above zero where the descriptor is better than each control (intervals.against_best).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..seeds import derive_seed
from ..views import View
from . import BEST_CONTROL, intervals
from .ranking import DISTANCES, chance, nearby, scale_of, scored
from .retrieval import spaces


def differences(queries: pa.Table, kinds: Mapping[str, str], view: View, *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "differences": every pair of descriptors of `kinds` (name → what it looks at), left − right.

    `queries`: the table of that name; compared is what the study's headline `view` compares, known artists and unseen,
    at every level and metric that it holds. Raises ValueError where two descriptors were asked different queries.
    """
    found = []
    for (scenario, name, metric), table in matrices(queries, kinds, view).items():
        place = {descriptor: i for i, descriptor in enumerate(table.descriptors)}
        controls = [i for descriptor, i in place.items() if kinds[descriptor] == "control"]

        def difference(i: int, j: int, table=table) -> intervals.Estimate:
            return intervals.mean(table.scores[i] - table.scores[j], table.of, intervals.DIFFERENCE)

        row = {"scenario": scenario, "level": name, "algorithm": None, "metric": metric}
        for left, i in place.items():
            for right, j in place.items():
                if i < j:
                    estimate = difference(i, j)
                    low, high = estimate.interval(confidence)
                    found.append(
                        row | {"left": left, "right": right, "value": estimate.value, "low": low, "high": high}
                    )
        for left, i in place.items():
            if controls and i not in controls:
                value, low, high, *_ = intervals.against_best([difference(i, j) for j in controls], confidence)
                found.append(row | {"left": left, "right": BEST_CONTROL, "value": value, "low": low, "high": high})
    return found


@dataclass(frozen=True)
class Matrix:
    """Scores (descriptors, queries) of one scenario, level and metric; `of` (queries,) numbers their `artists`."""

    descriptors: list[str]
    artists: list[str]
    of: np.ndarray
    scores: np.ndarray


def matrices(queries: pa.Table, kinds: Mapping[str, str], view: View) -> dict[tuple[str, str, str], Matrix]:
    """(scenario, confidence, metric) → scores of all descriptors of `kinds` under a view, query by query."""
    frame = viewed(queries.to_pandas(), view)
    frame = frame[frame["descriptor"].isin(list(kinds))]
    found = {}
    for key, part in frame.groupby(["scenario", "level", "metric"], sort=False):
        wide = part.pivot(index="descriptor", columns="lora", values="value")
        missing = sorted(wide.index[wide.isna().any(axis=1)])
        if missing:
            raise ValueError(f"queries: {missing} were not asked all queries of {key}; rerun the retrieval stage")
        artist_of = dict(zip(part["lora"], part["artist"], strict=True))
        artists, of = np.unique([artist_of[lora] for lora in wide.columns], return_inverse=True)
        order = [descriptor for descriptor in kinds if descriptor in wide.index]
        found[key] = Matrix(order, list(artists), of, wide.loc[order].to_numpy(float))
    return found


def viewed(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    """Rows of the table "queries" (or "retrieval") that a view looks at: of known artists, and of unseen ones."""
    return frame[view.rows(frame) | view.rows(frame, unseen=True)]


def permuted(
    embeddings: Mapping[str, pa.Table], view: View, *, permutations: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table "controls": mAP where the gallery's artists are permuted among its LoRAs.

    `value` is the mean over permutations, `low` and `high` hold `confidence` of them; `expected` is chance in closed
    form, which the mean must meet; `p` is how often a permutation does as well as the labels that are true. Known
    artists, under the study's headline view. One set of permutations serves all descriptors.
    """
    found = []
    for descriptor, table in embeddings.items():
        for scenario, used, space in spaces(table):
            if (scenario, used) != view.known:
                continue
            queries, gallery = (space.of(np.flatnonzero(space.columns["split"] == s)) for s in ("query", "gallery"))
            asked = np.isin(queries.columns["artist"].astype(str), gallery.columns["artist"].astype(str))
            queries = queries.of(np.flatnonzero(asked))
            D = DISTANCES[view.distance](queries.vectors, gallery.vectors)
            scale = scale_of(view.distance, queries.vectors, gallery.vectors)
            seeds = [derive_seed("retrieval", "ties", seed, lora) for lora in queries.columns["lora"]]

            own, labels = queries.columns["artist"].astype(str), gallery.columns["artist"].astype(str)
            numbers = np.unique(np.concatenate([own, labels]), return_inverse=True)[1]
            asking, known = numbers[: len(own), None], numbers[len(own) :]
            # Other labels do not change who is near: everybody is ranked once.
            order = np.argsort(D, 1, kind="stable")
            near = nearby(np.take_along_axis(D, order, 1), scale)

            def mean(known: np.ndarray, asking=asking, order=order, near=near, seeds=seeds) -> float:
                return float(scored(known[order] == asking, near, seeds=seeds)["mAP"].mean())

            rng = np.random.Generator(np.random.PCG64(derive_seed("margins", "permutations", seed)))
            spread = np.array([mean(known[rng.permutation(len(known))]) for _ in range(permutations)])
            observed = mean(known)
            low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
            sizes = [(labels == artist).sum() for artist in own]
            found.append(
                {
                    "control": "permuted labels",
                    "descriptor": descriptor,
                    "level": "artist",
                    "metric": "mAP",
                    "value": float(spread.mean()),
                    "low": low,
                    "high": high,
                    "expected": float(np.mean([chance("mAP", int(R), len(labels)) for R in sizes])),
                    "observed": observed,
                    "p": float((1 + (spread >= observed - 1e-12).sum()) / (1 + permutations)),
                }
            )
    return found
