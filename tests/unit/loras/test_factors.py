"""The algebra of factored updates of every kind, alone and mixed, against dense float64 matrices."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas.loras.factors import (
    HadamardUpdate,
    KroneckerUpdate,
    Update,
    expanded,
    finite,
    inner,
    is_whole,
    matrix,
    of_dense,
    reordered,
)
from lora_atlas.weights import gram as engine
from lora_atlas.weights.gram import delta

M = "unet.conv_in"
KINDS = ("plain", "Kronecker", "Kronecker turned", "Hadamard", "dense")
OUT, WIDTH = 6, 12

seeds = st.integers(0, 2**32 - 1)
lists = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5)
quick = settings(deadline=None, max_examples=60)


def plain(rng, out: int, width: int, rank: int) -> Update:
    return Update(M, rng.normal(size=(rank, width)).astype(np.float32), rng.normal(size=(out, rank)).astype(np.float32))


def update(rng, kind: str, first: int, second: int):
    """A random update of OUT × WIDTH; `first`, `second`: the ranks of its two halves."""
    if kind == "plain":
        return plain(rng, OUT, WIDTH, first)
    if kind == "dense":
        return of_dense(M, rng.normal(size=(OUT, WIDTH)).astype(np.float32))
    if kind == "Hadamard":
        return HadamardUpdate(M, plain(rng, OUT, WIDTH, first), plain(rng, OUT, WIDTH, second))
    sides = [(2, 3), (3, 4)] if kind == "Kronecker" else [(3, 2), (2, 6)]
    return KroneckerUpdate(M, plain(rng, *sides[0], first), plain(rng, *sides[1], second))


def dense(u) -> np.ndarray:
    if isinstance(u, Update):
        return u.B.astype(np.float64) @ u.A.astype(np.float64)
    return (
        np.kron(dense(u.first), dense(u.second)) if isinstance(u, KroneckerUpdate) else dense(u.first) * dense(u.second)
    )


def turned(u, rng):
    """The same update with other factors: B M and M⁻¹ A, for each pair that it has."""
    if isinstance(u, Update):
        Q, _ = np.linalg.qr(rng.normal(size=(u.rank, u.rank)))
        M = Q * rng.uniform(0.5, 2, u.rank)
        return Update(u.module, np.linalg.inv(M) @ u.A, u.B @ M)
    return dataclasses.replace(u, first=turned(u.first, rng), second=turned(u.second, rng))


def close(K: np.ndarray, expected: np.ndarray, norms: tuple[np.ndarray, np.ndarray], tolerance: float = 1e-6) -> None:
    """Relative to the product of the norms; and to the value itself, where it is no small difference of large ones."""
    product = norms[0][:, None] * norms[1]
    assert (np.abs(K - expected) <= tolerance * product).all()
    large = np.abs(expected) > 0.1 * product
    np.testing.assert_allclose(K[large], expected[large], rtol=10 * tolerance)


def products(left, right=None):
    X = np.stack([dense(u).ravel() for u in left])
    Y = X if right is None else np.stack([dense(u).ravel() for u in right])
    return X @ Y.T, (np.linalg.norm(X, axis=1), np.linalg.norm(Y, axis=1))


@quick
@given(lists, seeds)
def test_delta_of_any_mixture_is_the_dense_inner_product(members, seed):
    rng = np.random.default_rng(seed)
    updates = [update(rng, *member) for member in members]
    close(delta(updates), *products(updates))
    others = [update(rng, kind, 2, 2) for kind in KINDS]
    close(delta(updates, others), *products(updates, others))


@quick
@given(lists, seeds)
def test_delta_is_the_same_where_nothing_may_be_expanded(members, seed):
    """Large LoHa and LoKr stay as they are: products by pieces, and by Kronecker factors of equal shape."""
    rng = np.random.default_rng(seed)
    updates = [update(rng, *member) for member in members]
    others = [update(rng, kind, 2, 2) for kind in KINDS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "EXPAND", 0)
        close(delta(updates), *products(updates))
        close(delta(updates, others), *products(updates, others))


def terms(u) -> float:
    """The norms of an update's rank-one terms together: they can cancel, and what is lost then is of their size."""
    flat = expanded(u)
    return float(np.linalg.norm(flat.A, axis=1) @ np.linalg.norm(flat.B, axis=0))


@quick
@given(lists, seeds)
def test_single_precision_is_within_a_millionth_of_the_norms(members, seed):
    rng = np.random.default_rng(seed)
    updates = [update(rng, *member) for member in members]
    others = [update(rng, kind, 2, 2) for kind in KINDS]
    sizes = [np.array([terms(u) for u in side]) for side in (updates, others)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "DOUBLE", 0)
        assert (np.abs(delta(updates) - products(updates)[0]) <= 1e-6 * sizes[0][:, None] * sizes[0]).all()
        assert (
            np.abs(delta(updates, others) - products(updates, others)[0]) <= 1e-6 * sizes[0][:, None] * sizes[1]
        ).all()


