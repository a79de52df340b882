"""The table of released models' modules against the diffusers that is installed, and what is looked up in it."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lora_atlas.collection.inventory import Found, inventory, stem_of
from lora_atlas.loras.families import FAMILIES, belonging
from lora_atlas.loras.families.released import RELEASED, TABLE, folded, shapes, unfolded
from lora_atlas.loras.families.table import parsed, table
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora
from lora_atlas.loras.names import located, place

# One released size of each class; a whole table is made again by python -m lora_atlas.loras.families.released.
CLASSES = list({each.cls: each for each in RELEASED}.values())


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # of diffusers, on a class of its own
@pytest.mark.parametrize("each", CLASSES, ids=[each.cls.rpartition(".")[2] for each in CLASSES])
def test_the_table_is_what_diffusers_makes(each, monkeypatch):
    for layer in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Embedding):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)  # half the time, for numbers without memory
    rows = json.loads(TABLE.read_text())["released"]
    (row,) = [row for row in rows if (row["family"], row["variant"]) == (each.family, each.variant)]
    assert row["class"] == each.cls and row["modules"] == folded(shapes(each))


def test_every_released_model_is_in_the_table():
    rows = json.loads(TABLE.read_text())["released"]
    assert [(row["family"], row["variant"]) for row in rows] == [(each.family, each.variant) for each in RELEASED]
    assert TABLE.stat().st_size < 300_000


def test_folded_modules_unfold_again():
    modules = {f"a.{n}.b.{m}": (n // 3, m) for n in range(7) for m in (0, 2)} | {"c": (4,), "a.0": (3, 3)}
    ranges = dict(unfolded(folded(modules)))
    assert (
        ranges["a.1..2.b.0"] == (0, 0)
        and ranges["a.0"] == (3, 3)
        and ranges["a.3..5.b.2"] == (1, 2)
        and ranges["c"] == (4,)
    )


@pytest.mark.parametrize("arch", table().architectures, ids=lambda arch: arch.cls)
def test_no_two_modules_of_a_class_share_a_name_without_dots(arch):
    for flat, entries in arch.direct.items():
        for one in entries:
            digits = tuple(0 if a is None else min(a) for a in one.allowed)
            assert [e for e in entries if e.takes(digits)] == [one], flat


def test_a_name_of_the_authors_is_no_other_module_of_diffusers():
    """Where one name is in both, they mean the same: else a file could not be read without knowing its trainer."""
    for arch in table().architectures:
        for flat, entries in arch.names.items():
            taken = [e for e in entries if e.takes(tuple(1 if a is None else min(a) for a in entries[0].allowed))]
            assert len({e.modules for e in taken}) == 1 or arch.cls == "MochiTransformer3DModel", (arch.cls, flat)


@pytest.mark.parametrize("arch", table().architectures, ids=lambda arch: arch.cls)
def test_every_name_of_the_authors_is_the_module_of_its_line(arch):
    """In any block: Wan's norm3 is diffusers' norm2, and without its digit both are one name."""
    for theirs, ours, _ in arch._spelt():
        for block in ("0", "1", "20") if "#" in theirs else ("",):
            entry = arch.entry(*parsed(theirs.replace("#", block)))
            if entry is not None:  # a class may lack the module
                expected = tuple(module.replace("#", block) for module in ours)
                assert entry.named(parsed(theirs.replace("#", block))[1]) == expected, theirs


def lora(modules, seed=0, prefix="", *, joined=False):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (out, width) in modules.items():
        name = prefix + (name.replace(".", "_") if joined else name)
        tensors[f"{name}.lora_down.weight"] = rng.normal(size=(1, width)).astype(np.float32)
        tensors[f"{name}.lora_up.weight"] = rng.normal(size=(out, 1)).astype(np.float32)
    return tensors


def placed(tmp_path, tensors, metadata=None):
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    file = open_lora(tmp_path / "x.safetensors")
    found = {module: spec.shape for module, spec in file.layout.specs.items()}
    return set(found), belonging(found, metadata)


WAN = {"blocks.0.self_attn.q": (5120, 5120), "blocks.39.ffn.0": (13824, 5120)}


@pytest.mark.parametrize(
    ("prefix", "joined"),
    [
        ("", False), ("diffusion_model.", False), ("base_model.model.", False), ("lora_unet_", True),
        ("lora_unet_unet_", True), ("lora_unet_lora_unet_", True), ("lycoris_", True), ("pipe.dit.", False),
        ("base_model.model.diffusion_model.", False), ("transformer.diffusion_model.", False), ("transformer.", False),
    ],
)  # fmt: skip
def test_a_name_is_its_module_under_any_prefix(tmp_path, prefix, joined):
    modules, found = placed(tmp_path, lora(WAN, prefix=prefix, joined=joined))
    assert modules == {"transformer.blocks.0.attn1.to_q", "transformer.blocks.39.ffn.net.0.proj"}
    assert found.family == "Wan" and "T2V 14B" in found.variants


def test_the_second_transformer_of_a_pipeline_is_a_model_of_its_own(tmp_path):
    modules, found = placed(tmp_path, lora(WAN, prefix="transformer_2."))
    assert modules == {"transformer_2.blocks.0.attn1.to_q", "transformer_2.blocks.39.ffn.net.0.proj"}
    assert found.family == "Wan"


def test_both_stages_of_wan_in_one_file(tmp_path):
    """ai-toolkit with split_multistage_loras: false."""
    both = lora(WAN, prefix="diffusion_model.transformer_1.") | lora(WAN, prefix="diffusion_model.transformer_2.")
    modules, found = placed(tmp_path, both)
    leaves = ("blocks.0.attn1.to_q", "blocks.39.ffn.net.0.proj")
    assert modules == {f"{stage}.{leaf}" for stage in ("transformer", "transformer_2") for leaf in leaves}
    assert found.family == "Wan"


def test_norms_and_modulations_of_wan_do_not_hide_its_family(tmp_path):
    """As LightX2V's distillation LoRAs (Comfy-Org/ComfyUI#8922): differences of norms, biases, modulation beside."""
    change = {
        "blocks.0.norm3.diff": (5120,), "blocks.0.self_attn.norm_q.diff": (5120,), "head.diff_m": (1, 2, 5120),
        "blocks.0.self_attn.q.diff_b": (5120,), "blocks.0.diff_m": (1, 6, 5120),
    }  # fmt: skip
    tensors = lora(WAN, prefix="diffusion_model.")
    tensors |= {f"diffusion_model.{key}": np.ones(shape, np.float32) for key, shape in change.items()}
    modules, found = placed(tmp_path, tensors)
    assert found.family == "Wan" and found.remark is None and "T2V 14B" in found.variants
    assert {"transformer.blocks.0.norm2", "transformer.blocks.0.attn1.norm_q"} <= modules
    assert "transformer.blocks.0.attn1.to_q.bias" in modules


