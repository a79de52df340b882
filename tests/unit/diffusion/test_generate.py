"""Many LoRAs in one batch paint what stock diffusers paints with each of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lora_atlas import tables
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.generate import generate, initial_noise
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import write_lora
from lora_atlas.sections import Base
from lora_atlas.settings import OWN, SHARED, Setting, settings

GENERATION = {
    "num_inference_steps": [3],
    "guidance_scale": [1, 4],
    "prompts": ["a painting of a landscape", "a painting of a portrait", "a painting"],
    "seeds": [0],
    "worth": {
        "num_inference_steps": 2,
        "guidance_scale": 3,
        "prompts": ["a landscape", "a portrait", "a painting of a landscape"],
        "pictures": 4,
        "series": [SHARED, OWN],
    },
}
WANTED = settings(GENERATION)
GRID = ["s3_g1", "s3_g4"]
SERIES = ["s2_g3_shared4", "s2_g3_own4"]
BATCH, SEED = 4, 5


@pytest.fixture(scope="module")
def loras(tmp_path_factory, tiny_base):
    """Three LoRAs of two ranks, strong enough to be seen."""
    folder, unet = tmp_path_factory.mktemp("loras"), load(Base(tiny_base), device="cpu").unet
    rng, paths = np.random.default_rng(3), {}
    for number, rank in enumerate((2, 3, 2)):
        updates = {}
        for name, module in unet.named_modules():
            if isinstance(module, torch.nn.Linear) and (".attn" in name or ".ff." in name):
                A = rng.normal(0, 0.6, (rank, module.in_features)).astype(np.float32)
                B = rng.normal(0, 0.6, (module.out_features, rank)).astype(np.float32)
                updates[f"unet.{name}"] = Update(f"unet.{name}", A, B)
        paths[f"ada/0{number}"] = folder / f"0{number}.safetensors"
        write_lora(paths[f"ada/0{number}"], updates, {})
    return paths


@pytest.fixture(scope="module")
def painted(tmp_path_factory, tiny_base, loras):
    found, count = paint(tmp_path_factory.mktemp("generated"), tiny_base, loras)
    assert count == 3 * (3 * 2 + 4 * 2)
    return found


def paint(folder, base, loras, wanted=WANTED, batch=BATCH) -> tuple[dict[str, list[dict]], int]:
    """Setting → rows, and how many pictures were generated."""
    assert [setting.name for setting in WANTED] == GRID + SERIES
    outputs = {setting.name: folder / f"{setting.name}.parquet" for setting in wanted}
    count = generate(
        loras, Base(base), wanted, batch=batch, resolution=32, seed=SEED, device="cpu",
        outputs=outputs,
    )  # fmt: skip
    return {name: tables.read(path, "generated").to_pylist() for name, path in outputs.items()}, count


def _array(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)


def _equal_to_stock(rows, path, base, setting: Setting) -> None:
    pipeline = load(Base(base), device="cpu")
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    assert len(rows) == setting.count
    for row in rows:
        image = pipeline(
            row["prompt"],
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            height=32,
            width=32,
            latents=initial_noise((4, 16, 16), SEED, row["prompt"], row["seed"])[None],
            output_type="np",
        ).images[0]
        stock = (image * 255).round().astype(int)
        # One step of 255 at the most: the two round the same numbers in another order.
        assert np.abs(stock - _array(row)).max() <= 1


@pytest.mark.parametrize("setting", WANTED, ids=lambda setting: setting.name)
def test_equal_to_stock_diffusers(painted, loras, tiny_base, setting):
    """Each LoRA by itself, at its prompts and from its noise: the grid's, those of all, and those of its own."""
    for lora in ("ada/00", "ada/01"):
        rows = [row for row in painted[setting.name] if row["lora"] == lora]
        assert [(row["prompt"], row["seed"]) for row in rows] == setting.tasks(lora)
        _equal_to_stock(rows, loras[lora], tiny_base, setting)


def test_loras_differ_and_rows_are_whole(painted, loras):
    for name, each in zip(GRID + SERIES, (3, 3, 4, 4), strict=True):
        rows = painted[name]
        keys = [(row["lora"], row["prompt"], row["seed"]) for row in rows]
        assert len(set(keys)) == 3 * each and [row["lora"] for row in rows] == [x for x in loras for _ in range(each)]
    rows = painted["s3_g4"]
    by = {(row["lora"], row["prompt"]): _array(row) for row in rows}
    prompt = GENERATION["prompts"][0]
    assert np.abs(by["ada/00", prompt] - by["ada/01", prompt]).mean() > 1


def test_a_series_is_of_the_same_noise_for_all_or_of_each_loras_own(painted, loras):
    tasks = {
        name: {lora: [(r["prompt"], r["seed"]) for r in painted[name] if r["lora"] == lora] for lora in loras}
        for name in SERIES
    }
    shared, own = (list(tasks[name].values()) for name in SERIES)
    assert shared[0] == shared[1] == shared[2]
    assert [prompt for prompt, _ in shared[0]] == [GENERATION["worth"]["prompts"][i] for i in (0, 1, 2, 0)]
    assert len({number for of_lora in own for _, number in of_lora}) == 12  # no noise twice
    assert not {number for _, number in shared[0]} & {number for of_lora in own for _, number in of_lora}
    assert len({tuple(prompt for prompt, _ in of_lora) for of_lora in own}) > 1
    assert {prompt for of_lora in own for prompt, _ in of_lora} <= set(GENERATION["worth"]["prompts"])


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_packs_and_batches_do_not_change_the_pictures(tmp_path, painted, loras, tiny_base, batch):
    """All three LoRAs in batches of one, of other sizes than divide the work; and one LoRA by itself."""
    wanted = [setting for setting in WANTED if setting.name in ("s3_g4", *SERIES)]
    for mine in (loras, {"ada/01": loras["ada/01"]}):
        found, count = paint(tmp_path / str(len(mine)), tiny_base, mine, wanted, batch)
        assert count == len(mine) * 11 and list(found) == ["s3_g4", *SERIES]
        for name, rows in found.items():
            twins = [row for row in painted[name] if row["lora"] in mine]
            for row, twin in zip(rows, twins, strict=True):
                assert [row[key] for key in ("lora", "prompt", "seed")] == [twin[k] for k in ("lora", "prompt", "seed")]
                assert np.abs(_array(row) - _array(twin)).max() <= 1
