"""Many LoRAs in one batch paint what stock diffusers paints with each of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lora_atlas import tables
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.generate import generate, initial_noise
from lora_atlas.weights.factors import Update
from lora_atlas.weights.files import write_lora

GENERATION = {
    "num_inference_steps": [3],
    "guidance_scale": [1, 4],
    "prompts": ["a painting of a landscape", "a painting of a portrait", "a painting"],
    "seeds": [0],
    "batch": 4,
}


@pytest.fixture(scope="module")
def loras(tmp_path_factory, tiny_base):
    """Three LoRAs of two ranks, strong enough to be seen."""
    folder, unet = tmp_path_factory.mktemp("loras"), load(tiny_base, None, device="cpu").unet
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
    folder = tmp_path_factory.mktemp("generated")
    outputs = {name: folder / f"{name}.parquet" for name in ("s3_g1", "s3_g4")}
    base = {"model": tiny_base, "revision": None}
    count = generate(loras, base, GENERATION, resolution=32, seed=5, device="cpu", outputs=outputs)
    assert count == 3 * 3 * 2
    return {name: tables.read(path, "generated").to_pylist() for name, path in outputs.items()}


def _array(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)


@pytest.mark.parametrize("guidance", [1, 4])
def test_equal_to_stock_diffusers(painted, loras, tiny_base, guidance):
    rows = painted[f"s3_g{guidance}"]
    for lora in ("ada/00", "ada/01"):
        pipeline = load(tiny_base, None, device="cpu")
        pipeline.load_lora_weights(str(loras[lora].parent), weight_name=loras[lora].name)
        for row in (r for r in rows if r["lora"] == lora):
            image = pipeline(
                row["prompt"],
                num_inference_steps=3,
                guidance_scale=guidance,
                height=32,
                width=32,
                latents=initial_noise((4, 16, 16), 5, row["prompt"], row["seed"])[None],
                output_type="np",
            ).images[0]
            stock = (image * 255).round().astype(int)
            # One step of 255 at the most: the two round the same numbers in another order.
            assert np.abs(stock - _array(row)).max() <= 1


def test_loras_differ_and_rows_are_whole(painted):
    rows = painted["s3_g4"]
    keys = [(row["lora"], row["prompt"], row["seed"]) for row in rows]
    assert len(set(keys)) == 9
    by = {key: _array(row) for key, row in zip(keys, rows, strict=True)}
    prompt = GENERATION["prompts"][0]
    assert np.abs(by["ada/00", prompt, 0] - by["ada/01", prompt, 0]).mean() > 1


def test_packs_do_not_change_the_pictures(tmp_path, painted, loras, tiny_base):
    outputs = {"s3_g1": tmp_path / "a.parquet", "s3_g4": tmp_path / "b.parquet"}
    alone = {"ada/01": loras["ada/01"]}
    generate(
        alone, {"model": tiny_base, "revision": None}, {**GENERATION, "batch": 1}, resolution=32, seed=5,
        device="cpu", outputs=outputs,
    )  # fmt: skip
    for row in tables.read(outputs["s3_g4"], "generated").to_pylist():
        twin = next(r for r in painted["s3_g4"] if (r["lora"], r["prompt"]) == (row["lora"], row["prompt"]))
        assert np.abs(_array(row) - _array(twin)).max() <= 1
