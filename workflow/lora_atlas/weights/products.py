"""Inner products of LoRAs: those of the components and blocks that are asked for, added up; and at norm one."""

from collections.abc import Iterable, Mapping

import numpy as np


def combine(
    grams: Mapping[tuple[str, str], np.ndarray],
    components: Iterable[str] | None = None,
    blocks: Iterable[str] | None = None,
) -> np.ndarray:
    """The Gram matrix of a subset of components and blocks (None: all); ValueError names what does not exist."""
    for wanted, have, kind in (
        (components, {c for c, _ in grams}, "components"),
        (blocks, {b for _, b in grams}, "blocks"),
    ):
        absent = sorted(set(wanted or ()) - have)
        if absent:
            raise ValueError(f"weights.{kind}: {absent} are not in these LoRAs; there are {sorted(have)}")
    chosen = [
        K
        for (component, block), K in grams.items()
        if (components is None or component in components) and (blocks is None or block in blocks)
    ]
    if not chosen:
        raise ValueError(f"weights: no module is in components {components} and blocks {blocks}")
    return np.sum(chosen, axis=0)


def normalise(K: np.ndarray, scale: str) -> np.ndarray:
    """`unit`: every LoRA at norm one (a zero LoRA stays zero); `raw`: as it is."""
    if scale == "raw":
        return K
    if scale != "unit":
        raise ValueError(f"weights.scales: {scale!r} unknown; there are 'unit' and 'raw'")
    norms = np.sqrt(np.diag(K).clip(0))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return K * inverse[:, None] * inverse[None, :]
