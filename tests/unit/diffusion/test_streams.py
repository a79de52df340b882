"""What a LoRA sees: every picture and every stretch of the schedule equally often, and nothing of its neighbours."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas.diffusion.objectives.noise import Noise
from lora_atlas.diffusion.streams import draw

SQUARE = (2, 2)


def drawn(stream, order, step, pictures, batch):
    return draw(stream, order, step, pictures, batch, 1)


def test_draws_see_every_picture_equally_often_and_depend_on_nothing_else():
    seen = [p for step in range(12) for p in drawn(1, 2, step, {SQUARE: [4, 5, 6]}, 2).pictures]
    assert sorted(seen) == sorted([4, 5, 6] * 8)
    a, b = (drawn(1, 2, 3, {SQUARE: [4, 5]}, 2) for _ in range(2))
    assert a.pictures == b.pictures
    assert torch.equal(a.epsilon, b.epsilon)
    shared = drawn(1, 9, 3, {SQUARE: [4, 5]}, 2)
    assert torch.equal(a.epsilon, shared.epsilon)  # the noise stream does not depend on the order of pictures


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 5))
def test_pictures_of_all_shapes_are_seen_equally_often(counts, batch, order):
    pictures = {(j + 1, 2): [(j, i) for i in range(count)] for j, count in enumerate(counts)}
    steps = 3 * sum(counts)
    draws = [drawn(1, order, step, pictures, batch) for step in range(steps)]
    for d in draws:
        assert d.epsilon.shape == (batch, 1, *d.shape)
        assert all(p in pictures[d.shape] for p in d.pictures)
    assert set(Counter(p for d in draws for p in d.pictures).values()) == {3 * batch}


def test_timesteps_are_stratified_and_uniform():
    noise = Noise(torch.linspace(0.99, 0.01, 1000), "epsilon", None)
    found = torch.stack([noise.times(drawn(1, 2, step, {(1, 1): [0]}, 4).u, 1) for step in range(2000)])
    assert torch.equal(found // 250, torch.arange(4).expand(2000, -1))
    share = torch.bincount(found.flatten() // 100, minlength=10) / found.numel()
    torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.01, rtol=0)


@pytest.mark.parametrize("changed", ["stream", "step"])
def test_another_stream_or_step_has_other_noise(changed):
    first = drawn(1, 2, 3, {SQUARE: [0]}, 2)
    other = drawn(9 if changed == "stream" else 1, 2, 9 if changed == "step" else 3, {SQUARE: [0]}, 2)
    assert not torch.equal(first.epsilon, other.epsilon)
