"""Training pictures as latents, by shape: centred squares, or aspect-ratio buckets of about the same area."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ..pictures.decode import PictureError, crop_square, decode, to_array
from ..sections import Training
from . import base as bases
from .denoisers import Denoiser
from .errors import TrainingError
from .streams import Shape

WIDEST = 2.0  # aspect ratio of the widest bucket; beyond it, a picture is cropped


def bucket_sizes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels: multiples of `step`, area at most resolution², aspect ratio 1/2 to 2.

    For each width the tallest height that fits (as NovelAI's and kohya's trainers do). Raises TrainingError where
    `step` is too coarse for the resolution.
    """
    _require_multiple(resolution, step)
    sizes = set()
    for width in range(step, 2 * resolution + 1, step):
        height = resolution**2 // width // step * step
        if height and 1 / WIDEST <= width / height <= WIDEST:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes)


def _require_multiple(resolution: int, step: int) -> None:
    if resolution % step:
        lower = resolution // step * step
        raise TrainingError(
            f"training.resolution: {resolution} is not a multiple of {step}, which this base needs; "
            f"write {f'{lower} or ' if lower else ''}{lower + step}"
        )


def nearest(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of (height, width), on a logarithmic scale; then the largest."""
    ratio = math.log(size[1] / size[0])
    return min(buckets, key=lambda b: (round(abs(math.log(b[1] / b[0]) - ratio), 9), -b[0] * b[1], b))


def crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part with the aspect ratio of (height, width), resized to it (Lanczos)."""
    height, width = size
    if height == width:
        return crop_square(image, height)
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def arrays(
    pictures: pa.Table, wanted: Sequence[str], buckets: Sequence[tuple[int, int]]
) -> dict[str, tuple[tuple[int, int], np.ndarray]]:
    """Picture → its bucket (height, width) and its pixels uint8 (height, width, 3).

    Raises TrainingError that names all pictures which are absent or cannot be decoded, before anything is trained.
    """
    found = {row["picture"]: row for row in pictures.to_pylist() if row["status"] == "kept"}
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise TrainingError(f"the plan names pictures that the pictures table lacks: {absent}; rerun the plan")
    cropped, broken = {}, []
    for picture in wanted:
        try:
            image = decode(found[picture]["image"]["bytes"], min_side=1)
        except PictureError as error:
            broken.append(f"{picture} of {found[picture]['artist']}: {error}")
            continue
        size = nearest((image.height, image.width), buckets)
        cropped[picture] = (size, to_array(crop(image, size)))
    if broken:
        raise TrainingError(
            "these pictures cannot be decoded; mend them or take them away, and rerun the stages pictures and plan:\n  "
            + "\n  ".join(broken)
        )
    return cropped


def sizes_for(denoiser: Denoiser, training: Training) -> list[tuple[int, int]]:
    """The buckets that a base can work on: one square, or aspect-ratio buckets if training asks for them."""
    resolution = training.resolution
    if denoiser.patched:
        _require_multiple(resolution, denoiser.step)
    return bucket_sizes(resolution, denoiser.step) if training.aspect_ratio_buckets else [(resolution, resolution)]


def encode(
    pipeline: Any, denoiser: Denoiser, pictures: pa.Table, wanted: Sequence[str], training: Training
) -> tuple[dict[Shape, torch.Tensor], dict[str, tuple[Shape, int]], dict[Shape, tuple[int, int]]]:
    """Latents by their shape; picture → its shape and its place there; shape → its size in pixels."""
    cropped = arrays(pictures, wanted, sizes_for(denoiser, training))
    latents: dict[Shape, torch.Tensor] = {}
    places: dict[str, tuple[Shape, int]] = {}
    sizes: dict[Shape, tuple[int, int]] = {}
    for size in sorted({size for size, _ in cropped.values()}):
        names = [picture for picture in wanted if cropped[picture][0] == size]
        pixels = torch.from_numpy(np.stack([cropped[picture][1] for picture in names]))
        encoded = bases.encode_pictures(pipeline, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        height, width = encoded.shape[2:]
        shape = (height, width)
        latents[shape], sizes[shape] = encoded, size
        places |= {picture: (shape, i) for i, picture in enumerate(names)}
    return latents, places, sizes
