"""Names of modules: every convention of LoRA files, spelled as diffusers spells them.

``unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` is the one spelling that the rest of the library
sees. A name is translated in two steps: a prefix says which model it belongs to and how it was written; what remains is
looked up in the table of the released models' modules (families/), whether its parts are joined by dots or by
underscores, and in the names that the models' authors use. All names of a file are looked up together, since what one
of them is can depend on the model that the others show.

What the table does not have is a text encoder's, a UNet's in its authors' names, or a model's that is not known here.
Underscores of those are read with a vocabulary, since "to_out_0" is to_out.0 and "proj_in" one word. A name with a word
outside of it is unknown, and said to be so: guessing would put an update beside one of another module.
"""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from .families import SPELLINGS
from .families.spelling import Place, Tokens
from .families.table import Architecture, Entry, Named, Shape, Variant, kin, spoken

_PREFIXES: tuple[tuple[str, str | None, str, str], ...] = (  # prefix, model (None: by its parts), separator, convention
    ("lora_unet_llm_adapter_", "text_conditioner", "_", "kohya"),
    ("lora_unet_", "unet", "_", "kohya"),
    ("lora_transformer_", "transformer", "_", "kohya"),
    ("lora_te1_", "text_encoder", "_", "kohya"),
    ("lora_te2_", "text_encoder_2", "_", "kohya"),
    ("lora_te3_", "text_encoder_3", "_", "kohya"),
    ("lora_te4_", "text_encoder_4", "_", "kohya"),
    ("lora_te_", "text_encoder", "_", "kohya"),
    ("lycoris_", None, "_", "lycoris"),
    ("base_model.model.", None, ".", "peft"),
    ("diffusion_model.llm_adapter.", "text_conditioner", ".", "comfyui"),
    ("text_embedding_projection.", "connectors", ".", "comfyui"),
    ("model.diffusion_model.", None, ".", "comfyui"),
    ("diffusion_model.", None, ".", "comfyui"),
    ("unet.", "unet", ".", "diffusers"),
    ("transformer.", "transformer", ".", "diffusers"),
    ("transformer_2.", "transformer_2", ".", "diffusers"),
    ("transformer_ref.", "transformer_ref", ".", "diffusers"),
    ("conditional_transformer.", "transformer", ".", "diffusers"),
    ("text_conditioner.", "text_conditioner", ".", "diffusers"),
    ("connectors.", "connectors", ".", "diffusers"),
    ("text_encoder.", "text_encoder", ".", "diffusers"),
    ("text_encoder_2.", "text_encoder_2", ".", "diffusers"),
    ("text_encoder_3.", "text_encoder_3", ".", "diffusers"),
    ("text_encoder_4.", "text_encoder_4", ".", "diffusers"),
)
# ComfyUI says which text encoder it is, not which place it has in a pipeline: that depends on the family, and is
# decided when that is known (`families.text_encoder`).
_TEXT_ENCODERS = re.compile(r"text_encoders\.(?P<name>[\w-]+?)\.(?:transformer\.)?(?=\w)")
_ROLES = tuple(
    (role, re.compile(pattern)) for role, pattern in
    (("clip_l", r"clip_[lh]"), ("clip_g", r"clip_g"), ("byt5", r"byt5.*"), ("t5", r".*t5.*"), ("llm", r".*"))
)  # fmt: skip
# What stands between a prefix and the name in files whose model was wrapped twice.
_WRAPPED = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module.", "pipe.dit.", "dit.",
    "net.", "lora_unet_", "unet_", "unet.", "transformer.",
)  # fmt: skip
_UNDERSCORED = """
    down_blocks mid_block up_blocks transformer_blocks proj_in proj_out to_q to_k to_v to_out
    time_emb_proj conv_in conv_out conv_shortcut conv_norm_out time_embedding add_embedding linear_1 linear_2
    text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm text_projection
    wi_0 wi_1 layer_norm
""".split()  # noqa: SIM905
_WORDS = """
    attentions resnets downsamplers upsamplers conv conv1 conv2 attn1 attn2 ff net proj norm norm1 norm2
    norm3 mlp encoder layers fc1 fc2 block layer SelfAttention DenseReluDense q k v o wi wo
""".split()  # noqa: SIM905
# Of text encoders that are language models (Gemma, Llama, Qwen, Mistral, ChatGLM), and of what some of them see with.
_OF_LANGUAGE = """
    gate_proj up_proj down_proj o_proj gate_up_proj qkv_proj q_norm k_norm input_layernorm post_attention_layernorm
    pre_feedforward_layernorm post_feedforward_layernorm embed_tokens language_model model self_attention
    query_key_value dense dense_h_to_4h dense_4h_to_h visual blocks attn qkv merger ln_q patch_embed
""".split()  # noqa: SIM905


