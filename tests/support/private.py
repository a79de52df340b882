"""What files that are handed on say of the person, the machine and the folders that made them."""

import contextlib
import getpass
import re
import socket
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

PROJECT = Path(__file__).parents[2]
USER = "quilliam"  # runs of tests are of this person (tests/workflow/conftest.py), whose name nothing else has


def words(*folders: Path) -> list[str]:
    """What must not be said: users, host, home and folders; but for names that the project's own pages and code have,
    as a superuser's is an English word."""
    found = {USER, socket.gethostname(), str(Path.home()), *map(str, folders)}
    with contextlib.suppress(KeyError, OSError):  # a user without a name, as in a container
        found.add(getpass.getuser())
    return sorted(word for word in found if len(word) > 3 and (word == USER or not _ours(word)))


def _ours(word: str) -> bool:
    sources = [*(PROJECT / "workflow").rglob("*.py"), *(PROJECT / "workflow").rglob("*.html"), PROJECT / "config.yaml"]
    return any(re.search(rf"\b{re.escape(word)}\b", path.read_text(encoding="utf-8")) for path in sources)


def said(path: Path) -> str:
    """A file's text: of a table its values, of a picture its metadata too."""
    text = path.read_bytes().decode("utf-8", "replace")
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        text += repr((table.schema.metadata, [_without_bytes(row) for row in table.to_pylist()]))
    if path.suffix in (".png", ".jpg", ".webp"):
        with Image.open(path) as image:
            text += repr((image.info, dict(image.getexif())))
    return text


def _without_bytes(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_bytes(each) for key, each in value.items()}
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value


def told(files: Iterable[Path], hidden: Iterable[str]) -> list[str]:
    """File: word, of every word that a file says; a part of a longer word is none."""
    patterns = {word: re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])") for word in hidden}
    return [f"{path}: {word}" for path in files for word, pattern in patterns.items() if pattern.search(said(path))]


def outputs(results: Path) -> list[Path]:
    """Files of a study that are handed on: all but logs, and what Snakemake and jobs keep for themselves."""
    kept = {"logs", ".made", "state", "cache"}
    return [
        path
        for path in sorted(results.rglob("*"))
        if path.is_file() and not kept & set(path.relative_to(results).parts)
    ]
