"""Ablation: which part of the weights distinguishes artists, and is it good or merely large?

A part is a component (self-attention, cross-attention, …) in a block by one factor: A, B, both laid end to end (as in
arXiv 2412.12048), or the update ΔW. Blocks are named ever more closely: up, up_blocks.1, up_blocks.1.attentions.0; and
single modules are parts too, by their update. A part's Gram matrix is the sum of its modules', as they are; LoRAs are
unit-normalised on the part alone, and asked under the headline view as the whole is: the same folds and ties.

`matched` is the same score of random parts as large: modules of all components and blocks are taken in random order;
one that would go beyond the wanted number of parameters by more than is lacking is passed over. The number so reached
is off by half of the largest module at most. `matched_low` and `matched_high` are quantiles over such parts: the spread
of parts, no interval of their mean. A part above them is good for its size. The whole has none of these, since no other
part is as large.

Metrics: mAP of known artists, and the ARI of Ward's clusters of all LoRAs with as many clusters as artists ("Ward
ARI"), with intervals over artists (intervals.py). The chance of ARI is zero by its definition (Hubert & Arabie 1985).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..embeddings.components import AlikeError, together
from ..loras.names import BLOCKS, COMPONENTS, component, places
from ..sections import Embedding
from ..seeds import derive_seed
from ..views import NO_BASIS, View
from ..weights.modules import stacked_grams
from ..weights.products import normalise
from . import intervals
from .questions import Questions, questions, stored, under

# Factor → the kernels of which it is the sum.
FACTORS: dict[str, tuple[str, ...]] = {"A": ("down",), "B": ("up",), "both": ("down", "up"), "delta": ("delta",)}
ALL = "all"
METRICS = ("mAP", "Ward ARI")
MODULES = 400  # of a base with more, single modules have no rows


def ablation(
    grams: Mapping[str, Mapping[str, np.ndarray]],
    parameters: Mapping[str, Mapping[str, int]],
    plan: pa.Table,
    embedding: Embedding,
    *,
    view: View,
    subsets: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "ablation": every component × block that has modules, and every module, × factor, × metric.

    `grams`: kernel → module → Gram matrix (N, N) of the LoRAs of `plan` in its order, and `parameters` likewise, as
    weights/modules.py reads them; a factor whose kernels are not there has no rows. `subsets`: random parts that each
    part is held against; 0: none. A part on which all LoRAs are alike has no score (null). Raises ValueError where
    matrices and plan are not of the same LoRAs, or the gallery is too small.
    """
    asked = questions(plan, seed)
    artists = np.unique(np.array(plan["artist"].to_pylist(), str), return_inverse=True)[1]
    found = []
    for factor, kernels in FACTORS.items():
        if any(kernel not in grams for kernel in kernels):
            continue
        modules = sorted(grams[kernels[0]])
        stack = stacked_grams(grams[kernels[0]], modules)
        for kernel in kernels[1:]:
            for K, module in zip(stack, modules, strict=True):
                K += grams[kernel][module]
        if stack.shape[1:] != (len(plan), len(plan)):
            raise ValueError(
                f"ablation: matrices of {stack.shape[1]} LoRAs and a plan of {len(plan)}; rerun the Gram stage"
            )
        sizes = np.array([sum(parameters[kernel][module] for kernel in kernels) for module in modules])
        single = len(modules) if factor == "delta" and len(modules) <= MODULES else 0
        for name, where, chosen in [*parts(modules), *singles(modules)[:single]]:
            rng = np.random.Generator(np.random.PCG64(derive_seed("ablation", "matched", seed, name, where, factor)))
            target = int(sizes[chosen].sum())
            alone = chosen.all() or chosen.sum() == 1  # nothing else is as large, or a module is a random part itself
            others = [matched(sizes, target, rng) for _ in range(0 if alone else subsets)]
            part, *random = (
                _seen(normalise(K, "unit"), asked, artists, embedding, view, seed)
                for K in np.tensordot(np.array([chosen, *others], float), stack, 1)
            )
            for metric in METRICS:
                value, low, high = _interval(metric, part, asked, artists, confidence)
                null = [_value(metric, one, artists) for one in random if metric in one]
                spread = (
                    np.quantile(null, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist() if null else [None, None]
                )
                found.append(
                    {
                        "component": name,
                        "block": where,
                        "factor": factor,
                        "parameters": target,
                        "share": target / int(sizes.sum()),
                        "metric": metric,
                        "value": value,
                        "low": low,
                        "high": high,
                        "matched": float(np.mean(null)) if null else None,
                        "matched_low": spread[0],
                        "matched_high": spread[1],
                        "chance": asked.chance if metric == "mAP" else 0.0,
                    }
                )
    return found


def parts(modules: Sequence[str]) -> list[tuple[str, str, np.ndarray]]:
    """(component, block, mask of modules) of every part that has modules, "all" first; in the order of names.py, and
    none twice: where a block has one attention, that attention is the block."""
    what = np.array([component(module) for module in modules], str)
    within = [set(places(module)) for module in modules]
    order = [ALL, *BLOCKS, "other", *sorted(set().union(*within) - {*BLOCKS, "other"}, key=_numbered)]
    found, seen = [], set()
    for name in (ALL, *COMPONENTS, "other"):
        for place in order:
            mask = ((what == name) | (name == ALL)) & np.array([place == ALL or place in each for each in within])
            key = (name, mask.tobytes())
            if mask.any() and not (key in seen and place not in (ALL, *BLOCKS, "other")):
                found.append((name, place, mask))
                seen.add(key)
    return found


def singles(modules: Sequence[str]) -> list[tuple[str, str, np.ndarray]]:
    """The same of every single module, called by its component and its own name."""
    masks = np.eye(len(modules), dtype=bool)
    return [(component(module), module, mask) for module, mask in zip(modules, masks, strict=True)]


def _numbered(name: str) -> list[tuple[str, int]]:
    return [(part, -1) if not part.isdigit() else ("", int(part)) for part in name.split(".")]


def matched(sizes: np.ndarray, target: int, rng: np.random.Generator) -> np.ndarray:
    """A mask of random modules (M,) with `sizes` (M,) that together have about `target` parameters."""
    mask, lacking = np.zeros(len(sizes), bool), target
    for i in rng.permutation(len(sizes)):
        if sizes[i] - lacking <= lacking:
            mask[i] = True
            lacking -= sizes[i]
        if lacking <= 0:
            break
    return mask


def _seen(
    K: np.ndarray, asked: Questions, artists: np.ndarray, embedding: Embedding, view: View, seed: int
) -> dict[str, np.ndarray]:
    """What each metric is computed from, by its name: the queries' average precision (q,), and clusters (N,)."""
    found = {}
    try:
        if len(asked.rows):
            found["mAP"] = under(K, asked, view, embedding, seed)["mAP"]
        if artists.max() >= 2:  # without one of two artists nothing is left to distinguish
            found["Ward ARI"] = _clusters(K, artists, None if view.basis == NO_BASIS else embedding.dimensions)
    except AlikeError:
        return {}
    return found


def _value(metric: str, seen: Mapping[str, np.ndarray], artists: np.ndarray) -> float:
    return float(seen["mAP"].mean()) if metric == "mAP" else _agreement(artists, seen[metric])


def _interval(
    metric: str,
    seen: Mapping[str, np.ndarray],
    asked: Questions,
    artists: np.ndarray,
    confidence: float,
) -> tuple[float | None, float | None, float | None]:
    if metric not in seen:
        return None, None, None
    if metric == "mAP":
        estimate = intervals.mean(seen[metric], asked.artists)
        return estimate.value, *estimate.interval(confidence)
    without = [_agreement(artists[artists != a], seen[metric][artists != a]) for a in range(artists.max() + 1)]
    estimate = intervals.jackknife(_value(metric, seen, artists), np.array(without), intervals.DIFFERENCE)
    return estimate.value, *estimate.interval(confidence)


def _clusters(K: np.ndarray, artists: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Ward's clusters (N,) of all LoRAs, as many as artists; without a basis from their distances alone."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if dimensions is None:
        squares = np.diag(K)
        points = np.sqrt((squares[:, None] + squares[None] - 2 * K).clip(0))[np.triu_indices(len(K), 1)]
    else:
        points = stored(together(K, dimensions))
    return fcluster(linkage(points, "ward"), artists.max() + 1, "maxclust")


def _agreement(artists: np.ndarray, clusters: np.ndarray) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(artists, clusters))