def _atoms(words: Collection[str]) -> re.Pattern[str]:
    """Longest first, so that "to_out" is not read as an unknown "to" and "out"."""
    return re.compile("(" + "|".join([*sorted(words, key=lambda word: (-len(word), word)), r"\d+"]) + ")(?:_|$)")


_KNOWN = {*_UNDERSCORED, *_WORDS, *(word for each in SPELLINGS for word in each.words)}
_ATOM, _ATOM_OF_TEXT = _atoms(_KNOWN), _atoms({*_UNDERSCORED, *_WORDS, *_OF_LANGUAGE})

_UNET = {"down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_norm_out"}
_UNET |= {"time_embedding", "add_embedding"}
_TEXT = {"text_model", "encoder", "text_projection"}


def place(name: str) -> Place | None:
    """Where the module `name` of some file belongs, or None for a name that is not understood."""
    return located({name: None})[name]


def located(names: Mapping[str, Shape | None], claim: str | None = None) -> dict[str, Place | None]:
    """Where each module of a file belongs; None for a name that is not understood.

    `names`: what the file calls its modules → (out, in) of their updates, None where that is not known. `claim`: the
    family that the header claims, which decides where names and shapes leave a choice.
    """
    prefixed = {name: _prefixed(name) for name in names}
    named = {
        name: Named(_meant(model, naming), rest, names[name]) for name, (model, rest, _, naming) in prefixed.items()
        if not (model or "").startswith("text_encoder")
    }  # fmt: skip
    main = [each for each in named.values() if each.model not in _PARTS]
    said: dict[str | None, tuple[Architecture, Variant | None] | None] = {None: spoken(main, claim) if main else None}
    for part in _PARTS:
        if of_part := [each for each in named.values() if each.model == part]:
            said[part] = spoken(of_part, claim)
    found: dict[str, Place | None] = {}
    for name, (model, rest, separator, naming) in prefixed.items():
        spoke = said.get(model if model in _PARTS else None) if name in named else None
        entry = spoke[0].entry(*named[name].parsed) if spoke and kin(named[name].model, spoke[0]) else None
        if spoke and entry:
            found[name] = _looked_up(named[name], entry, *spoke, naming)
        else:
            found[name] = _vocabulary(model, rest, separator, naming)
    unread = [name for name in named if found[name] is None and _may_be_joined(prefixed[name])]
    if len(unread) > SHARE * len(named) and len(unread) > 1:
        # A model that is not known here: all its names as they stand, so that its files are compared with one another.
        for name in named:
            found[name] = Place((f"transformer.{prefixed[name][1]}",), prefixed[name][3])
    return found


SHARE = 0.2  # of a file's names that are in no vocabulary, from which on it is another model's and none is a misprint


def _may_be_joined(prefixed: tuple[str | None, str, str, str]) -> bool:
    """Whether a name could be a module of an unknown model, its parts joined by underscores: with a block's number."""
    _, rest, separator, _ = prefixed
    return separator == "_" and "__" not in rest and bool(re.fullmatch(r"[A-Za-z]\w*_\d+_[\w-]*\w", rest, re.ASCII))


_PARTS = ("text_conditioner", "connectors")  # of pipelines, beside the model that denoises


def _prefixed(name: str) -> tuple[str | None, str, str, str]:
    """Model, name, separator and convention, as the prefix says."""
    model, rest, separator, naming = None, name, ".", "bare"
    if match := _TEXT_ENCODERS.match(name):
        role = next(role for role, pattern in _ROLES if pattern.fullmatch(match["name"]))
        return f"text_encoder_{role}", name[match.end() :], ".", "comfyui"
    for prefix, of, between, convention in _PREFIXES:
        if name.startswith(prefix):
            model, rest, separator, naming = of, name[len(prefix) :], between, convention
            break
    while naming != "bare" or rest == name:
        again = next((prefix for prefix in _WRAPPED if rest.startswith(prefix)), None)
        # "transformer.h.0" is a language model's own name.
        if again is None or re.match(r"transformer\.(h|layers?)\.\d", rest):
            break
        if again in ("unet.", "transformer.") and model is None:
            model = again.removesuffix(".")
        rest = rest[len(again) :]
        naming = "comfyui" if naming == "bare" else naming
    if model is None and (stage := re.match(r"transformer_([12])\.", rest)):
        # ai-toolkit's Wan 2.2 of both stages in one file.
        model, rest = "transformer" if stage[1] == "1" else "transformer_2", rest[stage.end() :]
    if ".temporal_transformer." in rest:  # AnimateDiff's motion modules as they were published
        rest = re.sub(r"\.attention_blocks\.([01])\.", lambda m: f".attn{int(m[1]) + 1}.", rest)
        rest = rest.replace(".temporal_transformer.", ".")
    return model, rest, separator, naming


def _meant(model: str | None, naming: str) -> str | None:
    """The model that a prefix means: kohya's says unet of any model."""
    return None if naming == "kohya" and model in ("unet", "transformer") else model


