"""The grid: every descriptor under the same settings, so that none has an advantage of budget.

All descriptors are given the same numbers of dimensions, the same whitenings, calibrations and distances, and the rows
"whole", without any basis; only a descriptor with fewer directions than asked for has fewer rows. Each row is retrieval
of known artists under one setting. "default" is the study's own setting; "best" is the highest mAP of a descriptor.
Best is chosen on the very queries that it is scored on: it is optimistic, its interval too, and it says what a
descriptor could give to one who tunes it, not what it gives.

Whitening ``full`` divides each component of the calibrated vectors by its standard deviation over the gallery; a
component without any stays as it is. Without it the first components, which hold most of the variance, weigh most.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..embeddings.components import AlikeError, ladder, widest
from ..sections import Embedding
from ..seeds import derive_seed
from ..views import NO_BASIS, View
from . import intervals
from .questions import Questions, questions, stored
from .ranking import DISTANCES

WIDEST = 128  # of the common ladder: the drift of n LoRAs costs n products with bases twice as wide


def whiten(vectors: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Vectors (N, k), each component over its standard deviation in the gallery; where that is zero, as it is."""
    spread = vectors[gallery].std(0)
    flat = spread <= 1e-12 * max(spread.max(), 1e-300)
    return vectors / np.where(flat, 1.0, spread)


def steps(gallery: int, default: int, folds: int) -> list[int]:
    """Numbers of dimensions that every descriptor is given: powers of two that the gallery allows, and the default."""
    most = widest(gallery, folds)
    powers = [2**i for i in range(1, WIDEST.bit_length()) if 2**i <= min(most, WIDEST)]
    return sorted({*powers, min(default, most)})


def grid(
    grams: Mapping[str, np.ndarray],
    plan: pa.Table,
    embedding: Embedding,
    *,
    view: View,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "grid": mAP of each descriptor × dimensions × whitening × calibration × distance.

    `grams`: descriptor → Gram matrix (N, N), scaled, of the LoRAs of `plan` in its order; `embedding`: the study's
    `dimensions`, `calibrations`, `calibration` and `folds`. A descriptor of fewer directions than are asked for has
    rows once at as many as it has. Folds and ties are those of the embeddings and of the table "retrieval", so the
    default row, that of the headline `view`, is the headline. Raises ValueError naming a descriptor that cannot be
    embedded; one whose gallery is all alike has a row of chance.

    "best" is the first of the highest mAP in the order of the rows, and optimistic: it is chosen on the same queries.
    """
    asked = questions(plan, seed)
    dimensions = steps(int(asked.gallery.sum()), embedding.dimensions, embedding.folds)
    default = min(embedding.dimensions, dimensions[-1])
    found = []
    for descriptor, K in grams.items():
        rows, done, at_default = [], 0, default
        rungs = ladder(
            K, asked.gallery, dimensions, embedding.calibrations,
            folds=embedding.folds, seed=derive_seed("folds", seed),
        )  # fmt: skip
        try:
            for wanted, calibrated in zip(dimensions, rungs, strict=True):
                k = next(iter(calibrated.values())).shape[1]
                if k > done:
                    rows += _rung(descriptor, calibrated, asked, confidence)
                if wanted == default:
                    at_default = k
                done = k
            directly = K
        except AlikeError:
            directly = np.zeros_like(K)
        except ValueError as error:
            raise ValueError(f"{descriptor}: {error}") from error
        for distance in DISTANCES:
            scores = asked.from_products(directly, distance)["mAP"] if len(asked.rows) else None
            rows.append(
                _row(descriptor, len(K), distance, scores, asked, confidence, whitening="none", calibration=NO_BASIS)
            )
        whole = (len(K), "none", NO_BASIS, view.distance)
        components = (at_default, "none", view.calibration, view.distance)
        # One that cannot distinguish the gallery's LoRAs has no components: it is at chance under every view.
        alike = directly is not K
        _remark(rows, whole if view.basis == NO_BASIS or alike else components)
        found += rows
    return found


def _rung(
    descriptor: str, calibrated: Mapping[str, np.ndarray], asked: Questions, confidence: float
) -> list[dict[str, Any]]:
    plain = {name: stored(vectors) for name, vectors in calibrated.items()}
    whitenings = {"none": plain, "full": {name: whiten(vectors, asked.gallery) for name, vectors in plain.items()}}
    return [
        _row(
            descriptor,
            vectors.shape[1],
            distance,
            asked.precision(vectors, distance) if len(asked.rows) else None,
            asked,
            confidence,
            whitening=whitening,
            calibration=calibration,
        )
        for whitening, spaces in whitenings.items()
        for calibration, vectors in spaces.items()
        for distance in DISTANCES
    ]


def _row(
    descriptor: str,
    dimensions: int,
    distance: str,
    scores: np.ndarray | None,
    asked: Questions,
    confidence: float,
    *,
    whitening: str,
    calibration: str,
) -> dict[str, Any]:
    value = low = high = None
    if scores is not None:
        estimate = intervals.mean(scores, asked.artists)
        value, (low, high) = estimate.value, estimate.interval(confidence)
    return {
        "descriptor": descriptor,
        "dimensions": dimensions,
        "whitening": whitening,
        "calibration": calibration,
        "distance": distance,
        "metric": "mAP",
        "value": value,
        "low": low,
        "high": high,
        "chance": asked.chance,
        "remark": None,
    }


def _remark(rows: Sequence[dict[str, Any]], default: tuple[int, str, str, str]) -> None:
    """Mark the default setting, and the best one where anything was asked."""
    for row in rows:
        if (row["dimensions"], row["whitening"], row["calibration"], row["distance"]) == default:
            row["remark"] = "default"
    if rows and rows[0]["value"] is not None:
        best = max(rows, key=lambda row: row["value"])
        best["remark"] = "default, best" if best["remark"] else "best"
