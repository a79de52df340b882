"""Kinds of updates, a file each: what a kind is known by in a file, whether it is whole and fits, and its update.

A new kind is a file with a ``Kind`` and its place in KINDS; keys, headers, Gram matrices and tables know it from there.
Kinds are asked in turn whether the parts of a module are theirs, and the first that says so has it.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

from .blocks import C3A, DELORA, GRALORA, SHIRA, SUPER
from .dora import DORA
from .full import BIAS, FULL
from .kind import Keys, Kind, Shapes, listed
from .loha import LOHA
from .lokr import LOKR
from .lora import ADALORA, BLOCKS, EMBEDDING, EXPERTS, LORA
from .miss import MISS
from .rotations import BOFT, DIAGONAL_OFT, HRA, OFT
from .scalings import HIRA, IA3, LYCORIS_IA3
from .spectra import FOURIERFT, WAVEFT
from .starts import OLORA, PISSA
from .tucker import TUCKER
from .vectors import PVERA, RANDLORA, TINYLORA, UNILORA, VBLORA, VERA

# A factor may grow by its kernel when it is laid flat; a file of a few bytes must not name gigabytes.
MAX_GROWTH = 16
FREE_GROWTH = 64 * 2**20  # bytes

# Those of which most files are; their keys are tried first.
COMMON: tuple[Kind, ...] = (DORA, LOHA, LOKR, FULL, TUCKER, LORA)
RARE: tuple[Kind, ...] = (
    EMBEDDING, ADALORA, VERA, PVERA, RANDLORA, VBLORA, UNILORA, TINYLORA, C3A, GRALORA, DELORA, SHIRA, FOURIERFT,
    WAVEFT, SUPER, MISS, IA3, LYCORIS_IA3, HIRA, OFT, BOFT, HRA, DIAGONAL_OFT,
)  # fmt: skip
KINDS: tuple[Kind, ...] = (*RARE, *COMMON)
# Where PEFT's configuration says that A and B began as a part of the base.
STARTS = {"pissa": PISSA, "olora": OLORA}
NAMED: dict[str, Kind] = {kind.name: kind for kind in (*reversed(KINDS), *STARTS.values(), EXPERTS, BLOCKS, BIAS)}
# Part → pattern of how the keys that hold it end.
SPELLINGS: dict[str, str] = {part: ends for kind in (*reversed(COMMON), *RARE) for part, ends in kind.spellings.items()}
SHARED: frozenset[str] = frozenset(part for kind in KINDS for part in kind.shared)


def kind_of(parts: Iterable[str]) -> Kind:
    """The kind of an update with these parts; of none that is known, a LoRA, which then lacks its pair."""
    return _kind_of(frozenset(parts) - {"alpha"})


@lru_cache(maxsize=2**10)
def _kind_of(names: frozenset[str]) -> Kind:
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
