"""What the parts of a file make: every kind against PEFT's own layers and the papers' formulas, in float64."""

import importlib
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.loha.layer import HadaWeight, HadaWeightCP
from peft.tuners.lokr.layer import make_kron, make_weight_cp
from safetensors.numpy import load_file, save_file
from torch import nn

from lora_atlas.loras.factors import HadamardUpdate, KroneckerUpdate, expanded
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"
KOHYA = "lora_unet_down_blocks_0_resnets_0_conv1"


def dense(update) -> np.ndarray:
    plain = expanded(update)
    return plain.B.astype(np.float64) @ plain.A.astype(np.float64)


def near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    expected = np.asarray(expected, np.float64).reshape(len(expected), -1)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def read(make, path, kind, seed=0, alpha=None, rank=2):
    """The update of one convolution of a kind, under kohya's name, and the formula's dense one at a scale of one."""
    parts, expected = make.parts(kind, seed, rank)
    tensors = {f"{KOHYA}.{part}": value for part, value in parts.items()}
    if alpha is not None:
        tensors[f"{KOHYA}.alpha"] = np.array(alpha, np.float32)
    (update,) = read_lora(make.store(path / "x.safetensors", tensors)).updates.values()
    assert update.module == CONV
    return update, expected


# --- one file of tensors


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_every_kind_is_its_formula_times_alpha_over_rank(make, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(make.kinds))
    seed, rank = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 4))
    alpha = data.draw(st.none() | st.just(0.0) | st.floats(0.125, 64, width=32))
    update, expected = read(make, tmp_path_factory.getbasetemp(), kind, seed, alpha, rank)
    scale = alpha / rank if alpha and kind in make.scaled else 1
    if kind == "LoKr, second whole":  # of its other factor
        assert update.second.rank == 3
    near(dense(update), scale * expected)
    assert update.shape == make.shape


@pytest.mark.parametrize("kind", ["LoHa", "LoHa, Tucker"])
def test_loha_is_what_peft_makes_of_the_same_tensors(make, tmp_path, kind):
    update, _ = read(make, tmp_path, kind, alpha=3.0)
    p = {name.removeprefix("hada_"): torch.from_numpy(x).double() for name, x in make.parts(kind, 0)[0].items()}
    if kind == "LoHa":
        expected = HadaWeight.apply(p["w1_a"], p["w1_b"], p["w2_a"], p["w2_b"], torch.tensor(1.5))
    else:
        expected = HadaWeightCP.apply(
            p["t1"], p["w1_a"], p["w1_b"], p["t2"], p["w2_a"], p["w2_b"], torch.tensor(1.5).double()
        )
    assert isinstance(update, HadamardUpdate) and update.rank == 4
    near(dense(update), expected.numpy())


@pytest.mark.parametrize("kind", ["LoKr", "LoKr, one whole", "LoKr, second whole", "LoKr, both whole", "LoKr, Tucker"])
def test_lokr_is_what_peft_makes_of_the_same_tensors(make, tmp_path, kind):
    update, _ = read(make, tmp_path, kind, alpha=3.0)
    p = {name.removeprefix("lokr_"): torch.from_numpy(x).double() for name, x in make.parts(kind, 0)[0].items()}
    w1 = p["w1"] if "w1" in p else p["w1_a"] @ p["w1_b"]
    rebuilt = make_weight_cp(p["t2"], p["w2_a"], p["w2_b"]) if "t2" in p else None
    w2 = p["w2"] if "w2" in p else p["w2_a"] @ p["w2_b"] if rebuilt is None else rebuilt
    scale = 1.0 if {"w1", "w2"} <= set(p) else 1.5  # LyCORIS writes an α beside two whole factors that means nothing
    assert isinstance(update, KroneckerUpdate)
    near(dense(update), make_kron(w1, w2, scale).numpy())


@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_"])
def test_lycoris_has_a_prefix_of_its_own(make, tmp_path, prefix):
    parts, expected = make.parts("LoKr", 0)
    name = prefix + KOHYA.removeprefix("lora_unet_")
    path = make.store(tmp_path / "x.safetensors", {f"{name}.{part}": x for part, x in parts.items()})
    near(dense(read_lora(path).updates[CONV]), expected)


def test_a_bias_is_a_matrix_of_one_column(make, tmp_path):
    parts, expected = make.parts("full", 0)
    tensors = {f"{KOHYA}.{part}": x for part, x in parts.items()} | {f"{KOHYA}.diff_b": np.arange(6.0)}
    updates = read_lora(make.store(tmp_path / "x.safetensors", tensors)).updates
    near(dense(updates[CONV]), expected)
    near(dense(updates[f"{CONV}.bias"]), np.arange(6.0)[:, None])


