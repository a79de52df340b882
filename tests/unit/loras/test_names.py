"""Names of modules against diffusers' own models and converters; and where a module sits."""

import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_unet_lora_key,
    _convert_xlabs_flux_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from safetensors.numpy import load_file

from lora_atlas.loras.factors import expanded
from lora_atlas.loras.families import family
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora
from lora_atlas.loras.names import block, component, place, places

UNETS = {  # what the published models' config.json say
    "SD1.x": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD2.x": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "SDXL": {
        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def unets() -> dict[str, UNet2DConditionModel]:
    """The three UNets at full size, without memory."""
    with torch.device("meta"):
        return {name: UNet2DConditionModel.from_config(config) for name, config in UNETS.items()}


def layers(unet) -> dict[str, tuple[int, ...]]:
    """Every Linear and Conv2d of a model, and the shape of its weight."""
    return {
        name: tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


def dense(update) -> np.ndarray:
    plain = expanded(update)
    return plain.B.astype(np.float64) @ plain.A.astype(np.float64)


# --- Stable Diffusion


@pytest.mark.parametrize("name", UNETS)
def test_every_layer_of_a_unet_is_found_again_in_every_spelling(unets, name):
    modules = layers(unets[name])
    assert len(modules) > 250
    for module in modules:
        underscored = module.replace(".", "_")
        for spelling in (
            f"unet.{module}", module, f"lora_unet_{underscored}", f"lycoris_{underscored}", f"base_model.model.{module}"
        ):  # fmt: skip
            found = place(spelling)
            assert found is not None and found.modules == (f"unet.{module}",) and found.rows is None, spelling


@pytest.mark.parametrize("name", UNETS)
def test_no_two_layers_of_a_unet_share_an_underscored_name(unets, name):
    modules = layers(unets[name])
    assert len({place(f"lora_unet_{m.replace('.', '_')}").modules for m in modules}) == len(modules)


@pytest.mark.parametrize("name", UNETS)
def test_a_full_file_of_a_unet_is_of_its_family(unets, name):
    shapes = {f"unet.{m}": (s[0], int(np.prod(s[1:]))) for m, s in layers(unets[name]).items()}
    assert family(shapes) == (name, None)


def sgm(module: str, levels: int) -> str:
    """Stability's name of a diffusers layer, by the order in which the two walk through a UNet."""
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", module)
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    if match:
        side, level, kind, number, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{3 * level + 3}.0.op"
        if kind == "upsamplers":  # after the attention, where there is one
            return f"output_blocks.{3 * level + 2}.{2 if has_attention(level, levels) else 1}.conv"
        at = 3 * level + number + (side == "down")
        inner = resnet[inner] if kind == "resnets" else inner
        return f"{'input' if side == 'down' else 'output'}_blocks.{at}.{int(kind == 'attentions')}.{inner}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{resnet[match[3]]}"
    return {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    }[module]  # fmt: skip


def has_attention(level: int, levels: int) -> bool:
    return level < 2 if levels == 3 else level > 0


@pytest.mark.parametrize("name", UNETS)
def test_every_layer_is_found_by_stabilitys_name(unets, name):
    levels = len(unets[name].config.block_out_channels)
    names = {}
    for module in layers(unets[name]):
        theirs = sgm(module, levels)
        assert names.setdefault(theirs, module) == module
        for spelling in (f"lora_unet_{theirs.replace('.', '_')}", f"diffusion_model.{theirs}"):
            found = place(spelling)
            assert found is not None and found.modules == (f"unet.{module}",), spelling
            assert found.naming.endswith("-sgm")


def test_stabilitys_names_of_sdxl_are_read_as_diffusers_reads_them(unets):
    unet = unets["SDXL"]
    keys = {f"lora_unet_{sgm(m, 3).replace('.', '_')}.lora_down.weight": m for m in layers(unet)}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(keys), unet.config)
    disagree = []
    for key, module in mapped.items():
        theirs = _convert_unet_lora_key(key)
        theirs = re.sub(r"(_lora|\.lora)\.down\.weight$", "", theirs).replace(".processor", "")
        theirs = re.sub(r"(attn\d\.to_out)$", r"\1.0", theirs)
        theirs = {"time_emb_proj.1": "time_emb_proj"}.get(theirs, theirs)
        if theirs != module:
            disagree.append((module, theirs))
    assert disagree == []  # ours are `module`, as the test above shows


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_w", "lora_unet_down_blocks_0__attentions",
        "lora_unet_", "lora_unet_input_blocks_4_3_proj_in", "lora_unet_input_blocks_4_1_in_layers_2",
        "lora_unet_middle_block_3_proj_in", "lora_unet_input_blocks_4_0_proj_in",
        "lora_unet_double_blocks_0_img_attn_xyz", "lora_unet_joint_blocks_0_x_block",
        "lora_te1_text_model_encoder_layers_0_", "unet.../../x", "unet.", "unet..a", "unet.a b", "unet.\u0660",
        "lycoris_x",
    ],
)  # fmt: skip
def test_a_name_that_is_not_understood_is_no_place(key):
    assert place(key) is None


