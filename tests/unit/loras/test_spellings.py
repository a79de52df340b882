"""Every spelling of every family against diffusers: its converters of LoRA files, and those of the authors' weights.

Files are symbolic: a module or two of each name, at the released size, random factors of rank one. Where the two
converters of diffusers disagree, the authors' weights are right: they are what a file was trained on.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as loras
from diffusers.loaders import single_file_utils as weights
from safetensors.numpy import save_file

from lora_atlas.loras.factors import expanded
from lora_atlas.loras.families import belonging
from lora_atlas.loras.families.table import Architecture, Variant, parsed, table
from lora_atlas.loras.files import open_lora, read_lora

ARCHITECTURES = {arch.cls: arch for arch in table().architectures}


def released(family: str, variant: str | None = None) -> tuple[Architecture, Variant]:
    return next((a, v) for a, v in table().variants if v.family == family and variant in (None, v.name))


def spelt(arch: Architecture, variant: Variant, blocks=(0,)) -> dict[str, tuple[tuple[int, int], tuple[str, ...]]]:
    """The authors' name of every layer of some blocks → its shape, and the modules that it is."""
    found = {}
    for theirs, ours, _ in arch._spelt():
        for block in blocks if "#" in theirs else (0,):
            modules = tuple(module.replace("#", str(block)) for module in ours)
            shapes = [variant.shape(*parsed(module)) for module in modules]
            if all(shape is not None and len(shape) == 2 for shape in shapes) and not re.search(
                r"to_(added_)?q?kv$", theirs
            ):
                found[theirs.replace("#", str(block))] = (
                    (sum(shape[0] for shape in shapes), shapes[0][1]), modules
                )  # fmt: skip
    return found


def plain(arch: Architecture, variant: Variant) -> dict[str, tuple[int, int]]:
    """Diffusers' own name of every layer of the first blocks → its shape."""
    found = {}
    for entries in arch.direct.values():
        for entry in entries:
            module = entry.modules[0].replace("#", "0")
            shape = variant.shape(*parsed(module))
            if shape is not None and len(shape) == 2:
                found[module] = shape
    return found


def lora(shapes: dict[str, tuple[int, int]], seed=0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → A (1, in) and B (out, 1)."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=(1, s[1])).astype(np.float32), rng.normal(size=(s[0], 1)).astype(np.float32))
        for name, s in shapes.items()
    }


def written(factors, prefix="", *, joined=False, down="lora_A", up="lora_B", alpha=None) -> dict[str, np.ndarray]:
    tensors = {}
    for name, (A, B) in factors.items():
        name = prefix + (name.replace(".", "_") if joined else name)
        tensors |= {f"{name}.{down}.weight": A, f"{name}.{up}.weight": B}
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


