"""Shapes of training pictures: buckets, crops, and latents that are those of the cropped pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion import examples
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.sections import Base, Training


def test_buckets_of_512_are_the_familiar_ones():
    sizes = examples.bucket_sizes(512, 64)
    assert {(512, 512), (640, 384), (576, 448), (448, 576)} <= set(sizes)
    assert all(h % 64 == w % 64 == 0 and h * w <= 512**2 and max(h / w, w / h) <= 2 for h, w in sizes)


@settings(deadline=None, max_examples=60)
@given(st.integers(10, 400), st.integers(10, 400))
def test_a_picture_goes_where_least_is_cut_away(width, height):
    buckets = examples.bucket_sizes(64, 8)
    best = examples.nearest((height, width), buckets)

    def kept(size):  # share of the picture that is left
        ratio = (width / height) / (size[1] / size[0])
        return min(ratio, 1 / ratio)

    assert kept(best) == pytest.approx(max(kept(size) for size in buckets))


def test_a_square_picture_is_a_square():
    assert examples.nearest((47, 47), examples.bucket_sizes(64, 8)) == (64, 64)


def test_crops_are_centred_and_whole():
    ramp = np.broadcast_to(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (60, 90, 3))
    wide = np.asarray(examples.crop(Image.fromarray(ramp), (32, 48)))
    assert wide.shape == (32, 48, 3)
    assert wide[:, 0].mean() < 5
    assert wide[:, -1].mean() > 250  # nothing is cut off: the same ratio
    tall = np.asarray(examples.crop(Image.fromarray(ramp), (48, 32))).astype(float)
    assert abs(tall.mean() - 127.5) < 2


def test_a_resolution_that_the_base_cannot_have_is_said():
    with pytest.raises(TrainingError, match=r"training\.resolution: 100 is not a multiple of 64"):
        examples.bucket_sizes(100, 64)


def test_latents_are_those_of_each_picture_in_its_bucket(tiny_base, wide_and_tall, recipe):
    plan, pictures = wide_and_tall
    pipeline = bases.load(Base(tiny_base), device="cpu")
    wanted = sorted(p for own in plan["pictures"].to_pylist() for p in own)
    training = Training(**recipe) | {"aspect_ratio_buckets": True}
    latents, places, sizes = examples.encode(pipeline, denoiser_of(pipeline), pictures, wanted, training)
    assert len(latents) >= 3
    for picture in wanted:
        shape, i = places[picture]
        cropped = examples.arrays(pictures, [picture], [sizes[shape]])[picture][1]
        x = torch.from_numpy(cropped).permute(2, 0, 1)[None].float() / 127.5 - 1
        torch.testing.assert_close(latents[shape][i : i + 1], bases.encode_pictures(pipeline, x), atol=1e-4, rtol=1e-4)


@pytest.mark.fault(
    "configuration", "a square resolution that the base's patches do not divide", "refused, with the next"
)
@pytest.mark.parametrize("buckets", [True, False])
def test_a_transformer_is_told_which_sides_it_can_have_and_a_unet_pads(buckets):
    training = SimpleNamespace(resolution=600, aspect_ratio_buckets=buckets)
    with pytest.raises(TrainingError, match="600 is not a multiple of 16, which this base needs; write 592 or 608"):
        examples.sizes_for(SimpleNamespace(step=16, patched=True), training)
    square = SimpleNamespace(resolution=600, aspect_ratio_buckets=False)
    assert examples.sizes_for(SimpleNamespace(step=64, patched=False), square) == [(600, 600)]
