"""Names of modules: every convention of LoRA files, spelled as diffusers spells them.

``unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` is the one spelling that the rest of the library
sees. A name is brought there in two steps: a prefix says which model it belongs to and whether its parts are joined by
dots or by underscores; its first part says whose block names it uses (diffusers', or those of the model's authors:
sgm for Stable Diffusion, BFL for FLUX, MMDiT for SD3), which are then translated.

Underscores are read with a vocabulary, since "to_out_0" is to_out.0 and "proj_in" one word. A name with a word outside
of it is unknown, and said to be so: guessing would put an update beside one of another module.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where an update belongs. Several `modules` share the rows of a fused layer, in this order.

    `widths`: rows of each of them, as multiples of the layer's input width; None where the layer is one module, and
    -1 for "all that is left". `swapped`: the halves of the rows stand in the other order (shift, scale).
    """

    modules: tuple[str, ...]
    naming: str
    widths: tuple[int, ...] | None = None
    swapped: bool = False


_PREFIXES: tuple[tuple[str, str | None, str, str], ...] = (  # prefix, model (None: by its parts), separator, convention
    ("lora_unet_", "unet", "_", "kohya"),
    ("lora_transformer_", "transformer", "_", "kohya"),
    ("lora_te1_", "text_encoder", "_", "kohya"),
    ("lora_te2_", "text_encoder_2", "_", "kohya"),
    ("lora_te3_", "text_encoder_3", "_", "kohya"),
    ("lora_te_", "text_encoder", "_", "kohya"),
    ("lycoris_", None, "_", "lycoris"),
    ("base_model.model.", None, ".", "peft"),
    ("model.diffusion_model.", None, ".", "comfyui"),
    ("diffusion_model.", None, ".", "comfyui"),
    ("text_encoders.clip_l.transformer.", "text_encoder", ".", "comfyui"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", ".", "comfyui"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_3", ".", "comfyui"),
    ("unet.", "unet", ".", "diffusers"),
    ("transformer.", "transformer", ".", "diffusers"),
    ("text_encoder.", "text_encoder", ".", "diffusers"),
    ("text_encoder_2.", "text_encoder_2", ".", "diffusers"),
    ("text_encoder_3.", "text_encoder_3", ".", "diffusers"),
)
_UNDERSCORED = """
    down_blocks mid_block up_blocks transformer_blocks single_transformer_blocks proj_in proj_out proj_mlp
    to_q to_k to_v to_out to_add_out add_q_proj add_k_proj add_v_proj norm_q norm_k norm_added_q norm_added_k
    time_emb_proj conv_in conv_out conv_shortcut conv_norm_out time_embedding add_embedding linear_1 linear_2
    time_text_embed timestep_embedder text_embedder guidance_embedder x_embedder context_embedder ff_context
    norm_out norm1_context norm2_context pos_embed
    input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection time_embed label_emb
    double_blocks single_blocks img_attn img_mlp img_mod txt_attn txt_mlp txt_mod img_in txt_in time_in vector_in
    guidance_in in_layer out_layer final_layer adaLN_modulation
    joint_blocks x_block context_block t_embedder y_embedder
    text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm text_projection
    wi_0 wi_1 layer_norm
""".split()  # noqa: SIM905
_WORDS = """
    attentions resnets downsamplers upsamplers conv conv1 conv2 attn attn1 attn2 ff net proj linear norm norm1 norm2
    norm3 op out qkv linear1 linear2 lin modulation mlp encoder layers fc1 fc2 block layer SelfAttention DenseReluDense
    q k v o wi wo
""".split()  # noqa: SIM905
# Longest first, so that "to_out" is not read as an unknown "to" and "out".
_ATOM = re.compile("(" + "|".join([*sorted(_UNDERSCORED + _WORDS, key=len, reverse=True), r"\d+"]) + ")(?:_|$)")

