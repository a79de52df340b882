"""Structure: how alike two descriptors arrange the same LoRAs, each measure beside its permutation null.

- CKA: linear centred kernel alignment by the unbiased HSIC (Song et al. 2012, J. MLR 13:1393, eq. 5; Nguyen, Raghu &
  Kornblith 2021, eq. 3), zero on average where there is nothing in common. The biased one is not, with few LoRAs.
- RSA: Spearman's correlation of all distances (Kriegeskorte et al. 2008), tested as by Mantel (1967).
- Procrustes: one less the disparity of the best rotation and scale (Schönemann 1966; as scipy.spatial.procrustes).
- mutual kNN: share of the nearest neighbours that two descriptors have in common (Huh et al. 2024, arXiv 2405.07987).

Three levels. "LoRAs": all of them, one side's permuted whole; any LoRA could stand for any, if two descriptors had
nothing to do with each other. LoRAs of an artist are alike in both, so that this p says no more than that both know
artists. "artists": their means, artists permuted: are the same artists near each other? "within artists": each LoRA
less its artist's mean, permuted within the artist (among those of as many pictures, since few pictures make both
descriptors noisier): are two sets of one painter that pictures see apart, apart in the weights too? The last two are
tests that a statistician takes; CKA and RSA are measured there.

Intervals are delete-one-artist jackknives: a bootstrap would draw artists twice, and copies are neighbours everywhere.
Measures look at the headline view's vectors, Procrustes at principal components, since it turns coordinates.

All pairs of descriptors are computed at once. Procrustes needs cross products of few dimensions; CKA and RSA need
matrices of all products and distances, and above RSA_WORK numbers they have fewer permutations than the others, never
below RSA_LEAST; p is then of those. After an artist is left out, what stays is ranked again and neighbours move up:
with the ranks and neighbours of all, intervals of real descriptors came out between 0.4 and 2 times as wide.
"""

from collections.abc import Iterator, Mapping
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
TESTS = 1999  # permutations of artists and within artists: p-values that a correction for many claims can take
PAIRS = 2**12  # pairs of LoRAs that are permuted together: their numbers fit in a core's cache
SMALL = 1e-12
ROUNDING = 1e-6  # a permutation that comes as near to the value as this has reached it: RSA is added up in float32
CANCELLED = 1e-6  # of a sum, what may be left of it by subtraction with ten digits of it still right
LEAST = 4  # LoRAs: the unbiased HSIC divides by n − 3
LORAS, ARTISTS, WITHIN = "LoRAs", "artists", "within artists"
LEVELS = (LORAS, ARTISTS, WITHIN)

Matrices = dict[str, np.ndarray]  # metric → (D, D)
Nulls = dict[str, list[np.ndarray]]  # metric → (D, D) of each permutation


