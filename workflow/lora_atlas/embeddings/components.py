"""From a Gram matrix to vectors: principal components fitted on the gallery, and the drift of unseen LoRAs corrected.

The scores of the LoRAs that a basis was fitted on carry their own noise and are too large; those of unseen LoRAs are
too small (Lee, Zou & Wright 2010, Ann. Stat. 38:3605; Jung 2018, arXiv 1708.05026). With far more parameters than
LoRAs the factor is not small, and distances from a query to the gallery are then wrong in every direction.

- ``none``: gallery scores as fitted, query scores as projected.
- ``rescale``: query scores divided by the ratio of held-out to in-sample scores, component by component; the ratio is
  measured by leaving gallery LoRAs out.
- ``lzw``: the same with the ratio in closed form, from the eigenvalues alone (Lee, Zou & Wright 2010, in the limit of
  far more parameters than LoRAs): (λ − τ²)/λ, where τ² is the noise that every sample eigenvalue holds.
- ``split``: the basis is fitted on a seeded half of the gallery; the other half and the queries are held out alike, and
  the half's own scores are brought down by its ratio.
- ``crossfit``: every gallery score comes from a basis that never saw it: the basis of the other folds, twice as wide,
  turned onto the whole gallery's by Procrustes; a query's score is its mean over those bases. All scores are then held
  out. (Twice as wide, because two bases of k of more than k real directions keep different ones, and a rotation cannot
  bring back what is not there.)

Everything is linear algebra on K (N, N), so the same code embeds weights and picture features, and leaving LoRAs
out costs an eigenproblem of the size of the gallery.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

LEAVE_ONE_OUT_LIMIT = 128  # LoRAs; of a larger gallery groups are left out: n eigenproblems of n³ are too dear
GROUPS = 32  # that a larger gallery is left out in


class AlikeError(ValueError):
    """All LoRAs that a basis is to be fitted on are alike."""


@dataclass(frozen=True)
class Embedding:
    """`vectors` (N, k); `explained` (k,), shares of the gallery's variance; `ratio` (k,), held-out / in-sample as
    measured, and `predicted` (k,), the same in closed form."""

    vectors: np.ndarray
    explained: np.ndarray
    ratio: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class _Basis:
    """k orthonormal directions as combinations of the LoRAs `rows`: C (len(rows), k); their variances (k,).

    `whole`: the basis whose first directions these are; products are computed with all of its, and kept in `products`.
    """

    rows: np.ndarray
    C: np.ndarray
    variances: np.ndarray
    whole: "_Basis | None" = None
    products: dict[tuple[bytes, ...], np.ndarray] = field(default_factory=dict)

    def first(self, dimensions: int) -> "_Basis":
        return _Basis(self.rows, self.C[:, :dimensions], self.variances[:dimensions], self, self.products)

    @property
    def every(self) -> np.ndarray:
        """All directions that are known (len(rows), ≥ k)."""
        return self.C if self.whole is None else self.whole.C

    def once(self, what: tuple[bytes, ...], product: Callable[[], np.ndarray]) -> np.ndarray:
        """A product with all directions, which is not to be written to."""
        if what not in self.products:
            self.products[what] = product()
            self.products[what].flags.writeable = False
        return self.products[what]


Fit = Callable[[np.ndarray, int], _Basis]  # LoRAs (n,) and a number of dimensions → their basis


def _fit(K: np.ndarray, rows: np.ndarray, dimensions: int) -> _Basis:
    """Principal directions of the LoRAs `rows`, centred on their mean; none where these are all alike."""
    n, own = len(rows), K[np.ix_(rows, rows)]
    rounding = 1e-12 * np.trace(own)
    values, U = np.linalg.eigh(_centre(own))
    order = np.argsort(values)[::-1][:dimensions]
    values, U = values[order], U[:, order]
    keep = values > max(1e-10 * values.max(initial=0), rounding, 1e-300)
    values, U = values[keep], U[:, keep]
    # An eigenvector has no sign of its own; the largest entry is made positive.
    U = U * np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])])
    C = (U - U.mean(0)) / np.sqrt(values)
    return _Basis(rows, C, values / n)


class _Remembered:
    """`_fit` at one step of a ladder of dimensions. An eigenproblem is solved once for each set of LoRAs, and as many
    directions are kept as the widest step asks for: the same multiple of its dimensions, whoever asks."""

    def __init__(self, K: np.ndarray, widest: int):
        self.K, self.widest = K, widest
        self.known: dict[bytes, _Basis] = {}

    def at(self, step: int) -> Fit:
        def fit(rows: np.ndarray, dimensions: int) -> _Basis:
            key = rows.tobytes()
            if key not in self.known:
                self.known[key] = _fit(self.K, rows, -(-dimensions * self.widest // step))
            return self.known[key].first(dimensions)

        return fit


def _centre(K: np.ndarray) -> np.ndarray:
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()


def _scores(K: np.ndarray, basis: _Basis, rows: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Scores of `rows` on a basis, about the gallery's mean whichever LoRAs the basis was fitted on."""

    def product() -> np.ndarray:
        return (K[np.ix_(rows, basis.rows)] - K[gallery].mean(0)[basis.rows]) @ basis.every

    return basis.once((rows.tobytes(), gallery.tobytes()), product)[:, : basis.C.shape[1]]


