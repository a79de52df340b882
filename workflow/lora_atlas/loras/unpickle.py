"""A process of its own that looks into pickles: `python -P unpickle.py`, a path a line in, what it holds a line out.

It runs as a script, without the library. A file is opened by torch's restricted unpickler (weights_only=True), which
builds tensors and plain containers and nothing else; where it can be, under fake tensors, so that nothing but names,
shapes and places in the file is ever read. Its memory is limited; what goes wrong here ends this process alone.
"""

import contextlib
import json
import os
import pickletools
import struct
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MAX_PICKLE = 64 * 2**20  # bytes of the pickle itself, without the numbers of tensors
ROOM = 2**30  # bytes beside what torch takes
WRAPPERS = ("state_dict",)
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip


class Refused(Exception):
    """A file that is not read; the message says why."""


def look(path: Path) -> tuple[dict[str, Any], bytes]:
    """What a file holds: key → type, shape, strides, first and last byte; of an old file, which has no such places,
    the number of bytes of a safetensors file of its tensors, and these. Raises Refused."""
    if zipfile.is_zipfile(path):
        return {"entries": _of_archive(path)}, b""
    _limit(ROOM + 4 * path.stat().st_size)
    loaded = _mapping(_loaded(path, lambda: path.read_bytes()[:MAX_PICKLE]))
    total = sum(value.numel() * value.element_size() for value in loaded.values())
    if total > 2 * path.stat().st_size:
        raise Refused("whose tensors are larger than the file")
    from safetensors.torch import save

    whole = save({key: value.detach().clone().contiguous() for key, value in loaded.items()})
    return {"legacy": len(whole)}, whole


def _of_archive(path: Path) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    _limit(ROOM)
    records, pickled = _records(path)
    with FakeTensorMode():
        loaded = _mapping(_loaded(path, lambda: pickled))
    found = {}
    for key, value in loaded.items():
        storage = value.untyped_storage()
        start, size = getattr(storage, "_checkpoint_offset", None), storage.nbytes()
        if start is None or records.get(start, -1) < size:
            raise Refused(f"whose {key!r:.60} is not whole")
        item = value.element_size()
        reach = value.storage_offset() + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) + 1
        if value.numel() and (reach * item > size or value.numel() * item > size):
            raise Refused(f"whose {key!r:.60} is not whole")
        first = start + value.storage_offset() * item
        last = start + reach * item if value.numel() else first
        dense = value.is_contiguous()
        found[key] = [DTYPES[_name(value)], list(value.shape), None if dense else list(value.stride()), first, last]
    return found


def _records(path: Path) -> tuple[dict[int, int], bytes]:
    """First byte → bytes of each record of the archive, none of which may be packed; and the pickle."""
    found, pickled = {}, b""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for record in archive.infolist():
            if record.filename.endswith("byteorder") and archive.read(record) != b"little":
                raise Refused("of a machine whose numbers begin at the other end")
            if record.filename.endswith("/data.pkl"):
                if record.file_size > MAX_PICKLE:
                    raise Refused(f"of {record.file_size:,} bytes without its tensors; no LoRA has so many")
                pickled = archive.read(record)
            if record.compress_type != zipfile.ZIP_STORED:
                raise Refused("whose records are packed, as torch never writes them")
            raw.seek(record.header_offset + 26)
            name, extra = struct.unpack("<HH", raw.read(4))
            found[record.header_offset + 30 + name + extra] = record.file_size
    return found, pickled


def _loaded(path: Path, pickled) -> Any:
    import torch

    try:
        # An open file: a path that ends in .safetensors torch would give to safetensors.
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:  # warnings of what is refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        held = _held(pickled())
        if held:
            more = f" and {len(held) - 5} more" if len(held) > 5 else ""
            raise Refused(f"that holds more than tensors: {', '.join(held[:5])}{more}") from error
        raise Refused("that is damaged, or not one that torch writes") from error


def _held(pickled: bytes) -> list[str]:
    """Names of classes and functions that a pickle asks for beside those of tensors."""
    names: set[str] = set()
    strings: list[str] = []
    with contextlib.suppress(Exception):  # a damaged one ends somewhere
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "GLOBAL":
                names.add(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
                names.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    plain = (
        "torch._utils._rebuild", "torch.storage.", "torch.nn.parameter.", "torch.serialization.",
        "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.bytearray", "builtins.set",
        "builtins.complex",
    )  # fmt: skip
    return sorted(n for n in names if not n.startswith(plain) and not (n.startswith("torch.") and n.count(".") == 1))


def _mapping(loaded: Any) -> dict[str, Any]:
    """Key → tensor. Numbers and texts beside tensors are left out; cloneofsimo's first format is a list."""
    for name in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if isinstance(loaded, list | tuple):  # up, down, up, down … of the UNet
        loaded = {f"unet:{i // 2}:{('up', 'down')[i % 2]}": tensor for i, tensor in enumerate(loaded)}
    if not isinstance(loaded, Mapping):
        raise Refused(f"that is no mapping of names to tensors, but of type {type(loaded).__name__}")
    kept = {key: value for key, value in loaded.items() if not isinstance(value, bool | int | float | str | None)}
    wrong = [str(key) for key, value in kept.items() if not (isinstance(key, str) and _dense(value))]
    if wrong or not kept:
        named = f": {', '.join(repr(key)[:60] for key in wrong[:3])}" if wrong else ""
        raise Refused(f"that is no mapping of names to tensors{named}")
    return dict(sorted(kept.items()))


def _dense(value: Any) -> bool:
    """Whether a pickled value is a tensor of real numbers that are all there: one may name more than its storage has,
    or none."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return _name(value) in DTYPES and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _limit(room: int) -> None:
    """Let this process take so many bytes more than it has, where the system can say so."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        has = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        limit = int(has.split()[1]) * 1024 + room
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _requests() -> Iterator[dict[str, str]]:
    for line in sys.stdin:
        yield json.loads(line)


def serve() -> None:
    """Answer one request a line until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(1)
    for asked in _requests():
        whole = b""
        try:
            answer, whole = look(Path(asked["path"]))
        except Refused as error:
            answer = {"refused": str(error)}
        except MemoryError:
            answer = {"refused": "that asks for more memory than it may"}
        except Exception as error:  # noqa: BLE001  # whatever it is, the next file is looked into
            answer = {"refused": f"that is damaged ({type(error).__name__})"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(whole)
        answers.flush()


if __name__ == "__main__":
    serve()
