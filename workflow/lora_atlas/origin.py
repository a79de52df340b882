"""Which folder of LoRA files a study's results are of: everybody's folder is called "loras", and results have its name.

What is kept is a digest of where the folder lies, and no path: results are shared and sent.
"""

import hashlib
import os
from itertools import chain, count
from pathlib import Path

from .atomic import replacing

NAME = ".folder"  # in results/STUDY


def keep(results: str | Path, folder: str | Path) -> None:
    """Write down that results are of this folder."""
    with replacing(Path(results, NAME)) as temporary:
        temporary.write_text(f"{_digest(folder)}\n")


def are_results(folder: str | Path) -> bool:
    """Whether a folder holds a study's results: of a folder of LoRA files, or of LoRAs that it trained."""
    return Path(folder, NAME).exists() or _trained(folder)


def _trained(folder: str | Path) -> bool:
    return Path(folder, "plan.parquet").is_file()


def is_of(results: str | Path, folder: str | Path) -> bool:
    """Whether results are of this folder, or of none: not there, or of a time when nothing was written down."""
    results = Path(results)
    if _trained(results):
        return False
    try:
        return (results / NAME).read_text().strip() == _digest(folder)
    except OSError:
        return True


def unused(name: str, folder: str | Path, results: str | Path = "results") -> str:
    """The study of a folder: its name, or the first of NAME_2, NAME_3, … that is of no other folder."""
    names = chain([name], (f"{name}_{n}" for n in count(2)))
    return next(tried for tried in names if is_of(Path(results, tried), folder))


def _digest(folder: str | Path) -> str:
    return hashlib.sha256(os.path.realpath(Path(folder).expanduser()).encode("utf-8", "surrogateescape")).hexdigest()
