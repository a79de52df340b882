"""Bases of both architectures and both prediction types: train, save, and get equal outputs from stock diffusers."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_atlas import tables
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.base import identity, load
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.denoisers.unet import UNet
from lora_atlas.diffusion.errors import BaseModelError
from lora_atlas.diffusion.generate import generate, initial_noise, noise_seed
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import write_lora
from lora_atlas.sections import Base
from lora_atlas.settings import Setting

KINDS = ["sd", "sd-v", "sdxl", "sdxl-v"]
ALL = ["attention", "feed_forward", "projection", "convolution"]


def _parts(pipeline, size=(32, 32)):
    denoiser = denoiser_of(pipeline)
    text = denoiser.encode_text(pipeline, ["a painting"], size)
    torch.manual_seed(5)
    return torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), text.first(2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_file_gives_stock_diffusers_the_outputs_it_had_in_training(
    tmp_path, tiny_bases, material, make, kind
):
    path = make(tmp_path, tiny_bases[kind], material, ["ada/00", "ada/01"], targets=ALL, steps=20)["ada/01"]
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    modules = sorted({key.rsplit(".lora_", 1)[0].removeprefix("unet.") for key in tensors})
    pipeline = load(Base(tiny_bases[kind]), device="cpu")
    x, t, text = _parts(pipeline)
    denoiser = denoiser_of(pipeline)
    plain = denoiser.predict(x, t, text)
    layers = stacked.stack(pipeline.unet, modules, 1, 2, 1.0)
    A_B = {m: tuple(tensors[f"unet.{m}.lora_{f}.weight"].flatten(1) for f in "AB") for m in modules}
    stacked.put(layers, 0, A_B)
    ours = denoiser.predict(x, t, text)
    stacked.unstack(pipeline.unet, layers)
    assert modules == stacked.targeted(pipeline.unet, ALL, UNet.targets)

    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    loaded = {n.split(".lora_A.")[0] for n, _ in pipeline.unet.named_modules() if ".lora_A." in n}
    assert loaded == set(modules)  # several formats load nothing, and say nothing
    stock = denoiser.predict(x, t, text)
    assert (stock - plain).abs().max() > 1e-3  # it learnt something
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler scheduler
@pytest.mark.parametrize("kind", ["sdxl", "sdxl-v", "ancestral"])
@pytest.mark.parametrize("guidance", [1, 4])
def test_sdxl_paints_what_stock_diffusers_paints(tmp_path, tiny_bases, kind, guidance):
    """Its empty prompt is zeros, its first noise is scaled, its steps are Euler's: one step of 255 at the most.

    An ancestral sampler adds noise at each step, from each picture's own generator.
    """
    if kind == "ancestral":
        folder = tmp_path / "base"
        shutil.copytree(tiny_bases["sdxl"], folder)
        EulerAncestralDiscreteScheduler(prediction_type="epsilon").save_pretrained(folder / "scheduler")
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("EulerDiscrete", "EulerAncestralDiscrete"))
    else:
        folder = tiny_bases[kind]
    unet, rng, paths = load(Base(str(folder)), device="cpu").unet, np.random.default_rng(3), {}
    for number in range(2):
        updates = {}
        for name in stacked.targeted(unet, ["attention", "feed_forward", "projection"], UNet.targets):
            out, width = unet.get_submodule(name).weight.shape
            A, B = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((2, width), (out, 2)))
            updates[f"unet.{name}"] = Update(f"unet.{name}", A, B)
        paths[f"ada/0{number}"] = tmp_path / f"0{number}.safetensors"
        write_lora(paths[f"ada/0{number}"], updates, {})
    setting = Setting(3, guidance, ("a painting of a landscape", "a painting of a portrait"), (0,))
    base = Base(str(folder))
    outputs = {f"s3_g{guidance}": tmp_path / "painted.parquet"}
    generate(paths, base, [setting], batch=4, resolution=32, seed=5, device="cpu", outputs=outputs)
    rows = tables.read(tmp_path / "painted.parquet", "generated").to_pylist()
    assert len(rows) == 4
    for lora, path in paths.items():
        pipeline = load(Base(str(folder)), device="cpu")
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        for row in (r for r in rows if r["lora"] == lora):
            generator = torch.Generator().manual_seed(noise_seed(5, row["prompt"], row["seed"]))
            torch.randn((4, 16, 16), generator=generator)
            image = pipeline(
                row["prompt"],
                num_inference_steps=3,
                guidance_scale=guidance,
                height=32,
                width=32,
                latents=initial_noise((4, 16, 16), 5, row["prompt"], row["seed"])[None],
                generator=generator,
                output_type="np",
            ).images[0]
            stock = (image * 255).round().astype(int)
            ours = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
            assert np.abs(stock - ours).max() <= 1


def test_size_conditioning_is_that_of_stock_diffusers(tiny_bases):
    pipeline = load(Base(tiny_bases["sdxl"]), device="cpu")
    ids = denoiser_of(pipeline).encode_text(pipeline, ["a painting"], (24, 40)).tensors["time_ids"]
    stock = pipeline._get_add_time_ids((24, 40), (0, 0), (24, 40), torch.float32, text_encoder_projection_dim=8)
    assert torch.equal(ids, stock)


def test_a_variant_is_read_where_it_is_asked_for_and_its_absence_is_said(tmp_path, tiny_base):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            half = {key: value.half() for key, value in load_file(file).items()}
            save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
            file.unlink()
    unet = load(Base(str(folder), None, "fp16"), device="cpu").unet
    plain = load(Base(tiny_base), device="cpu").unet
    for one, other in zip(unet.parameters(), plain.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other.half().float())
    with pytest.raises(BaseModelError, match="bf16"):
        load(Base(str(folder), None, "bf16"), device="cpu")


@pytest.mark.fault("LoRA files", "a base without safetensors, beside a pickle", "refused; the pickle stays unopened")
def test_a_pickle_is_never_a_fallback(tmp_path, tiny_base):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    file = next((folder / "unet").glob("*.safetensors"))
    torch.save(load_file(file), folder / "unet" / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(BaseModelError, match=r"base\.model.*safetensors"):
        load(Base(str(folder)), device="cpu")


@pytest.mark.fault("LoRA files", "a base whose weights are cut", "refused by its folder")
def test_a_damaged_base_is_named(tmp_path, tiny_base):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    file = Path(next((folder / "unet").glob("*.safetensors")))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match=r"base\.model: cannot load .*base"):
        load(Base(str(folder)), device="cpu")


@pytest.mark.fault(
    "training",
    "another schedule, text encoder or autoencoder in a base's folder",
    "another base: nothing goes on from it",
)
@pytest.mark.parametrize(
    "part", ["scheduler/scheduler_config.json", "text_encoder/model.safetensors", "vae/config.json", "model_index.json"]
)
def test_a_base_is_all_of_its_parts(tmp_path, tiny_base, part):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    before = identity(Base(str(folder)))
    (folder / "README.md").write_text("about it")
    assert identity(Base(str(folder))) == before and before.startswith("base@sha256:")
    (folder / part).write_bytes((folder / part).read_bytes() + b" ")
    assert identity(Base(str(folder))) != before


def test_a_base_needs_nothing_that_looks_at_given_pictures(tmp_path, tiny_base):
    """Stable Diffusion 1.5 names a feature extractor, for its safety checker; neither is fetched."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipeline = load(Base(str(folder)), device="cpu")
    assert pipeline.feature_extractor is None and pipeline.image_encoder is None