# --- scales that differ between modules


def test_every_module_takes_its_own_alpha_in_kohyas_naming(make, tmp_path):
    """diffusers 0.42 hands PEFT alphas under names that it does not know, and takes the most common one instead."""
    modules = make.sd1() | {
        f"text_encoder.text_model.encoder.layers.{n}.self_attn.q_proj": (768, 768) for n in range(3)
    }
    plain = load_file(make.lora(tmp_path / "plain.safetensors", modules, 0, rank=4))
    tensors, alphas = make.kohya(plain), {}
    for n, module in enumerate(modules):
        model, _, rest = module.partition(".")
        alphas[module] = (1.0, 0.25, 16.0, 0.0, None)[n % 5]
        if alphas[module] is not None:
            name = f"{'lora_unet' if model == 'unet' else 'lora_te1'}_{rest.replace('.', '_')}"
            tensors[f"{name}.alpha"] = np.array(alphas[module], np.float32)
    updates = read_lora(make.store(tmp_path / "x.safetensors", tensors)).updates
    assert set(updates) == set(modules)
    for module, alpha in alphas.items():
        a, b = (plain[f"{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        near(dense(updates[module])[:5], (alpha / 4 if alpha else 1) * b[:5] @ a)

    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    found, stock = _convert_non_diffusers_lora_to_diffusers({key: torch.from_numpy(x) for key, x in tensors.items()})
    loaded = {key.split("_lora.")[0].split(".lora")[0] for key in found}
    assert not loaded & {key.removesuffix(".alpha") for key in stock}  # no alpha has the name of its module


# --- PEFT's folders


class Model(nn.Module):
    """Layers under the dotted names of a UNet's."""

    def __init__(self, layers: dict[str, nn.Module]):
        super().__init__()
        for name, layer in layers.items():
            *above, last = name.split(".")
            at = self
            for part in above:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.add_module(last, layer)


LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OTHER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONVOLUTION = "mid_block.resnets.0.conv1"
NAMES = (LINEAR, OTHER, CONVOLUTION)
TARGETS = {"target_modules": ["to_q", "to_out.0", "conv1"]}
PATTERNS = {"rank_pattern": {"attn1.to_q": 3}, "alpha_pattern": {"mid_block.resnets.0.conv1": 7, ".*\\.to_out.0": 1}}
CONFIGS = {
    "LoRA": LoraConfig(r=2, lora_alpha=6, **TARGETS),
    "rsLoRA": LoraConfig(r=4, lora_alpha=6, use_rslora=True, **TARGETS),
    "LoRA, patterns": LoraConfig(r=2, lora_alpha=6, **PATTERNS, **TARGETS),
    "rsLoRA, patterns": LoraConfig(r=2, lora_alpha=6, use_rslora=True, **PATTERNS, **TARGETS),
    "LoHa": LoHaConfig(r=2, alpha=5, **TARGETS),
    "LoHa, Tucker": LoHaConfig(r=2, alpha=5, use_effective_conv2d=True, **PATTERNS, **TARGETS),
    "LoKr": LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=4, **TARGETS),
    "LoKr, whole": LoKrConfig(r=8, alpha=5, **TARGETS),
    "LoKr, Tucker": LoKrConfig(r=2, alpha=5, use_effective_conv2d=True, **PATTERNS, **TARGETS),
    "LoRA, bias": LoraConfig(r=2, lora_alpha=6, lora_bias=True, **TARGETS),
    "DoRA": LoraConfig(r=2, lora_alpha=6, use_dora=True, **TARGETS),
}


def peft_folder(folder, config):
    """A folder that PEFT wrote, with random parameters; its model in float64."""
    torch.manual_seed(0)
    base = Model({LINEAR: nn.Linear(12, 16), OTHER: nn.Linear(16, 20), CONVOLUTION: nn.Conv2d(12, 16, 3)})
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter *= 1 + torch.rand_like(parameter)
            elif parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no base model's card
        model.save_pretrained(folder)
    return model.double()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "DoRA"])
