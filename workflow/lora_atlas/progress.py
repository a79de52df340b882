"""How far a job is, in words, for people who wait: a line on the terminal now and then, and never more often.

A stage says what it does with ``task``; where the words go, and how often, is said once by whoever runs it
(scripts/job.py). Without that, nothing is said.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator

Say = Callable[[str], object]
LORAS = "LORA_ATLAS_LORAS"  # study → number of its LoRAs, as JSON: jobs inherit it

_say: Say | None = None
_every = 60.0
_clock = time.monotonic


def to(say: Say | None, every: float = 60.0) -> None:
    """Lines go to `say`, one in `every` seconds at most; None: nowhere."""
    global _say, _every
    _say, _every = say, every


def expect(study: str, loras: int) -> None:
    """Let jobs know how many LoRAs a study will have."""
    os.environ[LORAS] = json.dumps({**json.loads(os.environ.get(LORAS, "{}")), study: loras})


def expected(study: str) -> int | None:
    """How many LoRAs a study will have, where that was said."""
    return json.loads(os.environ.get(LORAS, "{}")).get(study)


@contextlib.contextmanager
def task(what: str, total: int, done: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Yields a function that is told of how many more of the `total` are done; `done` were done before.

    The first line is said at once. The time that is left is what this run has taken for each so far, times what is
    left.
    """
    begin = said = _clock()
    now, unit = done, f" {unit}" if unit else ""
    if _say is not None:
        _say(f"{what}: {done} of {total}{unit}")

    def advance(more: int = 1) -> None:
        nonlocal now, said
        now += more
        if _say is None or now >= total or _clock() - said < _every:
            return
        said = _clock()
        left = (said - begin) / max(now - done, 1) * (total - now)
        _say(f"{what}: {now} of {total}{unit}, {duration(left)} left")

    yield advance


def duration(seconds: float) -> str:
    """A time in words, to the precision in which people ask for it."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
