"""What makes a result old: content, and nothing else.

A key is the SHA-256 of all that a result depends on, in one canonical form: the settings that its stage uses, what its
inputs hold, the code that computes it, the locked environment. Times of files, orders of mappings, spellings of paths
and numbers are no part of it, and neither is the machine: a LoRA trained on a GPU is that LoRA on a laptop too.

Digests of files are remembered by what the file system says of them. The time of an inode's last change is among
that: no `mv`, `cp -p`, `rsync -a` or `tar` can set it back, so that a file with an older date is read again.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .atomic import replacing, settled

MEMO = Path("results/.digests.jsonl")  # of the working directory
MEMO_BYTES = 8 << 20  # beyond which it is written anew, without what is outdated
Sign = tuple[int, int, int, int, int, str]  # device, inode, bytes, times of the content and of the inode, which digest
EXACT = 2**53  # whole numbers up to here are the same as integers and as floats


def normalised(value: Any) -> Any:
    """JSON values that are equal wherever settings mean the same: mappings sorted, 2.0 as 2, tuples as lists.

    Raises TypeError for what has no canonical form: a path above all, which says where something is and not what.
    """
    if isinstance(value, Mapping):
        return {str(key): normalised(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [normalised(each) for each in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} has no canonical form")
        return int(value) if value.is_integer() and abs(value) < EXACT else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} has no canonical form; name its content, as text or numbers")


def read_yaml(text: str) -> Any:
    """What a text in YAML says, by libyaml where PyYAML was built with it: that in Python takes ten times as long.

    Raises yaml.YAMLError.
    """
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def canonical(value: Any) -> str:
    """The canonical JSON of a value; raises TypeError as `normalised`."""
    return json.dumps(normalised(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def key(parts: Mapping[str, Any]) -> str:
    """The key of a result: SHA-256 of the canonical form of all that it depends on."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


class Digests:
    """SHA-256 of files and folders, remembered between processes in a file of lines (none: `memo` is None)."""

    def __init__(self, memo: Path | None = MEMO):
        self.memo = memo
        self._known: dict[Sign, str] | None = None

    def file(self, path: str | Path) -> str:
        """Of one file's bytes; raises OSError."""
        return self.of(path, "", _sha256)

    def of(self, path: str | Path, what: str, digest: Callable[[Any], str]) -> str:
        """Another digest of a file's bytes, remembered as `what`; "": of the open file."""
        sign = _sign(os.stat(path), what)
        known = self._remembered().get(sign)
        if known is not None:
            return known
        with open(path, "rb") as file:
            found = digest(file.read() if what else file)
            status = os.fstat(file.fileno())
        if _sign(status, what) == sign and settled(status):
            self._remember(sign, found)
        return found

    def folder(self, path: str | Path) -> str:
        """Of names and bytes of all files below a folder; hidden files and notes (README, *.md) aside."""
        return key({file.relative_to(path).as_posix(): self.file(file) for file in _model_files(Path(path))})

    def content(self, path: str | Path) -> str:
        """Of a file or a folder."""
        return self.folder(path) if Path(path).is_dir() else self.file(path)

    def _remembered(self) -> dict[Sign, str]:
        if self._known is None:
            data = b""
            with contextlib.suppress(OSError):
                data = self.memo.read_bytes() if self.memo else b""
            self._known = dict(_lines(data))
            if len(data) > MEMO_BYTES:
                self._rewrite()
        return self._known

    def _remember(self, sign: Sign, found: str) -> None:
        self._remembered()[sign] = found
        # Where nothing was made yet, a dry run leaves nothing behind.
        if self.memo and self.memo.parent.is_dir():
            with contextlib.suppress(OSError), open(self.memo, "ab", buffering=0) as file:
                file.write(_line(sign, found))  # one write: lines of several processes do not mix

    def _rewrite(self) -> None:
        assert self.memo is not None and self._known is not None
        last = {(*sign[:2], sign[5]): sign for sign in self._known}  # of an inode that changed, the last
        self._known = {sign: self._known[sign] for sign in last.values()}
        with contextlib.suppress(OSError), replacing(self.memo) as temporary:
            temporary.write_bytes(b"".join(_line(*each) for each in self._known.items()))


DIGESTS = Digests()


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _sign(stat: os.stat_result, what: str) -> Sign:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, what


def _line(sign: Sign, found: str) -> bytes:
    return (json.dumps([*sign, found]) + "\n").encode()


def _lines(data: bytes) -> Iterator[tuple[Sign, str]]:
    for line in data.splitlines():
        with contextlib.suppress(ValueError, TypeError):  # cut by a full disk, or by a process that was killed
            device, inode, size, written, changed, what, found = json.loads(line)
            if isinstance(found, str) and len(found) == 64:
                yield (device, inode, size, written, changed, what), found


def _model_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.is_file() and file.suffix != ".md" and not file.name.startswith("README"):
            yield file