def _align(K: np.ndarray, basis: _Basis, onto: _Basis) -> np.ndarray:
    """R (k', k), orthonormal in its rows or columns: scores on `basis` times R are nearest those on `onto`.

    Schönemann 1966; with k' ≠ k, the projection Procrustes problem (Gower & Dijksterhuis 2004, ch. 5).
    """
    if not basis.C.shape[1]:
        return np.zeros((0, onto.C.shape[1]))

    def product() -> np.ndarray:
        return basis.every.T @ (K[np.ix_(basis.rows, onto.rows)] @ onto.every)

    cross = basis.once((onto.rows.tobytes(),), product)
    P, _, Q = np.linalg.svd(cross[: basis.C.shape[1], : onto.C.shape[1]], full_matrices=False)
    return P @ Q


def _held_out(
    K: np.ndarray, full: _Basis, folds: Sequence[np.ndarray], extra: np.ndarray, fit: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out scores of the gallery (n, k), and the scores of `extra` LoRAs averaged over the folds' bases."""
    gallery, k = full.rows, full.C.shape[1]
    held = np.zeros((len(gallery), k))
    others = np.zeros((len(extra), k))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(gallery)), fold)
        basis = fit(gallery[rest], min(2 * k, len(rest) - 1))
        R = _align(K, basis, full)
        held[fold] = _scores(K, basis, gallery[fold], gallery) @ R
        others += _scores(K, basis, extra, gallery) @ R / len(folds)
    return held, others


def _folds(n: int, folds: int, seed: int) -> list[np.ndarray]:
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n)
    return [np.sort(part) for part in np.array_split(order, min(folds, n))]


def drift(K: np.ndarray, full: _Basis, in_sample: np.ndarray, seed: int, fit: Fit | None = None) -> np.ndarray:
    """Root mean square of held-out over in-sample gallery scores, per component (k,); leave-one-out.

    Of two LoRAs nothing can be left out: the ratio is unknown then, and one.
    """
    n = len(full.rows)
    if n < 3:
        return np.ones(in_sample.shape[1])
    groups = _folds(n, n if n <= LEAVE_ONE_OUT_LIMIT else GROUPS, seed)
    held, _ = _held_out(K, full, groups, full.rows[:0], fit or partial(_fit, K))
    return np.sqrt(np.square(held).mean(0) / np.square(in_sample).mean(0))


def predicted_drift(K: np.ndarray, full: _Basis) -> np.ndarray:
    """Held-out over in-sample scores, per component (k,), in closed form.

    Of a spike of variance λ in noise of many directions, the sample eigenvalue is λ + τ², and the direction found has
    cos² = λ/(λ + τ²) with the true one; a new LoRA's score on it then shrinks by λ/(λ + τ²) (Lee, Zou & Wright 2010;
    Jung 2018, §3). τ² is estimated by the mean of the eigenvalues that the basis leaves out; with none left out it is
    unknown, and the ratio one.
    """
    n, k = len(full.rows), len(full.variances)
    rest = np.trace(_centre(K[np.ix_(full.rows, full.rows)])) / n - full.variances.sum()
    noise = max(rest, 0.0) / (n - 1 - k) if n - 1 > k else 0.0
    return ((full.variances - noise) / full.variances).clip(0)


