"""Updates of a few numbers a module, and matrices that all modules share. PEFT writes the shared ones once for a file.

    VeRA       (λ_b · B) (λ_d · A)                      Kopiczko et al. 2024, arXiv 2310.11454
    PVeRA      the same, of the first halves: the means of what it draws
    VB-LoRA    rows of A and B put together from vectors of a bank     Li et al. 2024, arXiv 2405.15179
    Uni-LoRA   entries of A and B taken from one vector  Li et al. 2025, arXiv 2506.00799
    TinyLoRA   B (Σ v_u P_u) A                           of the base's singular directions, which it saves
    RandLoRA   Σ of products of random bases             Albert et al. 2025, arXiv 2502.00987

VeRA's and RandLoRA's shared matrices are cut to each module, whose width only the base has.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update
from .kind import Keys, Kind, Parts, Settings, Shapes, names, number, unfit, whole

if TYPE_CHECKING:
    from ..formats import Spec

SHARED_MATRICES = (
    "was saved without its shared matrices (save_projection was off), and they are drawn anew from a seed by PEFT alone"
)


def _needs(kind: str, parts: set[str], shared: set[str] | None = None, said: str = "") -> Callable[[Keys], str | None]:
    """What `Kind.incomplete` is, of a kind of these parts; `said`: where none of the `shared` ones is there."""

    def incomplete(keys: Keys) -> str | None:
        if shared and not shared & names(keys):
            return said
        return whole(kind, parts - names(keys), names(keys) - parts, keys)

    return incomplete


def _vera(halved: bool, v: str):
    """VeRA's kind, or PVeRA's: A has two matrices there, and λ_d two halves."""
    A, B, b, d = f"{v}_A", f"{v}_B", f"{v}_lambda_b", f"{v}_lambda_d"

    def mismatch(s: Shapes) -> str | None:
        ok = len(s[A]) == len(s[B]) == 2 and len(s[b]) == len(s[d]) == 1 and s[d][0] == s[A][0]
        ok = ok and s[A][0] == s[B][1] * (1 + halved) and s[b][0] <= s[B][0]
        return None if ok else unfit(s)

    def relative(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
        out, width = spec.layer
        if width > p[A].shape[1] or out != len(p[b]):
            raise ValueError(f"{spec.module} is {out} × {width} in the base, wider than its matrices")
        rank = p[B].shape[1]
        left = p[B][:out] * p[b][:, None]
        return Update(spec.module, p[A][:rank, :width] * p[d][:rank, None], left)

    name = "PVeRA" if halved else "VeRA"
    return Kind(
        name=name,
        spellings={part: rf"{part}(\.[\w-]+)?" for part in (A, B, b, d)},
        is_of=lambda parts: bool(parts & {b, d}),
        incomplete=_needs(name, {A, B, b, d}, {A, B}, f"{name} that {SHARED_MATRICES}"),
        mismatch=mismatch,
        shape=lambda s: (s[b][0], s[A][1]),
        rank=lambda s: s[B][1],
        update=None,
        scaled=lambda parts, scale: False,
        relative=relative,
        sized=True,
        why="has shared matrices that are cut to each layer, whose width stands in the base alone",
        shared=(A, B),
    )


VERA, PVERA = _vera(False, "vera"), _vera(True, "pvera")


def _randlora(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    """The bases' axes are flattened as they lie: of A by rank first, of B by base first."""
    out, width = spec.layer
    small, large = min(out, width), max(out, width)
    A, B, weights, gamma = p["randlora_A"], p["randlora_B"], p["randlora_lambda"], p["randlora_gamma"]
    bases = weights.shape[1]
    if small > A.shape[2] or large > len(B) or gamma.shape != (bases, small) or bases > B.shape[1]:
        raise ValueError(f"{spec.module} is {out} × {width} in the base, which is not the layer of its matrices")
    thin = A[:, :bases, :small] * weights[:, :, None] * gamma[None]  # A's own axis of bases is of one
    thin, tall = thin.reshape(-1, small), B[:large, :bases].reshape(large, -1)
    alpha, r = number(spec.settings, "randlora_alpha", 640), number(spec.settings, "r", 32)
    scale = np.float32(alpha / r)
    if small == width:
        return Update(spec.module, thin, tall * scale)
    return Update(spec.module, np.ascontiguousarray(tall.T), np.ascontiguousarray(thin.T) * scale)


