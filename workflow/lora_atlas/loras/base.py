"""Weights of the base model, where a LoRA is relative to them (DoRA)."""

import json
from pathlib import Path

import numpy as np

from .container import LoraFileError, open_container


def base_weight(folder: str | Path | None, module: str) -> np.ndarray | None:
    """The weight of a module ("unet.conv_in") in a diffusers folder, float32; None where there is no folder.

    Raises LoraFileError where the folder lacks it.
    """
    if folder is None:
        return None
    model, _, name = module.partition(".")
    files = sorted(Path(folder, model).glob("*.safetensors"))
    index = next(iter(sorted(Path(folder, model).glob("*.safetensors.index.json"))), None)
    if index is not None:
        listed = json.loads(index.read_text()).get("weight_map", {})
        files = [Path(folder, model, listed[key]) for key in (f"{name}.weight",) if key in listed]
    for file in files:
        container = open_container(file)
        for key in (f"{name}.weight", f"{name.removeprefix('text_model.')}.weight"):
            if key in container.entries:
                return container.read(key)
    raise LoraFileError(f"{folder}: weights.base has no weight {name!r} in {model}/*.safetensors, which a DoRA needs")
