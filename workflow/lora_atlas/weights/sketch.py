"""Sketches: one small vector of each LoRA, by itself, whose inner products are those of the updates.

A module's update is a sum of outer products bᵢaᵢᵀ. TensorSketch (Pham & Pagh 2013) projects it onto D numbers without
forming it: a and b are each scattered over D places with random signs (CountSketch), and the two are convolved,

    s = Σᵢ ℱ⁻¹( ℱ(C₁bᵢ) ∘ ℱ(C₂aᵢ) ),        E⟨s, s′⟩ = ⟨ΔW, ΔW′⟩,

with an error near √(2/D) of the norms whatever the rank is. S ΔW Tᵀ with random S and T of k rows, D = k², needs no
transforms, but its error falls only with √k where the rank is low, as that of LoRAs is (benchmarks/RESULTS.md).
Sketches of modules stand side by side, so their errors average out, and any subset of components or blocks is a sum
over some of them. Sketches are linear: copies of one update, rescaled or not, have parallel sketches whatever D is.

D is the largest power of two for which a file's sketch has no more than a given count of numbers. Places are hashes
modulo D, so a sketch of 2D folds into that of D: files of different D are compared at the smaller.

A sketch depends on its file and that count alone: N files are N sketches, in one loop or in N jobs, and a new file
costs one. Exact Gram matrices cost N² instead.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from .. import tensors
from ..loras.container import LoraFileError, open_container, opened
from ..loras.factors import Factored, KroneckerUpdate, expand, expanded, inner, is_whole, matrix
from ..loras.files import LoraFile
from ..loras.names import block, component
from .gram import EXPAND, delta
from .stack import Buffer, is_plain, read_alike

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NUMBERS = 600_000  # of a sketch: 1024 for each of the 560 attention layers of an SDXL
SMALLEST, LARGEST = 64, 2**16  # D
STRIDE = 64  # modules of all sketches that are in memory together
TOGETHER = 2**17  # numbers that are transformed together: what a core keeps near
SCATTERED = 2**23  # places of hashes that are kept
WIDE = 256  # a rank from which on entries of a whole matrix are fewer steps than transforms of its factors
SEED = 0  # one for all studies: sketches of one file are then the same everywhere, and can be kept


@dataclass(frozen=True)
class Sketch:
    """`parts`: module → (D,) float32; `norms`: module → ‖ΔW‖, which is exact."""

    D: int
    parts: Mapping[str, np.ndarray]
    norms: Mapping[str, float]


class Hashes:
    """The random scatterings of modules, drawn once for a base: CountSketch matrices (D, length)."""

    def __init__(self, seed: int = SEED):
        self.seed = seed
        self._drawn: dict[tuple[tuple[str, ...], str, int, int], csr_matrix] = {}
        self._size = 0

    def of(self, module: str, side: str, length: int, D: int) -> "csr_matrix":
        return self.together((module,), side, length, D)

    def together(self, modules: tuple[str, ...], side: str, length: int, D: int) -> "csr_matrix":
        """Those of several modules of one length along a diagonal, (m · D, m · length)."""
        key = (modules, side, length, D)
        if key not in self._drawn:
            # Not above: a fifth of a second that whoever reads sketches, and makes none, need not wait.
            from scipy.sparse import csr_matrix

            if self._size > SCATTERED:  # of other layouts of modules, which a folder has many of
                self._drawn.clear()
                self._size = 0
            # Bits of SHAKE-128: the same on every machine and with every version of numpy.
            streams = (
                hashlib.shake_128(json.dumps([self.seed, module, side]).encode()).digest(4 * length)
                for module in modules
            )
            bits = np.frombuffer(b"".join(streams), "<u4").reshape(len(modules), length)
            signs = np.where(bits >> 31, np.float32(1), np.float32(-1))
            places = bits % np.uint32(D) + D * np.arange(len(modules))[:, None]
            shape = (len(modules) * D, len(modules) * length)
            columns = np.arange(shape[1])
            self._drawn[key] = csr_matrix((signs.ravel(), (places.ravel(), columns)), shape=shape)
            self._size += len(columns)
        return self._drawn[key]


def size(modules: int, numbers: int = NUMBERS) -> int:
    """D: the largest power of two of which `modules` times is at most `numbers`, within SMALLEST and LARGEST."""
    each = max(numbers // max(modules, 1), 1)
    return min(max(2 ** (each.bit_length() - 1), SMALLEST), LARGEST)


def sketch(file: LoraFile, *, numbers: int = NUMBERS, hashes: Hashes | None = None) -> Sketch:
    """The sketch of a file; raises LoraFileError for what cannot be read."""
    hashes, D = hashes or Hashes(), size(len(file.layout.specs), numbers)
    parts: dict[str, np.ndarray] = {}
    norms: dict[str, float] = {}
    own = Buffer()
    with file.reading() as descriptor, np.errstate(over="ignore", invalid="ignore"):
        for modules, B, At, s, squares in _alike(file, D, descriptor, own):
            found = _projected(modules, B, At, D, hashes)
            found *= s.astype(np.float32)[:, None]
            for module, part, square in zip(modules, found, squares, strict=True):
                _check(file, module, part, square)
                parts[module], norms[module] = part, math.sqrt(max(square, 0.0))
        for module in file.layout.specs:
            if module not in parts:  # too large to be one pair of factors, or whole
                update = file.update(module, descriptor)
                part, square = project(update, D, hashes), inner(update, update)
                _check(file, module, part, square)
                parts[module], norms[module] = part, math.sqrt(max(square, 0.0))
    order = list(file.layout.specs)
    return Sketch(D, {module: parts[module] for module in order}, {module: norms[module] for module in order})


def _check(file: LoraFile, module: str, part: np.ndarray, square: float) -> None:
    if not (math.isfinite(square) and np.isfinite(part).all()):
        file.update(module)  # names keys that are not finite
        raise LoraFileError(f"{file.path}: the update of {module} is too large for float32")


# Modules, B (m, out, r), Aᵀ (m, in, r), s (m,), and the squared norms.
Alike = tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, list[float]]


def _alike(file: LoraFile, D: int, descriptor: int | None, own: Buffer) -> Iterator[Alike]:
    """A file's modules with those of their shape and rank, as many as are worth handling together: what they are, and
    so every rounding, is the file's alone. Those that are no small pair of factors are left out."""
    plain: dict[tuple[int, ...], list[str]] = {}
    others: dict[tuple[int, ...], list[Factored]] = {}
    for module, spec in file.layout.specs.items():
        if is_plain(file, module):
            plain.setdefault((*spec.shape, spec.rank), []).append(module)
    for (_, _, r), modules in plain.items():
        for names in _cut(modules, D * r):
            B, At, s = read_alike(file, names, descriptor, own)
            squares = s**2 * np.einsum("mij,mij->m", _squares(B), _squares(At))
            yield tuple(names), B, At, s, squares.tolist()
    for module in file.layout.specs:
        if not is_plain(file, module):
            update = file.update(module, descriptor)
            if update.rank * sum(update.shape) > EXPAND or (update.rank >= WIDE and is_whole(update)):
                continue
            waiting = others.setdefault((*update.shape, update.rank), [])
            waiting.append(update)
            if len(waiting) * D * update.rank >= TOGETHER:
                yield _stacked(waiting, own)
                waiting.clear()
    yield from (_stacked(waiting, own) for waiting in others.values() if waiting)


