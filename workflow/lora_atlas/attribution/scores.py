"""Scores of LoRAs for pictures, and how unusual they are.

A score is the cosine-like −⟨ΔWᵢ − W̄, g − ḡ⟩ / ‖ΔWᵢ − W̄‖: W̄ is the mean LoRA of the collection, for what all LoRAs of a
recipe have in common says nothing of style, and ḡ the mean gradient of pictures that the base itself generates, for
what the base still gets wrong of its own pictures is no style either.

How far the best of N LoRAs stands out is said in units that no picture can change by being sharp, dark or odd, which
scales a gradient and with it all of its scores: `prominence` is a score's distance from the median of the N, over
their median absolute distance. The p-value of a LoRA is the share of pictures of the base's own, in sets of the same
size, by which *any* of the N stands out as far: it is corrected for having looked at all of them (the single step of
Westfall & Young 1993, §2.3, with the base's pictures in place of permutations).
"""

from collections.abc import Callable

import numpy as np

from ..seeds import derive_seed

ScoresOf = Callable[[np.ndarray], np.ndarray]  # values (s, N) of sets of pictures → scores

FEWEST = 8  # LoRAs: fewer have no median worth the name
DRAWS = 400  # sets of the base's own pictures, behind the p-values of a set


def scored(values: np.ndarray, reference: np.ndarray | None, gram: np.ndarray, *, centred: bool = True) -> np.ndarray:
    """Scores (s, N) of `values` (s, N) = −⟨ΔW, g⟩, with `gram` (N, N) the inner products of the LoRAs.

    `reference` (N,): the values of the mean gradient that is taken off, None: none is; `centred`: the mean LoRA is.
    A LoRA of no norm scores nothing.
    """
    values = np.asarray(values, float)
    if reference is not None:
        values = values - reference
    squares = np.diag(gram).astype(float)
    if centred:
        values = values - values.mean(1, keepdims=True)
        squares = squares - 2 * gram.mean(1) + gram.mean()
    # What is left of a LoRA that is the mean is rounding.
    norms = np.sqrt(np.where(squares > 1e-9 * np.diag(gram).max(initial=0), squares, 0))
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def prominence(scores: np.ndarray) -> np.ndarray:
    """How far each score of a row (s, N) stands out of the row: from its median, in median absolute distances."""
    off = scores - np.median(scores, 1, keepdims=True)
    spread = np.median(np.abs(off), 1, keepdims=True)
    return np.divide(off, spread, out=np.zeros_like(off), where=spread > 0)


def null(scores_of: ScoresOf, reference: np.ndarray, size: int, seed: int) -> np.ndarray:
    """How far the best LoRA stands out by sets of `size` of the base's own pictures, sorted (sets,).

    `reference` (b, N): their values; `scores_of`: values (s, N) of sets → scores. Single pictures are themselves;
    larger sets are drawn, without repetition up to a quarter of them. Scores are less the mean of all of `reference`: a
    set of most of them has hardly anything left, and any other pictures would stand out more.
    """
    count = len(reference)
    if size == 1:
        sets = np.arange(count)[:, None]
    else:
        rng = np.random.Generator(np.random.PCG64(derive_seed("attribution", "null", seed, size)))
        sets = np.stack([rng.choice(count, size, replace=4 * size > count) for _ in range(DRAWS)])
    best: np.ndarray = np.sort(prominence(scores_of(reference[sets].mean(1))).max(1))
    return best


def p_values(found: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p (…) of prominences (…): the share of the null's sets (sorted) in which any LoRA stands out as far."""
    return (1 + len(null) - np.searchsorted(null, found, side="left")) / (1 + len(null))
