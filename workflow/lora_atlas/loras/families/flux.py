"""FLUX.1: a transformer with blocks of two streams and of one."""

from .family import Family, transformer

FLUX = Family(
    name="FLUX",
    claims=r"flux",
    texts={"text_encoder": 768, "text_encoder_2": 4096},
    allowed=transformer(3072, single=True),
)
