"""DoRA, Liu et al. 2024, arXiv 2402.09353: m ∘ (W + ΔW)/‖W + ΔW‖ − W, of a LoRA's ΔW or, in LyCORIS, of a LoHa's or a
LoKr's; it needs the base's weight W."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, expanded, of_dense
from . import lora
from .kind import Keys, Kind, Parts, Shapes, flat, names, unfit
from .loha import LOHA
from .lokr import LOKR
from .lora import LORA
from .tucker import TUCKER

if TYPE_CHECKING:
    from ..formats import Spec


def _inner(parts) -> Kind:
    rest = frozenset(parts) - {"magnitude", "alpha"}
    if LOHA.is_of(rest):
        return LOHA
    if LOKR.is_of(rest):
        return LOKR
    return TUCKER if "mid" in rest else LORA


def incomplete(keys: Keys) -> str | None:
    inner = _inner(keys)
    if inner is LORA and not names(keys) <= {*lora.PAIR, "magnitude"}:
        return "a magnitude (DoRA) of an update that is no LoRA, LoHa or LoKr"
    return inner.incomplete({part: key for part, key in keys.items() if part != "magnitude"})


def mismatch(s: Shapes) -> str | None:
    wrong = _inner(s).mismatch(s)
    m = s["magnitude"]
    return wrong or (None if len(m) > 0 and math.prod(m) == max(m) else unfit(s))


def relative(spec: "Spec", update: Factored | None, parts: Parts, base: np.ndarray) -> Update:
    """Norms are over rows, or over columns where the magnitude lies along the columns."""
    assert update is not None
    W = flat(base).astype(np.float64)
    plain = expanded(update)
    V = W + plain.B.astype(np.float64) @ plain.A.astype(np.float64)
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
        raise ValueError(f"DoRA: {m.size} magnitudes for {len(V)} rows of {spec.module}")
    return of_dense(spec.module, (turned - W).astype(np.float32))


def _update(module: str, p: Parts) -> Factored:
    make = _inner(p).update
    assert make is not None
    return make(module, p)


DORA = Kind(
    name="DoRA",
    # "magnitude" alone is ai-toolkit's.
    spellings={"magnitude": r"(dora_scale|magnitude|lora_magnitude_vector(\.[\w-]+)?(\.weight)?)"},
    is_of=lambda parts: "magnitude" in parts,
    incomplete=incomplete,
    mismatch=mismatch,
    shape=lambda s: _inner(s).shape(s),
    rank=lambda s: _inner(s).rank(s),
    update=_update,
    bytes=lambda s: _inner(s).bytes(s),
    scaled=lambda p, configured: _inner(p).scaled(p, configured),
    relative=relative,
)