_UNET = {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out"}
_UNET |= {"time_embedding", "add_embedding"}
_SGM = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}
_BFL = {"double_blocks", "single_blocks", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer"}
_MMDIT = {"joint_blocks", "t_embedder", "y_embedder"}
_TEXT = {"text_model", "encoder", "text_projection"}

Tokens = Sequence[str]


def place(name: str) -> Place | None:
    """Where the module `name` of some file belongs, or None for a name that is not understood."""
    model, rest, separator, naming = None, name, ".", "bare"
    for prefix, of, between, convention in _PREFIXES:
        if name.startswith(prefix):
            model, rest, separator, naming = of, name[len(prefix) :], between, convention
            break
    parts = rest.split(".") if separator == "." else _words(rest)
    if not parts or not all(re.fullmatch(r"\w+", part, re.ASCII) for part in parts):
        return None
    first = parts[0]
    if first in _SGM and (model in (None, "unet")):
        translated = _sgm(parts)
        return Place((f"unet.{translated}",), f"{naming}-sgm") if translated else None
    if first in _BFL or first in _MMDIT or (first == "context_embedder" and separator == "_"):
        found = (_mmdit if first in _MMDIT else _bfl)(parts)
        return found and Place(
            tuple(f"transformer.{module}" for module in found.modules), naming, found.widths, found.swapped
        )
    if first == "transformer_blocks" or first == "single_transformer_blocks":
        model = "transformer" if model in (None, "unet") else model
    elif first in _UNET:
        model = model or "unet"
    elif first in _TEXT and (model or "text_encoder").startswith("text_encoder"):
        return Place((_text(model or "text_encoder", parts),), naming)
    elif model is not None and model.startswith("text_encoder"):
        return Place((_text(model, parts),), naming)
    elif model is None and naming in ("bare", "lycoris"):
        return None
    # An explicit name of another model (a video model, say) is as good as ours, if its dots are there.
    return Place((f"{model or 'transformer'}.{'.'.join(parts)}",), naming)


def _words(name: str) -> list[str]:
    """The parts of a name that is joined by underscores; none where a word is not in the vocabulary."""
    parts, at = [], 0
    while at < len(name):
        match = _ATOM.match(name, at)
        if match is None:
            return []
        parts.append(match[1])
        at = match.end()
    return parts if not name.endswith("_") else []


def _text(model: str, parts: Tokens) -> str:
    # transformers 5 has no level "text_model" any more; files have it.
    nested = parts[0] == "encoder" and len(parts) > 1 and parts[1] == "layers"
    return ".".join([model, *(["text_model"] if nested else []), *parts])


_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip


def _sgm(parts: Tokens) -> str | None:
    """A name of Stability's own UNets (SD1, SD2, SDXL; two resnets a level) in diffusers' spelling."""
    whole = ".".join(parts)
    if whole in _ENDS:
        return _ENDS[whole]
    match = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)|middle_block\.(\d)\.(.+)", whole)
    if match is None:
        return None
    if match[5] is not None:
        kind, number = {"0": ("resnets", 0), "1": ("attentions", 0), "2": ("resnets", 1)}.get(match[5], (None, 0))
        start, inner = "mid_block", match[6]
    else:
        inner = match[4]
        down = match[1] == "input_blocks"
        if down and match[2] == "0":
            return None
        level, number = divmod(int(match[2]) - down, 3)
        start = f"{'down' if down else 'up'}_blocks.{level}"
        if inner == "op" and down:
            return f"{start}.downsamplers.0.conv"
        if inner == "conv" and not down:
            return f"{start}.upsamplers.0.conv"
        kind = {"0": "resnets", "1": "attentions"}.get(match[3])
    if kind == "resnets":
        inner = _RESNET.get(inner)
    elif kind is None or inner.split(".")[0] in ("in_layers", "emb_layers", "out_layers", "skip_connection"):
        return None
    return inner and f"{start}.{kind}.{number}.{inner}"


_EMBEDDERS = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "context_embedder": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}  # fmt: skip
_IMAGE, _CONTEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out", "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2", "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "processor.proj_lora1": "attn.to_out.0",
    "processor.proj_lora2": "attn.to_add_out",
}  # fmt: skip
_SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear", "processor.proj_lora": "proj_out"}


def _fused(block: str, names: Sequence[str], widths: tuple[int, ...]) -> Place:
    return Place(tuple(f"{block}.{name}" for name in names), "", widths)


def _ends(whole: str) -> Place | None:
    if whole == "final_layer.adaLN_modulation.1":
        return Place(("norm_out.linear",), "", swapped=True)
    return Place((_EMBEDDERS[whole],), "") if whole in _EMBEDDERS else None


def _bfl(parts: Tokens) -> Place | None:
    """A name of FLUX's own code (also XLabs' processors) in diffusers' spelling; fused layers are several modules."""
    whole = ".".join(parts)
    match = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", whole)
    if match is None:
        return _ends(whole)
    kind, number, inner = match.groups()
    if kind == "double":
        block = f"transformer_blocks.{number}"
        if inner in ("img_attn.qkv", "processor.qkv_lora1"):
            return _fused(f"{block}.attn", _IMAGE, (1, 1, 1))
        if inner in ("txt_attn.qkv", "processor.qkv_lora2"):
            return _fused(f"{block}.attn", _CONTEXT, (1, 1, 1))
        return Place((f"{block}.{_DOUBLE[inner]}",), "") if inner in _DOUBLE else None
    block = f"single_transformer_blocks.{number}"
    if inner == "linear1":
        return _fused(block, [*(f"attn.{name}" for name in _IMAGE), "proj_mlp"], (1, 1, 1, -1))
    if inner == "processor.qkv_lora":
        return _fused(f"{block}.attn", _IMAGE, (1, 1, 1))
    return Place((f"{block}.{_SINGLE[inner]}",), "") if inner in _SINGLE else None