def test_a_folder_that_peft_wrote_is_what_peft_makes_of_it(tmp_path, name):
    model = peft_folder(tmp_path, CONFIGS[name])
    updates = read_lora(tmp_path).updates
    assert {m for m in updates if not m.endswith(".bias")} == {f"unet.{module}" for module in NAMES}
    for module in NAMES:
        layer = model.get_submodule(f"base_model.model.{module}")
        near(dense(updates[f"unet.{module}"]), layer.get_delta_weight("default").detach().numpy())
        if "bias" in name:
            before = layer.base_layer.bias.detach().clone()
            layer.merge()
            near(
                dense(updates[f"unet.{module}.bias"]), (layer.base_layer.bias.detach() - before).numpy()[:, None], 1e-5
            )


@pytest.mark.parametrize("name", ["LoRA", "LoHa", "LoKr"])
def test_a_configuration_without_alpha_has_pefts_own(tmp_path, name):
    """Held against PEFT: what it makes of a configuration from which α was taken."""
    peft_folder(tmp_path, next(CONFIGS[each] for each in CONFIGS if each.startswith(name)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if "alpha" not in key})
    )
    torch.manual_seed(0)
    base = Model({LINEAR: nn.Linear(12, 16), OTHER: nn.Linear(16, 20), CONVOLUTION: nn.Conv2d(12, 16, 3)})
    again = PeftModel.from_pretrained(base, tmp_path).double()
    updates = read_lora(tmp_path).updates
    for module in NAMES:
        expected = again.get_submodule(f"base_model.model.{module}").get_delta_weight("default").detach().numpy()
        near(dense(updates[f"unet.{module}"]), expected)


def test_a_folder_with_a_pickle_is_read_unless_a_person_refuses_it(tmp_path):
    peft_folder(tmp_path, CONFIGS["LoRA, patterns"])
    expected = read_lora(tmp_path).updates
    path = tmp_path / "adapter_model.safetensors"
    torch.save({key: torch.from_numpy(x) for key, x in load_file(path).items()}, tmp_path / "adapter_model.bin")
    path.unlink()
    found = read_lora(tmp_path).updates
    assert all((found[m].B == expected[m].B).all() and (found[m].A == expected[m].A).all() for m in expected)
    with pytest.raises(LoraFileError, match=r"adapter_model\.(safetensors: no such file|bin: a pickle)"):
        read_lora(tmp_path, pickles=False)


def as_base(folder, model) -> None:
    """The model's own weights as a diffusers folder."""
    weights = {
        f"{module}.weight": model.get_submodule(f"base_model.model.{module}").base_layer.weight.detach().float().numpy()
        for module in NAMES
    }
    (folder / "unet").mkdir(parents=True)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_dora_is_what_peft_merges(tmp_path):
    model = peft_folder(tmp_path / "lora", CONFIGS["DoRA"])
    as_base(tmp_path / "base", model)
    updates = read_lora(tmp_path / "lora", base=str(tmp_path / "base")).updates
    for module in NAMES:
        layer = model.get_submodule(f"base_model.model.{module}")
        before = layer.base_layer.weight.detach().clone()
        layer.merge()
        near(dense(updates[f"unet.{module}"]), (layer.base_layer.weight.detach() - before).numpy(), 2e-6)


def test_dora_without_its_base_is_refused_with_that_reason(tmp_path):
    peft_folder(tmp_path, CONFIGS["DoRA"])
    with pytest.raises(LoraFileError, match=r"to_q.*: DoRA: the update is relative to the base.*weights\.base"):
        open_lora(tmp_path)


def test_dora_on_another_base_is_refused(tmp_path):
    model = peft_folder(tmp_path / "lora", CONFIGS["DoRA"])
    as_base(tmp_path / "base", model)
    path = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file(weights | {f"{LINEAR}.weight": np.ones((16, 13), np.float32)}, path)
    with pytest.raises(LoraFileError, match=r"16 × 12 here and 16 × 13 in the base"):
        read_lora(tmp_path / "lora", base=str(tmp_path / "base"))
    save_file({key: x for key, x in weights.items() if LINEAR not in key}, path)
    with pytest.raises(LoraFileError, match=r"weights\.base has no weight"):
        read_lora(tmp_path / "lora", base=str(tmp_path / "base"))


