"""Where LoRAs stand on maps of one study: each descriptor's own layout, turned and spread so that maps compare."""

from collections.abc import Mapping, Sequence

import numpy as np

from .charts import layout

COLOURS = 9  # of the page (TINTS): after these a shape tells those apart that share one
EVEN = 0.5  # of a place that is its order among the others: else a far cluster leaves most of the page empty
GOLDEN = np.pi * (3 - np.sqrt(5))


def turned(places: np.ndarray) -> np.ndarray:
    """Places (n, 2) about their middle, with the longer way across."""
    centred = places - places.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2].T if len(places) > 1 else centred


def spread(places: np.ndarray) -> np.ndarray:
    """Places (n, 2) over the whole page, from 0 to 1, and half way to an even spread along each way, since far apart in
    a t-SNE means no more than apart."""
    if len(places) < 2:
        return np.full((len(places), 2), 0.5)
    span = np.ptp(places, axis=0)
    linear = (places - places.min(0)) / np.where(span > 1e-9, span, 1.0)
    even = places.argsort(0, kind="stable").argsort(0, kind="stable") / (len(places) - 1)
    found: np.ndarray = np.where(span > 1e-9, (1 - EVEN) * linear + EVEN * even, 0.5)
    return found


def over_the_page(places: np.ndarray) -> np.ndarray:
    """Places (n, 2) turned, and spread over the page."""
    return spread(turned(places)) if len(places) > 1 else spread(places)


def maps(vectors: Mapping[str, np.ndarray], first: str, seed: int) -> dict[str, np.ndarray]:
    """Places (n, 2) from 0 to 1 of the same n LoRAs by each descriptor (n, d).

    Every layout is its descriptor's own. A t-SNE has no up and no left, so each is turned and mirrored to lie as nearly
    as it can on the `first` (orthogonal Procrustes; Schönemann 1966): what still moves from map to map is what the
    descriptors see differently.
    """
    from scipy.linalg import orthogonal_procrustes

    target = _standard(turned(_layout(vectors[first], seed)))
    found = {first: spread(target)}
    for name, X in vectors.items():
        if name != first:
            places = _standard(_layout(X, seed))
            found[name] = spread(places @ orthogonal_procrustes(places, target)[0])
    return found


def _standard(places: np.ndarray) -> np.ndarray:
    centred = places - places.mean(0)
    size = float(np.sqrt(np.square(centred).mean()))
    return centred / size if size > 1e-12 else centred


def _layout(X: np.ndarray, seed: int) -> np.ndarray:
    """A t-SNE; of vectors that are all alike a disc, in no order that means anything."""
    if len(X) and np.ptp(X, axis=0).max(initial=0.0) < 1e-9:
        i = np.arange(len(X))
        return np.sqrt(i)[:, None] * np.stack([np.cos(i * GOLDEN), np.sin(i * GOLDEN)], 1)
    return layout(X, seed)


def whole_numbers(places: np.ndarray, most: int = 10_000) -> tuple[list[int], list[int]]:
    """Places as two lists, across and up, of whole numbers up to `most`: shorter in a page than decimal fractions."""
    x, y = np.rint(places * most).astype(int).T
    return x.tolist(), y.tolist()


def numbered(names: Sequence[str]) -> dict[str, int]:
    """Name → its number."""
    return {name: i for i, name in enumerate(names)}
