"""What a base family is to the rest of the library, and the two shapes of denoisers that families have."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .spelling import Spelling

Shape = tuple[int, int]
OTHER = "other"

_ATTENTION = r"attentions\.\d+\.(?P<inner>transformer_blocks\.(?P<layer>\d+)\.(?P<leaf>.+)|proj_in|proj_out)"
_UNET = re.compile(rf"unet\.(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|(?P<mid>mid_block))\.{_ATTENTION}")
_TRANSFORMER = re.compile(r"transformer\.(?P<kind>single_)?transformer_blocks\.\d+\.(?P<leaf>.+)")
_CLIP = re.compile(r"(?P<model>text_encoder(?:_\d)?)\..*\.self_attn\.\w+")

Allowed = Callable[[str], tuple[Shape, ...] | None]


@dataclass(frozen=True)
class Family:
    """One family of bases.

    `claims`: pattern of what headers call it, in lower case. `texts`: text encoder → width. `allowed`: module → shapes
    (out, in) that its update may have; none where the family has no such module, None where nothing is known of it.
    `spelling`: of its authors, where it is not diffusers'.
    """

    name: str
    claims: str
    texts: Mapping[str, int]
    allowed: Allowed
    spelling: Spelling | None = None

    def fits(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether every module that the table knows has its shape, and there is one."""
        known = 0
        for module, shape in shapes.items():
            allowed = self.allowed(module)
            if allowed is None:
                continue
            if shape not in allowed:
                return False
            known += 1
        return known > 0


def text_model(module: str) -> str | None:
    """The text encoder that an attention layer belongs to; None for any other module."""
    match = _CLIP.fullmatch(module)
    return match["model"] if match else None


def unet(widths: Mapping[str, int], text: int, depth: Mapping[str, int]) -> Allowed:
    """A UNet: widths of its blocks (d0 is down_blocks.0, m the middle, u1 up_blocks.1), of the text that
    cross-attention reads, and how many transformer layers a block has where it is not one."""

    def allowed(module: str) -> tuple[Shape, ...] | None:
        if not module.startswith("unet."):
            return ()
        match = _UNET.fullmatch(module)
        if match is None:
            return None
        place = "m" if match["mid"] else f"{match['side'][0]}{match['level']}"
        if place not in widths or int(match["layer"] or 0) >= depth.get(place, 1):
            return ()
        w, leaf = widths[place], match["leaf"] or match["inner"]
        if leaf in ("attn2.to_k", "attn2.to_v"):
            return ((w, text),)
        if re.fullmatch(r"attn[12]\.to_(q|k|v|out\.0)|proj_in|proj_out", leaf):
            return ((w, w),)
        return {"ff.net.0.proj": ((8 * w, w),), "ff.net.2": ((w, 4 * w),)}.get(leaf)

    return allowed


def transformer(*widths: int, single: bool) -> Allowed:
    """A transformer of joint attention, of one of these widths; `single`: whether it also has blocks of one stream."""

    def allowed(module: str) -> tuple[Shape, ...] | None:
        match = _TRANSFORMER.fullmatch(module)
        if match is None:
            return () if module.startswith("unet.") else None
        if match["kind"] and not single:
            return ()
        found = [_shape(w, match["leaf"], bool(match["kind"])) for w in widths]
        return None if None in found else tuple(shape for shape in found if shape)

    return allowed


def _shape(w: int, leaf: str, single: bool) -> Shape | None:
    if re.fullmatch(r"attn2?\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)", leaf):
        return w, w
    if single:
        return {"proj_mlp": (4 * w, w), "proj_out": (w, 5 * w), "norm.linear": (3 * w, w)}.get(leaf)
    match = re.fullmatch(r"ff(?:_context)?\.net\.(0\.proj|2)", leaf)
    return None if match is None else ((4 * w, w) if match[1] == "0.proj" else (w, 4 * w))
