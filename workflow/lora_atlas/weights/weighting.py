"""How much a module counts: inner products of LoRAs as weighted sums of those of single modules.

- ``plain``: every module as it is. Adam makes updates of like size whatever they do, so layers that matter little speak
  as loudly as those that matter.
- ``unit``: every LoRA's update of every module at norm one.
- ``gradient``: a module weighs by the base's mean squared output gradient (diffusion/sensitivity.py): the first-order
  effect of an update on the loss. One pass of the base; nothing of a LoRA or a label.
- ``consensus``: modules that arrange the LoRAs as the others do weigh more. The weights are the leading eigenvector of
  the matrix of similarities between the modules' Gram matrices (STATIS: Escoufier 1973; Lavit et al. 1994, CSDA 18:97),
  here their debiased CKA, since with few LoRAs the plain RV coefficient of any two matrices is far from zero. It needs
  no base and no label, and serves folders of files whose base nobody has.
- ``kfac``: ⟨ΔWᵢ, ΔWⱼ⟩ in the metric tr(G ΔWᵢ Σ ΔWⱼᵀ) of the base (Martens & Grosse 2015).
- ``learnt``: non-negative weights that fit the pattern of labels best (kernel target alignment, Cortes, Mohri &
  Rostamizadeh 2012, JMLR 13:795). It sees labels: an upper bound, for artists that it did not learn from.

What is fitted (consensus, learnt) is fitted on the gallery LoRAs `fitted`: where artists are unseen, those of others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..descriptors import CONSENSUS, GRADIENT, KFAC, PLAIN, SUPERVISED, UNIT, WEIGHTINGS
from ..loras.names import block, component, places
from ..seeds import derive_seed
from .gram import GramError
from .modules import of_kernel, stacked_grams
from .products import normalise

ModuleGram = Mapping[str, np.ndarray]  # module → (N, N)
PERMUTATIONS = 19  # that modules' agreement must exceed
LEAST = 4  # LoRAs that a consensus is made of: the unbiased HSIC divides by n − 3


class WeightingError(ValueError):
    """Modules cannot be weighted; the message says what is missing."""


@dataclass(frozen=True)
class Product:
    """Inner products of N LoRAs; `of(fitted)` gives them (N, N), by weights fitted on those LoRAs where any are."""

    of: Callable[[np.ndarray], np.ndarray]
    scale: str = UNIT

    def scaled(self, fitted: np.ndarray) -> np.ndarray:
        return normalise(self.of(fitted), self.scale)


def fixed(K: np.ndarray, scale: str = "raw") -> Product:
    """Inner products that nothing is fitted for."""
    return Product(lambda fitted: K, scale)


def product(
    modules: str, grams: ModuleGram, *, base: Mapping[str, float] | None, artists: Sequence[str], scale: str = UNIT
) -> Product:
    """The inner products of a weighting; `grams` of one kernel (of `kfac`: in that metric), `base`: module → w.

    Raises WeightingError for a weighting that does not exist, or whose base knows none of the modules.
    """
    if modules not in WEIGHTINGS:
        raise WeightingError(f"weights.modules: {modules!r} unknown")
    names = sorted(grams)
    if modules in (PLAIN, KFAC):
        return fixed(np.asarray(sum(grams[name] for name in names)), scale)
    if modules == UNIT:
        return fixed(np.asarray(sum(normalise(grams[name], UNIT) for name in names)), scale)
    summed = summands(modules, stacked_grams(grams, names))
    if modules == GRADIENT:
        return fixed(np.tensordot(module_weights(modules, names, summed, base=base), summed, 1), scale)
    return Product(
        lambda fitted: np.tensordot(module_weights(modules, names, summed, fitted, artists=artists), summed, 1), scale
    )


def summands(modules: str, every: np.ndarray) -> np.ndarray:
    """The matrices (M, N, N) that a weighting sums, of those of the modules as they are."""
    return np.stack([normalise(K, UNIT) for K in every]) if modules == SUPERVISED else every


def module_weights(
    modules: str,
    names: Sequence[str],
    summed: np.ndarray,
    fitted: np.ndarray | None = None,
    *,
    base: Mapping[str, float] | None = None,
    artists: Sequence[str] | None = None,
) -> np.ndarray:
    """One number a module (M,), the largest at one, by a weighting that has one; `fitted`: LoRAs that it is fitted on.

    Raises WeightingError for a weighting that has none.
    """
    if modules == PLAIN:
        return np.ones(len(names))
    if modules == GRADIENT:
        return of_base(names, base)
    if modules not in (CONSENSUS, SUPERVISED):
        raise WeightingError(f"weights.modules: {modules!r} gives a module no number")
    assert fitted is not None  # who asks for weights that are fitted says on what
    if modules == CONSENSUS:
        return consensus(summed, fitted)
    return aligned(summed, np.unique(np.asarray(artists, str), return_inverse=True)[1], fitted)


def of_base(modules: Sequence[str], base: Mapping[str, float] | None) -> np.ndarray:
    """w (M,) of modules by a base's sensitivity; those that the base has no gradient for (text encoders) have none."""
    known = {module: float((base or {}).get(module.removesuffix(".bias"), 0.0)) for module in modules}
    w = np.array([known[module] for module in modules])
    if not w.any():
        raise WeightingError(
            "weights.modules: gradient has a weight for none of these LoRAs' modules "
            f"({', '.join(list(modules)[:3])}, …); they are of another base than base.model, or its pass was of other "
            "layers (training.targets)"
        )
    return w / w.max()


