"""Stable Diffusion 1 and 2 (Rombach et al. 2022) and XL (Podell et al. 2023) as their authors name their UNets."""

import re
from collections.abc import Callable

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
