"""The metric of a base: what diffusion/sensitivity.py measured of it, read back for the weights of its LoRAs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .. import tensors
from .gram import Group, stacked
from .stack import Stack


class MetricError(ValueError):
    """A file of a base's sensitivity cannot be used; the message names it."""


@dataclass(frozen=True)
class Metric:
    """`weights`: module → mean squared output gradient; second moments are read from the file as they are asked for."""

    path: Path
    weights: dict[str, float]
    moments: frozenset[str]

    def roots(self, module: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Symmetric square roots of Σ (in, in) and G (out, out), float32; None where they were not measured."""
        if module not in self.moments:
            return None
        with safe_open(self.path, "np") as file:
            moments = [file.get_tensor(f"{kind}/{module}") for kind in ("sigma", "G")]
        if any(X.ndim != 2 or X.shape[0] != X.shape[1] or not np.isfinite(X).all() for X in moments):
            raise MetricError(
                f"{self.path}: the second moments of {module} are no finite square matrices; delete it and rerun "
                "`snakemake weights`"
            )
        return _root(moments[0]), _root(moments[1])


def _root(X: np.ndarray) -> np.ndarray:
    values, U = np.linalg.eigh(X.astype(np.float64))
    return ((U * np.sqrt(values.clip(0))) @ U.T).astype(np.float32)


def read_metric(path: str | Path) -> Metric:
    """What is known of a base; raises MetricError naming a file that is absent or damaged."""
    try:
        with tensors.reading(path) as (header, file):
            keys = set(file.keys())
        weights = {str(module): float(w) for module, w in header["weights"].items()}
        if not all(np.isfinite(w) and w >= 0 for w in weights.values()):
            raise ValueError("weights that are negative or not finite")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MetricError(
            f"{path}: not the sensitivity of a base, or damaged ({error}); delete it and rerun `snakemake weights`"
        ) from error
    both = {module for module in weights if {f"sigma/{module}", f"G/{module}"} <= keys}
    return Metric(Path(path), weights, frozenset(both))


def warped(group: Group, roots: tuple[np.ndarray, np.ndarray]) -> Stack:
    """Updates of one module in the base's metric: A Σ^½ and G^½ B, whose plain inner products are
    tr(G ΔWᵢ Σ ΔWⱼᵀ)."""
    stack = stacked(group)
    of_inputs, of_gradients = roots
    return Stack(stack.A @ of_inputs, tuple(of_gradients @ B for B in stack.B), stack.ranks)
