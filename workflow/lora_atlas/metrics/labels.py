"""What distinguishes true groups without any clusters: nearest neighbours, and a linear probe.

Each returns a score of every LoRA (n,), and what chance would give.
"""

from collections.abc import Sequence

import numpy as np

INVERSE_PENALTY = 100.0  # of the probe's squared weights, for vectors of norm one

Scored = tuple[np.ndarray, float]


def nearest(D: np.ndarray, labels: np.ndarray, excluded: np.ndarray, permuted: np.ndarray) -> Scored:
    """Whether each LoRA's nearest other has its label, by distances D (n, n); LoRAs that are equally near share one.

    LoRAs with the same number in `excluded` (n,) are no neighbours. `permuted`: the labels of what labels belong to,
    LoRAs or artists: since any may stand for any, a neighbour has the same label as often as two of these.
    """
    distance = np.where(excluded[:, None] == excluded[None], np.inf, D)
    best = distance == distance.min(1, keepdims=True)
    sizes = np.bincount(permuted)
    chance_level = (sizes * (sizes - 1)).sum() / (sizes.sum() * (sizes.sum() - 1))
    return (best / best.sum(1, keepdims=True) * (labels == labels[:, None])).sum(1), float(chance_level)


def majority(
    D: np.ndarray, labels: np.ndarray, excluded: np.ndarray, k: int, shuffled: np.ndarray, rng: np.random.Generator
) -> Scored | None:
    """Whether most of each LoRA's k nearest have its label; labels that tie share one. Chance: `shuffled` (p, n).

    With fewer than k others these are asked; with fewer than two, None. LoRAs equally near come in random order.
    """
    distance = np.where(excluded[:, None] == excluded[None], np.inf, D)
    k = min(k, int(np.isfinite(distance).sum(1).min()))
    if k < 2:
        return None
    order = _first(distance, k, rng)
    return _voted(order, labels), float(np.mean([_voted(order, each).mean() for each in shuffled]))


def _first(distance: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k nearest (n, k) by distances (n, m > k), in no order; of those equally near, at random. Whole rows are
    sorted only where such lie on both sides of the last place."""
    drawn = rng.random(distance.shape)
    found = np.argpartition(distance, (k - 1, k), 1)
    ends = np.take_along_axis(distance, found[:, k - 1 : k + 1], 1)
    tied = np.flatnonzero(ends[:, 0] == ends[:, 1])
    found[tied] = np.lexsort((drawn[tied], distance[tied]), axis=1)
    return found[:, :k]


def _voted(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    classes = labels.max() + 1
    cells = np.arange(len(order))[:, None] * classes + labels[order]
    votes = np.bincount(cells.ravel(), minlength=len(order) * classes).reshape(-1, classes)
    winners = votes == votes.max(1, keepdims=True)
    return winners[np.arange(len(order)), labels] / winners.sum(1)


def probe(X: np.ndarray, labels: np.ndarray, splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> Scored | None:
    """Whether a logistic regression on vectors X (n, k) is right, fitted on the first mask (n,) of each split and asked
    about the second; NaN of LoRAs that no split asks about, None where there is nothing to learn. Chance: guessing
    labels as often as they were seen.

    Vectors are centred and divided by one number, the root of their mean square norm: what is near stays near. Each
    coordinate by its own spread would be whitening: where there are as many coordinates as LoRAs, all LoRAs are then
    equally far apart, whatever they were.
    """
    right, chance_level = np.full(len(labels), np.nan), []
    for train, test in splits:
        if not test.any() or len(set(labels[train])) < 2:
            continue
        right[test] = _predicted(X[train], labels[train], X[test]) == labels[test]
        chance_level += list(np.bincount(labels[train], minlength=labels.max() + 1)[labels[test]] / train.sum())
    return (right, float(np.mean(chance_level))) if chance_level else None


def _predicted(X: np.ndarray, y: np.ndarray, Z: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    middle = X.mean(0)
    size, whole = (float(np.sqrt(np.square(Y).sum(1).mean())) for Y in (X - middle, X))
    size = size if size > 1e-9 * whole else 1.0  # what is less is rounding
    return LogisticRegression(C=INVERSE_PENALTY, max_iter=5000).fit((X - middle) / size, y).predict((Z - middle) / size)
