"""LoRA, Hu et al. 2021, arXiv 2106.09685: s·BA; LoCon where A has a kernel.

And what are LoRAs in all but the names of their parts: PEFT's of embeddings, of convolutions in groups, AdaLoRA.
"""

import math
from dataclasses import replace

import numpy as np

from ..factors import Update
from .kind import Keys, Kind, Parts, Settings, Shape, Shapes, flat, names, number, unfit, whole

PAIR = {"A", "B"}
SPELLINGS = {
    "A": r"(lora_A(\.[\w-]+)?(\.weight)?|lora\.down\.weight|lora_linear_layer\.down\.weight|lora_down\.weight)",
    "B": r"(lora_B(\.[\w-]+)?(\.weight)?|lora\.up\.weight|lora_linear_layer\.up\.weight|lora_up\.weight)",
}


def incomplete(keys: Keys) -> str | None:
    """Half a pair, or parts of other kinds beside it; a Tucker core and a magnitude may be there."""
    parts = names(keys) - {"magnitude"}
    return whole("LoRA", PAIR - parts, parts - PAIR - {"mid"}, keys, pair=True)


def mismatch(s: Shapes) -> str | None:
    a, b = s["A"], s["B"]
    if len(a) >= 2 and len(b) >= 2 and math.prod(b[2:]) == 1 and (a[0] == b[1] or groups(a, b) > 1):
        return None
    return f"A {list(a)} and B {list(b)} do not multiply"


def groups(a: Shape, b: Shape) -> int:
    """Groups of PEFT's LoRA of a convolution in groups: its B alone has them, and sees r over groups of A's rows."""
    if len(a) < 3 or len(b) < 3 or not b[1] or a[0] % b[1] or b[0] % (a[0] // b[1]):
        return 1
    return a[0] // b[1]


def shape(s: Shapes) -> tuple[int, int]:
    return s["B"][0], math.prod(s["A"][1:])


def rank(s: Shapes) -> int:
    return s["A"][0]


def update(module: str, p: Parts) -> Update:
    A, B = p["A"], p["B"]
    parted = groups(A.shape, B.shape)
    B = B.reshape(len(B), -1)
    if parted > 1:  # every group of outputs has rows of A of its own
        each, width = len(B) // parted, B.shape[1]
        whole_B = np.zeros((len(B), parted * width), B.dtype)
        for g in range(parted):
            whole_B[g * each : (g + 1) * each, g * width : (g + 1) * width] = B[g * each : (g + 1) * each]
        B = whole_B
    return Update(module, flat(A), B)


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


# PEFT's LoRA of an embedding: W is (words, width) there, and ΔW = s (BA)ᵀ.
EMBEDDING = Kind(
    name="LoRA, embedding",
    spellings={"eA": r"lora_embedding_A(\.[\w-]+)?", "eB": r"lora_embedding_B(\.[\w-]+)?"},
    is_of=lambda parts: bool(parts & {"eA", "eB"}),
    incomplete=lambda keys: whole("LoRA", {"eA", "eB"} - names(keys), names(keys) - {"eA", "eB"}, keys, pair=True),
    mismatch=lambda s: (
        None if len(s["eA"]) == len(s["eB"]) == 2 and s["eA"][0] == s["eB"][1]
        else f"A {list(s['eA'])} and B {list(s['eB'])} do not multiply"
    ),
    shape=lambda s: (s["eA"][1], s["eB"][0]),
    rank=lambda s: s["eA"][0],
    update=lambda module, p: Update(module, np.ascontiguousarray(p["eB"].T), np.ascontiguousarray(p["eA"].T)),
)  # fmt: skip


def _adalora(module: str, p: Parts, settings: Settings) -> Update:
    """B diag(E) A · α/(r + 10⁻⁵), with the r that training began from."""
    r = number(settings, "init_r", 12)
    alpha = number(settings, "lora_alpha", 8) or r
    return Update(module, p["A"], p["B"] * (p["E"].reshape(1, -1) * np.float32(alpha / (r + 1e-5))))


# Zhang et al. 2023, arXiv 2303.10512.
ADALORA = Kind(
    name="AdaLoRA",
    spellings={"E": r"lora_E(\.[\w-]+)?"},
    is_of=lambda parts: "E" in parts,
    incomplete=lambda keys: whole("AdaLoRA", {*PAIR, "E"} - names(keys), names(keys) - {*PAIR, "E"}, keys),
    mismatch=lambda s: mismatch(s) or (None if len(s["A"]) == 2 and math.prod(s["E"]) == s["A"][0] else unfit(s)),
    shape=shape,
    rank=rank,
    update=None,
    scaled=lambda parts, scale: False,
    settings=("init_r", "lora_alpha"),
    configured=_adalora,
)


def _expert(module: str, p: Parts, settings: Settings) -> Update:
    """One expert's: A has rows by expert, then rank; B has columns by rank, then expert."""
    e, experts = settings["expert"], settings["experts"]
    A, B = p["A"].reshape(experts, -1, p["A"].shape[1]), p["B"].reshape(len(p["B"]), -1, experts)
    return Update(module, np.ascontiguousarray(A[e]), np.ascontiguousarray(B[:, :, e]))


# PEFT's target_parameters: a weight (experts, …) has one pair of factors, of which every expert has its own part.
EXPERTS = replace(
    LORA,
    name="LoRA, experts",
    spellings={},
    plain=False,
    update=None,
    configured=_expert,
    settings=("expert", "experts"),
)


def _blocks(module: str, p: Parts, settings: Settings) -> Update:
    """One factor's rows are of as many blocks, which lie on a diagonal."""
    side, count = settings["side"], settings["nblocks"]
    stacked = p[side].reshape(count, -1, p[side].shape[1])
    n, height, width = stacked.shape
    whole_factor = np.zeros((n * height, n * width), stacked.dtype)
    for i, block in enumerate(stacked):
        whole_factor[i * height : (i + 1) * height, i * width : (i + 1) * width] = block
    factors = {**p, side: whole_factor}
    return Update(module, factors["A"], factors["B"])


# PEFT's BD-LoRA: its configuration says of which modules A or B is block-diagonal.
BLOCKS = replace(LORA, name="BD-LoRA", spellings={}, plain=False, update=None, configured=_blocks)
