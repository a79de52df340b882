"""The products of pictures' gradients with LoRAs, and the pictures' sketches: what a study asks the network for.

A picture's gradient is also a description of the picture: its sketch (weights/sketch.py), which is that of the LoRA
that one step of gradient descent would make, goes into a table of features, and is compared as those of image models.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from .. import tables, tensors
from ..diffusion.attribution import held_bytes, of_files, products
from ..loras.files import open_lora
from ..sections import Attribution, Base, Probe, Training
from ..weights.sketch import Hashes, projected_dense
from .asking import asker
from .study import AttributionError

NUMBERS = 16384  # of a picture's sketch, at most


def measure(
    plan: pa.Table,
    pictures: pa.Table,
    loras: Mapping[str, str | Path],
    base: Base,
    settings: Attribution,
    training: Training,
    probe: Probe,
    *,
    device: str,
    output: str | Path,
    features: str | Path | None = None,
) -> tuple[int, str]:
    """Write the products of all pictures of a plan with its LoRAs (id → path), and, if asked for, the table "features"
    of the pictures' sketches. Returns how many pictures there were, the base's own among them, and the device.

    Raises BaseModelError, LoraFileError, PictureError.
    """
    ask = asker(base, settings, caption=training.caption, resolution=training.resolution, device=device)
    names = ask.denoiser.layers(training.targets)
    if features is not None and (one := held_bytes(ask.denoiser, names)) > settings.memory_mb * 10**6:
        raise AttributionError(
            f"attribution.memory_mb: one picture's gradients in {len(names)} layers take {one / 1e6:,.0f} MB, "
            f"{settings.memory_mb} are allowed, and the extractor of the library gradient is made of them; raise it, "
            "or set that extractor to null"
        )
    wanted = sorted({picture for row in plan["pictures"].to_pylist() for picture in row})
    rows = {
        row["picture"]: row
        for row in pictures.select(["picture", "artist", "image", "status"]).to_pylist()
        if row["status"] == "kept"
    }
    latents = ask.latents_of([rows[each]["image"]["bytes"] for each in wanted])
    if settings.reference:
        latents = torch.cat([latents, ask.own(probe).to(latents.device)])
    prefix = ask.denoiser.prefix
    sketcher = _Sketcher(prefix, names)
    with of_files([open_lora(path) for path in loras.values()], prefix) as read:
        found = products(
            ask.question, latents, names, read, len(loras),
            memory=settings.memory_mb * 10**6, seen=sketcher.seen if features is not None else None,
        )  # fmt: skip
    modules = [prefix + name for name in names]
    kept = found.values.astype(np.float32)
    named = {"values": kept[:, : len(wanted)], "reference": kept[:, len(wanted) :]}
    tensors.write(output, named, {"modules": modules, "pictures": wanted, "loras": list(loras)})
    if features is not None:
        vectors = sketcher.vectors(len(latents))[: len(wanted)]
        told = {"caption": ask.caption, "samples": settings.samples, "numbers": vectors.shape[1]}
        told |= {"source": "training", "preprocessing": f"centred square, {ask.resolution} pixels"}
        tables.write(
            features,
            "features",
            [
                {"picture": each, "artist": rows[each]["artist"], "lora": None, "vector": vector}
                for each, vector in zip(wanted, vectors.tolist(), strict=True)
            ],
            told,
        )
    return len(latents), str(ask.denoiser.device)


class _Sketcher:
    """Sketches of the gradients that are held, of each picture one row."""

    def __init__(self, prefix: str, names: Sequence[str]):
        self.names, self.prefix, self.hashes = names, prefix, Hashes()
        self.D = max(2 ** (max(NUMBERS // len(names), 1).bit_length() - 1), 2)
        self.parts: list[np.ndarray] = []

    def seen(self, part: slice, held: Mapping[str, torch.Tensor]) -> None:
        """Adds the pictures `part`: of −g, as of a LoRA that has gone that way."""
        self.parts.append(
            np.concatenate(
                [
                    projected_dense(self.prefix + name, -held[name].cpu().numpy(), self.D, self.hashes)
                    for name in self.names
                ],
                axis=1,
            )
        )

    def vectors(self, count: int) -> np.ndarray:
        """(count, D × modules), of all pictures."""
        assert sum(len(part) for part in self.parts) == count
        return np.concatenate(self.parts)
