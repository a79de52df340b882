"""Gram matrices of single modules: what an ablation adds up.

Any part of the weights, by component, block or at random, is a sum of these matrices, and so is the whole. They are
those of gram.py before it sums them, by the same kernels and in the same tiles, and every factor is read once for all
kernels. Memory holds N² numbers for each module and kernel; where that is more than LIMIT nothing is computed.

Beside each matrix stands how many parameters of a LoRA it describes: numbers in A for ``down``, in B for ``up``, in
both for ``factors`` and ``delta``. Of LoRAs of several ranks it is the largest number. What is no pair of A and B (a
LoHa, a LoKr, a full difference) has the parameters that its file holds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from .. import tensors
from ..descriptors import KFAC
from ..loras.files import LoraFile, open_lora
from .gram import KERNELS, GramError, ReadModule, add_products, check_one_base, of_module, reading
from .metric import Metric, warped

HALVES = ("down", "up")  # kernels of one factor each; together ``factors``
ModuleGrams = dict[str, dict[str, np.ndarray]]  # kernel → module → (N, N)
Parameters = dict[str, dict[str, int]]  # kernel → module → numbers

LIMIT = 2**34  # bytes of all matrices together
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
    plain = [kernel for kernel in kernels if kernel != KFAC]
    for kernel in plain:
        KERNELS[kernel]
    files = [open_lora(path, pickles=pickles, base=base) for path in paths]
    check_one_base(files)
    modules = sorted(set().union(*(file.layout.specs for file in files)))
    size = 8 * len(files) ** 2 * len(modules) * len(kernels)
    if size > LIMIT:
        raise GramError(
            f"matrices of {len(modules)} modules × {len(kernels)} kernels for {len(files)} LoRAs take "
            f"{size / 2**30:.1f} GiB; at most {LIMIT / 2**30:.1f} GiB are held: choose fewer LoRAs or kernels"
        )
    grams: ModuleGrams = {kernel: {} for kernel in kernels}
    new = np.zeros(len(files), bool)
    with reading(files, kernels) as read:
        for module in modules:
            totals = {kernel: np.zeros((len(files), len(files))) for kernel in plain}
            add_products(totals, files, module, new, of_module(read, module))
            roots = metric.roots(module) if metric and KFAC in kernels else None
            if roots is not None:
                totals[KFAC] = np.zeros((len(files), len(files)))
                add_products({"delta": totals[KFAC]}, files, module, new, _warping(of_module(read, module), roots))
            for kernel, K in totals.items():
                grams[kernel][module] = K
    if KFAC in kernels and not grams[KFAC]:
        raise GramError("the kernel kfac: the base's second moments are of none of these LoRAs' modules")
    return grams, {
        kernel: {module: _parameters(files, module, kernel) for module in found} for kernel, found in grams.items()
    }


def _warping(read: ReadModule, roots: tuple[np.ndarray, np.ndarray]) -> ReadModule:
    """What is read, in the metric of a base."""
    return lambda tile, side: warped(read(tile, side), roots)


def of_kernel(grams: Mapping[str, Mapping[str, np.ndarray]], kernel: str) -> dict[str, np.ndarray]:
    """Module → Gram matrix (N, N) of a kernel; ``factors``, where it is absent, is the sum of ``down`` and ``up``.

    Raises GramError naming a kernel that is absent.
    """
    if kernel in grams:
        return dict(grams[kernel])
    halves = HALVES if kernel == "factors" else (kernel,)
    absent = [half for half in halves if half not in grams]
    if absent:
        raise GramError(f"the Gram matrices of single modules lack the kernel {absent[0]!r}; rerun that stage")
    return {module: np.asarray(sum(grams[half][module] for half in halves)) for module in grams[halves[0]]}


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
    """Ids, Gram matrices and parameters of a file; raises GramError naming the file and what is wrong with it."""
    grams: ModuleGrams = {}
    try:
        with tensors.reading(path) as (header, file):
            ids, parameters = list(header["ids"]), header["parameters"]
            for key in sorted(file.keys()):
                kernel, module = key.split("/", 1)
                grams.setdefault(kernel, {})[module] = file.get_tensor(key)
        counted = {kernel: set(counts) for kernel, counts in parameters.items()}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise GramError(
            f"{path}: not Gram matrices of modules of this project, or damaged ({error}); {tensors.AGAIN}"
        ) from error
    bad = _unsound(grams, (len(ids), len(ids)))
    if bad or not grams:
        raise GramError(f"{path}: Gram matrices {bad} are not finite {len(ids)} × {len(ids)}; {tensors.AGAIN}")
    if counted != {kernel: set(matrices) for kernel, matrices in grams.items()}:
        raise GramError(f"{path}: parameters are not those of its matrices; {tensors.AGAIN}")
    return ids, grams, parameters


def _unsound(grams: Mapping[str, Mapping[str, np.ndarray]], shape: tuple[int, int]) -> list[str]:
    return [
        f"{kernel}/{module}"
        for kernel, matrices in grams.items()
        for module, K in matrices.items()
        if K.shape != shape or not np.isfinite(K).all()
    ]
