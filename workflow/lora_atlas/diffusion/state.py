"""The state of a training job: a folder from which a killed job goes on, and which no other work may use.

The workflow does not declare the folder, since declared outputs are deleted before a job starts. It holds

    manifest.json       what the job is: recipe, code and versions, the data of each LoRA, and how they are packed
    pack-00.pt, …       each pack's factors, optimizer moments, step and log, a row per adapter
    finished/           LoRAs that are whole, where others of the job failed

Every file is replaced atomically, the old one last until the new one is whole. A folder whose manifest is not of this
very work is refused with what differs: to train over it would lose it, to go on from it would mix two recipes.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import code, tables, tensors
from .errors import TrainingError

MANIFEST = "manifest.json"


def code_digest() -> str:
    """Hash of every file of this library that training is made of."""
    digest = hashlib.sha256()
    for path in code.closure("diffusion.train"):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def claim(folder: Path, work: Mapping[str, Any]) -> Sequence[Sequence[str]] | None:
    """Make `folder` the state of `work` (JSON values); returns how its LoRAs are packed, if that is settled.

    Raises TrainingError where the folder holds the state of another work, or of one that cannot be told.
    """
    work = json.loads(json.dumps(work))
    manifest = folder / MANIFEST
    for part in folder.glob(".*.part"):  # a write that was killed
        part.unlink()
    try:
        kept = json.loads(manifest.read_text()) if manifest.exists() else None
        found = kept and kept["work"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{manifest}: damaged ({error}); {_away(folder)}") from error
    if kept is None:
        if folder.exists() and any(folder.iterdir()):
            raise TrainingError(
                f"{folder}: there is something, and no manifest.json says of what work; {_away(folder)}"
            )
        _write(manifest, {"work": work, "packs": None})
        return None
    if found != work:
        raise TrainingError(
            f"{folder}: the state of other work, which is neither used nor overwritten: "
            f"{'; '.join(_differences(found, work))}. Give back what differs to go on with it, or {_away(folder)}"
        )
    return kept["packs"]


def settle(folder: Path, work: Mapping[str, Any], packs: Sequence[Sequence[str]]) -> None:
    """Remember how the LoRAs are packed: a job that goes on packs them in the same way."""
    _write(folder / MANIFEST, {"work": work, "packs": packs})


def save(file: Path, kept: Mapping[str, Any]) -> None:
    """Replace a pack's state atomically."""
    tensors.write_records(file, kept)


def load(file: Path, loras: Sequence[str], device: torch.device) -> dict[str, Any] | None:
    """A pack's state, or None where it has not begun; raises TrainingError for a damaged one or one of other LoRAs."""
    if not file.exists():
        return None
    try:
        tensors.check_records(file)
        kept = torch.load(file, map_location=device, weights_only=True)
        found = kept["loras"]
    except Exception as error:  # the unpickler raises whatever it trips on
        raise TrainingError(
            f"{file}: damaged ({' '.join(str(error).split())[:150]}); delete it to train its LoRAs again"
        ) from error
    if found != list(loras):
        raise TrainingError(f"{file}: the state of {found}, expected {list(loras)}; {_away(file.parent)}")
    return kept


def remove(folder: Path) -> None:
    """The manifest last: without it what a kill leaves would be of nobody knows what work."""
    for each in folder.glob("*"):
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        elif each.name != MANIFEST:
            each.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, value: Any) -> None:
    with tables.replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True))


def _away(folder: Path) -> str:
    return f"delete the folder {folder} to start training again"


def _differences(found: Any, work: Any, place: str = "") -> list[str]:
    if isinstance(found, Mapping) and isinstance(work, Mapping):
        return [
            line
            for key in sorted({*found, *work})
            if found.get(key) != work.get(key)
            for line in _differences(found.get(key), work.get(key), f"{place}.{key}" if place else key)
        ]
    if any(isinstance(value, str) and len(value) == 64 for value in (found, work)):
        return [f"{place} is another" if found and work else f"{place} is {'gone' if found else 'new'}"]
    return [f"{place} was {found!r}, is {work!r}"]
