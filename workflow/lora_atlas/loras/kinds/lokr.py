"""LoKr, Yeh et al. 2024, arXiv 2309.14859: s·(w1 ⊗ w2), each whole or a product; s = 1 where both are whole.

Where both are whole there is no rank to divide by, and trainers write an α that means nothing: the size of the network,
which some set to 10¹⁰, or infinity of it in half precision. LyCORIS' rs_lora makes an exception: it trains with √dim
and writes α = dim·√dim, so that the scale is the cube root of α.
"""

import math
from collections.abc import Container

import numpy as np

from ..factors import KroneckerUpdate, of_dense
from .kind import Keys, Kind, Parts, Shape, Shapes, fits, flat, names, product, sides, unfit, whole

# The rank is the size of this axis of the first of these parts that is there.
_RANK_AXIS = (("kw1_b", 0), ("kw2_b", 0), ("kw1_a", 1), ("kw2_a", 1))


def incomplete(keys: Keys) -> str | None:
    parts = names(keys)
    missing, foreign = set(), {part for part in parts if not part.startswith("k")}
    for side in ("kw1", "kw2"):
        if side in parts:  # whole, and then not also a product
            foreign |= {part for part in parts if part.startswith(f"{side}_")}
        else:
            missing |= {f"{side}_a", f"{side}_b"} - parts
    if "kw2" in parts:
        foreign |= {"kt2"} & parts
    return whole("LoKr", missing, foreign, keys)


def _side(s, n: str):
    """Factors of side n, and its Tucker core: the second side may have one."""
    return s[f"kw{n}_a"], s[f"kw{n}_b"], s.get("kt2") if n == "2" else None


def mismatch(s: Shapes) -> str | None:
    ok = True
    for n in "12":
        if f"kw{n}" in s:
            ok = ok and len(s[f"kw{n}"]) >= 2 and (n == "2" or math.prod(s["kw1"][2:]) == 1)
        else:
            ok = ok and fits(*_side(s, n))
    return None if ok else unfit(s)


def _sides(s: Shapes, n: str) -> tuple[int, int]:
    if f"kw{n}" in s:
        side: Shape = s[f"kw{n}"]
        return side[0], math.prod(side[1:])
    return sides(*_side(s, n))


def shape(s: Shapes) -> tuple[int, int]:
    one, two = _sides(s, "1"), _sides(s, "2")
    return one[0] * two[0], one[1] * two[1]


def rank(s: Shapes) -> int:
    if "kt2" in s:
        return s["kt2"][0]
    found = next((s[part][axis] for part, axis in _RANK_AXIS if part in s), None)
    return min(s["kw2"][:2]) if found is None else found  # both whole


def update(module: str, p: Parts) -> KroneckerUpdate:
    return KroneckerUpdate(
        module,
        *(of_dense(module, flat(p[f"kw{n}"])) if f"kw{n}" in p else product(module, *_side(p, n)) for n in "12"),
    )


def both_whole(parts: Container[str]) -> bool:
    return "kw1" in parts and "kw2" in parts


def root_scale(alpha: float, dtype: str, said: bool) -> float:
    """√dim where two whole factors are of LyCORIS with rs_lora, else 1: α is then dim·√dim.

    `said`: whether the header says rs_lora. Where it does not, only an α that no whole dim gives tells it: one that is
    dim·√dim to the last digit of its type `dtype`, and no whole number.
    """
    if not 1 < alpha < 1e9:
        return 1.0
    dim = round(alpha ** (2 / 3))
    near = abs(_stored(dim**1.5, dtype) - alpha) <= 2e-7 * alpha  # a rounding of float32
    return math.sqrt(dim) if near and (said or not float(alpha).is_integer()) else 1.0


def _stored(x: float, dtype: str) -> float:
    """The nearest number of a type."""
    if dtype == "BF16":
        bits = int(np.float32(x).view(np.uint32))
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return np.uint32(bits).view(np.float32).item()
    with np.errstate(over="ignore"):
        return np.asarray(x, {"F16": "<f2", "F64": "<f8"}.get(dtype, "<f4")).item()


LOKR = Kind(
    name="LoKr",
    spellings={f"k{part}": rf"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    is_of=lambda parts: any(part.startswith("k") for part in parts),
    incomplete=incomplete,
    mismatch=mismatch,
    shape=shape,
    rank=rank,
    update=update,
    bytes=lambda s: 4 * s["kt2"][0] * s["kw2_b"][1] * math.prod(s["kt2"][2:]) if "kt2" in s else 0,
    scaled=lambda p, configured: not (both_whole(p) and configured is None),
    squared=True,
    hidden_rank=True,
)
