"""A folder of LoRA files: which candidates it holds, found by name, without opening any."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..labels import printable

CANDIDATES = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt")


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


def _stem(path: Path) -> Path:
    """The path without the ending of a file; a folder of PEFT called v1.5 has none."""
    return path.with_suffix("") if path.suffix.lower() in CANDIDATES else path


def _walk(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise FolderError(f"{printable(str(folder))}: cannot be listed ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith((".", "@", "__")):  # hidden, or left by a NAS or an archiver
            continue
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if (path / "adapter_config.json").is_file():
                yield path
            else:
                yield from _walk(path)
        elif path.suffix.lower() in CANDIDATES:
            yield path
