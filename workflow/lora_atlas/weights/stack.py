"""Factors of one module of many LoRAs, side by side in two matrices: what both engines multiply.

Most of what reading a LoRA costs is turning float16 into float32 and moving it about. Plain LoRAs are therefore read
straight into the stack, through buffers that are kept from module to module: fresh memory costs a page fault for every
4 kB, which is more than the arithmetic.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .container import LoraFileError
from .factors import Update
from .files import LoraFile

_EXPONENT = 0x7C00  # of float16: infinite or NaN where all its bits are set


@dataclass(frozen=True)
class Stack:
    """A (R, in) and Bt (R, out) of several updates, one below the other; `ranks` of each."""

    A: np.ndarray
    Bt: np.ndarray
    ranks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ranks)

    def updates(self, module: str) -> list[Update]:
        """The same as updates that share its memory."""
        stops = np.cumsum(self.ranks)
        return [
            Update(module, self.A[stop - r : stop], self.Bt[stop - r : stop].T)
            for stop, r in zip(stops, self.ranks, strict=True)
        ]


class Buffer:
    """Memory that is kept and grows: an array handed out is overwritten by the next of its name, which has its type."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, dtype)
        return kept[:size].reshape(shape)


def of_updates(updates: Sequence[Update]) -> Stack:
    """A stack of plain updates, copied."""
    ranks = tuple(update.rank for update in updates)
    out, width = updates[0].shape
    kind = np.result_type(*(update.A for update in updates), *(update.B for update in updates))
    A, Bt, at = np.empty((sum(ranks), width), kind), np.empty((sum(ranks), out), kind), 0
    for update, r in zip(updates, ranks, strict=True):
        A[at : at + r], Bt[at : at + r] = update.A, update.B.T
        at += r
    return Stack(A, Bt, ranks)


def is_plain(file: LoraFile, module: str) -> bool:
    """Whether a module of a file can be read straight into a stack."""
    spec = file.layout.specs[module]
    return spec.kind == "LoRA" and spec.rows is None and not spec.swapped and not file.container.arrays


def thin(file: LoraFile, module: str, descriptor: int | None, own: Buffer) -> tuple[np.ndarray, np.ndarray, float]:
    """B (out, r), Aᵀ (in, r) and s of one module of a plain file, in memory of `own`."""
    spec = file.layout.specs[module]
    out, width = spec.shape
    B, At = own.array("B", (out, spec.rank), np.float32), own.array("A", (width, spec.rank), np.float32)
    _read(file, spec.keys["A"], descriptor, At.T, own)
    _read(file, spec.keys["B"], descriptor, B, own)
    return B, At, file.scale(module, descriptor)


def fill(
    files: Sequence[LoraFile],
    module: str,
    descriptors: Sequence[int | None],
    A: np.ndarray,
    Bt: np.ndarray,
    own: Buffer,
) -> None:
    """Read one module of plain files into rows of A (R, in) and Bt (R, out); what is not finite stays so.

    `own`: buffers of the calling thread. Raises LoraFileError as `LoraFile.update` does.
    """
    at = 0
    for file, descriptor in zip(files, descriptors, strict=True):
        spec = file.layout.specs[module]
        r = spec.rank
        _read(file, spec.keys["A"], descriptor, A[at : at + r], own)
        _read(file, spec.keys["B"], descriptor, Bt[at : at + r].T, own)
        scale = file.scale(module, descriptor)
        if scale != 1.0:
            with np.errstate(over="ignore", invalid="ignore"):
                Bt[at : at + r] *= np.float32(scale)
        at += r


def _read(file: LoraFile, key: str, descriptor: int | None, out: np.ndarray, own: Buffer) -> None:
    """One tensor as float32 into `out`, whose shape is that of the tensor laid flat."""
    entry = file.container.entries[key]
    if entry.dtype != "F16" or descriptor is None:
        np.copyto(out, file.container.read(key, descriptor).reshape(out.shape))
        return
    size = entry.end - entry.start
    data = own.array("bytes", (size,), np.uint8)
    if os.preadv(descriptor, [data], entry.start) != size:
        raise LoraFileError(f"{file.path}: cut short while it was read; copy it again")
    bits = data.view("<i2").reshape(out.shape)
    magnitude = np.bitwise_and(bits, 0x7FFF, out=own.array("magnitude", out.shape, np.int16))
    if magnitude.max() >= _EXPONENT:
        np.copyto(out, bits.view("<f2"))
        return
    # As in container.py: the sign to the top, exponent and mantissa to their place, then the exponent's bias.
    wide = np.left_shift(bits, 13, out=own.array("wide", out.shape, np.int32), dtype=np.int32)
    wide &= np.int32(-0x70002000)
    np.multiply(wide.view(np.float32), np.float32(2.0**112), out=out)