def test_single_precision_loses_nothing_on_updates_of_a_real_size():
    rng = np.random.default_rng(0)
    updates = [plain(rng, 640, 640, 16) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "DOUBLE", 0)
        close(delta(updates), *products(updates), 2e-7)


@quick
@given(lists, seeds)
def test_no_kind_sees_the_gauge(members, seed):
    rng = np.random.default_rng(seed)
    updates = [update(rng, *member) for member in members]
    again = [turned(u, rng) for u in updates]
    expected, norms = products(updates)
    close(delta(updates, again), expected, norms, 1e-5)
    for u, v in zip(updates, again, strict=True):
        assert inner(v, v) == pytest.approx(inner(u, u), rel=1e-5)


@quick
@given(st.tuples(st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 3)), seeds, st.integers(1, 5))
def test_every_product_with_an_update_is_that_with_the_dense_matrix(member, seed, c):
    rng = np.random.default_rng(seed)
    u = update(rng, *member)
    W = dense(u)
    assert u.shape == W.shape and u.rank == len(expanded(u).A) == sum(piece.rank for piece in u.pieces())
    np.testing.assert_allclose(dense(expanded(u)), W, atol=1e-5 * np.abs(W).max())
    np.testing.assert_allclose(sum(dense(piece) for piece in u.pieces()), W, atol=1e-5 * np.abs(W).max())
    X, Y = rng.normal(size=(OUT, c)), rng.normal(size=(WIDTH, c))
    np.testing.assert_allclose(u.left(X).T @ u.right(Y), X.T @ W @ Y, atol=1e-4 * np.abs(W).max() * c)
    np.testing.assert_allclose(dense(u.scaled(-0.5)), -0.5 * W, atol=1e-6 * np.abs(W).max())
    assert inner(u, u) == pytest.approx(np.vdot(W, W), rel=1e-6)
    assert finite(u) and not finite(u.scaled(np.nan))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_update_are_rows_of_the_matrix(kind):
    u = update(np.random.default_rng(0), kind, 2, 2)
    np.testing.assert_allclose(dense(u.rows(0, OUT)), dense(u))
    if kind == "Kronecker":  # blocks of three rows
        with pytest.raises(ValueError, match="rows 0 to 2 cut a Kronecker block of 3 rows"):
            u.rows(0, 2)
        u = expanded(u)
    np.testing.assert_allclose(dense(u.rows(2, 4)), dense(u)[2:4], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (1, 4), (4, 4)])
def test_a_whole_matrix_has_an_identity_for_one_factor(shape):
    W = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u = of_dense(M, W)
    assert u.rank == min(shape) and (u.B @ u.A == W).all()
    identity = u.B if shape[0] <= shape[1] else u.A
    assert (identity == np.eye(min(shape))).all() and identity.base is not None
    with pytest.raises(ValueError, match="read-only"):
        identity[0, 0] = 2


WHOLE = {
    "difference": lambda rng: of_dense(M, rng.normal(size=(12, 9)).astype(np.float32)),
    "wide difference": lambda rng: of_dense(M, rng.normal(size=(9, 12)).astype(np.float32)),
    "LoKr": lambda rng: KroneckerUpdate(
        M, *(of_dense(M, rng.normal(size=shape).astype(np.float32)) for shape in ((3, 3), (4, 3)))
    ),
    "LoHa": lambda rng: HadamardUpdate(M, plain(rng, 12, 9, 3), plain(rng, 12, 9, 3)),
    "high rank": lambda rng: plain(rng, 12, 9, 9),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_matrix_that_is_smaller_than_its_factors_is_formed(name):
    rng = np.random.default_rng(0)
    u, low = WHOLE[name](rng), plain(rng, 12, 9, 2) if name != "wide difference" else plain(rng, 9, 12, 2)
    assert is_whole(u) and not is_whole(low)
    W = dense(u)
    np.testing.assert_allclose(matrix(u), W, atol=1e-5)
    for v in (u, WHOLE[name](rng), low):
        assert inner(u, v) == pytest.approx(np.vdot(W, dense(v)), rel=1e-5)


@pytest.mark.parametrize("name", [*WHOLE, "low"])
def test_rows_in_another_order_are_those_of_the_matrix(name):
    """Rows that cut through the blocks of a Kronecker product too, as those of a fused layer do."""
    rng = np.random.default_rng(1)
    u = plain(rng, 12, 9, 2) if name == "low" else WHOLE[name](rng)
    for order in (lambda X: X[2:7], lambda X: np.concatenate([X[6:], X[:6]])):
        np.testing.assert_allclose(dense(reordered(u, order)), order(dense(u)), atol=1e-5)


def test_a_large_matrix_of_a_small_file_is_not_formed():
    row = np.ones((1, 2**18), np.float32)
    u = KroneckerUpdate(M, of_dense(M, row), of_dense(M, row.T))
    assert u.shape == (2**18, 2**18) and not is_whole(u)
    assert inner(u, u) == pytest.approx(2.0**36)
