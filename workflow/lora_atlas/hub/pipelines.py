"""Pipelines of diffusers that can be the base of a study, by their model_index.json: known before any network is read.

Without torch, since a configuration is checked with it. The networks themselves are in diffusion/denoisers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNET = ("diffusers", "UNet2DConditionModel")  # of whatever pipeline
TRANSFORMERS = (
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Flux2Pipeline",
    "Flux2KleinPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
)


def problem(folder: str | Path, called: str | None = None) -> str | None:
    """Why the pipeline of a diffusers folder cannot be a base; None where it can, or where its index says nothing.
    `called`: what the configuration calls it."""
    try:
        index: Mapping[str, Any] = json.loads(Path(folder, "model_index.json").read_text())
        name = index.get("_class_name")
        if name is None or name in TRANSFORMERS or tuple(index.get("unet") or ()) == UNET:
            return None
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # loading says what is wrong with it
    return (
        f"base.model: {called or str(folder)!r} holds a {name}, which cannot be trained here; there are pipelines "
        f"with a {UNET[1]} (Stable Diffusion 1 and 2, SDXL), and {', '.join(TRANSFORMERS)}"
    )
