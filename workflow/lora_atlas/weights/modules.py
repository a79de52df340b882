"""Gram matrices of single modules: what an ablation adds up.

Any part of the weights, by component, block or at random, is a sum of these matrices, and so is the whole. They are
those of gram.py before it sums them, by the same kernels and in the same tiles, and every factor is read once for all
kernels. On the disk they are N² numbers for each module and kernel, written and read one matrix at a time. Who weighs
modules holds those of one kernel; where these are more than LIMIT nothing is computed.

Beside each matrix stands how many parameters of a LoRA it describes: numbers in A for ``down``, in B for ``up``, in
both for ``factors`` and ``delta``. Of LoRAs of several ranks it is the largest number. What is no pair of A and B (a
LoHa, a LoKr, a full difference) has the parameters that its file holds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .. import tensors
from ..descriptors import KFAC
from ..loras.files import LoraFile, open_lora
from .gram import KERNELS, GramError, ReadModule, add_products, check_one_base, of_module, reading
from .metric import Metric, warped

HALVES = ("down", "up")  # kernels of one factor each; together ``factors``
ModuleGrams = Mapping[str, Mapping[str, np.ndarray]]  # kernel → module → (N, N)
Parameters = dict[str, dict[str, int]]  # kernel → module → numbers

LIMIT = 2**34  # bytes of the matrices that are held together
UNDESCRIBED = ("alpha", "magnitude")  # parts of a module that are folded into the update


def module_grams(
    paths: Sequence[str | Path],
    kernels: Sequence[str],
    *,
    metric: Metric | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> tuple[ModuleGrams, Parameters]:
    """Gram matrices (N, N) float64, symmetric, of N files, by kernel and module; and their parameters.

    `metric`: that of their base, for the kernel `kfac`, which has the modules that it knows. Raises what `gram` does,
    and GramError where the matrices would take more than LIMIT bytes.
    """
    files, parameters = _asked(paths, kernels, metric, pickles, base)
    _fits(len(files), sum(map(len, parameters.values())))
    grams: dict[str, dict[str, np.ndarray]] = {kernel: {} for kernel in kernels}
    for kernel, module, K in _each(files, parameters, metric):
        grams[kernel][module] = K
    return grams, parameters


def write_module_grams(
    path: str | Path,
    ids: Sequence[str],
    paths: Sequence[str | Path],
    kernels: Sequence[str],
    *,
    metric: Metric | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> None:
    """`write_modules` of `module_grams`, of which memory holds one module: to the same bytes.

    Raises GramError where those of one kernel, which whoever weighs modules holds, would take more than LIMIT bytes.
    """
    files, parameters = _asked(paths, kernels, metric, pickles, base)
    _fits(len(files), max(map(len, parameters.values())))
    shape = (len(files), len(files))
    named = {f"{kernel}/{module}": shape for kernel, modules in parameters.items() for module in modules}
    with tensors.writing(path, named, {"ids": list(ids), "parameters": parameters}) as put:
        for kernel, module, K in _each(files, parameters, metric):
            put(f"{kernel}/{module}", K)


def _asked(
    paths: Sequence[str | Path], kernels: Sequence[str], metric: Metric | None, pickles: bool, base: str | None
) -> tuple[list[LoraFile], Parameters]:
    """Open files, and the parameters of each kernel's modules."""
    for kernel in kernels:
        if kernel != KFAC:
            KERNELS[kernel]
    files = [open_lora(path, pickles=pickles, base=base) for path in paths]
    check_one_base(files)
    modules = sorted(set().union(*(file.layout.specs for file in files)))
    known = {KFAC: [module for module in modules if metric and module in metric.moments]}
    if KFAC in kernels and not known[KFAC]:
        raise GramError("the kernel kfac: the base's second moments are of none of these LoRAs' modules")
    return files, {
        kernel: {module: _parameters(files, module, kernel) for module in known.get(kernel, modules)}
        for kernel in kernels
    }


def _fits(n: int, matrices: int) -> None:
    size = 8 * n**2 * matrices
    if size > LIMIT:
        raise GramError(
            f"{matrices} Gram matrices of single modules for {n} LoRAs take {size / 2**30:.1f} GiB, and at most "
            f"{LIMIT / 2**30:.1f} GiB are held together: choose fewer LoRAs, or fewer training.targets"
        )


