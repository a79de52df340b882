"""Stable Diffusion 1 and 2 (Rombach et al. 2022) and XL (Podell et al. 2023): UNets."""

from .family import Family, unet

_WIDTHS = {"d0": 320, "d1": 640, "d2": 1280, "m": 1280, "u1": 1280, "u2": 640, "u3": 320}

SD1 = Family(
    name="SD1.x",
    claims=r"sd_?v?1|stable-diffusion-(v)?1",
    texts={"text_encoder": 768},
    allowed=unet(_WIDTHS, 768, {}),
)
SD2 = Family(
    name="SD2.x",
    claims=r"sd_?v?2|stable-diffusion-(v)?2",
    texts={"text_encoder": 1024},
    allowed=unet(_WIDTHS, 1024, {}),
)
SDXL = Family(
    name="SDXL",
    claims=r"sdxl|stable-diffusion-xl|pony|illustrious",
    texts={"text_encoder": 768, "text_encoder_2": 1280},
    allowed=unet(
        {"d1": 640, "d2": 1280, "m": 1280, "u0": 1280, "u1": 640}, 2048, {"d1": 2, "u1": 2, "d2": 10, "m": 10, "u0": 10}
    ),
)
