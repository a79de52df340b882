"""Rankings: scores of ordered lists of which some items are relevant, their chance levels, and distances.

mAP: mean average precision over the full ranking. mAP@R: precision averaged over the first R places, R the number of
relevant items (Musgrave, Belongie & Lim 2020). R@k: share of queries with a relevant item among the first k. MRR:
mean reciprocal rank. nDCG: binary gains, over the full ranking.

Ties are broken at random, and a score is averaged over several such orders, so a descriptor that cannot tell two LoRAs
apart gains nothing from their order in a table. Chance is the exact expectation under a random ranking.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

# Of the scale of a distance (cosine: one; L2: the vectors' length): nearer than that is equal. Vectors are float32, of
# which cosines that are nothing come as 3e-8, in an order that is of their axes, and would be scored.
TIE = 1e-6
ROUNDING = 1e-14  # of squared lengths: what inner products differ by less is no distance, whose root would be no tie
ORDERS = 8  # random orders of ties that a score is averaged over, where there are ties
HUBS = 10  # neighbours that a point's crowdedness is measured by, in CSLS


def _precisions(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each hit its row, its place (from 1) and the precision up to it; of each row (q,) its number of hits.

    Hits are few, so that nothing is computed of the places between them.
    """
    rows, places = np.nonzero(hits)
    R = np.bincount(rows, minlength=len(hits))
    number = np.arange(len(rows)) - (np.cumsum(R) - R)[rows] + 1
    return rows, places + 1, number / (places + 1), R


def average_precision(hits: np.ndarray) -> np.ndarray:
    """AP of rankings (q, n) of 0/1 relevance, best first; shape (q,)."""
    rows, _, precision, R = _precisions(hits)
    return np.bincount(rows, precision, len(R)) / R


def average_precision_at_r(hits: np.ndarray) -> np.ndarray:
    """MAP@R of each ranking (q, n); shape (q,)."""
    rows, places, precision, R = _precisions(hits)
    return np.bincount(rows, precision * (places <= R[rows]), len(R)) / R


def reciprocal_rank(hits: np.ndarray) -> np.ndarray:
    return 1 / (hits.argmax(1) + 1)


def ndcg(hits: np.ndarray) -> np.ndarray:
    """Normalised discounted cumulative gain, binary (Järvelin & Kekäläinen 2002)."""
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    best = np.concatenate([[0], np.cumsum(discount)])[hits.sum(1).astype(int)]
    return hits @ discount / best


# --- what each is on average over all rankings of n items of which R are relevant


def _average_precision_of_chance(R: int, n: int) -> float:
    # P(place i is a hit) = R/n; given that, i - 1 earlier places hold (i - 1)(R - 1)/(n - 1) hits on average.
    places = np.arange(1, n + 1)
    earlier = (places - 1) * (R - 1) / max(n - 1, 1)
    return float(((1 + earlier) / places).sum() / n)


def _average_precision_at_r_of_chance(R: int, n: int) -> float:
    first = np.arange(1, R + 1)
    return float(((1 + (first - 1) * (R - 1) / max(n - 1, 1)) / first).sum() / n)


def _no_hit(R: int, n: int) -> np.ndarray:
    """P(no hit among the first i) = C(n - R, i) / C(n, i) for i = 1 … n, by a running product."""
    places = np.arange(1, n + 1)
    return np.cumprod(np.clip((n - R - places + 1) / (n - places + 1), 0, 1))


def _reciprocal_rank_of_chance(R: int, n: int) -> float:
    none = _no_hit(R, n)
    return float(((np.concatenate([[1], none[:-1]]) - none) / np.arange(1, n + 1)).sum())


def _ndcg_of_chance(R: int, n: int) -> float:
    discount = 1 / np.log2(np.arange(1, n + 1) + 1)
    return float(R / n * discount.sum() / discount[:R].sum())


@dataclass(frozen=True)
class Metric:
    """A score of rankings, and its chance level."""

    score: Callable[[np.ndarray], np.ndarray]  # hits (q, n) of 0 or 1, best first → (q,)
    chance: Callable[[int, int], float]  # relevant R of n items → the expectation over all rankings


def recall_at(k: int) -> Metric:
    """Whether a relevant item is among the first k."""
    return Metric(
        lambda hits: (hits[:, :k].sum(1) > 0).astype(float), lambda R, n: float(1 - _no_hit(R, n)[min(k, n) - 1])
    )


METRICS: dict[str, Metric] = {
    "mAP": Metric(average_precision, _average_precision_of_chance),
    "mAP@R": Metric(average_precision_at_r, _average_precision_at_r_of_chance),
    "R@1": recall_at(1),
    "R@5": recall_at(5),
    "R@10": recall_at(10),
    "MRR": Metric(reciprocal_rank, _reciprocal_rank_of_chance),
    "nDCG": Metric(ndcg, _ndcg_of_chance),
}


@cache
def chance(metric: str, relevant: int, n: int) -> float:
    """Expectation of a metric over all rankings of n items of which `relevant` are relevant."""
    return METRICS[metric].chance(relevant, n)


# --- distances of queries (q, k) and gallery (n, k), shape (q, n)


