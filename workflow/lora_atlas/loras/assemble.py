"""From a module's tensors to its update: the scale folded in, every kind in factored form.

What the parts of a kind become stands in `kinds`; here are the scale, fused layers, and what is refused.
"""

from collections.abc import Mapping

import numpy as np

from .container import Container, LoraFileError, NotFiniteError
from .factors import Factored, Update, expanded, finite
from .formats import Spec
from .kinds import NAMED


def read_update(
    container: Container, spec: Spec, descriptor: int | None = None, base: np.ndarray | None = None
) -> Factored:
    """One module's update, the scale folded in; raises LoraFileError naming every key that is not a finite number.

    `base`: the module's own weight (out, …), which DoRA needs.
    """
    parts = {part: container.read(key, descriptor) for part, key in spec.keys.items()}
    if "alpha" in parts and not _sound(parts["alpha"].item()):
        raise NotFiniteError(container.path, [*_not_finite(spec, parts), spec.keys["alpha"]])
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is refused by name
        kind = NAMED[spec.kind]
        update = kind.update(spec.module, parts)
        scale = _scale(spec, parts["alpha"].item() if "alpha" in parts else None)
        if scale != 1.0 and kind.scaled(parts, spec.scale):
            update = update.scaled(scale)
        if kind.relative:
            update = kind.relative(container, spec, update, parts, base)
    if not finite(update):
        if wrong := _not_finite(spec, parts):
            raise NotFiniteError(container.path, wrong)
        raise LoraFileError(f"{container.path}: the update of {spec.module} is too large for float32")
    if spec.swapped:
        half = update.shape[0] // 2
        update = expanded(update)
        update = Update(update.module, update.A, np.concatenate([update.B[half:], update.B[:half]]))
    if spec.heads:
        update = expanded(update)
        out, rank = update.B.shape
        parts_first = update.B.reshape(-1, 3, spec.heads, rank).swapaxes(0, 1).reshape(out, rank)
        update = Update(update.module, update.A, parts_first)
    if spec.rows is not None:
        try:
            update = update.rows(*spec.rows)
        except ValueError:
            update = expanded(update).rows(*spec.rows)
    return update


def read_scale(container: Container, spec: Spec, descriptor: int | None = None) -> float:
    """s of one module's update; raises LoraFileError naming an α that is no sound number."""
    if "alpha" not in spec.keys:
        return _scale(spec, None)
    alpha = container.read(spec.keys["alpha"], descriptor).item()
    if not _sound(alpha):
        raise NotFiniteError(container.path, [spec.keys["alpha"]])
    return _scale(spec, alpha)


def _sound(alpha: float) -> bool:
    return 0 <= alpha <= 1e6


def _scale(spec: Spec, alpha: float | None) -> float:
    if alpha:
        return alpha / spec.rank
    return 1.0 if spec.scale is None else spec.scale


def _not_finite(spec: Spec, parts: Mapping[str, np.ndarray]) -> list[str]:
    return [spec.keys[part] for part, value in parts.items() if not np.isfinite(value).all()]