def structure(
    embeddings: Mapping[str, pa.Table],
    sizes: Mapping[str, int],
    *,
    scenario: str,
    permutations: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "structure" for every pair of descriptors, from their embeddings tables.

    `sizes`: LoRA → number of its training pictures; `scenario`: of the vectors, "whole" or "together". `value` is null
    where a descriptor has all LoRAs in one place. `null` is the mean of the permutations, `null_high` their upper
    quantile at `confidence`, and p counts those that reach the value. There is no interval where a measure is not
    defined without one of the artists. Raises ValueError where descriptors are of other LoRAs or artists, or have a
    LoRA twice or vectors that are not finite, and without permutations.
    """
    if permutations < 1:
        raise ValueError(f"structure: at least 1 permutation is needed, not {permutations}")
    names = list(embeddings)
    vectors, loras, artists = _vectors(embeddings, scenario)
    components = vectors if scenario == TOGETHER else _vectors(embeddings, TOGETHER)[0]
    n = len(artists)
    spaces = _Spaces(vectors, components, seed, int(np.bincount(artists).max()))
    rng = np.random.Generator(np.random.PCG64(derive_seed("structure", "permutations", seed)))
    few = max(min(permutations, RSA_WORK // max(2 * len(names) * n * n, 1)), min(permutations, RSA_LEAST))
    values = spaces.measure(np.arange(n))
    nulls: Nulls = {metric: [] for metric in METRICS}
    for number in range(permutations):
        metrics = METRICS if number < few else [m for m in METRICS if m not in ("CKA", "RSA")]
        for metric, matrix in spaces.measure(rng.permutation(n), metrics).items():
            nulls[metric].append(matrix)
    without = [spaces.without(np.flatnonzero(artists == a)) for a in range(artists.max() + 1)]
    rows = list(_rows(LORAS, names, values, nulls, without, confidence))
    for name, of, strata in (
        (ARTISTS, np.arange(artists.max() + 1), None),
        (WITHIN, artists, np.array([sizes.get(lora, 0) for lora in loras])),
    ):
        found = _level(name, spaces.kernels, artists, of, strata, seed)
        if found is not None:
            rows += _rows(name, names, *found, confidence)
    return rows


def _rows(
    level_name: str, names: list[str], values: Matrices, nulls: Nulls, without: list[Matrices], confidence: float
) -> Iterator[dict[str, Any]]:
    for i, left in enumerate(names):
        for j, right in enumerate(names[i + 1 :], i + 1):
            for metric in values:
                value = values[metric][i, j]
                row = {"level": level_name, "left": left, "right": right, "metric": metric}
                if not np.isfinite(value):
                    empty = {"value": None, "low": None, "high": None, "null": 0.0, "null_high": 0.0, "p": 1.0}
                    yield row | empty
                    continue
                null = np.array([matrix[i, j] for matrix in nulls[metric]])
                deleted = np.array([found[metric][i, j] for found in without])
                low = high = None
                if len(deleted) > 1 and np.isfinite(deleted).all():  # too few LoRAs may be left
                    low, high = intervals.jackknife(value, deleted, intervals.DIFFERENCE).interval(confidence)
                yield (
                    row
                    | {"value": float(value), "low": low, "high": high}
                    | {"null": float(null.mean()), "null_high": float(np.quantile(null, confidence))}
                    | {"p": float((1 + (null >= value - ROUNDING).sum()) / (1 + len(null)))}
                )


class _Products:
    """Gram matrices K (D, n, n) of the same n things, U-centred for the debiased CKA of all pairs: with any few of the
    things left out, too."""

    def __init__(self, K: np.ndarray):
        n = K.shape[-1]
        off = K.copy()
        diagonal = np.arange(n)
        off[:, diagonal, diagonal] = 0
        rows = off.sum(2) / (n - 2)
        off -= rows[:, :, None]
        off -= rows[:, None]
        off += (rows.sum(1) / (n - 1))[:, None, None]
        off[:, diagonal, diagonal] = 0
        self.K, self.off = K, off
        flat = off.reshape(len(K), -1)
        self.whole = flat @ flat.T
        own = np.diag(self.whole) / (n * (n - 3))
        self.own = np.where(own > np.square(SMALL * np.abs(K).max((1, 2))), own, 0.0)  # less is rounding

    def cka(self, products: np.ndarray) -> np.ndarray:
        """Debiased CKA (D, D) by the unbiased HSIC (Song et al. 2012, eq. 5), the mean product of U-centred matrices
        (Székely & Rizzo 2014): what all have in common is gone before it is rounded. NaN where a side has no spread.
        `products` (D, D): sums over all elements of the matrices of either side."""
        n = self.off.shape[-1]
        return _ratio(products, self.own * (n * (n - 3)))

    def without(self, stays: np.ndarray) -> np.ndarray:
        """Debiased CKA (D, D) of the things that stay (a mask of all).

        U-centred with those that go, they are U-centred again by sums: rows of all add up to zero, so that those of
        what stays follow from what goes, and nothing else is looked at. Where nearly all spread goes, too few digits
        of the sums are left, and what stays is taken by itself.
        """
        m, gone = int(stays.sum()), self.off[:, ~stays]
        flat, among = gone.reshape(len(gone), -1), gone[:, :, ~stays].reshape(len(gone), -1)
        rows = gone[:, :, stays].sum(1)
        total = rows.sum(1)
        sums = self.whole - 2 * (flat @ flat.T) + among @ among.T
        sums += np.outer(total, total) / ((m - 1) * (m - 2)) - 2 / (m - 2) * (rows @ rows.T)
        if not (self.own > 0).all() or (np.diag(sums) < CANCELLED * np.diag(self.whole)).any():
            kept = _Products(self.K[:, stays][:, :, stays])
            return kept.cka(kept.whole)
        return _ratio(sums, np.diag(sums))


def _ratio(products: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Products (D, D) over the roots of each side's own (D,); NaN where a side has none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = products / np.sqrt(np.outer(own, own))
    return np.where(np.isfinite(found), found, np.nan)


class _Arrangements:
    """CKA and RSA (D, D) of all pairs of D descriptors of the same n things, from Gram matrices K (D, n, n) and the
    distances of all pairs of things (D, pairs): as they stand, permuted, and with some of the things left out."""

    def __init__(self, K: np.ndarray, far: np.ndarray):
        from scipy.stats import rankdata

        D, n, _ = K.shape
        self.products = _Products(K)
        rounded = np.round(far / far.max(1, keepdims=True).clip(SMALL), 9)
        ranks = rankdata(rounded, axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        self.even = ~ranks.any(1)  # all are equally far from each other
        ranks /= np.sqrt(np.square(ranks).sum(1, keepdims=True)).clip(SMALL)
        # Equal distances have one number: after things are left out, ranks follow from it and nothing is sorted.
        self.tied = [(row - 1).astype(np.int32) for row in rankdata(rounded, "dense", axis=1)]
        rows, columns = self.pairs = np.triu_indices(n, 1)
        both = np.zeros((n, n, 2 * D), np.float32)
        both[..., :D] = np.moveaxis(self.products.off, 0, -1)
        both[rows, columns, D:] = both[columns, rows, D:] = ranks.T
        self.both, self.left = both.reshape(n * n, -1), both[rows, columns]

    def measure(self, p: np.ndarray) -> dict[str, np.ndarray]:
        """CKA and RSA, the right side's things in the order `p` (n,); NaN where a side has no spread.

        Half of a symmetric matrix says everything, and a pair of things has the numbers of all descriptors side by
        side: a permutation moves them in one go, some pairs at a time, which a core keeps near. float32 for the
        hundreds of them; ROUNDING is what that may cost.
        """
        D = len(self.even)
        rows, columns = self.pairs
        first = p * len(p)
        right = np.empty((min(PAIRS, len(rows)), 2 * D), np.float32)
        products, ranks = np.zeros((2, D, D))
        for start in range(0, len(rows), PAIRS):
            part = slice(start, start + PAIRS)
            places = first[rows[part]]
            places += p[columns[part]]
            left, moved = self.left[part], right[: len(places)]
            self.both.take(places, 0, out=moved, mode="clip")  # all are within; without clip it goes by a copy
            products += left[:, :D].T @ moved[:, :D]
            ranks += left[:, D:].T @ moved[:, D:]
        return {"CKA": self.products.cka(2 * products), "RSA": _ratio(ranks, (~self.even).astype(float))}

    def without(self, stays: np.ndarray) -> dict[str, np.ndarray]:
        """CKA and RSA of the things that stay (a mask of all)."""
        rows, columns = self.pairs
        kept = np.flatnonzero(stays[rows] & stays[columns])
        ranks = np.empty((len(self.tied), len(kept)), np.float32)
        for row, every in zip(ranks, self.tied, strict=True):
            numbers = every.take(kept)
            counts = np.bincount(numbers)
            middle = np.cumsum(counts) - (counts - 1) / 2 - (len(kept) + 1) / 2
            (middle / max(len(kept), 1)).astype(np.float32).take(numbers, out=row)
        products = (ranks @ ranks.T).astype(float)
        return {"CKA": self.products.without(stays), "RSA": _ratio(products, np.diag(products))}


def _level(
    name: str,
    kernels: np.ndarray,
    artists: np.ndarray,
    of: np.ndarray,
    strata: np.ndarray | None,
    seed: int,
) -> tuple[Matrices, Nulls, list[Matrices]] | None:
    """Values, nulls and delete-one-artist values of CKA and RSA among artists' means, or within artists; None where
    there are too few to compare. `kernels` (D, n, n) of the LoRAs, `of` (m,) the artists of what is compared."""
    count, m = artists.max() + 1, len(of)
    member = (artists[:, None] == np.arange(count)[None]).astype(float)
    mean = member / member.sum(0)
    # Rows of means of artists, or of each LoRA less its artist's mean.
    project = mean.T if strata is None else np.eye(len(artists)) - member @ mean.T
    K = project @ kernels @ project.T
    groups = np.zeros(m, int)
    if strata is not None:
        groups = np.unique(np.stack([of, strata], 1), axis=0, return_inverse=True)[1].ravel()
    if m < LEAST + 1 or not (np.bincount(groups) > 1).any():
        return None
    rng = np.random.Generator(np.random.PCG64(derive_seed("structure", name, seed)))
    rows, columns = np.triu_indices(m, 1)
    squares = np.diagonal(K, axis1=1, axis2=2)
    far = np.sqrt((squares[:, rows] + squares[:, columns] - 2 * K[:, rows, columns]).clip(0))
    arrangements = _Arrangements(K, far)
    constant = (far.max(1) < SMALL) | arrangements.even

    def measured(found: Matrices) -> Matrices:
        for matrix in found.values():
            matrix[constant] = matrix[:, constant] = np.nan
        return found

    values = measured(arrangements.measure(np.arange(m)))
    nulls: Nulls = {metric: [] for metric in values}
    order = np.lexsort((np.arange(m), groups))
    p = np.empty(m, int)
    for _ in range(max(min(TESTS, RSA_WORK // max(2 * K.size, 1)), RSA_LEAST)):
        p[order] = np.lexsort((rng.random(m), groups))
        for metric, matrix in measured(arrangements.measure(p)).items():
            nulls[metric].append(matrix)
    without = []
    for a in range(count):
        stays = of != a
        enough = stays.sum() >= LEAST
        undefined = {metric: np.full_like(matrix, np.nan) for metric, matrix in values.items()}
        without.append(measured(arrangements.without(stays)) if enough else undefined)
    return values, nulls, without


def _vectors(embeddings: Mapping[str, pa.Table], scenario: str) -> tuple[list[np.ndarray], list[str], np.ndarray]:
    """Vectors (n, k) of each descriptor on all LoRAs, in one order; the LoRAs, and numbers of their artists (n,)."""
    found, first, order, artist_of = [], None, None, {}
    for name, table in embeddings.items():
        rows = [i for i, each in enumerate(table["scenario"].to_pylist()) if each == scenario]
        loras = [table["lora"][i].as_py() for i in rows]
        place = dict(zip(loras, rows, strict=True))
        if len(place) != len(loras):
            raise ValueError(f"structure: {name!r} has a LoRA twice in scenario {scenario}; rerun the embeddings stage")
        theirs = {lora: table["artist"][i].as_py() for lora, i in place.items()}
        if first is None or order is None:
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
        raise ValueError(f"structure: at least {LEAST} LoRAs are needed, of scenario {scenario}")
    return found, order, np.unique([artist_of[lora] for lora in order], return_inverse=True)[1]


class _Spaces:
    """All descriptors of the same n LoRAs, laid out so that one product serves all pairs.

    `vectors` for all measures but Procrustes, which looks at `components`; `largest`: the most LoRAs that are left out
    at once.
    """

    def __init__(self, vectors: list[np.ndarray], components: list[np.ndarray], seed: int, largest: int):
        from scipy.spatial.distance import pdist, squareform

        self.widths = [X.shape[1] for X in components]
        self.X = np.concatenate(components, 1)
        self.kernels = np.stack([X @ X.T for X in vectors])
        distances = np.stack([pdist(X) for X in vectors])
        self.arrangements = _Arrangements(self.kernels, distances)
        n = len(self.X)
        self.nearest, self.next = [], []
        self.k = min(NEIGHBOURS, max(n // FEW, 1))
        for number, D in enumerate(distances):
            D = np.round(D / max(D.max(), SMALL), 9)
            # Of equally near LoRAs none is to be preferred for its place in the table, which is the artist's.
            rng = np.random.Generator(np.random.PCG64(derive_seed("structure", "ties", seed, number)))
            far = squareform(D)
            np.fill_diagonal(far, np.inf)
            order = np.lexsort((rng.random((n, n)), far), axis=1)
            self.nearest.append(order[:, : self.k])
            self.next.append(order[:, : min(self.k + largest, n - 1)])
        self.member = np.zeros((n, n, len(vectors)), np.float32)
        for number, near in enumerate(self.nearest):
            np.put_along_axis(self.member[..., number], near, 1, 1)
        self.constant = np.array([np.ptp(X, axis=0).max() < SMALL for X in vectors])

    def measure(self, p: np.ndarray, metrics=METRICS) -> dict[str, np.ndarray]:
        """Metric → values (left, right) of all pairs, the right side's LoRAs in the order `p` (n,)."""
        found = {"Procrustes": _procrustes(self.X, self.X[p], self.widths), "mutual kNN": self._shared(p)}
        if "CKA" in metrics:
            found |= self.arrangements.measure(p)
        for matrix in found.values():
            matrix[self.constant] = matrix[:, self.constant] = np.nan
        return {metric: found[metric] for metric in metrics}

    def _shared(self, p: np.ndarray) -> np.ndarray:
        n = len(p)
        inverse = np.empty(n, int)
        inverse[p] = np.arange(n)
        found = np.zeros((len(self.nearest),) * 2)
        for j, near in enumerate(self.nearest):
            places = (np.arange(n)[:, None] * n + inverse[near[p]]).ravel()
            found[:, j] = self.member.reshape(n * n, -1).take(places, 0).sum(0) / len(places)
        return found

    def without(self, out: np.ndarray) -> dict[str, np.ndarray]:
        """The measures with the LoRAs `out` left out."""
        stays = np.ones(len(self.X), bool)
        stays[out] = False
        kept = np.flatnonzero(stays)
        if len(kept) < LEAST:
            return {metric: np.full((len(self.widths),) * 2, np.nan) for metric in METRICS}
        found = {"Procrustes": _procrustes(self.X[kept], self.X[kept], self.widths)}
        found |= self.arrangements.without(stays) | {"mutual kNN": self._shared_without(kept, stays)}
        for matrix in found.values():
            matrix[self.constant] = matrix[:, self.constant] = np.nan
        return found

    def _shared_without(self, kept: np.ndarray, stays: np.ndarray) -> np.ndarray:
        n, D = len(self.X), len(self.next)
        if len(kept) <= self.k:
            return np.full((D, D), np.nan)
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


def _procrustes(X: np.ndarray, Y: np.ndarray, widths: list[int]) -> np.ndarray:
    """Procrustes similarity (left, right) of all pairs of blocks of X and Y (n, Σ widths)."""
    D = len(widths)
    ends = np.cumsum([0, *widths])
    blocks = [slice(a, b) for a, b in pairwise(ends)]
    X, Y = X - X.mean(0), Y - Y.mean(0)
    cross = X.T @ Y
    lengths = np.sqrt([np.square(X[:, b]).sum() for b in blocks])
    widest = max(widths)
    padded = np.zeros((D, D, widest, widest))
    for i, a in enumerate(blocks):
        for j, b in enumerate(blocks):
            padded[i, j, : widths[i], : widths[j]] = cross[a, b]
    nuclear = np.linalg.svd(padded, compute_uv=False).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.square(nuclear / np.outer(lengths, lengths))
