"""The difference itself, of a weight; and of a bias, which is a matrix of one column."""

import math
from dataclasses import replace

from ..factors import Factored, of_dense
from .kind import Keys, Kind, Parts, flat, names, unfit, whole


def incomplete(keys: Keys) -> str | None:
    return whole("full", set(), names(keys) - {"diff"}, keys)


def update(module: str, p: Parts) -> Factored:
    return of_dense(module, flat(p["diff"]) if p["diff"].ndim > 1 else p["diff"][:, None])


FULL = Kind(
    name="full",
    spellings={"diff": r"(diff|w_norm)"},
    is_of=lambda parts: "diff" in parts,
    incomplete=incomplete,
    mismatch=lambda s: None if len(s["diff"]) >= 1 else unfit(s),
    shape=lambda s: (s["diff"][0], math.prod(s["diff"][1:])),
    rank=lambda s: min(s["diff"][0], math.prod(s["diff"][1:])),
    update=update,
    scaled=lambda parts, configured: False,
)
# The bias of a LoRA has the scale of its weight. It is named beside another update, and never told from parts.
BIAS = replace(FULL, name="bias", spellings={}, scaled=lambda parts, configured: True)
