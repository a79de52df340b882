"""Files of tensors that this project writes: safetensors with a digest of all their bytes, and readers that check it.

safetensors checks that a file is as long as its header says, and no more: a flipped bit is another number, and in the
header another name. So the digest of the whole file stands in its header, of the bytes as they are with 64 zeros in the
digest's place. A file without one (of somebody else, or of an earlier version) is read as it is.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from .atomic import replacing, settled

KEY = "content_sha256"
UNSIGNED = "0" * 64
ENTRY = {f"lora_atlas.{KEY}": UNSIGNED}  # of a header that has entries of its own, before `signed`
AGAIN = "delete it and rerun `snakemake`, which makes it again"
# In the header's metadata: an entry of its own, or the first value of our entry of JSON, where quotes are escaped.
_SIGNED = re.compile(rb'"lora_atlas(?:\.content_sha256":"|":"\{\\"content_sha256\\": \\")([0-9a-f]{64})')
_SOUND: set[tuple[int, ...]] = set()  # device, inode, size and times of files that this process has looked at
_MOST = 1 << 27  # bytes of a header; safetensors itself reads 100 MB at most


class ContentError(ValueError):
    """A file does not hold the bytes that were written; the message says so, and its reader names the file."""


def write(path: str | Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Write tensors, and values of JSON as the header, atomically; equal input gives equal bytes."""
    with replacing(path) as temporary:
        save_file(
            {name: np.ascontiguousarray(each) for name, each in tensors.items()},
            temporary,
            metadata=_metadata(header),
        )
        with open(temporary, "rb+") as file:
            _sign(file)


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    """One entry: the order of several is not stable in safetensors."""
    return {"lora_atlas": json.dumps({KEY: UNSIGNED, **json.loads(json.dumps(header, sort_keys=True))})}


@contextlib.contextmanager
def writing(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]], header: Mapping[str, Any]
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yields a function that writes one float64 tensor of these at a time, in any order; when all are there, so is the
    file, with the bytes that `write` gives. Memory holds none of it."""
    entries: dict[str, Any] = {"__metadata__": _metadata(header)}
    end = 0
    for name in sorted(shapes):
        first, end = end, end + 8 * math.prod(shapes[name])
        entries[name] = {"dtype": "F64", "shape": list(shapes[name]), "data_offsets": [first, end]}
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    waiting = set(shapes)
    with replacing(path) as temporary, open(temporary, "rb+") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)

        def put(name: str, tensor: np.ndarray) -> None:
            entry = entries[name]
            if list(tensor.shape) != entry["shape"]:
                raise ValueError(f"{name}: {tensor.shape} where {tuple(entry['shape'])} was announced")
            file.seek(8 + len(raw) + entry["data_offsets"][0])
            file.write(np.ascontiguousarray(tensor, "<f8").data)
            waiting.remove(name)

        yield put
        if waiting:
            raise ValueError(f"tensors that were announced are absent: {sorted(waiting)[:3]}")
        _sign(file)


def signed(data: bytes) -> bytes:
    """The bytes of a file whose header has ENTRY, with the digest in it."""
    file = io.BytesIO(data)
    _sign(file)
    return file.getvalue()


@contextlib.contextmanager
def reading(path: str | Path, framework: str = "np") -> Iterator[tuple[dict[str, Any], Any]]:
    """Header and open file of what `write` wrote, its bytes checked.

    Raises ContentError, SafetensorError, OSError, KeyError, TypeError or ValueError for a file that is absent, damaged
    or another; the caller names the file.
    """
    with contextlib.suppress(FileNotFoundError):  # which safetensors says better
        check(path)
    with safe_open(path, framework) as file:
        header = json.loads((file.metadata() or {})["lora_atlas"])
        if not isinstance(header, dict):
            raise TypeError("its header is no mapping")
        header.pop(KEY, None)
        yield header, file


def check(path: str | Path) -> None:
    """Raise ContentError where a file's bytes are not those of the digest in its header; OSError where it is absent."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        told_apart = settled(status)  # before its bytes are looked at
        sign = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if sign in _SOUND:  # a job opens a file more than once
            return
        told = _signature(file)
        if told is not None and _digest(file, told[0]) != told[1]:
            raise ContentError("its bytes are not those that were written")
    if told_apart:
        _SOUND.add(sign)


def write_records(path: str | Path, kept: Mapping[str, Any]) -> None:
    """What torch.save writes, atomically. Raises OSError where the system cannot write it."""
    import torch

    with replacing(path) as temporary, temporary.open("wb") as file:
        stream = _Stream(file)
        try:
            torch.save(dict(kept), cast("IO[bytes]", stream))
        except RuntimeError as error:  # "unexpected pos", when the disk is full
            raise stream.error or error from None


class _Stream:
    """A file that torch writes to, and what the system said of it: torch's own words do not tell."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def check_records(path: str | Path) -> None:
    """The same for what `write_records` wrote: a zip file, whose records have check sums that torch does not look at.

    Raises ContentError naming the record.
    """
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ContentError(str(error)) from error
    if wrong is not None:
        raise ContentError(f"the bytes of {wrong} are not those that were written")


def _sign(file: BinaryIO) -> None:
    where, _ = _signature(file) or (None, "")
    assert where is not None, "a header without a place for the digest"
    found = _digest(file, where)
    file.seek(where)
    file.write(found.encode())


def _signature(file: BinaryIO) -> tuple[int, str] | None:
    """Where the digest begins in an open file, and what it is."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    found = _SIGNED.search(file.read(length)) if length <= _MOST else None
    return (8 + found.start(1), found[1].decode()) if found else None


def _digest(file: BinaryIO, where: int) -> str:
    """SHA-256 of an open file with zeros from `where` on, as many as a digest has."""
    found = hashlib.sha256()
    file.seek(0)
    found.update(file.read(where) + UNSIGNED.encode())
    file.seek(where + len(UNSIGNED))
    while part := file.read(1 << 20):
        found.update(part)
    return found.hexdigest()
