"""From a module's tensors to its update: the scale folded in, every kind in factored form.

What the parts of a kind become stands in `kinds`; here are the scale, fused layers, and what is refused.
"""

import math
from collections.abc import Mapping

import numpy as np

from .container import Container, LoraFileError, NotFiniteError
from .factors import Factored, finite, reordered
from .formats import Spec
from .kinds import NAMED
from .kinds.lokr import LOKR, both_whole, root_scale

MOST_ALPHA = 1_000_000


def read_update(
    container: Container, spec: Spec, descriptor: int | None = None, base: np.ndarray | None = None
) -> Factored:
    """One module's update, the scale folded in; raises LoraFileError naming every key that is not a finite number.

    `base`: the weight (out, …) of the whole layer, in the order of the file's rows, for kinds that are relative to it.
    """
    parts = {part: container.read(key, descriptor) for part, key in spec.keys.items()}
    kind = NAMED[spec.kind]
    applied = kind.scaled(parts, spec.scale)
    if "alpha" in parts and applied:
        _check_alpha(container, spec, parts["alpha"].item(), parts)
    scale = _scale(container, spec, parts["alpha"].item() if "alpha" in parts else None, applied)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # infinite is refused by name
        try:
            update = _made(spec, parts, scale, base)
        except LoraFileError:
            raise
        except ValueError as error:
            raise LoraFileError(f"{container.path}: {error}") from error
    if not finite(update):
        if wrong := _not_finite(spec, parts):
            raise NotFiniteError(container.path, wrong)
        raise _too_large(container, spec)
    placed = _placed(spec, update)
    if placed is not update and not finite(placed):  # a product of finite factors need not be
        raise _too_large(container, spec)
    return placed


def _placed(spec: Spec, update: Factored) -> Factored:
    """The update of the module alone, its rows in the order of diffusers."""
    if spec.swapped:
        half = update.shape[0] // 2
        update = reordered(update, lambda X: np.concatenate([X[half:], X[:half]]))
    if spec.heads:
        update = reordered(update, lambda X: X.reshape(-1, 3, spec.heads, X.shape[1]).swapaxes(0, 1).reshape(X.shape))
    if spec.rows is not None:
        start, stop = spec.rows
        try:
            return update.rows(start, stop)
        except ValueError:
            return reordered(update, lambda X: X[start:stop])
    return update


def _too_large(container: Container, spec: Spec) -> LoraFileError:
    return LoraFileError(f"{container.path}: the update of {spec.module} is too large for float32")


def _made(spec: Spec, parts: Mapping[str, np.ndarray], scale: float, base: np.ndarray | None) -> Factored:
    """The update of the whole layer; raises ValueError where it does not fit its settings or the base."""
    kind = NAMED[spec.kind]
    update: Factored | None = None
    if kind.configured is not None:
        update = kind.configured(spec.module, parts, spec.settings)
    elif kind.update is not None:
        update = kind.update(spec.module, parts)
    if update is not None and scale != 1.0:
        update = update.scaled(scale)
    if kind.relative is not None:
        if spec.wants:  # else of layers that are all of one size
            _check_base(spec, base)
        return kind.relative(spec, update, parts, base)
    if update is None:
        raise ValueError(f"{spec.kind} has no update of its own")
    return update


def read_scale(container: Container, spec: Spec, descriptor: int | None = None) -> float:
    """s of one module's update; raises LoraFileError naming an α that is no sound number."""
    applied = NAMED[spec.kind].scaled(spec.keys, spec.scale)  # type: ignore[arg-type]  # asks for names alone
    if "alpha" not in spec.keys:
        return _scale(container, spec, None, applied)
    alpha = container.read(spec.keys["alpha"], descriptor).item()
    if applied:
        _check_alpha(container, spec, alpha, {})
    return _scale(container, spec, alpha, applied)


def _check_base(spec: Spec, base: np.ndarray | None) -> None:
    if base is None:
        raise ValueError(f"{spec.kind}: the update of {spec.module} needs the base's weight")
    out, width = len(base), math.prod(base.shape[1:])
    if (out, width) != spec.layer:
        raise ValueError(
            f"{spec.module} is {spec.layer[0]} × {spec.layer[1]} here and {out} × {width} in the base: weights.base is "
            "not the base that this was trained on"
        )


def _check_alpha(container: Container, spec: Spec, alpha: float, parts: Mapping[str, np.ndarray]) -> None:
    """Raise LoraFileError for an alpha that no trainer writes; with one that is no number, `parts` that are none."""
    if not math.isfinite(alpha):
        raise NotFiniteError(container.path, [*_not_finite(spec, parts), spec.keys["alpha"]])
    if not 0 <= alpha <= MOST_ALPHA:
        raise LoraFileError(
            f"{container.path}: {spec.keys['alpha']} is {alpha:g}; expected an alpha from 0 to {MOST_ALPHA:,}, as "
            "trainers write it"
        )


def _scale(container: Container, spec: Spec, alpha: float | None, applied: bool) -> float:
    """s; of two whole factors of a LoKr, which have no rank, 1 or what LyCORIS' rs_lora makes of it."""
    if not applied:
        if alpha is None or spec.kind not in (LOKR.name, "DoRA") or not both_whole(spec.keys):
            return 1.0
        dtype = container.entries[spec.keys["alpha"]].dtype
        return root_scale(alpha, dtype, bool(spec.settings.get("rs_lora")))
    if alpha:
        return alpha / spec.rank
    return 1.0 if spec.scale is None else spec.scale


def _not_finite(spec: Spec, parts: Mapping[str, np.ndarray]) -> list[str]:
    return [spec.keys[part] for part, value in parts.items() if part != "alpha" and not np.isfinite(value).all()]
