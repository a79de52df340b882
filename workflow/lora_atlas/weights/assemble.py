"""From a module's tensors to its update: the scale folded in, every kind in factored form.

The algebra of LoHa, LoKr and Tucker is that of LyCORIS and PEFT (`rebuild_tucker`, `make_kron`), written on factors
instead of dense matrices; tests hold the two against each other.
"""

from collections.abc import Mapping

import numpy as np

from .container import Container, LoraFileError, NotFiniteError
from .factors import Factored, HadamardUpdate, KroneckerUpdate, Update, expanded, finite, of_dense
from .formats import Spec


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
        update = _build(spec, parts)
        if spec.kind == "DoRA":
            update = _dora(container, spec, update, parts["magnitude"], base)
    if not finite(update):
        if wrong := _not_finite(spec, parts):
            raise NotFiniteError(container.path, wrong)
        raise LoraFileError(f"{container.path}: the update of {spec.module} is too large for float32")
    if spec.swapped:
        half = update.shape[0] // 2
        update = expanded(update)
        update = Update(update.module, update.A, np.concatenate([update.B[half:], update.B[:half]]))
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


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _tucker(t: np.ndarray, a: np.ndarray, b: np.ndarray, module: str) -> Update:
    """W[p, (r, …)] = Σᵢⱼ t[i, j, …] a[i, p] b[j, r] as factors of rank i."""
    core = np.tensordot(t, b, (1, 0))  # (i, …, r)
    return Update(module, _flat(np.moveaxis(core, -1, 1)), np.ascontiguousarray(a.T))


def _build(spec: Spec, p: Mapping[str, np.ndarray]) -> Factored:
    module = spec.module
    scale = _scale(spec, p["alpha"].item() if "alpha" in p else None)
    if "diff" in p:
        update: Factored = of_dense(module, _flat(p["diff"]) if p["diff"].ndim > 1 else p["diff"][:, None])
        if spec.kind == "full":  # as it is; the bias of a LoRA has the scale of its weight
            scale = 1.0
    elif "A" in p:
        B = p["B"].reshape(p["B"].shape[:2])
        A = _flat(p["A"])
        update = _tucker(p["mid"], B.T, A, module) if "mid" in p else Update(module, A, B)
    elif "w1_a" in p:
        halves = [
            _tucker(p[f"t{n}"], p[f"w{n}_a"], p[f"w{n}_b"], module) if f"t{n}" in p
            else Update(module, _flat(p[f"w{n}_b"]), p[f"w{n}_a"])
            for n in "12"
        ]  # fmt: skip
        update = HadamardUpdate(module, *halves)
    else:
        sides = []
        for n in "12":
            if f"kw{n}" in p:
                sides.append(of_dense(module, _flat(p[f"kw{n}"])))
            elif n == "2" and "kt2" in p:
                sides.append(_tucker(p["kt2"], p["kw2_a"], p["kw2_b"], module))
            else:
                sides.append(Update(module, _flat(p[f"kw{n}_b"]), p[f"kw{n}_a"]))
        update = KroneckerUpdate(module, *sides)
        if "kw1" in p and "kw2" in p and spec.scale is None:
            scale = 1.0  # LyCORIS has no rank to divide by, and writes an α that means nothing
    return update if scale == 1.0 else update.scaled(scale)


def _dora(container: Container, spec: Spec, update: Factored, magnitude: np.ndarray, base: np.ndarray | None) -> Update:
    """m ∘ (W + sBA)/‖W + sBA‖ − W: norms over rows, or over columns where the magnitude lies along the columns."""
    if base is None:
        raise LoraFileError(
            f"{container.path}: DoRA: the update of {spec.module} is relative to the base's weight; name a diffusers "
            "folder of its base in weights.base"
        )
    W = _flat(base).astype(np.float64)
    if W.shape != spec.shape:
        raise LoraFileError(
            f"{container.path}: {spec.module} is {spec.shape[0]} × {spec.shape[1]} here and {W.shape[0]} × "
            f"{W.shape[1]} in the base: weights.base is not the base that this was trained on"
        )
    plain_update = expanded(update)
    V = W + plain_update.B.astype(np.float64) @ plain_update.A.astype(np.float64)
    m = magnitude.astype(np.float64)
    # PEFT's are of the outputs, even where a convolution's lie along the second axis.
    lying = m.ndim > 1 and m.shape[0] == 1 and "lora_magnitude_vector" not in spec.keys["magnitude"]
    if lying and m.size == base.shape[1]:  # one norm an input channel, over outputs and the kernel (older LyCORIS)
        channels = V.reshape(len(V), m.size, -1)
        norms = np.linalg.norm(channels, axis=(0, 2), keepdims=True)
        turned = (channels * (m.reshape(1, -1, 1) / norms.clip(1e-30))).reshape(V.shape)
    elif m.size == len(V):
        turned = V * (m.reshape(-1, 1) / np.linalg.norm(V, axis=1, keepdims=True).clip(1e-30))
    else:
        raise LoraFileError(f"{container.path}: DoRA: {m.size} magnitudes for {len(V)} rows of {spec.module}")
    return of_dense(spec.module, (turned - W).astype(np.float32))
