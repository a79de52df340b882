"""LoHa, Hyeon-Woo et al. 2022, arXiv 2108.06098: s·(w1a w1b) ∘ (w2a w2b), each half with a Tucker core or without."""

import math

from ..factors import HadamardUpdate
from .kind import Keys, Kind, Parts, Shapes, fits, names, product, sides, unfit, whole

FACTORS, CORES = {"w1_a", "w1_b", "w2_a", "w2_b"}, {"t1", "t2"}


def incomplete(keys: Keys) -> str | None:
    parts = names(keys)
    missing = FACTORS - parts | (CORES - parts if parts & CORES else set())
    return whole("LoHa", missing, parts - FACTORS - CORES, keys)


def mismatch(s: Shapes) -> str | None:
    halves = [(s[f"w{n}_a"], s[f"w{n}_b"], s.get(f"t{n}")) for n in "12"]
    ok = all(fits(*half) for half in halves) and sides(*halves[0]) == sides(*halves[1])
    return None if ok else unfit(s)


def update(module: str, p: Parts) -> HadamardUpdate:
    return HadamardUpdate(module, *(product(module, p[f"w{n}_a"], p[f"w{n}_b"], p.get(f"t{n}")) for n in "12"))


def _bytes(s: Shapes) -> int:
    if "t1" not in s:
        return 0
    return 4 * sum(s[f"t{n}"][0] * s[f"w{n}_b"][1] * math.prod(s[f"t{n}"][2:]) for n in "12")


LOHA = Kind(
    name="LoHa",
    spellings={part: rf"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    is_of=lambda parts: bool(parts & (FACTORS | CORES)),
    incomplete=incomplete,
    mismatch=mismatch,
    shape=lambda s: sides(s["w1_a"], s["w1_b"], s.get("t1")),
    rank=lambda s: s["t1"][0] if "t1" in s else s["w1_b"][0],
    update=update,
    bytes=_bytes,
    squared=True,
)
