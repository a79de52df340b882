"""Batches that a device has room for: halved where its memory runs out, since no one size suits a base of 64 pixels and
one of 1024, a card of 24 GB and one of 140."""

from collections.abc import Callable
from typing import TypeVar

import torch

from .errors import BaseModelError
from .size import SHARE

T = TypeVar("T")


def scarce(device: torch.device) -> bool:
    """Whether memory may run out in a way that leaves the process alive to try less."""
    return device.type == "cuda"


def in_parts(run: Callable[[slice], T], count: int, size: int, what: str) -> list[T]:
    """What `run` makes of 0 … count, at most `size` at once, in order; a part that the device has no room for is
    halved, and so are those after it. `run` leaves nothing behind where it fails. Raises BaseModelError where there is
    no room for one."""
    found: list[T] = []
    start = 0
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            found.append(run(part))
        except torch.OutOfMemoryError:
            made = False  # only said here: while the error is handled, its traceback still holds what it had
        else:
            made = True
            start = part.stop
        if not made:
            size = _less(part.stop - start, what)
    return found


def largest(trial: Callable[[int], None], size: int, what: str, device: torch.device) -> int:
    """The largest of `size`, its half, … at which a trial runs and leaves some memory over; for work that leaves
    something behind where it fails. Raises BaseModelError where there is no room for one."""
    while True:
        try:
            trial(size)
        except torch.OutOfMemoryError:
            fits = False
        else:
            fits = size == 1 or not full(device)
        if fits:
            return size
        size = _less(size, what)


def full(device: torch.device) -> bool:
    """Whether a device's memory was all but taken: what comes after a trial may need a little more."""
    if device.type != "cuda":
        return False
    taken = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return bool(taken > SHARE * torch.cuda.get_device_properties(device).total_memory)


def _less(size: int, what: str) -> int:
    if size == 1:
        raise BaseModelError(
            f"out of memory: {what}, one at a time; take a device with more memory, or a lower resolution"
        )
    size = (size + 1) // 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"out of memory: {what}, going on with {size} at a time", flush=True)
    return size
