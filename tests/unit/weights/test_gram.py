"""Gram matrices against dense float64 matrices: exact, invariant where they should be, whole on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora_atlas.weights.factors import Update
from lora_atlas.weights.files import LoraFileError, read_lora, write_lora
from lora_atlas.weights.gram import KERNELS, GramError, gram, read_gram, write_gram

SIDES = {  # module: (in, out)
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 5),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v": (6, 4),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (9, 6),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (3, 7),
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (6, 6),
    "unet.up_blocks.1.attentions.0.proj_in": (4, 4),
}
FIRST = next(iter(SIDES))
PLACES = {
    ("self_attention", "down"),
    ("feed_forward", "down"),
    ("cross_attention", "mid"),
    ("self_attention", "up"),
    ("projection", "up"),
}


def update(rng: np.random.Generator, rank: int, sides: tuple[int, int], module: str = FIRST) -> Update:
    return Update(module, rng.normal(size=(rank, sides[0])), rng.normal(size=(sides[1], rank)))


def dense(u: Update) -> np.ndarray:
    return u.B.astype(np.float64) @ u.A.astype(np.float64)


def inner(X: list[np.ndarray]) -> np.ndarray:
    """All inner products, one pair at a time."""
    return np.array([[np.vdot(x, y) for y in X] for x in X])


def close(K: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(K, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Five LoRAs of ranks 1 to 4; some lack modules."""
    rng = np.random.default_rng(0)
    paths = []
    for n, rank in enumerate((2, 4, 1, 3, 2)):
        updates = {m: update(rng, rank, sides, m) for i, (m, sides) in enumerate(SIDES.items()) if (i + n) % 5}
        paths.append(tmp_path / f"{n}.safetensors")
        write_lora(paths[-1], updates, {})
    return paths


def dense_rows(paths: list[Path], modules=tuple(SIDES)) -> np.ndarray:
    """One row per LoRA: its ΔW of every module, flattened; zeros where it has none."""
    rows = []
    for path in paths:
        updates = read_lora(path).updates
        parts = [dense(updates[m]) if m in updates else np.zeros(SIDES[m][::-1]) for m in modules]
        rows.append(np.concatenate([part.ravel() for part in parts]))
    return np.stack(rows)


# --- kernels, module by module

ranks = st.lists(st.integers(1, 5), min_size=1, max_size=6)
sides = st.tuples(st.integers(1, 8), st.integers(1, 8))
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=40)


@quick
@given(ranks, sides, seeds)
def test_delta_is_the_inner_product_of_dense_updates(ranks, sides, seed):
    rng = np.random.default_rng(seed)
    updates = [update(rng, rank, sides) for rank in ranks]
    close(KERNELS["delta"](updates), inner([dense(u) for u in updates]))


@quick
@given(ranks, sides, seeds)
def test_delta_does_not_see_the_gauge(ranks, sides, seed):
    """B M and M⁻¹ A are the same update as B and A."""
    rng = np.random.default_rng(seed)
    updates = [update(rng, rank, sides) for rank in ranks]
    turned = []
    for u in updates:
        Q, _ = np.linalg.qr(rng.normal(size=(len(u.A), len(u.A))))
        M = Q * rng.uniform(0.2, 5, len(u.A))
        turned.append(Update(u.module, np.linalg.inv(M) @ u.A, u.B @ M))
    close(KERNELS["delta"](turned), KERNELS["delta"](updates))


def test_raw_factors_do_see_the_gauge():
    u = update(np.random.default_rng(0), 2, (5, 4))
    turned = Update(u.module, -u.A, -u.B)
    assert KERNELS["delta"]([u, turned])[0, 1] == pytest.approx(np.square(dense(u)).sum())
    assert KERNELS["factors"]([u, turned])[0, 1] == pytest.approx(-np.square(u.A).sum() - np.square(u.B).sum())


