"""Containers of tensors: safetensors and pickles, checked before anything is allocated.

- A header is bounded in bytes and in tensors before it is parsed; keys that come twice are refused; offsets, overlaps,
  holes and trailing bytes are checked by safetensors itself.
- Tensors are read one at a time by position, not mapped: pages of a mapped file count as resident memory for as long
  as they are cached, and a file that is cut short under a map ends the process instead of raising.
- A pickle can run any code when it is opened. It is never opened here: a process of its own asks torch's restricted
  unpickler where its tensors are (``pickles``), and they are read from there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from .. import machine
from .pickles import PickleError, located
from .reasons import brief, listed

MAX_HEADER = 16 * 2**20  # bytes; 200,000 tensors make 13 MB, a LoRA has a few thousand
MAX_TENSORS = 50_000
MAX_MARKS = 16 * MAX_TENSORS  # quotes and brackets; what Python builds of a header is fifty times as large as its text
MAX_DIMENSIONS = 8
KNOWN, MAX_KNOWN = 8, 2**20  # headers whose tensors are remembered, and characters of one

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1",
}  # fmt: skip


class LoraFileError(ValueError):
    """A file that cannot be used as a LoRA; the message names the file and everything that is wrong."""


class NotFiniteError(LoraFileError):
    """Tensors that hold what is no number, or too large for float32; `keys` names them all."""

    def __init__(self, path: Path, keys: Iterable[str]):
        self.keys = sorted(set(keys))
        super().__init__(f"{path}: not finite: {listed(self.keys)}")


class Entry(NamedTuple):
    """One tensor of a file: its shape, its type as safetensors names it, and where its bytes begin and end."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    end: int
    strides: tuple[int, ...] | None = None  # numbers from one to the next along each axis, where it is not dense


@dataclass(frozen=True)
class Container:
    """A file of tensors whose header is checked. `arrays` holds them where the file had to be read whole."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(self, key: str, descriptor: int | None = None) -> np.ndarray:
        """A tensor as float32, whatever it is stored as; `descriptor`: of the file where the caller has it open."""
        if key in self.arrays:
            return self.arrays[key]
        entry = self.entries[key]
        if descriptor is None:
            with opened(self.path) as descriptor:
                data = os.pread(descriptor, entry.end - entry.start, entry.start)
        else:
            data = os.pread(descriptor, entry.end - entry.start, entry.start)
        if len(data) != entry.end - entry.start:
            raise LoraFileError(f"{self.path}: cut short while it was read; copy it again")
        return _float32(data, entry)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Raises LoraFileError naming the file that cannot be read; what is the machine's fault stays what it is."""
    try:
        yield
    except OSError as error:
        if machine.at_fault(error):
            raise
        raise LoraFileError(f"{path}: cannot be read ({error.strerror})") from error


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """A file descriptor for reading by position; raises LoraFileError naming the file."""
    with readable(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, and of the configuration that holds its scale where that stands beside it (PEFT).

    Raises LoraFileError naming the file.
    """
    config = configuration(Path(path))
    with readable(path):
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256")
        if config is not None:
            found.update(config.read_bytes())
    return found.hexdigest()


def configuration(path: Path) -> Path | None:
    """The adapter_config.json that PEFT keeps beside its file, if this is one."""
    config = path.parent / "adapter_config.json"
    return config if path.name.startswith("adapter_model.") and config.is_file() else None


_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))  # of a safetensors file's first eight bytes the last are zero


def open_container(path: str | Path, *, pickles: bool = True) -> Container:
    """A file's tensors by name; raises LoraFileError for what is no sound container."""
    path = Path(path)
    if not path.is_file():
        raise LoraFileError(f"{path}: no such file")
    with opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, 9, 0)
        length = int.from_bytes(start[:8], "little")
        brace = start[8:] == b"{"  # of a header; the length before it can begin with any byte
        if not brace and (start[:2] == b"PK" or start[:1] == b"\x80"):
            if pickles:
                return _unpickled(path)
            raise LoraFileError(
                f"{path}: a pickle, which weights.pickles: refuse leaves unopened; set it to load, which reads tensors "
                "alone, in a process of its own"
            )
        if not size:
            raise LoraFileError(f"{path}: empty, a file of no bytes; copy it again")
        if len(start) > 8 and all(byte in _TEXT for byte in start):
            begins = os.pread(descriptor, 40, 0).decode("ascii", "replace")
            raise LoraFileError(
                f"{path}: text, not a LoRA file: it begins with {begins!r}; was a page, or a pointer of "
                "Git LFS, saved in its place? Download the file itself"
            )
        if len(start) < 8 or length > MAX_HEADER or length > size - 8:
            claims = f"its header claims {length:,} bytes of {size:,}" if len(start) >= 8 else f"it has {size} bytes"
            raise LoraFileError(f"{path}: not a safetensors file, or cut short ({claims}); copy it again")
        raw = os.pread(descriptor, length, 8)
    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        raise LoraFileError(f"{path}: more than {MAX_TENSORS:,} tensors; no LoRA has so many")
    # Within texts (metadata is full of JSON) quotes are escaped, and brackets are of no account.
    if raw.count(b'"') - raw.count(b'\\"') + raw.count(b"[") + raw.count(b"{") > MAX_MARKS:
        raise LoraFileError(f"{path}: a header of too many parts; no LoRA has so many")
    try:
        with safe_open(path, "np"):  # offsets, overlaps, holes and trailing bytes are its business
            pass
        entries, metadata = _header(raw, 8 + length)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if machine.at_fault(error):
            raise
        raise LoraFileError(f"{path}: damaged ({brief(str(error), 200)}); copy it again") from error
    unread = sorted(key for key, e in entries.items() if e.dtype not in _DTYPES or len(e.shape) > MAX_DIMENSIONS)
    if unread:
        raise LoraFileError(
            f"{path}: tensors of a type or a number of dimensions that no LoRA has: "
            + listed(f"{brief(key)} ({entries[key].dtype})" for key in unread)
        )
    return Container(path, entries, metadata)