@dataclass(frozen=True)
class _Fitted:
    """What every calibration starts from: K, the gallery's basis and scores, the queries' rows, the settings."""

    K: np.ndarray
    full: _Basis
    scores: np.ndarray
    query: np.ndarray
    folds: int
    seed: int
    fit: Fit

    @cached_property
    def ratio(self) -> np.ndarray:
        return drift(self.K, self.full, self.scores, self.seed, self.fit)

    @cached_property
    def predicted(self) -> np.ndarray:
        return predicted_drift(self.K, self.full)


def _none(f: _Fitted) -> tuple[np.ndarray, np.ndarray]:
    return f.scores, _scores(f.K, f.full, f.query, f.full.rows)


def _rescale(f: _Fitted) -> tuple[np.ndarray, np.ndarray]:
    return f.scores, _scores(f.K, f.full, f.query, f.full.rows) / f.ratio.clip(1e-3)


def _lzw(f: _Fitted) -> tuple[np.ndarray, np.ndarray]:
    return f.scores, _scores(f.K, f.full, f.query, f.full.rows) / f.predicted.clip(1e-3)


def _crossfit(f: _Fitted) -> tuple[np.ndarray, np.ndarray]:
    return _held_out(f.K, f.full, _folds(len(f.full.rows), f.folds, f.seed), f.query, f.fit)


def _split(f: _Fitted) -> tuple[np.ndarray, np.ndarray]:
    gallery, k = f.full.rows, f.full.C.shape[1]
    half = _folds(len(gallery), 2, f.seed)[0]
    basis = f.fit(gallery[half], min(2 * k, len(half) - 1))
    R = _align(f.K, basis, f.full)
    scores = _scores(f.K, basis, gallery, gallery).copy()
    scores[half] *= drift(f.K, basis, _scores(f.K, basis, basis.rows, basis.rows), f.seed, f.fit)
    return scores @ R, _scores(f.K, basis, f.query, gallery) @ R


# Calibration → scores of the gallery (n, k) and of the queries (m, k).
CALIBRATIONS: dict[str, Callable[[_Fitted], tuple[np.ndarray, np.ndarray]]] = {
    "none": _none,
    "rescale": _rescale,
    "lzw": _lzw,
    "crossfit": _crossfit,
    "split": _split,
}


def embed(
    K: np.ndarray, gallery: np.ndarray, dimensions: int, calibrations: Sequence[str], *, folds: int, seed: int
) -> dict[str, Embedding]:
    """Vectors of all N LoRAs under each calibration, from a Gram matrix K (N, N) and the mask `gallery` (N,).

    Principal components are fitted on the gallery alone; there are at most `dimensions`, at most one less than the
    smallest set that a basis is fitted on, and none of zero variance. Raises ValueError where the gallery is too
    small or all alike.
    """
    fit = partial(_fit, K)
    total = check_gallery(K, gallery)
    fitted = _fitted(K, gallery, dimensions, folds, seed, fit)
    return {
        name: Embedding(_vectors(fitted, name), fitted.full.variances / total, fitted.ratio, fitted.predicted)
        for name in calibrations
    }