RANDLORA = Kind(
    name="RandLoRA",
    spellings={part: rf"{part}(\.[\w-]+)?" for part in (
        "randlora_A", "randlora_B", "randlora_lambda", "randlora_gamma"
    )},
    is_of=lambda parts: "randlora_lambda" in parts,
    incomplete=_needs(
        "RandLoRA", {"randlora_A", "randlora_B", "randlora_lambda", "randlora_gamma"},
        {"randlora_A", "randlora_B"}, f"RandLoRA that {SHARED_MATRICES}",
    ),
    mismatch=lambda s: (
        None
        if len(s["randlora_A"]) == len(s["randlora_B"]) == 3
        and len(s["randlora_lambda"]) == len(s["randlora_gamma"]) == 2
        and s["randlora_A"][1] == 1 and s["randlora_A"][0] == s["randlora_B"][2] == s["randlora_lambda"][0]
        and s["randlora_lambda"][1] == s["randlora_gamma"][0]
        else unfit(s)
    ),
    shape=lambda s: (s["randlora_B"][0], s["randlora_gamma"][1]),
    rank=lambda s: s["randlora_gamma"][1],
    update=None,
    scaled=lambda parts, scale: False,
    relative=_randlora,
    sized=True,
    why="has shared matrices that are cut to each layer, whose shape stands in the base alone",
    settings=("randlora_alpha", "r"),
    shared=("randlora_A", "randlora_B"),
)  # fmt: skip


# --- VB-LoRA


def _mixed(p: Parts, side: str, topk: int) -> np.ndarray:
    """(rows, tiles, vector): sums of the topk vectors of the bank, weighted by the softmax of their logits."""
    bank = p["vblora_vector_bank"].astype(np.float64)
    if f"vb_{side}" in p:
        logits = p[f"vb_{side}"].astype(np.float64)
        if not 0 < topk <= logits.shape[-1]:
            raise ValueError(f"topk of its configuration is {topk}, of {logits.shape[-1]} vectors")
        chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :topk]
        logits = np.take_along_axis(logits, chosen, -1)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    else:  # the last weight is what the others leave of one
        chosen = p[f"vb_{side}_indices"].astype(np.int64)
        given = p[f"vb_{side}_weights"].astype(np.float64)
        weights = np.concatenate([given, 1 - given.sum(-1, keepdims=True)], -1)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(bank):
            raise ValueError("indices of vectors that its bank does not have")
    return (bank[chosen] * weights[..., None]).sum(-2)


def _vblora(module: str, p: Parts, settings: Settings) -> Update:
    topk = int(number(settings, "topk", 2))
    A, B = _mixed(p, "A", topk), _mixed(p, "B", topk)
    A = A.reshape(len(A), -1)
    B = np.swapaxes(B, 1, 2).reshape(-1, B.shape[1])
    return Update(module, A.astype(np.float32), B.astype(np.float32))


def _tiles(s: Shapes, side: str):
    return s[f"vb_{side}"] if f"vb_{side}" in s else s[f"vb_{side}_indices"]


def _vblora_incomplete(keys: Keys) -> str | None:
    parts = names(keys)
    missing = {"vblora_vector_bank"} - parts
    for side in "AB":
        if f"vb_{side}" not in parts:
            missing |= {f"vb_{side}_indices", f"vb_{side}_weights"} - parts
    return whole("VB-LoRA", missing, parts - set(VBLORA.spellings), keys)


def _vblora_mismatch(s: Shapes) -> str | None:
    a, b, bank = _tiles(s, "A"), _tiles(s, "B"), s["vblora_vector_bank"]
    ok = len(a) == len(b) == 3 and len(bank) == 2 and a[0] == b[1]
    for side in "AB":
        if f"vb_{side}" in s:
            ok = ok and s[f"vb_{side}"][-1] == bank[0]
        else:
            chosen, weights = s[f"vb_{side}_indices"], s[f"vb_{side}_weights"]
            ok = ok and len(chosen) == 3 and weights == (*chosen[:2], chosen[2] - 1)
    return None if ok else unfit(s)


