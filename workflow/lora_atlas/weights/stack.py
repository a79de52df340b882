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
from typing import NamedTuple

import numpy as np

from ..loras.container import LoraFileError, opened
from ..loras.factors import Update
from ..loras.files import LoraFile
from ..loras.formats import Spec
from ..loras.kinds import NAMED

CONVERTED = 2**15  # numbers that are converted together, in a core's own cache
BLOCK, NARROWEST = 2**17, 256  # numbers of raw factors that are multiplied together, and columns at least
_EXPONENT = 0x7C00  # of float16: infinite or NaN where all its bits are set
_OVERFLOW = 2.0**32  # the square of what conversion by shifts makes of the smallest of these
_BIAS = 2.0**112  # between the exponents of float16 and float32
_LARGEST_SCALE = 2.0**15  # that can be multiplied with it


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

    def dense(self, rows: slice, columns: slice, out: np.ndarray) -> np.ndarray:
        """A block of the updates themselves, into `out` (n, rows, columns)."""
        if self.rows is not None:
            B = self.rows.reshape(len(self), -1, self.ranks[0])[:, rows]
            return np.matmul(B, self.A.reshape(len(self), self.ranks[0], -1)[:, :, columns], out=out)
        stops = np.cumsum(self.ranks)
        for found, B, stop, r in zip(out, self.B, stops, self.ranks, strict=True):
            np.matmul(B[rows], self.A[stop - r : stop, columns], out=found)
        return out

    def updates(self, module: str) -> list[Update]:
        """The same as updates that share its memory."""
        stops = np.cumsum(self.ranks)
        return [
            Update(module, self.A[stop - r : stop], B) for stop, r, B in zip(stops, self.ranks, self.B, strict=True)
        ]


