"""Two engines behind one call: exact inner products of all pairs, or those of sketches.

Exact matrices cost N² products of factors; sketches cost one pass over each file, and are kept. Both write the same
file, whose header says which it was. Raw factors have no sketch: their inner products are cheap at any N.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..descriptors import CONSENSUS, PLAIN
from ..loras.container import digest
from ..loras.files import open_lora
from ..loras.names import wanted
from ..seeds import derive_seed
from .gram import gram, read_gram, read_header, write_gram
from .modules import module_grams, stacked_grams
from .sketch import NUMBERS, Hashes, Sketch, sketch_files_gram, sketch_path, sketches, write_sketch
from .weighting import LEAST, WeightingError, consensus, weighted_sum

FITTED = 200  # LoRAs that a collection's consensus is made of at most


def pick(engine: str, kernel: str, count: int, limit: int) -> str:
    """ "auto" → exact up to `limit` LoRAs, sketch above; kernels other than delta are always exact."""
    if kernel != "delta":
        return "exact"
    return ("exact" if count <= limit else "sketch") if engine == "auto" else engine


def matrices(
    paths: Sequence[str | Path],
    ids: Sequence[str],
    kernel: str,
    output: str | Path,
    *,
    engine: str,
    cache: str | Path,
    folder: str | Path,
    numbers: int,
    sha256: Sequence[str] | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> None:
    """Write the Gram matrices of `paths`, called `ids`, by the engine ("exact" or "sketch").

    `cache` (a file) and `folder` (of sketches) keep what the next call need not compute again: matrices by content, and
    sketches. Raises LoraFileError, GramError.
    """
    shas = list(sha256) if sha256 is not None else _digests(paths, pickles, base)
    made: dict[str, Any] = {"engine": engine}
    if engine == "exact":
        grams = gram(paths, kernel, ids=shas, cache=cache, pickles=pickles, base=base)
    else:
        files = sketched(paths, shas, folder, numbers=numbers, pickles=pickles, base=base)
        grams = sketch_files_gram(files)
        made |= {"numbers": numbers, "sketches": os.path.relpath(folder, Path(output).parent)}
    write_gram(output, ids, grams, kernel, made)


def _digests(paths: Sequence[str | Path], pickles: bool, base: str | None) -> list[str]:
    """SHA-256 of the files that paths lead to: of a folder of PEFT, that of the file in it."""
    return [digest(open_lora(path, pickles=pickles, base=base).path) for path in paths]


def sketched(
    paths: Sequence[str | Path],
    ids: Sequence[str],
    folder: str | Path,
    *,
    numbers: int = NUMBERS,
    pickles: bool = True,
    base: str | None = None,
) -> list[Path]:
    """One sketch file a LoRA in `folder`, named by its id; those that are there are not made again."""
    targets = [sketch_path(folder, identity, numbers) for identity in ids]
    waiting = {target: path for target, path in zip(targets, paths, strict=True) if not target.is_file()}
    files = [open_lora(path, pickles=pickles, base=base) for path in waiting.values()]
    made = sketches(files, numbers=numbers, hashes=Hashes())
    for target, found in zip(waiting, made, strict=True):
        if not isinstance(found, Sketch):
            raise found
        write_sketch(target, found)
    return targets


def collection(
    paths: Sequence[str | Path],
    ids: Sequence[str],
    output: str | Path,
    weighted_output: str | Path,
    *,
    weighting: str,
    engine: str,
    cache: str | Path,
    folder: str | Path,
    numbers: int,
    components: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    sha256: Sequence[str] | None = None,
    pickles: bool = False,
    base: str | None = None,
) -> None:
    """Write the Gram matrices of a collection by the kernel delta, as `matrices` does, and those of `weighted`.

    Where both are exact, factors are read once for the two.
    """
    opened: dict[str, Any] = {"pickles": pickles, "base": base}
    if engine == "exact" and weighting == CONSENSUS and len(ids) >= LEAST:
        single = module_grams(paths, ["delta"], **opened)[0]["delta"]
        write_gram(output, ids, weighted_sum(single, dict.fromkeys(single, 1.0)), "delta", {"engine": engine})
        weights = _agreed(single, components, blocks)
        made = {"engine": engine, "weighting": weighting, "modules": weights}
        write_gram(weighted_output, ids, weighted_sum(single, weights), "delta", made)
        return
    opened["sha256"] = sha256
    matrices(paths, ids, "delta", output, engine=engine, cache=cache, folder=folder, numbers=numbers, **opened)
    weighted(output, paths, weighted_output, weighting=weighting, components=components, blocks=blocks, **opened)


def weighted(
    gram_path: str | Path,
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    weighting: str,
    components: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    sha256: Sequence[str] | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> None:
    """Write the Gram matrices of a collection with its modules weighted ("consensus" or "plain"), beside those of
    `matrices` at `gram_path`: by the same engine, with the weights in the header.

    Of more than FITTED LoRAs the consensus is that of a seeded choice of so many. Raises what `matrices` does.
    """
    if weighting not in (PLAIN, CONSENSUS):
        raise WeightingError(f"weights.modules: a collection counts by {CONSENSUS} or {PLAIN}, not by {weighting}")
    ids, plain = read_gram(gram_path, "delta")
    header = read_header(gram_path)
    if weighting == PLAIN or len(ids) < LEAST:
        write_gram(output, ids, plain, "delta", header | {"weighting": PLAIN, "modules": None})
        return
    if header["engine"] == "sketch":
        rng = np.random.Generator(np.random.PCG64(derive_seed("consensus of a collection", len(ids))))
        chosen = np.sort(rng.permutation(len(ids))[:FITTED])
        folder = Path(gram_path).parent / header["sketches"]
        shas = list(sha256) if sha256 is not None else _digests(paths, pickles, base)
        files = [sketch_path(folder, sha, header["numbers"]) for sha in shas]
        weights = _agreed(sketch_files_gram([files[i] for i in chosen], key=str), components, blocks)
        grams = sketch_files_gram(files, weights=weights)
    else:
        single = module_grams(paths, ["delta"], pickles=pickles, base=base)[0]["delta"]
        weights = _agreed(single, components, blocks)
        grams = weighted_sum(single, weights)
    write_gram(output, ids, grams, "delta", header | {"weighting": weighting, "modules": weights})


def _agreed(
    single: Mapping[str, np.ndarray], components: Sequence[str] | None, blocks: Sequence[str] | None
) -> dict[str, float]:
    """Module → weight by the consensus of all LoRAs of these matrices, of the modules asked for."""
    names = [name for name in sorted(single) if wanted(name, components, blocks)]
    if not names:
        return {}
    every = stacked_grams(single, names)
    return dict(zip(names, consensus(every, np.arange(every.shape[1])).tolist(), strict=True))
