"""A folder of LoRA files: which candidates it holds, found by name, without opening any."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..labels import printable
from ..origin import are_results

CANDIDATES = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")

ADAPTER = "adapter_model"  # the name of PEFT's file
# What a trainer of transformers leaves beside it: the adapter itself, and its own state.
BESIDE = (ADAPTER, "optimizer", "scheduler", "training_args", "rng_state", "scaler")
LEFT_BEHIND = {
    "@eaDir",
    "__MACOSX",
    "#recycle",
    "@Recycle",
    "@Recently-Snapshot",
    "lost+found",
}  # by a NAS, an archiver


class FolderError(ValueError):
    """A folder of LoRA files cannot be used; the message says what was expected."""


@dataclass(frozen=True)
class Found:
    """A candidate: `lora` its id (the path below the folder, without its ending), `artist` and `genre` its folders."""

    lora: str
    path: Path
    artist: str | None = None
    genre: str | None = None


def find(folder: str | Path) -> list[Found]:
    """Candidates below a folder, sorted: files by their ending, and PEFT's folders; FolderError where there are none.

    Of ``genre/artist/file`` and ``artist/file`` the folders are labels; of deeper ones the two nearest the file.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "is absent"
        raise FolderError(f"{printable(str(folder))}: {what}; expected a folder of LoRA files")
    paths = sorted(_walk(root), key=lambda path: (os.fsencode(_stem(path)), path.suffix))
    if not paths:
        raise FolderError(
            f"{printable(str(folder))}: no LoRA files in it; looked for {', '.join(CANDIDATES)}, and folders of PEFT"
        )
    short = {path: printable(_stem(path).relative_to(root).as_posix()) for path in paths}
    names = list(short.values())
    found = []
    for path in paths:
        below = path.relative_to(root)
        name = short[path] if names.count(short[path]) == 1 else printable(below.as_posix())
        labels = [printable(part) for part in below.parent.parts]
        found.append(Found(name, path, labels[-1] if labels else None, labels[-2] if len(labels) > 1 else None))
    return found


def paths(folder: str | Path, shown: Sequence[str]) -> list[Path]:
    """The files that `find` found, by their paths below the folder as they are shown: in these a character that cannot
    be printed, or a byte that is no UTF-8, is its escape. A file that is gone is where it would be."""
    places = [Path(folder, name) for name in shown]
    if all(map(os.path.lexists, places)):
        return places
    there = {printable(str(path.relative_to(folder))): path for path in _walk(Path(folder))}
    return [there.get(name, place) for name, place in zip(shown, places, strict=True)]


def located(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table "loras" with the place of each file as its `file`."""
    places = paths(folder, [row["file"] for row in rows])
    return [{**row, "file": str(place)} for row, place in zip(rows, places, strict=True)]


def _stem(path: Path) -> Path:
    """The path without the ending of a file; a folder of PEFT called v1.5 has none."""
    return path.with_suffix("") if path.suffix.lower() in CANDIDATES else path


def _walk(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Candidates of a folder and of all below, links followed; `seen`: real paths of folders, each of which is
    entered once, so that a link to a folder above ends there."""
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise FolderError(f"{printable(str(folder))}: cannot be listed ({error.strerror})") from error
    if len(seen) > 1 and are_results(folder):
        return  # of this project, where somebody maps the folder that he is in
    files = [Path(entry.path) for entry in entries if Path(entry.name).suffix.lower() in CANDIDATES]
    # An adapter of PEFT is its folder; the folder that was asked for is a folder of them. Beside it may lie others.
    adapter = len(seen) > 1 and any(entry.name == "adapter_config.json" for entry in entries)
    if adapter and (not files or any(path.stem == ADAPTER for path in files)):
        yield folder
    for entry in entries:
        if entry.name.startswith(".") or entry.name in LEFT_BEHIND:
            continue
        path = Path(entry.path)
        if entry.is_dir():
            if os.path.realpath(path) not in seen:
                yield from _walk(path, seen)
        elif path.suffix.lower() in CANDIDATES and not (adapter and path.stem.startswith(BESIDE)):
            yield path
