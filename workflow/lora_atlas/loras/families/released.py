"""The released models of which LoRA files are known, and how the table of their modules (modules.json) is made.

Every class of diffusers that loads LoRAs is built on the meta device, without memory, at the sizes that were released:
where a configuration is not stated here it is the default of the class, which diffusers sets to a released size for
most. Every layer with a weight is in the table, with the shape of its update: (out, in), convolutions laid out flat.

    python -m lora_atlas.loras.families.released      writes modules.json again, from the diffusers that is installed
"""

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("modules.json")

DEFAULT = "the default of the class in diffusers"
CARD = "config.json of the published model"
SCRIPT = "diffusers' script that converts the published weights"
AUTHORS = "the authors' configuration"
DIFFSYNTH = "DiffSynth-Studio's settings for the published weights"


@dataclass(frozen=True)
class Released:
    """One released size: its family, what it is called, its class, and where that is not the class's default, its
    configuration and the source of it. `model`: what a file calls it."""

    family: str
    variant: str
    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = DEFAULT
    model: str = "transformer"


_SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
_SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
_SDXL = {
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_REFINER = {
    "cross_attention_dim": 1280, "attention_head_dim": [6, 12, 24, 24], "use_linear_projection": True,
    "block_out_channels": [384, 768, 1536, 1536], "transformer_layers_per_block": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
_KOLORS = _SDXL | {
    "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 5632,
}  # fmt: skip
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096}
_SD35M = _SD3 | {"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm", "pos_embed_max_size": 384}
_SD35L = _SD3 | {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
    "pos_embed_max_size": 192,
}  # fmt: skip
_KLEIN4 = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
_KLEIN9 = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
_WAN1 = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_WAN5 = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
_SKY14 = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
_WANI = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
_HIDREAM = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "num_layers": 16, "num_single_layers": 32,
    "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
    "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": list(range(48)),
}  # fmt: skip
_COSMOS2 = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28,
    "mlp_ratio": 4.0, "text_embed_dim": 1024, "adaln_lora_dim": 256, "patch_size": (1, 2, 2),
    "concat_padding_mask": True, "extra_pos_embed_type": None,
}  # fmt: skip
_COGVIEW = {"num_attention_heads": 32, "attention_head_dim": 128, "num_layers": 28, "text_embed_dim": 4096}
_SANA6 = {
    "num_attention_heads": 36, "attention_head_dim": 32, "num_layers": 28, "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72, "cross_attention_dim": 1152,
}  # fmt: skip
_PIXART = {"caption_channels": 4096}
_HUNYUAN_DIT = {
    "num_attention_heads": 16, "attention_head_dim": 88, "in_channels": 4, "patch_size": 2, "num_layers": 40,
    "hidden_size": 1408, "mlp_ratio": 4.3637, "cross_attention_dim": 1024, "cross_attention_dim_t5": 2048,
    "pooled_projection_dim": 1024, "text_len": 77, "text_len_t5": 256, "activation_fn": "gelu-approximate",
    "learn_sigma": True, "use_style_cond_and_image_meta_size": False,
}  # fmt: skip
_LTX23 = {
    "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True, "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}  # fmt: skip
