"""LoRA files: any known format in, factored updates out; one plain format out.

An update of a module is kept as its factors, the scale α/r folded in, in float32. Nothing here ever forms ΔW: a rank-1
file may name a module of 10⁶ × 10⁶. What the keys of a file mean is told in ``formats``, what its modules are called in
``names``, what may be opened at all in ``container``.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from .. import machine, tensors
from ..tables import replacing
from .assemble import read_scale, read_update
from .base import base_tensor
from .container import (
    Container,
    LoraFileError,
    NotFiniteError,
    configuration,
    digest,
    open_container,
    opened,
    readable,
    with_metadata,
)
from .factors import Factored, Update
from .formats import Layout, Spec, layout
from .names import block, component

__all__ = ["Lora", "LoraFile", "LoraFileError", "block", "component", "open_lora", "read_lora", "write_lora"]

MAX_CONFIG = 2**20  # bytes of an adapter_config.json


@dataclass(frozen=True)
class LoraFile:
    """A file whose header is understood; nothing of its tensors has been read."""

    container: Container
    layout: Layout
    base: str | None = None

    @property
    def path(self) -> Path:
        return self.container.path

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor for `update`, so that a file is opened once for many modules; raises LoraFileError where the
        file says what its bytes should be, and they are not."""
        self.check()
        if self.container.arrays:
            yield -1
        else:
            with opened(self.path) as descriptor:
                yield descriptor

    def check(self) -> None:
        """Hold a file of this project to the digest in its header; raises LoraFileError."""
        _check(self.container)

    def scale(self, module: str, descriptor: int | None = None) -> float:
        """s of a module's update s·BA."""
        return read_scale(self.container, self.layout.specs[module], descriptor)

    def update(self, module: str, descriptor: int | None = None) -> Factored:
        """One module's update; raises LoraFileError naming keys that are not finite."""
        spec = self.layout.specs[module]
        return read_update(self.container, spec, descriptor, self._base(spec))

    def _base(self, spec: Spec) -> np.ndarray | None:
        """The base's weight of a whole layer, in the order of the file's rows; None for a kind that needs none."""
        if not spec.wants or self.base is None:
            return None
        found = [base_tensor(self.base, name) for name in spec.wants]
        weight = found[0] if len(found) == 1 else np.concatenate([each.reshape(len(each), -1) for each in found])
        half = len(weight) // 2
        return np.concatenate([weight[half:], weight[:half]]) if spec.swapped else weight


@dataclass(frozen=True)
class Lora:
    path: Path
    sha256: str
    metadata: Mapping[str, str]
    updates: Mapping[str, Factored]


def open_lora(path: str | Path, *, pickles: bool = True, base: str | None = None) -> LoraFile:
    """The header of a file, or of a PEFT folder, understood; raises LoraFileError for what is no sound LoRA.

    `pickles`: whether a .bin or .pt may be opened, by torch's restricted unpickler. `base`: a diffusers folder, for
    updates that are relative to its weights; without it a DoRA is refused.
    """
    path = Path(path)
    if (path / "adapter_config.json").is_file():
        names = ("adapter_model.safetensors", *(("adapter_model.bin",) if pickles else ()))
        file = next((path / name for name in names if (path / name).is_file()), path / names[0])
    else:
        file = path
    container = open_container(file, pickles=pickles)
    try:
        found = layout(container, _adapter_config(file), base)
    except LoraFileError:
        _check(container)  # a flipped bit may be what makes no sense
        raise
    return LoraFile(container, found, base)


def read_lora(path: str | Path, *, pickles: bool = True, base: str | None = None) -> Lora:
    """Read a file whole; raises LoraFileError for anything that is not a sound LoRA, with all that is wrong."""
    file = open_lora(path, pickles=pickles, base=base)
    updates, wrong = {}, []
    with file.reading() as descriptor:
        for module in file.layout.specs:
            try:
                updates[module] = file.update(module, descriptor)
            except NotFiniteError as error:
                wrong += error.keys
    if wrong:
        raise NotFiniteError(file.path, wrong)
    return Lora(file.path, digest(file.path), dict(file.container.metadata), updates)


def write_lora(path: str | Path, updates: Mapping[str, Update], metadata: Mapping[str, str]) -> None:
    """Write the standard keys (``MODULE.lora_A.weight``), atomically; equal input gives equal bytes.

    The scale is folded, so the file reads right wherever α is taken to be r: stock diffusers, PEFT, ComfyUI.
    """
    wrong = sorted(m for m, u in updates.items() if not (np.isfinite(u.A).all() and np.isfinite(u.B).all()))
    if wrong:
        raise LoraFileError(f"{path}: not written, the factors of {wrong} are not finite")
    named = {}
    for module, update in sorted(updates.items()):
        named[f"{module}.lora_A.weight"] = np.ascontiguousarray(update.A, np.float32)
        named[f"{module}.lora_B.weight"] = np.ascontiguousarray(update.B, np.float32)
    with replacing(path) as temporary:
        temporary.write_bytes(tensors.signed(with_metadata(save(named), {"format": "pt", **metadata, **tensors.ENTRY})))


def _check(container: Container) -> None:
    if f"lora_atlas.{tensors.KEY}" not in container.metadata:
        return
    try:
        with readable(container.path):
            tensors.check(container.path)
    except tensors.ContentError as error:
        raise LoraFileError(
            f"{container.path}: damaged ({error}): copy it again, or where it is a study's, {tensors.AGAIN}. If "
            f"another program saved it, take lora_atlas.{tensors.KEY} out of its metadata"
        ) from error


def _adapter_config(file: Path) -> Mapping[str, Any] | None:
    """The configuration that PEFT keeps beside its file."""
    path = configuration(file)
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError("too large")
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        if machine.at_fault(error):
            raise
        raise LoraFileError(
            f"{path}: not a configuration of PEFT ({error}), and {file.name} has its scale there"
        ) from None
    return config
