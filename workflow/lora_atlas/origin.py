"""Which folder of LoRA files a study's results are of, and which file an answer: everybody's folder is called "loras",
and every second file "pytorch_lora_weights.safetensors"; results and answers have their names.

What is kept is a digest of where the folder or the file lies, and no path: results are shared and sent.
"""

import hashlib
import os
from itertools import chain, count
from pathlib import Path

from .atomic import replacing

NAME = ".folder"  # in results/STUDY
ASKED = ".asked"  # in results/STUDY: a folder for each kind of answer, with a file for each name


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
    return _says(results / NAME, folder)


def _says(kept: Path, place: str | Path) -> bool:
    """Whether what was written down is of this place, or nothing was."""
    try:
        return kept.read_text().strip() == _digest(place)
    except OSError:
        return True


def unused(name: str, folder: str | Path, results: str | Path = "results") -> str:
    """The study of a folder: its name, or the first of NAME_2, NAME_3, … that is of no other folder."""
    names = chain([name], (f"{name}_{n}" for n in count(2)))
    return next(tried for tried in names if is_of(Path(results, tried), folder))


def keep_asked(answer: str | Path, asked: str | Path) -> None:
    """Write down that an answer, results/STUDY/KIND/NAME.…, is about this file or folder."""
    answer = Path(answer)
    path = answer.parents[1] / ASKED / answer.parent.name / answer.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(f"{_digest(asked)}\n")


def unused_answer(name: str, asked: str | Path, results: str | Path, kind: str) -> str:
    """The name of an answer of this kind (the folder of results that it lies in) about a file or folder: its own, or
    the first of NAME_2, … that is about no other one."""
    names = chain([name], (f"{name}_{n}" for n in count(2)))
    return next(tried for tried in names if _says(Path(results, ASKED, kind, tried), asked))


def _digest(folder: str | Path) -> str:
    return hashlib.sha256(os.path.realpath(Path(folder).expanduser()).encode("utf-8", "surrogateescape")).hexdigest()
