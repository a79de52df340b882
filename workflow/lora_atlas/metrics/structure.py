"""Structure: how alike two descriptors arrange the same LoRAs, each measure beside its permutation null.

- CKA: linear centred kernel alignment by the unbiased HSIC (Song et al. 2012, J. MLR 13:1393, eq. 5; Nguyen, Raghu &
  Kornblith 2021, eq. 3), zero on average where there is nothing in common. The biased one is not, with few LoRAs.
- RSA: Spearman's correlation of all distances (Kriegeskorte et al. 2008), tested as by Mantel (1967).
- Procrustes: one less the disparity of the best rotation and scale (Schönemann 1966; as scipy.spatial.procrustes).
- mutual kNN: share of the nearest neighbours that two descriptors have in common (Huh et al. 2024, arXiv 2405.07987).

The null deals one side's LoRAs to the other's at random, whole: if two descriptors had nothing to do with each other,
any LoRA could stand for any. What artists give to both descriptors is part of what they have in common, and is left in.
Intervals are delete-one-artist jackknives: a bootstrap would draw artists twice, and copies are neighbours everywhere.

All pairs of descriptors are computed at once. The first three need cross products of few dimensions only; RSA needs
matrices of all distances, and above RSA_WORK numbers it has fewer permutations than the others, never below RSA_LEAST;
p is then of those. After an artist is left out, what stays is ranked anew and neighbours move up: with the ranks and
neighbours of all, intervals of real descriptors came out between 0.4 and 2 times as wide.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from ..seeds import derive_seed
from ..tables import TOGETHER
from . import intervals

METRICS = ("CKA", "RSA", "Procrustes", "mutual kNN")
NEIGHBOURS = 10
FEW = 6  # with fewer than NEIGHBOURS × FEW LoRAs, a sixth of them: most of a small collection is no neighbourhood
RSA_WORK = 2**33  # distances that are moved in all permutations of all descriptors: some minutes of one core
RSA_LEAST = 199
SMALL = 1e-12
ROUNDING = 1e-6  # a permutation that comes as near to the value as this has reached it: RSA is added up in float32
LEAST = 4  # LoRAs: the unbiased HSIC divides by n − 3


def structure(
    embeddings: Mapping[str, pa.Table], *, permutations: int, level: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table "structure" for every pair of descriptors, from their embeddings tables.

    `value` is null where a descriptor has all LoRAs in one place. `null` is the mean of the permutations, `null_high`
    their upper quantile at `level`, and p counts those that reach the value. There is no interval where a measure is
    not defined without one of the artists. Raises ValueError where descriptors are of other LoRAs or artists, or have a
    LoRA twice or vectors that are not finite, and without permutations.
    """
    if permutations < 1:
        raise ValueError(f"structure: at least 1 permutation is needed, not {permutations}")
    names = list(embeddings)
    vectors, artists = _vectors(embeddings)
    n = len(artists)
    spaces = _Spaces(vectors, seed, int(np.bincount(artists).max()))
    values = spaces.measure(np.arange(n))
    rng = np.random.Generator(np.random.PCG64(derive_seed("structure", "permutations", seed)))
    few = max(min(permutations, RSA_WORK // max(len(names) * n * n, 1)), min(permutations, RSA_LEAST))
    nulls: dict[str, list[np.ndarray]] = {metric: [] for metric in METRICS}
    for number in range(permutations):
        found = spaces.measure(rng.permutation(n), METRICS if number < few else [m for m in METRICS if m != "RSA"])
        for metric, matrix in found.items():
            nulls[metric].append(matrix)
    without = [spaces.without(np.flatnonzero(artists == a)) for a in range(artists.max() + 1)]
    rows = []
    for i, left in enumerate(names):
        for j, right in enumerate(names[i + 1 :], i + 1):
            for metric in METRICS:
                value = values[metric][i, j]
                row = {"left": left, "right": right, "metric": metric}
                if not np.isfinite(value):
                    empty = {"value": None, "low": None, "high": None, "null": 0.0, "null_high": 0.0, "p": 1.0}
                    rows.append(row | empty)
                    continue
                null = np.array([matrix[i, j] for matrix in nulls[metric]])
                deleted = np.array([found[metric][i, j] for found in without])
                low = high = None
                if len(deleted) > 1 and np.isfinite(deleted).all():  # too few LoRAs may be left
                    _, low, high = intervals.jackknife(value, deleted, level)
                    high = min(high, 1.0)
                rows.append(
                    row
                    | {"value": float(value), "low": low, "high": high}
                    | {"null": float(null.mean()), "null_high": float(np.quantile(null, level))}
                    | {"p": float((1 + (null >= value - ROUNDING).sum()) / (1 + len(null)))}
                )
    return rows


def _vectors(embeddings: Mapping[str, pa.Table]) -> tuple[list[np.ndarray], np.ndarray]:
    """Vectors (n, k) of each descriptor on all LoRAs together, in one order; and numbers of their artists (n,)."""
    found, first, order, artist_of = [], None, None, {}
    for name, table in embeddings.items():
        rows = [i for i, scenario in enumerate(table["scenario"].to_pylist()) if scenario == TOGETHER]
        loras = [table["lora"][i].as_py() for i in rows]
        place = dict(zip(loras, rows, strict=True))
        if len(place) != len(loras):
            raise ValueError(f"structure: {name!r} has a LoRA twice in scenario together; rerun the embeddings stage")
        theirs = {lora: table["artist"][i].as_py() for lora, i in place.items()}
        if first is None:
            first, order, artist_of = name, loras, theirs
        if set(place) != set(order):
            raise ValueError(f"structure: {first!r} and {name!r} describe other LoRAs; rerun the embeddings stage")
        if theirs != artist_of:
            raise ValueError(f"structure: {first!r} and {name!r} give LoRAs other artists; rerun the embeddings stage")
        column = table["vector"].to_numpy(zero_copy_only=False)
        if len({len(column[i]) for i in rows}) > 1 or not all(np.isfinite(column[i]).all() for i in rows):
            raise ValueError(
                f"structure: {name!r} has vectors of several lengths or that are not finite; rerun the embeddings stage"
            )
        found.append(np.array([column[place[lora]] for lora in order], np.float64))
    if order is None or len(order) < LEAST:
        raise ValueError(f"structure: at least {LEAST} LoRAs are needed, of scenario together")
    return found, np.unique([artist_of[lora] for lora in order], return_inverse=True)[1]


class _Spaces:
    """All descriptors of the same n LoRAs, laid out so that one product serves all pairs.

    `largest`: the most LoRAs that are left out at once.
    """

    def __init__(self, vectors: list[np.ndarray], seed: int, largest: int):
        from scipy.spatial.distance import pdist, squareform
        from scipy.stats import rankdata

        self.widths = [X.shape[1] for X in vectors]
        self.X = np.concatenate(vectors, 1)
        n = len(self.X)
        self.ranks = np.zeros((len(vectors), n, n), np.float32)
        self.upper = np.triu_indices(n, 1)
        self.tied, self.nearest, self.next = [], [], []
        self.k = min(NEIGHBOURS, max(n // FEW, 1))
        for number, X in enumerate(vectors):
            D = pdist(X)
            D = np.round(D / max(D.max(), SMALL), 9)
            ranked = rankdata(D)
            self.tied.append((rankdata(D, "dense") - 1).astype(np.int32))  # equal distances have one number
            self.ranks[number] = squareform(ranked / len(ranked) - (len(ranked) + 1) / 2 / len(ranked))
            # Of equally near LoRAs none is to be preferred for its place in the table, which is the artist's.
            rng = np.random.Generator(np.random.PCG64(derive_seed("structure", "ties", seed, number)))
            far = squareform(D)
            np.fill_diagonal(far, np.inf)
            order = np.lexsort((rng.random((n, n)), far), axis=1)
            self.nearest.append(order[:, : self.k])
            self.next.append(order[:, : min(self.k + largest, n - 1)])
        self.member = np.zeros((len(vectors), n, n), bool)
        for of, near in zip(self.member, self.nearest, strict=True):
            np.put_along_axis(of, near, True, 1)
        flat = self.ranks.reshape(len(vectors), -1)
        self.norms = np.sqrt(np.diag(flat @ flat.T).astype(np.float64))
        self.constant = np.array([np.ptp(X, axis=0).max() < SMALL for X in vectors])

    def measure(self, p: np.ndarray, metrics=METRICS) -> dict[str, np.ndarray]:
        """Metric → values (left, right) of all pairs, the right side's LoRAs in the order `p` (n,)."""
        found = dict(zip(("CKA", "Procrustes"), _aligned(self.X, self.X[p], self.widths), strict=True))
        if "RSA" in metrics:
            moved = self.ranks if (p == np.arange(len(p))).all() else self.ranks.take(p, 1).take(p, 2)
            flat, other = self.ranks.reshape(len(self.ranks), -1), moved.reshape(len(moved), -1)
            with np.errstate(invalid="ignore", divide="ignore"):
                found["RSA"] = (flat @ other.T).astype(np.float64) / np.outer(self.norms, self.norms)
        found["mutual kNN"] = self._shared(p)
        for matrix in found.values():
            matrix[self.constant] = matrix[:, self.constant] = np.nan
        return {metric: found[metric] for metric in metrics}

    def _shared(self, p: np.ndarray) -> np.ndarray:
        n = len(self.nearest[0])
        inverse = np.empty(n, int)
        inverse[p] = np.arange(n)
        found = np.zeros((len(self.nearest),) * 2)
        for j, near in enumerate(self.nearest):
            place = (np.arange(n)[:, None] * n + inverse[near[p]]).ravel()
            for i in range(len(self.nearest)):
                found[i, j] = self.member[i].reshape(-1)[place].mean()
        return found

    def without(self, out: np.ndarray) -> dict[str, np.ndarray]:
        """The measures with the LoRAs `out` left out."""
        n = len(self.X)
        kept = np.setdiff1d(np.arange(n), out)
        if len(kept) < LEAST:
            return {metric: np.full((len(self.widths),) * 2, np.nan) for metric in METRICS}
        found = dict(zip(("CKA", "Procrustes"), _aligned(self.X[kept], self.X[kept], self.widths), strict=True))
        found["RSA"] = self._rsa_without(kept)
        found["mutual kNN"] = self._shared_without(kept)
        for matrix in found.values():
            matrix[self.constant] = matrix[:, self.constant] = np.nan
        return found

    def _rsa_without(self, kept: np.ndarray) -> np.ndarray:
        stays = np.zeros(len(self.X), bool)
        stays[kept] = True
        both = stays[self.upper[0]] & stays[self.upper[1]]
        pairs = int(both.sum())
        ranks = np.zeros((len(self.tied), len(both)), np.float32)
        for row, tied in zip(ranks, self.tied, strict=True):
            counts = np.bincount(tied[both], minlength=int(tied.max()) + 1)
            middle = np.cumsum(counts) - (counts - 1) / 2 - (pairs + 1) / 2
            row[both] = (middle / pairs).astype(np.float32)[tied[both]]
        products = (ranks @ ranks.T).astype(np.float64)
        spread = np.sqrt(np.diag(products))
        with np.errstate(invalid="ignore", divide="ignore"):
            return products / np.outer(spread, spread)

    def _shared_without(self, kept: np.ndarray) -> np.ndarray:
        n, D = len(self.X), len(self.next)
        if len(kept) <= self.k:
            return np.full((D, D), np.nan)
        stays = np.zeros(n, bool)
        stays[kept] = True
        places = []
        for near in self.next:
            left = stays[near[kept]]
            chosen = left & (np.cumsum(left, 1) <= self.k)
            places.append((kept[:, None] * n + near[kept])[chosen])
        found = np.ones((D, D))
        member = np.zeros(n * n, bool)
        for i in range(D):
            member[places[i]] = True
            for j in range(i + 1, D):
                found[i, j] = found[j, i] = member[places[j]].mean()
            member[places[i]] = False
        return found


def _aligned(X: np.ndarray, Y: np.ndarray, widths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Debiased CKA and Procrustes similarity (left, right) of all pairs of blocks of X and Y (n, Σ widths)."""
    n, D = len(X), len(widths)
    ends = np.cumsum([0, *widths])
    blocks = [slice(a, b) for a, b in pairwise(ends)]
    X, Y = X - X.mean(0), Y - Y.mean(0)
    cross = X.T @ Y
    member = np.zeros((len(cross), D))
    for number, block in enumerate(blocks):
        member[block, number] = 1
    # Of K = XXᵀ without its diagonal d: ⟨K, L⟩ = ‖XᵀY‖² − dₓ·d_y, K1 = −d and 1ᵀK1 = −Σd, since X is centred.
    dx, dy = np.square(X) @ member, np.square(Y) @ member

    def hsic(squares: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        inner = a.T @ b
        together = squares - inner + np.outer(a.sum(0), b.sum(0)) / ((n - 1) * (n - 2)) - 2 / (n - 2) * inner
        return together / (n * (n - 3))

    squares = member.T @ np.square(cross) @ member
    of_x = [np.square(X[:, b].T @ X[:, b]).sum() for b in blocks]
    own_x = np.diag(hsic(np.diag(of_x), dx, dx))
    own_y = own_x  # Y is X in another order
    with np.errstate(invalid="ignore", divide="ignore"):
        cka = hsic(squares, dx, dy) / np.sqrt(np.outer(own_x, own_y).clip(0))
        lengths = np.sqrt(dx.sum(0))
        widest = max(widths)
        padded = np.zeros((D, D, widest, widest))
        for i, a in enumerate(blocks):
            for j, b in enumerate(blocks):
                padded[i, j, : widths[i], : widths[j]] = cross[a, b]
        nuclear = np.linalg.svd(padded, compute_uv=False).sum(-1)
        return cka, np.square(nuclear / np.outer(lengths, lengths))
