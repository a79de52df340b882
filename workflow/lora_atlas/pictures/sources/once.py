"""One fetch at a time, whatever number of jobs want it: a lock on the store that a killed process cannot keep."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...sections import Pictures


@dataclass(frozen=True)
class Together:
    """The locked file: it holds a digest of the last request that was fetched whole."""

    file: BinaryIO

    def settled(self, pictures: Pictures, seed: int) -> bool:
        """Whether this very request was fetched: what it could not get is then not asked for again."""
        self.file.seek(0)
        return self.file.read().decode() == _request(pictures, seed)

    def settle(self, pictures: Pictures, seed: int) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.file.write(_request(pictures, seed).encode())
        self.file.flush()


@contextlib.contextmanager
def fetching(store: str | Path) -> Iterator[Together]:
    """Wait until no other process fetches into this store, and keep others out."""
    Path(store).mkdir(parents=True, exist_ok=True)
    with open(Path(store) / "fetching", "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Together(file)


def _request(pictures: Pictures, seed: int) -> str:
    kept = {key: value for key, value in pictures.plain().items() if key not in ("contact", "duplicates")}
    if pictures.manifest is not None:
        with contextlib.suppress(OSError):
            kept["listed"] = hashlib.sha256(Path(pictures.manifest).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([kept, seed], sort_keys=True).encode()).hexdigest()
