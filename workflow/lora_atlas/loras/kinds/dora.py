"""DoRA, Liu et al. 2024, arXiv 2402.09353: m ∘ (W + sBA)/‖W + sBA‖ − W, which needs the base's weight W."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..container import Container, LoraFileError
from ..factors import Factored, Update, expanded, of_dense
from . import lora
from .kind import Keys, Kind, Parts, Shapes, flat, names, unfit
from .lora import LORA
from .tucker import TUCKER

if TYPE_CHECKING:
    from ..formats import Spec


def _inner(parts) -> Kind:
    return TUCKER if "mid" in parts else LORA


def incomplete(keys: Keys) -> str | None:
    if not names(keys) <= {"A", "B", "mid", "magnitude"}:
        return "a magnitude (DoRA) of an update that is no LoRA"
    return lora.incomplete(keys)


def mismatch(s: Shapes) -> str | None:
    wrong = _inner(s).mismatch(s)
    m = s["magnitude"]
    return wrong or (None if len(m) > 0 and math.prod(m) == max(m) else unfit(s))


def relative(container: Container, spec: "Spec", update: Factored, parts: Parts, base: np.ndarray | None) -> Update:
    """Norms are over rows, or over columns where the magnitude lies along the columns."""
    if base is None:
        raise LoraFileError(f"{container.path}: {needs_base(spec.module)}")
    W = flat(base).astype(np.float64)
    if W.shape != spec.shape:
        raise LoraFileError(
            f"{container.path}: {spec.module} is {spec.shape[0]} × {spec.shape[1]} here and {W.shape[0]} × "
            f"{W.shape[1]} in the base: weights.base is not the base that this was trained on"
        )
    plain_update = expanded(update)
    V = W + plain_update.B.astype(np.float64) @ plain_update.A.astype(np.float64)
    m = parts["magnitude"].astype(np.float64)
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


def needs_base(module: str) -> str:
    """What to do where nobody has named the base."""
    return (
        f"DoRA: the update of {module} is relative to the base's weight; name a diffusers folder of its base in "
        "weights.base"
    )


DORA = Kind(
    name="DoRA",
    spellings={"magnitude": r"(dora_scale|lora_magnitude_vector(\.[\w-]+)?(\.weight)?)"},
    is_of=lambda parts: "magnitude" in parts,
    incomplete=incomplete,
    mismatch=mismatch,
    shape=lambda s: _inner(s).shape(s),
    rank=lora.rank,
    update=lambda module, p: _inner(p).update(module, p),
    bytes=lambda s: _inner(s).bytes(s),
    relative=relative,
)