VBLORA = Kind(
    name="VB-LoRA",
    spellings={
        "vblora_vector_bank": r"vblora_vector_bank(\.[\w-]+)?",
        **{f"vb_{side}": rf"vblora_logits_{side}(\.[\w-]+)?" for side in "AB"},
        **{f"vb_{side}_{part}": rf"vblora_logits_{side}(\.[\w-]+)?_topk_{part}" for side in "AB"
           for part in ("indices", "weights")},
    },
    is_of=lambda parts: any(part.startswith("vb_") for part in parts),
    incomplete=_vblora_incomplete,
    mismatch=_vblora_mismatch,
    shape=lambda s: (
        _tiles(s, "B")[0] * s["vblora_vector_bank"][1], _tiles(s, "A")[1] * s["vblora_vector_bank"][1]
    ),
    rank=lambda s: _tiles(s, "A")[0],
    update=None,
    scaled=lambda parts, scale: False,
    settings=("topk",),
    configured=_vblora,
    shared=("vblora_vector_bank",),
)  # fmt: skip


# --- Uni-LoRA


def _unilora(module: str, p: Parts) -> Update:
    theta = p["unilora_theta_d"].astype(np.float32)
    chosen = [p[f"unilora_indices_{side}"].astype(np.int64) for side in "AB"]
    if any(c.size and not 0 <= c.min() <= c.max() < len(theta) for c in chosen):
        raise ValueError("indices of numbers that its vector does not have")
    A, B = (theta[c] * p[f"unilora_scales_{side}"] for c, side in zip(chosen, "AB", strict=True))
    return Update(module, A, B)


_UNILORA = {f"unilora_{part}_{side}" for part in ("indices", "scales") for side in "AB"}

UNILORA = Kind(
    name="Uni-LoRA",
    spellings={part: rf"{part}(\.[\w-]+)?" for part in sorted(_UNILORA | {"unilora_theta_d"})},
    is_of=lambda parts: bool(parts & _UNILORA),
    incomplete=_needs("Uni-LoRA", _UNILORA | {"unilora_theta_d"}),
    mismatch=lambda s: (
        None
        if all(
            len(s[f"unilora_indices_{x}"]) == 2 and s[f"unilora_indices_{x}"] == s[f"unilora_scales_{x}"] for x in "AB"
        )
        and s["unilora_indices_A"][0] == s["unilora_indices_B"][1]
        and len(s["unilora_theta_d"]) == 1
        else unfit(s)
    ),
    shape=lambda s: (s["unilora_indices_B"][0], s["unilora_indices_A"][1]),
    rank=lambda s: s["unilora_indices_A"][0],
    update=_unilora,
    scaled=lambda parts, scale: False,
    shared=("unilora_theta_d",),
)


# --- TinyLoRA


def _tinylora(module: str, p: Parts) -> Update:
    R = np.tensordot(p["tinylora_v"].astype(np.float64), p["tinylora_P"].astype(np.float64), (0, 0))
    return Update(module, p["tinylora_A"], (p["tinylora_B"].astype(np.float64) @ R).astype(np.float32))


TINYLORA = Kind(
    name="TinyLoRA",
    spellings={
        **{f"tinylora_{part}": rf"tinylora_{part}(\.[\w-]+)?" for part in "ABP"},
        "tinylora_v": r"tinylora_v\.0",
    },
    is_of=lambda parts: bool(parts & {"tinylora_A", "tinylora_B", "tinylora_P"}),
    incomplete=_needs(
        "TinyLoRA", {"tinylora_A", "tinylora_B", "tinylora_P", "tinylora_v"}, {"tinylora_v"},
        "TinyLoRA of several vectors, or without its projections: which of them is a module's own is nowhere in "
        "the file",
    ),
    mismatch=lambda s: (
        None
        if len(s["tinylora_A"]) == len(s["tinylora_B"]) == 2 and len(s["tinylora_P"]) == 3
        and s["tinylora_P"] == (*s["tinylora_v"], s["tinylora_B"][1], s["tinylora_A"][0])
        else unfit(s)
    ),
    shape=lambda s: (s["tinylora_B"][0], s["tinylora_A"][1]),
    rank=lambda s: s["tinylora_A"][0],
    update=_tinylora,
    scaled=lambda parts, scale: False,
    shared=("tinylora_v",),
)  # fmt: skip