def _header(raw: bytes, start: int) -> tuple[Mapping[str, Entry], Mapping[str, str]]:
    """Entries and metadata that a header tells; raises ValueError for what is none.

    Files of one trainer and one setting tell the same tensors after other metadata: that part is parsed once for all.
    """
    text = raw.decode(json.detect_encoding(raw), "surrogatepass").rstrip()
    metadata = None
    if text.startswith(_METADATA):
        metadata, end = _DECODER.raw_decode(text, len(_METADATA))
        text = "{" + text[end:].lstrip().removeprefix(",")
    entries, late = (_entries if len(text) <= MAX_KNOWN else _entries.__wrapped__)(text, start)
    return entries, metadata or late or {}


@lru_cache(maxsize=KNOWN)
def _entries(text: str, start: int) -> tuple[Mapping[str, Entry], Any]:
    """Entries of a header's tensors, sorted, and its metadata where they are in that part."""
    tensors, metadata = (_tensors if len(text) <= MAX_KNOWN else _tensors.__wrapped__)(text)
    entries = {key: Entry(shape, dtype, start + first, start + last) for key, shape, dtype, (first, last) in tensors}
    return entries, metadata


@lru_cache(maxsize=KNOWN)
def _tensors(text: str) -> tuple[list[tuple[str, tuple[int, ...], str, tuple[int, int]]], Any]:
    """The same with offsets as the header tells them."""
    header = json.loads(text, object_pairs_hook=_no_twins)
    metadata = header.pop("__metadata__", None)
    return [(key, *_told(entry)) for key, entry in sorted(header.items())], metadata


def _told(found: Any) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    if not isinstance(found, dict):  # Rust, which safetensors is written in, takes a list for a mapping
        raise ValueError("an entry of the header is no mapping")
    return tuple(found["shape"]), found["dtype"], found["data_offsets"]


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with this metadata, sorted by key: the library writes metadata in the order of a
    hash map with a random state."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _float32(data: bytes, entry: Entry) -> np.ndarray:
    values = np.frombuffer(data, _DTYPES[entry.dtype])
    if entry.strides is None:
        values = values.reshape(entry.shape)
    else:  # a view that a pickle kept, such as the first columns of a matrix
        steps = [step * values.itemsize for step in entry.strides]
        values = np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, entry.shape, steps, writeable=False))
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    if entry.dtype == "F8_E5M2":  # the upper half of a float16
        return (values.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if entry.dtype == "F8_E4M3":
        return _E4M3[values]
    if entry.dtype == "F16":
        return _single(values)
    with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number is refused by name
        return values.astype(np.float32)


def _e4m3() -> np.ndarray:
    """The 256 numbers of float8 e4m3fn (Micikevicius et al. 2022), float32: no infinity, one NaN of each sign."""
    bits = np.arange(128)
    exponent, mantissa = bits >> 3, (bits & 7) / 8
    values = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7.0))
    values[-1] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _e4m3()


def _single(half: np.ndarray) -> np.ndarray:
    """float16 → float32, exactly; three times as fast as numpy, and most of what reading a LoRA costs."""
    bits = half.view("<i2")
    if bits.size and (bits & 0x7FFF).max() >= 0x7C00:  # infinities and NaN, which the shift would turn into numbers
        return half.astype(np.float32)
    # Sign to the top, exponent and mantissa to their new place; then the exponent's bias is made good.
    wide = np.left_shift(bits, 13, dtype=np.int32)
    wide &= np.int32(-0x70002000)
    single = wide.view(np.float32)
    single *= np.float32(2.0**112)
    return single


def _no_twins(pairs: Iterable[tuple[str, object]]) -> dict:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"keys that come twice: {listed(sorted({n for n in names if names.count(n) > 1}))}")
    return found


_METADATA = '{"__metadata__":'  # what safetensors begins a header with
_DECODER = json.JSONDecoder(object_pairs_hook=_no_twins)


def _unpickled(path: Path) -> Container:
    try:
        found = located(path)
    except PickleError as error:
        raise LoraFileError(f"{path}: a pickle {brief(str(error), 280)}") from error
    if isinstance(found, bytes):
        start = 8 + int.from_bytes(found[:8], "little")
        header = json.loads(found[8:start])
        header.pop("__metadata__", None)
        stored, _ = _entries.__wrapped__(json.dumps(header), start)
        arrays = {key: _float32(found[e.start : e.end], e) for key, e in stored.items()}
        entries = {key: Entry(array.shape, "F32", 0, array.nbytes) for key, array in arrays.items()}
        return Container(path, entries, {}, arrays)
    entries = {
        key: Entry(shape, dtype, first, last, strides) for key, (dtype, shape, strides, first, last) in found.items()
    }
    return Container(path, entries, {})