def test_motion_modules_as_they_were_published(tmp_path):
    """guoyww/AnimateDiff, against diffusers' names (scripts/convert_animatediff_motion_lora_to_diffusers.py)."""
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks"
    tensors = {}
    for n, to in ((0, "q"), (1, "out")):
        key = f"{block}.{n}.processor.to_{to}_lora"
        tensors[f"{key}.down.weight"] = np.ones((2, 320), np.float32)
        tensors[f"{key}.up.weight"] = np.ones((320, 2), np.float32)
    modules, found = placed(tmp_path, tensors)
    inner = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0"
    assert modules == {f"{inner}.attn1.to_q", f"{inner}.attn2.to_out.0"} and found.family == "AnimateDiff"


_T5 = "encoder.block.0.layer"
T5 = {f"{_T5}.0.SelfAttention.q": (4096, 4096), f"{_T5}.1.DenseReluDense.wi_0": (10240, 4096)}
CLIP_L = {"text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
LLAMA = {"layers.0.self_attn.q_proj": (4096, 4096), "layers.0.mlp.gate_proj": (14336, 4096)}
OF_FLUX = {"transformer_blocks.0.attn.to_out.0": (3072, 3072)}
OF_CHROMA = OF_FLUX | {"single_transformer_blocks.0.proj_out": (3072, 15360)}
OF_HUNYUAN = OF_FLUX | {"single_transformer_blocks.39.proj_out": (3072, 15360)}
OF_HIDREAM = {"double_stream_blocks.0.block.attn1.to_q": (2560, 2560)}
OF_LUMINA = {"layers.0.feed_forward.linear_1": (9216, 2304)}
OF_QWEN = {"transformer_blocks.0.img_mlp.net.0.proj": (12288, 3072)}


@pytest.mark.parametrize(
    ("model", "texts", "spelt", "place", "claim"),
    [
        (OF_FLUX, T5, ("text_encoder_2.", "lora_te3_", "lora_te2_", "text_encoders.t5xxl.transformer."), 2, "flux"),
        (OF_CHROMA, T5, ("text_encoder.", "lora_te1_", "lora_te3_", "text_encoders.t5xxl.transformer."), 1, "chroma"),
        (OF_HUNYUAN, CLIP_L, ("text_encoder_2.", "lora_te2_", "text_encoders.clip_l.transformer."), 2, ""),
        (OF_HUNYUAN, LLAMA, ("text_encoder.", "lora_te1_", "text_encoders.llama.transformer.model."), 1, ""),
        (OF_HIDREAM, LLAMA, ("text_encoder_4.", "lora_te4_", "text_encoders.llama.transformer.model."), 4, ""),
        (OF_HIDREAM, T5, ("text_encoder_3.", "lora_te3_", "text_encoders.t5xxl.transformer."), 3, ""),
        (OF_LUMINA, LLAMA, ("text_encoder.", "lora_te_", "text_encoders.gemma2_2b.transformer.model."), 1, ""),
        (OF_QWEN, LLAMA, ("text_encoder.model.language_model.", "lora_te_model_language_model_",
                          "text_encoders.qwen25_7b.transformer.model."), 1, ""),
    ],
    ids=["FLUX T5", "Chroma T5", "HunyuanVideo CLIP", "HunyuanVideo Llama", "HiDream Llama", "HiDream T5", "Lumina 2",
         "Qwen-Image"],
)  # fmt: skip
def test_a_text_encoder_is_in_one_place_however_it_is_called(tmp_path, model, texts, spelt, place, claim):
    """diffusers' pipelines count them (the first name), kohya's trainers in their way; ComfyUI says what they are."""
    header = {"modelspec.architecture": f"{claim}/lora"} if claim else None
    found = []
    for prefix in spelt:
        tensors = lora(model, prefix="transformer.") | lora(texts, prefix=prefix, joined=prefix.endswith("_"))
        modules, _ = placed(tmp_path, tensors, header)
        found.append({module for module in modules if module.startswith("text_encoder")})
    assert all(each == found[0] for each in found)
    called = f"text_encoder_{place}" if place > 1 else "text_encoder"
    assert {module.partition(".")[0] for module in found[0]} == {called}


@pytest.mark.parametrize(
    ("modules", "family"),
    [
        ({"transformer_blocks.27.attn1.to_q": (1152, 1152), "transformer_blocks.0.ff.net.2": (1152, 4608)}, "PixArt"),
        ({"blocks.27.attn.qkv": (3456, 1152), "blocks.0.mlp.fc1": (4608, 1152)}, "PixArt"),
        ({"blocks.39.attn1.to_q": (1408, 1408), "blocks.0.attn2.to_k": (1408, 1024)}, "Hunyuan-DiT"),
        ({"blocks.39.attn1.Wqkv": (4224, 1408), "blocks.0.attn2.kv_proj": (2816, 1024)}, "Hunyuan-DiT"),
    ],
)  # fmt: skip
def test_what_onetrainer_trains_beside_is_known(tmp_path, modules, family):
    places, found = placed(tmp_path, lora(modules, prefix="transformer."))
    assert found.family == family and found.remark is None
    assert any(place.endswith("attn1.to_q") for place in places)


def test_attention_that_pixart_and_sana_share_is_neithers_without_a_header(tmp_path):
    shared = lora({f"transformer_blocks.{n}.attn1.to_q": (1152, 1152) for n in range(28)}, prefix="transformer.")
    _, found = placed(tmp_path, shared)
    assert found.family == "other" and found.remark == "it changes modules that PixArt, Sana have in common"
    for claim, family in (("pixart-sigma", "PixArt"), ("sana", "Sana")):
        _, found = placed(tmp_path, shared, {"modelspec.architecture": f"{claim}/lora"})
        assert found.family == family


def test_outer_layers_of_a_transformer_are_not_a_unets(tmp_path):
    """OneTrainer and sd-scripts put lora_unet_ before layers of any model."""
    outer = {"x_embedder.proj": (1536, 64), "joint_blocks.0.x_block.attn.proj": (1536, 1536),
             "final_layer.linear": (64, 1536), "t_embedder.mlp.0": (1536, 256)}  # fmt: skip
    modules, found = placed(tmp_path, lora(outer, prefix="lora_unet_", joined=True))
    assert modules == {f"transformer.{name}" for name in (
        "pos_embed.proj", "transformer_blocks.0.attn.to_out.0", "proj_out",
        "time_text_embed.timestep_embedder.linear_1")}  # fmt: skip
    assert found.family == "SD3"


@pytest.mark.parametrize(("rows", "swapped"), [(9216, False), (3072, True)])
def test_the_last_context_norm_of_sd3_has_its_halves_swapped(tmp_path, rows, swapped):
    """Two vectors of the width are (shift, scale) in the authors' order and (scale, shift) in diffusers'."""
    tensors = lora({"joint_blocks.23.context_block.adaLN_modulation.1": (rows, 1536)}, prefix="diffusion_model.")
    save_file(tensors, tmp_path / "x.safetensors")
    (update,) = read_lora(tmp_path / "x.safetensors").updates.values()
    up = next(x for key, x in tensors.items() if "up" in key)
    expected = np.concatenate([up[rows // 2 :], up[: rows // 2]]) if swapped else up
    assert (expected == update.B).all() and update.module == "transformer.transformer_blocks.23.norm1_context.linear"


def test_a_hyphen_is_a_part_of_a_name(tmp_path):
    name = {"all_final_layer.2-1.linear": (64, 3840), "layers.0.attention.to_q": (3840, 3840)}
    for prefix, joined in (("diffusion_model.", False), ("lora_unet_", True), ("transformer.", False)):
        modules, found = placed(tmp_path, lora(name, prefix=prefix, joined=joined))
        assert modules == {f"transformer.{module}" for module in name} and found.family == "Z-Image"


def test_fused_layers_of_diffusers_are_their_parts(tmp_path):
    fused = {
        "transformer_blocks.0.attn.to_qkv": (3 * 6144, 6144),
        "single_transformer_blocks.0.attn.to_out": (6144, 24576),
    }
    modules, found = placed(tmp_path, lora(fused, prefix="transformer."))
    assert {m.rpartition(".")[2] for m in modules} == {"to_q", "to_k", "to_v", "to_out"}
    assert (found.family, found.variants) == ("FLUX.2", {"dev"})


def test_a_model_that_is_not_known_keeps_its_names(tmp_path):
    """Its files are compared with one another, in whatever dots they have lost."""
    names = {"trunk_0_mixer_inner": (48, 32), "trunk_1_mixer_inner": (48, 32)}
    modules, found = placed(tmp_path, lora(names, prefix="lora_unet_", joined=True))
    assert modules == {f"transformer.{name}" for name in names} and found.family == "other"
    misprint = {"down_blocks.0.attentions.0.proj_in": (320, 320), "down_blocks.1.attentions.0.proj_in": (640, 640)}
    misprint |= {f"up_blocks.{n}.attentions.0.proj_in": (640, 640) for n in range(1, 4)} | {"up_blocks.1.x": (2, 2)}
    with pytest.raises(LoraFileError, match="up_blocks_1_x"):
        placed(tmp_path, lora(misprint, prefix="lora_unet_", joined=True))


def tiny(family, scale=32):
    """A model of a family at a part of its width, with its first blocks: what a test's or a person's own base is."""
    arch, variant = next((a, v) for a, v in table().variants if v.family == family)
    found = {}
    for entries in arch.direct.values():
        for entry in entries:
            module = entry.modules[0].replace("#", "0")
            shape = variant.shape(*parsed(module))
            if shape is not None and len(shape) == 2:
                found[module] = (max(1, shape[0] // scale), max(1, shape[1] // scale))
    return arch.model, found


NAMED = ["FLUX.2", "FLUX.3", "Chroma", "Qwen-Image", "Qwen-Image 2.1", "Z-Image", "Lumina 2", "AuraFlow", "HiDream",
         "Krea 2", "Anima", "Sana", "CogView4", "aMUSEd", "Wan", "HunyuanVideo", "LTX-Video", "LTX-2", "Mochi",
         "CogVideoX", "Kandinsky 5", "Helios", "BRIA FIBO", "BRIA FIBO 2", "Ideogram 4", "ERNIE-Image", "ACE-Step",
         "MiniMax-H3", "Proteina", "SD3", "FLUX", "Cosmos 3", "GLM-Image", "HunyuanImage"]  # fmt: skip


def test_a_small_model_is_named_by_its_modules_and_shares_no_space(tmp_path):
    candidates = []
    for family in NAMED:
        model, modules = tiny(family)
        path = tmp_path / f"{stem_of(family)}.safetensors"
        save_file(lora(modules, prefix=f"{model}."), path)
        candidates.append(Found(family, path))
    rows = inventory(candidates, tmp_path / "cache", numbers=4096)
    assert {row["lora"]: row["family"] for row in rows} == {family: family for family in NAMED}
    assert len({row["space"] for row in rows}) == len(NAMED)
    assert all("sizes of none" in row["remark"] or "all but" in row["remark"] for row in rows)


def test_families_have_names_of_folders_of_their_own():
    stems = [stem_of(family) for family in FAMILIES]
    assert len(set(stems)) == len(stems) and not any(stem.rpartition("-")[2].isdigit() for stem in stems)
    assert stem_of("SD1.x") == "sd1" and stem_of("FLUX.2") == "flux2" and stem_of("Lumina 2") == "lumina2"


def test_released_sizes_of_a_family_do_not_share_a_space_and_near_misses_are_said(tmp_path):
    small = {f"transformer_blocks.{n}.attn.to_q": (3072, 3072) for n in range(5)} | {
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": (27648, 3072)}  # fmt: skip
    large = {"single_transformer_blocks.1.attn.to_qkv_mlp_proj": (36864, 4096)}
    odd = small | {"transformer_blocks.0.attn.to_k": (3072, 3000)}
    candidates = []
    for name, modules in (("small", small), ("large", large), ("odd", odd)):
        save_file(lora(modules, prefix="transformer."), tmp_path / f"{name}.safetensors")
        candidates.append(Found(name, tmp_path / f"{name}.safetensors"))
    rows = {row["lora"]: row for row in inventory(candidates, tmp_path / "cache", numbers=4096)}
    assert {row["family"] for row in rows.values()} == {"FLUX.2"}
    assert len({row["space"] for row in rows.values()}) == 3
    assert "all but 1 of 7 modules are those of FLUX.2 klein 4B" in rows["odd"]["remark"]


def test_a_model_that_has_fewer_blocks_of_fluxs_is_told_by_having_all_of_them():
    """LongCat-Image has 10 and 20 blocks of FLUX.1's names and width, which has 19 and 38."""

    def attention(double, single):
        found = {f"transformer.transformer_blocks.{n}.attn.to_q": (3072, 3072) for n in double}
        return found | {f"transformer.single_transformer_blocks.{n}.attn.to_q": (3072, 3072) for n in single}

    found = belonging(attention(range(10), range(20)))
    assert found.family == "LongCat-Image" and "FLUX" in found.remark
    assert belonging(attention(range(19), range(38))).family == "FLUX"
    for double, single in ((range(3, 10), range(20)), (range(10), ()), ((), range(20))):
        some = belonging(attention(double, single))
        assert some.family == "FLUX" and "LongCat-Image" in some.remark
    named = belonging(attention(range(3, 10), range(20)), {"modelspec.architecture": "longcat-image/lora"})
    assert named.family == "LongCat-Image"
    # FLUX.1 lite has 8 and 38, as BRIA FIBO has beside its projections of captions.
    lite = belonging(attention(range(8), range(38)))
    assert lite.family == "FLUX" and "lite 8B" in lite.variants and "BRIA FIBO" in lite.remark
    wide = {f"transformer.transformer_blocks.{n}.attn.to_q": (2048, 2048) for n in range(54)}
    assert belonging(wide).family == "HunyuanVideo 1.5"
    assert belonging(dict(list(wide.items())[:32])).family == "Nucleus-Image"


def test_a_header_decides_only_between_families_that_the_shapes_allow():
    shared = {f"transformer.single_transformer_blocks.{n}.attn.to_q": (3072, 3072) for n in (0, 31)}
    assert belonging(shared).family == "FLUX" and "Chroma" in belonging(shared).remark
    assert belonging(shared, {"modelspec.architecture": "auraflow/lora"}).family == "AuraFlow"
    assert belonging(shared, {"ss_base_model_version": "chroma"}).family == "Chroma"
    assert belonging(shared, {"ss_base_model_version": "sdxl_base_v1-0"}).family == "FLUX"


@pytest.mark.parametrize(
    "name",
    ["model.layers.{}.self_attn.q_proj", "model.language_model.layers.{}.mlp.up_proj", "transformer.h.{}.attn.c_attn"],
)
def test_a_language_model_is_sorted_as_one(tmp_path, name):
    modules, found = placed(tmp_path, lora({name.format(n): (64, 32) for n in range(3)}, prefix="base_model.model."))
    assert len(modules) == 3 and found.family == "language model"


def test_all_names_of_a_file_are_looked_up_together():
    """One layer can be of several models, and what it is shows in its neighbours."""
    alone = place("double_blocks.0.img_mlp.0")
    assert alone.modules == ("transformer.transformer_blocks.0.ff.net.0.proj",)
    both = located({"double_blocks.0.img_mlp.0": (18432, 3072), "double_stream_modulation_img.lin": (18432, 3072)})
    assert both["double_blocks.0.img_mlp.0"].modules == ("transformer.transformer_blocks.0.ff.linear_in",)
