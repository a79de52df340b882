"""The lock file of a study: what was fetched from where. Written by the first fetch, committed by users, held to after.

YAML with two parts: `files` (URL → sha256, bytes) and `hub` (repository and asked revision → commit, and the sha256 and
bytes of each file). An entry is never changed here: to take something new, delete it.
"""

import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..tables import replacing


class LockError(ValueError):
    """The lock file cannot be read; the message names it."""


def read(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """The parts of a lock file, empty where there is none; raises LockError."""
    try:
        found = yaml.safe_load(Path(path).read_text()) if path and Path(path).exists() else {}
    except (OSError, yaml.YAMLError) as error:
        raise LockError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or any(not isinstance(found.get(part, {}), dict) for part in ("files", "hub")):
        raise LockError(
            f"{path}: expected the mappings `files` and `hub`; delete it, and the next fetch writes it again"
        )
    return {"files": found.get("files", {}), "hub": found.get("hub", {})}


def settled(path: str | Path | None, part: str, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the lock says of `name`; where it says nothing, `found`, which is written there (if there is a path)."""
    if path is None:
        return dict(found)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # several models may be fetched at once
        parts = read(path)
        if name not in parts[part]:
            parts[part][name] = dict(found)
            with replacing(path) as temporary:
                temporary.write_text(
                    "# What was fetched from where, written by the first fetch. Commit it: later ones are held to it.\n"
                    + yaml.safe_dump(parts, sort_keys=True)
                )
        return parts[part][name]
    finally:
        os.close(folder)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
