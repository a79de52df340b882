"""Tiny bases with random weights, in diffusers' own folder format: the real loading code reads them. And a recipe."""

import hashlib
import io

import flows
import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_atlas import tables
from lora_atlas.diffusion.train import Resources, train
from lora_atlas.mini.base import MAX_TOKENS, tokenizer
from lora_atlas.sections import Base, Training

torch.set_num_threads(1)  # these models are too small to share


def tiny_pipeline(prediction: str = "epsilon") -> StableDiffusionPipeline:
    """SD1.5's classes at toy size: 16×16 latents from 32×32 pictures, attention on the lower level."""
    torch.manual_seed(0)
    words = tokenizer(("landscape", "portrait"))
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text(words, 16)),
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(prediction: str = "epsilon") -> StableDiffusionXLPipeline:
    """SDXL's classes at toy size: two text encoders, pooled embeddings, time ids, linear projections."""
    torch.manual_seed(1)
    words = tokenizer(("landscape", "portrait"))
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16 + 8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(force_upcast=True),
        text_encoder=CLIPTextModel(_text(words, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_text(words, 8)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type=prediction,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _vae(**settings) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=32,
        **settings,
    )


def _text(words, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory, tiny_base):
    """Kind → folder: both architectures, both prediction types."""
    folders = {"sd": tiny_base}
    for kind, pipeline in {
        "sd-v": tiny_pipeline("v_prediction"),
        "sdxl": tiny_sdxl(),
        "sdxl-v": tiny_sdxl("v_prediction"),
    }.items():
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        pipeline.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def base_of(tmp_path_factory, tiny_bases):
    """Kind → folder of any architecture: those of `tiny_bases`, and the transformers of tests/support."""
    folders = dict(tiny_bases)

    def _base_of(kind: str) -> str:
        if kind not in folders:
            folders[kind] = str(tmp_path_factory.mktemp(kind))
            flows.tiny(kind).save_pretrained(folders[kind])
        return folders[kind]

    return _base_of


@pytest.fixture(scope="module", params=["sd", "sd3"])
def any_base(request, base_of) -> str:
    """A base of each architecture: what the trainer promises, it promises of both."""
    return base_of(request.param)


RECIPE = {
    "resolution": 32,
    "aspect_ratio_buckets": False,
    "caption": "a painting",
    "rank": 2,
    "alpha": 4,
    "targets": ["attention", "feed_forward"],
    "init": "own",
    "noise": "own",
    "steps": 12,
    "batch": 2,
    "learning_rate": 2e-3,
    "warmup": 2,
    "lr_schedule": "constant",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "loss": "epsilon",
    "min_snr_gamma": 5.0,
}


def _pictures(sizes) -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    for width, height in sizes:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        rows.append(
            {
                "picture": hashlib.sha256(data).hexdigest(),
                "artist": "ada",
                "genre": None,
                "image": {"bytes": data, "path": None},
                "width": width,
                "height": height,
                "source": "test",
                "licence": None,
                "subject": None,
                "status": "kept",
                "reason": None,
            }
        )
    return rows


def _material(sizes, each: int) -> tuple[pa.Table, pa.Table]:
    rows = _pictures(sizes)
    plan = [
        {
            "lora": f"ada/{n:02d}",
            "artist": "ada",
            "genre": None,
            "split": "gallery",
            "seed": 100 + n,
            "pictures": [row["picture"] for row in rows[each * n : each * (n + 1)]],
            "overlap": 0.0,
        }
        for n in range(len(rows) // each)
    ]
    return tables.table("plan", plan), tables.table("pictures", rows)


@pytest.fixture(scope="session")
def material() -> tuple[pa.Table, pa.Table]:
    """Three LoRAs of two pictures each."""
    return _material([(48, 40)] * 6, 2)


@pytest.fixture(scope="session")
def wide_and_tall() -> tuple[pa.Table, pa.Table]:
    """Three LoRAs of four pictures each, of several shapes."""
    return _material([(48, 40), (80, 40), (40, 80), (48, 47)] * 2 + [(80, 40)] * 4, 4)


@pytest.fixture(scope="session")
def make():
    """Train the named LoRAs into a folder; returns id → file."""

    def _make(folder, base, material, loras, *, resources=None, seed=7, **changes):
        plan, pictures = material
        outputs = {lora: folder / f"{lora[-2:]}.safetensors" for lora in loras}
        order = plan["lora"].to_pylist()
        train(
            plan.take([order.index(lora) for lora in loras]),
            pictures,
            Base(base),
            Training(**RECIPE) | changes,
            seed=seed,
            resources=resources or Resources("cpu"),
            outputs=outputs,
            logs={"ada": folder / "log.parquet"},
            folder=folder / "state",
        )
        return outputs

    return _make


@pytest.fixture(scope="session")
def recipe() -> dict:
    return dict(RECIPE)
