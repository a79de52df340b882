"""Spectra: the singular values of every update, which say how strongly a LoRA acts and nothing of where.

They are a control. The size of a training set can be read from them (Salama et al. 2024, arXiv 2406.19395), and so
perhaps an artist; what a descriptor knows beyond them is direction.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..loras.factors import expanded
from ..loras.files import open_lora


def spectra(
    paths: Sequence[str | Path], *, pickles: bool = True, base: str | None = None
) -> tuple[list[str], np.ndarray]:
    """Module names, and singular values of ΔW (N, modules, r) float64, largest first; absent ones are zero.

    Of ΔW = BA they are those of R_B R_Aᵀ, an r × r matrix, from B = Q_B R_B and Aᵀ = Q_A R_A: no ΔW is formed.
    """
    files = [open_lora(path, pickles=pickles, base=base) for path in paths]
    modules = sorted(set().union(*(file.layout.specs for file in files)))
    place = {module: i for i, module in enumerate(modules)}
    found = []
    for number, file in enumerate(files):
        with file.reading() as descriptor:
            for module in file.layout.specs:
                update = expanded(file.update(module, descriptor))
                A, B = update.A.astype(np.float64), update.B.astype(np.float64)
                values = np.linalg.svd(_triangle(B) @ _triangle(A.T).T, compute_uv=False)
                found.append((number, place[module], values))
    stacked = np.zeros((len(files), len(modules), max((len(values) for *_, values in found), default=0)))
    for number, column, values in found:
        stacked[number, column, : len(values)] = values
    return modules, stacked


def _triangle(X: np.ndarray) -> np.ndarray:
    """R of X = QR."""
    return np.linalg.qr(X, "r")  # type: ignore[return-value] # numpy's stubs know only the modes that give Q and R