@pytest.mark.parametrize("along", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["LoRA", "LoCon"])
def test_dora_scale_of_kohya_and_lycoris_along_rows_or_columns(make, tmp_path, along, kind):
    """Newer LyCORIS and kohya keep a norm for each output, older LyCORIS for each input channel."""
    parts, delta = make.parts(kind, 0)
    W = np.random.default_rng(1).normal(size=(6, 4, 3, 3) if kind == "LoCon" else (6, 36)).astype(np.float32)
    size = (6, *[1] * (W.ndim - 1)) if along == "rows" else (1, W.shape[1], *[1] * (W.ndim - 2))
    m = np.random.default_rng(2).uniform(1, 3, size).astype(np.float32)
    tensors = {f"{KOHYA}.{part}": x for part, x in parts.items()}
    tensors |= {f"{KOHYA}.dora_scale": m, f"{KOHYA}.alpha": np.array(1, np.float32)}
    path = make.store(tmp_path / "x.safetensors", tensors)
    make.store(tmp_path / "base" / "unet" / "model.safetensors", {f"{CONV.removeprefix('unet.')}.weight": W})
    V = W.astype(np.float64) + 0.5 * delta.reshape(W.shape)
    axes = tuple(n for n in range(V.ndim) if n != (0 if along == "rows" else 1))
    expected = (
        m * V / np.linalg.norm(V.reshape(6, W.shape[1], -1), axis=(1, 2) if along == "rows" else (0, 2)).reshape(size)
    )
    assert len(axes) == V.ndim - 1
    update = read_lora(path, base=str(tmp_path / "base")).updates[CONV]
    near(dense(update), expected - W, 2e-6)


FUSED = "lora_unet_double_blocks_0_img_attn_qkv"
QKV = [f"transformer.transformer_blocks.0.attn.to_{n}" for n in "qkv"]


def fused_base(make, folder, width=8):
    rng = np.random.default_rng(3)
    W = {module: rng.normal(size=(width, width)).astype(np.float32) for module in QKV}
    (folder / "base/transformer").mkdir(parents=True)
    tensors = {f"{module.removeprefix('transformer.')}.weight": x for module, x in W.items()}
    make.store(folder / "base/transformer/diffusion_pytorch_model.safetensors", tensors)
    return np.concatenate(list(W.values())).astype(np.float64)


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_dora_of_a_fused_layer_is_of_the_rows_that_it_fuses(make, tmp_path, along):
    """BFL's qkv, whose base is three layers in a diffusers folder: Nerogar/OneTrainer#1079."""
    W = fused_base(make, tmp_path)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(24, 2)).astype(np.float32)
    m = rng.uniform(1, 3, (24, 1) if along == "rows" else (1, 8)).astype(np.float32)
    tensors = {f"{FUSED}.lora_down.weight": A, f"{FUSED}.lora_up.weight": B, f"{FUSED}.dora_scale": m}
    updates = read_lora(make.store(tmp_path / "x.safetensors", tensors), base=str(tmp_path / "base")).updates
    V = W + B.astype(np.float64) @ A
    expected = m * V / np.linalg.norm(V, axis=1 if along == "rows" else 0, keepdims=True) - W
    for n, module in enumerate(QKV):
        near(dense(updates[module]), expected[8 * n : 8 * n + 8], 2e-6)


def test_halves_that_stand_in_the_other_order_are_those_of_the_base_too(make, tmp_path):
    """BFL's final_layer.adaLN_modulation has (shift, scale), diffusers' norm_out.linear (scale, shift)."""
    W = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
    (tmp_path / "base/transformer").mkdir(parents=True)
    make.store(tmp_path / "base/transformer/model.safetensors", {"norm_out.linear.weight": W})
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    m = rng.uniform(1, 3, (8, 1)).astype(np.float32)
    name = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.dora_scale": m}
    (update,) = read_lora(make.store(tmp_path / "x.safetensors", tensors), base=str(tmp_path / "base")).updates.values()
    turned = np.concatenate([W[4:], W[:4]]).astype(np.float64)
    V = turned + B.astype(np.float64) @ A
    changed = m * V / np.linalg.norm(V, axis=1, keepdims=True) - turned
    near(dense(update), np.concatenate([changed[4:], changed[:4]]), 2e-6)


def test_a_bias_of_a_fused_layer_is_cut_as_its_weight_is(make, tmp_path):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(24, 2)).astype(np.float32)
    tensors = {f"{FUSED}.lora_down.weight": A, f"{FUSED}.lora_up.weight": B, f"{FUSED}.diff_b": np.arange(24.0)}
    linear1 = "lora_unet_single_blocks_0_linear1"  # q, k, v and four times as much
    tensors |= {f"{linear1}.diff": rng.normal(size=(56, 8)), f"{linear1}.diff_b": np.arange(56.0)}
    updates = read_lora(make.store(tmp_path / "x.safetensors", tensors)).updates
    for n, module in enumerate(QKV):
        near(dense(updates[f"{module}.bias"]), np.arange(8.0 * n, 8 * n + 8)[:, None])
    block = "transformer.single_transformer_blocks.0"
    near(dense(updates[f"{block}.attn.to_v.bias"]), np.arange(16.0, 24)[:, None])
    near(dense(updates[f"{block}.proj_mlp.bias"]), np.arange(24.0, 56)[:, None])
    short = tensors | {f"{FUSED}.diff_b": np.arange(23.0)}
    with pytest.raises(LoraFileError, match=r"img_attn_qkv\.diff_b: not the bias of its layer"):
        open_lora(make.store(tmp_path / "x.safetensors", short))