def _each(
    files: Sequence[LoraFile], parameters: Parameters, metric: Metric | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kernel, module and matrix (N, N), module by module."""
    plain = [kernel for kernel in parameters if kernel != KFAC]
    modules = sorted(set().union(*parameters.values()))
    new = np.zeros(len(files), bool)
    with reading(files, parameters) as read:
        for module in modules:
            totals = {kernel: np.zeros((len(files), len(files))) for kernel in plain}
            add_products(totals, files, module, new, of_module(read, module))
            roots = metric.roots(module) if metric and module in parameters.get(KFAC, ()) else None
            if roots is not None:
                totals[KFAC] = np.zeros((len(files), len(files)))
                add_products({"delta": totals[KFAC]}, files, module, new, _warping(of_module(read, module), roots))
            for kernel, K in totals.items():
                yield kernel, module, K


def _warping(read: ReadModule, roots: tuple[np.ndarray, np.ndarray]) -> ReadModule:
    """What is read, in the metric of a base."""
    return lambda tile, side: warped(read(tile, side), roots)


@dataclass(frozen=True)
class Asked(Mapping[str, np.ndarray]):
    """Module → Gram matrix (N, N), each of which is read or made when it is asked for."""

    modules: tuple[str, ...]
    make: Callable[[str], np.ndarray]

    def __getitem__(self, module: str) -> np.ndarray:
        if module not in self.modules:
            raise KeyError(module)
        return self.make(module)

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


def stacked_grams(grams: Mapping[str, np.ndarray], modules: Sequence[str]) -> np.ndarray:
    """The matrices (modules, N, N) of these modules, with no other copy of them in memory."""
    found: np.ndarray | None = None
    for m, module in enumerate(modules):
        K = grams[module]
        if found is None:
            found = np.empty((len(modules), *K.shape), K.dtype)
        found[m] = K
    assert found is not None, "no module"
    return found


def of_kernel(grams: ModuleGrams, kernel: str) -> Mapping[str, np.ndarray]:
    """Module → Gram matrix (N, N) of a kernel; ``factors``, where it is absent, is the sum of ``down`` and ``up``.

    Raises GramError naming a kernel that is absent.
    """
    if kernel in grams:
        return grams[kernel]
    halves = HALVES if kernel == "factors" else (kernel,)
    absent = [half for half in halves if half not in grams]
    if absent:
        raise GramError(f"the Gram matrices of single modules lack the kernel {absent[0]!r}; rerun that stage")
    return Asked(tuple(grams[halves[0]]), lambda module: np.asarray(sum(grams[half][module] for half in halves)))


def _parameters(files: Iterable[LoraFile], module: str, kernel: str) -> int:
    return max(_numbers(file, module, kernel) for file in files if module in file.layout.specs)


def _numbers(file: LoraFile, module: str, kernel: str) -> int:
    spec = file.layout.specs[module]
    out, width = spec.shape
    stored = {part: key for part, key in spec.keys.items() if part not in UNDESCRIBED}
    if kernel not in HALVES and set(stored) != {"A", "B"}:
        return sum(math.prod(file.container.entries[key].shape) for key in stored.values())
    return spec.rank * {"down": width, "up": out}.get(kernel, out + width)


def write_modules(path: str | Path, ids: Sequence[str], grams: ModuleGrams, parameters: Parameters) -> None:
    """One tensor ``kernel/module`` each; ids and parameters in the header."""
    named = {
        f"{kernel}/{module}": K for kernel, matrices in sorted(grams.items()) for module, K in sorted(matrices.items())
    }
    tensors.write(path, named, {"ids": list(ids), "parameters": parameters})


def read_modules(path: str | Path) -> tuple[list[str], ModuleGrams, Parameters]:
    """Ids, Gram matrices and parameters of a file; a matrix is read when it is asked for.

    Raises GramError naming the file and what is wrong with it.
    """
    named: dict[str, list[str]] = {}
    shapes = {}
    try:
        with tensors.reading(path) as (header, file):
            ids, parameters = list(header["ids"]), header["parameters"]
            for key in sorted(file.keys()):
                kernel, module = key.split("/", 1)
                named.setdefault(kernel, []).append(module)
                shapes[key] = tuple(file.get_slice(key).get_shape())
        counted = {kernel: set(counts) for kernel, counts in parameters.items()}
        kept = safe_open(path, "np")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise GramError(
            f"{path}: not Gram matrices of modules of this project, or damaged ({error}); {tensors.AGAIN}"
        ) from error
    bad = [key for key, shape in shapes.items() if shape != (len(ids), len(ids))]
    if bad or not named:
        raise GramError(f"{path}: Gram matrices {bad} are not {len(ids)} × {len(ids)}; {tensors.AGAIN}")
    if counted != {kernel: set(modules) for kernel, modules in named.items()}:
        raise GramError(f"{path}: parameters are not those of its matrices; {tensors.AGAIN}")

    def of(kernel: str) -> Asked:
        def read(module: str) -> np.ndarray:
            K: np.ndarray = kept.get_tensor(f"{kernel}/{module}")
            if not np.isfinite(K).all():
                raise GramError(f"{path}: the Gram matrix {kernel}/{module} is not finite; {tensors.AGAIN}")
            return K

        return Asked(tuple(named[kernel]), read)

    return ids, {kernel: of(kernel) for kernel in named}, parameters
