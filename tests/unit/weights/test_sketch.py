"""Sketches: unbiased, of a known error, linear, and of their file alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_atlas.loras.container import LoraFileError
from lora_atlas.loras.factors import HadamardUpdate, KroneckerUpdate, Update, expanded, of_dense
from lora_atlas.loras.files import open_lora
from lora_atlas.weights.gram import gram
from lora_atlas.weights.sketch import (
    LARGEST,
    SMALLEST,
    Hashes,
    Sketch,
    folded,
    project,
    read_sketch,
    size,
    sketch,
    sketch_gram,
    sketches,
    write_sketch,
)

ROOT = Path(__file__).parents[3]
M = "unet.conv_in"
OUT, WIDTH = 40, 60


def plain(rng, rank: int, out: int = OUT, width: int = WIDTH, module: str = M) -> Update:
    return Update(
        module, rng.normal(size=(rank, width)).astype(np.float32), rng.normal(size=(out, rank)).astype(np.float32)
    )


def dense(u) -> np.ndarray:
    plain_update = expanded(u)
    return plain_update.B.astype(np.float64) @ plain_update.A.astype(np.float64)


# --- of one update


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("D", [64, 256])
def test_inner_products_of_sketches_are_unbiased_and_of_the_known_error(rank, D):
    """Over independent hashes: mean ⟨ΔW, ΔW′⟩, deviation at most √(2/D) of the norms (Pham & Pagh 2013)."""
    rng, trials = np.random.default_rng(0), 400
    u, v = plain(rng, rank), plain(rng, rank)
    v = Update(M, v.A + u.A, v.B + u.B)  # not nearly orthogonal
    truth, norms = float(np.vdot(dense(u), dense(v))), float(np.linalg.norm(dense(u)) * np.linalg.norm(dense(v)))
    found = []
    for seed in range(trials):
        hashes = Hashes(seed)
        found.append(float(np.vdot(project(u, D, hashes), project(v, D, hashes))))
    error = np.sqrt(np.mean(np.square(np.array(found) - truth))) / norms
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / np.sqrt(trials)
    assert 0.5 * np.sqrt(1 / D) < error < 1.25 * np.sqrt(2 / D)


def test_sketches_are_linear_and_copies_are_parallel():
    rng, hashes = np.random.default_rng(0), Hashes()
    u, v = plain(rng, 3), plain(rng, 2)
    both = Update(M, np.concatenate([u.A, v.A]), np.concatenate([u.B, v.B], 1))
    one, other = project(u, 64, hashes), project(v, 64, hashes)
    np.testing.assert_allclose(project(both, 64, hashes), one + other, atol=1e-4 * np.linalg.norm(one))
    for factor in (0.5, -1.0, 1e-3):
        np.testing.assert_allclose(
            project(u.scaled(factor), 64, hashes), factor * one, rtol=1e-5, atol=1e-6 * abs(factor)
        )
    Q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = Update(M, (Q.T @ u.A).astype(np.float32), (u.B @ Q).astype(np.float32))
    np.testing.assert_allclose(project(turned, 64, hashes), one, atol=1e-5 * np.linalg.norm(one))
    assert not project(u.scaled(0), 64, hashes).any()


@pytest.mark.parametrize("kind", ["Kronecker", "Hadamard"])
def test_a_sketch_of_any_kind_is_that_of_its_plain_factors(kind):
    rng, hashes = np.random.default_rng(0), Hashes()
    if kind == "Hadamard":
        u = HadamardUpdate(M, plain(rng, 2), plain(rng, 3))
    else:
        u = KroneckerUpdate(M, plain(rng, 2, 5, 4), plain(rng, 3, 8, 15))
    found = project(u, 128, hashes)
    np.testing.assert_allclose(found, project(expanded(u), 128, hashes), atol=1e-4 * np.linalg.norm(found))


@pytest.mark.parametrize("kind", ["difference", "LoKr"])
def test_a_sketch_of_a_whole_matrix_is_that_of_its_factors(kind):
    """The entries themselves, added at the sums of their places: the same sketch, without transforms of a full rank."""
    rng, hashes = np.random.default_rng(0), Hashes()
    W = rng.normal(size=(24, 20)).astype(np.float32)
    factors = np.linalg.qr(rng.normal(size=(20, 20)))[0].astype(np.float32)
    u = of_dense(M, W)
    if kind == "LoKr":
        u = KroneckerUpdate(M, of_dense(M, W[:4, :4]), of_dense(M, W[:6, :5]))
        W = np.kron(W[:4, :4], W[:6, :5])
    # Factors of rank 20 in parts of rank 5, none of which is whole.
    parts = [Update(M, factors[:, n : n + 5].T.copy(), W @ factors[:, n : n + 5]) for n in range(0, 20, 5)]
    expected = sum(project(part, 128, hashes) for part in parts)
    np.testing.assert_allclose(project(u, 128, hashes), expected, atol=1e-5 * np.linalg.norm(expected))


def test_a_sketch_folds_into_the_sketch_of_a_smaller_one():
    u, hashes = plain(np.random.default_rng(0), 3), Hashes()
    large = Sketch(512, {M: project(u, 512, hashes)}, {M: 1.0})
    for D in (256, 64):
        small = folded(large, D)
        assert small.D == D
        np.testing.assert_allclose(small.parts[M], project(u, D, hashes), atol=1e-4 * np.linalg.norm(small.parts[M]))
    assert folded(large, 512) is large and folded(large, 1024) is large


def test_hashes_differ_between_modules_and_sides_and_seeds():
    drawn = Hashes(0).of(M, "out", 50, 64)
    for other in (
        Hashes(0).of("unet.conv_out", "out", 50, 64),
        Hashes(0).of(M, "in", 50, 64),
        Hashes(1).of(M, "out", 50, 64),
    ):
        assert (drawn != other).nnz
    again = Hashes(0).of(M, "out", 50, 64)
    assert not (drawn != again).nnz and (abs(drawn).sum(0) == 1).all()
    shorter = Hashes(0).of(M, "out", 20, 64)  # the hash of an index is its own
    assert not (drawn[:, :20] != shorter).nnz


def test_the_size_is_the_largest_power_of_two_that_fits():
    assert size(560, 600_000) == 1024 and size(586, 600_000) == 512
    assert size(1, 10**9) == LARGEST and size(10**6) == SMALLEST and size(0, 256) == 256
    for modules in range(1, 700, 37):
        D = size(modules, 10**5)
        assert D & (D - 1) == 0 and (D == SMALLEST or D * modules <= 10**5 < 2 * D * modules)


# --- of files


@pytest.fixture
def paths(make, tmp_path) -> list[Path]:
    """Six LoRAs of ranks 1 to 4, in two related groups; one lacks half of the modules."""
    rng, found = np.random.default_rng(0), []
    modules = make.sd1()
    common = {m: plain(rng, 2, *shape, m) for m, shape in modules.items()}
    for n, rank in enumerate((1, 2, 3, 4, 2, 2)):
        tensors = {}
        for i, (m, shape) in enumerate(modules.items()):
            if n == 5 and i % 2:
                continue
            own = plain(rng, rank, *shape, m)
            near = n < 3
            A, B = (
                (np.concatenate([own.A, common[m].A]), np.concatenate([own.B, common[m].B], 1))
                if near
                else (own.A, own.B)
            )
            tensors |= {f"{m}.lora_A.weight": A, f"{m}.lora_B.weight": B}
        found.append(make.store(tmp_path / f"{n}.safetensors", tensors))
    return found


def test_matrices_of_sketches_are_near_the_exact_ones(paths):
    """24 modules of D numbers each: their errors average out."""
    exact = sum(gram(paths, "delta").values())
    found = [sketch(open_lora(path), numbers=24 * 2048) for path in paths]
    estimate = sum(sketch_gram(found).values())
    norms = np.sqrt(np.diag(exact))
    errors = (estimate - exact) / norms[:, None] / norms
    assert {s.D for s in found} == {2048, 4096}  # the file with half of the modules has twice the numbers each
    assert np.sqrt(np.mean(errors**2)) < 1.5 * np.sqrt(2 / (24 * 2048)) and (estimate == estimate.T).all()
    for s, square in zip(found, np.diag(exact), strict=True):
        assert sum(norm**2 for norm in s.norms.values()) == pytest.approx(square, rel=1e-6)


def test_matrices_of_sketches_come_by_component_and_block_with_zeros_for_absent_modules(make, paths):
    found = [sketch(open_lora(path), numbers=24 * 256) for path in paths]
    grams = sketch_gram(found)
    assert set(grams) == set(gram(paths, "delta"))
    extra = make.lora(paths[0].parent / "x.safetensors", {"unet.conv_out": (4, 9)}, 0)
    more = sketch_gram([*found, sketch(open_lora(extra), numbers=256)])
    assert not more["convolution", "other"][:-1].any() and more["convolution", "other"][-1, -1] > 0
    for (part, where), K in more.items():
        if part != "convolution":
            assert not K[-1].any() and not K[:, -1].any(), where


def test_a_sketch_depends_on_its_file_alone(paths, tmp_path):
    alone = [sketch(open_lora(path)) for path in paths]
    files = [open_lora(path) for path in reversed(paths)]
    together = list(sketches(files))[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.D == other.D and one.norms == other.norms
        assert all((one.parts[m] == other.parts[m]).all() for m in one.parts)
    for n, one in enumerate(alone):
        write_sketch(tmp_path / f"{n}.sketch", one)
    again = read_sketch(tmp_path / "3.sketch")
    assert again.D == alone[3].D and again.norms == alone[3].norms
    assert all((again.parts[m] == alone[3].parts[m]).all() for m in again.parts)


def test_the_bytes_of_a_sketch_do_not_depend_on_the_hash_seed_of_the_process(paths, tmp_path):
    code = (
        "import sys; from lora_atlas.loras.files import open_lora; from lora_atlas.weights.sketch import *\n"
        "write_sketch(sys.argv[2], sketch(open_lora(sys.argv[1]), numbers=6144))"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(paths[0]), str(tmp_path / seed)], env=environment, check=True)
    write_sketch(tmp_path / "here", sketch(open_lora(paths[0]), numbers=6144))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_file_that_cannot_be_sketched_costs_no_other_file_anything(make, paths, tmp_path):
    tensors = load_file(paths[1])
    key = sorted(tensors)[0]
    bad = make.store(tmp_path / "bad.safetensors", tensors | {key: tensors[key] * np.float32(np.nan)})
    huge = make.store(tmp_path / "huge.safetensors", {k: x * np.float32(1e30) for k, x in tensors.items()})
    found = list(sketches([open_lora(path) for path in (paths[0], bad, huge, paths[2])], numbers=6144))
    assert [isinstance(one, Sketch) for one in found] == [True, False, False, True]
    assert isinstance(found[1], LoraFileError) and "not finite" in str(found[1]) and key in str(found[1])
    assert "huge.safetensors: the update of" in str(found[2]) and "too large" in str(found[2])


@pytest.mark.fault("caches", "a sketch that is damaged is read for matrices", "refused, with the way out")
def test_a_damaged_sketch_is_named_with_the_way_out(paths, tmp_path, make):
    path = tmp_path / "x.sketch"
    write_sketch(path, sketch(open_lora(paths[0]), numbers=6144))
    whole = path.read_bytes()
    sound = load_file(path)
    write_sketch(path, Sketch(128, sound, dict.fromkeys(sound, 1.0)))
    other = path.read_bytes()
    for content in (b"", b"junk", whole[:-4], paths[0].read_bytes(), other):
        path.write_bytes(content)
        with pytest.raises(LoraFileError, match=r"x\.sketch: a sketch that is damaged .*delete it and rerun"):
            read_sketch(path)
