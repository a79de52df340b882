"""Pickles (.bin, .pt, .ckpt), looked into by a process of its own: see unpickle.py.

One process serves all files of a run, since torch takes seconds to start; one that crashes, hangs or runs out of memory
is ended, its file is refused, and the next file has a new one. Of an archive, as torch has written them since 2020, it
gives the places of tensors in the file, and they are read from there as those of safetensors are.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock

SECONDS, BYTES_PER_SECOND = 120, 20 * 2**20
MAX_LEGACY = 4 * 2**30  # bytes of a file of the older format, which is read whole


class PickleError(ValueError):
    """A pickle that is not read; the message goes on after "a pickle"."""


class _Reader:
    """The process, started when it is first asked."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = Lock()

    def ask(self, path: Path) -> tuple[dict, bytes]:
        """The answer of one request, and the bytes that follow it; raises PickleError."""
        with self.lock:
            if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                self._start()
            assert self.process is not None and self.process.stdin is not None
            request = json.dumps({"path": str(path.resolve())})
            deadline = time.monotonic() + SECONDS + path.stat().st_size / BYTES_PER_SECOND
            try:
                self.process.stdin.write(request.encode() + b"\n")
                self.process.stdin.flush()
                line, whole = self._until(deadline, lambda found: b"\n" in found).split(b"\n", 1)
                answer = json.loads(line)
                size = answer.get("legacy", 0)
                whole += self._until(deadline, lambda found: len(found) >= size - len(whole))
            except (OSError, ValueError) as error:
                self.stop()
                raise PickleError(
                    "on which the process that looked into it ended, for want of memory or time"
                ) from error
        if "refused" in answer:
            raise PickleError(answer["refused"])
        return answer, bytes(whole)

    def _start(self) -> None:
        script = Path(__file__).with_name("unpickle.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self.owner = os.getpid()

    def _until(self, deadline: float, enough: Callable[[bytearray], bool]) -> bytearray:
        """Its output until there is enough; ValueError where it ends or takes too long."""
        assert self.process is not None and self.process.stdout is not None
        descriptor, found = self.process.stdout.fileno(), bytearray()
        while not enough(found):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 2**20) if ready else b""
            if not part:
                raise ValueError("no answer")
            found += part
        return found

    def stop(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None


_READER = _Reader()
atexit.register(_READER.stop)

# Type, shape, strides where it is not dense, first and last byte in the file.
Located = tuple[str, tuple[int, ...], tuple[int, ...] | None, int, int]


def located(path: Path) -> dict[str, Located] | bytes:
    """Where the tensors of a file are; of an older file, which has no such places, the bytes of a safetensors file of
    them. Raises PickleError."""
    if path.stat().st_size > MAX_LEGACY and not zipfile.is_zipfile(path):
        raise PickleError("of an older format, too large to be read whole")
    answer, whole = _READER.ask(path)
    if "legacy" in answer:
        return whole
    return {
        key: (dtype, tuple(shape), None if strides is None else tuple(strides), first, last)
        for key, (dtype, shape, strides, first, last) in answer["entries"].items()
    }