_VACE1 = _WAN1 | {"vace_layers": list(range(0, 30, 2))}
_KANDINSKY5 = {"in_visual_dim": 16, "out_visual_dim": 16}
_KANDINSKY5_VIDEO = _KANDINSKY5 | {"model_dim": 1792, "ff_dim": 7168, "visual_cond": True}
_KANDINSKY5_IMAGE = _KANDINSKY5 | {
    "model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50, "axes_dims": (32, 48, 48),
}  # fmt: skip
_KANDINSKY5_PRO = _KANDINSKY5 | {
    "model_dim": 4096, "ff_dim": 16384, "num_text_blocks": 4, "num_visual_blocks": 60, "time_dim": 1024,
    "axes_dims": (32, 48, 48), "visual_cond": True,
}  # fmt: skip
_ERNIE = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288, "text_in_dim": 3072,
}  # fmt: skip
_ACE_XL = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32,
    "encoder_hidden_size": 2048,
}  # fmt: skip
_NUCLEUS = {
    "out_channels": 16, "num_layers": 32, "num_key_value_heads": 4, "joint_attention_dim": 4096, "num_experts": 64,
    "dense_moe_strategy": "leave_first_three_blocks_dense", "capacity_factors": [4.0] * 32,
}  # fmt: skip
_LTX13 = {"num_attention_heads": 32, "attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}
_COG5 = {"num_attention_heads": 48, "num_layers": 42}
_UNET, _FLUX, _FLUX2 = "UNet2DConditionModel", "FluxTransformer2DModel", "Flux2Transformer2DModel"
_WAN, _COGX, _SANA = "WanTransformer3DModel", "CogVideoXTransformer3DModel", "SanaTransformer2DModel"
_SDT, _COSMOS, _LTX = "SD3Transformer2DModel", "CosmosTransformer3DModel", "LTXVideoTransformer3DModel"

RELEASED: tuple[Released, ...] = (
    Released("SD1.x", "1.5", _UNET, _SD1, CARD, "unet"),
    Released("SD1.x", "1.5 inpainting", _UNET, _SD1 | {"in_channels": 9}, CARD, "unet"),
    Released("SD2.x", "2.1", _UNET, _SD2, CARD, "unet"),
    Released("SD2.x", "2 inpainting", _UNET, _SD2 | {"in_channels": 9}, CARD, "unet"),
    Released("SDXL", "base 1.0", _UNET, _SDXL, CARD, "unet"),
    Released("SDXL", "inpainting 0.1", _UNET, _SDXL | {"in_channels": 9}, CARD, "unet"),
    Released("SDXL refiner", "1.0", _UNET, _REFINER, CARD, "unet"),
    Released("Kolors", "1.0", _UNET, _KOLORS, CARD, "unet"),
    Released("AnimateDiff", "SD1.5", "UNetMotionModel", {"cross_attention_dim": 768}, DEFAULT, "unet"),
    Released("Kandinsky 3", "3.0", "Kandinsky3UNet", model="unet"),
    Released("SD3", "3 medium", _SDT, _SD3 | {"pos_embed_max_size": 192}, CARD),
    Released("SD3", "3.5 medium", _SDT, _SD35M, CARD),
    Released("SD3", "3.5 large", _SDT, _SD35L, CARD),
    Released("FLUX", "dev", _FLUX, {"guidance_embeds": True}, CARD),
    Released("FLUX", "Fill", _FLUX, {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}, CARD),
    Released("FLUX", "Canny and Depth", _FLUX, {"guidance_embeds": True, "in_channels": 128, "out_channels": 64}, CARD),
    Released("FLUX", "lite 8B", _FLUX, {"guidance_embeds": True, "num_layers": 8},
             "the size of the published file, 16.3 GB in bfloat16"),
    Released("Chroma", "1", "ChromaTransformer2DModel"),
    Released("FLUX.2", "dev", _FLUX2),
    Released("FLUX.2", "klein 4B", _FLUX2, _KLEIN4, "Klein4BParams of black-forest-labs/flux2"),
    Released("FLUX.2", "klein 9B", _FLUX2, _KLEIN9, "Klein9BParams of black-forest-labs/flux2"),
    Released("FLUX.3", "default", "Flux3Transformer2DModel"),
    Released("Qwen-Image", "1", "QwenImageTransformer2DModel"),
    Released("Qwen-Image 2.1", "2.1", "QwenImage21Transformer2DModel"),
    Released("Z-Image", "Turbo", "ZImageTransformer2DModel"),
    Released("Lumina 2", "2.0", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}, SCRIPT),
    Released("AuraFlow", "0.3", "AuraFlowTransformer2DModel"),
    Released("HiDream", "I1", "HiDreamImageTransformer2DModel", _HIDREAM, SCRIPT),
    Released("Krea 2", "default", "Krea2Transformer2DModel"),
    Released("Anima", "2B", _COSMOS, _COSMOS2, SCRIPT),
    Released("Cosmos", "2 2B", _COSMOS, _COSMOS2, SCRIPT),
    Released("Cosmos", "2 14B", _COSMOS, _COSMOS2 | {"num_attention_heads": 40, "num_layers": 36}, SCRIPT),
    Released("Cosmos", "1 7B", _COSMOS),
    Released("PixArt", "Alpha", "PixArtTransformer2DModel", _PIXART | {"use_additional_conditions": True}, SCRIPT),
    Released("PixArt", "Sigma", "PixArtTransformer2DModel", _PIXART | {"use_additional_conditions": False}, SCRIPT),
    Released("Hunyuan-DiT", "1.2", "HunyuanDiT2DModel", _HUNYUAN_DIT, CARD),
    Released("Hunyuan-DiT", "1.1", "HunyuanDiT2DModel", _HUNYUAN_DIT | {"use_style_cond_and_image_meta_size": True},
             CARD),
    Released("Sana", "1.6B", _SANA),
    Released("Sana", "0.6B", _SANA, _SANA6, SCRIPT),
    Released("Sana", "Sprint 1.6B", _SANA, {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}, SCRIPT),
    Released("Sana", "Sprint 0.6B", _SANA, _SANA6 | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
             SCRIPT),
    Released("Sana-Video", "default", "SanaVideoTransformer3DModel"),
    Released("CogView4", "6B", "CogView4Transformer2DModel", _COGVIEW, CARD),
    Released("aMUSEd", "default", "UVit2DModel"),
    Released("Wan", "2.1 T2V 1.3B", _WAN, _WAN1, CARD),
    Released("Wan", "T2V 14B", _WAN, {}, CARD),
    Released("Wan", "2.1 I2V 14B", _WAN, _WANI, CARD),
    Released("Wan", "2.2 I2V A14B", _WAN, {"in_channels": 36}, CARD),
    Released("Wan", "2.2 TI2V 5B", _WAN, _WAN5, CARD),
    Released("Wan VACE", "14B", "WanVACETransformer3DModel"),
    Released("Wan VACE", "1.3B", "WanVACETransformer3DModel", _VACE1, DIFFSYNTH),
    Released("Wan Animate", "default", "WanAnimateTransformer3DModel"),
    Released("Wan Animate 2", "default", "WanAnimate2Transformer3DModel"),
    Released("SkyReels-V2", "14B", "SkyReelsV2Transformer3DModel", _SKY14, SCRIPT),
    Released("SkyReels-V2", "1.3B", "SkyReelsV2Transformer3DModel", _WAN1, SCRIPT),
    Released("ChronoEdit", "default", "ChronoEditTransformer3DModel"),
    Released("HunyuanVideo", "1", "HunyuanVideoTransformer3DModel"),
    Released("HunyuanVideo", "I2V", "HunyuanVideoTransformer3DModel",
             {"in_channels": 33, "guidance_embeds": False, "image_condition_type": "latent_concat"}, SCRIPT),
    Released("HunyuanImage", "2.1", "HunyuanImageTransformer2DModel"),
    Released("HunyuanVideo 1.5", "1.5", "HunyuanVideo15Transformer3DModel"),
    Released("FramePack", "default", "HunyuanVideoFramepackTransformer3DModel"),
    Released("LTX-Video", "2B", _LTX),
    Released("LTX-Video", "13B", _LTX, _LTX13, SCRIPT),
    Released("LTX-2", "default", "LTX2VideoTransformer3DModel"),
    Released("LTX-2", "2.3", "LTX2VideoTransformer3DModel", _LTX23, DIFFSYNTH),
    Released("Mochi", "1", "MochiTransformer3DModel"),
    Released("CogVideoX", "2B", _COGX),
    Released("CogVideoX", "5B", _COGX, _COG5, CARD),
    Released("CogVideoX", "5B I2V", _COGX, _COG5 | {"in_channels": 32}, CARD),
    Released("ConsisID", "default", "ConsisIDTransformer3DModel"),
    Released("Kandinsky 5", "Lite video", "Kandinsky5Transformer3DModel", _KANDINSKY5_VIDEO, AUTHORS),
    Released("Kandinsky 5", "Lite image", "Kandinsky5Transformer3DModel", _KANDINSKY5_IMAGE, AUTHORS),
    Released("Kandinsky 5", "Pro video", "Kandinsky5Transformer3DModel", _KANDINSKY5_PRO, AUTHORS),
    Released("Helios", "default", "HeliosTransformer3DModel"),
    Released("BRIA FIBO", "8B", "BriaFiboTransformer2DModel", {"in_channels": 48, "num_layers": 8},
             "mflux's model of the published weights"),
    Released("BRIA FIBO 2", "default", "BriaFibo2Transformer2DModel"),
    Released("Ideogram 4", "default", "Ideogram4Transformer2DModel"),
    Released("ERNIE-Image", "8B", "ErnieImageTransformer2DModel", _ERNIE, DIFFSYNTH),
    Released("ACE-Step", "1.5", "AceStepTransformer1DModel"),
    Released("ACE-Step", "1.5 XL", "AceStepTransformer1DModel", _ACE_XL, DIFFSYNTH),
    Released("MiniMax-H3", "default", "MiniMaxH3Transformer3DModel"),
    Released("Proteina", "default", "RFD4ProteinaTransformer"),
    Released("AnyFlow", "default", "AnyFlowTransformer3DModel"),
    Released("AnyFlow", "FAR", "AnyFlowFARTransformer3DModel"),
    Released("BRIA", "3.2", "BriaTransformer2DModel"),
    Released("LongCat-Image", "1", "LongCatImageTransformer2DModel",
             {"num_layers": 10, "num_single_layers": 20}, "ComfyUI nodes that load the published weights"),
    Released("Ovis-Image", "7B", "OvisImageTransformer2DModel"),
    Released("Nucleus-Image", "1", "NucleusMoEImageTransformer2DModel", _NUCLEUS, CARD),
    Released("GLM-Image", "7B", "GlmImageTransformer2DModel",
             {"num_attention_heads": 32, "attention_head_dim": 128}, "FastVideo's settings for the published weights"),
    Released("Cosmos 3", "default", "Cosmos3OmniTransformer"),
    Released("Kandinsky 6", "default", "Kandinsky6SRTransformer3DModel"),
    Released("Anima", "text conditioner", "AnimaTextConditioner", model="text_conditioner"),
    Released("LTX-2", "connectors", "pipelines.ltx2.connectors.LTX2TextConnectors", model="connectors"),
)  # fmt: skip


