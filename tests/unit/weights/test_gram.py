"""Gram matrices against dense float64 matrices: exact, invariant where they should be, whole on disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora_atlas.loras.container import Container, digest
from lora_atlas.loras.factors import Update, expanded
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora, write_lora
from lora_atlas.weights import gram as engine
from lora_atlas.weights import stack
from lora_atlas.weights.gram import KERNELS, GramError, gram, last_row, read_gram, write_gram
from lora_atlas.weights.modules import module_grams
from lora_atlas.weights.products import combine

ROOT = Path(__file__).parents[3]
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


def test_a_component_and_a_block_are_sums_over_their_modules(files):
    grams = gram(files, "delta")
    feed_forward = [m for m in SIDES if ".ff." in m]
    up = [m for m in SIDES if ".up_blocks." in m]
    close(combine(grams, ["feed_forward"], None), inner(list(dense_rows(files, feed_forward))))
    close(combine(grams, None, ["up"]), inner(list(dense_rows(files, up))))


def mixed(make, folder: Path) -> list[Path]:
    """One file of each kind, with two modules, the second a kind further on; all of the same shapes."""
    paths = []
    for n, kind in enumerate(make.kinds):
        tensors = {}
        for module, of in (("conv1", kind), ("conv2", make.kinds[(n + 1) % len(make.kinds)])):
            if n % 4 == 3 and module == "conv2":
                continue  # and some files lack it
            parts, _ = make.parts(of, n, rank=1 + n % 3)
            tensors |= {f"lora_unet_mid_block_resnets_0_{module}.{part}": x for part, x in parts.items()}
        paths.append(make.store(folder / f"mixed-{n}.safetensors", tensors))
    return paths


def mixed_rows(paths: list[Path], shape: tuple[int, int]) -> np.ndarray:
    rows = []
    for path in paths:
        updates, row = read_lora(path).updates, []
        for module in ("conv1", "conv2"):
            u = updates.get(f"unet.mid_block.resnets.0.{module}")
            row.append(np.zeros(shape).ravel() if u is None else dense(expanded(u)).ravel())
        rows.append(np.concatenate(row))
    return np.stack(rows)


def test_files_of_all_kinds_and_ranks_in_one_matrix(make, tmp_path):
    paths = mixed(make, tmp_path)
    X = mixed_rows(paths, make.shape)
    grams = gram(paths, "delta")
    assert list(grams) == [("convolution", "mid")]
    norms = np.linalg.norm(X, axis=1)
    assert (np.abs(grams["convolution", "mid"] - X @ X.T) <= 1e-6 * norms[:, None] * norms).all()


@pytest.mark.parametrize(
    "limits",
    [
        {"TILE_BYTES": 1},
        {"LARGEST": 25},
        {"LARGEST": 1, "DENSE": 0},
        {"DOUBLE": 0, "DENSE": np.inf, "DENSE_BLOCK": 1},
        {"DOUBLE": 0, "DENSE": np.inf, "DENSE_BLOCK": 700, "TILE_BYTES": 3000},
        {"OPEN_FILES": 0},
        {"EXPAND": 0},
        {"EXPAND": 200, "LARGEST": 81},
        {"DOUBLE": 0},
    ],
    ids=str,
)
def test_tiles_and_open_files_and_precision_change_no_matrix(make, tmp_path, monkeypatch, limits):
    paths = mixed(make, tmp_path)
    expected = gram(paths, "delta")["convolution", "mid"]
    for name, value in limits.items():
        monkeypatch.setattr(engine, name, value)
    found = gram(paths, "delta")["convolution", "mid"]
    norms = np.sqrt(np.diag(expected))
    assert (np.abs(found - expected) <= 1e-6 * norms[:, None] * norms).all()
    assert (found == found.T).all()


def test_raw_factors_of_a_kind_that_has_none_are_refused(make, tmp_path):
    paths = mixed(make, tmp_path)
    with pytest.raises(
        GramError, match=r"conv\d: a (Hadamard|Kronecker)Update has no raw A and B; only the kernel delta"
    ):
        gram(paths, "factors")


def test_loras_of_two_bases_are_refused_and_both_named(tmp_path, files):
    other = tmp_path / "other.safetensors"
    write_lora(other, {FIRST: update(np.random.default_rng(0), 2, (7, 5))}, {})
    with pytest.raises(GramError, match=r"other\.safetensors: LoRAs of different base models") as caught:
        gram([*files, other], "delta")
    assert FIRST in str(caught.value) and "5 × 6" in str(caught.value) and "5 × 7" in str(caught.value)


@pytest.mark.fault("LoRA files", "numbers whose products overflow", "refused, with file and module")
@pytest.mark.parametrize("limits", [{}, {"DOUBLE": 0}], ids=str)
def test_an_update_too_large_for_its_products_is_refused_by_file_and_module(tmp_path, files, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(engine, name, value)
    u = update(np.random.default_rng(0), 2, SIDES[FIRST])
    huge = tmp_path / "huge.safetensors"
    write_lora(huge, {FIRST: Update(FIRST, u.A * np.float32(1e30), u.B * np.float32(1e30))}, {})
    try:
        grams = gram([*files, huge], "delta")
    except LoraFileError as error:
        assert "huge.safetensors" in str(error) and FIRST in str(error) and "too large" in str(error)  # noqa: PT017
        assert limits
    else:
        assert not limits and all(np.isfinite(K).all() for K in grams.values())


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


# --- the cache


class Spy:
    """Counts what is computed and read: pairs of files by kernel calls, tensors by file."""

    def __init__(self, monkeypatch):
        self.pairs, self.read = 0, {}
        kernel, read, both = KERNELS["delta"], Container.read, stack._read
        inside = []  # a stack's reading is one of both factors, however it reads them

        def counted(left, right=None):
            self.pairs += len(left) * (len(left) if right is None else len(right))
            return kernel(left, right)

        def noted(container, key, descriptor=None):
            if not inside:
                self.read.setdefault(container.path.name, []).append(key)
            return read(container, key, descriptor)

        def noted_both(file, spec, *rest):
            self.read.setdefault(file.path.name, []).extend(spec.keys[part] for part in "AB")
            inside.append(True)
            try:
                return both(file, spec, *rest)
            finally:
                inside.pop()

        monkeypatch.setitem(KERNELS, "delta", counted)
        monkeypatch.setattr(Container, "read", noted)
        monkeypatch.setattr(stack, "_read", noted_both)


def same(found, expected) -> None:
    assert list(found) == list(expected)
    for key, K in expected.items():
        np.testing.assert_allclose(found[key], K, rtol=1e-12, atol=1e-12 * np.abs(K).max())


def test_a_file_that_is_added_costs_its_own_row_alone(tmp_path, files, monkeypatch):
    cache, fresh = tmp_path / "cache.safetensors", gram(files, "delta")
    gram(files[:4], "delta", cache=cache)
    spy = Spy(monkeypatch)
    same(gram(files, "delta", cache=cache), fresh)
    new = open_lora(files[4]).layout.specs
    holders = {m: sum(m in open_lora(path).layout.specs for path in files[:4]) for m in new}
    assert spy.pairs == sum(1 + n for n in holders.values())  # itself, and each old file once
    for path in files:
        keys = spy.read[path.name]
        assert len(keys) == len(set(keys))  # every factor is read once
        assert {key.split(".lora_")[0] for key in keys} <= set(new)  # and none that the new file does not have
    spy = Spy(monkeypatch)
    same(gram(files, "delta", cache=cache), fresh)
    assert not spy.pairs and not spy.read


def test_files_that_are_removed_or_change_places_cost_nothing(tmp_path, files, monkeypatch):
    cache = tmp_path / "cache.safetensors"
    whole = gram(files, "delta", cache=cache)
    spy = Spy(monkeypatch)
    for order in ([3, 0, 4, 1, 2], [1, 3], [1, 3, 3]):
        gram(files, "delta", cache=cache)
        found = gram([files[i] for i in order], "delta", cache=cache)
        assert list(found) == list(whole)
        assert all((found[key] == K[np.ix_(order, order)]).all() for key, K in whole.items())
        write_gram(cache, [digest(path) for path in files], whole, "delta")
    assert not spy.pairs and not spy.read


def test_a_file_whose_content_changes_is_computed_anew(tmp_path, files):
    cache = tmp_path / "cache.safetensors"
    gram(files, "delta", cache=cache)
    write_lora(files[2], {m: u.scaled(2) for m, u in read_lora(files[2]).updates.items()}, {})
    same(gram(files, "delta", cache=cache), gram(files, "delta"))


def test_the_row_of_the_last_file_is_that_of_all_matrices_and_reads_every_factor_once(files, monkeypatch):
    single, _ = module_grams(files, ["delta"])
    spy = Spy(monkeypatch)
    rows = last_row([open_lora(path) for path in files], "delta")
    assert all(len(keys) == len(set(keys)) for keys in spy.read.values())
    assert set(rows) == set(open_lora(files[-1]).layout.specs)
    for module, row in rows.items():
        np.testing.assert_allclose(row, single["delta"][module][-1], rtol=1e-6, atol=1e-9)


@pytest.mark.fault(
    "caches", "kept inner products: cut, text, NaN, of another kernel or header", "said, and computed again"
)
@pytest.mark.parametrize("damage", ["cut", "text", "other kernel", "nan", "header", "ids"])
def test_a_damaged_cache_is_said_and_computed_anew(tmp_path, files, capsys, damage):
    cache, fresh = tmp_path / "cache.safetensors", gram(files, "delta")
    ids = [digest(path) for path in files]
    write_gram(cache, ids, fresh, "factors" if damage == "other kernel" else "delta")
    if damage == "cut":
        cache.write_bytes(cache.read_bytes()[:-8])
    elif damage == "text":
        cache.write_text("nothing")
    elif damage == "nan":
        write_gram(cache, ids, {key: K * np.nan for key, K in fresh.items()}, "delta")
    elif damage in ("header", "ids"):
        header = {"header": "[]", "ids": '{"ids": 3, "kernel": "delta"}'}[damage]
        save_file({f"{c}/{b}": K for (c, b), K in fresh.items()}, cache, {"lora_atlas": header})
    same(gram(files, "delta", cache=cache), fresh)
    assert "computed again" in capsys.readouterr().out
    assert read_gram(cache, "delta")[0] == ids


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_that_stops_goes_on_after_the_last_module(tmp_path, files, monkeypatch, capsys, stop):
    cache, fresh = tmp_path / "cache.safetensors", gram(files, "delta")
    gram(files[:2], "delta", cache=cache)
    monkeypatch.setattr(engine, "SAVE_EVERY", -1)
    add, modules = engine._add, []

    def stops(total, *rest):
        if len(modules) == stop - 1:
            total += 7  # half of a module is in the sum when it ends
            raise KeyboardInterrupt
        modules.extend(module for module in rest if isinstance(module, str) and module in SIDES)
        add(total, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_add", stops)
        with pytest.raises(KeyboardInterrupt):
            gram(files, "delta", cache=cache)
    assert read_gram(cache)[0] == [digest(path) for path in files[:2]]  # the old work stands
    done = []
    monkeypatch.setattr(engine, "_add", lambda *a: done.extend(m for m in a[2:] if isinstance(m, str)) or add(*a))
    same(gram(files, "delta", cache=cache), fresh)
    assert modules + [name for name in done if name in SIDES] == sorted(SIDES)
    assert ("going on after" in capsys.readouterr().out) == (stop > 1)
    assert sorted(p.name for p in tmp_path.iterdir() if "cache" in p.name) == ["cache.safetensors"]


@pytest.mark.fault("caches", "half a computation of other files, or junk in its place", "not used")
def test_the_state_of_other_work_is_left_alone(tmp_path, files, monkeypatch):
    cache = tmp_path / "cache.safetensors"
    monkeypatch.setattr(engine, "SAVE_EVERY", -1)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_gram", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(engine.Path, "unlink", lambda *a, **k: None)
        with pytest.raises(KeyboardInterrupt):
            gram(files[:4], "delta", cache=cache)
    assert cache.with_name("cache.safetensors.part").exists()
    same(gram(files, "delta", cache=cache), gram(files, "delta"))
    for junk in (b"", b"junk", b"\0" * 64):
        cache.unlink()
        cache.with_name("cache.safetensors.part").write_bytes(junk)
        same(gram(files, "delta", cache=cache), gram(files, "delta"))


KILLED = """
import os, signal, sys
from lora_atlas.weights import gram as engine
engine.SAVE_EVERY = -1
add, left = engine._add, [int(sys.argv[1])]
def killed(*a):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(*a)
engine._add = killed
engine.gram(sys.argv[3:], "delta", cache=sys.argv[2])
"""


@pytest.mark.fault(
    "caches", "SIGKILL while inner products are computed", "goes on after the last module, to the same numbers"
)
@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 5])
def test_a_run_that_is_killed_goes_on(tmp_path, files, capsys, after):
    cache = tmp_path / "cache.safetensors"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(after), str(cache), *map(str, files)], env=environment, check=False
    )
    assert run.returncode == -signal.SIGKILL and not cache.exists()
    same(gram(files, "delta", cache=cache), gram(files, "delta"))
    assert f"going on after {after} of 6 modules" in capsys.readouterr().out


def test_the_cache_of_equal_files_is_equal_bytes_whatever_way_it_came_about(tmp_path, files):
    gram(files, "delta", cache=tmp_path / "a")
    gram(files, "delta", cache=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads(json.dumps(read_gram(tmp_path / "a")[0])) == [digest(path) for path in files]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_stack_is_what_the_files_hold_and_one_cut_short_is_refused(make, tmp_path, dtype):
    """Factors side by side, which are read at once, are those that are read one by one."""
    rng = np.random.default_rng(0)
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {"lora_A": rng.normal(size=(3, 320)).astype(dtype), "lora_B": rng.normal(size=(320, 3)).astype(dtype)}
    path = make.store(tmp_path / "x.safetensors", {f"{module}.{k}.weight": v for k, v in factors.items()})
    file = open_lora(path)
    with engine.reading([file]) as read:
        found = read([0], module, "left")
        np.testing.assert_array_equal(found.A, factors["lora_A"].astype(np.float32))
        np.testing.assert_array_equal(found.B[0], factors["lora_B"].astype(np.float32))
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(LoraFileError, match="cut short while it was read"):
            read([0], module, "left")


# --- float16 as it is stored


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_every_number_of_float16_is_widened_exactly(scale):
    """All 65,536 patterns of bits, against numpy's cast: zeros of both signs and subnormal numbers among them."""
    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    values = bits.view(np.float16)
    finite = np.isfinite(values)
    X = np.empty(2**16, np.float32)
    stack._widen(bits, X, np.float32(scale))
    expected = values[finite].astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(X[finite].view(np.int32), expected.view(np.int32))
    assert (np.abs(X[~finite]) >= np.float32(scale) * 2**16).all()  # their squares show what was not finite
    assert stack._not_finite(bits) and not stack._not_finite(bits[finite])


