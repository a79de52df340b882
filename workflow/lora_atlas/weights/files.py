"""LoRA files: any known format in, factored updates out; one plain format out.

An update of a module is kept as its factors, ΔW = B A with A (r, in) and B (out, r), the scale α/r folded into B in
float32. Nothing here ever forms ΔW: a rank-1 file may name a module of 10⁶ × 10⁶.

Formats are entries of ``FORMATS``: a pattern that a key must match and what its parts mean. A file is accepted only
if every key is understood and every pair is whole; the error lists all that is not. Pickles are never opened.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..tables import replacing
from .factors import Update

MAX_HEADER = 16 * 2**20  # bytes; 200,000 tensors make 13 MB, a LoRA has a few thousand


class LoraFileError(ValueError):
    """A file that cannot be used as a LoRA; the message names the file and everything that is wrong."""


@dataclass(frozen=True)
class Lora:
    path: Path
    sha256: str
    metadata: Mapping[str, str]
    updates: Mapping[str, Update]


# Each pattern yields `module` (a diffusers module name with its model in front) and `part`.
FORMATS: dict[str, re.Pattern[str]] = {
    "peft": re.compile(
        r"(?P<module>(unet|text_encoder|text_encoder_2|transformer)\.[\w.]+)"
        r"\.(?P<part>lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up)(\.default)?\.weight"
    ),
    "peft alpha": re.compile(r"(?P<module>(unet|text_encoder|text_encoder_2|transformer)\.[\w.]+)\.(?P<part>alpha)"),
}
_DOWN = {"lora_A", "lora.down", "lora_linear_layer.down"}
_UP = {"lora_B", "lora.up", "lora_linear_layer.up"}


def read_lora(path: str | Path) -> Lora:
    """Read a file whole; raises LoraFileError for anything that is not a sound LoRA."""
    path = Path(path)
    parts = layout(path)
    found: dict[str, np.ndarray] = {}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "np") as file:
        metadata = dict(file.metadata() or {})
        for keys in parts.values():
            for key in keys.values():
                found[key] = _real(file, path, key)
    wrong = sorted(key for key, value in found.items() if not np.isfinite(value).all() or _wild(key, value))
    if wrong:
        raise LoraFileError(f"{path}: not finite: {wrong}")
    updates = {
        module: _update(module, {part: found[key] for part, key in keys.items()}) for module, keys in parts.items()
    }
    return Lora(path, digest, metadata, updates)


def read_opened(file: safe_open, path: str | Path, module: str, parts: Mapping[str, str]) -> Update:
    """One module of an opened file whose `layout` is known; raises LoraFileError where it is not finite."""
    found = {part: _real(file, path, key) for part, key in parts.items()}
    wrong = [parts[part] for part, value in found.items() if not np.isfinite(value).all() or _wild(parts[part], value)]
    if wrong:
        raise LoraFileError(f"{path}: not finite: {wrong}")
    return _update(module, found)


def layout(path: str | Path) -> dict[str, dict[str, str]]:
    """Module → part ("A", "B", "alpha") → key, from the header alone, checked; raises LoraFileError."""
    path = Path(path)
    header = _header(path)
    parts: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    for key in sorted(header):
        match = next((m for pattern in FORMATS.values() if (m := pattern.fullmatch(key))), None)
        if match is None:
            wrong.append(f"{_plain(key)}: not a key of a format that is known here")
            continue
        part = match["part"]
        place = "A" if part in _DOWN else "B" if part in _UP else "alpha"
        if place in parts.setdefault(match["module"], {}):
            wrong.append(f"{key}: a second {place} of {match['module']}")
        parts[match["module"]][place] = key
    for module, keys in parts.items():
        missing = {"A", "B"} - set(keys)
        if missing:
            wrong.append(f"{module}: half a pair, {' and '.join(sorted(missing))} missing")
            continue
        a, b = header[keys["A"]]["shape"], header[keys["B"]]["shape"]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
            wrong.append(f"{module}: A {a} and B {b} do not multiply")
        if "alpha" in keys and int(np.prod(header[keys["alpha"]]["shape"])) != 1:
            wrong.append(f"{keys['alpha']}: not one number")
    if not parts and not wrong:
        wrong.append("no tensors")
    if wrong:
        raise LoraFileError(f"{path}: not a LoRA that can be read here:\n  " + "\n  ".join(wrong))
    return dict(sorted(parts.items()))


def write_lora(path: str | Path, updates: Mapping[str, Update], metadata: Mapping[str, str]) -> None:
    """Write the standard keys (``MODULE.lora_A.weight``), atomically; equal input gives equal bytes.

    The scale is folded, so the file reads right wherever α is taken to be r: stock diffusers, PEFT, ComfyUI.
    """
    wrong = sorted(m for m, u in updates.items() if not (np.isfinite(u.A).all() and np.isfinite(u.B).all()))
    if wrong:
        raise LoraFileError(f"{path}: not written, the factors of {wrong} are not finite")
    tensors = {}
    for module, update in sorted(updates.items()):
        tensors[f"{module}.lora_A.weight"] = np.ascontiguousarray(update.A, np.float32)
        tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(update.B, np.float32)
    with replacing(path) as temporary:
        # safetensors writes the metadata in the order of a hash map with a random state: one entry has one order.
        save_file(tensors, temporary, metadata={})
        _set_metadata(temporary, {"format": "pt", **metadata})


def _set_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


COMPONENTS: dict[str, str] = {
    "text_encoder": r"^text_encoder",
    "self_attention": r"\.attn1\.",
    "cross_attention": r"\.attn2\.",
    "feed_forward": r"\.ff\.",
    "projection": r"\.proj_(in|out)$",
    "convolution": r"\.(conv\w*|conv_shortcut)$",
}
BLOCKS: dict[str, str] = {"down": r"\.down_blocks\.", "mid": r"\.mid_block\.", "up": r"\.up_blocks\."}


def component(module: str) -> str:
    """What a module does: a key of COMPONENTS, or "other"."""
    return next((name for name, pattern in COMPONENTS.items() if re.search(pattern, module)), "other")


def block(module: str) -> str:
    """Where a module sits in a UNet: down, mid, up, or "other"."""
    return next((name for name, pattern in BLOCKS.items() if re.search(pattern, module)), "other")


def _header(path: Path) -> dict[str, dict]:
    """The tensors' entries of a sound safetensors header."""
    if not path.is_file():
        raise LoraFileError(f"{path}: no such file")
    with path.open("rb") as stream:
        start = stream.read(8)
        size = int.from_bytes(start, "little")
        brace = stream.read(1) == b"{"  # of a header; the length before it can begin with any byte
        if not brace and (start[:2] == b"PK" or start[:1] == b"\x80"):
            raise LoraFileError(
                f"{path}: a pickle, which can run any code when it is opened. Convert it where you trust it: "
                "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'FILE.safetensors')"
            )
        stream.seek(8)
        if len(start) < 8 or size > MAX_HEADER or size > path.stat().st_size - 8:
            raise LoraFileError(f"{path}: not a safetensors file, or cut short (its header claims {size} bytes)")
        raw = stream.read(size)
    try:
        with safe_open(path, "np"):  # offsets, overlaps, holes and trailing bytes are its business
            pass
        header = json.loads(raw, object_pairs_hook=_no_twins)
    except (SafetensorError, ValueError) as error:
        raise LoraFileError(f"{path}: damaged ({error})") from error
    header.pop("__metadata__", None)
    return header


def _plain(key: str) -> str:
    """A key as it may be printed: no control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in key)


def _no_twins(pairs: Iterable[tuple[str, object]]) -> dict:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"keys that come twice: {sorted({n for n in names if names.count(n) > 1})}")
    return found


def _wild(key: str, value: np.ndarray) -> bool:
    return key.endswith(".alpha") and not 0 <= value.item() <= 1e6


def _real(file: safe_open, path: str | Path, key: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # infinite is refused by name
            return file.get_tensor(key).astype(np.float32)
    except TypeError:  # numpy has no bfloat16; torch does, and is worth its start-up only then
        import torch

        with safe_open(path, "pt") as again:
            return again.get_tensor(key).to(torch.float32).numpy()


def _update(module: str, parts: Mapping[str, np.ndarray]) -> Update:
    A, B = parts["A"], parts["B"]
    alpha = float(parts["alpha"].item()) if "alpha" in parts else 0.0
    scale = alpha / A.shape[0] if alpha else 1.0  # kohya writes 0 for "no alpha"
    return Update(module, A, B if scale == 1.0 else B * np.float32(scale))