def test_a_magnitude_is_known_by_the_name_that_ai_toolkit_gives_it(make, tmp_path):
    parts, delta = make.parts("LoRA", 0)
    W = np.random.default_rng(1).normal(size=(6, 36)).astype(np.float32)
    m = np.random.default_rng(2).uniform(1, 3, 6).astype(np.float32)
    tensors = {f"{KOHYA}.{part}": x for part, x in parts.items()} | {f"{KOHYA}.magnitude": m}
    path = make.store(tmp_path / "x.safetensors", tensors)
    with pytest.raises(LoraFileError, match=r"DoRA: .*weights\.base"):
        open_lora(path)
    make.store(tmp_path / "base" / "unet" / "model.safetensors", {f"{CONV.removeprefix('unet.')}.weight": W})
    V = W + delta
    expected = m[:, None] * V / np.linalg.norm(V, axis=1, keepdims=True) - W
    near(dense(read_lora(path, base=str(tmp_path / "base")).updates[CONV]), expected, 2e-6)


# --- what stands beside an update


def test_whole_layers_beside_a_lora_are_left_out_and_said(make, tmp_path):
    """Classifier heads, norms, PEFT's modules_to_save and biases: values of the trained model, not differences."""
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    whole = {
        "base_model.model.score.weight": (3, 4), "base_model.model.score.bias": (3,), "unet.conv_norm_out.weight": (4,),
        f"base_model.model.{LINEAR}.base_layer.bias": (5,), "double_blocks.0.img_attn.norm.query_norm.scale": (4,),
    }  # fmt: skip
    tensors = load_file(path) | {key: np.ones(shape, np.float32) for key, shape in whole.items()}
    found = open_lora(make.store(path, tensors)).layout
    assert set(found.whole) == set(whole) and list(found.specs) == [Q]
    assert any(remark.startswith("holds 5 whole tensors besides, which are left out") for remark in found.remarks)


@pytest.mark.parametrize(
    "key", ["lora_C.weight", "lora_down2.weight", "adapter.weight", "dora_bias", "oft_diag.scale", "to_lora.up2.scale"]
)
def test_what_may_be_a_part_of_an_update_is_never_left_out(make, tmp_path, key):
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    with pytest.raises(LoraFileError, match=r"not a key of a format|OFT turns"):
        open_lora(make.store(path, load_file(path) | {f"{Q}.{key}": np.ones(2, np.float32)}))


def test_a_weight_under_a_name_of_kohya_is_never_left_out(make, tmp_path):
    """Nothing but updates has such names: a part that is spelt as no one does it must not be dropped."""
    parts, _ = make.parts("LoRA", 0)
    tensors = {f"{KOHYA}.{part}": x for part, x in parts.items()} | {
        f"{KOHYA}_2.down.weight": np.ones((2, 2), np.float32)
    }
    with pytest.raises(LoraFileError, match=r"conv1_2\.down\.weight: not a key of a format"):
        open_lora(make.store(tmp_path / "x.safetensors", tensors))


def test_an_alpha_of_the_header_means_nothing_for_two_whole_factors(make, tmp_path):
    parts, expected = make.parts("LoKr, both whole", 0)
    tensors = {f"{KOHYA}.{part}": x for part, x in parts.items()}
    path = make.store(
        tmp_path / "x.safetensors", tensors, {"ss_network_alpha": "9999999999", "ss_network_dim": "9999999999"}
    )
    near(dense(read_lora(path).updates[CONV]), expected)


def test_a_model_of_whole_layers_alone_is_no_lora(make, tmp_path):
    path = make.store(tmp_path / "x.safetensors", {f"unet.x.{n}.weight": np.ones(2, np.float32) for n in range(9)})
    with pytest.raises(LoraFileError, match=r"no update of a weight: 9 whole weights .* and 6 more"):
        open_lora(path)


