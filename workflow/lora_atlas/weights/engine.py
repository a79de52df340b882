"""Two engines behind one call: exact inner products of all pairs, or those of sketches.

Exact matrices cost N² products of factors; sketches cost one pass over each file, and are kept. Both write the same
file, whose header says which it was. Raw factors have no sketch: their inner products are cheap at any N.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .container import digest
from .files import open_lora
from .gram import gram, write_gram
from .sketch import Hashes, Sketch, sketch_files_gram, sketch_path, sketches, write_sketch


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
    sketched: str | Path,
    numbers: int,
    sha256: Sequence[str] | None = None,
    pickles: bool = False,
    base: str | None = None,
    threads: int = 1,
) -> None:
    """Write the Gram matrices of `paths`, called `ids`, by the engine ("exact" or "sketch").

    `cache` (a file) and `sketched` (a folder) keep what the next call need not compute again: matrices by content, and
    sketches. Raises LoraFileError, GramError.
    """
    shas = (
        list(sha256) if sha256 is not None else [digest(open_lora(p, pickles=pickles, base=base).path) for p in paths]
    )
    made: dict[str, Any] = {"engine": engine}
    if engine == "exact":
        grams = gram(paths, kernel, ids=shas, cache=cache, pickles=pickles, base=base)
    else:
        grams = sketch_files_gram(_sketched(paths, shas, Path(sketched), numbers, pickles, base, threads))
        made |= {"numbers": numbers, "sketches": os.path.relpath(sketched, Path(output).parent)}
    write_gram(output, ids, grams, kernel, made)


def _sketched(
    paths: Sequence[str | Path], shas: Sequence[str], folder: Path, numbers: int, pickles: bool, base: str | None,
    threads: int,
) -> list[Path]:  # fmt: skip
    targets = [sketch_path(folder, sha, numbers) for sha in shas]
    waiting = {target: path for target, path in zip(targets, paths, strict=True) if not target.is_file()}
    files = [open_lora(path, pickles=pickles, base=base) for path in waiting.values()]
    made = sketches(files, numbers=numbers, hashes=Hashes(), threads=threads)
    for target, found in zip(waiting, made, strict=True):
        if not isinstance(found, Sketch):
            raise found
        write_sketch(target, found)
    return targets
