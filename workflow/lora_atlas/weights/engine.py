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
from .sketch import NUMBERS, Hashes, Sketch, sketch_files_gram, sketch_path, sketches, write_sketch


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
    pickles: bool = False,
    base: str | None = None,
) -> None:
    """Write the Gram matrices of `paths`, called `ids`, by the engine ("exact" or "sketch").

    `cache` (a file) and `folder` (of sketches) keep what the next call need not compute again: matrices by content, and
    sketches. Raises LoraFileError, GramError.
    """
    opened = {"pickles": pickles, "base": base}
    shas = list(sha256) if sha256 is not None else [digest(open_lora(path, **opened).path) for path in paths]
    made: dict[str, Any] = {"engine": engine}
    if engine == "exact":
        grams = gram(paths, kernel, ids=shas, cache=cache, **opened)
    else:
        grams = sketch_files_gram(sketched(paths, shas, folder, numbers=numbers, **opened))
        made |= {"numbers": numbers, "sketches": os.path.relpath(folder, Path(output).parent)}
    write_gram(output, ids, grams, kernel, made)


def sketched(
    paths: Sequence[str | Path],
    ids: Sequence[str],
    folder: str | Path,
    *,
    numbers: int = NUMBERS,
    pickles: bool = False,
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