# --- text encoders

CLIP = "text_model.encoder.layers"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_te_text_model_encoder_layers_3_mlp_fc1", f"text_encoder.{CLIP}.3.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj", f"text_encoder.{CLIP}.0.self_attn.out_proj"),
        ("lora_te2_text_model_encoder_layers_31_self_attn_q_proj", f"text_encoder_2.{CLIP}.31.self_attn.q_proj"),
        ("lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q"),
        ("lora_te3_encoder_block_9_layer_1_layer_norm", "text_encoder_3.encoder.block.9.layer.1.layer_norm"),
        # By its role, until the family of the file is known.
        (f"text_encoders.clip_l.transformer.{CLIP}.1.mlp.fc2", f"text_encoder_clip_l.{CLIP}.1.mlp.fc2"),
        (f"text_encoders.clip_g.transformer.{CLIP}.1.mlp.fc2", f"text_encoder_clip_g.{CLIP}.1.mlp.fc2"),
        ("text_encoders.clip_g.transformer.text_projection", "text_encoder_clip_g.text_projection"),
        ("text_encoders.t5xxl.transformer.shared", "text_encoder_t5.shared"),
        ("text_encoders.qwen3_4b.transformer.model.layers.1.mlp.up_proj", "text_encoder_llm.layers.1.mlp.up_proj"),
        ("lora_te_layers_7_post_feedforward_layernorm", "text_encoder.layers.7.post_feedforward_layernorm"),
        ("text_encoder_2.encoder.layers.0.self_attn.k_proj", f"text_encoder_2.{CLIP}.0.self_attn.k_proj"),
        (f"base_model.model.{CLIP}.0.self_attn.k_proj", f"text_encoder.{CLIP}.0.self_attn.k_proj"),
    ],
)  # fmt: skip
def test_layers_of_text_encoders(name, module):
    assert place(name).modules == (module,)


def test_text_encoders_that_a_file_does_not_tell_apart_are_told_by_their_width(make, tmp_path):
    """A PEFT folder of SDXL's second text encoder names it as if it were the first."""
    name = "base_model.model.text_model.encoder.layers.{}.self_attn.q_proj"
    for width, model in ((1280, "text_encoder_2"), (768, "text_encoder")):
        path = make.lora(tmp_path / "x.safetensors", {name.format(n): (width, width) for n in range(2)}, 0)
        assert {m.partition(".")[0] for m in read_lora(path).updates} == {model}


