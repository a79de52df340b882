"""What a kind of update is to the rest of the library, and what several kinds share.

The algebra of LoHa, LoKr and Tucker is that of LyCORIS and PEFT (`rebuild_tucker`, `make_kron`), written on factors
instead of dense matrices; tests hold the two against each other.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..factors import Factored, Update
from ..reasons import listed as examples

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # part → shape of its tensor
Keys = Mapping[str, str]  # part → key of the file
Parts = Mapping[str, np.ndarray]
Names = frozenset[str]
Settings = Mapping[str, Any]  # of PEFT's configuration, where a kind needs it


def _always(*_: Any) -> bool:
    return True


def _as_stored(_: Shapes) -> int:
    return 0


@dataclass(frozen=True)
class Kind:
    """One kind of update; `alpha`, the scale's, is a part of any and given to none of these functions but `incomplete`.

    `spellings`: part → pattern of how keys that hold it end. `is_of`: whether parts are of this kind. `incomplete` and
    `mismatch`: what is wrong with keys and shapes, or None. `shape`: (out, in) of ΔW, convolutions flat. `rank`: r of
    the scale. `bytes`: what factors take that are larger than their tensors. `update`: factors, without the scale.
    """

    name: str
    spellings: Mapping[str, str]
    is_of: Callable[[Names], bool]
    incomplete: Callable[[Keys], str | None]
    mismatch: Callable[[Shapes], str | None]
    shape: Callable[[Shapes], tuple[int, int]]
    rank: Callable[[Shapes], int]
    update: Callable[[str, Parts], Factored] | None  # None: of a kind that is nothing without the base
    bytes: Callable[[Shapes], int] = _as_stored
    scaled: Callable[[Parts, float | None], bool] = _always  # whether s = α/r, or a configured scale, is applied
    squared: bool = False  # whether its inner products cost as much as those of rank r²
    plain: bool = False  # whether A and B stand in the file as they are
    hidden_rank: bool = False  # whether only a configuration can say the rank
    # For updates that are relative to the base's weight: (spec, update, parts, weight) → update; ValueError with what
    # does not fit. `why`: what is said where nobody has named the base.
    relative: Callable[[Any, Factored | None, Parts, Any], Factored] | None = None
    why: str = "is relative to the base's weight"
    sized: bool = False  # whether (out, in) stand in the base alone
    # Where PEFT's configuration says more than a scale: its settings that are needed, and the update with them.
    settings: tuple[str, ...] = ()
    configured: Callable[[str, Parts, Settings], Factored] | None = None
    shared: tuple[str, ...] = ()  # parts that stand in a file once, for all modules


def whole(kind: str, missing: set[str], foreign: set[str], keys: Keys, *, pair: bool = False) -> str | None:
    """What is wrong with the parts of an update: some missing, or some that are of no such update."""
    if missing:
        what = "half a pair" if pair else f"not a whole {kind}"
        return f"{what}, {' and '.join(sorted(part.removeprefix('k') for part in missing))} missing"
    if foreign:
        return f"parts of several kinds of update: {examples(sorted(keys.values()))}"
    return None


def number(settings: Settings, name: str, default: float) -> float:
    """A number of PEFT's configuration; ValueError where it is none, or none that such a setting can be."""
    value = settings.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise ValueError(f"{name} of its configuration is no sound number: {value!r:.40}")
    return float(value)


def names(keys: Keys) -> set[str]:
    return set(keys) - {"alpha"}


def unfit(shapes: Shapes) -> str:
    return f"its factors do not multiply: {listed(shapes)}"


def listed(shapes: Shapes) -> str:
    return ", ".join(f"{part.removeprefix('k')} {list(shape)}" for part, shape in sorted(shapes.items()))


def fits(a: Shape, b: Shape, t: Shape | None) -> bool:
    """Whether two factors multiply, or with a Tucker core W[p, r, …] = Σ t[i, j, …] a[i, p] b[j, r]."""
    if t is not None:
        return len(a) == len(b) == 2 and len(t) >= 2 and t[0] == a[0] and t[1] == b[0]
    # OneTrainer's factors of a convolution are convolutions: (out, r, 1, 1) and (r, in, height, width).
    return len(a) >= 2 and len(b) >= 2 and math.prod(a[2:]) == 1 and a[1] == b[0]


def sides(a: Shape, b: Shape, t: Shape | None) -> tuple[int, int]:
    """(out, in) of the product of two factors, or of a Tucker core between them."""
    return (a[0], math.prod(b[1:])) if t is None else (a[1], b[1] * math.prod(t[2:]))


def flat(x: np.ndarray) -> np.ndarray:
    """A convolution's kernel laid out flat: (out, in · height · width)."""
    return x.reshape(len(x), -1)


def product(module: str, a: np.ndarray, b: np.ndarray, t: np.ndarray | None) -> Update:
    """The product a·b, or with a Tucker core W[p, (r, …)] = Σᵢⱼ t[i, j, …] a[i, p] b[j, r] as factors of rank i."""
    if t is None:
        return Update(module, flat(b), a.reshape(a.shape[:2]))
    core = np.tensordot(t, b, (1, 0))  # (i, …, r)
    return Update(module, flat(np.moveaxis(core, -1, 1)), np.ascontiguousarray(a.T))
