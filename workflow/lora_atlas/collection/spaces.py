"""Spaces of a folder: which LoRAs are compared with which, and which files are made of each space."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAPPED = 4  # LoRAs of a space that has a map: of fewer the table says all
MAPS = ("map.png", "map.svg")


def spaces(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Space → its rows of the table "loras", in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["space"]:
            found.setdefault(row["space"], []).append(row)
    return dict(sorted(found.items()))


def maps(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The files of all maps below the folder of spaces."""
    drawn = [space for space, members in spaces(rows).items() if len(members) >= MAPPED]
    return [Path(folder, space, name) for space in drawn for name in MAPS]


def files(folder: str | Path, rows: Sequence[Mapping[str, Any]], *names: str) -> list[Path]:
    """The files of these names of every space."""
    return [Path(folder, space, name) for space in spaces(rows) for name in names]


def forget(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Remove what was made of spaces that have no LoRA any more: it is of files that are gone."""
    there = spaces(rows)
    for path in Path(folder).glob("*/"):
        if path.name not in there and not path.is_symlink():
            shutil.rmtree(path)
