"""The metric of a base: its roots, inner products in it against dense ones, files that cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_atlas.loras.factors import HadamardUpdate, KroneckerUpdate, Update, expanded
from lora_atlas.weights.gram import delta
from lora_atlas.weights.metric import MetricError, read_metric, warped
from lora_atlas.weights.stack import of_updates

M, OTHER = "unet.mid_block.attentions.0.proj_in", "unet.conv_in"
WIDTH, OUT = 9, 6


def moment(rng, side: int, rank: int) -> np.ndarray:
    X = rng.normal(size=(rank, side))
    return (X.T @ X / rank).astype(np.float32)


def store(path: Path, tensors: dict[str, np.ndarray], **header) -> Path:
    told = {"weights": {M: 0.5, OTHER: 0.0}, "inputs": {M: 1.0, OTHER: 1.0}} | header
    save_file(tensors, path, {"lora_atlas": json.dumps(told)})
    return path


@pytest.fixture
def moments() -> dict[str, np.ndarray]:
    """Second moments of one module: of more samples than sides, and of fewer."""
    rng = np.random.default_rng(0)
    return {f"sigma/{M}": moment(rng, WIDTH, 40), f"G/{M}": moment(rng, OUT, 3)}


@pytest.fixture
def path(tmp_path, moments) -> Path:
    return store(tmp_path / "base.safetensors", moments)


def plain(rng, rank: int, out: int = OUT, width: int = WIDTH) -> Update:
    return Update(M, rng.normal(size=(rank, width)).astype(np.float32), rng.normal(size=(out, rank)).astype(np.float32))


def test_weights_and_roots_are_read_back(path, moments):
    metric = read_metric(path)
    assert metric.weights == {M: 0.5, OTHER: 0.0} and metric.moments == {M} and metric.path == path
    assert metric.roots(OTHER) is None and metric.roots("unet.conv_out") is None
    for root, X in zip(metric.roots(M), moments.values(), strict=True):
        assert root.dtype == np.float32 and np.abs(root - root.T).max() < 1e-6
        np.testing.assert_allclose(root.astype(float) @ root, X, atol=1e-5 * np.abs(X).max())
        assert np.linalg.eigvalsh(root.astype(float)).min() > -1e-5  # the positive one of many


def test_one_of_the_two_moments_is_none(tmp_path, moments):
    for key in moments:
        metric = read_metric(store(tmp_path / "base.safetensors", {key: moments[key]}))
        assert metric.moments == frozenset() and metric.roots(M) is None and metric.weights[M] == 0.5


def test_a_base_without_second_moments_has_weights(tmp_path):
    metric = read_metric(store(tmp_path / "base.safetensors", {"none": np.zeros(1, np.float32)}))
    assert metric.weights == {M: 0.5, OTHER: 0.0} and metric.moments == frozenset()


@pytest.mark.parametrize("kind", ["stack", "updates", "LoHa", "LoKr"])
def test_warped_updates_have_the_inner_products_of_the_metric(path, moments, kind):
    """tr(G ΔWᵢ Σ ΔWⱼᵀ) in float64, of pairs of factors side by side or one by one, and of other kinds of updates."""
    rng = np.random.default_rng(1)
    group = [plain(rng, rank) for rank in (2, 1, 3)]
    if kind == "LoHa":
        group.append(HadamardUpdate(M, plain(rng, 2), plain(rng, 2)))
    if kind == "LoKr":
        group.append(KroneckerUpdate(M, plain(rng, 2, 2, 3), plain(rng, 1, 3, 3)))
    dense = [expanded(u).B.astype(float) @ expanded(u).A.astype(float) for u in group]
    sigma, G = (X.astype(float) for X in moments.values())
    expected = np.array([[np.trace(G @ one @ sigma @ other.T) for other in dense] for one in dense])
    stack = of_updates(group) if kind == "stack" else group
    found = delta(warped(stack, read_metric(path).roots(M)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    plain_products = np.array([[np.vdot(one, other) for other in dense] for one in dense])
    assert not np.allclose(found, plain_products, rtol=0.1)


def test_without_a_metric_of_its_own_a_base_gives_plain_inner_products():
    group = [plain(np.random.default_rng(n), 2) for n in range(3)]
    identity = (np.eye(WIDTH, dtype=np.float32), np.eye(OUT, dtype=np.float32))
    np.testing.assert_allclose(delta(warped(group, identity)), delta(group), rtol=1e-6, atol=1e-6)


@pytest.mark.fault("LoRA files", "a measured metric that is damaged", "refused, with the way out")
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, path, moments):
    whole = path.read_bytes()

    def refused(*words: str) -> None:
        with pytest.raises(MetricError) as caught:
            read_metric(path)
        expected = (str(path), "delete it and rerun `snakemake weights`", *words)
        assert all(word in str(caught.value) for word in expected), caught.value

    read_metric(path)
    for cut in (0, 4, 40, len(whole) - 4):
        path.write_bytes(whole[:cut])
        refused()
    path.unlink()
    refused()
    path.mkdir()
    refused()
    path.rmdir()
    save_file(moments, path)  # sound, and without the header
    refused("lora_atlas")
    for text in ("{", "[]", "3", '{"inputs": {}}', '{"weights": 3}', '{"weights": {"a": "b"}}', '{"weights": [1]}'):
        save_file(moments, path, {"lora_atlas": text})
        refused()
    for bad in (-1.0, float("nan"), float("inf")):
        store(path, moments, weights={M: bad})
        refused("negative or not finite")
    assert set(load_file(path)) == set(moments)


@pytest.mark.parametrize("bad", [np.full((3, 3), np.nan, np.float32), np.zeros((3, 2), np.float32)])
def test_second_moments_that_are_no_finite_squares_are_refused_by_name(tmp_path, bad):
    path = tmp_path / "base.safetensors"
    header = {"lora_atlas": json.dumps({"weights": {"unet.x": 1.0}})}
    save_file({"sigma/unet.x": np.eye(4, dtype=np.float32), "G/unet.x": bad}, path, metadata=header)
    with pytest.raises(MetricError, match=r"base\.safetensors: the second moments of unet\.x"):
        read_metric(path).roots("unet.x")
