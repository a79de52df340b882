"""FLUX.1: a transformer with blocks of two streams and of one."""

import re

from .family import Family, transformer
from .spelling import CONTEXT, IMAGE, Place, Spelling, Tokens, fused, one

_ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out", "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2", "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear", "processor.proj_lora1": "attn.to_out.0",
    "processor.proj_lora2": "attn.to_add_out",
}  # fmt: skip
_SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear", "processor.proj_lora": "proj_out"}


def _bfl(parts: Tokens) -> Place | None:
    """A name of FLUX's own code (also XLabs' processors) in diffusers' spelling; fused layers are several modules."""
    whole = ".".join(parts)
    match = re.fullmatch(r"(double|single)_blocks\.(\d+)\.(.+)", whole)
    if match is None:
        if whole == "final_layer.adaLN_modulation.1":
            return Place(("norm_out.linear",), "", swapped=True)
        return one(_ENDS[whole]) if whole in _ENDS else None
    kind, number, inner = match.groups()
    if kind == "double":
        block = f"transformer_blocks.{number}"
        if inner in ("img_attn.qkv", "processor.qkv_lora1"):
            return fused(f"{block}.attn", IMAGE, (1, 1, 1))
        if inner in ("txt_attn.qkv", "processor.qkv_lora2"):
            return fused(f"{block}.attn", CONTEXT, (1, 1, 1))
        return one(f"{block}.{_DOUBLE[inner]}") if inner in _DOUBLE else None
    block = f"single_transformer_blocks.{number}"
    if inner == "linear1":
        return fused(block, [*(f"attn.{name}" for name in IMAGE), "proj_mlp"], (1, 1, 1, -1))
    if inner == "processor.qkv_lora":
        return fused(f"{block}.attn", IMAGE, (1, 1, 1))
    return one(f"{block}.{_SINGLE[inner]}") if inner in _SINGLE else None


BFL = Spelling(
    model="transformer",
    first=frozenset(
        ["double_blocks", "single_blocks", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer"]
    ),
    words=(
        "double_blocks",
        "single_blocks",
        "img_attn",
        "img_mlp",
        "img_mod",
        "txt_attn",
        "txt_mlp",
        "txt_mod",
        "img_in",
        "txt_in",
        "time_in",
        "vector_in",
        "guidance_in",
        "in_layer",
        "out_layer",
        "final_layer",
        "adaLN_modulation",
        "qkv",
        "linear1",
        "linear2",
        "lin",
        "modulation",
    ),
    translate=_bfl,
)

FLUX = Family(
    name="FLUX",
    claims=r"flux",
    texts={"text_encoder": 768, "text_encoder_2": 4096},
    spelling=BFL,
    allowed=transformer(3072, single=True),
)
