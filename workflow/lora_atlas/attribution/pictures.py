"""Pictures that somebody asks about: a file, or a folder of them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..labels import printable
from ..pictures.decode import MAX_BYTES, PictureError, crop_square, decode, to_array
from ..pictures.sources.folder import CANDIDATES


class QueryError(ValueError):
    """There is nothing to ask about; the message names the file or folder and what was expected."""


@dataclass(frozen=True)
class Picture:
    """A picture under the name of its file: pixels uint8 (side, side, 3), or the reason why it cannot be used."""

    name: str
    sha256: str | None
    pixels: np.ndarray | None
    reason: str | None = None


@dataclass(frozen=True)
class Set:
    """Pictures that are asked about together, and one by one."""

    name: str
    pictures: list[Picture]

    @property
    def usable(self) -> list[Picture]:
        return [picture for picture in self.pictures if picture.pixels is not None]


def read(path: str | Path, resolution: int) -> list[Set]:
    """The sets of a file (itself) or a folder: each of its folders that holds pictures is a set. Pictures are centred
    squares of `resolution` (px). Raises QueryError where there is no picture."""
    path = Path(path)
    if path.is_file():
        return [Set(printable(path.stem), [_picture(path, resolution)])]
    found = []
    for folder, below, names in os.walk(path):
        below.sort()
        files = sorted(name for name in names if Path(name).suffix.lower() in CANDIDATES and name[0] != ".")
        if files:
            inside = Path(folder).relative_to(path)
            name = inside.as_posix() if inside.parts else path.resolve().name
            found.append(Set(printable(name), [_picture(Path(folder, file), resolution) for file in files]))
    if not found:
        raise QueryError(
            f"query: no picture in {path}; name a picture, a folder of pictures, or a folder of such folders "
            f"({', '.join(sorted(CANDIDATES)[:6])} …)"
        )
    return found


def _picture(path: Path, resolution: int) -> Picture:
    name = printable(path.name)
    try:
        if path.stat().st_size > MAX_BYTES:
            return Picture(name, None, None, f"too large: {path.stat().st_size:,} bytes")
        data = path.read_bytes()
        return Picture(name, hashlib.sha256(data).hexdigest(), pixels_of(data, resolution))
    except OSError as error:
        return Picture(name, None, None, f"unreadable: {error.strerror}")
    except PictureError as error:
        return Picture(name, None, None, str(error))


def pixels_of(data: bytes, resolution: int) -> np.ndarray:
    """A picture's file as uint8 (resolution, resolution, 3): the centred square, as LoRAs are trained on it."""
    return to_array(crop_square(decode(data, min_side=1), resolution))