def widest(gallery: int, folds: int) -> int:
    """The most dimensions that `embed` gives a gallery of so many LoRAs."""
    return gallery - -(-gallery // max(min(folds, gallery), 1)) - 1


def ladder(
    K: np.ndarray, gallery: np.ndarray, dimensions: Sequence[int], calibrations: Sequence[str], *, folds: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """The vectors (N, k) of `embed` by calibration, for each of several numbers of dimensions.

    The eigenproblems are solved once for all, and drift is measured only for a calibration that needs it. Raises what
    `embed` does.
    """
    check_gallery(K, gallery)
    bases = _Remembered(K, max(dimensions))
    for k in dimensions:
        fitted = _fitted(K, gallery, k, folds, seed, bases.at(k))
        yield {name: _vectors(fitted, name) for name in calibrations}


def check_gallery(K: np.ndarray, gallery: np.ndarray) -> float:
    """The gallery's variance; ValueError where K (N, N) is not finite or the gallery (N,) too small, AlikeError where
    it has none."""
    inside = np.flatnonzero(gallery)
    n = len(inside)
    if not np.isfinite(K).all():
        raise ValueError("the Gram matrix is not finite")
    if n < 4:
        raise ValueError(f"a basis needs at least 4 gallery LoRAs; there are {n}")
    total = np.trace(_centre(K[np.ix_(inside, inside)])) / n
    if not total > 1e-12 * np.trace(K[np.ix_(inside, inside)]) / n:
        raise AlikeError("the gallery's LoRAs are all alike: there is no direction to describe them by")
    return total


def _fitted(K: np.ndarray, gallery: np.ndarray, dimensions: int, folds: int, seed: int, fit: Fit) -> _Fitted:
    inside, query = np.flatnonzero(gallery), np.flatnonzero(~np.asarray(gallery, bool))
    full = fit(inside, min(dimensions, widest(len(inside), folds)))
    return _Fitted(K, full, _scores(K, full, inside, inside), query, folds, seed, fit)


def _vectors(fitted: _Fitted, calibration: str) -> np.ndarray:
    vectors = np.zeros((len(fitted.K), fitted.full.C.shape[1]))
    vectors[fitted.full.rows], vectors[fitted.query] = CALIBRATIONS[calibration](fitted)
    return vectors


def together(K: np.ndarray, dimensions: int) -> np.ndarray:
    """Vectors (N, k) of all N LoRAs on the principal components of all: for a look at a collection as it is.

    Nothing is unseen, so nothing drifts. Raises ValueError where all are alike.
    """
    rows = np.arange(len(K))
    if not np.trace(_centre(K)) > 1e-12 * np.trace(K):
        raise AlikeError("the LoRAs are all alike: there is no direction to describe them by")
    return _scores(K, _fit(K, rows, min(dimensions, len(K) - 1)), rows, rows)


def whole(K: np.ndarray) -> np.ndarray:
    """Vectors (N, N) whose inner products are K, about the origin as it is: distances and cosines between them are
    those of the LoRAs themselves, and nothing is fitted. Directions without any variance are left out."""
    if not np.isfinite(K).all():
        raise ValueError("the Gram matrix is not finite")
    values, U = np.linalg.eigh((K + K.T) / 2)
    values, U = values[::-1], U[:, ::-1]
    keep = values > 1e-14 * max(values.max(initial=0.0), 1e-300)
    if not keep.any():
        return np.zeros((len(K), 1))
    U = U[:, keep]
    return U * np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])]) * np.sqrt(values[keep])


def halves(artists: Sequence[str], *, seed: int, parts: int = 2) -> np.ndarray:
    """The part (N,) that each LoRA belongs to where artists are unseen: artists fall into `parts`."""
    names = sorted(set(artists))
    if len(names) < 2 * parts:
        raise ValueError(f"an artist-disjoint basis needs at least {2 * parts} artists; there are {len(names)}")
    part_of = {names[i]: part for part, fold in enumerate(_folds(len(names), parts, seed)) for i in fold}
    return np.array([part_of[artist] for artist in artists])


def unseen(
    products: Callable[[np.ndarray], np.ndarray], gallery: np.ndarray, part: np.ndarray, dimensions: int | None
) -> np.ndarray:
    """Artist-disjoint vectors (N, k) of LoRAs in the parts (N,) that `halves` gives.

    The vectors of a part lie on a basis fitted on the gallery LoRAs of the other parts' artists, and their inner
    products (N, N), which `products` gives for these LoRAs, know of no others either. All are held out alike, so there
    is no drift to correct; only vectors of one part are comparable. `dimensions` None: no basis, as of `whole`.
    """
    pieces = {}
    for p in np.unique(part):
        fitted = np.flatnonzero(np.asarray(gallery, bool) & (part != p))
        rows = np.flatnonzero(part == p)
        K = products(fitted)
        if dimensions is None:
            pieces[p] = rows, whole(K[np.ix_(rows, rows)])
            continue
        if len(fitted) < 2:
            raise ValueError("an artist-disjoint basis needs at least 2 gallery LoRAs in each half of the artists")
        if not np.trace(_centre(K[np.ix_(fitted, fitted)])) > 1e-12 * np.trace(K[np.ix_(fitted, fitted)]):
            raise AlikeError("half of the artists have gallery LoRAs that are all alike: no basis for the other half")
        basis = _fit(K, fitted, min(dimensions, len(fitted) - 1))
        pieces[p] = rows, _scores(K, basis, rows, fitted)
    vectors = np.zeros((len(part), max(scores.shape[1] for _, scores in pieces.values())))
    for rows, scores in pieces.values():
        vectors[rows, : scores.shape[1]] = scores
    return vectors
