"""Questions: what retrieval asks of the LoRAs of a plan, for tables that ask it again of other vectors.

The grid, the ablation and the worth curve embed LoRAs again and again, and ask each time what the table "retrieval"
asks: the same queries, folds and ties, of vectors rounded as an embeddings table holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..embeddings.components import check_gallery, ladder
from ..sections import Embedding
from ..seeds import derive_seed
from ..views import NO_BASIS, View
from .ranking import DISTANCES, chance, from_products, scale_of, score


@dataclass(frozen=True)
class Questions:
    """Retrieval of known artists: the mask of the gallery (N,), what is relevant (q, n) to the queries that can be
    asked, their rows, the numbers of their artists, the seeds of their ties, and the mean chance of their mAP."""

    gallery: np.ndarray
    rows: np.ndarray
    relevant: np.ndarray
    artists: np.ndarray
    ties: Sequence[int]
    chance: float | None

    def scores(
        self, vectors: np.ndarray, distance: str = "L2", metrics: Sequence[str] = ("mAP",)
    ) -> dict[str, np.ndarray]:
        """Metric → score of each query (q,) by distance of vectors (N, k)."""
        Q, G = vectors[self.rows], vectors[self.gallery]
        D = DISTANCES[distance](Q, G)
        return score(D, self.relevant, metrics, scale=scale_of(distance, Q, G), seeds=self.ties)

    def from_products(self, K: np.ndarray, distance: str, metrics: Sequence[str] = ("mAP",)) -> dict[str, np.ndarray]:
        """The same scores (q,) from inner products K (N, N), without any basis or vectors."""
        squares = np.diag(K)
        of_queries, of_gallery = squares[self.rows], squares[self.gallery]
        D = from_products(distance, K[np.ix_(self.rows, np.flatnonzero(self.gallery))], of_queries, of_gallery)
        scale = float(np.sqrt(max(of_queries.max(), of_gallery.max()))) if distance == "L2" else 1.0
        return score(D, self.relevant, metrics, scale=scale, seeds=self.ties)

    def precision(self, vectors: np.ndarray, distance: str = "L2") -> np.ndarray:
        """Average precision of each query (q,)."""
        return self.scores(vectors, distance)["mAP"]


def questions(plan: pa.Table, seed: int) -> Questions:
    """What retrieval asks of the LoRAs of a plan: each query whose artist is in the gallery, as in retrieval.py."""
    artists, loras = (np.array(plan[name].to_pylist(), str) for name in ("artist", "lora"))
    gallery = np.array(plan["split"].to_pylist(), str) == "gallery"
    rows = np.flatnonzero(~gallery & np.isin(artists, artists[gallery]))
    relevant = artists[rows][:, None] == artists[gallery][None]
    numbers = np.unique(artists[rows], return_inverse=True)[1]
    ties = [derive_seed("retrieval", "ties", seed, lora) for lora in loras[rows].tolist()]
    expected = [chance("mAP", int(R), relevant.shape[1]) for R in relevant.sum(1)]
    return Questions(gallery, rows, relevant, numbers, ties, float(np.mean(expected)) if expected else None)


def stored(vectors: np.ndarray) -> np.ndarray:
    """Vectors as an embeddings table holds them, so that scores here are those of the table "retrieval"."""
    return vectors.astype(np.float32).astype(np.float64)


def under(
    K: np.ndarray,
    asked: Questions,
    view: View,
    embedding: Embedding,
    seed: int,
    metrics: Sequence[str] = ("mAP",),
) -> dict[str, np.ndarray]:
    """Metric → score of each query (q,) by inner products K (N, N) under a view, as the table "retrieval" has them.

    Raises what `ladder` does; AlikeError where the gallery's LoRAs are all alike.
    """
    check_gallery(K, asked.gallery)
    if view.basis == NO_BASIS:
        return asked.from_products(K, view.distance, metrics)
    rungs = ladder(
        K, asked.gallery, [embedding.dimensions], [view.calibration],
        folds=embedding.folds, seed=derive_seed("folds", seed),
    )  # fmt: skip
    return asked.scores(stored(next(rungs)[view.calibration]), view.distance, metrics)