@pytest.fixture
def halves(make, tmp_path) -> list[Path]:
    """Six LoRAs in float16 of two modules, some with an α; the last lacks one. The largest numbers are those of
    float16 itself, whose squares are as large as those of infinities that were taken for numbers."""
    rng, paths = np.random.default_rng(0), []
    for n in range(6):
        tensors = {}
        for module, (width, out) in list(SIDES.items())[: 1 if n == 5 else 2]:
            A, B = rng.normal(size=(3, width)).astype(np.float16), rng.normal(size=(out, 3)).astype(np.float16)
            A[0, 0], B[0, 0] = (65504 if n == 4 else 6e-8), -0.0
            tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
            if n % 2:
                tensors[f"{module}.alpha"] = np.array(1.5 * n, np.float16)
        paths.append(make.store(tmp_path / f"half-{n}.safetensors", tensors, {"title": "x" * n}))
    return paths


def raw_rows(paths: list[Path], side: str) -> np.ndarray:
    rows = []
    for path in paths:
        updates = read_lora(path).updates
        zero = {m: Update(m, np.zeros((3, width)), np.zeros((out, 3))) for m, (width, out) in list(SIDES.items())[:2]}
        rows.append(np.concatenate([getattr(updates.get(m, zero[m]), side).ravel() for m in zero]))
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize(
    "limits",
    [{}, {"BLOCK": 1, "NARROWEST": 4}, {"SMALL": 0}, {"SMALL": 0, "TILE_BYTES": 1}, {"OPEN_FILES": 0}],
    ids=str,
)
def test_raw_factors_in_float16_are_multiplied_as_they_are_stored(tmp_path, halves, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(stack if hasattr(stack, name) else engine, name, value)
    rows = {"down": raw_rows(halves, "A"), "up": raw_rows(halves, "B")}
    for kernel, X in (*rows.items(), ("factors", np.concatenate(list(rows.values()), axis=1))):
        norms = np.linalg.norm(X, axis=1)
        bound = 1e-6 * norms[:, None] * norms
        assert (np.abs(sum(gram(halves, kernel).values()) - X @ X.T) <= bound).all()
        cache = tmp_path / f"{kernel}.safetensors"
        gram(halves[:4], kernel, cache=cache)
        assert (np.abs(sum(gram(halves, kernel, cache=cache).values()) - X @ X.T) <= bound).all()
    both, _ = module_grams(halves, ["down", "up"])
    assert (np.abs(sum(both["up"].values()) - rows["up"] @ rows["up"].T) <= 1e-6 * norms[:, None] * norms).all()


def test_raw_factors_of_other_types_or_ranks_beside_float16(make, tmp_path, halves):
    tensors = {key: value.astype(np.float32) for key, value in load_file(halves[0]).items()}
    single = make.store(tmp_path / "single.safetensors", tensors)
    K = sum(gram([*halves[:2], single], "factors").values())
    np.testing.assert_allclose(K[2], K[0][[0, 1, 0]], rtol=1e-6)
    wider = {key: np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, 0)]) for key, value in load_file(halves[0]).items()}
    wider |= {key: np.pad(value, [(0, 2), (0, 0)]) for key, value in wider.items() if "lora_A" in key}
    wider |= {key: np.pad(value, [(0, 0), (0, 2)]) for key, value in wider.items() if "lora_B" in key}
    K = sum(gram([*halves[:2], make.store(tmp_path / "wider.safetensors", wider)], "factors").values())
    np.testing.assert_allclose(K[2], K[0][[0, 1, 0]], rtol=1e-6)


@pytest.mark.parametrize("kernel", ["delta", "factors"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_what_is_not_finite_in_float16_is_named(make, tmp_path, halves, kernel, value, side):
    tensors = load_file(halves[1])
    key = f"{FIRST}.{side}.weight"
    tensors[key][1, 1] = value
    bad = make.store(tmp_path / "bad.safetensors", tensors)
    for paths in ([halves[0], bad], [bad, halves[0]]):
        with pytest.raises(LoraFileError, match=r"bad\.safetensors: not finite") as caught:
            gram(paths, kernel)
        assert key in str(caught.value)