def _looked_up(named: Named, entry: Entry, arch: Architecture, variant: Variant | None, naming: str) -> Place:
    """The place of a name that the table has; the rows of a fused layer as the released model has them, if its shapes
    are that model's, else as its kind of attention divides them."""
    model = named.model if named.model and named.model.startswith("transformer_") else arch.model
    modules = tuple(f"{model}.{module}" for module in entry.named(named.parsed[1]))
    shape = named.shape
    swapped = entry.order == "~" or (entry.order == "~?" and shape is not None and shape[0] == 2 * shape[1])
    if len(modules) == 1:
        return Place(modules, naming, swapped=swapped)
    rows = None
    if shape is not None:
        rows = arch.rows(entry.parsed(named.parsed[1]), shape, variant) if variant else None
        rows = rows or _divided(len(modules), shape, grouped=entry.order == "%")
    return Place(modules, naming, rows or ())


def _divided(count: int, shape: Shape, *, grouped: bool) -> tuple[int, ...] | None:
    """The rows of queries, keys and values (and of a feed-forward layer beside them) in a layer of any size."""
    out, width = shape
    if count == 4:
        return (width, width, width, out - 3 * width) if out > 3 * width else None
    if grouped and out != 3 * width:
        each, rest = divmod(out - width, 2)
        return None if rest or each < 1 else (width, each, each)
    each, rest = divmod(out, count)
    return None if rest or not each else (each,) * count


def _vocabulary(model: str | None, rest: str, separator: str, naming: str) -> Place | None:
    """A name that the table does not have."""
    of_text = model is not None and model.startswith("text_encoder")
    parts = rest.split(".") if separator == "." else _words(rest, _ATOM_OF_TEXT if of_text else _ATOM)
    if not parts or not all(re.fullmatch(r"\w[\w-]*", part, re.ASCII) for part in parts):
        return None
    first = parts[0]
    for spelling in SPELLINGS:
        if first in spelling.first and model in (None, spelling.model):
            return spelling.place(naming, parts)
    if first in _UNET:
        model = model or "unet"
    elif first in _TEXT and (model or "text_encoder").startswith("text_encoder"):
        return Place((_text(model or "text_encoder", parts),), naming)
    elif model is not None and of_text:
        return Place((_text(model, parts),), naming)
    elif model is None and naming in ("bare", "lycoris"):
        return None
    # An explicit name of another model (a video model, say) is as good as ours, if its dots are there.
    return Place((f"{model or 'transformer'}.{'.'.join(parts)}",), naming)


def _words(name: str, atom: re.Pattern[str]) -> list[str]:
    """The parts of a name that is joined by underscores; none where a word is not in the vocabulary."""
    parts, at = [], 0
    while at < len(name):
        match = atom.match(name, at)
        if match is None:
            return []
        parts.append(match[1])
        at = match.end()
    return parts if not name.endswith("_") else []


def _text(model: str, parts: Tokens) -> str:
    # How deep a language model's layers lie depends on the class that it was loaded as.
    wrapped = next((n for n, part in enumerate(parts) if part not in ("model", "language_model")), 0)
    if parts[wrapped] == "layers":
        parts = parts[wrapped:]
    # transformers 5 has no level "text_model" any more; files have it.
    nested = parts[0] == "encoder" and len(parts) > 1 and parts[1] == "layers"
    return ".".join([model, *(["text_model"] if nested else []), *parts])


# --- where a module sits

COMPONENTS: dict[str, str] = {
    "text_encoder": r"^text_encoder",
    # SD3.5's second attention and Z-Image's refiners see the picture alone, or the text.
    "self_attention": r"\.attn1\.|^transformer\.(.*\.attn2|\w+_refiner\.\d+\.attention)\.",
    "cross_attention": r"\.attn2\.",
    "joint_attention": r"^transformer\.((single_)?transformer_blocks\.\d+\.attn|layers\.\d+\.attention)\.",
    "feed_forward": (
        r"\.(ff(_context)?|(img|txt)_mlp|feed_forward)\.|^transformer\.single_transformer_blocks\.\d+\.proj_(mlp|out)$"
    ),
    "modulation": (
        r"^transformer\.((single_)?transformer_blocks\.\d+\.(norm1?(_context)?\.linear|(img|txt)_mod\.1)"
        r"|\w+_stream_modulation\w*\.linear|\w+\.\d+\.adaLN_modulation\.\d+)$"
    ),
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


@lru_cache(maxsize=1 << 16)  # asked of the same modules of each file
def component(module: str) -> str:
    """What a module does: a key of COMPONENTS, or "other"; a bias does what its weight does."""
    module = module.removesuffix(".bias")
    return next((name for name, pattern in COMPONENTS.items() if re.search(pattern, module)), "other")


@lru_cache(maxsize=1 << 16)
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