def _stacked(updates: Sequence[Factored], own: Buffer) -> Alike:
    (out, width), r, m = updates[0].shape, updates[0].rank, len(updates)
    B, At = own.array("B", (m, out, r), np.float32), own.array("A", (m, width, r), np.float32)
    for update, b, at in zip(updates, B, At, strict=True):
        expand(update, b, at)
    squares = [
        inner(update, update) if isinstance(update, KroneckerUpdate) else delta([update])[0, 0] for update in updates
    ]
    return tuple(update.module for update in updates), B, At, np.ones(m), squares


def _cut(modules: Sequence[str], each: int) -> Iterator[Sequence[str]]:
    step = max(TOGETHER // each, 1)
    return (modules[start : start + step] for start in range(0, len(modules), step))


def _squares(X: np.ndarray) -> np.ndarray:
    """XᵀX (m, r, r) float64 of X (m, n, r); float32 products do where n is a layer's width, not where it is a
    million."""
    if X.shape[1] <= 2**15:
        return np.matmul(X.transpose(0, 2, 1), X).astype(np.float64)
    return np.asarray(sum(_squares(half) for half in np.array_split(X, 2, axis=1)))


def project(update: Factored, D: int, hashes: Hashes) -> np.ndarray:
    """TensorSketch (D,) float32 of one update."""
    if is_whole(update):
        return projected_dense(update.module, matrix(update)[None], D, hashes)[0]
    pieces = [expanded(update)] if update.rank * sum(update.shape) <= EXPAND else update.pieces()
    found = np.zeros(D, np.float32)
    for piece in pieces:
        At = np.ascontiguousarray(piece.A.T)
        found += _projected((update.module,), piece.B[None], At[None], D, hashes)[0]
    return found


def _projected(modules: tuple[str, ...], B: np.ndarray, At: np.ndarray, D: int, hashes: Hashes) -> np.ndarray:
    """The sketches (m, D) of modules B A, given as B (m, out, r) and Aᵀ (m, in, r)."""
    import scipy.fft

    spectra = []
    for side, X in (("out", B), ("in", At)):
        m, n, r = X.shape
        scattered = hashes.together(modules, side, n, D) @ X.reshape(m * n, r)
        spectra.append(scipy.fft.rfft(scattered.reshape(m, D, r), axis=1, overwrite_x=True))
    spectra[0] *= spectra[1]
    total = spectra[0] @ np.ones(B.shape[2], np.complex64)
    return scipy.fft.irfft(total, D, axis=1).astype(np.float32)


def projected_dense(module: str, X: np.ndarray, D: int, hashes: Hashes) -> np.ndarray:
    """The same (n, D) of matrices (n, out, in) that are given whole: the entry of row i and column j is added at the
    sum of their places."""
    rows, columns = (
        hashes.of(module, side, length, D).tocsc() for side, length in zip(("out", "in"), X.shape[1:], strict=True)
    )
    found = np.zeros((len(X), D))
    step = max(TOGETHER * 32 // X.shape[2], 1)
    for start in range(0, X.shape[1], step):
        part = slice(start, start + step)
        places = ((rows.indices[part, None] + columns.indices[None]) % D).ravel()
        signs = np.outer(rows.data[part], columns.data).ravel()
        for total, x in zip(found, X, strict=True):
            total += np.bincount(places, signs * x[part].ravel(), D)
    return found.astype(np.float32)


def sketches(
    files: Sequence[LoraFile], *, numbers: int = NUMBERS, hashes: Hashes | None = None
) -> Iterator[Sketch | LoraFileError]:
    """Sketches of many files in their order; of one that cannot be read, its error."""
    hashes = hashes or Hashes()
    for file in files:
        try:
            yield sketch(file, numbers=numbers, hashes=hashes)
        except LoraFileError as error:
            yield error


def folded(found: Sketch, D: int) -> Sketch:
    """The sketch of a smaller D, a power of two, from this one alone."""
    if D >= found.D:
        return found
    return Sketch(D, {module: part.reshape(-1, D).sum(0) for module, part in found.parts.items()}, found.norms)


def _where(module: str) -> tuple[str, str]:
    return component(module), block(module)


def sketch_gram(
    found: Sequence[Sketch],
    key: Callable[[str], Any] = _where,
    weights: Mapping[str, float] | None = None,
) -> dict[Any, np.ndarray]:
    """Estimated Gram matrices (N, N) float64 of sketches, summed by `key` of the module: (component, block), or
    another; an absent module is zero. `weights`: of modules, if they do not weigh alike; those that it lacks weigh
    nothing."""
    D, n = min(s.D for s in found), len(found)
    found = [folded(s, D) for s in found]
    grams: dict[Any, np.ndarray] = {}
    for module in sorted(set().union(*(s.parts for s in found))):
        holders = [i for i, s in enumerate(found) if module in s.parts]
        X = np.stack([found[i].parts[module] for i in holders])
        K = (X @ X.T).astype(np.float64)
        total = grams.setdefault(key(module), np.zeros((n, n)))
        weight = 1.0 if weights is None else weights.get(module, 0.0)
        total[np.ix_(holders, holders)] += weight * (K + K.T) / 2
    return dict(sorted(grams.items()))


def sketch_files_gram(
    paths: Sequence[str | Path],
    key: Callable[[str], Any] = _where,
    weights: Mapping[str, float] | None = None,
) -> dict[Any, np.ndarray]:
    """`sketch_gram` of sketches on disk, a few modules at a time: memory does not grow with what a sketch holds."""
    for path in paths:
        try:
            tensors.check(path)
        except (tensors.ContentError, OSError) as error:
            raise LoraFileError(f"{path}: a sketch that is damaged ({error}); delete it and rerun") from error
    containers = [open_container(path) for path in paths]
    grams: dict[Any, np.ndarray] = {}
    modules = sorted(set().union(*(container.entries for container in containers)))
    for start in range(0, len(modules), STRIDE):
        part = set(modules[start : start + STRIDE])
        found = []
        for path, container in zip(paths, containers, strict=True):
            with opened(path) as descriptor:
                parts = {m: container.read(m, descriptor) for m in container.entries if m in part}
            found.append(Sketch(container.entries[next(iter(container.entries))].shape[0], parts, {}))
        for name, K in sketch_gram(found, key, weights).items():
            grams[name] = grams[name] + K if name in grams else K
    return dict(sorted(grams.items()))


def sketch_path(cache: str | Path, sha256: str, numbers: int) -> Path:
    """Where the sketch of a file of these contents is kept."""
    return Path(cache) / f"{sha256}.{numbers}.safetensors"


def write_sketch(path: str | Path, found: Sketch) -> None:
    tensors.write(path, found.parts, {"D": found.D, "norms": dict(found.norms)})


def read_sketch(path: str | Path) -> Sketch:
    """A sketch that `write_sketch` wrote; raises LoraFileError naming a file that is damaged."""
    try:
        with tensors.reading(path) as (header, file):
            parts = {module: file.get_tensor(module) for module in sorted(file.keys())}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise LoraFileError(f"{path}: a sketch that is damaged ({error}); delete it and rerun") from error
    D, norms = header.get("D", 0), header.get("norms", {})
    if set(norms) != set(parts) or any(part.shape != (D,) for part in parts.values()):
        raise LoraFileError(f"{path}: a sketch that is damaged (not {D} numbers a module); delete it and rerun")
    return Sketch(D, parts, norms)
