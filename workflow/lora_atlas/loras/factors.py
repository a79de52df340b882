"""Updates of one weight matrix in factored form: the only form in which they exist here.

A dense ΔW is formed only where it is smaller than its factors (`is_whole`), since a file of a few kilobytes can name a
matrix of 10⁶ × 10⁶. Three kinds:

    plain      ΔW = B A                            LoRA, LoCon, Tucker, a full difference (one factor the identity)
    Kronecker  ΔW = (B₁A₁) ⊗ (B₂A₂)                LoKr
    Hadamard   ΔW = (B₁A₁) ∘ (B₂A₂)                LoHa; of rank r₁r₂ by row-wise Khatri-Rao products of the factors

Whatever is asked of an update goes through products with thin matrices: ``left`` (BᵀX) and ``right`` (AX), where the
rows of both belong to the same rank-one terms, and ``pieces``, plain updates of small rank whose sum it is. So

    ⟨ΔW, BA⟩ = Σ left(B) ∘ right(Aᵀ)               SΔWTᵀ = left(Sᵀ)ᵀ right(Tᵀ)

serve the Gram and the sketch engine alike. Convolutions are matrices too: in = channels × height × width.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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

    def pieces(self) -> Iterator["Update"]:
        """Plain updates whose sum this is."""
        yield self

    def rows(self, start: int, stop: int) -> "Update":
        """The update of the rows start:stop of the matrix."""
        return replace(self, B=self.B[start:stop])

    def scaled(self, factor: float) -> "Update":
        return replace(self, B=self.B * np.float32(factor))


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

    def pieces(self) -> Iterator[Update]:
        """One plain update of rank r₂ for each rank of the first factor."""
        for a, b in zip(self.first.A, self.first.B.T, strict=True):
            yield Update(self.module, np.kron(a[None], self.second.A), np.kron(b[:, None], self.second.B))

    def rows(self, start: int, stop: int) -> "KroneckerUpdate":
        """Rows of the matrix; ValueError where they cut through a block of the second factor."""
        block = self.second.shape[0]
        if start % block or stop % block:
            raise ValueError(f"rows {start} to {stop} cut a Kronecker block of {block} rows")
        return replace(self, first=self.first.rows(start // block, stop // block))

    def scaled(self, factor: float) -> "KroneckerUpdate":
        return replace(self, first=self.first.scaled(factor))


@dataclass(frozen=True)
class HadamardUpdate:
    """ΔW = (B₁A₁) ∘ (B₂A₂) of one module, float32; rank-one terms are pairs (i, j) of one of each, i outermost."""

    module: str
    first: Update
    second: Update

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    @property
    def rank(self) -> int:
        return self.first.rank * self.second.rank

    def left(self, X: np.ndarray) -> np.ndarray:
        """(r₁r₂, c) of X (out, c): the products b₁ᵢ ∘ b₂ⱼ with X."""
        return np.concatenate([piece.left(X) for piece in self.pieces()])

    def right(self, X: np.ndarray) -> np.ndarray:
        """(r₁r₂, c) of X (in, c)."""
        return np.concatenate([piece.right(X) for piece in self.pieces()])

    def pieces(self) -> Iterator[Update]:
        """One plain update of rank r₂ for each rank of the first factor."""
        for a, b in zip(self.first.A, self.first.B.T, strict=True):
            yield Update(self.module, a * self.second.A, b[:, None] * self.second.B)

    def rows(self, start: int, stop: int) -> "HadamardUpdate":
        return replace(self, first=self.first.rows(start, stop), second=self.second.rows(start, stop))

    def scaled(self, factor: float) -> "HadamardUpdate":
        return replace(self, first=self.first.scaled(factor))


Factored = Update | KroneckerUpdate | HadamardUpdate


def inner(left: Factored, right: Factored) -> float:
    """⟨ΔW₁, ΔW₂⟩ of two updates of one module, in float64, whatever kinds they are; of two matrices that are formed, of
    their entries in float32.

    Kronecker products of equal shapes need only ⟨C⊗D, E⊗F⟩ = ⟨C, E⟩⟨D, F⟩ (Van Loan 2000, §2).
    """
    if (
        isinstance(left, KroneckerUpdate)
        and isinstance(right, KroneckerUpdate)
        and left.first.shape == right.first.shape
        and left.second.shape == right.second.shape
    ):
        return inner(left.first, right.first) * inner(left.second, right.second)
    if is_whole(left) and is_whole(right):
        W = matrix(left)
        V = W if right is left else matrix(right)
        return float(sum(np.vdot(w.astype(np.float64), v.astype(np.float64)) for w, v in zip(W, V, strict=True)))
    if right.rank > left.rank:
        left, right = right, left
    total = 0.0
    for piece in right.pieces():
        B, A = piece.B.astype(np.float64), piece.A.astype(np.float64)
        total += float(sum(np.vdot(p.B.T @ B, p.A @ A.T) for p in left.pieces()))
    return total


def expanded(update: Factored) -> Update:
    """The update as one plain pair of factors, of its full rank: rank-one terms are pairs, the first's outermost."""
    if isinstance(update, Update):
        return update
    out, width = update.shape
    B, A = np.empty((out, update.rank), np.float32), np.empty((update.rank, width), np.float32)
    expand(update, B, A.T)
    return Update(update.module, A, B)


