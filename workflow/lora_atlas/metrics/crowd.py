"""How many styles can be told apart? Identification, as the number of artists in the gallery grows.

A query is identified among K artists where the nearest gallery LoRA is its own artist's: of its own and K − 1 others
of the gallery, whichever they are. Nothing is drawn for it: where b of M other artists have a nearer LoRA, the chance
that none of them is among K − 1 is C(M − b, K − 1) / C(M, K − 1).

The law that is fitted is that of identification among K alternatives (Green & Swets 1966, ch. 3): what speaks for the
right artist is normal with mean d and standard deviation s, what speaks for each other is standard normal, and the
right one is chosen where it exceeds all others, P(K) = E[Φ(d + s z)^(K−1)]. d says how far styles are apart, s how
unlike queries are: with s large, some are found in any crowd and others in none (s is at least one, what a single
comparison spreads, for with less a large crowd would be worse than chance). Beyond the study's own artists the
law is a forecast, for more artists like these.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import least_squares
from scipy.special import gammaln, log_ndtr

from ..views import View
from . import intervals
from .ranking import DISTANCES
from .retrieval import spaces

SIZES = (2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# Equidistant, since where s is large P is a step within a small part of the normal's width.
_NODES = np.linspace(-8, 8, 401)
_WEIGHTS = np.exp(-np.square(_NODES) / 2)


def identified(beaten: np.ndarray, others: int, sizes: Sequence[int]) -> np.ndarray:
    """Probabilities (sizes, q) of being identified among K artists; `beaten` (q,): how many of the `others` are nearer.

    An other as near as the artist's own counts for half of one.
    """
    found = np.empty((len(sizes), len(beaten)))
    for i, K in enumerate(sizes):
        low, high = (_none_among(np.asarray(b), others, K - 1) for b in (np.floor(beaten), np.ceil(beaten)))
        found[i] = (low + high) / 2
    return found


def _none_among(beaten: np.ndarray, others: int, drawn: int) -> np.ndarray:
    """C(others − beaten, drawn) / C(others, drawn)."""
    left = others - beaten
    possible = left >= drawn
    left = np.where(possible, left, drawn)
    chosen = gammaln(left + 1) - gammaln(left - drawn + 1) - gammaln(others + 1) + gammaln(others - drawn + 1)
    return np.where(beaten == 0, 1.0, np.where(possible, np.exp(chosen), 0.0))


def law(sizes: Sequence[int], d: float, s: float) -> np.ndarray:
    """P(K) for each K."""
    log_other = log_ndtr(d + s * _NODES)
    powers = np.exp((np.asarray(sizes)[:, None] - 1) * log_other)
    return np.asarray(powers @ _WEIGHTS / _WEIGHTS.sum())


def fitted(sizes: Sequence[int], values: np.ndarray) -> tuple[float, float] | None:
    """d and s of the law nearest to values by least squares; None where all are identified always, or never better than
    by chance: d is then anything."""
    if len(sizes) < 2 or values.min() > 1 - 1e-9 or (values <= 1 / np.asarray(sizes)).all():
        return None
    best = least_squares(
        lambda x: law(sizes, x[0], np.exp(x[1])) - values, (1.0, 0.1), bounds=((-3, 0), (15, np.log(10)))
    )
    return float(best.x[0]), float(np.exp(best.x[1]))


def _forecast(sizes: Sequence[int], values: np.ndarray, beyond: Sequence[int]) -> np.ndarray:
    """What the law of some values says of larger crowds; where they have none, that all goes on as it is."""
    found = fitted(sizes, values)
    if found is None:
        return np.ones(len(beyond)) if values.min() > 0.5 else 1 / np.asarray(beyond, float)
    return law(beyond, *found)


def crowd(embeddings: pa.Table, descriptor: str, view: View, *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "crowd" of one descriptor: known artists, under a view; none where it has no such space."""
    found = (space for scenario, calibration, space in spaces(embeddings) if (scenario, calibration) == view.known)
    space = next(found, None)
    if space is None:
        return []
    artists, beaten, others = [], [], 0
    for fold in np.unique(space.folds):
        queries, gallery = (
            space.of(np.flatnonzero((space.folds == fold) & (space.columns["split"] == split)))
            for split in ("query", "gallery")
        )
        names, group = np.unique(gallery.columns["artist"].astype(str), return_inverse=True)
        asked = np.isin(queries.columns["artist"].astype(str), names)
        if not asked.any() or len(names) < 2:
            continue
        D = DISTANCES[view.distance](queries.vectors[asked], gallery.vectors)
        nearest = np.full((len(D), len(names)), np.inf)
        for n in range(len(names)):
            nearest[:, n] = D[:, group == n].min(1)
        whose = queries.columns["artist"][asked].astype(str)
        own = nearest[np.arange(len(D)), np.searchsorted(names, whose)][:, None]
        nearer = (nearest < own).sum(1) + 0.5 * ((nearest == own).sum(1) - 1)
        artists += whose.tolist()
        beaten.append(nearer)
        others = len(names) - 1
    return _rows(descriptor, np.array(artists), np.concatenate(beaten), others, confidence) if beaten else []


def _rows(
    descriptor: str, artists: np.ndarray, beaten: np.ndarray, others: int, confidence: float
) -> list[dict[str, Any]]:
    inside = sorted({K for K in SIZES if others >= K} | {others + 1})
    beyond = [K for K in SIZES if others + 1 < K]
    P = identified(beaten, others, inside)
    numbers = np.unique(artists, return_inverse=True)[1]
    whole = fitted(inside, P.mean(1))
    # Leaving out an artist's queries, the law is another: what it says elsewhere has an interval by that.
    without = [_forecast(inside, P[:, numbers != n].mean(1), beyond) for n in range(numbers.max() + 1)] if whole else []
    rows = []
    for i, K in enumerate([*inside, *beyond]):
        said = None if whole is None else float(law([K], *whole)[0])
        value = low = high = None
        if i < len(inside):
            estimate = intervals.mean(P[i], numbers)
            value, (low, high) = estimate.value, estimate.interval(confidence)
        elif said is not None and len(without) > 1:
            others_say = np.array(without)[:, i - len(inside)]
            low, high = intervals.jackknife(said, others_say, intervals.SCORE).interval(confidence)
        rows.append(
            {
                "descriptor": descriptor, "artists": K, "value": value, "low": low, "high": high, "law": said,
                "separation": whole and whole[0], "spread": whole and whole[1], "chance": 1 / K,
                "queries": len(beaten),
            }
        )  # fmt: skip
    return rows
