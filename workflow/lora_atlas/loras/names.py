"""Names of modules: every convention of LoRA files, spelled as diffusers spells them.

``unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` is the one spelling that the rest of the library
sees. A name is translated in two steps: a prefix says which model it belongs to and whether its parts are joined by
dots or by underscores; its first part says whose block names it uses (diffusers', or those of a base's authors, whose
spelling stands with the family in families/).

Underscores are read with a vocabulary, since "to_out_0" is to_out.0 and "proj_in" one word. A name with a word outside
of it is unknown, and said to be so: guessing would put an update beside one of another module.
"""

import re
from collections.abc import Collection

from .families import SPELLINGS
from .families.spelling import Place, Tokens

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
    text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm text_projection
    wi_0 wi_1 layer_norm
""".split()  # noqa: SIM905
_WORDS = """
    attentions resnets downsamplers upsamplers conv conv1 conv2 attn attn1 attn2 ff net proj linear norm norm1 norm2
    norm3 mlp encoder layers fc1 fc2 block layer SelfAttention DenseReluDense
    q k v o wi wo
""".split()  # noqa: SIM905
# Longest first, so that "to_out" is not read as an unknown "to" and "out".
_KNOWN = {*_UNDERSCORED, *_WORDS, *(word for each in SPELLINGS for word in each.words)}
_ATOM = re.compile("(" + "|".join([*sorted(_KNOWN, key=lambda word: (-len(word), word)), r"\d+"]) + ")(?:_|$)")

_UNET = {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out"}
_UNET |= {"time_embedding", "add_embedding"}
_TEXT = {"text_model", "encoder", "text_projection"}


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
    for spelling in SPELLINGS:
        ours = first in spelling.first or (separator == "_" and first in spelling.joined)
        if ours and (model in (None, spelling.model) or not spelling.alone):
            return spelling.place(naming, parts)
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
