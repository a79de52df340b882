"""Base families by the shapes of what a LoRA changes, a file each. What a header says of its base is not asked: headers
lie.

A file belongs to the one family of which every module that the family's table knows has the shape it gives; a file that
fits several (a text encoder that three families share), or none, is "other". A new family is a file with a ``Family``
and its place in ALL.
"""

import re
from collections.abc import Mapping

from .family import OTHER, Family, Shape, text_model
from .flux import FLUX
from .sd import SD1, SD2, SDXL
from .sd3 import SD3
from .spelling import Spelling

ALL: tuple[Family, ...] = (SD1, SD2, SDXL, SD3, FLUX)
FAMILIES: tuple[str, ...] = tuple(each.name for each in ALL)
SPELLINGS: tuple[Spelling, ...] = tuple(dict.fromkeys(each.spelling for each in ALL if each.spelling is not None))


def family(shapes: Mapping[str, Shape]) -> tuple[str, str | None]:
    """The base family of modules and the shapes of their updates, and a remark where that is not plain.

    One of FAMILIES, or "other".
    """
    denoising = {module: shape for module, shape in shapes.items() if not module.startswith("text_encoder")}
    fits = [each for each in ALL if each.fits(denoising)] if denoising else list(ALL)
    texts = {model: shape[1] for module, shape in shapes.items() if (model := text_model(module))}
    if texts and (len(fits) > 1 or not denoising):
        fits = [each for each in fits if all(each.texts.get(model) == width for model, width in texts.items())]
    if len(fits) == 1:
        return fits[0].name, None
    if not fits:
        return OTHER, "its shapes are those of no family that is known here"
    what = "it changes a text encoder alone, one" if not denoising else "it changes modules"
    return OTHER, f"{what} that {', '.join(each.name for each in fits)} have in common"


def claimed(metadata: Mapping[str, str]) -> str | None:
    """The family that a header claims, or None where it claims none that is known here."""
    said = " ".join(metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version")).lower()
    # Later bases first: what is made of an SD3 is called stable-diffusion too.
    return next((each.name for each in reversed(ALL) if re.search(each.claims, said)), None)
