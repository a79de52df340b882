"""Updates that are made of blocks or of single entries, all of them in the file.

C3A       circulant blocks                          Chen et al. 2025, arXiv 2407.19342
GraLoRA   k × k blocks, a LoRA of rank r/k each     Jung et al. 2025, arXiv 2505.20355
DeLoRA    (λ/r) Σ bᵢaᵢᵀ/(‖aᵢ‖‖bᵢ‖) · ‖W‖ columnwise, whose norms it saves   Bini et al. 2025, arXiv 2503.18225
SHiRA     entries at given places                   Bhardwaj et al. 2024, arXiv 2406.13175
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Kind, Parts, Settings, Shapes, names, number, unfit, whole

if TYPE_CHECKING:
    from ..formats import Spec


# --- C3A


def _c3a(module: str, p: Parts) -> Update:
    """Row i, column j of a block is kernel[(j − i) mod b], over the width of the layer."""
    kernel = p["c3a_kernel"]
    m, n, b = kernel.shape
    at = (np.arange(b) - np.arange(b)[:, None]) % b
    blocks = kernel[:, :, at]  # (m, n, row, column)
    return of_dense(
        module, np.ascontiguousarray(blocks.transpose(0, 2, 1, 3).reshape(m * b, n * b)) / np.float32(n * b)
    )


C3A = Kind(
    name="C3A",
    spellings={"c3a_kernel": r"c3a_kernel(\.[\w-]+)?"},
    is_of=lambda parts: "c3a_kernel" in parts,
    incomplete=lambda keys: whole("C3A", set(), names(keys) - {"c3a_kernel"}, keys),
    mismatch=lambda s: None if len(s["c3a_kernel"]) == 3 else unfit(s),
    shape=lambda s: (s["c3a_kernel"][0] * s["c3a_kernel"][2], s["c3a_kernel"][1] * s["c3a_kernel"][2]),
    rank=lambda s: s["c3a_kernel"][2] * min(s["c3a_kernel"][:2]),
    update=_c3a,
    bytes=lambda s: 4 * math.prod(s["c3a_kernel"]) * s["c3a_kernel"][2],
    scaled=lambda parts, scale: False,
)


# --- GraLoRA

_GENERAL = {"gralora_general_A", "gralora_general_B"}


def _gralora_incomplete(keys):
    parts = names(keys)
    pair = {"gralora_A", "gralora_B"}
    missing = pair - parts | (_GENERAL - parts if _GENERAL & parts else set())
    return whole("GraLoRA", missing, parts - pair - _GENERAL, keys)


def _gralora_mismatch(s: Shapes) -> str | None:
    a, b = s["gralora_A"], s["gralora_B"]
    ok = len(a) == len(b) == 3 and a[0] == b[0] and a[2] == b[1] and a[0] > 0 and a[2] % a[0] == 0
    if ok and "gralora_general_A" in s:
        ga, gb = s["gralora_general_A"], s["gralora_general_B"]
        ok = len(ga) == len(gb) == 2 and ga[0] == gb[1] and (gb[0], ga[1]) == _gralora_shape(s)
    return None if ok else unfit(s)


def _gralora_shape(s: Shapes) -> tuple[int, int]:
    a, b = s["gralora_A"], s["gralora_B"]
    return b[0] * b[2], a[0] * a[1]


def _gralora(module: str, p: Parts, settings: Settings) -> Update:
    """The rank's axis is cut in k: what column block n gives in its part j is what row block j takes as its part n."""
    a, b = p["gralora_A"], p["gralora_B"]  # (k, in/k, r), (k, r, out/k)
    k, width, r = a.shape
    height, part = b.shape[2], r // k
    A, B = np.zeros((k * r, k * width), np.float32), np.zeros((k * height, k * r), np.float32)
    for n in range(k):  # columns
        for j in range(k):  # rows
            at = (n * k + j) * part
            A[at : at + part, n * width : (n + 1) * width] = a[n, :, j * part : (j + 1) * part].T
            B[j * height : (j + 1) * height, at : at + part] = b[j, n * part : (n + 1) * part].T
    general = 0
    if "gralora_general_A" in p:
        A, B = np.concatenate([A, p["gralora_general_A"]]), np.concatenate([B, p["gralora_general_B"]], axis=1)
        general = len(p["gralora_general_A"])
    scale = number(settings, "alpha", 64) / (r + general)
    return Update(module, A, B * np.float32(scale))


GRALORA = Kind(
    name="GraLoRA",
    spellings={
        **{f"gralora_{x}": rf"gralora_{x}(\.(?!weight)[\w-]+)?" for x in "AB"},
        **{f"gralora_general_{x}": rf"gralora_{x}_general(\.[\w-]+)?\.weight" for x in "AB"},
    },
    is_of=lambda parts: bool(parts & {"gralora_A", "gralora_B"}),
    incomplete=_gralora_incomplete,
    mismatch=_gralora_mismatch,
    shape=_gralora_shape,
    rank=lambda s: s["gralora_A"][0] * s["gralora_A"][2] + s.get("gralora_general_A", (0,))[0],
    update=None,
    bytes=lambda s: 4 * s["gralora_A"][0] * s["gralora_A"][2] * sum(_gralora_shape(s)),
    scaled=lambda parts, scale: False,
    settings=("alpha", "r"),
    configured=_gralora,
)


