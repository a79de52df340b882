"""Stable Diffusion 1 and 2 (Rombach et al. 2022) and XL (Podell et al. 2023) as their authors name their UNets."""

import re
from collections.abc import Callable, Mapping, Sequence

from .spelling import Spelling, Tokens

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
        return f"{start}.resnets.{number}.{_RESNET[inner]}" if inner in _RESNET else None
    if kind is None or inner.split(".")[0] in ("in_layers", "emb_layers", "out_layers", "skip_connection"):
        return None
    return f"{start}.{kind}.{number}.{inner}"


SGM = Spelling(
    model="unet",
    first=frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}),
    words=(
        "input_blocks",
        "middle_block",
        "output_blocks",
        "in_layers",
        "emb_layers",
        "out_layers",
        "skip_connection",
        "time_embed",
        "label_emb",
        "op",
        "out",
    ),
    translate=_sgm,
    suffix="-sgm",
)


# --- cloneofsimo: modules by their place in a walk through the model

_CROSS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
_SECOND = tuple(name.replace("attn1", "attn2") for name in _CROSS)
_GATE = "ff.net.0.proj"
_CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")  # in the order of transformers' CLIPAttention
# Blocks in the order in which a UNet holds them, the middle last: how many attentions and resnets each has, and which
# resnets change the number of channels.
_BLOCKS: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
    ("down_blocks.0", 2, 2, ()), ("down_blocks.1", 2, 2, (0,)), ("down_blocks.2", 2, 2, (0,)),
    ("down_blocks.3", 0, 2, ()), ("up_blocks.0", 0, 3, (0, 1, 2)), ("up_blocks.1", 3, 3, (0, 1, 2)),
    ("up_blocks.2", 3, 3, (0, 1, 2)), ("up_blocks.3", 3, 3, (0, 1, 2)), ("mid_block", 1, 2, ()),
)  # fmt: skip


def positional(shapes: Mapping[str, Sequence[tuple[int, int]]]) -> Callable[[str, int], str] | None:
    """Names of modules that a file only numbers, given the (out, in) of those of `unet` and `text_encoder`, in order.

    A walk meets a block's self-attention, its feed-forward gate and its cross-attention in the order in which diffusers
    made them: the gate second until 0.10, last since; shapes show which, as the gate is the one layer that is not
    square. With convolutions (extended) it meets a block's attentions, then its resnets. None where the counts are not
    those of Stable Diffusion 1 or 2.
    """
    unet, text = list(shapes.get("unet", ())), list(shapes.get("text_encoder", ()))
    square = all(shape == unet[0] == shape[::-1] for shape in unet)
    if unet and not text and square and len(unet) not in _ORDERS:
        unet, text = [], unet  # a list of a text encoder, which says of itself that it is one by its file's name alone
        return _named([], _clip(len(text)), "unet") if len(text) % len(_CLIP) == 0 else None
    if len(text) % len(_CLIP) or not (unet or text):
        return None
    walks = [_walk(inner, extended=len(unet) == 224) for inner in _ORDERS[len(unet)]] if len(unet) in _ORDERS else []
    fitting = [walk for walk in walks if _gates(walk) == [n for n, s in enumerate(unet) if s[0] == 8 * s[1]]]
    if unet and not walks:
        return None
    return _named((fitting or walks or [[]])[0], _clip(len(text)), "text_encoder")


_ORDERS: dict[int, tuple[tuple[str, ...], ...]] = {
    128: ((*_CROSS, *_SECOND),),
    144: ((*_CROSS, _GATE, *_SECOND), (*_CROSS, *_SECOND, _GATE)),
    224: ((*_CROSS, _GATE, *_SECOND), (*_CROSS, *_SECOND, _GATE)),
}


def _walk(inner: Sequence[str], *, extended: bool) -> list[str]:
    found = []
    for block, attentions, resnets, shortcuts in _BLOCKS:
        found += [
            f"unet.{block}.attentions.{n}.transformer_blocks.0.{leaf}" for n in range(attentions) for leaf in inner
        ]
        for n in range(resnets if extended else 0):
            leaves = ("conv1", "time_emb_proj", "conv2", *(("conv_shortcut",) if n in shortcuts else ()))
            found += [f"unet.{block}.resnets.{n}.{leaf}" for leaf in leaves]
    return found


def _gates(walk: Sequence[str]) -> list[int]:
    return [n for n, name in enumerate(walk) if name.endswith(_GATE)]


def _clip(count: int) -> list[str]:
    layers = range(count // len(_CLIP))
    return [f"text_encoder.text_model.encoder.layers.{n}.self_attn.{leaf}" for n in layers for leaf in _CLIP]


def _named(unet: Sequence[str], clip: Sequence[str], of_clip: str) -> Callable[[str, int], str]:
    return lambda model, number: (clip if model == of_clip else unet)[number]
