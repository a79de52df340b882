"""Gram matrices of LoRA weights, one for each component × block; all that follows is linear algebra on them.

For two updates of one module,

    ⟨ΔW₁, ΔW₂⟩ = tr(A₁ᵀB₁ᵀ B₂A₂) = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ),

products of size r × r, and N LoRAs at once are two matrix products of stacked factors. Files are mapped, modules are
streamed: memory holds one module of all LoRAs, never a ΔW and never a matrix of N × parameters. Everything is summed
in float64. A module that a LoRA lacks is a zero update.

Kernels: ``delta`` is invariant under A → M⁻¹A, B → BM; ``factors`` are the raw A and B side by side, as in
arXiv 2412.12048 and comparable only between LoRAs of one initial A; ``down`` and ``up`` are its two halves.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..tables import replacing
from .factors import Update
from .files import block, component, layout, read_opened

Grams = dict[tuple[str, str], np.ndarray]


class GramError(ValueError):
    """A Gram file is damaged, or LoRAs have no inner product; the message names the files."""


def _delta(updates: Sequence[Update]) -> np.ndarray:
    A = np.concatenate([u.A for u in updates]).astype(np.float64)
    B = np.concatenate([u.B for u in updates], axis=1).astype(np.float64)
    starts = np.cumsum([0, *(len(u.A) for u in updates)])[:-1]
    products = (A @ A.T) * (B.T @ B)
    return np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)


def _flat(factors: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Inner products of raw factors; a smaller rank is padded with zeros."""
    rank = max(f.shape[axis] for f in factors)
    rows = [np.pad(f, [(0, rank - n if i == axis else 0) for i, n in enumerate(f.shape)]).ravel() for f in factors]
    X = np.stack(rows).astype(np.float64)
    return X @ X.T


def _down(updates: Sequence[Update]) -> np.ndarray:
    return _flat([u.A for u in updates], 0)


def _up(updates: Sequence[Update]) -> np.ndarray:
    return _flat([u.B for u in updates], 1)


def _factors(updates: Sequence[Update]) -> np.ndarray:
    return _down(updates) + _up(updates)


KERNELS: dict[str, Callable[[Sequence[Update]], np.ndarray]] = {
    "delta": _delta,
    "factors": _factors,
    "down": _down,
    "up": _up,
}


def gram(paths: Sequence[str | Path], kernel: str) -> Grams:
    """Gram matrices (N, N) float64, symmetric, of N files, by (component, block).

    Raises LoraFileError for a file that cannot be read, GramError where files are of different base models, KeyError
    for an unknown kernel.
    """
    inner = KERNELS[kernel]
    layouts = [layout(path) for path in paths]
    grams: Grams = {}
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "np")) for path in paths]
        for module in sorted(set().union(*layouts)):
            holders = [i for i, known in enumerate(layouts) if module in known]
            updates = [read_opened(files[i], paths[i], module, layouts[i][module]) for i in holders]
            _check_one_base(module, updates, [paths[i] for i in holders])
            total = grams.setdefault((component(module), block(module)), np.zeros((len(paths), len(paths))))
            K = inner(updates)
            total[np.ix_(holders, holders)] += (K + K.T) / 2
    return dict(sorted(grams.items()))


def _check_one_base(module: str, updates: Sequence[Update], paths: Sequence[str | Path]) -> None:
    shapes = [(len(u.B), u.A.shape[1]) for u in updates]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise GramError(
            f"{module} is {shapes[0][0]} × {shapes[0][1]} in {paths[0]} and {shapes[other][0]} × {shapes[other][1]} in "
            f"{paths[other]}: LoRAs of different base models cannot be compared"
        )


def write_gram(path: str | Path, ids: Sequence[str], grams: Grams, kernel: str) -> None:
    """One tensor ``component/block`` each; ids and kernel in the header."""
    tensors = {f"{component}/{block}": K for (component, block), K in sorted(grams.items())}
    # One metadata entry: the order of several is not stable in safetensors.
    header = json.dumps({"ids": list(ids), "kernel": kernel})
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"lora_atlas": header})


def read_gram(path: str | Path) -> tuple[list[str], Grams]:
    """Ids and Gram matrices of a file; raises GramError naming it."""
    try:
        with safe_open(path, "np") as file:
            ids = list(json.loads((file.metadata() or {})["lora_atlas"])["ids"])
            grams = {tuple(key.split("/", 1)): file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise GramError(
            f"{path}: not a Gram file of this project, or damaged ({error}); delete it and rerun"
        ) from error
    bad = [
        key for key, K in grams.items() if len(key) != 2 or K.shape != (len(ids), len(ids)) or not np.isfinite(K).all()
    ]
    if bad or not grams:
        raise GramError(f"{path}: Gram matrices {bad} are not finite {len(ids)} × {len(ids)}; delete it and rerun")
    return ids, grams