def test_a_difference_of_a_modulation_is_an_update_of_its_own(make, tmp_path):
    """Wan's blocks have a parameter called modulation, whose difference trainers write as diff_m."""
    path = make.lora(tmp_path / "x.safetensors", {"diffusion_model.blocks.0.self_attn.q": (8, 8)}, 0)
    change = np.arange(48, dtype=np.float32).reshape(1, 6, 8)
    updates = read_lora(make.store(path, load_file(path) | {"diffusion_model.blocks.0.diff_m": change})).updates
    (module,) = [module for module in updates if module.endswith(".modulation")]
    near(dense(updates[module]), change.reshape(1, 48))


@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_a_file_that_states_two_scales_says_so(make, tmp_path, alpha):
    """diffusers multiplies the two, or refuses: a reader cannot know which was meant."""
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    plain, tensors = read_lora(path).updates[Q], load_file(path)
    tensors[f"{Q}.alpha"] = np.array(1.0, np.float32)
    said = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": alpha})}
    for header in (said, {"lora_alpha": str(alpha)}):
        file = open_lora(make.store(path, tensors, header))
        near(dense(file.update(Q)), 0.5 * dense(plain))
        assert any("another scale" in remark for remark in file.layout.remarks) == (alpha != 1)
    assert not open_lora(
        make.store(path, tensors, {"ss_network_alpha": "8"})
    ).layout.remarks  # of the network, not a module


# --- PEFT's configuration, where it is foreign


@pytest.mark.fault("LoRA files", "an adapter_config.json that is damaged", "refused, since the scale stands there")
def test_a_configuration_that_is_damaged_is_refused_since_it_holds_the_scale(tmp_path):
    peft_folder(tmp_path, CONFIGS["LoRA"])
    config = tmp_path / "adapter_config.json"
    sound = json.loads(config.read_text())
    for text in ("", "[]", "{", "[" * 100_000, " " * 2**21):
        config.write_text(text)
        with pytest.raises(LoraFileError, match=r"adapter_config\.json: not a configuration of PEFT"):
            read_lora(tmp_path)
    for change in ({"lora_alpha": "6"}, {"lora_alpha": -1}, {"lora_alpha": True}, {"lora_alpha": 1e300}):
        config.write_text(json.dumps(sound | change))
        with pytest.raises(LoraFileError, match="no sound number"):
            read_lora(tmp_path)
    for change in (
        {"alpha_pattern": {"(a+)+$": 2}},
        {"alpha_pattern": {"x" * 301: 2}},
        {"alpha_pattern": {".*" * 9 + "x": 2}},
    ):
        config.write_text(json.dumps(sound | change))
        with pytest.raises(LoraFileError, match="pattern that is not read here"):
            read_lora(tmp_path)
    for change in ([1], "x", 3):
        config.write_text(json.dumps(sound | {"alpha_pattern": change}))
        with pytest.raises(LoraFileError, match="alpha_pattern of its configuration is no mapping"):
            read_lora(tmp_path)
    config.write_text(json.dumps(sound | {"alpha_pattern": {"to_q": [1]}}))
    with pytest.raises(LoraFileError, match="no sound number"):
        read_lora(tmp_path)


@pytest.mark.fault(
    "LoRA files", "an adapter_config.json whose auto_mapping names a module that does harm", "read; nothing is imported"
)
def test_a_module_that_a_configuration_names_is_not_imported(tmp_path, monkeypatch):
    peft_folder(tmp_path / "lora", CONFIGS["LoRA"])
    mark = tmp_path / "mark"
    (tmp_path / "harmful_module.py").write_text(f"import os\n\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "lora/adapter_config.json"
    mapping = {"base_model_class": "Harm", "parent_library": "harmful_module"}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_mapping": mapping}))
    assert read_lora(tmp_path / "lora").updates and not mark.exists()
    importlib.import_module("harmful_module")
    assert mark.exists()  # the bait works


def test_a_configuration_in_the_header_holds_the_scale_of_its_model(make, tmp_path):
    """What diffusers writes as lora_adapter_metadata."""
    modules = {Q: (5, 3), "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (4, 4)}
    path = make.lora(tmp_path / "x.safetensors", modules, 0)
    said = {
        "unet.r": 2,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {},
        "text_encoder.r": 2,
        "text_encoder.lora_alpha": 1,
    }
    plain = read_lora(path).updates
    path = make.store(path, load_file(path), {"lora_adapter_metadata": json.dumps(said)})
    for (module, update), scale in zip(sorted(read_lora(path).updates.items()), (0.5, 4), strict=True):
        near(dense(update), scale * dense(plain[module]))
    for bad in ("{", "[]", "3"):
        make.store(path, load_file(path), {"lora_adapter_metadata": bad})
        with pytest.raises(LoraFileError, match="lora_adapter_metadata is not JSON"):
            read_lora(path)


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ({"alpha": "1", "rank": "2"}, 0.5),
        ({"lora_alpha": "8", "r": "2"}, 4),
        ({"unet.lora_alpha": "8"}, 4),
        ({"transformer.lora_alpha": "8"}, 1),  # of another model
        ({"network_alpha": "4", "rank": "2"}, 2),
        ({"lora_alpha": "None"}, 1),
        # kohya's converters put α into A and B, drop its tensors and keep the header: sd-scripts' convert_flux_lora.py,
        # musubi-tuner's convert_lora.py. Resizing and merging write no number there, whatever the tensors hold.
        ({"ss_network_alpha": "4.0", "ss_network_dim": "2"}, 1),
        ({"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"}, 1),
        ({"lora_alpha": "0"}, 0),  # as PEFT has it: nothing
    ],
    ids=str,
)
def test_an_alpha_that_stands_in_the_header_alone_is_the_scale(make, tmp_path, header, scale):
    """huggingface/diffusers#14408, Comfy-Org/ComfyUI#15830: α in the metadata, none among the tensors."""
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    plain = read_lora(path).updates[Q]
    near(dense(read_lora(make.store(path, load_file(path), header)).updates[Q]), scale * dense(plain))


