"""Gram matrices of modules: against dense updates, against the matrices that are their sums, whole on disk."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_atlas.descriptors import descriptors, module_kernels
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import read_lora, write_lora
from lora_atlas.loras.names import block, component
from lora_atlas.weights import gram as engine
from lora_atlas.weights import modules as room
from lora_atlas.weights import stack
from lora_atlas.weights.gram import GramError, gram
from lora_atlas.weights.metric import read_metric
from lora_atlas.weights.modules import module_grams, of_kernel, read_modules, write_module_grams, write_modules

SIDES = {  # module: (in, out)
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 5),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v": (6, 4),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (9, 6),
    "unet.up_blocks.1.attentions.0.proj_in": (4, 4),
}
ALL = ("delta", "down", "factors", "up")


@pytest.fixture
def files(tmp_path):
    """Five LoRAs of rank 3, of which some lack modules."""
    rng = np.random.default_rng(0)
    paths = []
    for n in range(5):
        updates = {
            m: Update(m, rng.normal(size=(3, width)), rng.normal(size=(out, 3)))
            for i, (m, (width, out)) in enumerate(SIDES.items())
            if (i + n) % 4
        }
        paths.append(tmp_path / f"{n}.safetensors")
        write_lora(paths[-1], updates, {})
    return paths


def dense(paths, module: str, of) -> np.ndarray:
    """All inner products of `of` (an update → an array); a LoRA without the module is zero."""
    updates = [read_lora(path).updates.get(module) for path in paths]
    size = next(of(u).size for u in updates if u is not None)
    X = np.stack([np.zeros(size) if u is None else of(u).ravel() for u in updates])
    return X @ X.T


def test_every_kernel_is_the_inner_product_of_what_it_is_called(files):
    grams, _ = module_grams(files, ALL)
    meanings = {
        "delta": lambda u: u.B.astype(float) @ u.A.astype(float),
        "down": lambda u: u.A.astype(float),
        "up": lambda u: u.B.astype(float),
        "factors": lambda u: np.concatenate([u.A.ravel(), u.B.ravel()]).astype(float),
    }
    assert set(grams) == set(ALL)
    for kernel, of in meanings.items():
        assert list(grams[kernel]) == sorted(SIDES)
        for module, K in grams[kernel].items():
            np.testing.assert_allclose(K, dense(files, module, of), rtol=1e-10, atol=1e-10)


def test_modules_of_a_component_and_block_add_up_to_their_matrix(files):
    grams, _ = module_grams(files, ALL)
    for kernel in ALL:
        for place, K in gram(files, kernel).items():
            parts = [grams[kernel][m] for m in SIDES if (component(m), block(m)) == place]
            np.testing.assert_allclose(np.sum(parts, axis=0), K, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limits", [{"TILE_BYTES": 1}, {"LARGEST": 25}, {"OPEN_FILES": 0}], ids=str)
def test_tiles_change_no_matrix(files, monkeypatch, limits):
    expected, _ = module_grams(files, ALL)
    for name, value in limits.items():
        monkeypatch.setattr(engine, name, value)
    found, _ = module_grams(files, ALL)
    for kernel in ALL:
        for module, K in expected[kernel].items():
            np.testing.assert_allclose(found[kernel][module], K, rtol=1e-12, atol=1e-12)
            assert (found[kernel][module] == found[kernel][module].T).all()


def test_a_factor_is_read_once_for_all_kernels(files, monkeypatch):
    seen = []
    read = stack._read
    monkeypatch.setattr(
        stack, "_read", lambda f, spec, *rest: seen.append((f.path, spec.keys["A"])) or read(f, spec, *rest)
    )
    module_grams(files, ALL)
    assert len(seen) == len(set(seen)) > 0


def test_parameters_are_the_numbers_of_the_factors(files):
    _, parameters = module_grams(files, ALL)
    for module, (width, out) in SIDES.items():
        assert parameters["down"][module] == 3 * width
        assert parameters["up"][module] == 3 * out
        assert parameters["factors"][module] == parameters["delta"][module] == 3 * (width + out)


def test_of_several_ranks_the_largest_counts(files, tmp_path):
    module = next(iter(SIDES))
    rng = np.random.default_rng(1)
    write_lora(tmp_path / "wide.safetensors", {module: Update(module, rng.normal(size=(7, 6)), np.ones((5, 7)))}, {})
    _, parameters = module_grams([*files, tmp_path / "wide.safetensors"], ["down"])
    assert parameters["down"][module] == 7 * 6
    assert parameters["down"][list(SIDES)[1]] == 3 * 6


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "full", "Tucker"])
def test_what_is_no_pair_of_factors_counts_what_its_file_holds(make, tmp_path, kind):
    parts, expected = make.parts(kind, 0, rank=2)
    name = "lora_unet_mid_block_resnets_0_conv1"
    path = make.store(tmp_path / "one.safetensors", {f"{name}.{part}": x for part, x in parts.items()})
    grams, parameters = module_grams([path], ["delta"])
    module = "unet.mid_block.resnets.0.conv1"
    assert parameters["delta"] == {module: sum(x.size for x in parts.values())}
    np.testing.assert_allclose(grams["delta"][module], [[np.square(expected).sum()]], rtol=1e-5)


def test_more_than_memory_is_to_hold_is_refused_with_the_way_out(files, monkeypatch):
    monkeypatch.setattr(room, "LIMIT", 8 * 25 * 4 * 2)
    module_grams(files, ["down", "up"])
    with pytest.raises(GramError, match=r"12 Gram matrices of single modules for 5 .*choose fewer LoRAs, or fewer"):
        module_grams(files, ["down", "up", "delta"])


def test_what_is_written_module_by_module_are_the_same_bytes_and_wants_room_for_one_kernel(
    files, tmp_path, monkeypatch
):
    ids = ["ada/00", "ada/01", "北斎/00", "../x", "b"]
    write_modules(tmp_path / "whole", ids, *module_grams(files, ALL))
    monkeypatch.setattr(room, "LIMIT", 8 * 25 * 4)  # four modules
    write_module_grams(tmp_path / "one by one", ids, files, ALL)
    assert (tmp_path / "one by one").read_bytes() == (tmp_path / "whole").read_bytes()
    monkeypatch.setattr(room, "LIMIT", 8 * 25 * 4 - 1)
    with pytest.raises(GramError, match="4 Gram matrices of single modules"):
        write_module_grams(tmp_path / "none", ids, files, ALL)
    assert not list(tmp_path.glob("*none*"))


def test_loras_of_two_bases_are_refused(files, tmp_path):
    module = next(iter(SIDES))
    write_lora(tmp_path / "other.safetensors", {module: Update(module, np.ones((1, 7)), np.ones((5, 1)))}, {})
    with pytest.raises(GramError, match="different base models"):
        module_grams([*files, tmp_path / "other.safetensors"], ["delta"])


def test_an_unknown_kernel_is_a_key_error(files):
    with pytest.raises(KeyError, match="cosine"):
        module_grams(files, ["cosine"])


def a_metric(path, modules: dict[str, tuple[int, int]]):
    """A base's sensitivity with the second moments of modules (in, out); returns it, Σ and G."""
    rng, moments = np.random.default_rng(5), {}
    for module, sides in modules.items():
        for kind, side in zip(("sigma", "G"), sides, strict=True):
            X = rng.normal(size=(2 * side, side))
            moments[f"{kind}/{module}"] = (X.T @ X / side).astype(np.float32)
    header = {"weights": dict.fromkeys(modules, 1.0), "inputs": dict.fromkeys(modules, 1.0)}
    save_file(moments, path, {"lora_atlas": json.dumps(header)})
    return read_metric(path), moments


