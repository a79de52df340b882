"""Gram matrices of LoRA weights, one for each component × block; all that follows is linear algebra on them.

For two updates of one module,

    ⟨ΔW₁, ΔW₂⟩ = tr(A₁ᵀB₁ᵀ B₂A₂) = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ),

products of size r × r, and N LoRAs at once are two matrix products of stacked factors; where ranks are so high that the
updates themselves are less work, a block of them at a time. Modules are streamed and LoRAs tiled: memory holds one
module of a tile of LoRAs, never a whole ΔW and never a matrix of N × parameters. A module that a LoRA lacks is a zero
update; LoRAs of several ranks and kinds (LoHa, LoKr) are stacked side by side.

Sums over modules are in float64. Products are in float64 where that costs next to nothing, else in float32: the error
of an inner product is then some 10⁻⁷ of the norms, a thousandth of what rounding to float16 did to the file.

Kernels: ``delta`` is invariant under A → M⁻¹A, B → BM; ``factors`` are the raw A and B side by side, as in
arXiv 2412.12048 and comparable only between LoRAs of one initial A; ``down`` and ``up`` are its two halves.

A cache keeps finished matrices by the content of the files (SHA-256): adding a file computes its own row and nothing
else. A run that was killed goes on after the last module that it wrote down.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from .. import machine, tensors
from ..descriptors import KFAC
from ..loras.container import LoraFileError, digest
from ..loras.factors import Factored, KroneckerUpdate, Update, expanded, inner
from ..loras.files import LoraFile, open_lora
from ..loras.kinds import NAMED
from ..loras.names import block, component
from .stack import Buffer, Halves, Stack, all_plain, of_updates, read_halves, read_stack

Grams = dict[tuple[str, str], np.ndarray]
Group = Stack | Halves | Sequence[Factored]
Read = Callable[[Sequence[int], str, str], Group]  # a module of a tile of files, for one side
ReadModule = Callable[[Sequence[int], str], Group]  # the same of one module

TILE_BYTES = 256 * 2**20  # of stacked float32 factors of one module
LARGEST = 4096**2  # numbers of a matrix of products of factors
DENSE_BLOCK = 2**22  # numbers of updates that are formed together
DENSE = 0.8  # of the multiplications of factored products below which those of updates are worth their memory
DOUBLE = 2**27  # multiplications up to which a product is in float64
SMALL = 2**18  # numbers of raw factors up to which they are copied to float64
EXPAND = 2**22  # numbers up to which a LoHa or LoKr is stacked as a plain pair
OPEN_FILES = 512
SAVE_EVERY = 30  # seconds


class GramError(ValueError):
    """A Gram file is damaged, or LoRAs have no inner product; the message names the files."""


# --- inner products of one module


def delta(left: Group, right: Group | None = None) -> np.ndarray:
    """⟨ΔWᵢ, ΔWⱼ⟩ (n, m) float64 of two groups of updates of one module; of one with itself where `right` is None."""
    if isinstance(left, Stack) and (right is None or isinstance(right, Stack)):
        return _products(left, right)
    same = right is None
    left = updates_of(left)
    right = left if right is None else updates_of(right)
    K = np.zeros((len(left), len(right)))
    groups, odd = _sorted(left)
    groups_right, odd_right = (groups, odd) if same else _sorted(right)
    for n, mine in enumerate(groups):
        for its in groups_right[n:] if same else groups_right:
            found = _between(mine, None if its is mine else its)
            K[np.ix_(mine.places, its.places)] = found
            if same and its is not mine:
                K[np.ix_(its.places, mine.places)] = found.T
    for i in range(len(left)):
        for j in odd_right if i not in odd else range(len(right)):
            if same and j < i and i in odd and j in odd:
                K[i, j] = K[j, i]
            else:
                K[i, j] = inner(left[i], right[j])
    return K


def stacked(group: Group) -> Stack:
    """A module's updates of any kind, written out where they are not plain, as one stack."""
    return group if isinstance(group, Stack) else of_updates([expanded(update) for update in updates_of(group)])


def updates_of(group: Group) -> Sequence[Factored]:
    """A module's updates, each by itself."""
    return group.updates("") if isinstance(group, Stack | Halves) else group


@dataclass(frozen=True)
class _Alike:
    """Updates that are handled together, and where they stand; `cut`: the shapes of both factors of Kronecker products,
    which all have, or None."""

    updates: Sequence[Factored]
    places: Sequence[int]
    cut: tuple[tuple[int, int], ...] | None

    @cached_property
    def stack(self) -> Stack:
        return of_updates([expanded(update) for update in self.updates])

    def part(self, name: str) -> list[Update]:
        return [getattr(update, name) for update in self.updates]


