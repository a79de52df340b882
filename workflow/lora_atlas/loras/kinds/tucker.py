"""LyCORIS' LoCon with a Tucker core: ΔW[o, i, …] = s · Σ up[o, p] mid[p, q, …] down[q, i]."""

import math

from ..factors import Update
from . import lora
from .kind import Kind, Parts, Shapes, flat, product


def mismatch(s: Shapes) -> str | None:
    a, b, mid = s["A"], s["B"], s["mid"]
    ok = len(a) >= 2 and len(b) >= 2 and math.prod(b[2:]) == 1
    if ok and len(mid) >= 2 and mid[0] == b[1] and mid[1] == a[0] and math.prod(a[2:]) == 1:
        return None
    return f"A {list(a)} and B {list(b)} do not multiply through {list(mid)}"


def update(module: str, p: Parts) -> Update:
    return product(module, p["B"].reshape(p["B"].shape[:2]).T, flat(p["A"]), p["mid"])


TUCKER = Kind(
    name="Tucker",
    spellings={"mid": r"lora_mid\.weight"},
    is_of=lambda parts: "mid" in parts,
    incomplete=lora.incomplete,
    mismatch=mismatch,
    shape=lambda s: (s["B"][0], math.prod(s["A"][1:]) * math.prod(s["mid"][2:])),
    rank=lora.rank,
    update=update,
    bytes=lambda s: 4 * s["mid"][0] * math.prod(s["A"][1:]) * math.prod(s["mid"][2:]),
)
