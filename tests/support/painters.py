"""Six painters, each with a LoRA of the mini base that one step along the gradient of eight pictures gives."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atlas.attribution.asking import Asker, asker
from lora_atlas.attribution.make import updates_of
from lora_atlas.collection.known import Known
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.one_step import direction, mean_gradient
from lora_atlas.loras.files import open_lora, write_lora
from lora_atlas.pictures.synthetic import ARTISTS, CONTENTS, paint
from lora_atlas.sections import Attribution, Base, Probe
from lora_atlas.weights.gram import gram

MODEL = str(Path(__file__).parents[2] / "workflow/resources/mini/base")
BASE = Base(MODEL)
SETTINGS = Attribution(samples=4, caption=None, resolution=64, reference=12, batch=16, memory_mb=500)
PROBE = Probe(samples=4, num_inference_steps=4, batch=12, seed=0, prompts=["a painting", "a painting of a harbour"])
PAINTERS = list(ARTISTS)[:6]


@dataclass(frozen=True)
class Case:
    """`known`: two LoRAs of each painter; `pictures`: a folder of six other pictures for each of two of them."""

    known: Known
    pictures: Path
    ask: Asker


def pictures(painter: str, seeds: range) -> list[np.ndarray]:
    return [paint(ARTISTS[painter], CONTENTS[seed % len(CONTENTS)], seed) for seed in seeds]


@pytest.fixture(scope="session")
def case(tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("loras")
    ask = asker(BASE, SETTINGS, caption="a painting", resolution=None, device="cpu")
    names = stacked.targeted(ask.denoiser.module, ["attention", "feed_forward"], ask.denoiser.targets)
    loras, files, artists = [], [], []
    for painter in PAINTERS:
        for number in range(2):
            seeds = range(100 + 8 * number, 108 + 8 * number)
            gradient, _ = mean_gradient(ask.question, ask.latents(pictures(painter, seeds)), names)
            path = folder / f"{painter}-{number}.safetensors"
            write_lora(path, updates_of(direction(gradient, 4, None)[0], ask.denoiser), {})
            loras.append(f"{painter}/{number}")
            files.append(path)
            artists.append(painter)
    known = Known(
        "mini", loras, [open_lora(path) for path in files], artists, [None] * len(files), gram(files, "delta")
    )
    asked = tmp_path_factory.mktemp("asked")
    for painter in PAINTERS[:2]:
        (asked / painter).mkdir()
        for i, x in enumerate(pictures(painter, range(6))):
            Image.fromarray(x).save(asked / painter / f"{i}.png")
    return Case(known, asked, ask)