@quick
@given(st.integers(1, 5), st.integers(1, 6), sides, seeds)
def test_factors_are_the_inner_product_of_a_and_b_laid_end_to_end(rank, number, sides, seed):
    rng = np.random.default_rng(seed)
    updates = [update(rng, rank, sides) for _ in range(number)]
    close(KERNELS["factors"](updates), inner([np.concatenate([u.A.ravel(), u.B.ravel()]) for u in updates]))
    close(KERNELS["down"](updates), inner([u.A for u in updates]))
    close(KERNELS["up"](updates), inner([u.B for u in updates]))


@quick
@given(ranks, sides, seeds, st.sampled_from(sorted(KERNELS)))
def test_a_rank_padded_with_zeros_changes_no_kernel(ranks, sides, seed, kernel):
    rng = np.random.default_rng(seed)
    updates = [update(rng, rank, sides) for rank in ranks]
    padded = [
        Update(u.module, np.pad(u.A, [(0, extra), (0, 0)]), np.pad(u.B, [(0, 0), (0, extra)]))
        for u, extra in zip(updates, rng.integers(0, 4, len(updates)), strict=True)
    ]
    close(KERNELS[kernel](padded), KERNELS[kernel](updates))


@quick
@given(ranks, sides, seeds, st.sampled_from(sorted(KERNELS)))
def test_every_kernel_is_positive_semidefinite(ranks, sides, seed, kernel):
    rng = np.random.default_rng(seed)
    updates = [update(rng, rank, sides) for rank in ranks]
    K = KERNELS[kernel]([*updates, updates[0]])  # and a copy, so that it is singular
    values = np.linalg.eigvalsh((K + K.T) / 2)
    assert values[0] > -1e-12 * values[-1] and np.abs(values[0]) < 1e-12 * values[-1]


def test_sums_are_float64():
    """In float32, 10⁸ + 1 - 10⁸ is 0."""
    u = Update(FIRST, np.array([[1e4, 1.0, 1e4]], np.float32), np.ones((1, 1), np.float32))
    v = Update(FIRST, np.array([[1e4, 1.0, -1e4]], np.float32), np.ones((1, 1), np.float32))
    assert KERNELS["delta"]([u, v])[0, 1] == 1.0
    assert KERNELS["down"]([u, v])[0, 1] == 1.0


# --- files


def test_matrices_come_by_component_and_block_and_equal_the_dense_ones(files):
    grams = gram(files, "delta")
    assert set(grams) == PLACES and list(grams) == sorted(grams)
    attention = [m for m in SIDES if ".down_blocks." in m and ".attn1." in m]
    assert len(attention) == 2
    close(grams["self_attention", "down"], inner(list(dense_rows(files, attention))))
    for K in grams.values():
        assert K.shape == (5, 5) and K.dtype == np.float64 and (K == K.T).all()
        assert np.linalg.eigvalsh(K)[0] > -1e-12 * np.trace(K)


def test_the_parts_sum_to_the_whole(files):
    close(sum(gram(files, "delta").values()), inner(list(dense_rows(files))))


def test_raw_factors_of_whole_files_equal_the_dense_concatenation(files):
    rows = []
    for path in files:
        updates, parts = read_lora(path).updates, []
        for module, (width, height) in SIDES.items():
            A, B = np.zeros((4, width)), np.zeros((height, 4))  # 4 is the largest rank
            if module in updates:
                u = updates[module]
                A[: len(u.A)], B[:, : len(u.A)] = u.A, u.B
            parts += [A.ravel(), B.ravel()]
        rows.append(np.concatenate(parts))
    factors = gram(files, "factors")
    close(sum(factors.values()), inner(rows))
    down, up = gram(files, "down"), gram(files, "up")
    assert all(np.allclose(factors[key], down[key] + up[key], rtol=1e-12) for key in PLACES)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_an_absent_module_is_a_zero_update(tmp_path, files, kernel):
    filled = []
    for path in files:
        updates = dict(read_lora(path).updates)
        for module, (width, height) in SIDES.items():
            updates.setdefault(module, Update(module, np.zeros((2, width)), np.zeros((height, 2))))
        filled.append(tmp_path / f"filled-{path.name}")
        write_lora(filled[-1], updates, {})
    sparse, full = gram(files, kernel), gram(filled, kernel)
    assert list(sparse) == list(full) and all(np.allclose(sparse[key], full[key], rtol=1e-12) for key in full)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_another_order_of_files_is_another_order_of_rows(files, kernel):
    order = [3, 0, 4, 1, 2]
    plain, turned = gram(files, kernel), gram([files[i] for i in order], kernel)
    for key, K in plain.items():
        close(turned[key], K[np.ix_(order, order)])


