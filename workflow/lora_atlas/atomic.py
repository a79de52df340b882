"""Files that are there whole or not at all."""

import contextlib
import glob
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SETTLED = 2.0  # seconds: a file changed since may change again without another time
_ASKING = threading.Lock()


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed over it, on failure removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp made it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear(path: str | Path) -> None:
    """Remove what killed writes of a file left beside it; only where nobody else may be writing it."""
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink(missing_ok=True)


def settled(status: os.stat_result) -> bool:
    """Whether a file's times say now which bytes it has: as for git, what was written in this very moment may be
    written again in it."""
    return time.time() - max(status.st_mtime, status.st_ctime) > SETTLED


def _umask() -> int:
    # It is told by being set: two threads that do so at once would leave the process without any.
    with _ASKING:
        mask = os.umask(0)
        os.umask(mask)
    return mask
