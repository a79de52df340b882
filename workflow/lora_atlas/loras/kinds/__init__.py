"""Kinds of updates, a file each: what a kind is known by in a file, whether it is whole and fits, and its update.

A new kind is a file with a ``Kind`` and its place in KINDS; keys, headers, Gram matrices and tables know it from there.
Kinds are asked in turn whether the parts of a module are theirs, and the first that says so has it.
"""

import math
from collections.abc import Iterable

from .dora import DORA
from .full import BIAS, FULL
from .kind import Keys, Kind, Shapes, listed
from .loha import LOHA
from .lokr import LOKR
from .lora import LORA
from .tucker import TUCKER

# A factor may grow by its kernel when it is laid flat; a file of a few bytes must not name gigabytes.
MAX_GROWTH = 16
FREE_GROWTH = 64 * 2**20  # bytes

KINDS: tuple[Kind, ...] = (DORA, LOHA, LOKR, FULL, TUCKER, LORA)
NAMED: dict[str, Kind] = {kind.name: kind for kind in (*KINDS, BIAS)}
# Part → pattern of how the keys that hold it end.
SPELLINGS: dict[str, str] = {part: ends for kind in reversed(KINDS) for part, ends in kind.spellings.items()}


def kind_of(parts: Iterable[str]) -> Kind:
    """The kind of an update with these parts; of none that is known, a LoRA, which then lacks its pair."""
    names = frozenset(parts) - {"alpha"}
    return next((kind for kind in KINDS if kind.is_of(names)), LORA)


def problem(kind: Kind, keys: Keys, shapes: Shapes) -> str | None:
    """What is wrong with the parts of an update, or None: some missing, or of no size, not fitting, or too large."""
    if wrong := kind.incomplete(keys):
        return wrong
    if any(0 in shape for shape in shapes.values()):
        return f"of size zero: {listed(shapes)}"
    if wrong := kind.mismatch(shapes):
        return wrong
    stored = 4 * sum(math.prod(shape) for shape in shapes.values())
    if kind.bytes(shapes) > max(MAX_GROWTH * stored, FREE_GROWTH):
        return "its factors grow beyond reason when they are laid flat"
    return None
