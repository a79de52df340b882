"""LoRAs whose A and B began as a part of the base: PEFT takes s·B₀A₀ out of the base's weight, and what training
changed is s (BA − B₀A₀). Both starts follow from the weight itself: the r first singular directions (PiSSA, Meng et al.
2024, arXiv 2404.02948), or the r first columns of Q and rows of R (OLoRA, Büyükakyüz 2024, arXiv 2406.01775).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update
from .kind import Parts
from .lora import LORA

if TYPE_CHECKING:
    from ..formats import Spec

WHY = (
    "began as a part of the base's own weights, and BA alone is mostly that; convert it by PEFT's save_pretrained(…, "
    "path_initial_model_for_weight_conversion=…)"
)


def _pissa(W: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    U, S, Vt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    return U[:, :rank] * S[:rank], Vt[:rank]


def _olora(W: np.ndarray, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    Q, R = np.linalg.qr(W.astype(np.float64))
    return Q[:, :rank] * scale, R[:rank]


def _relative(start):
    def relative(spec: "Spec", update: Factored | None, parts: Parts, base: np.ndarray) -> Update:
        assert isinstance(update, Update)
        B, A = start(base.reshape(len(base), -1), spec.rank, 1.0 if spec.scale is None else spec.scale)
        B, A = B.astype(np.float32), A.astype(np.float32)
        return Update(spec.module, np.concatenate([update.A, A]), np.concatenate([update.B, -B], axis=1))

    return relative


PISSA = replace(LORA, name="PiSSA", spellings={}, plain=False, relative=_relative(_pissa), why=WHY)
OLORA = replace(LORA, name="OLoRA", spellings={}, plain=False, relative=_relative(_olora), why=WHY)
