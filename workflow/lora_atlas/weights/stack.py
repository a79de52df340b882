"""Factors of one module of many LoRAs, side by side in two matrices: what both engines multiply.

Most of what reading a LoRA costs is turning float16 into float32 and moving it about. Plain LoRAs are therefore read
straight into the stack, through buffers that are kept from module to module: fresh memory costs a page fault for every
4 kB, which is more than the arithmetic.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..loras.container import LoraFileError, opened
from ..loras.factors import Update
from ..loras.files import LoraFile
from ..loras.formats import Spec
from ..loras.kinds import NAMED

_EXPONENT = 0x7C00  # of float16: infinite or NaN where all its bits are set


@dataclass(frozen=True)
class Stack:
    """Plain updates of one module: A (R, in), one below the other, and each one's B (out, r), of `ranks` r.

    `rows` (n, out × r): the B laid flat, where their memory lies so; of one rank, then.
    """

    A: np.ndarray
    B: tuple[np.ndarray, ...]
    ranks: tuple[int, ...]
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ranks)

    def updates(self, module: str) -> list[Update]:
        """The same as updates that share its memory."""
        stops = np.cumsum(self.ranks)
        return [
            Update(module, self.A[stop - r : stop], B) for stop, r, B in zip(stops, self.ranks, self.B, strict=True)
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
    """A stack of plain updates."""
    A = np.concatenate([update.A for update in updates])
    return Stack(A, tuple(update.B for update in updates), tuple(update.rank for update in updates))


def is_plain(file: LoraFile, module: str) -> bool:
    """Whether a module of a file can be read straight into a stack."""
    spec = file.layout.specs[module]
    return NAMED[spec.kind].plain and spec.rows is None and not spec.swapped and not file.container.arrays


def thin(file: LoraFile, module: str, descriptor: int | None, own: Buffer) -> tuple[np.ndarray, np.ndarray, float]:
    """B (out, r), Aᵀ (in, r) and s of one module of a plain file, in memory of `own`."""
    spec = file.layout.specs[module]
    out, width = spec.shape
    B, At = own.array("B", (out, spec.rank), np.float32), own.array("A", (width, spec.rank), np.float32)
    _read(file, spec, descriptor, At.T, B, own)
    return B, At, file.scale(module, descriptor)


def read_stack(
    files: Sequence[LoraFile], module: str, descriptors: Sequence[int | None], own: Buffer, name: str
) -> Stack:
    """One module of plain files, in memory of `own` called `name`; what is not finite stays so.

    Raises LoraFileError as `LoraFile.update` does.
    """
    specs = [file.layout.specs[module] for file in files]
    ranks, (out, width) = tuple(spec.rank for spec in specs), specs[0].shape
    A = own.array(f"{name} A", (sum(ranks), width), np.float32)
    flat = own.array(f"{name} B", (sum(ranks) * out,), np.float32)
    found, at = [], 0
    for file, spec, descriptor, r in zip(files, specs, descriptors, ranks, strict=True):
        B = flat[at * out : (at + r) * out].reshape(out, r)
        _read(file, spec, descriptor, A[at : at + r], B, own)
        scale = file.scale(module, descriptor)
        if scale != 1.0:
            with np.errstate(over="ignore", invalid="ignore"):
                B *= np.float32(scale)
        found.append(B)
        at += r
    return Stack(A, tuple(found), ranks, flat.reshape(len(files), -1) if len(set(ranks)) == 1 else None)


def _read(file: LoraFile, spec: Spec, descriptor: int | None, A: np.ndarray, B: np.ndarray, own: Buffer) -> None:
    """Both factors as float32 into A (r, in) and B (out, r)."""
    if descriptor is None and not file.container.arrays:
        with opened(file.container.path) as descriptor:  # once for both
            return _read(file, spec, descriptor, A, B, own)
    down, up = (file.container.entries[spec.keys[part]] for part in "AB")
    flat = A.flags.c_contiguous and B.flags.c_contiguous and sys.byteorder == "little"
    # Side by side, as safetensors sorts them.
    kinds = (down.dtype, up.dtype) if up.start == down.end and down.strides is up.strides is None else None
    if descriptor is not None and flat and kinds == ("F32", "F32"):
        # Numbers as they are wanted: read to where they belong.
        views = [X.reshape(-1).view(np.uint8).data for X in (A, B)]
        if os.preadv(descriptor, views, down.start) != A.nbytes + B.nbytes:
            raise LoraFileError(f"{file.path}: cut short while it was read; copy it again")
        return
    if descriptor is None or kinds != ("F16", "F16"):
        np.copyto(A, file.container.read(spec.keys["A"], descriptor).reshape(A.shape))
        np.copyto(B, file.container.read(spec.keys["B"], descriptor).reshape(B.shape))
        return
    # The two lie side by side in the file: one read and one conversion serve both.
    count = A.size + B.size
    bits = own.array("bits", (count,), np.int16)
    if os.preadv(descriptor, [bits.view(np.uint8).data], down.start) != 2 * count:
        raise LoraFileError(f"{file.path}: cut short while it was read; copy it again")
    magnitude = np.bitwise_and(bits, 0x7FFF, out=own.array("magnitude", (count,), np.int16))
    if magnitude.max() >= _EXPONENT:
        values = bits.view(np.float16).astype(np.float32)
        np.copyto(A, values[: A.size].reshape(A.shape))
        np.copyto(B, values[A.size :].reshape(B.shape))
        return
    # As in container.py: the sign to the top, exponent and mantissa to their place, then the exponent's bias.
    wide = np.left_shift(bits, 13, out=own.array("wide", (count,), np.int32), dtype=np.int32)
    wide &= np.int32(-0x70002000)
    single, bias = wide.view(np.float32), np.float32(2.0**112)
    np.multiply(single[: A.size].reshape(A.shape), bias, out=A)
    np.multiply(single[A.size :].reshape(B.shape), bias, out=B)