_JOINT = {
    "x_block.attn.proj": "attn.to_out.0", "context_block.attn.proj": "attn.to_add_out",
    "x_block.attn2.proj": "attn2.to_out.0", "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear",
}  # fmt: skip
_JOINT_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "x_block.attn.qkv": ("attn", _IMAGE),
    "context_block.attn.qkv": ("attn", _CONTEXT),
    "x_block.attn2.qkv": ("attn2", _IMAGE),
}


def _mmdit(parts: Tokens) -> Place | None:
    """A name of SD3's own code in diffusers' spelling."""
    whole = ".".join(parts)
    match = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", whole)
    if match is None:
        return _ends(whole)
    block, inner = f"transformer_blocks.{match[1]}", match[2]
    if inner in _JOINT_FUSED:
        attention, names = _JOINT_FUSED[inner]
        return _fused(f"{block}.{attention}", names, (1, 1, 1))
    return Place((f"{block}.{_JOINT[inner]}",), "") if inner in _JOINT else None


# --- where a module sits

COMPONENTS: dict[str, str] = {
    "text_encoder": r"^text_encoder",
    "self_attention": r"\.attn1\.|^transformer\..*\.attn2\.",  # SD3.5's second attention sees the picture alone
    "cross_attention": r"\.attn2\.",
    "joint_attention": r"^transformer\.(single_)?transformer_blocks\.\d+\.attn\.",
    "feed_forward": r"\.ff(_context)?\.|^transformer\.single_transformer_blocks\.\d+\.proj_(mlp|out)$",
    "projection": r"\.proj_(in|out)$",
    "convolution": r"\.(conv\w*|conv_shortcut)$",
}
BLOCKS: dict[str, str] = {
    "down": r"\.down_blocks\.",
    "mid": r"\.mid_block\.",
    "up": r"\.up_blocks\.",
    "double": r"^transformer\.transformer_blocks\.",
    "single": r"^transformer\.single_transformer_blocks\.",
}


def component(module: str) -> str:
    """What a module does: a key of COMPONENTS, or "other"; a bias does what its weight does."""
    module = module.removesuffix(".bias")
    return next((name for name, pattern in COMPONENTS.items() if re.search(pattern, module)), "other")


def block(module: str) -> str:
    """Where a module sits in its model: a key of BLOCKS, or "other"."""
    return next((name for name, pattern in BLOCKS.items() if re.search(pattern, module)), "other")


def wanted(module: str, components: Collection[str] | None, blocks: Collection[str] | None) -> bool:
    """Whether a module is in one of these components and blocks; None: in any."""
    return (components is None or component(module) in components) and (blocks is None or block(module) in blocks)


def places(module: str) -> tuple[str, ...]:
    """Where a module sits, ever more closely: ("up", "up_blocks.1", "up_blocks.1.attentions.0"); "other" for none."""
    found = [block(module)]
    match = re.search(r"\.((?:down|up)_blocks\.\d+|mid_block|(?:single_)?transformer_blocks\.\d+)(?:\.|$)", module)
    if match:
        found.append(match[1])
        inner = re.match(r"(attentions|resnets)\.\d+", module[match.end() :])
        if inner:
            found.append(f"{match[1]}.{inner[0]}")
    return tuple(dict.fromkeys(found))


# --- cloneofsimo: modules by their place in a walk through the model

_CROSS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
_CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")  # in the order of transformers' CLIPAttention


def positional(counts: dict[str, int]) -> Callable[[str, int], str] | None:
    """Names of modules that a file only numbers, given how many it has of `unet` and of `text_encoder`.

    The walk is that of diffusers 0.10: a block's self-attention, feed-forward gate (if the file has it), then
    cross-attention; down blocks, up blocks, the middle. None where the counts are not those of Stable Diffusion 1 or 2.
    """
    inner = {144: [*_CROSS, "ff.net.0.proj"], 128: list(_CROSS)}.get(counts.get("unet", 0))
    text = counts.get("text_encoder", 0)
    if (inner is None and counts.get("unet")) or text % len(_CLIP) or not any(counts.values()):
        return None
    starts = [f"down_blocks.{b}.attentions.{a}" for b in (0, 1, 2) for a in (0, 1)]
    starts += [f"up_blocks.{b}.attentions.{a}" for b in (1, 2, 3) for a in (0, 1, 2)]
    starts += ["mid_block.attentions.0"]
    leaves = [*(inner or []), *(name.replace("attn1", "attn2") for name in _CROSS)]
    unet = [f"unet.{start}.transformer_blocks.0.{leaf}" for start in starts for leaf in leaves]
    clip = [f"text_encoder.text_model.encoder.layers.{n}.self_attn.{leaf}" for n in range(text // 4) for leaf in _CLIP]
    return lambda model, number: (unet if model == "unet" else clip)[number]
