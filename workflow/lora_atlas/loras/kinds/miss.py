"""MiSS, Kang and Yin 2024, arXiv 2409.15371 (once Bone): one small block, repeated over the layer, or multiplied with
it.

    plain   (r, out)       ΔW[o, i] = block[i mod r, o]
    mini    (r, mini_r)    ΔW[o, i] = block[i mod r, o mod mini_r]
    bat     (out/r, r, r)  ΔW = W block + block, in r × r tiles of W

How wide the layer is stands in the base alone.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Kind, Parts, names, unfit, whole

if TYPE_CHECKING:
    from ..formats import Spec


def _relative(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    block = p["miss_block"]
    out, width = spec.layer
    if block.ndim == 3:
        r = block.shape[-1]
        if block.shape != (out // r, r, r) or out % r or width % r:
            raise ValueError(f"{spec.module} is {out} × {width} in the base, which has no such tiles: {block.shape}")
        tiles = base.reshape(out // r, r, width // r, r).astype(np.float64).transpose(2, 0, 1, 3)
        changed = tiles @ block + block
        return of_dense(spec.module, changed.transpose(1, 2, 0, 3).reshape(out, width).astype(np.float32))
    r, rows = block.shape
    mini = str(spec.settings.get("init_weights")).lower() == "mini"
    if out % rows or (rows != out and not mini) or r > width:
        raise ValueError(f"{spec.module} is {out} × {width} in the base, which its block {block.shape} does not cover")
    A = (np.arange(width) % r == np.arange(r)[:, None]).astype(np.float32)
    return Update(spec.module, A, np.ascontiguousarray(block.T)[np.arange(out) % rows])


MISS = Kind(
    name="MiSS",
    spellings={"miss_block": r"miss_block(\.[\w-]+)?"},
    is_of=lambda parts: "miss_block" in parts,
    incomplete=lambda keys: whole("MiSS", set(), names(keys) - {"miss_block"}, keys),
    mismatch=lambda s: None if len(s["miss_block"]) in (2, 3) else unfit(s),
    shape=lambda s: (1, 1),
    rank=lambda s: s["miss_block"][0] if len(s["miss_block"]) == 2 else s["miss_block"][0] * s["miss_block"][1],
    update=None,
    scaled=lambda parts, scale: False,
    relative=_relative,
    sized=True,
    why="repeats one block over a layer, whose width stands in the base alone",
    settings=("init_weights",),
)