def consensus(stack: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Weights (M,) of modules' Gram matrices (M, N, N), from the LoRAs `fitted` (n,): each over its norm there.

    LoRAs are unit-normalised first, in what most of them have: the loudest of a folder does not speak for all. Modules
    that are alike in all LoRAs weigh nothing. With fewer than LEAST LoRAs, or modules that agree no more than where
    each has its LoRAs permuted, there is no consensus, and modules are taken as they are.

    Those modules agree that at least half of the LoRAs have, and no fewer than LEAST: of one that two LoRAs have the
    one number that is not zero is as like any other's as can be. The others weigh what these do on average, by their
    share of the squared norms.
    """
    norms = np.diagonal(stack, axis1=1, axis2=2)[:, fitted].clip(0)
    have = (norms > 0).sum(1)
    shared = have >= max(LEAST, len(fitted) / 2)
    if len(fitted) < LEAST or not shared.any():
        return np.ones(len(stack))
    weights = np.ones(len(stack))
    weights[shared], agreed = _agreed(stack[shared], fitted)
    if agreed and not shared.all():
        total = norms[shared].sum(0)
        size = (norms[shared] / np.where(total > 0, total, 1.0)).sum(1)  # of LoRAs at norm one: none speaks louder
        weights[~shared] = np.where(have[~shared] > 0, weights[shared] @ size / size.sum(), 0.0)
    return weights / weights.max()


def _agreed(K: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, bool]:
    """Weights (M,) of modules that most have, and whether they agree on any; ones where they do not."""
    K = K[:, fitted][:, :, fitted]
    lengths = np.sqrt(np.diagonal(K, axis1=1, axis2=2).sum(0).clip(0))
    inverse_lengths = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    K = K * np.outer(inverse_lengths, inverse_lengths)
    size = np.array([np.linalg.norm(_centred(each)) for each in K])
    plain = np.linalg.norm(K.reshape(len(K), -1), axis=1)
    inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 1e-9 * plain.clip(1e-300))
    if not inverse.any():
        return np.ones(len(K)), False
    values, vectors = np.linalg.eigh(similarities(K))
    rng = np.random.Generator(np.random.PCG64(derive_seed("consensus", len(K), len(fitted))))
    if values[-1] <= max(_dissent(K, rng) for _ in range(PERMUTATIONS)):
        return np.ones(len(K)), False
    leading = vectors[:, -1]
    leading = leading * np.sign(leading.sum())
    # Agreement with the others is what counts: a module that goes against them all has no say.
    return leading.clip(0) * inverse, True


def _dissent(K: np.ndarray, rng: np.random.Generator) -> float:
    """The largest eigenvalue of the similarities where every module has its LoRAs in another order."""
    moved = np.stack([each[np.ix_(p, p)] for each in K for p in [rng.permutation(len(each))]])
    return float(np.linalg.eigvalsh(similarities(moved))[-1])


def similarities(K: np.ndarray) -> np.ndarray:
    """Debiased CKA (M, M) of Gram matrices (M, n, n), n ≥ 4 (Song et al. 2012, eq. 5); zero where one has no spread."""
    n = K.shape[-1]
    L = K.copy()
    L[:, np.arange(n), np.arange(n)] = 0.0
    flat, rows, total = L.reshape(len(L), -1), L.sum(2), L.sum((1, 2))
    hsic = flat @ flat.T + np.outer(total, total) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
    own = np.diag(hsic)
    own = np.sqrt(np.where(own > 1e-12 * np.square(flat).sum(1), own, 0.0))  # what is less is rounding
    scale = np.outer(own, own)
    return np.divide(hsic, scale, out=np.zeros_like(hsic), where=scale > 0)


def aligned(unit: np.ndarray, labels: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Non-negative weights (M,) of Gram matrices (M, N, N) at norm one whose sum is nearest, off the diagonal and
    centred, to "same label" among the LoRAs `fitted`; all alike where labels teach nothing."""
    from scipy.optimize import nnls

    away = ~np.eye(len(fitted), dtype=bool)
    same = (labels[fitted][:, None] == labels[fitted][None])[away].astype(float)
    X = np.stack([K[np.ix_(fitted, fitted)][away] for K in unit], 1)
    if not 0 < same.mean() < 1:
        return np.ones(len(unit))
    weights, _ = nnls(X - X.mean(0), same - same.mean())
    return weights / weights.max() if weights.any() else np.ones(len(unit))


def weighted_sum(grams: ModuleGram, weights: Mapping[str, float]) -> dict[tuple[str, str], np.ndarray]:
    """Gram matrices (N, N) by (component, block), of modules that count by `weights`; those that it lacks do not."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for name, K in grams.items():
        key = (component(name), block(name))
        found[key] = found.get(key, 0.0) + weights.get(name, 0.0) * K
    return dict(sorted(found.items()))


def listed(
    grams: Mapping[str, ModuleGram],
    plan: pa.Table,
    kernels: Sequence[str],
    weightings: Sequence[str],
    *,
    base: Mapping[str, float] | None,
) -> list[dict[str, Any]]:
    """Rows of the table "module_weights": each module's weight by each weighting that has one, the largest at one; its
    share of the squared norms of all LoRAs as they are, and as they are weighted. Weights that are fitted are those of
    the whole gallery."""
    fitted = np.flatnonzero(np.array(plan["split"].to_pylist()) == "gallery")
    artists = plan["artist"].to_pylist()
    found = []
    for kernel in kernels:
        try:
            single = of_kernel(grams, kernel)
        except GramError:
            continue
        names = sorted(single)
        every = stacked_grams(single, names)
        size = np.trace(every, axis1=1, axis2=2)
        for how in weightings:
            if how in (UNIT, KFAC) or (how == SUPERVISED and kernel != "delta"):
                continue  # the first two give a module no number
            summed = summands(how, every)
            w = module_weights(how, names, summed, fitted, base=base, artists=artists)
            total = np.trace(summed, axis1=1, axis2=2)
            found += [
                {
                    "kernel": kernel, "weighting": how, "module": name, "component": component(name),
                    "block": places(name)[-1], "weight": float(each), "share": float(own / size.sum()),
                    "weighted_share": float(each * of / (w @ total)),
                }
                for name, each, own, of in zip(names, w, size, total, strict=True)
            ]  # fmt: skip
    return found


def _centred(K: np.ndarray) -> np.ndarray:
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()
