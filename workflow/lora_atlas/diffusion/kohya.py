"""LoRA files under the names of kohya's scripts (sd-scripts), which ComfyUI and most web UIs read.

``unet.down_blocks.0….to_q.lora_A.weight`` becomes ``lora_unet_down_blocks_0_…_to_q.lora_down.weight``, and each module
has an ``alpha`` that equals its rank, since the scale of a LoRA of this project is folded into its factors.

A transformer's layers have the names that the model's authors gave them, after ``lora_unet_`` too. Where those fuse
layers (queries, keys and values, say), the factors are laid together: ranks add up, and products are what they were.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import tensors
from ..loras.container import with_metadata
from ..loras.families import claimed
from ..loras.families.table import Named, spoken
from ..tables import replacing


class ExportError(ValueError):
    """A file that cannot be renamed; the message names it."""


def export(source: str | Path, output: str | Path) -> None:
    """Write the LoRA `source` (diffusers' names) under kohya's names, atomically; equal input gives equal bytes.

    Raises ExportError for a file without a pair of this project's names, or with a key of others.
    """
    try:
        tensors.check(source)
        with safe_open(source, "pt") as file:
            metadata = file.metadata() or {}
            found = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (OSError, SafetensorError, tensors.ContentError) as error:
        raise ExportError(f"{source}: cannot be read ({error}); {tensors.AGAIN}") from error
    foreign = [key for key in found if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if foreign or not found:
        raise ExportError(f"{source}: expected keys MODULE.lora_A.weight and MODULE.lora_B.weight, found {foreign[:5]}")
    renamed = _of_transformer(source, found, metadata) or convert_state_dict_to_kohya(found)
    ranks = {key: value.to(torch.float32) for key, value in renamed.items() if key.endswith(".alpha")}
    modules = [key.removesuffix(".alpha") for key in ranks]
    kept = {key: value for key, value in metadata.items() if key.startswith(("lora_atlas.", "modelspec."))}
    data = save(dict(sorted({**renamed, **ranks}.items())))
    header = {
        **kept,
        "format": "pt",
        **tensors.ENTRY,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(int(rank) for rank in ranks.values())),
        "ss_network_alpha": str(max(int(rank) for rank in ranks.values())),
    }
    assert len(modules) * 3 == len(renamed), "a module of one name swallowed another"
    with replacing(output) as temporary:
        temporary.write_bytes(tensors.signed(with_metadata(data, header)))


def _of_transformer(
    source: str | Path, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA of a transformer under its authors' names; none where it is of another network."""
    prefix = "transformer."
    names = sorted({key.rsplit(".lora_", 1)[0] for key in stored})
    if not all(name.startswith(prefix) for name in names):
        return {}
    factors = {
        name.removeprefix(prefix): (stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"]) for name in names
    }
    said = [Named("transformer", name, (len(B), A.shape[1])) for name, (A, B) in factors.items()]
    found = spoken(said, claimed(metadata))
    if found is None:
        raise ExportError(f"{source}: its layers are those of no transformer that is known here, found {names[:3]}")
    renamed: dict[str, torch.Tensor] = {}
    for name in factors:
        theirs, ours, order = found[0].authors(name) or (name, (name,), "")
        key = f"lora_unet_{theirs.replace('.', '_')}"
        if f"{key}.alpha" in renamed:
            continue  # a layer that was fused with one before it
        A, B = _together(source, theirs, ours, factors)
        if order == "~" or (order == "~?" and len(B) == 2 * A.shape[1]):
            B = torch.cat([B[len(B) // 2 :], B[: len(B) // 2]])
        renamed[f"{key}.lora_down.weight"], renamed[f"{key}.lora_up.weight"] = A.contiguous(), B.contiguous()
        renamed[f"{key}.alpha"] = torch.tensor(float(len(A)))
    return renamed


def _together(
    source: str | Path, theirs: str, ours: tuple[str, ...], factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one layer whose rows are those of `ours`, in their order; zeros for those that are not changed."""
    there = [factors[name] for name in ours if name in factors]
    rows = {len(B) for _, B in there}
    if len(there) < len(ours) and (len(rows) > 1 or not all("attn.to_" in n or "attn.add_" in n for n in ours)):
        lacking = [name for name in ours if name not in factors]
        raise ExportError(
            f"{source}: kohya's name {theirs} is one layer of {', '.join(ours)}; {', '.join(lacking)} is not here, "
            "so that its size is not known; train all of them (training.targets: single)"
        )
    A = torch.cat([A for A, _ in there])
    parts, column = [], 0
    for name in ours:
        a, b = factors.get(name, (A[:0], A.new_zeros(len(there[0][1]), 0)))
        part = A.new_zeros(len(b), len(A))
        part[:, column : column + len(a)] = b
        column += len(a)
        parts.append(part)
    return A, torch.cat(parts)
