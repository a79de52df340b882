"""Base families by the shapes of what a LoRA changes. What a header says of its base is not asked: headers lie.

A family is a table of widths. A file belongs to the one family of which every module that the table knows has the
shape it gives; a file that fits several (a text encoder that three families share), or none, is "other".
"""

import re
from collections.abc import Mapping

FAMILIES = ("SD1.x", "SD2.x", "SDXL", "SD3", "FLUX")

Shape = tuple[int, int]

# UNet blocks by width, the width of the text that cross-attention reads, and how many transformer layers a block has.
_SD = {"d0": 320, "d1": 640, "d2": 1280, "m": 1280, "u1": 1280, "u2": 640, "u3": 320}
_XL = {"d1": 640, "d2": 1280, "m": 1280, "u0": 1280, "u1": 640}
_UNETS: dict[str, tuple[dict[str, int], int, dict[str, int]]] = {
    "SD1.x": (_SD, 768, {}),
    "SD2.x": (_SD, 1024, {}),
    "SDXL": (_XL, 2048, {"d1": 2, "u1": 2, "d2": 10, "m": 10, "u0": 10}),
}
_TEXT: dict[str, dict[str, int]] = {
    "SD1.x": {"text_encoder": 768},
    "SD2.x": {"text_encoder": 1024},
    "SDXL": {"text_encoder": 768, "text_encoder_2": 1280},
    "SD3": {"text_encoder": 768, "text_encoder_2": 1280, "text_encoder_3": 4096},
    "FLUX": {"text_encoder": 768, "text_encoder_2": 4096},
}
_TRANSFORMERS = {"SD3": (1536, 2432), "FLUX": (3072,)}
_CLAIMS = (  # in what headers call their base
    ("FLUX", r"flux"),
    ("SDXL", r"sdxl|stable-diffusion-xl|pony|illustrious"),
    ("SD3", r"sd3|sd_3|stable-diffusion-3|stable-diffusion-v3"),
    ("SD2.x", r"sd_?v?2|stable-diffusion-(v)?2"),
    ("SD1.x", r"sd_?v?1|stable-diffusion-(v)?1"),
)
_ATTENTION = r"attentions\.\d+\.(?P<inner>transformer_blocks\.(?P<layer>\d+)\.(?P<leaf>.+)|proj_in|proj_out)"
_UNET = re.compile(rf"unet\.(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|(?P<mid>mid_block))\.{_ATTENTION}")
_TRANSFORMER = re.compile(r"transformer\.(?P<kind>single_)?transformer_blocks\.\d+\.(?P<leaf>.+)")
_CLIP = re.compile(r"(?P<model>text_encoder(?:_\d)?)\..*\.self_attn\.\w+")


def family(shapes: Mapping[str, Shape]) -> tuple[str, str | None]:
    """The base family of modules and the shapes of their updates, and a remark where that is not plain.

    One of FAMILIES, or "other".
    """
    denoising = {module: shape for module, shape in shapes.items() if not module.startswith("text_encoder")}
    fits = [name for name in FAMILIES if _fits(name, denoising)] if denoising else list(FAMILIES)
    texts = {match["model"]: shape for module, shape in shapes.items() if (match := _CLIP.fullmatch(module))}
    if texts and (len(fits) > 1 or not denoising):
        fits = [name for name in fits if all(_TEXT[name].get(model) == shape[1] for model, shape in texts.items())]
    if len(fits) == 1:
        return fits[0], None
    if not fits:
        return "other", "its shapes are those of no family that is known here"
    what = "it changes a text encoder alone, one" if not denoising else "it changes modules"
    return "other", f"{what} that {', '.join(fits)} have in common"


def claimed(metadata: Mapping[str, str]) -> str | None:
    """The family that a header claims, or None where it claims none that is known here."""
    said = " ".join(metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    return next((name for name, pattern in _CLAIMS if re.search(pattern, said)), None)


def _fits(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether every module that the family's table knows has its shape, and there is one."""
    known = 0
    for module, shape in shapes.items():
        allowed = _allowed(name, module)
        if allowed is None:
            continue
        if shape not in allowed:
            return False
        known += 1
    return known > 0


def _allowed(name: str, module: str) -> tuple[Shape, ...] | None:
    """Shapes that a module may have in a family: none where it has no such module, None where the table is silent."""
    if name in _TRANSFORMERS:
        match = _TRANSFORMER.fullmatch(module)
        if match is None:
            return () if module.startswith("unet.") else None
        if match["kind"] and name == "SD3":
            return ()
        found = [_transformer_shape(w, match["leaf"], bool(match["kind"])) for w in _TRANSFORMERS[name]]
        return None if None in found else tuple(shape for shape in found if shape)
    if not module.startswith("unet."):
        return ()
    match = _UNET.fullmatch(module)
    if match is None:
        return None
    widths, text, depth = _UNETS[name]
    place = "m" if match["mid"] else f"{match['side'][0]}{match['level']}"
    if place not in widths or int(match["layer"] or 0) >= depth.get(place, 1):
        return ()
    w, leaf = widths[place], match["leaf"] or match["inner"]
    if leaf in ("attn2.to_k", "attn2.to_v"):
        return ((w, text),)
    if re.fullmatch(r"attn[12]\.to_(q|k|v|out\.0)|proj_in|proj_out", leaf):
        return ((w, w),)
    return {"ff.net.0.proj": ((8 * w, w),), "ff.net.2": ((w, 4 * w),)}.get(leaf)


def _transformer_shape(w: int, leaf: str, single: bool) -> Shape | None:
    if re.fullmatch(r"attn2?\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)", leaf):
        return w, w
    if single:
        return {"proj_mlp": (4 * w, w), "proj_out": (w, 5 * w), "norm.linear": (3 * w, w)}.get(leaf)
    match = re.fullmatch(r"ff(?:_context)?\.net\.(0\.proj|2)", leaf)
    return None if match is None else ((4 * w, w) if match[1] == "0.proj" else (w, 4 * w))