@dataclass(frozen=True)
class Halves:
    """Factors of one module, of one rank r, as files store them: `bits` (n, r · in + out · r) of float16, A before B,
    and the `scales` (n,) of B. Raw factors are multiplied in blocks that are converted in a core's own cache."""

    bits: np.ndarray
    scales: np.ndarray
    shape: tuple[int, int]
    rank: int
    own: "Buffer"

    def __len__(self) -> int:
        return len(self.bits)

    def side(self, name: str) -> np.ndarray:
        """The bits of "A" or "B" (n, numbers)."""
        cut = self.rank * self.shape[1]
        return self.bits[:, :cut] if name == "A" else self.bits[:, cut:]

    def products(self, right: "Halves | None", name: str, exact: bool) -> np.ndarray:
        """Inner products (n, m) float64 of "A" or "B" laid flat; blocks are `exact` in float64, else float32."""
        mine, its = self.side(name), None if right is None else right.side(name)
        step = max(BLOCK // max(len(self), 0 if right is None else len(right)), NARROWEST)
        K = np.zeros((len(self), len(self if right is None else right)))
        kind: np.dtype = np.dtype(np.float64 if exact else np.float32)
        for start in range(0, mine.shape[1], step):
            block = slice(start, start + step)
            X = self._single(mine[:, block], "left").astype(kind, copy=False)
            if its is None:
                found = X @ X.T
                # As in _convert: squares are summed in the diagonal.
                if not found.diagonal().max() < 0.99 * _OVERFLOW and _not_finite(mine[:, block]):
                    X = _cast(mine[:, block])
                    found = X @ X.T
            else:
                Y = self._single(its[:, block], "right").astype(kind, copy=False)
                if _not_finite(mine[:, block]) or _not_finite(its[:, block]):
                    X, Y = _cast(mine[:, block]), _cast(its[:, block])
                found = X @ Y.T
            K += found
        if name == "B":
            K *= self.scales[:, None] * (self if right is None else right).scales
        return K

    def _single(self, bits: np.ndarray, name: str) -> np.ndarray:
        X = self.own.array(f"block {name}", bits.shape, np.float32)
        _widen(bits, X, np.float32(1))
        return X

    def updates(self, module: str) -> list[Update]:
        """The same as updates."""
        (out, width), r = self.shape, self.rank
        A, B = (_cast(self.side(name)) for name in "AB")
        B *= self.scales.astype(np.float32)[:, None]
        return [Update(module, a.reshape(r, width), b.reshape(out, r)) for a, b in zip(A, B, strict=True)]


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
    return not file.container.arrays and _plain(file.layout.specs[module])


def all_plain(files: Sequence[LoraFile], module: str) -> bool:
    """The same of many files, of which most were understood together."""
    specs = {id(spec): spec for spec in (file.layout.specs[module] for file in files)}
    return not any(file.container.arrays for file in files) and all(map(_plain, specs.values()))


def _plain(spec: Spec) -> bool:
    return NAMED[spec.kind].plain and spec.rows is None and not spec.swapped


class Place(NamedTuple):
    """A module of a file: its spec, the file's descriptor where it is open, s where it is known without reading, and
    where both factors begin, if they are dense float16 side by side."""

    file: LoraFile
    spec: Spec
    descriptor: int | None
    scale: float | None
    start: int | None

    def scaled(self) -> float:
        return self.file.scale(self.spec.module, self.descriptor) if self.scale is None else self.scale


def _place(file: LoraFile, module: str, descriptor: int | None) -> Place:
    spec = file.layout.specs[module]
    start = file.container.entries[spec.keys["A"]].start if _halves(file, spec) else None
    scale = None if "alpha" in spec.keys else file.scale(module, descriptor)
    return Place(file, spec, descriptor, scale, None if descriptor is None else start)


def _places(files: Sequence[LoraFile], module: str, descriptors: Sequence[int | None]) -> list[Place]:
    """A module of many files, of which most were understood together."""
    known: dict[tuple[int, int], Place] = {}
    found = []
    for file, descriptor in zip(files, descriptors, strict=True):
        alike = id(file.layout.specs), id(file.container.entries)
        if (place := known.get(alike)) is None or (place.descriptor is None) != (descriptor is None):
            place = known[alike] = _place(file, module, descriptor)
        found.append(Place(file, place.spec, descriptor, place.scale, place.start))
    return found


def read_alike(
    file: LoraFile, modules: Sequence[str], descriptor: int | None, own: Buffer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B (m, out, r), Aᵀ (m, in, r) and s (m,) of plain modules of a file that have one shape and rank, in memory of
    `own`; what is not finite stays so."""
    places = [_place(file, module, descriptor) for module in modules]
    (out, width), r, m = places[0].spec.shape, places[0].spec.rank, len(places)
    B, At = own.array("B", (m, out, r), np.float32), own.array("A", (m, width, r), np.float32)
    A = own.array("A by ranks", (m, r, width), np.float32)
    _read_all(places, A, B, [1.0] * m, own)
    np.copyto(At, A.transpose(0, 2, 1))
    return B, At, np.array([place.scaled() for place in places])


def read_stack(
    files: Sequence[LoraFile], module: str, descriptors: Sequence[int | None], own: Buffer, name: str
) -> Stack:
    """One module of plain files, in memory of `own` called `name`; what is not finite stays so.

    Raises LoraFileError as `LoraFile.update` does.
    """
    places = _places(files, module, descriptors)
    ranks, (out, width), n = tuple(place.spec.rank for place in places), places[0].spec.shape, len(files)
    scales = [place.scaled() for place in places]
    A = own.array(f"{name} A", (sum(ranks), width), np.float32)
    flat = own.array(f"{name} B", (sum(ranks) * out,), np.float32)
    if len(set(ranks)) == 1:
        B = flat.reshape(n, out, ranks[0])
        _read_all(places, A.reshape(n, ranks[0], width), B, scales, own)
        return Stack(A, tuple(B), ranks, flat.reshape(n, -1))
    starts = np.cumsum([0, *ranks]).tolist()
    found = tuple(flat[at * out : (at + r) * out].reshape(out, r) for at, r in zip(starts, ranks, strict=False))
    for place, at, r, scale, b in zip(places, starts, ranks, scales, found, strict=False):
        _read_all([place], A[None, at : at + r], b[None], [scale], own)
    return Stack(A, found, ranks)


def read_halves(
    files: Sequence[LoraFile], module: str, descriptors: Sequence[int | None], own: Buffer, name: str
) -> Halves | None:
    """One module of plain files as it is stored, in memory of `own` called `name`; None where that is not dense float16
    of one rank."""
    places = _places(files, module, descriptors)
    spec = places[0].spec
    if any(place.start is None or place.spec.rank != spec.rank for place in places):
        return None
    bits = own.array(f"{name} bits", (len(places), spec.rank * sum(spec.shape)), np.int16)
    scales = np.array([place.scaled() for place in places])
    return Halves(_read_bits(places, bits), scales, spec.shape, spec.rank, own)


def _read_all(places: Sequence[Place], A: np.ndarray, B: np.ndarray, scales: Sequence[float], own: Buffer) -> None:
    """A (m, r, in) and s·B (m, out, r) as float32 of modules of one shape and rank.

    What lies side by side in float16 is read and converted in one go, and a few pieces together where they are small:
    calls cost as much as what they do.
    """
    if any(place.start is None or abs(s) > _LARGEST_SCALE for place, s in zip(places, scales, strict=True)):
        for place, a, b, scale in zip(places, A, B, scales, strict=True):
            _read(place.file, place.spec, place.descriptor, a, b)
            if scale != 1.0:
                with np.errstate(over="ignore", invalid="ignore"):
                    b *= np.float32(scale)
        return
    cut, count = A[0].size, A[0].size + B[0].size
    step = max(CONVERTED // count, 1)
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        _convert(places[part], cut, count, A[part], B[part], scales[part], own)


def _convert(
    places: Sequence[Place], cut: int, count: int, A: np.ndarray, B: np.ndarray, scales: Sequence[float], own: Buffer
) -> None:
    """The same of a few modules, `count` numbers each, of which A is the first `cut`."""
    bits = _read_bits(places, own.array("bits", (len(places), count), np.int16))
    least = min(scales, key=abs)
    s = np.float32(least) if len(set(scales)) == 1 else np.array(scales, np.float32)[:, None, None]
    for part, X, scale, low in ((bits[:, :cut], A, np.float32(1), 1.0), (bits[:, cut:], B, s, least)):
        _widen(part.reshape(X.shape), X, scale)
        flat = X.reshape(-1)
        # A sum of squares below this bound has nothing in it that was infinite or NaN.
        if not flat.dot(flat) < 0.99 * _OVERFLOW * low * low and _not_finite(part):
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(_cast(part).reshape(X.shape), scale, out=X)


def _read_bits(places: Sequence[Place], bits: np.ndarray) -> np.ndarray:
    """Both factors of modules (m, count) as they are stored."""
    for place, row in zip(places, bits.view(np.uint8), strict=True):
        assert place.descriptor is not None and place.start is not None
        if os.preadv(place.descriptor, [row], place.start) != row.size:
            raise LoraFileError(f"{place.file.path}: cut short while it was read; copy it again")
    return bits


def _widen(bits: np.ndarray, X: np.ndarray, scale: np.ndarray | np.float32) -> None:
    """float16, given as int16, times `scale` into float32 of the same shape, exactly; infinities and NaN become numbers
    of 65,536 and more. In place, since memory costs more than arithmetic."""
    # As in container.py: the sign to the top, exponent and mantissa to their place, then the exponent's bias.
    wide = X.view(np.int32)
    np.copyto(wide, bits)
    wide <<= 13
    wide &= np.int32(-0x70002000)
    X *= np.float32(_BIAS) * scale


def _not_finite(bits: np.ndarray) -> bool:
    return bool((bits & 0x7FFF).max() >= _EXPONENT)


def _cast(bits: np.ndarray) -> np.ndarray:
    """float16, given as int16, as float32 with all that is not finite."""
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


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
