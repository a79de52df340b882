"""Updates that turn the base's weights, W R − W or R W − W, with R orthogonal.

    OFT    R of blocks, each a Cayley transform; PEFT turns the inputs   Qiu et al. 2023, arXiv 2306.07280
    BOFT   the same, and a factor for each output                        Liu et al. 2024, arXiv 2311.06243
    HRA    R a product of reflections                                    Yuan et al. 2024, arXiv 2405.17484

LyCORIS' diagonal OFT turns the outputs.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Kind, Parts, names, number, unfit, whole

if TYPE_CHECKING:
    from ..formats import Spec

TURNS = "turns the base's weights"


def _flat(base: np.ndarray) -> np.ndarray:
    return base.reshape(len(base), -1).astype(np.float64)


def _cayley(Q: np.ndarray) -> np.ndarray:
    """(I + Q)⁻¹ (I − Q) of each block, which commute."""
    identity = np.eye(Q.shape[-1])
    return np.linalg.solve(identity + Q, identity - Q)


def _series(Q: np.ndarray, terms: int) -> np.ndarray:
    """I + 2Q + 2Q² + … + Qⁿ, as PEFT cuts the series of a Cayley transform: n is terms − 1, and never 2."""
    R = np.eye(Q.shape[-1]) + np.zeros_like(Q)
    last = max(3, terms - 1) if terms > 2 else 0
    power = Q
    for n in range(1, max(last, terms - 1) + 1):
        R = R + (power if n == last else 2 * power)
        power = power @ Q
    return R


def _inputs_turned(spec: "Spec", W: np.ndarray, R: np.ndarray) -> np.ndarray:
    """W Rᵀ of blocks R (n, b, b); one block stands for all."""
    n, b, _ = R.shape
    if W.shape[1] % b or n not in (1, W.shape[1] // b):
        raise ValueError(f"{spec.module} has {W.shape[1]} inputs in the base, and {n} blocks of {b}")
    return np.einsum("onb,ncb->onc", W.reshape(len(W), -1, b), np.broadcast_to(R, (W.shape[1] // b, b, b))).reshape(
        W.shape
    )


# --- OFT as PEFT saves it


def _oft(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    entries = p["oft_R"].astype(np.float64)  # (blocks, b (b − 1) / 2): above the diagonal
    b = round((1 + math.sqrt(1 + 8 * entries.shape[1])) / 2)
    rows, columns = np.triu_indices(b, 1)
    Q = np.zeros((len(entries), b, b))
    if spec.settings.get("coft"):  # held within a ball of radius eps
        radius = number(spec.settings, "eps", 6e-5) / math.sqrt(len(entries))
        norms = np.sqrt(2) * np.linalg.norm(entries, axis=1, keepdims=True)
        entries = entries * np.where(norms <= radius, 1, radius / norms.clip(1e-300))
    Q[:, rows, columns] = entries
    Q -= Q.transpose(0, 2, 1)
    if spec.settings.get("use_cayley_neumann") is False:
        R = _cayley(Q)
    else:
        R = _series(Q, int(number(spec.settings, "num_cayley_neumann_terms", 5)))
    W = _flat(base)
    return of_dense(spec.module, (_inputs_turned(spec, W, R) - W).astype(np.float32))


def _triangular(n: int) -> bool:
    return math.isqrt(1 + 8 * n) ** 2 == 1 + 8 * n


OFT = Kind(
    name="OFT",
    spellings={"oft_R": r"oft_R(\.[\w-]+)?\.weight"},
    is_of=lambda parts: "oft_R" in parts,
    incomplete=lambda keys: whole("OFT", set(), names(keys) - {"oft_R"}, keys),
    mismatch=lambda s: None if len(s["oft_R"]) == 2 and _triangular(s["oft_R"][1]) else unfit(s),
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_oft,
    sized=True,
    why=TURNS,
    settings=("use_cayley_neumann", "num_cayley_neumann_terms", "coft", "eps"),
)


# --- BOFT as PEFT saves it


def _boft(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    R = p["boft_R"][0].astype(np.float64)
    W = _flat(base)
    if p["boft_s"].size != len(W):
        raise ValueError(f"{spec.module} has {len(W)} outputs in the base, and {p['boft_s'].size} factors")
    turned = _inputs_turned(spec, W, _cayley((R - R.transpose(0, 2, 1)) / 2))
    return of_dense(spec.module, (turned * p["boft_s"].reshape(-1, 1) - W).astype(np.float32))


def _boft_incomplete(keys):
    return whole("BOFT", {"boft_R", "boft_s"} - names(keys), names(keys) - {"boft_R", "boft_s"}, keys)


def _boft_mismatch(s):
    R = s["boft_R"]
    if len(R) == 4 and R[0] > 1:
        return "BOFT of several butterfly factors, whose permutations are not read here"
    return None if len(R) == 4 and R[2] == R[3] else unfit(s)


BOFT = Kind(
    name="BOFT",
    spellings={part: rf"{part}(\.[\w-]+)?" for part in ("boft_R", "boft_s")},
    is_of=lambda parts: bool(parts & {"boft_R", "boft_s"}),
    incomplete=_boft_incomplete,
    mismatch=_boft_mismatch,
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_boft,
    sized=True,
    why=TURNS,
)


# --- HRA


def _hra(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    """Each reflection adds a term of rank one: −2 (V u) uᵀ, with V what the ones before it made of W."""
    W, U = _flat(base), p["hra_u"].astype(np.float64)
    if len(U) != W.shape[1]:
        raise ValueError(f"{spec.module} has {W.shape[1]} inputs in the base, and its reflections {len(U)}")
    if spec.settings.get("apply_GS"):
        directions: list[np.ndarray] = []
        for u in U.T:
            for each in directions:
                u = u - (each @ u) * each
            directions.append(u / np.linalg.norm(u))
    else:
        directions = list((U / np.linalg.norm(U, axis=0)).T)
    left, V = [], W.copy()
    for u in directions:
        left.append(-2 * (V @ u))
        V += np.outer(left[-1], u)
    return Update(spec.module, np.array(directions, np.float32), np.stack(left, 1).astype(np.float32))


HRA = Kind(
    name="HRA",
    spellings={"hra_u": r"hra_u(\.[\w-]+)?"},
    is_of=lambda parts: "hra_u" in parts,
    incomplete=lambda keys: whole("HRA", set(), names(keys) - {"hra_u"}, keys),
    mismatch=lambda s: None if len(s["hra_u"]) == 2 else unfit(s),
    shape=lambda s: (1, s["hra_u"][0]),
    rank=lambda s: s["hra_u"][1],
    update=None,
    scaled=lambda parts, scale: False,
    relative=_hra,
    sized=True,
    why=TURNS,
    settings=("apply_GS",),
)


# --- LyCORIS' diagonal OFT


def _diagonal(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    """Outputs turned in blocks, then scaled; α for each output is the radius that Q is held within, 0 for none."""
    blocks = p["oft_blocks"].astype(np.float64)
    n, b, _ = blocks.shape
    W = _flat(base)
    if n * b != len(W):
        raise ValueError(f"{spec.module} has {len(W)} outputs in the base, and {n} blocks of {b}")
    Q = blocks - blocks.transpose(0, 2, 1)
    radius = float(p["alpha"].item()) * len(W) if "alpha" in p else 0.0
    norm = float(np.linalg.norm(Q))
    if 0 < radius < norm:
        Q *= radius / norm
    turned = np.einsum("nab,nbi->nai", _cayley(Q), W.reshape(n, b, -1)).reshape(W.shape)
    if "oft_rescale" in p:
        turned *= p["oft_rescale"].reshape(-1, 1)
    return of_dense(spec.module, (turned - W).astype(np.float32))


DIAGONAL_OFT = Kind(
    name="OFT, LyCORIS",
    spellings={"oft_blocks": r"oft_blocks", "oft_rescale": r"rescale"},
    is_of=lambda parts: "oft_blocks" in parts,
    incomplete=lambda keys: whole(
        "OFT", {"oft_blocks"} - names(keys), names(keys) - {"oft_blocks", "oft_rescale"}, keys
    ),
    mismatch=lambda s: (
        "BOFT of LyCORIS, whose butterflies are not read here" if len(s["oft_blocks"]) == 4
        else None
        if len(s["oft_blocks"]) == 3 and s["oft_blocks"][1] == s["oft_blocks"][2]
        and math.prod(s.get("oft_rescale", (1,))) in (1, math.prod(s["oft_blocks"][:2]))
        else unfit(s)
    ),
    shape=lambda s: (math.prod(s["oft_blocks"][:2]), 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_diagonal,
    sized=True,
    why=TURNS,
)  # fmt: skip