def test_an_alpha_among_the_tensors_is_the_scale_whatever_the_header_says(make, tmp_path):
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    plain, tensors = read_lora(path).updates[Q], load_file(path)
    tensors[f"{Q}.alpha"] = np.array(1.0, np.float32)
    near(dense(read_lora(make.store(path, tensors, {"ss_network_alpha": "8"})).updates[Q]), 0.5 * dense(plain))


@pytest.mark.parametrize("value", ["many", "nan", "-1", "1e9"])
def test_an_alpha_of_the_header_that_is_no_sound_number_is_refused(make, tmp_path, value):
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    with pytest.raises(LoraFileError, match=r"lora_alpha is no number|no sound number"):
        read_lora(make.store(path, load_file(path), {"lora_alpha": value}))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"init_lora_weights": "pissa"}, "began as a part of the base's own weights"),
        ({"init_lora_weights": "pissa_niter_16"}, "began as a part of the base's own weights"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "began as a part of the base's own weights"),
        ({"init_lora_weights": "loftq"}, "began as a part of the base's own weights"),
        ({"target_parameters": ["attn1.to_q.w"], "rank_pattern": {"to_q": 1}}, "several experts"),
        ({"use_bdlora": {"nblocks": "two"}}, "block-diagonal"),
    ],
    ids=str,
)
def test_what_is_no_change_of_the_base_by_itself_is_refused_by_its_configuration(make, tmp_path, said, reason):
    """huggingface/peft#1929: unconverted, A and B hold the base's first singular directions."""
    path = make.lora(tmp_path / "adapter_model.safetensors", {Q: (5, 3)}, 0)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2} | said))
    with pytest.raises(LoraFileError, match=reason):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    header = {f"unet.{key}": value for key, value in ({"r": 2, "lora_alpha": 2} | said).items()}
    make.store(path, load_file(path), {"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(LoraFileError, match=reason):
        read_lora(path)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_starts_that_leave_the_base_alone_are_read(make, tmp_path, start):
    make.lora(tmp_path / "adapter_model.safetensors", {Q: (5, 3)}, 0)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2, "init_lora_weights": start}))
    assert set(read_lora(tmp_path).updates) == {Q}


