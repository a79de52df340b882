"""LoRA, Hu et al. 2021, arXiv 2106.09685: s·BA; LoCon where A has a kernel."""

import math

from ..factors import Update
from .kind import Keys, Kind, Parts, Shapes, flat, names, whole

PAIR = {"A", "B"}
SPELLINGS = {
    "A": r"(lora_A(\.[\w-]+)?\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight|lora_down\.weight)",
    "B": r"(lora_B(\.[\w-]+)?\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight|lora_up\.weight)",
}


def incomplete(keys: Keys) -> str | None:
    """Half a pair, or parts of other kinds beside it; a Tucker core and a magnitude may be there."""
    parts = names(keys) - {"magnitude"}
    return whole("LoRA", PAIR - parts, parts - PAIR - {"mid"}, keys, pair=True)


def mismatch(s: Shapes) -> str | None:
    a, b = s["A"], s["B"]
    if len(a) >= 2 and len(b) >= 2 and math.prod(b[2:]) == 1 and a[0] == b[1]:
        return None
    return f"A {list(a)} and B {list(b)} do not multiply"


def shape(s: Shapes) -> tuple[int, int]:
    return s["B"][0], math.prod(s["A"][1:])


def rank(s: Shapes) -> int:
    return s["A"][0]


def update(module: str, p: Parts) -> Update:
    return Update(module, flat(p["A"]), p["B"].reshape(p["B"].shape[:2]))


LORA = Kind(
    name="LoRA",
    spellings=SPELLINGS,
    is_of=lambda parts: parts <= PAIR,
    incomplete=incomplete,
    mismatch=mismatch,
    shape=shape,
    rank=rank,
    update=update,
    plain=True,
)
