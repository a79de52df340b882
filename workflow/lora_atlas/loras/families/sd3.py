"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): transformers of 1,536 (medium) and 2,432 (large) wide streams."""

import re

from .family import Family, transformer
from .spelling import CONTEXT, IMAGE, Place, Spelling, Tokens, fused, one

_ENDS = {
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
}
_JOINT = {
    "x_block.attn.proj": "attn.to_out.0", "context_block.attn.proj": "attn.to_add_out",
    "x_block.attn2.proj": "attn2.to_out.0", "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear",
}  # fmt: skip
_JOINT_FUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "x_block.attn.qkv": ("attn", IMAGE),
    "context_block.attn.qkv": ("attn", CONTEXT),
    "x_block.attn2.qkv": ("attn2", IMAGE),
}


def _mmdit(parts: Tokens) -> Place | None:
    """A name of SD3's own code in diffusers' spelling."""
    whole = ".".join(parts)
    match = re.fullmatch(r"joint_blocks\.(\d+)\.(.+)", whole)
    if match is None:
        return one(_ENDS[whole]) if whole in _ENDS else None
    block, inner = f"transformer_blocks.{match[1]}", match[2]
    if inner in _JOINT_FUSED:
        attention, names = _JOINT_FUSED[inner]
        return fused(f"{block}.{attention}", names, (1, 1, 1))
    return one(f"{block}.{_JOINT[inner]}") if inner in _JOINT else None


MMDIT = Spelling(
    model="transformer",
    first=frozenset({"joint_blocks", "t_embedder", "y_embedder"}),
    joined=frozenset({"context_embedder"}),  # with dots, diffusers' own
    words=("joint_blocks", "x_block", "context_block", "t_embedder", "y_embedder", "qkv", "adaLN_modulation"),
    translate=_mmdit,
)

SD3 = Family(
    name="SD3",
    claims=r"sd3|sd_3|stable-diffusion-3|stable-diffusion-v3",
    texts={"text_encoder": 768, "text_encoder_2": 1280, "text_encoder_3": 4096},
    spelling=MMDIT,
    allowed=transformer(1536, 2432, single=False),
)