def theirs(converter, tensors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What diffusers' converter makes of a file: module → A and B."""
    state = getattr(loras, converter)({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()})
    found = {}
    for key, A in state.items():
        if key.endswith(".lora_A.weight"):
            module = f"transformer.{key.removesuffix('.lora_A.weight').removeprefix('transformer.')}"
            module = module.removeprefix("transformer.") if "text_conditioner" in module else module
            found[module] = A.double().numpy(), state[key.replace("lora_A", "lora_B")].double().numpy()
    return found


def agree(path, tensors, expected, family, variant=None) -> None:
    save_file(tensors, path)
    updates = read_lora(path).updates
    assert set(updates) == set(expected)
    for module, (A, B) in expected.items():
        found = expanded(updates[module])
        assert found.shape == (len(B), A.shape[1]), module
        left, right = np.concatenate([found.B, -B], 1), np.concatenate([found.A, A])
        gap = np.linalg.norm(np.linalg.qr(left, "r") @ np.linalg.qr(right.T, "r").T)
        assert gap <= 1e-6 * np.linalg.norm(A) * np.linalg.norm(B), module
    file = open_lora(path)
    found = belonging({module: spec.shape for module, spec in file.layout.specs.items()})
    assert found.family == family and (variant is None or variant in found.variants), found


DIFFUSION, UNET = {"prefix": "diffusion_model."}, {"prefix": "lora_unet_", "joined": True}
KOHYA, HALF = {"down": "lora_down", "up": "lora_up"}, {"alpha": 0.5}
# Converter, family, released size, how the file is written, names of the authors that it takes (None: diffusers' own).
CONVERTERS = [
    ("_convert_hunyuan_video_lora_to_diffusers", "HunyuanVideo", "1", DIFFUSION,
     r"(?!final_layer\.adaLN|.*(_attn_[qkv]$|linear1_|self_attn_qkv|self_attn\.|_mlp\.[02]|mlp\.[02]|\.lin$|in_layer|out_layer))"),
    ("_convert_non_diffusers_lumina2_lora_to_diffusers", "Lumina 2", "2.0", DIFFUSION,
     r"(layers|noise_refiner|context_refiner)\.0\.(attention|feed_forward|adaLN)"),
    ("_convert_non_diffusers_wan_lora_to_diffusers", "Wan", "2.1 I2V 14B", DIFFUSION, ""),
    ("_convert_non_diffusers_wan_lora_to_diffusers", "Wan", "2.1 T2V 1.3B", DIFFUSION | KOHYA | HALF, "blocks"),
    ("_convert_musubi_wan_lora_to_diffusers", "Wan", "2.1 T2V 1.3B", UNET | KOHYA | {"alpha": 0.5}, "blocks"),
    ("_convert_musubi_wan_lora_to_diffusers", "Wan", "2.1 I2V 14B", UNET | KOHYA | {"alpha": 2.0}, "blocks"),
    ("_convert_non_diffusers_hidream_lora_to_diffusers", "HiDream", "I1", DIFFUSION, None),
    ("_convert_non_diffusers_ltxv_lora_to_diffusers", "LTX-Video", "2B", DIFFUSION, None),
    ("_convert_non_diffusers_ltx2_lora_to_diffusers", "LTX-2", "default", DIFFUSION, ""),
    ("_convert_non_diffusers_qwen_lora_to_diffusers", "Qwen-Image", "1", DIFFUSION, None),
    ("_convert_non_diffusers_qwen_lora_to_diffusers", "Qwen-Image", "1", UNET | KOHYA | {"alpha": 0.5}, None),
    ("_convert_non_diffusers_qwen_lora_to_diffusers", "Qwen-Image", "1",
     {"down": "lora_A.default", "up": "lora_B.default"}, None),
    ("_convert_non_diffusers_anima_lora_to_diffusers", "Anima", "2B", DIFFUSION, ""),
    ("_convert_non_diffusers_flux2_lora_to_diffusers", "FLUX.2", "dev", DIFFUSION, r"(?!final_layer\.adaLN|sformer)"),
    ("_convert_non_diffusers_flux2_lora_to_diffusers", "FLUX.2", "klein 4B", DIFFUSION | KOHYA,
     r"(?!final_layer\.adaLN|sformer)"),
    ("_convert_kohya_flux2_lora_to_diffusers", "FLUX.2", "klein 9B", UNET | KOHYA | {"alpha": 0.5},
     r"(double|single)_blocks|(img|txt|time)_in|final_layer\.linear"),
    ("_convert_non_diffusers_flux3_lora_to_diffusers", "FLUX.3", "default", DIFFUSION,
     r"(content_mode_blocks|txt_mode_blocks|single_blocks)"),
    ("_convert_non_diffusers_z_image_lora_to_diffusers", "Z-Image", "Turbo", DIFFUSION, None),
    ("_convert_non_diffusers_z_image_lora_to_diffusers", "Z-Image", "Turbo", UNET | KOHYA | {"alpha": 0.5}, None),
    ("_convert_non_diffusers_ideogram4_lora_to_diffusers", "Ideogram 4", "default", DIFFUSION | KOHYA | HALF, ""),
    ("_convert_non_diffusers_krea2_lora_to_diffusers", "Krea 2", "default", DIFFUSION, ""),
    ("_convert_non_diffusers_krea2_lora_to_diffusers", "Krea 2", "default", {"prefix": "base_model.model."}, ""),
    ("_convert_non_diffusers_ace_step_lora_to_diffusers", "ACE-Step", "1.5", {"prefix": "base_model.model."}, ""),
    ("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "MiniMax-H3", "default", DIFFUSION, ""),
    ("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "MiniMax-H3", "default", UNET | KOHYA | {"alpha": 0.5}, ""),
    ("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "MiniMax-H3", "default", {}, ""),
    ("_convert_non_diffusers_minimax_h3_lora_to_diffusers", "MiniMax-H3", "default",
     {"down": "lora_A.default", "up": "lora_B.default"}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("converter", "family", "variant", "how", "names"), CONVERTERS,
                         ids=[f"{c[0][9:-19]}-{c[1]}-{n}" for n, c in enumerate(CONVERTERS)])  # fmt: skip
def test_a_spelling_is_read_as_diffusers_converts_it(tmp_path, converter, family, variant, how, names):
    arch, size = released(family, variant)
    shapes = plain(arch, size) if names is None else {
        name: shape for name, (shape, _) in spelt(arch, size).items() if re.match(names, name)
    }  # fmt: skip
    assert len(shapes) > 1
    tensors = written(lora(shapes), **how)
    agree(tmp_path / "x.safetensors", tensors, theirs(converter, tensors), family, variant)


class _Whole(dict):
    """A checkpoint that has every tensor that it is asked for: zeros, where a test has none."""

    def pop(self, key, *default):
        return super().pop(key, torch.zeros(21504 if ".linear1." in key else 6, 1))


# Converter of the authors' weights, family, released size, names that the file itself has otherwise than the weights.
SINGLE = [
    ("convert_sd3_transformer_checkpoint_to_diffusers", "SD3", "3.5 medium"),
    ("convert_flux_transformer_checkpoint_to_diffusers", "FLUX", "dev"),
    ("convert_chroma_transformer_checkpoint_to_diffusers", "Chroma", "1"),
    ("convert_flux2_transformer_checkpoint_to_diffusers", "FLUX.2", "dev"),
    ("convert_flux3_transformer_checkpoint_to_diffusers", "FLUX.3", "default"),
    ("convert_z_image_transformer_checkpoint_to_diffusers", "Z-Image", "Turbo"),
    ("convert_lumina2_to_diffusers", "Lumina 2", "2.0"),
    ("convert_auraflow_transformer_checkpoint_to_diffusers", "AuraFlow", "0.3"),
    ("convert_krea2_transformer_checkpoint_to_diffusers", "Krea 2", "default"),
    ("convert_cosmos_transformer_checkpoint_to_diffusers", "Anima", "2B"),
    ("convert_sana_transformer_to_diffusers", "Sana", "1.6B"),
    ("convert_wan_transformer_to_diffusers", "Wan", "2.1 I2V 14B"),
    ("convert_wan_transformer_to_diffusers", "Wan VACE", "14B"),
    ("convert_hunyuan_video_transformer_to_diffusers", "HunyuanVideo", "1"),
    ("convert_ltx_transformer_checkpoint_to_diffusers", "LTX-Video", "13B"),
    ("convert_ltx2_transformer_to_diffusers", "LTX-2", "default"),
    ("convert_mochi_transformer_checkpoint_to_diffusers", "Mochi", "1"),
    ("convert_minimax_h3_transformer_checkpoint_to_diffusers", "MiniMax-H3", "default"),
    ("convert_qwen_image21_transformer_checkpoint_to_diffusers", "Qwen-Image 2.1", "2.1"),
]  # fmt: skip
# Names that LoRA files have, but not the authors' weights: exports, attention processors, ComfyUI's of HunyuanVideo.
# DiffSynth-Studio's of FLUX.1.
ALIASES = (
    r"sformer_blocks|.*processor|.*\.block\.|blocks\.\d+\.(attn\.[ab]_|ff_[ab]|norm1_[ab])|.*to_qkv_mlp$"
    r"|single_blocks\.\d+\.(proj_out|norm\.linear)|.*embedder\.(timestep_embedder\.)?[02]$|final_(norm|proj)_out"
)
COMFY = (
    r".*(_attn_[qkv]|linear1_\w+|_mlp\.[02]|\.mlp\.[02]|mod\.lin|modulation\.lin|self_attn\.\w+|(time|guidance)_in\.\w+_layer"
    r"|[tc]_embedder\.\w+_layer)$|txt_in\.t_embedder\.in"
)


def last_block(size: Variant) -> int:
    """The number of the last block of the longest list of them."""
    return max(b for rows in size.rows.values() for ranges, _ in rows for each in ranges[:1] for _, b in each)


@pytest.mark.parametrize(("converter", "family", "variant"), SINGLE, ids=[f"{s[1]} {s[2]}" for s in SINGLE])
def test_the_authors_names_are_those_of_their_weights(tmp_path, converter, family, variant):
    arch, size = released(family, variant)
    last = last_block(size)
    names = spelt(arch, size, range(last + 1) if family == "AuraFlow" else {0, last})
    left_out = f"{ALIASES}|{COMFY}" if family == "HunyuanVideo" else ALIASES
    names = {name: each for name, each in names.items() if not re.match(left_out, name)}
    factors = lora({name: shape for name, (shape, _) in names.items()})
    tensors = written(factors, "diffusion_model.")
    checkpoint = _Whole({f"{name}.weight": torch.from_numpy(B) for name, (_, B) in factors.items()})
    if family == "SD3":  # says the width
        checkpoint["context_embedder.weight"] = torch.zeros(1536, 1)
    state = getattr(weights, converter)(checkpoint, config={})
    expected = {}
    for name, (_, modules) in names.items():
        for module in modules:
            A = factors[name][0]
            expected[f"transformer.{module}"] = A.astype(np.float64), state[f"{module}.weight"].double().numpy()
    agree(tmp_path / "x.safetensors", tensors, expected, family, variant)
    joined = written(factors, "lora_unet_", joined=True, down="lora_down", up="lora_up")
    agree(tmp_path / "y.safetensors", joined, expected, family, variant)


@pytest.mark.parametrize(
    ("converter", "prefix", "outer"),
    [
        ("_convert_bfl_flux_control_lora_to_diffusers", "", r""),
        ("_convert_fal_kontext_lora_to_diffusers", "base_model.model.", r"double|single|final_layer\.linear"),
    ],
)
def test_a_whole_file_of_flux_is_read_as_diffusers_converts_it(tmp_path, converter, prefix, outer):
    """These two converters ask for every layer, the first for norms of queries and keys as well.

    It swaps the halves of both factors of final_layer.adaLN_modulation, so that they make another update: that layer is
    held against the authors' weights above."""
    arch, size = released("FLUX", "dev")
    left_out = rf"(?!{ALIASES}|final_layer\.adaLN)(?:{outer})"
    names = {n: shape for n, (shape, _) in spelt(arch, size, range(38)).items() if re.match(left_out, n)}
    tensors = written(lora(names), prefix)
    state = getattr(loras, converter)(_Whole({key: torch.from_numpy(x) for key, x in tensors.items()}))
    expected = {}
    for key in (key for key in state if key.endswith(".lora_A.weight") and "norm_out" not in key):
        factors = state[key], state[key.replace("lora_A", "lora_B")]
        expected[key.removesuffix(".lora_A.weight")] = tuple(factor.double().numpy() for factor in factors)
    agree(tmp_path / "x.safetensors", tensors, expected, "FLUX")


@pytest.mark.parametrize(
    ("converter", "family", "how"),
    [
        ("_convert_non_diffusers_flux2_lokr_to_diffusers", "FLUX.2", DIFFUSION),
        ("_convert_lycoris_flux2_lokr_to_diffusers", "FLUX.2", {"prefix": "lycoris_", "joined": True}),
        ("_convert_non_diffusers_lokr_to_diffusers", "Z-Image", DIFFUSION),
    ],
)
def test_kronecker_products_are_read_as_diffusers_converts_them(tmp_path, converter, family, how):
    """At a part of the width, dense: a product over a fused layer is cut where diffusers keeps it whole."""
    arch, size = released(family)
    own = plain(arch, size)
    if family == "FLUX.2" and not how.get("joined"):
        own = {
            n: shape for n, (shape, _) in spelt(arch, size).items() if not n.startswith(("sformer", "final_layer.ada"))
        }
    rng, tensors = np.random.default_rng(0), {}
    for name, (out, width) in own.items():
        if "blocks" not in name and "layers" not in name:
            continue
        name = how["prefix"] + (name.replace(".", "_") if how.get("joined") else name)
        tensors |= {
            f"{name}.lokr_w1": rng.normal(size=(2, 2)).astype(np.float32),
            f"{name}.lokr_w2_a": rng.normal(size=(max(1, out // 256), 3)).astype(np.float32),
            f"{name}.lokr_w2_b": rng.normal(size=(3, max(1, width // 256))).astype(np.float32),
            f"{name}.alpha": np.array(0.75, np.float32),
        }
    save_file(tensors, tmp_path / "x.safetensors")
    updates = read_lora(tmp_path / "x.safetensors").updates
    state = getattr(loras, converter)({key: torch.from_numpy(np.array(x)) for key, x in tensors.items()})
    expected = {}
    for key in (key for key in state if key.endswith("lokr_w1")):
        module = key.removesuffix(".lokr_w1")
        w1, a, b = (state[f"{module}.{part}"].double().numpy() for part in ("lokr_w1", "lokr_w2_a", "lokr_w2_b"))
        whole = np.kron(w1, a @ b)
        block, _, leaf = module.rpartition(".")
        parts = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
        for n, part in enumerate(parts.get(leaf, (leaf,))):
            rows = len(whole) // len(parts.get(leaf, (leaf,)))
            expected[f"{block}.{part}"] = whole[n * rows : (n + 1) * rows]
    assert set(updates) == set(expected) and len(expected) > 6
    for module, W in expected.items():
        found = expanded(updates[module])
        np.testing.assert_allclose(found.B.astype(float) @ found.A, W, rtol=1e-5, atol=1e-5)


def test_every_converter_of_diffusers_is_held_against():
    """A converter that diffusers adds is a spelling that is not read here yet."""
    here = Path(__file__).read_text() + Path(__file__).with_name("test_names.py").read_text()
    helpers = {"_convert_unet_lora_key", "_convert_text_encoder_lora_key", "_convert_non_diffusers_lora_to_diffusers"}
    converters = {name for name in dir(loras) if name.startswith("_convert")} - helpers
    assert {name for name in converters if name not in here} == set()


# Layers that mflux's trainers name in their examples and READMEs (mflux 0.24.0; of FLUX.1 0.9.6) → what diffusers calls
# them where it is another name.
MFLUX = [
    ("FLUX.2", "klein 4B", "transformer.", {
        "transformer_blocks.0.attn.to_q": None,
        "transformer_blocks.0.attn.to_out": "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.4.attn.add_k_proj": None, "transformer_blocks.0.attn.to_add_out": None,
        "transformer_blocks.0.ff.linear_in": None, "transformer_blocks.0.ff_context.linear_out": None,
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": None, "single_transformer_blocks.19.attn.to_out": None,
        "time_guidance_embed.linear_1": "time_guidance_embed.timestep_embedder.linear_1",
        "time_guidance_embed.linear_2": "time_guidance_embed.timestep_embedder.linear_2",
    }),
    ("FLUX", "dev", "transformer.", {
        "single_transformer_blocks.37.proj_mlp": None, "single_transformer_blocks.0.attn.to_q": None,
        "transformer_blocks.0.attn.to_out.0": None, "transformer_blocks.18.norm1.linear": None,
        "transformer_blocks.1.attn.to_out": "transformer_blocks.1.attn.to_out.0",  # of a run that was resumed
        "transformer_blocks.0.ff.linear1": "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.ff.linear2": "transformer_blocks.0.ff.net.2",
        "transformer_blocks.0.ff_context.linear1": "transformer_blocks.0.ff_context.net.0.proj",
        "transformer_blocks.0.ff_context.linear2": "transformer_blocks.0.ff_context.net.2",
    }),
    ("Z-Image", "Turbo", "diffusion_model.", {
        "layers.29.attention.to_q": None, "layers.0.attention.to_out.0": None, "layers.0.feed_forward.w3": None,
        "cap_embedder.1": None, "all_final_layer.2-1.linear": None,
        "all_final_layer.2-1.adaLN_modulation.0": "all_final_layer.2-1.adaLN_modulation.1",
        "t_embedder.linear1": "t_embedder.mlp.0", "t_embedder.linear2": "t_embedder.mlp.2",
    }),
    ("Krea 2", "default", "transformer.", {
        "blocks.27.attn.wo": "transformer_blocks.27.attn.to_out.0", "blocks.0.mlp.down": "transformer_blocks.0.ff.down",
        "tmlp.linear_in": "time_embed.linear_1", "tmlp.linear_out": "time_embed.linear_2",
        "tproj.linear": "time_mod_proj",
        "txtmlp.linear_in": "txt_in.linear_1", "txtmlp.linear_out": "txt_in.linear_2",
    }),
    ("ERNIE-Image", "8B", "transformer.", {
        "layers.35.self_attention.to_out.0": None, "layers.0.mlp.linear_fc2": None, "text_proj": None,
        "adaln_modulation": "adaLN_modulation.1",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("family", "variant", "prefix", "names"), MFLUX, ids=[each[0] for each in MFLUX])
def test_a_file_of_mflux_has_the_modules_of_diffusers(tmp_path, family, variant, prefix, names):
    _, size = released(family, variant)
    factors = lora({name: size.shape(*parsed(ours or name)) for name, ours in names.items()})
    expected = {f"transformer.{ours or name}": factors[name] for name, ours in names.items()}
    tensors = written(factors, prefix)
    if family == "FLUX":  # those had no ".weight"
        tensors = {key.removesuffix(".weight"): tensor for key, tensor in tensors.items()}
    agree(tmp_path / "x.safetensors", tensors, expected, family, variant)