def test_a_pattern_with_an_anchor_is_of_the_beginning_of_the_name(make, tmp_path):
    """PEFT matches (.*\\.)?(KEY)$: "^to_q" is a module of that very name and no other; KEY is also of inner ones."""
    path = make.lora(tmp_path / "adapter_model.safetensors", {Q: (5, 3)}, 0)
    plain = read_lora(path).updates[Q]
    name = Q.removeprefix("unet.")
    for pattern, scale in (("to_q", 4), ("^to_q", 1), (f"^{name}", 4), (name, 4), (f"^{name.split('.', 1)[1]}", 1)):
        said = {"r": 2, "lora_alpha": 2, "alpha_pattern": {pattern: 8}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        near(dense(read_lora(tmp_path).updates[Q]), scale * dense(plain))


def test_patterns_are_of_the_names_that_the_file_itself_has(make, tmp_path):
    """A PEFT folder of a model in its authors' names: the pattern says those, and not ours."""
    theirs = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    path = make.lora(tmp_path / "adapter_model.safetensors", {f"base_model.model.{theirs}": (320, 320)}, 0)
    (module, plain), *none = read_lora(path).updates.items()
    assert module != theirs and not none
    said = {"r": 2, "lora_alpha": 2, "alpha_pattern": {f"^{theirs}": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    near(dense(read_lora(tmp_path).updates[module]), 4 * dense(plain))


# --- what is no update by itself


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"oft_blocks": (2, 3, 3)}, "OFT, LyCORIS: the update turns the base's weights; name a diffusers folder"),
        ({"oft_blocks": (2, 3, 3), "alpha": ()}, "OFT, LyCORIS: the update turns the base's weights"),
        ({"a1.weight": (2, 2), "alpha": ()}, "GLoRA scales the base's weights"),
        ({"on_input": (), "weight": (6,)}, "IA3, LyCORIS: the update scales the base's weights"),
        ({"vera_lambda_b": (6,), "vera_lambda_d": (2,)}, "VeRA that was saved without its shared matrices"),
        ({"psoft_R.weight": (6,)}, "PSOFT turns the base's singular directions"),
        ({"frod_lambda_l": (6,)}, "FRoD's U is made of all the base's weights"),
        ({"something": (2, 2)}, "not a key of a format"),
    ],
)
def test_a_kind_that_cannot_be_an_update_is_refused_with_its_reason_alone(make, tmp_path, parts, reason):
    tensors = {f"{KOHYA}.{part}": np.ones(shape, np.float32) for part, shape in parts.items()}
    with pytest.raises(LoraFileError, match=reason) as caught:
        open_lora(make.store(tmp_path / "x.safetensors", tensors))
    assert "half a pair" not in str(caught.value)


def test_learnt_tokens_beside_a_lora_are_left_out_and_said(make, tmp_path):
    path = make.lora(tmp_path / "x.safetensors", {Q: (5, 3)}, 0)
    tensors = load_file(path) | {"bundle_emb.word.string_to_param.*": np.ones((1, 8), np.float32), "clip_l": np.ones(4)}
    file = open_lora(make.store(path, tensors))
    assert file.layout.tokens == ("bundle_emb.word.string_to_param.*", "clip_l") and list(file.layout.specs) == [Q]


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("LoHa", "hada_w2_b"), ("LoHa, Tucker", "hada_t2"), ("LoKr", "lokr_w1_a"), ("LoKr, Tucker", "lokr_w2_b"),
        ("LoCon", "lora_up.weight"), ("Tucker", "lora_down.weight"),
    ],
)  # fmt: skip
def test_an_update_that_is_not_whole_is_refused_by_its_name(make, tmp_path, kind, missing):
    parts, _ = make.parts(kind, 0)
    del parts[missing]
    path = make.store(tmp_path / "x.safetensors", {f"{KOHYA}.{part}": x for part, x in parts.items()})
    with pytest.raises(LoraFileError, match=rf"{KOHYA}: (half a pair|not a whole).*missing"):
        open_lora(path)


@pytest.mark.parametrize("kinds", [("LoRA", "LoHa"), ("LoRA", "full"), ("LoHa", "LoKr"), ("LoKr", "LoKr, both whole")])
def test_parts_of_several_kinds_are_refused(make, tmp_path, kinds):
    parts = make.parts(kinds[0], 0)[0] | make.parts(kinds[1], 0)[0]
    path = make.store(tmp_path / "x.safetensors", {f"{KOHYA}.{part}": x for part, x in parts.items()})
    with pytest.raises(LoraFileError, match=f"{KOHYA}: (parts of several kinds|not a whole)"):
        open_lora(path)


@pytest.mark.parametrize("seed", range(40))
def test_factors_that_do_not_multiply_are_refused(make, tmp_path, seed):
    """One side of one part longer by one: read only where the update is then of another size, and sound."""
    kind = make.kinds[seed % len(make.kinds)]
    parts, _ = make.parts(kind, seed)
    rng = np.random.default_rng(seed)
    name = sorted(parts)[rng.integers(len(parts))]
    shape = list(parts[name].shape)
    shape[rng.integers(len(shape))] += 1
    parts[name] = np.ones(shape, np.float32)
    path = make.store(tmp_path / "x.safetensors", {f"{KOHYA}.{part}": x for part, x in parts.items()})
    try:
        (update,) = read_lora(path).updates.values()
    except LoraFileError as error:
        assert "do not multiply" in str(error)  # noqa: PT017
    else:
        assert dense(update).shape == update.shape == open_lora(path).layout.specs[CONV].shape
