"""Tensors of the base model, for updates that are relative to them (DoRA, OFT, IA³ …) or take their shape from them."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from .container import Container, LoraFileError, open_container


def base_tensor(folder: str | Path, name: str) -> np.ndarray:
    """A tensor ("unet.conv_in.weight") of a diffusers folder, float32; LoraFileError where the folder lacks it."""
    container, key = _found(Path(folder), name)
    return container.read(key)


def base_shape(folder: str | Path, name: str) -> tuple[int, ...] | None:
    """The shape of such a tensor, from its file's header; None where the folder lacks it."""
    try:
        container, key = _found(Path(folder), name)
    except LoraFileError:
        return None
    return container.entries[key].shape


def _found(folder: Path, name: str) -> tuple[Container, str]:
    model, _, key = name.partition(".")
    files = sorted(Path(folder, model).glob("*.safetensors"))
    index = next(iter(sorted(Path(folder, model).glob("*.safetensors.index.json"))), None)
    if index is not None:
        listed = json.loads(index.read_text()).get("weight_map", {})
        files = [Path(folder, model, listed[each]) for each in (key, key.removeprefix("text_model.")) if each in listed]
    for file in files:
        stat = file.stat()
        container = _opened(str(file), stat.st_mtime_ns, stat.st_size)
        for each in (key, key.removeprefix("text_model.")):
            if each in container.entries:
                return container, each
    raise LoraFileError(
        f"{folder}: weights.base has no weight {key.removesuffix('.weight')!r} in {model}/*.safetensors, which the "
        "update is relative to"
    )


@lru_cache(maxsize=16)
def _opened(path: str, modified: int, size: int) -> Container:
    """A header is parsed once for all modules."""
    return open_container(path)
