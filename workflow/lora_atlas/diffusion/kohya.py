"""LoRA files under the names of kohya's scripts (sd-scripts), which ComfyUI and most web UIs read.

``unet.down_blocks.0….to_q.lora_A.weight`` becomes ``lora_unet_down_blocks_0_…_to_q.lora_down.weight``, and each module
has an ``alpha`` that equals its rank, since the scale of a LoRA of this project is folded into its factors.
"""

from pathlib import Path

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..loras.container import with_metadata
from ..tables import replacing


class ExportError(ValueError):
    """A file that cannot be renamed; the message names it."""


def export(source: str | Path, output: str | Path) -> None:
    """Write the LoRA `source` (diffusers' names) under kohya's names, atomically; equal input gives equal bytes.

    Raises ExportError for a file without a pair of this project's names, or with a key of others.
    """
    try:
        with safe_open(source, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{source}: cannot be read ({error}); make it again") from error
    foreign = [key for key in tensors if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if foreign or not tensors:
        raise ExportError(f"{source}: expected keys MODULE.lora_A.weight and MODULE.lora_B.weight, found {foreign[:5]}")
    renamed = convert_state_dict_to_kohya(tensors)
    ranks = {key: value.to(torch.float32) for key, value in renamed.items() if key.endswith(".alpha")}
    modules = [key.removesuffix(".alpha") for key in ranks]
    kept = {key: value for key, value in metadata.items() if key.startswith("lora_atlas.")}
    data = save(dict(sorted({**renamed, **ranks}.items())))
    header = {
        **kept,
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(int(rank) for rank in ranks.values())),
        "ss_network_alpha": str(max(int(rank) for rank in ranks.values())),
    }
    assert len(modules) * 2 == len(tensors), "a module of one name swallowed another"
    with replacing(output) as temporary:
        temporary.write_bytes(with_metadata(data, header))