def expand(update: Factored, B: np.ndarray, At: np.ndarray) -> None:
    """The same into B (out, r) and Aᵀ (in, r)."""
    if isinstance(update, Update):
        B[:], At[:] = update.B, update.A.T
        return
    first, second = update.first, update.second
    ranks = (first.rank, second.rank)
    for found, one, other in ((B, first.B, second.B), (At, first.A.T, second.A.T)):
        if isinstance(update, KroneckerUpdate):
            found[:] = (one[:, None, :, None] * other[None, :, None, :]).reshape(found.shape)
        else:
            found[:] = (one[:, :, None] * other[:, None, :]).reshape(len(one), math.prod(ranks))


def finite(update: Factored) -> bool:
    """Whether all factors are numbers."""
    if isinstance(update, Update):
        return all(_finite(factor) for factor in (update.A, update.B))
    return finite(update.first) and finite(update.second)


def _finite(x: np.ndarray) -> bool:
    """Whether all of x is finite. What is not makes a sum so; the reverse is rare, and then looked at one by one."""
    with np.errstate(over="ignore", invalid="ignore"):
        flat = x.ravel(order="K") if x.flags.forc else None  # the identity is a view that must not be copied
        total = x.sum(dtype=np.float64) if flat is None else np.dot(flat, flat)
        return bool(np.isfinite(total) or np.isfinite(x).all())


WHOLE = 2**27  # numbers of a matrix up to which it is formed


def is_whole(update: Factored) -> bool:
    """Whether the matrix is no larger than its factors would be, written out: that of a full difference, of a DoRA, of
    a LoKr whose factors are whole."""
    out, width = update.shape
    return out * width <= min(WHOLE, update.rank * (out + width))


def matrix(update: Factored) -> np.ndarray:
    """ΔW itself (out, in) float32, for one that `is_whole`; infinite where it is too large for that."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(update, Update):
            if _is_identity(update.A):
                return update.B
            return update.A if _is_identity(update.B) else update.B @ update.A
        first, second = matrix(update.first), matrix(update.second)
        return np.kron(first, second) if isinstance(update, KroneckerUpdate) else first * second


def reordered(update: Factored, order: Callable[[np.ndarray], np.ndarray]) -> Update:
    """The update whose rows are those of this one in another order, or some of them."""
    if is_whole(update):
        return of_dense(update.module, order(matrix(update)))
    plain = expanded(update)
    return Update(plain.module, plain.A, order(plain.B))


def of_dense(module: str, W: np.ndarray) -> Update:
    """A matrix that is given whole, as factors of which one is the identity."""
    out, width = W.shape
    if out <= width:
        return Update(module, W, _identity(out, W.dtype))
    return Update(module, _identity(width, W.dtype), W)


def _identity(n: int, kind: np.dtype) -> np.ndarray:
    """The identity (n, n), read-only, in the memory of 2n − 1 numbers: every row is the one above, moved by one."""
    row = np.zeros(2 * n - 1, kind)
    row[n - 1] = 1
    return np.lib.stride_tricks.sliding_window_view(row, n)[::-1]


def _is_identity(X: np.ndarray) -> bool:
    """Whether a factor is what `_identity` makes, by how it lies in memory."""
    return X.shape[0] == X.shape[1] > 1 and X.strides == (-X.itemsize, X.itemsize)


def _kronecker(P: np.ndarray, Q: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(P⊗Q)X without P⊗Q: rows of X are pairs of an index of P and one of Q."""
    c = X.shape[1]
    half = np.tensordot(Q, X.reshape(P.shape[1], Q.shape[1], c), (1, 1))  # (rows of Q, columns of P, c)
    return np.tensordot(P, half, (1, 1)).reshape(len(P) * len(Q), c)