def test_parts_of_the_text_encoder_are_kept_apart_from_the_unet(make, tmp_path):
    modules = make.sd1() | {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
    path = make.store(
        tmp_path / "x.safetensors", make.kohya(load_file(make.lora(tmp_path / "y.safetensors", modules, 0)))
    )
    file = open_lora(path)
    assert set(file.layout.specs) == set(modules) and file.layout.naming == "kohya"
    assert {component(m) for m in file.layout.specs} == {"self_attention", "cross_attention", "text_encoder"}


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_attention_processors_of_old_diffusers(make, tmp_path, prefix):
    rng, tensors, expected = np.random.default_rng(0), {}, {}
    for n, to in enumerate(("q", "k", "v", "out")):
        name = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn{1 + n % 2}.processor.to_{to}_lora"
        a, b = rng.normal(size=(2, 8)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
        tensors |= {f"{name}.down.weight": a, f"{name}.up.weight": b}
        leaf = "to_out.0" if to == "out" else f"to_{to}"
        expected[f"unet.mid_block.attentions.0.transformer_blocks.0.attn{1 + n % 2}.{leaf}"] = b @ a
    file = make.store(tmp_path / "x.safetensors", tensors)
    assert open_lora(file).layout.naming == "diffusers-processor"
    updates = read_lora(file).updates
    assert set(updates) == set(expected)
    assert all(np.allclose(dense(updates[m]), expected[m], rtol=1e-5, atol=1e-5) for m in expected)


def test_text_encoders_of_old_diffusers(make, tmp_path):
    rng, layer = np.random.default_rng(0), "text_encoder.text_model.encoder.layers.3"
    tensors = {}
    for name in ("self_attn.to_q_lora", "self_attn.to_out_lora", "mlp.fc1.lora_linear_layer"):
        tensors[f"{layer}.{name}.down.weight"] = rng.normal(size=(2, 8)).astype(np.float32)
        tensors[f"{layer}.{name}.up.weight"] = rng.normal(size=(8, 2)).astype(np.float32)
    updates = read_lora(make.store(tmp_path / "x.safetensors", tensors)).updates
    assert set(updates) == {f"{layer}.{name}" for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")}
    assert (tensors[f"{layer}.self_attn.to_q_lora.down.weight"] == updates[f"{layer}.self_attn.q_proj"].A).all()


def test_one_module_under_two_names_is_refused(make, tmp_path):
    one, other = "unet.mid_block.attentions.0.proj_in", "lora_unet_mid_block_attentions_0_proj_in"
    tensors = load_file(make.lora(tmp_path / "a.safetensors", {one: (4, 4)}, 0))
    tensors |= load_file(make.lora(tmp_path / "b.safetensors", {other: (4, 4)}, 0, down="lora_down", up="lora_up"))
    with pytest.raises(LoraFileError, match=r"a second update of unet\.mid_block\.attentions\.0\.proj_in"):
        read_lora(make.store(tmp_path / "x.safetensors", tensors))


# --- FLUX and SD3

H = 6  # the width of small transformers; the converter asks for FLUX's own where it splits linear1
FLUX = {
    "double_blocks.0.img_attn.qkv": (3 * H, H), "double_blocks.0.txt_attn.qkv": (3 * H, H),
    "double_blocks.1.img_attn.proj": (H, H), "double_blocks.0.txt_attn.proj": (H, H),
    "double_blocks.0.img_mlp.0": (4 * H, H), "double_blocks.0.img_mlp.2": (H, 4 * H),
    "double_blocks.0.txt_mlp.0": (4 * H, H), "double_blocks.0.txt_mlp.2": (H, 4 * H),
    "double_blocks.18.img_mod.lin": (6 * H, H), "double_blocks.0.txt_mod.lin": (6 * H, H),
    "single_blocks.0.linear1": (21504, 3072), "single_blocks.37.linear2": (3072, 15360),
    "single_blocks.0.modulation.lin": (3 * H, H), "img_in": (H, 5), "txt_in": (H, 7), "time_in.in_layer": (H, 4),
    "time_in.out_layer": (H, H), "vector_in.in_layer": (H, 4), "vector_in.out_layer": (H, H),
    "guidance_in.in_layer": (H, 4), "guidance_in.out_layer": (H, H), "final_layer.linear": (8, H),
    "final_layer.adaLN_modulation.1": (2 * H, H),
}  # fmt: skip


def pairs(tensors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module → B and A, of a state dict."""
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            factors = tensors[key.replace("lora_A", "lora_B")], tensors[key]
            found[key.removesuffix(".lora_A.weight")] = tuple(x.double().numpy() for x in factors)
    return found


def norm(B: np.ndarray, A: np.ndarray) -> float:
    """‖BA‖ without BA, which for a layer of FLUX is half a gigabyte."""
    return float(np.linalg.norm(np.linalg.qr(B, "r") @ np.linalg.qr(A.T, "r").T))


def agree(updates, expected) -> None:
    """Modules and updates are those of diffusers, which leaves "transformer." out at times."""
    expected = {f"transformer.{m.removeprefix('transformer.')}": factors for m, factors in expected.items()}
    assert set(updates) == set(expected)
    for module, (B, A) in expected.items():
        found = expanded(updates[module])
        assert found.shape == (len(B), A.shape[1])
        difference = norm(np.concatenate([found.B, -B], 1), np.concatenate([found.A, A]))
        assert difference <= 1e-6 * norm(B, A), module


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_flux_of_kohya_is_split_as_diffusers_splits_it(make, tmp_path, alpha):
    names = {f"lora_unet_{name.replace('.', '_')}": shape for name, shape in FLUX.items()}
    path = make.lora(tmp_path / "x.safetensors", names, 0, down="lora_down", up="lora_up")
    tensors = load_file(path)
    if alpha:  # diffusers drops the α of the final layer
        tensors |= {f"{name}.alpha": np.array(alpha, np.float32) for name in names if "final_layer" not in name}
    path = make.store(path, tensors)
    theirs = _convert_kohya_flux_lora_to_diffusers({key: torch.from_numpy(x) for key, x in tensors.items()})
    lora = read_lora(path)
    agree(lora.updates, pairs(theirs))
    assert len(lora.updates) == len(FLUX) + 2 + 2 + 3
    assert open_lora(path).layout.naming == "kohya"


def test_flux_in_black_forest_labs_own_names(make, tmp_path):
    dotted = make.lora(tmp_path / "x.safetensors", {f"diffusion_model.{m}": s for m, s in FLUX.items()}, 0)
    under = {f"lora_unet_{m.replace('.', '_')}": s for m, s in FLUX.items()}
    kohya = read_lora(make.lora(tmp_path / "y.safetensors", under, 0, down="lora_down", up="lora_up")).updates
    found = read_lora(dotted).updates
    assert set(found) == set(kohya) and open_lora(dotted).layout.naming == "comfyui"
    assert all((found[m].A == kohya[m].A).all() and (found[m].B == kohya[m].B).all() for m in found)


def test_flux_of_ai_toolkit_and_of_onetrainer_name_diffusers_modules(make, tmp_path):
    modules = {
        "transformer.transformer_blocks.0.attn.to_q": (H, H),
        "transformer.transformer_blocks.0.attn.add_k_proj": (H, H),
        "transformer.transformer_blocks.0.ff_context.net.0.proj": (4 * H, H),
        "transformer.norm_out.linear": (2 * H, H), "transformer.single_transformer_blocks.37.proj_mlp": (4 * H, H),
        "transformer.x_embedder": (H, 4), "transformer.time_text_embed.guidance_embedder.linear_1": (H, H),
    }  # fmt: skip
    plain = make.lora(tmp_path / "x.safetensors", modules, 0)
    assert set(open_lora(plain).layout.specs) == set(modules)
    under = {f"lora_{m.replace('.', '_')}": s for m, s in modules.items()}
    other = make.lora(tmp_path / "y.safetensors", under, 0, down="lora_down", up="lora_up")
    assert set(open_lora(other).layout.specs) == set(modules)


def test_flux_of_xlabs_is_split_as_diffusers_splits_it(make, tmp_path):
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in {
        "double_blocks.0.processor.qkv_lora1": (3 * H, H), "double_blocks.0.processor.qkv_lora2": (3 * H, H),
        "double_blocks.0.processor.proj_lora1": (H, H), "double_blocks.0.processor.proj_lora2": (H, H),
        "single_blocks.1.processor.qkv_lora": (3 * H, H), "single_blocks.1.processor.proj_lora": (H, 5 * H),
    }.items():  # fmt: skip
        tensors[f"{name}.down.weight"] = rng.normal(size=(2, shape[1])).astype(np.float32)
        tensors[f"{name}.up.weight"] = rng.normal(size=(shape[0], 2)).astype(np.float32)
    path = make.store(tmp_path / "x.safetensors", tensors)
    theirs = _convert_xlabs_flux_lora_to_diffusers({key: torch.from_numpy(x) for key, x in tensors.items()})
    agree(read_lora(path).updates, pairs(theirs))
    assert open_lora(path).layout.naming == "xlabs"


def test_sd3_of_kohya_is_split_by_rows(make, tmp_path):
    names = {
        "x_block.attn.qkv": (("attn.to_q", "attn.to_k", "attn.to_v"), (3 * H, H)),
        "context_block.attn.qkv": (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), (3 * H, H)),
        "x_block.attn2.qkv": (("attn2.to_q", "attn2.to_k", "attn2.to_v"), (3 * H, H)),
        "x_block.attn.proj": (("attn.to_out.0",), (H, H)), "context_block.attn.proj": (("attn.to_add_out",), (H, H)),
        "x_block.mlp.fc1": (("ff.net.0.proj",), (4 * H, H)),
        "context_block.mlp.fc2": (("ff_context.net.2",), (H, 4 * H)),
        "x_block.adaLN_modulation.1": (("norm1.linear",), (6 * H, H)),
    }  # fmt: skip
    keys = {f"lora_unet_joint_blocks_3_{n.replace('.', '_')}": shape for n, (_, shape) in names.items()}
    path = make.lora(tmp_path / "x.safetensors", keys, 0, down="lora_down", up="lora_up")
    tensors = load_file(path)
    tensors |= {f"{name}.alpha": np.array(1, np.float32) for name in keys}
    updates, expected = read_lora(make.store(path, tensors)).updates, {}
    for name, (modules, _) in names.items():
        key = f"lora_unet_joint_blocks_3_{name.replace('.', '_')}"
        A, B = (tensors[f"{key}.lora_{way}.weight"].astype(np.float64) for way in ("down", "up"))
        for module, rows in zip(modules, np.split(B / 2, len(modules)), strict=True):
            expected[f"transformer.transformer_blocks.3.{module}"] = rows, A
    agree(updates, expected)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, both whole"])
def test_a_fused_layer_of_any_kind_is_split(make, tmp_path, kind):
    """6 rows are 3 × 2, and the blocks of a Kronecker product are of 3."""
    parts, expected = make.parts(kind, 0)
    path = make.store(
        tmp_path / "x.safetensors", {f"lora_unet_double_blocks_0_img_attn_qkv.{part}": x for part, x in parts.items()}
    )
    updates = read_lora(path).updates
    found = np.concatenate([dense(updates[f"transformer.transformer_blocks.0.attn.to_{n}"]) for n in "qkv"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("double_blocks.0.img_attn.qkv", (7, 4)),
        ("single_blocks.0.linear1", (12, 4)),
        ("final_layer.adaLN_modulation.1", (7, 4)),
    ],
)
def test_a_fused_layer_of_a_wrong_height_is_refused(make, tmp_path, name, shape):
    # A layer that FLUX.1 alone has: linear1 of a width of its own could be of FLUX.2, where it is one module.
    modules = {name: shape, "single_blocks.0.modulation.lin": (12, 4)}
    path = make.lora(tmp_path / "x.safetensors", {f"diffusion_model.{m}": s for m, s in modules.items()}, 0)
    with pytest.raises(LoraFileError, match=r"is not the fused layer of|have no two halves"):
        open_lora(path)


# --- cloneofsimo's numbers


def walked(unet) -> list[str]:
    """Layers in the order in which diffusers 0.10 made them and cloneofsimo/lora walked them: its transformer block had
    attn1, ff, attn2, in this order; its UNet the middle block last."""
    inner = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj"]
    inner += ["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
    blocks = [
        name
        for side in ("down_blocks", "up_blocks", "mid_block")
        for name, layer in unet.named_modules()
        if type(layer).__name__ == "BasicTransformerBlock" and name.startswith(side)
    ]
    return [f"{block}.{leaf}" for block in blocks for leaf in inner]


def numbered(make, path, modules, shapes, key="unet:{}:{}"):
    tensors = {}
    for n, module in enumerate(modules):
        tensors[key.format(n, "down")] = np.full((1, shapes[module][1]), n + 1, np.float32)
        tensors[key.format(n, "up")] = np.ones((shapes[module][0], 1), np.float32)
    return make.store(path, tensors)


@pytest.mark.parametrize("name", ["SD1.x", "SD2.x"])
@pytest.mark.parametrize("gates", [True, False])
def test_numbered_modules_are_those_of_a_walk_through_the_unet(unets, make, tmp_path, name, gates):
    shapes = layers(unets[name])
    modules = [m for m in walked(unets[name]) if gates or ".ff." not in m]
    assert len(modules) == (144 if gates else 128)
    path = numbered(make, tmp_path / "x.safetensors", modules, shapes)
    file = open_lora(path)
    assert file.layout.naming == "cloneofsimo" and set(file.layout.specs) == {f"unet.{m}" for m in modules}
    for n, module in enumerate(modules):
        assert file.update(f"unet.{module}").A[0, 0] == n + 1
    assert family({m: spec.shape for m, spec in file.layout.specs.items()}) == (name, None)


def walked_since(unet, extended) -> list[str]:
    """Layers as cloneofsimo/lora walks a UNet of a diffusers after 0.10: every module of these classes in the model's
    own order, and in each its linear layers and, extended, its convolutions."""
    targets = {"Attention", "GEGLU"} | ({"ResnetBlock2D"} if extended else set())
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if extended else torch.nn.Linear
    return [
        f"{name}.{inner}" for name, module in unet.named_modules() if type(module).__name__ in targets
        for inner, layer in module.named_modules() if isinstance(layer, kinds)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["SD1.x", "SD2.x"])
@pytest.mark.parametrize("extended", [False, True])
def test_a_later_walk_is_told_by_the_shapes(unets, make, tmp_path, name, extended):
    """The feed-forward gate comes after cross-attention there; the injection is `inject_trainable_lora(_extended)`."""
    shapes = {m: (s[0], int(np.prod(s[1:]))) for m, s in layers(unets[name]).items()}
    modules = walked_since(unets[name], extended)
    assert len(modules) == (224 if extended else 144)
    file = open_lora(numbered(make, tmp_path / "x.safetensors", modules, shapes))
    for n, module in enumerate(modules):
        assert file.update(f"unet.{module}").A[0, 0] == n + 1
    assert family({m: spec.shape for m, spec in file.layout.specs.items()}) == (name, None)


@pytest.mark.parametrize(("width", "layers_of_text", "name"), [(768, 12, "other"), (1024, 23, "SD2.x")])
def test_a_pickled_list_of_a_text_encoder_is_told_by_its_shapes(tmp_path, width, layers_of_text, name):
    """cloneofsimo saves it as a list of its own; every layer of an encoder's attention is square, and of one width."""
    tensors = []
    for n in range(4 * layers_of_text):
        tensors += [torch.ones(width, 1), torch.full((1, width), float(n + 1))]
    torch.save(tensors, tmp_path / "x.text_encoder.pt")
    file = open_lora(tmp_path / "x.text_encoder.pt", pickles=True)
    at = "text_encoder.text_model.encoder.layers.{}.self_attn.{}"
    for n, leaf in enumerate(("k_proj", "v_proj", "q_proj", "out_proj")):  # in the order of transformers' CLIPAttention
        assert file.update(at.format(1, leaf)).A[0, 0] == 4 + n + 1
    assert family({m: spec.shape for m, spec in file.layout.specs.items()})[0] == name


def test_a_pickled_list_is_numbered_by_its_order(unets, tmp_path):
    """cloneofsimo's first format: up and down of one module after another, without any name."""
    shapes = layers(unets["SD1.x"])
    modules = [m for m in walked(unets["SD1.x"]) if ".ff." not in m]
    tensors = []
    for n, module in enumerate(modules):
        tensors += [torch.full((shapes[module][0], 1), n + 1.0), torch.ones(1, shapes[module][1])]
    torch.save(tensors, tmp_path / "x.pt")
    file = open_lora(tmp_path / "x.pt", pickles=True)
    assert list(file.layout.specs) == sorted(f"unet.{m}" for m in modules)
    for n, module in enumerate(modules):
        assert file.update(f"unet.{module}").B[0, 0] == n + 1


def test_numbers_of_another_count_or_with_gaps_are_refused(unets, make, tmp_path):
    shapes = layers(unets["SD1.x"])
    modules = walked(unets["SD1.x"])
    with pytest.raises(LoraFileError, match="numbered modules, not as many as a Stable Diffusion"):
        open_lora(numbered(make, tmp_path / "x.safetensors", modules[:100], shapes))
    tensors = load_file(numbered(make, tmp_path / "x.safetensors", modules, shapes))
    moved = {key.replace("unet:143:", "unet:200:"): x for key, x in tensors.items()}
    with pytest.raises(LoraFileError, match="numbered modules"):
        open_lora(make.store(tmp_path / "y.safetensors", moved))


def test_real_numbered_files_have_the_shapes_of_the_walk(unets, real):
    names = {".pt": "SD2.x", ".safetensors": "SD1.x"}
    paths = [p for p in real.glob("cloneofsimo*") if p.suffix in names]
    assert len(paths) == 3
    for path in paths:
        shapes = {m: (s[0], int(np.prod(s[1:]))) for m, s in layers(unets[names[path.suffix]]).items()}
        specs = open_lora(path, pickles=True).layout.specs
        unet = {m.removeprefix("unet."): spec.shape for m, spec in specs.items() if m.startswith("unet.")}
        assert unet and all(shapes[m] == shape for m, shape in unet.items())
        assert all(spec.shape == (768, 768) for m, spec in specs.items() if m.startswith("text_encoder."))
        assert family({m: spec.shape for m, spec in specs.items()}) == (names[path.suffix], None)


# --- where a module sits


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # SD1.5
        ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", ("self_attention", "down")),
        ("unet.down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_out.0", ("cross_attention", "down")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_v", ("self_attention", "mid")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", ("feed_forward", "mid")),
        ("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k", ("cross_attention", "up")),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", ("feed_forward", "up")),
        ("unet.up_blocks.1.attentions.0.proj_in", ("projection", "up")),
        ("unet.mid_block.attentions.0.proj_out", ("projection", "mid")),
        ("unet.conv_in", ("convolution", "other")),
        ("unet.conv_out", ("convolution", "other")),
        ("unet.down_blocks.0.downsamplers.0.conv", ("convolution", "down")),
        ("unet.up_blocks.0.upsamplers.0.conv", ("convolution", "up")),
        ("unet.mid_block.resnets.1.conv2", ("convolution", "mid")),
        ("unet.down_blocks.1.resnets.0.conv_shortcut", ("convolution", "down")),
        ("unet.up_blocks.0.resnets.0.time_emb_proj", ("other", "up")),
        ("unet.time_embedding.linear_1", ("other", "other")),
        ("text_encoder.text_model.encoder.layers.11.self_attn.q_proj", ("text_encoder", "other")),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", ("text_encoder", "other")),
        # SDXL
        ("unet.down_blocks.1.attentions.1.transformer_blocks.1.attn1.to_out.0", ("self_attention", "down")),
        ("unet.mid_block.attentions.0.transformer_blocks.9.attn2.to_v", ("cross_attention", "mid")),
        ("unet.up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj", ("feed_forward", "up")),
        ("unet.down_blocks.2.attentions.0.proj_in", ("projection", "down")),
        ("unet.add_embedding.linear_2", ("other", "other")),
        ("text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj", ("text_encoder", "other")),
        # FLUX and SD3
        ("transformer.transformer_blocks.0.attn.to_q", ("joint_attention", "double")),
        ("transformer.transformer_blocks.0.attn.add_k_proj", ("joint_attention", "double")),
        ("transformer.transformer_blocks.0.attn2.to_q", ("self_attention", "double")),
        ("transformer.transformer_blocks.0.ff_context.net.2", ("feed_forward", "double")),
        ("transformer.transformer_blocks.0.norm1.linear", ("modulation", "double")),
        ("transformer.single_transformer_blocks.7.attn.to_v", ("joint_attention", "single")),
        ("transformer.single_transformer_blocks.7.proj_mlp", ("feed_forward", "single")),
        ("transformer.single_transformer_blocks.7.proj_out", ("feed_forward", "single")),
        ("transformer.proj_out", ("projection", "other")),
        # biases
        ("unet.mid_block.resnets.0.conv1.bias", ("convolution", "mid")),
        ("unet.mid_block.attentions.0.proj_in.bias", ("projection", "mid")),
        ("unet.conv_in.bias", ("convolution", "other")),
        # neither
        ("transformer.blocks.0.self_attn.q", ("other", "other")),
    ],
)
def test_components_and_blocks(module, expected):
    assert (component(module), block(module)) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q",
            ("down", "down_blocks.2", "down_blocks.2.attentions.1"),
        ),
        ("unet.up_blocks.10.resnets.0.conv1.bias", ("up", "up_blocks.10", "up_blocks.10.resnets.0")),
        ("unet.down_blocks.0.downsamplers.0.conv", ("down", "down_blocks.0")),
        ("unet.mid_block.attentions.0.proj_in", ("mid", "mid_block", "mid_block.attentions.0")),
        ("unet.mid_block.resnets.1.conv2", ("mid", "mid_block", "mid_block.resnets.1")),
        ("transformer.transformer_blocks.7.attn.to_q", ("double", "transformer_blocks.7")),
        ("transformer.single_transformer_blocks.37.proj_mlp", ("single", "single_transformer_blocks.37")),
        ("unet.conv_in", ("other",)),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", ("other",)),
    ],
)
def test_places_are_ever_closer(module, expected):
    assert places(module) == expected


@pytest.mark.parametrize("name", UNETS)
def test_places_of_every_layer_of_a_unet_lie_within_each_other(unets, name):
    for layer in layers(unets[name]):
        first, *closer = places(f"unet.{layer}")
        assert first == block(f"unet.{layer}") and (first == "other") == (not closer)
        for place_, outer in zip(closer, ["", *closer], strict=False):
            assert place_.startswith(outer) and (layer == place_ or layer.startswith(f"{place_}."))
        assert len(closer) == 2 or not re.search(r"attentions|resnets", layer)
