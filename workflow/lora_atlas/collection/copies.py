"""Copies: whether two files hold one update, in whatever spelling, number format and scale, or nearly one.

A number that is stored with m bits of mantissa is off by 2⁻ᵐ/√12 of its power of two at most on average. Updates whose
two factors were rounded so are at a distance of 0.29 to 0.33 · 2⁻ᵐ from the original (measured: factors normal,
uniform and heavy-tailed, stored as they are and rescaled): 3·10⁻⁴ in float16 (m = 10), 2.5·10⁻³ in bfloat16 (m = 7).
Two files are the same update where rounding to the coarser of the two can explain their distance. How coarse a file is
its numbers tell: many a float32 file holds what was bfloat16 before.

Float8 makes 0.04 to 0.1 of an update, by how many of its numbers are too small for it, and some hundred steps at the
end of a training make 0.003. Up to that they are nearly the same.
"""

import math

import numpy as np

from ..loras.files import LoraFile
from ..weights.sketch import Sketch, folded

ROUNDED = 0.34  # of 2⁻ᵐ: the distance that rounding both factors to m bits of mantissa can make
EXACT = 1e-5  # what arithmetic in float32 leaves
NEARLY = 0.1
SAMPLED = 4  # tensors of a kind by which a file's precision is known
SCALED = 5e-3  # of the ratio of two norms, before one update is called a multiple of the other


def apart(one: Sketch, other: Sketch) -> tuple[float, float]:
    """The distance of two updates at norm one, up to sign, and the factor from the other to the one.

    From differences in float64: from a cosine nothing below 10⁻⁴ can be told. (2, nan) where one is zero.
    """
    D = min(one.D, other.D)
    a, b = (
        {module: part.astype(np.float64) for module, part in folded(each, D).parts.items()} for each in (one, other)
    )
    square, its = (sum(float(x @ x) for x in parts.values()) for parts in (a, b))
    if not (square > 0 and its > 0):
        return 2.0, math.nan
    factor = sum(float(a[module] @ b[module]) for module in a.keys() & b.keys()) / its
    rest = 0.0
    for module in a.keys() | b.keys():
        x = a.get(module, 0.0) - factor * b.get(module, np.zeros(D))
        rest += float(x @ x)
    return 2 * math.sin(math.asin(min(math.sqrt(rest / square), 1.0)) / 2), factor


def precision(file: LoraFile) -> int:
    """Bits of mantissa that the coarsest of a file's factors make use of: 23 of float32, 10 of float16, 7 of bfloat16,
    whatever it is stored as; of a few large tensors of each part."""
    keys: dict[str, list[str]] = {}
    for spec in file.layout.specs.values():
        for part, key in spec.keys.items():
            keys.setdefault(part, []).append(key)
    found = [23]
    with file.reading() as descriptor:
        for part, named in keys.items():
            if part == "alpha":
                continue
            largest = sorted(named, key=lambda key: -math.prod(file.container.entries[key].shape))[:SAMPLED]
            bits = 0
            for key in largest:
                values = np.ascontiguousarray(file.container.read(key, descriptor), np.float32)
                bits |= int(np.bitwise_or.reduce(values.view(np.uint32).ravel(), initial=0)) & 0x7FFFFF
            if bits:  # powers of two, as of an identity, tell nothing
                found.append(23 - (bits & -bits).bit_length() + 1)
    return min(found)


def relation(distance: float, factor: float, bits: int) -> str | None:
    """In words how one update is that of another, of which the coarser has so many bits of mantissa: "same update",
    "same update × 0.5", "nearly the same"; None where it is another one."""
    rounding = max(EXACT, ROUNDED * 2.0**-bits)
    if not distance <= max(NEARLY, rounding):
        return None
    words = "same update" if distance <= rounding else "nearly the same"
    return words if abs(factor - 1) < max(SCALED, distance) else f"{words} × {factor:.3g}"
