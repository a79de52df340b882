"""How many LoRAs fit into one pack: K grows until memory says stop, and what came out is remembered.

On a CPU all LoRAs of a job are one pack. On a GPU K is doubled, a trial step each, then set to what a straight line
through the last two peaks leaves room for; activations grow with K in proportion.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import tables

SHARE = 0.9  # of the device's memory; the rest is for fragments and for who else looks at the device


def grow(trial: Callable[[int], int], most: int, memory: int) -> int:
    """The largest K ≤ `most` whose trial step stays within SHARE of `memory` (bytes); at least one.

    `trial(K)` returns its peak in bytes, or raises torch.OutOfMemoryError.
    """
    peaks: dict[int, int] = {}
    limit = SHARE * memory

    def fits(K: int) -> bool:
        try:
            peaks[K] = trial(K)
        except torch.OutOfMemoryError:
            return False
        return peaks[K] <= limit

    K = 1
    while fits(K):
        if most == K:
            return K
        K = min(2 * K, most)
    good = sorted(k for k, peak in peaks.items() if peak <= limit)
    if len(good) < 2:
        return good[0] if good else 1
    slope = (peaks[good[-1]] - peaks[good[-2]]) / (good[-1] - good[-2])
    guess = min(K - 1, int(good[-1] + (limit - peaks[good[-1]]) / slope)) if slope > 0 else good[-1]
    return guess if guess > good[-1] and fits(guess) else good[-1]


def remembered(file: Path, key: Mapping[str, Any], choose: Callable[[], int]) -> int:
    """`choose()`, or what it returned for the same key before."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    try:
        known = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # nothing is lost: it is measured again
        known = {}
    if name not in known:
        known[name] = choose()
        with tables.replacing(file) as temporary:
            temporary.write_text(json.dumps(known, indent=1, sort_keys=True))
    return known[name]


def split(loras: Sequence[str], K: int) -> list[list[str]]:
    """LoRAs in packs of at most K, in their order, as even as can be."""
    count = -(-len(loras) // K)
    sizes = [len(loras) // count + (i < len(loras) % count) for i in range(count)]
    ends = [sum(sizes[: i + 1]) for i in range(count)]
    return [list(loras[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
