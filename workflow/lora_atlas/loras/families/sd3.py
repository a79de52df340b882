"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): transformers of 1,536 (medium) and 2,432 (large) wide streams."""

from .family import Family, transformer

SD3 = Family(
    name="SD3",
    claims=r"sd3|sd_3|stable-diffusion-3|stable-diffusion-v3",
    texts={"text_encoder": 768, "text_encoder_2": 1280, "text_encoder_3": 4096},
    allowed=transformer(1536, 2432, single=False),
)
