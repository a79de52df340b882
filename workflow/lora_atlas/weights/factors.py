"""Updates of one weight matrix in factored form: the only form in which they exist here.

A dense ΔW is never formed, since a file of a few kilobytes can name a matrix of 10⁶ × 10⁶. Everything that is asked of
an update goes through two products with thin matrices, ``left`` (BᵀX) and ``right`` (AX), so that plain LoRAs and
Kronecker products (LoKr) serve the Gram and the sketch engine alike:

    ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)          SΔWTᵀ = (BᵀSᵀ)ᵀ (ATᵀ)

Convolutions are matrices too: in = channels × height × width.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Update:
    """ΔW = B A of one module, float32: A (r, in), B (out, r)."""

    module: str
    A: np.ndarray
    B: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.B), self.A.shape[1]

    @property
    def rank(self) -> int:
        return len(self.A)

    def left(self, X: np.ndarray) -> np.ndarray:
        """BᵀX (r, c) of X (out, c)."""
        return self.B.T @ X

    def right(self, X: np.ndarray) -> np.ndarray:
        """AX (r, c) of X (in, c)."""
        return self.A @ X


@dataclass(frozen=True)
class KroneckerUpdate:
    """ΔW = (B₁A₁) ⊗ (B₂A₂) = (B₁⊗B₂)(A₁⊗A₂) of one module, float32; neither product is ever formed."""

    module: str
    first: Update
    second: Update

    @property
    def shape(self) -> tuple[int, int]:
        (p, q), (m, n) = self.first.shape, self.second.shape
        return p * m, q * n

    @property
    def rank(self) -> int:
        return self.first.rank * self.second.rank

    def left(self, X: np.ndarray) -> np.ndarray:
        """(B₁⊗B₂)ᵀX (r₁r₂, c) of X (out, c)."""
        return _kronecker(self.first.B.T, self.second.B.T, X)

    def right(self, X: np.ndarray) -> np.ndarray:
        """(A₁⊗A₂)X (r₁r₂, c) of X (in, c)."""
        return _kronecker(self.first.A, self.second.A, X)


Factored = Update | KroneckerUpdate


def _kronecker(P: np.ndarray, Q: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(P⊗Q)X without P⊗Q: rows of X are pairs of an index of P and one of Q."""
    c = X.shape[1]
    half = np.tensordot(Q, X.reshape(P.shape[1], Q.shape[1], c), (1, 1))  # (rows of Q, columns of P, c)
    return np.tensordot(P, half, (1, 1)).reshape(len(P) * len(Q), c)


def of_dense(module: str, W: np.ndarray) -> Update:
    """A matrix that is given whole, as factors of which one is the identity."""
    out, width = W.shape
    if out <= width:
        return Update(module, W, np.eye(out, dtype=W.dtype))
    return Update(module, np.eye(width, dtype=W.dtype), W)