def test_alpha_scales_an_update_in_its_inner_products(tmp_path, files):
    tensors = load_file(files[0]) | {f"{m}.alpha": np.array(6.0) for m in read_lora(files[0]).updates}
    save_file(tensors, tmp_path / "scaled.safetensors")
    K = sum(gram([files[0], tmp_path / "scaled.safetensors"], "delta").values())
    np.testing.assert_allclose(K, K[0, 0] * np.array([[1, 3], [3, 9]]), rtol=1e-6)  # α / r = 6 / 2


def test_a_file_that_cannot_be_read_is_named(tmp_path, files):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(files[1].read_bytes()[:-4])
    with pytest.raises(LoraFileError, match=r"bad\.safetensors: damaged"):
        gram([files[0], bad], "delta")
    tensors = load_file(files[1])
    key = sorted(tensors)[3]
    tensors[key][0, 0] = np.nan
    save_file(tensors, bad)
    with pytest.raises(LoraFileError, match=r"bad\.safetensors: not finite") as caught:
        gram([files[0], bad], "factors")
    assert key in str(caught.value)


def test_an_unknown_kernel_is_a_key_error(files):
    with pytest.raises(KeyError, match="cosine"):
        gram(files, "cosine")


# --- on disk


def test_what_is_written_is_read_back(tmp_path, files):
    path, ids = tmp_path / "new" / "delta.safetensors", ["ada/00", "ada/01", "北斎/00", "../x", "b"]
    grams = gram(files, "delta")
    write_gram(path, ids, grams, "delta")
    found_ids, found = read_gram(path)
    assert found_ids == ids and set(found) == set(grams)
    assert all((found[key] == K).all() and found[key].dtype == np.float64 for key, K in grams.items())
    assert [p.name for p in path.parent.iterdir()] == ["delta.safetensors"]


def test_equal_matrices_are_equal_bytes(tmp_path, files):
    grams = gram(files, "delta")
    for name, again in (("a", grams), ("b", dict(reversed(gram(files, "delta").items())))):
        write_gram(tmp_path / name, list("abcde"), again, "delta")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_matrix_file_is_named_with_the_way_out(tmp_path, files):
    path, ids, grams = tmp_path / "delta.safetensors", list("abcde"), gram(files, "delta")
    key = ("self_attention", "down")

    def refused(*words: str):
        with pytest.raises(GramError) as caught:
            read_gram(path)
        assert all(word in str(caught.value) for word in (str(path), "delete it and rerun", *words))

    refused()  # absent
    path.write_text("no matrix")
    refused("not a Gram file of this project, or damaged")
    write_gram(path, ids, grams, "delta")
    path.write_bytes(path.read_bytes()[:-8])
    refused("damaged")
    path.write_bytes(files[0].read_bytes())  # sound, and no Gram file
    refused("not a Gram file of this project")
    write_gram(path, ids[:4], grams, "delta")
    refused("4 × 4", str(key))
    write_gram(path, ids, grams | {key: np.full((5, 5), np.nan)}, "delta")
    refused(str([key]))
    write_gram(path, [], {}, "delta")
    refused()