def _l2(Q: np.ndarray, G: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(Q, G)


def _unit(X: np.ndarray) -> np.ndarray:
    return X / np.linalg.norm(X, axis=1, keepdims=True).clip(1e-300)


def _cosine(Q: np.ndarray, G: np.ndarray) -> np.ndarray:
    return 1 - _unit(Q) @ _unit(G).T


def _csls(Q: np.ndarray, G: np.ndarray) -> np.ndarray:
    """Cross-domain similarity local scaling: cosine, less how crowded both ends are (Conneau et al. 2018, §2.3).

    A query's crowdedness is the same for all it ranks; it is kept, so that values are those of the paper (negated).
    """
    return _crowded(_unit(Q) @ _unit(G).T)


def _crowded(similar: np.ndarray) -> np.ndarray:
    of_gallery = _nearest(similar.T).mean(1)
    of_queries = _nearest(similar).mean(1)
    return of_queries[:, None] + of_gallery[None] - 2 * similar


def _nearest(similar: np.ndarray) -> np.ndarray:
    """The HUBS largest of each row, in order."""
    if similar.shape[1] > HUBS:
        similar = np.partition(similar, -HUBS, 1)[:, -HUBS:]
    return np.sort(similar, 1)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"L2": _l2, "cosine": _cosine, "CSLS": _csls}


def from_products(distance: str, products: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The same distances (q, n) from inner products (q, n) and the squared lengths of queries (q,) and gallery (n,):
    no vectors are needed."""
    if distance == "L2":
        lengths = queries[:, None] + gallery[None]
        squares = lengths - 2 * products
        return np.sqrt(np.where(squares > ROUNDING * lengths, squares, 0.0))
    lengths = np.sqrt(np.outer(queries.clip(0), gallery.clip(0)))
    similar = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return 1 - similar if distance == "cosine" else _crowded(similar)


def scale_of(distance: str, Q: np.ndarray, G: np.ndarray) -> float:
    """What a difference of distances is small against, for ties: the longest vector, or one where lengths count not."""
    return float(np.linalg.norm(np.concatenate([Q, G]), axis=1).max()) if distance == "L2" else 1.0


# --- many queries at once


def score(
    D: np.ndarray,
    relevant: np.ndarray,
    metrics: Sequence[str] = ("mAP",),
    *,
    considered: np.ndarray | None = None,
    scale: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Metric → score of each query (q,) by distances D (q, n) to the items that are `relevant` (q, n).

    `considered` (q, n): the items that a query ranks; None: all. Ties are nearer than TIE × `scale`; `seeds` (q,), of
    their random orders. A query without a relevant item scores NaN.
    """
    relevant = np.asarray(relevant, bool)
    if considered is not None:
        D, relevant = np.where(considered, D, np.inf), relevant & considered
    ranked = np.sort(D, 1)
    near = nearby(ranked, scale)
    hits = _places(D, ranked, relevant)
    mixed = np.flatnonzero(_mixed(hits, near))
    hits[mixed] = np.take_along_axis(relevant[mixed], np.argsort(D[mixed], 1, kind="stable"), 1)
    return scored(hits, near, metrics, seeds=seeds)


def nearby(ranked: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Which neighbours in rows of sorted distances (q, n) are tied: nearer than TIE × `scale`; shape (q, n - 1)."""
    with np.errstate(invalid="ignore"):  # what is not considered lies at infinity, in no order that matters
        return np.diff(ranked, axis=1) <= TIE * scale


def scored(
    hits: np.ndarray, near: np.ndarray, metrics: Sequence[str] = ("mAP",), *, seeds: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """The same from rankings: `hits` (q, n) of relevant items, best first, of which `near` (q, n - 1) are tied.

    Only ties of items of both kinds are put in random orders: of a thousand LoRAs some are always as far as others,
    but for the rounding of float32, and nearly all of those are not what is asked for.
    """
    asked = hits.any(1)
    mixed = _mixed(hits, near)
    plain = np.flatnonzero(asked & ~mixed)
    found = {metric: np.full(len(hits), np.nan) for metric in metrics}
    for metric in metrics:
        found[metric][plain] = METRICS[metric].score(hits[plain]) if len(plain) else 0
    for i in np.flatnonzero(mixed).tolist():
        shuffled = _orders(hits[i], near[i], 0 if seeds is None else seeds[i])
        for metric in metrics:
            found[metric][i] = METRICS[metric].score(shuffled).mean()
    return found


def _mixed(hits: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Rankings (q,) in which what is relevant is tied with what is not: in every order of a tie of both, two neighbours
    differ."""
    return (near & (hits[:, 1:] != hits[:, :-1])).any(1)


def _orders(hits: np.ndarray, near: np.ndarray, seed: int) -> np.ndarray:
    """One ranking (n,) in random orders of its ties, (ORDERS, n). Every item draws its number, tied or not."""
    drawn = np.random.Generator(np.random.PCG64(seed)).random((ORDERS, len(hits)))
    group = np.concatenate([[0], np.cumsum(~near)])
    tied = np.flatnonzero(np.concatenate([near, [False]]) | np.concatenate([[False], near]))
    order = np.lexsort((drawn[:, tied], np.broadcast_to(group[tied], (ORDERS, len(tied)))))
    found = np.tile(hits, (ORDERS, 1))
    found[:, tied] = hits[tied[order]]
    return found


def _places(D: np.ndarray, ranked: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """What is `relevant` (q, n), best first, by distances D (q, n) and the same in order: of equals those first.

    A number's place is found in its sorted row: sorting numbers takes a fifth of what sorting their indices does.
    """
    found = np.zeros_like(relevant)
    for row, distances, order, hit in zip(found, D, ranked, relevant, strict=True):
        wanted = np.sort(distances[hit])
        places = np.searchsorted(order, wanted)
        if (places[1:] == places[:-1]).any():  # the first of equals, the second, …
            places += np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
        row[places] = True
    return found