# --- the table


def shapes(released: Released) -> dict[str, tuple[int, ...]]:
    """Every layer with a weight of a released model → the shape of its update: (out, in), or (n,) of a norm."""
    import torch

    module, _, name = f"diffusers.{released.cls}".rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    with torch.device("meta"):
        model = cls(**released.config)
    found: dict[str, tuple[int, ...]] = {}
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor):
            found[name] = (len(weight), math.prod(weight.shape[1:])) if weight.ndim > 1 else (len(weight),)
    return found


def folded(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The modules as a tree of their names' parts, in which numbered branches that are alike are one ("0..18,20")."""
    tree: dict[str, Any] = {}
    for name, shape in shapes.items():
        *above, leaf = name.split(".")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
        at.setdefault(leaf, {})[""] = list(shape)
    return _alike(tree)


def _alike(tree: dict[str, Any]) -> dict[str, Any]:
    branches = {part: branch if part == "" else _alike(branch) for part, branch in tree.items()}
    found: dict[str, Any] = {}
    numbered: dict[str, list[int]] = {}
    for part, branch in branches.items():
        if part.isdigit():
            numbered.setdefault(json.dumps(branch), []).append(int(part))
        else:
            found[part] = branch
    for branch, numbers in numbered.items():
        found[_ranges(sorted(numbers))] = json.loads(branch)
    return {part: branch[""] if isinstance(branch, dict) and set(branch) == {""} else branch
            for part, branch in found.items()}  # fmt: skip


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def unfolded(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of `folded` modules and their shapes, ranges of numbers as they stand ("blocks.0..29.attn.to_q")."""
    for part, branch in tree.items():
        name = f"{above}.{part}" if above and part else above or part
        if isinstance(branch, list):
            yield name, tuple(branch)
        else:
            yield from unfolded(branch, name)


def numbers(part: str) -> tuple[tuple[int, int], ...] | None:
    """The ranges of a part of a folded name, ends included; None for a part that is no number."""
    if not re.fullmatch(r"\d+(\.\.\d+)?(,\d+(\.\.\d+)?)*", part):
        return None
    ends = [run.partition("..") for run in part.split(",")]
    return tuple((int(first), int(last or first)) for first, _, last in ends)


def main() -> None:
    import diffusers

    lines = []
    for each in RELEASED:
        row = {"family": each.family, "variant": each.variant, "class": each.cls, "model": each.model,
               "source": each.source, "modules": folded(shapes(each))}  # fmt: skip
        lines.append(json.dumps(row, separators=(",", ":")))
        print(f"{each.family} {each.variant}: {len(lines[-1]):,} bytes", flush=True)
    head = json.dumps({"diffusers": diffusers.__version__})
    TABLE.write_text(f'{head[:-1]},"released":[\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
