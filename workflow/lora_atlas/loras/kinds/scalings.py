"""Updates that are the base's own weights times something.

IA³    rows or columns of W scaled: PEFT's factor, LyCORIS' difference from one   Liu et al. 2022, arXiv 2205.05638
HiRA   ΔW = W ∘ (BA)                        Huang et al. 2025, OpenReview TwJrTz9cRS
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Parts, Shape, ends, flat, needs, of_base, unfit

if TYPE_CHECKING:
    from ..formats import Spec

SCALES = "scales the base's weights"


def _along(spec: "Spec", factors: np.ndarray, base: np.ndarray, of_inputs: bool) -> Update:
    """ΔW of a difference from one for each output, or for each input channel."""
    if factors.size != base.shape[int(of_inputs)]:
        raise ValueError(f"{spec.module} is {list(base.shape)} in the base, and has {factors.size} factors")
    shape = [1] * base.ndim
    shape[int(of_inputs)] = -1
    changed = base.astype(np.float64) * factors.astype(np.float64).reshape(shape)
    return of_dense(spec.module, flat(changed).astype(np.float32))


def of_outputs(factors: Shape, weight: Shape) -> bool:
    """Whether PEFT's factors are of a layer's outputs: (out, 1), or (1, in) of the inputs of a feed-forward layer;
    those of a convolution are (1, channels, 1, 1) either way. Raises ValueError where that tells nothing."""
    if len(factors) == 2:
        return factors[1] == 1
    if len(weight) > 1 and weight[0] == weight[1]:
        raise ValueError(f"IA³ of a convolution {list(weight)}, whose factors may be of its inputs or of its outputs")
    return max(factors) == weight[0]


def _peft(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    factors = p["ia3_l"]
    weight = base if base.ndim > 1 else base[:, None]  # a bias
    return _along(spec, factors - 1, weight, not of_outputs(factors.shape, weight.shape))


def _lycoris(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    return _along(spec, p["ia3_weight"], base, bool(p["on_input"].item()))


IA3 = of_base(
    "IA3",
    ends("ia3_l"),
    _peft,
    SCALES,
    incomplete=needs("IA³", {"ia3_l"}),
    mismatch=lambda s: None if len(s["ia3_l"]) >= 2 and max(s["ia3_l"]) == math.prod(s["ia3_l"]) else unfit(s),
)

LYCORIS_IA3 = of_base(
    "IA3, LyCORIS",
    {"on_input": r"on_input"},  # and "weight", which other files have of whole layers
    _lycoris,
    SCALES,
    is_of=lambda parts: bool(parts & {"on_input", "ia3_weight"}),
    incomplete=needs("IA³", {"on_input", "ia3_weight"}),
    mismatch=lambda s: (
        None
        if math.prod(s["on_input"]) == 1 and max(s["ia3_weight"], default=0) == math.prod(s["ia3_weight"])
        else unfit(s)
    ),
)


def _hira(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    A, B = flat(p["hira_A"]), flat(p["hira_B"])
    product = B.astype(np.float64) @ A.astype(np.float64)
    return of_dense(spec.module, (flat(base) * product).astype(np.float32))


HIRA = of_base(
    "HiRA",
    ends("hira_A", "hira_B"),
    _hira,
    "multiplies the base's weights",
    mismatch=lambda s: (
        None
        if len(s["hira_A"]) >= 2 and len(s["hira_B"]) >= 2 and math.prod(s["hira_B"][2:]) == 1
        and s["hira_A"][0] == s["hira_B"][1]
        else unfit(s)
    ),
    shape=lambda s: (s["hira_B"][0], math.prod(s["hira_A"][1:])),
    rank=lambda s: min(s["hira_B"][0], math.prod(s["hira_A"][1:])),
    sized=False,
)  # fmt: skip
