"""The model card: what the mini models were made from, how long it took, how good they are, and what they generate."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from ..pictures.synthetic import ARTISTS, CONTENTS, paint
from ..seeds import derive_seed
from . import autoencoder, base, corpus

CARD = """\
# The mini models

A latent text-to-image base, a CLIP and a DINO, small enough to be part of this repository. They make the embedded
study real work on two CPU cores: the loading, training, sampling and feature code is the code that serves
SD1.5, ViT-L/14 and DINO. They know procedural pictures and nothing else: never use them to judge real art.

![samples of the base: {contents}](samples.png)

*Samples of the base, one row a content ({contents});
30 DDIM steps, guidance 3. The base was never told of a style: every sample draws its own.*

![study pictures above, their reconstructions below](reconstructions.png)

*Pictures of the study's artists, which no mini model has seen, and what the autoencoder makes of them:
{psnr:.1f} dB mean PSNR over {pictures} pictures (worst genre {worst}: {worst_psnr:.1f} dB).*

## Data
{count} pictures of {size} pixels, painted by `lora_atlas.pictures.synthetic` in random styles (seed {seed}); five
contents in equal parts. The genres of handling are those of the study, the styles are not: parameters and palettes
are drawn again for each picture and none is a study artist's. The base reads only the content ("a painting of a
harbour", a sixth only "a painting", a tenth nothing); CLIP also reads of manner, light and hues.

## Models
| part | architecture | parameters | size of a batch | steps | seconds | loss, first → last |
|---|---|---|---|---|---|---|
{rows}

Losses: autoencoder, mean squared + 0.05 mean absolute error of 32-pixel crops in -1…1 (plus a small penalty on the
latents); base, mean squared error of ε; CLIP, contrastive cross-entropy (chance {clip_chance:.2f}); DINO,
cross-entropy of the student's guess as a share of the uniform guess's. All with AdamW, a one-cycle learning rate and
a moving average of the weights; seconds are of two shared CPU cores. The UNet and CLIP are stored in half precision.

## Made by
`snakemake pretrain_mini`, which writes to `results/mini/`; what is committed here is a copy of one such run.
Nothing is downloaded and no third party's weights or pictures are involved. Licence: Apache-2.0, as the project.
"""


def write_card(
    corpus_path: str | Path,
    models: Mapping[str, str | Path],
    logs: Mapping[str, str | Path],
    folder: Path,
    *,
    seed: int,
) -> None:
    """Collect base, clip and dino with a card and pictures under `folder`; `models` also has the autoencoder."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = {name: Path(path) for name, path in models.items()}
    for name in ("base", "clip", "dino"):
        gather(folders[name], folder / name)
    pipeline = base.load_pipeline(folders["base"])
    painted = study_pictures(each=10)
    quality = {artist: autoencoder.psnr(pipeline.vae, pictures) for artist, pictures in painted.items()}
    genres = sorted({style.genre for style in ARTISTS.values()})
    by_genre = {g: float(np.mean([quality[a].mean() for a in quality if ARTISTS[a].genre == g])) for g in genres}
    worst = min(by_genre, key=by_genre.__getitem__)
    first = np.stack([pictures[i % len(pictures)] for i, pictures in enumerate(painted.values())])
    reconstructions(pipeline.vae, first, len(first) // 2, folder / "reconstructions.png")
    sampled = base.samples(pipeline, CONTENTS, 10, derive_seed("card", seed))
    grid(sampled, 10, 2).save(folder / "samples.png")

    denoiser = sum(count_parameters(folders["base"] / part) for part in base.PARTS)
    sizes = {
        "autoencoder": ("AutoencoderTiny, 4× down, 4 channels", count_parameters(folders["autoencoder"]), 32),
        "base": ("UNet2DConditionModel (32, 64, 96) + CLIPTextModel (64)", denoiser, 32),
        "clip": ("open_clip ViT 128 × 4 layers, patch 8; text 32 × 2 layers", count_parameters(folders["clip"]), 96),
        "dino": ("timm ViT 128 × 4 layers, patch 8", count_parameters(folders["dino"]), 48),
    }  # fmt: skip
    rows = []
    for name, (architecture, parameters, batch) in sizes.items():
        log = json.loads(Path(logs[name]).read_text())
        rows.append(
            f"| {name} | {architecture} | {parameters:,} | {batch} | {log[-1]['step']:,} | {log[-1]['seconds']:,.0f} "
            f"| {log[0]['loss']:.3f} → {log[-1]['loss']:.3f} |"
        )
    shape = corpus.load(corpus_path).pictures.shape
    text = CARD.format(
        contents=", ".join(CONTENTS),
        psnr=float(np.mean([values.mean() for values in quality.values()])),
        pictures=sum(len(values) for values in quality.values()),
        worst=worst,
        worst_psnr=by_genre[worst],
        count=f"{shape[0]:,}",
        size=shape[1],
        seed=seed,
        rows="\n".join(rows),
        clip_chance=float(np.log(96)),
    )
    (folder / "README.md").write_text(text)


def gather(model: str | Path, folder: str | Path) -> None:
    """Copy a model's folder to where its card is, less what Snakemake marks its outputs with."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)


def study_pictures(each: int, size: int = 64) -> dict[str, np.ndarray]:
    """`each` pictures uint8 (each, size, size, 3) of every artist of the embedded study."""
    return {
        artist: np.stack(
            [paint(style, CONTENTS[i % len(CONTENTS)], derive_seed("card", artist, i), size) for i in range(each)]
        )
        for artist, style in ARTISTS.items()
    }


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a folder."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            total += sum(int(np.prod(tensors.get_slice(key).get_shape())) for key in tensors.keys())  # noqa: SIM118
    return total


def reconstructions(vae: Any, pictures: np.ndarray, columns: int, path: Path) -> None:
    """A sheet of pictures uint8 (n, S, S, 3), `columns` in a row, with what the autoencoder makes of each row below."""
    with torch.no_grad():
        y = vae.decode(autoencoder.encode(vae, pictures)).sample
    again = ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = [part[i : i + columns] for i in range(0, len(pictures), columns) for part in (pictures, again)]
    grid(np.concatenate(rows), columns, 2).save(path)


def grid(pictures: np.ndarray, columns: int, zoom: int) -> Image.Image:
    """A contact sheet: uint8 pictures (n, S, S, 3), a thin light border between them."""
    n, size = len(pictures), pictures.shape[1]
    rows, step = -(-n // columns), size + 2
    sheet = np.full((rows * step + 2, columns * step + 2, 3), 245, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, columns)
        sheet[y * step + 2 : y * step + 2 + size, x * step + 2 : x * step + 2 + size] = picture
    image = Image.fromarray(sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