def test_the_kernel_kfac_is_the_inner_product_in_the_metric_of_the_base(files, tmp_path):
    known = dict(list(SIDES.items())[:3])
    metric, moments = a_metric(tmp_path / "base.safetensors", known)
    grams, parameters = module_grams(files, ["kfac", "delta"], metric=metric)
    assert list(grams["kfac"]) == list(parameters["kfac"]) == sorted(known)  # those that the metric knows
    for module, K in grams["kfac"].items():
        sigma, G = (moments[f"{kind}/{module}"].astype(float) for kind in ("sigma", "G"))
        updates = [read_lora(path).updates.get(module) for path in files]
        dW = [np.zeros((len(G), len(sigma))) if u is None else u.B.astype(float) @ u.A.astype(float) for u in updates]
        expected = np.array([[np.trace(G @ one @ sigma @ other.T) for other in dW] for one in dW])
        np.testing.assert_allclose(K, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        assert parameters["kfac"][module] == parameters["delta"][module]
    plain, _ = module_grams(files, ["delta"])
    assert all((grams["delta"][module] == K).all() for module, K in plain["delta"].items())  # and no other changes
    write_modules(tmp_path / "all.safetensors", list("abcde"), grams, parameters)
    assert list(read_modules(tmp_path / "all.safetensors")[1]["kfac"]) == sorted(known)


def test_tiles_change_no_matrix_in_the_metric(files, tmp_path, monkeypatch):
    metric, _ = a_metric(tmp_path / "base.safetensors", SIDES)
    expected, _ = module_grams(files, ["kfac"], metric=metric)
    monkeypatch.setattr(engine, "TILE_BYTES", 1)
    found, _ = module_grams(files, ["kfac"], metric=metric)
    for module, K in expected["kfac"].items():
        np.testing.assert_allclose(found["kfac"][module], K, rtol=1e-5, atol=1e-6 * np.abs(K).max())


def test_a_metric_of_other_modules_is_refused(files, tmp_path):
    metric, _ = a_metric(tmp_path / "base.safetensors", {"unet.mid_block.attentions.0.proj_in": (3, 3)})
    for one in (metric, None):
        with pytest.raises(GramError, match="second moments are of none of these LoRAs' modules"):
            module_grams(files, ["kfac"], metric=one)


def test_what_is_written_is_read_back_and_equal_bytes(files, tmp_path):
    ids = ["ada/00", "ada/01", "北斎/00", "../x", "b"]
    grams, parameters = module_grams(files, ["delta", "down"])
    path = tmp_path / "new" / "modules.safetensors"
    write_modules(path, ids, grams, parameters)
    found_ids, found, counts = read_modules(path)
    assert found_ids == ids and counts == parameters
    assert {kernel: list(matrices) for kernel, matrices in found.items()} == {
        kernel: list(matrices) for kernel, matrices in grams.items()
    }
    assert all((found[k][m] == K).all() for k, matrices in grams.items() for m, K in matrices.items())
    turned = {kernel: dict(reversed(matrices.items())) for kernel, matrices in reversed(grams.items())}
    write_modules(tmp_path / "again", ids, turned, dict(reversed(parameters.items())))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_damaged_file_is_named_with_the_way_out(files, tmp_path):
    path, ids = tmp_path / "modules.safetensors", list("abcde")
    grams, parameters = module_grams(files, ["delta"])
    first = next(iter(SIDES))

    def refused(*words: str):
        with pytest.raises(GramError) as caught:
            read_modules(path)
        assert all(word in str(caught.value) for word in (str(path), "delete it and rerun", *words))

    refused()  # absent
    path.write_text("no matrix")
    refused("damaged")
    save_file({"delta/x": np.zeros((5, 5))}, path, {"lora_atlas": '{"ids": "abcde", "parameters": 3}'})
    refused("not Gram matrices of modules")
    path.write_bytes(files[0].read_bytes())  # sound, and another kind of file
    refused("not Gram matrices of modules")
    write_modules(path, ids[:4], grams, parameters)
    refused("4 × 4", first)
    write_modules(path, ids, {"delta": grams["delta"] | {first: np.full((5, 5), np.nan)}}, parameters)
    with pytest.raises(GramError, match=f"{path}: the Gram matrix delta/{first} is not finite; delete it and rerun"):
        read_modules(path)[1]["delta"][first]
    write_modules(path, ids, grams, {"delta": {first: 3}})
    refused("parameters")
    write_modules(path, [], {}, {})
    refused()


def test_a_new_kernel_is_an_entry_of_kernels(tmp_path, make, monkeypatch):
    """It has matrices of single modules, a label under every weighting, and a number of parameters."""
    monkeypatch.setitem(engine.KERNELS, "delta2", lambda left, right=None: 2 * engine.delta(left, right))
    asked = ["delta2", "factors"]
    paths = [make.lora(tmp_path / f"{seed}.safetensors", make.sd1(), seed) for seed in range(3)]
    grams, parameters = module_grams(paths, module_kernels(asked, kfac=False))
    one, two = of_kernel(grams, "delta"), of_kernel(grams, "delta2")
    for module, K in one.items():
        np.testing.assert_allclose(two[module], 2 * K)
    assert parameters["delta2"] == parameters["delta"]
    weights = {"kernels": asked, "modules": ["plain", "unit", "consensus"], "scales": ["unit", "raw"], "controls": []}
    generation = {"num_inference_steps": [], "guidance_scale": [], "prompts": [], "seeds": [], "worth": None}
    found = descriptors({"weights": weights, "extractors": {}, "generation": generation})
    assert len([each for each in found if each.kernel == "delta2" and "kernel delta2" in each.label]) == 4
