"""Updates that are the base's own weights times something.

IA³    rows or columns of W scaled: PEFT's factor, LyCORIS' difference from one   Liu et al. 2022, arXiv 2205.05638
HiRA   ΔW = W ∘ (BA)                        Huang et al. 2025, OpenReview TwJrTz9cRS
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Kind, Parts, Shape, names, unfit, whole

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
    return of_dense(spec.module, changed.reshape(len(base), -1).astype(np.float32))


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


IA3 = Kind(
    name="IA3",
    spellings={"ia3_l": r"ia3_l(\.[\w-]+)?"},
    is_of=lambda parts: "ia3_l" in parts,
    incomplete=lambda keys: whole("IA³", set(), names(keys) - {"ia3_l"}, keys),
    mismatch=lambda s: None if len(s["ia3_l"]) >= 2 and max(s["ia3_l"]) == math.prod(s["ia3_l"]) else unfit(s),
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_peft,
    sized=True,
    why=SCALES,
)

LYCORIS_IA3 = Kind(
    name="IA3, LyCORIS",
    spellings={"on_input": r"on_input"},  # and "weight", which other files have of whole layers
    is_of=lambda parts: bool(parts & {"on_input", "ia3_weight"}),
    incomplete=lambda keys: whole(
        "IA³", {"on_input", "ia3_weight"} - names(keys), names(keys) - {"on_input", "ia3_weight"}, keys
    ),
    mismatch=lambda s: (
        None
        if math.prod(s["on_input"]) == 1 and max(s["ia3_weight"], default=0) == math.prod(s["ia3_weight"])
        else unfit(s)
    ),
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_lycoris,
    sized=True,
    why=SCALES,
)


def _hira(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    A, B = p["hira_A"].reshape(len(p["hira_A"]), -1), p["hira_B"].reshape(len(p["hira_B"]), -1)
    product = B.astype(np.float64) @ A.astype(np.float64)
    return of_dense(spec.module, (base.reshape(len(base), -1) * product).astype(np.float32))


HIRA = Kind(
    name="HiRA",
    spellings={f"hira_{x}": rf"hira_{x}(\.[\w-]+)?" for x in "AB"},
    is_of=lambda parts: bool(parts & {"hira_A", "hira_B"}),
    incomplete=lambda keys: whole("HiRA", {"hira_A", "hira_B"} - names(keys), names(keys) - {"hira_A", "hira_B"}, keys),
    mismatch=lambda s: (
        None
        if len(s["hira_A"]) >= 2 and len(s["hira_B"]) >= 2 and math.prod(s["hira_B"][2:]) == 1
        and s["hira_A"][0] == s["hira_B"][1]
        else unfit(s)
    ),
    shape=lambda s: (s["hira_B"][0], math.prod(s["hira_A"][1:])),
    rank=lambda s: min(s["hira_B"][0], math.prod(s["hira_A"][1:])),
    update=None,
    scaled=lambda parts, scale: False,
    relative=_hira,
    why="multiplies the base's weights",
)  # fmt: skip