# --- DeLoRA


def _delora(module: str, p: Parts) -> Update:
    A, B = p["delora_A"].astype(np.float64), p["delora_B"].astype(np.float64)
    norms = np.linalg.norm(A, axis=1).clip(1e-4) * np.linalg.norm(B, axis=0).clip(1e-4)
    B = B * (float(p["delora_lambda"].item()) / len(A) / norms)
    return Update(module, (A * p["delora_w_norm"]).astype(np.float32), B.astype(np.float32))


_DELORA = {"delora_A", "delora_B", "delora_lambda", "delora_w_norm"}

DELORA = Kind(
    name="DeLoRA",
    spellings={part: rf"{part}(\.[\w-]+)?" for part in sorted(_DELORA)},
    is_of=lambda parts: bool(parts & _DELORA),
    incomplete=lambda keys: whole("DeLoRA", _DELORA - names(keys), names(keys) - _DELORA, keys),
    mismatch=lambda s: (
        None
        if len(s["delora_A"]) == len(s["delora_B"]) == 2
        and s["delora_A"][0] == s["delora_B"][1]
        and math.prod(s["delora_lambda"]) == 1
        and s["delora_w_norm"] == (s["delora_A"][1],)
        else unfit(s)
    ),
    shape=lambda s: (s["delora_B"][0], s["delora_A"][1]),
    rank=lambda s: s["delora_A"][0],
    update=_delora,
    scaled=lambda parts, scale: False,
)


# --- SHiRA


def _shira(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    W = np.zeros(spec.layer, np.float32)
    rows, columns = p["shira_indices"].astype(np.int64)
    if rows.size and not (0 <= rows.min() <= rows.max() < len(W) and 0 <= columns.min() <= columns.max() < W.shape[1]):
        raise ValueError(f"{spec.module} is {W.shape[0]} × {W.shape[1]} in the base, and entries lie outside it")
    np.add.at(W, (rows, columns), p["shira_weight"].reshape(-1))
    return of_dense(spec.module, W)


SHIRA = Kind(
    name="SHiRA",
    spellings={part: rf"{part}(\.[\w-]+)?" for part in ("shira_weight", "shira_indices")},
    is_of=lambda parts: bool(parts & {"shira_weight", "shira_indices"}),
    incomplete=lambda keys: whole(
        "SHiRA", {"shira_weight", "shira_indices"} - names(keys), names(keys) - {"shira_weight", "shira_indices"}, keys
    ),
    mismatch=lambda s: (
        None if s["shira_indices"] == (2, math.prod(s["shira_weight"])) else unfit(s)
    ),
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_shira,
    sized=True,
    why="names single entries of a layer, whose shape stands in the base alone",
)  # fmt: skip


# --- Super-tuning

_SPARSE, _SUPRA = {"super_values", "super_indices"}, {"super_A", "super_B"}


def _super(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    """Entries at flat places, and a LoRA beside them where there is one."""
    out, width = spec.layer
    entries = np.zeros(out * width, np.float32)
    places = p["super_indices"].reshape(-1).astype(np.int64)
    if places.size and not 0 <= places.min() <= places.max() < len(entries):
        raise ValueError(f"{spec.module} is {out} × {width} in the base, and entries lie outside it")
    np.add.at(entries, places, p["super_values"].reshape(-1))
    W: np.ndarray = entries.reshape(out, width)
    if "super_A" in p:
        if (len(p["super_B"]), p["super_A"].shape[1]) != (out, width):
            raise ValueError(f"{spec.module} is {out} × {width} in the base, which is not the layer of its LoRA")
        r = len(p["super_A"])
        W = W + p["super_B"] @ p["super_A"] * np.float32(number(spec.settings, "lora_alpha", 2 * r) / r)
    return of_dense(spec.module, W)


def _super_incomplete(keys):
    parts = names(keys)
    missing = _SPARSE - parts | (_SUPRA - parts if _SUPRA & parts else set())
    return whole("Super-tuning", missing, parts - _SPARSE - _SUPRA, keys)


def _super_mismatch(s: Shapes) -> str | None:
    ok = math.prod(s["super_values"]) == math.prod(s["super_indices"])
    if ok and "super_A" in s:
        ok = len(s["super_A"]) == len(s["super_B"]) == 2 and s["super_A"][0] == s["super_B"][1]
    return None if ok else unfit(s)


SUPER = Kind(
    name="Super-tuning",
    spellings={
        **{f"super_{part}": rf"supertuning_{part}(\.[\w-]+)?" for part in ("values", "indices")},
        **{f"super_{part}": rf"supertuning_lora_{part}(\.[\w-]+)?\.weight" for part in "AB"},
    },
    is_of=lambda parts: bool(parts & (_SPARSE | _SUPRA)),
    incomplete=_super_incomplete,
    mismatch=_super_mismatch,
    shape=lambda s: (1, 1),
    rank=lambda s: 1,
    update=None,
    scaled=lambda parts, scale: False,
    relative=_super,
    sized=True,
    why="names single entries of a layer, whose shape stands in the base alone",
    settings=("lora_alpha",),
)