def _between(left: _Alike, right: _Alike | None) -> np.ndarray:
    """Inner products of two groups, or of one with itself."""
    other = left if right is None else right
    if left.cut is not None and left.cut == other.cut:
        # ⟨C⊗D, E⊗F⟩ = ⟨C, E⟩⟨D, F⟩ (Van Loan 2000, §2).
        first, second = (
            delta(left.part(name), None if right is None else right.part(name)) for name in ("first", "second")
        )
        return first * second
    return _products(left.stack, None if right is None else right.stack)


def _sorted(updates: Sequence[Factored]) -> tuple[list[_Alike], set[int]]:
    """Updates that are plain, or small enough to be made so, in groups; and the positions of the others."""
    places: dict[tuple[tuple[int, int], ...] | None, list[int]] = {}
    odd: set[int] = set()
    for i, update in enumerate(updates):
        if not isinstance(update, Update) and update.rank * sum(update.shape) > EXPAND:
            odd.add(i)
            continue
        cut = (update.first.shape, update.second.shape) if isinstance(update, KroneckerUpdate) else None
        places.setdefault(cut, []).append(i)
    return [_Alike([updates[i] for i in where], where, cut) for cut, where in places.items()], odd


def _products(left: Stack, right: Stack | None) -> np.ndarray:
    """Inner products (n, m) float64 of stacked updates; of one stack with itself where `right` is None.

    By products of the factors, R² (in + out) multiplications for ranks that sum to R, or by the updates themselves, a
    block of all of them at a time, R · in · out + n² · in · out: what is less work.
    """
    other = left if right is None else right
    ranks = (left.ranks, other.ranks)
    (total, its), out, width = map(sum, ranks), len(left.B[0]), left.A.shape[1]
    half = 0.5 if right is None else 1.0  # a matrix by its own transpose is half the work
    work = half * total * its * (out + width)
    dense = (total + (0 if right is None else its) + half * len(left) * len(other)) * out * width
    if work > DOUBLE and dense < DENSE * work:
        return _by_blocks(left, right)
    if total * its > LARGEST and max(len(left), len(other)) > 1:
        return _in_parts(left, right)
    kind: np.dtype = np.dtype(np.float64 if total * its * (out + width) <= DOUBLE else np.float32)
    A, B = left.A.astype(kind, copy=False), np.concatenate(left.B, axis=1, dtype=kind)
    if right is None:
        products = A @ A.T
        products *= B.T @ B
    else:
        products = A @ right.A.astype(kind, copy=False).T
        products *= B.T @ np.concatenate(right.B, axis=1, dtype=kind)
    for axis, sizes in enumerate(ranks):
        if len(set(sizes)) == 1:  # reduceat is slow along rows
            shape = (len(sizes), sizes[0], -1) if axis == 0 else (len(products), len(sizes), sizes[0])
            products = products.reshape(shape).sum(axis + 1, dtype=np.float64)
        else:
            starts = np.cumsum([0, *sizes])[:-1]
            products = np.add.reduceat(products, starts, axis=axis, dtype=np.float64)
    return products


def _in_parts(left: Stack, right: Stack | None) -> np.ndarray:
    """The same, half by half of the larger side, where the products of all factors would be too large a matrix."""
    if right is None:
        first, second = left.halves()
        corner = _products(first, second)
        return np.block([[_products(first, None), corner], [corner.T, _products(second, None)]])
    if len(left) < len(right):
        return _products(right, left).T
    return np.concatenate([_products(part, right) for part in left.halves()])


