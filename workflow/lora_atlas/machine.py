"""Whose fault an error of the system is: that of the file which is read, or the machine's.

A file that cannot be read becomes a row that says so, and the row stays. A machine without room, memory or file
descriptors, or a disk whose server is away, says nothing of the file: the job ends, and the next run reads the file
again. A block that a disk cannot read (EIO) is the file's.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

_SAID = {
    "no room is left on the disk of {}; make some": ("ENOSPC", "EDQUOT"),
    "too many files are open; raise the limit (ulimit -n 4096), or end other programs": ("EMFILE", "ENFILE"),
    "no memory is left; end other programs, or run fewer jobs at once (--cores)": ("ENOMEM",),
    "the disk of {}, or the server that it lies on, is away; mount it again": (
        "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENODEV", "ENXIO",
    ),
}  # fmt: skip
# Not every system has all of them.
WORDS: Mapping[int, str] = {
    getattr(errno, name): words for words, names in _SAID.items() for name in names if hasattr(errno, name)
}
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors tells what the system told it


def _number(error: BaseException) -> int | None:
    """The system's number of an error, where it has one."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST.search(str(error))
    return int(found[1]) if found else None


def at_fault(error: BaseException) -> bool:
    """Whether an error says something of the machine, and nothing of what was read."""
    return _number(error) in WORDS


def told(error: BaseException, places: Iterable[str | Path] = ()) -> str | None:
    """Such an error in words, with what is to be done; None for any other. `places`: where there may be no room, if
    the error names none."""
    number = _number(error)
    if number is None or number not in WORDS:
        return None
    named = getattr(error, "filename", None)
    where = os.fspath(named) if isinstance(named, str | bytes | os.PathLike) else _fullest(places)
    return f"{WORDS[number].format(where)}, and run the same command again ({os.strerror(number)})"


def _fullest(places: Iterable[str | Path]) -> str:
    """The place with the least room."""
    there = [Path(each).resolve() for each in places]
    there = [next(folder for folder in (place, *place.parents) if folder.is_dir()) for place in there]
    return str(min(there, key=lambda folder: shutil.disk_usage(folder).free, default="the results"))


def descriptors(wanted: int, spare: int = 64) -> int:
    """Of so many files how many may be kept open together: what the system allows, less what a process has itself."""
    try:
        import resource
    except ImportError:  # no POSIX
        return min(wanted, 512 - spare)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if limit == resource.RLIM_INFINITY else max(min(wanted, limit - spare), 0)
