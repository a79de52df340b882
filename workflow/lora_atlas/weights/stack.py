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

CONVERTED = 2**18  # numbers that are converted together: what a core keeps near
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

    def halves(self) -> tuple["Stack", "Stack"]:
        """The first and the second half of its updates."""
        n = (len(self) + 1) // 2
        at = sum(self.ranks[:n])
        cut = (None, None) if self.rows is None else (self.rows[:n], self.rows[n:])
        return (
            Stack(self.A[:at], self.B[:n], self.ranks[:n], cut[0]),
            Stack(self.A[at:], self.B[n:], self.ranks[n:], cut[1]),
        )

    def dense(self, rows: slice, out: np.ndarray) -> np.ndarray:
        """Those rows of the updates themselves, into `out` (n, rows, in)."""
        if self.rows is not None:
            B = self.rows.reshape(len(self), -1, self.ranks[0])[:, rows]
            return np.matmul(B, self.A.reshape(len(self), self.ranks[0], -1), out=out)
        stops = np.cumsum(self.ranks)
        for found, B, stop, r in zip(out, self.B, stops, self.ranks, strict=True):
            np.matmul(B[rows], self.A[stop - r : stop], out=found)
        return out

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


def read_alike(
    file: LoraFile, modules: Sequence[str], descriptor: int | None, own: Buffer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B (m, out, r), Aᵀ (m, in, r) and s (m,) of plain modules of a file that have one shape and rank, in memory of
    `own`; what is not finite stays so."""
    specs = [file.layout.specs[module] for module in modules]
    (out, width), r, m = specs[0].shape, specs[0].rank, len(specs)
    B, At = own.array("B", (m, out, r), np.float32), own.array("A", (m, width, r), np.float32)
    _read_all([(file, spec, descriptor) for spec in specs], At.transpose(0, 2, 1), B, own)
    return B, At, np.array([file.scale(module, descriptor) for module in modules])


def read_stack(
    files: Sequence[LoraFile], module: str, descriptors: Sequence[int | None], own: Buffer, name: str
) -> Stack:
    """One module of plain files, in memory of `own` called `name`; what is not finite stays so.

    Raises LoraFileError as `LoraFile.update` does.
    """
    specs = [file.layout.specs[module] for file in files]
    ranks, (out, width), n = tuple(spec.rank for spec in specs), specs[0].shape, len(files)
    A = own.array(f"{name} A", (sum(ranks), width), np.float32)
    flat = own.array(f"{name} B", (sum(ranks) * out,), np.float32)
    places = list(zip(files, specs, descriptors, strict=True))
    starts = np.cumsum([0, *ranks]).tolist()
    found = tuple(flat[at * out : (at + r) * out].reshape(out, r) for at, r in zip(starts, ranks, strict=False))
    if len(set(ranks)) == 1:
        _read_all(places, A.reshape(n, ranks[0], width), flat.reshape(n, out, ranks[0]), own)
    else:
        for place, at, r, B in zip(places, starts, ranks, found, strict=False):
            _read_all([place], A[None, at : at + r], B[None], own)
    for file, descriptor, B in zip(files, descriptors, found, strict=True):
        scale = file.scale(module, descriptor)
        if scale != 1.0:
            with np.errstate(over="ignore", invalid="ignore"):
                B *= np.float32(scale)
    return Stack(A, found, ranks, flat.reshape(n, -1) if len(set(ranks)) == 1 else None)


Place = tuple[LoraFile, Spec, int | None]  # a module of a file, and the file's descriptor where it is open


def _read_all(places: Sequence[Place], A: np.ndarray, B: np.ndarray, own: Buffer) -> None:
    """Both factors of modules of one shape and rank as float32 into A (m, r, in) and B (m, out, r).

    What lies side by side in float16 is read side by side and converted together: so small are the pieces that calls
    cost more than what they do.
    """
    if not all(descriptor is not None and _halves(file, spec) for file, spec, descriptor in places):
        for (file, spec, descriptor), a, b in zip(places, A, B, strict=True):
            _read(file, spec, descriptor, a, b)
        return
    cut, count = A[0].size, A[0].size + B[0].size
    step = max(CONVERTED // count, 1)
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        _convert(places[part], cut, count, A[part], B[part], own)


def _convert(places: Sequence[Place], cut: int, count: int, A: np.ndarray, B: np.ndarray, own: Buffer) -> None:
    """The same of a few modules, `count` numbers each, of which A is the first `cut`."""
    m = len(places)
    bits = own.array("bits", (m, count), np.int16)
    rows = bits.view(np.uint8)
    for (file, spec, descriptor), row in zip(places, rows, strict=True):
        assert descriptor is not None
        if os.preadv(descriptor, [row.data], file.container.entries[spec.keys["A"]].start) != 2 * count:
            raise LoraFileError(f"{file.path}: cut short while it was read; copy it again")
    magnitude = np.bitwise_and(bits, 0x7FFF, out=own.array("magnitude", (m, count), np.int16))
    if magnitude.max() >= _EXPONENT:
        values = bits.view(np.float16).astype(np.float32)
        np.copyto(A, values[:, :cut].reshape(A.shape))
        np.copyto(B, values[:, cut:].reshape(B.shape))
        return
    # As in container.py: the sign to the top, exponent and mantissa to their place, then the exponent's bias.
    wide = np.left_shift(bits, 13, out=own.array("wide", (m, count), np.int32), dtype=np.int32)
    wide &= np.int32(-0x70002000)
    single, bias = wide.view(np.float32), np.float32(2.0**112)
    np.multiply(single[:, :cut].reshape(A.shape), bias, out=A)
    np.multiply(single[:, cut:].reshape(B.shape), bias, out=B)


def _halves(file: LoraFile, spec: Spec) -> bool:
    """Whether both factors are dense float16, B after A, as safetensors sorts them."""
    if file.container.arrays or sys.byteorder != "little":
        return False
    down, up = (file.container.entries[spec.keys[part]] for part in "AB")
    return down.dtype == up.dtype == "F16" and up.start == down.end and down.strides is up.strides is None


def _read(file: LoraFile, spec: Spec, descriptor: int | None, A: np.ndarray, B: np.ndarray) -> None:
    """Both factors as float32 into A (r, in) and B (out, r)."""
    if descriptor is None and not file.container.arrays:
        with opened(file.container.path) as descriptor:  # once for both
            return _read(file, spec, descriptor, A, B)
    down, up = (file.container.entries[spec.keys[part]] for part in "AB")
    flat = A.flags.c_contiguous and B.flags.c_contiguous and sys.byteorder == "little"
    single = down.dtype == up.dtype == "F32" and up.start == down.end and down.strides is up.strides is None
    if descriptor is not None and flat and single:
        # Numbers as they are wanted: read to where they belong.
        views = [X.reshape(-1).view(np.uint8).data for X in (A, B)]
        if os.preadv(descriptor, views, down.start) != A.nbytes + B.nbytes:
            raise LoraFileError(f"{file.path}: cut short while it was read; copy it again")
        return
    np.copyto(A, file.container.read(spec.keys["A"], descriptor).reshape(A.shape))
    np.copyto(B, file.container.read(spec.keys["B"], descriptor).reshape(B.shape))
    return