def _by_blocks(left: Stack, right: Stack | None) -> np.ndarray:
    """The same from the updates, block by block, in float32, their sums in float64. Blocks are square, in which a
    product of factors moves the least memory for its multiplications."""
    out, width = len(left.B[0]), left.A.shape[1]
    count = len(left) + (0 if right is None else len(right))
    side = max(math.isqrt(DENSE_BLOCK // count), 1)
    kept = Buffer()
    K = np.zeros((len(left), len(left if right is None else right)))
    for rows in _cut(out, side):
        for columns in _cut(width, max(DENSE_BLOCK // (count * (rows.stop - rows.start)), 1)):
            size = (rows.stop - rows.start, columns.stop - columns.start)
            X = left.dense(rows, columns, kept.array("left", (len(left), *size), np.float32))
            Y = X
            if right is not None:
                Y = right.dense(rows, columns, kept.array("right", (len(right), *size), np.float32))
            X, Y = X.reshape(len(X), -1), Y.reshape(len(Y), -1)
            K += X @ (X if right is None else Y).T
    return K


def _cut(length: int, most: int) -> Iterator[slice]:
    """Slices of nearly one length, of at most so many."""
    pieces = -(-length // most)
    return (slice(length * n // pieces, length * (n + 1) // pieces) for n in range(pieces))


def _flat(side: str) -> Callable[..., np.ndarray]:
    """The kernel of raw factors, "A" or "B": inner products of them laid flat."""

    def kernel(left: Group, right: Group | None = None) -> np.ndarray:
        """Inner products of raw factors; a smaller rank is padded with zeros."""
        groups = [left] if right is None else [left, right]
        halves = [group for group in groups if isinstance(group, Halves)]
        if len(halves) == len(groups) and halves[0].rank == halves[-1].rank:
            exact = halves[0].side(side).size + halves[-1].side(side).size <= SMALL
            return halves[0].products(None if right is None else halves[1], side, exact)
        stacks = [group for group in groups if isinstance(group, Stack)]
        rows = [X.A.reshape(len(X), -1) if side == "A" else X.rows for X in stacks if X.rows is not None]
        if len(rows) == len(groups) and len({stack.ranks[0] for stack in stacks}) == 1:
            exact = rows[0].size + rows[-1].size <= SMALL
            rows = [X.astype(np.float64 if exact else np.float32, copy=False) for X in rows]
        else:
            thin = [[_raw(update, side) for update in updates_of(group)] for group in groups]
            rank = max(len(factor) for factors in thin for factor in factors)
            rows = [_padded(factors, rank) for factors in thin]
        return (rows[0] @ rows[-1].T).astype(np.float64)

    return kernel


def _raw(update: Factored, side: str) -> np.ndarray:
    """One raw factor with the rank first; raises GramError for an update that has none."""
    if not isinstance(update, Update):
        raise GramError(
            f"{update.module}: a {type(update).__name__} has no raw A and B; only the kernel delta compares it"
        )
    return update.A if side == "A" else update.B.T


def _padded(factors: Sequence[np.ndarray], rank: int) -> np.ndarray:
    """Factors with the rank first as rows (n, rank × the other side) float64."""
    X = np.zeros((len(factors), rank, factors[0].shape[1]))
    for row, factor in zip(X, factors, strict=True):
        row[: len(factor)] = factor
    return X.reshape(len(factors), -1)


down = _flat("A")
up = _flat("B")


def factors(left: Group, right: Group | None = None) -> np.ndarray:
    """Inner products of A and B laid end to end (n, m) float64."""
    return down(left, right) + up(left, right)


KERNELS: dict[str, Callable[..., np.ndarray]] = {"delta": delta, "factors": factors, "down": down, "up": up}


# --- of all modules of many files


def gram(
    paths: Sequence[str | Path],
    kernel: str,
    *,
    ids: Sequence[str] | None = None,
    cache: str | Path | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> Grams:
    """Gram matrices (N, N) float64, symmetric, of N files, by (component, block).

    `cache`: a file that keeps matrices for the next call, and the state of one that is killed; `ids`: the files'
    SHA-256, which are computed where it needs them. Raises LoraFileError for a file that cannot be read, GramError
    where files are of different base models, KeyError for an unknown kernel.
    """
    KERNELS[kernel]
    files = [open_lora(path, pickles=pickles, base=base) for path in paths]
    check_one_base(files)
    if cache is None:
        return dict(sorted(_fresh(files, kernel, np.zeros(len(files), bool), {}, None).items()))
    ids = [digest(file.path) for file in files] if ids is None else list(ids)
    grams, old = _cached(Path(cache), ids, kernel)
    if not old.all():
        grams = _fresh(files, kernel, old, grams, _Progress(Path(cache), kernel, ids, old))
    grams = dict(sorted(grams.items()))
    write_gram(cache, ids, grams, kernel)
    return grams


def last_row(files: Sequence[LoraFile], kernel: str) -> dict[str, np.ndarray]:
    """Module → inner products (N,) float64 of the last of N files with all of them; of its own modules. Factors are
    read once, and no pair of the others is computed. Raises GramError where files are of different base models."""
    check_one_base(files)
    old = np.arange(len(files)) < len(files) - 1
    found = {}
    with reading(files, [kernel]) as read:
        for module in sorted(files[-1].layout.specs):
            total = np.zeros((len(files), len(files)))
            _add(total, files, module, kernel, old, of_module(read, module))
            found[module] = total[-1]
    return found


def check_one_base(files: Sequence[LoraFile]) -> None:
    """Raise GramError where two files give one module different shapes, naming both."""
    first: dict[str, LoraFile] = {}
    alike: dict[int, LoraFile] = {}
    for file in files:
        alike.setdefault(id(file.layout.specs), file)  # files of one trainer share what is understood of them
    for file in alike.values():
        for module, spec in file.layout.specs.items():
            other = first.setdefault(module, file)
            shape = other.layout.specs[module].shape
            if shape != spec.shape:
                raise GramError(
                    f"{module} is {shape[0]} × {shape[1]} in {other.path} and {spec.shape[0]} × {spec.shape[1]} in "
                    f"{file.path}: LoRAs of different base models cannot be compared"
                )


def _fresh(
    files: Sequence[LoraFile],
    kernel: str,
    old: np.ndarray,
    known: Grams,
    progress: "_Progress | None",
) -> Grams:
    """All inner products of which one side at least is not `old` (N,), added to the `known` ones."""
    modules = sorted(set().union(*(file.layout.specs for file in files)))
    grams = {key: K.copy() for key, K in known.items()}
    done = 0
    if progress is not None:
        done, saved = progress.resume(modules)
        grams |= saved
    with reading(files, [kernel]) as read:
        for number, module in enumerate(modules[done:], done + 1):
            total = grams.setdefault((component(module), block(module)), np.zeros((len(files), len(files))))
            _add(total, files, module, kernel, old, of_module(read, module))
            if progress is not None:
                progress.save(number, modules, grams)
    return grams


@contextmanager
def reading(files: Sequence[LoraFile], kernels: Iterable[str] = ("delta",)) -> Iterator[Read]:
    """A function that reads a module of a tile of files for one side, left or right, over what that side last held, as
    these kernels want it."""
    raw = not {"delta", KFAC} & set(kernels)
    with ExitStack() as stack:
        descriptors: list[int | None] = [None] * len(files)
        if len(files) <= machine.descriptors(OPEN_FILES):
            descriptors = [stack.enter_context(file.reading()) for file in files]
        kept = Buffer()

        # In one thread: the work is in many small steps, and two threads would spend it waiting for each other.
        def read(tile: Sequence[int], module: str, side: str) -> Group:
            if not all_plain([files[i] for i in tile], module):
                return [files[i].update(module, descriptors[i]) for i in tile]
            place = ([files[i] for i in tile], module, [descriptors[i] for i in tile], kept, side)
            halves = read_halves(*place) if raw else None
            return read_stack(*place) if halves is None else halves

        yield read


def of_module(read: Read, module: str) -> ReadModule:
    """What `reading` gives, of one module."""
    return lambda tile, side: read(tile, module, side)


def _add(
    total: np.ndarray, files: Sequence[LoraFile], module: str, kernel: str, old: np.ndarray, read: ReadModule
) -> None:
    """Add a module's inner products to `total` (N, N), tile by tile."""
    add_products({kernel: total}, files, module, old, read)


def add_products(
    totals: Mapping[str, np.ndarray], files: Sequence[LoraFile], module: str, old: np.ndarray, read: ReadModule
) -> None:
    """Add a module's inner products by each kernel to its matrix in `totals` (N, N); every tile is read once for all.

    Pairs of two LoRAs that are `old` (N,) are left as they are.
    """
    new = list(tiles(files, module, ~old))
    for number, tile in enumerate(new):
        updates = read(tile, "left")
        for other in [*new[number:], *tiles(files, module, old)]:
            right = None if other is tile else read(other, "right")
            for kernel, total in totals.items():
                with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused by name
                    K = KERNELS[kernel](updates) if right is None else KERNELS[kernel](updates, right)
                if not np.isfinite(K).all():
                    raise _too_large(module, [files[i] for i in [*tile, *other]])
                if right is None:
                    total[np.ix_(tile, tile)] += (K + K.T) / 2
                else:
                    total[np.ix_(tile, other)] += K
                    total[np.ix_(other, tile)] += K.T


def _bytes(file: LoraFile, module: str) -> int:
    """Bytes that a module of a file takes in a tile."""
    spec = file.layout.specs[module]
    rank = spec.rank**2 if NAMED[spec.kind].squared else spec.rank
    return 4 * rank * sum(spec.shape)


def tiles(files: Sequence[LoraFile], module: str, among: np.ndarray | None = None) -> Iterator[list[int]]:
    """Those of the files that have a module, as many at a time as are worth reading at once; `among` (N,): of these
    alone."""
    tile: list[int] = []
    room = TILE_BYTES
    sizes: dict[int, int] = {}  # of layouts, which files share
    for i, file in enumerate(files):
        if module not in file.layout.specs or not (among is None or among[i]):
            continue
        size = sizes.get(id(file.layout.specs)) or sizes.setdefault(id(file.layout.specs), _bytes(file, module))
        if tile and size > room:
            yield tile
            tile, room = [], TILE_BYTES
        tile.append(i)
        room -= size
    if tile:
        yield tile


def _too_large(module: str, files: Sequence[LoraFile]) -> LoraFileError:
    """The error that names the file of the largest update."""
    squares = [inner(update, update) for update in (file.update(module) for file in files)]
    worst = files[int(np.argmax(squares))]
    return LoraFileError(f"{worst.path}: the update of {module} is too large for float32")


# --- on disk


class _Progress:
    """What a killed run leaves: sums over the modules that are done, beside the cache and for these very files."""

    def __init__(self, cache: Path, kernel: str, ids: Sequence[str], old: np.ndarray):
        self.path = cache.with_name(f"{cache.name}.part")
        self.task = json.dumps([kernel, list(ids), old.tolist()])
        self.saved = time.monotonic()

    def resume(self, modules: Sequence[str]) -> tuple[int, Grams]:
        """The number of modules that are done, and the sums; nothing where the state is of other work."""
        try:
            with tensors.reading(self.path) as (header, file):
                if header["task"] != self.task or header["modules"] != list(modules):
                    return 0, {}
                print(f"going on after {header['done']} of {len(modules)} modules", flush=True)
                return header["done"], {tuple(key.split("/", 1)): file.get_tensor(key) for key in sorted(file.keys())}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return 0, {}

    def save(self, done: int, modules: Sequence[str], grams: Grams) -> None:
        if done == len(modules):
            with suppress(FileNotFoundError):
                self.path.unlink()
        elif time.monotonic() - self.saved > SAVE_EVERY:
            header = {"task": self.task, "modules": list(modules), "done": done}
            tensors.write(self.path, {f"{c}/{b}": K for (c, b), K in grams.items()}, header)
            self.saved = time.monotonic()


def _cached(cache: Path, ids: Sequence[str], kernel: str) -> tuple[Grams, np.ndarray]:
    """Known matrices laid out for these ids, and which of the ids they hold (N,)."""
    nothing: tuple[Grams, np.ndarray] = {}, np.zeros(len(ids), bool)
    if not cache.is_file():
        return nothing
    try:
        have, grams = read_gram(cache, kernel)
    except GramError as error:
        print(f"{error}; computed again", flush=True)
        return nothing
    place = {identity: i for i, identity in enumerate(have)}
    rows = np.array([place.get(identity, -1) for identity in ids])
    old = rows >= 0
    found = {}
    for key, K in grams.items():
        found[key] = np.zeros((len(ids), len(ids)))
        found[key][np.ix_(old, old)] = K[np.ix_(rows[old], rows[old])]
    return found, old


def write_gram(
    path: str | Path, ids: Sequence[str], grams: Grams, kernel: str, made: Mapping[str, Any] = {"engine": "exact"}
) -> None:
    """One tensor ``component/block`` each; ids, kernel and how they were `made` in the header."""
    named = {f"{component}/{block}": K for (component, block), K in sorted(grams.items())}
    tensors.write(path, named, {**made, "ids": list(ids), "kernel": kernel})


def read_gram(path: str | Path, kernel: str | None = None) -> tuple[list[str], Grams]:
    """Ids and Gram matrices of a file, of `kernel` where one is named; raises GramError naming the file."""
    try:
        with tensors.reading(path) as (header, file):
            ids = list(header["ids"])
            grams = {tuple(key.split("/", 1)): file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise GramError(f"{path}: not a Gram file of this project, or damaged ({error}); {tensors.AGAIN}") from error
    if kernel is not None and header.get("kernel") != kernel:
        raise GramError(f"{path}: of kernel {header.get('kernel')!r}, not {kernel!r}; {tensors.AGAIN}")
    bad = [
        key for key, K in grams.items() if len(key) != 2 or K.shape != (len(ids), len(ids)) or not np.isfinite(K).all()
    ]
    if bad or not grams:
        raise GramError(f"{path}: Gram matrices {bad} are not finite {len(ids)} × {len(ids)}; {tensors.AGAIN}")
    return ids, grams


def read_header(path: str | Path) -> dict[str, Any]:
    """How the matrices of a file that `read_gram` reads were made."""
    try:
        with tensors.reading(path) as (header, _):
            return header
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise GramError(f"{path}: not a Gram file of this project, or damaged ({error}); {tensors.AGAIN}") from error
