"""Losses under many LoRAs at once, and LoRAs of one step: against networks that were changed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.attribution import Question, gradients, samples
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.classifier import losses_under
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.diffusion.one_step import direction, mean_gradient, step
from lora_atlas.sections import Base

SHAPE = (4, 16, 16)


@pytest.fixture(scope="module")
def question(tiny_bases) -> Question:
    pipeline = load(Base(tiny_bases["sd"]), device="cpu")
    denoiser = denoiser_of(pipeline)
    text = denoiser.encode_text(pipeline, ["a painting"], (32, 32))
    return Question(denoiser, objective_of(pipeline.scheduler, "cpu"), text, samples(5, SHAPE, 0), 4)


@pytest.fixture(scope="module")
def names(question) -> list[str]:
    return stacked.targeted(question.denoiser.module, ["attention", "convolution"], question.denoiser.targets)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def added(question: Question, lora, latents, sign: float = 1.0):
    """Losses with a LoRA added to the weights themselves."""
    module = question.denoiser.module
    with torch.no_grad():
        for name, (A, B) in lora.items():
            weight = module.get_submodule(name).weight
            weight += sign * (B @ A).view(weight.shape)
        found = losses_under(question, latents, [{}])
        for name, (A, B) in lora.items():
            weight = module.get_submodule(name).weight
            weight -= sign * (B @ A).view(weight.shape)
    return found[:, 0]


def loras(question, names, count=3):
    generator = torch.Generator().manual_seed(2)
    found = []
    for k in range(count):
        factors = {}
        for name in names[k::2]:
            weight = question.denoiser.module.get_submodule(name).weight
            A = torch.randn(k + 1, weight[0].numel(), generator=generator) * 0.05
            factors[name] = (A, torch.randn(len(weight), k + 1, generator=generator) * 0.05)
        found.append(factors)
    return found


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_losses_are_those_of_a_network_that_was_changed(question, names, latents, at_once):
    """LoRAs of several ranks, in other layers each; and of the base itself the losses that gradients come with."""
    given = loras(question, names)
    found = losses_under(question, latents, [{}, *given], at_once=at_once)
    np.testing.assert_allclose(found[:, 0], gradients(question, latents, names[:1])[1], rtol=1e-5)
    for k, lora in enumerate(given, 1):
        np.testing.assert_allclose(found[:, k], added(question, lora, latents), rtol=1e-4)
    assert not any(isinstance(module, stacked.Stacked) for module in question.denoiser.module.modules())


def test_the_direction_is_the_best_of_its_rank(question, names, latents):
    """Eckart & Young: of all matrices of rank r and this length, the truncation goes furthest down the gradient."""
    gradient, _ = mean_gradient(question, latents, names)
    held, losses = gradients(question, latents, names)
    found, slope = direction(gradient, 2, None)
    total = 0.0
    for name, (A, B) in found.items():
        g = held[name].mean(0)
        torch.testing.assert_close(gradient[name], g, rtol=1e-4, atol=1e-6)
        S = torch.linalg.svdvals(g.double())
        assert A.shape[0] == B.shape[1] == min(2, len(S))
        inner = float((g.double() * (B @ A).double()).sum())
        assert inner == pytest.approx(-float(S[:2].square().sum()), rel=1e-3)
        total += inner
    assert slope == pytest.approx(total, rel=1e-3) and slope < 0
    assert losses.shape == (3,)


def test_in_a_metric_the_direction_is_that_of_the_whitened_gradient(question, names, latents):
    """With moments that are multiples of the identity it is the plain one, scaled; with others it solves the problem
    that the metric poses: the natural gradient where the rank is whole."""
    gradient, _ = mean_gradient(question, latents, names[:3])
    moments = {name: (3.0 * torch.eye(g.shape[1]), 5.0 * torch.eye(len(g))) for name, g in gradient.items()}
    plain, metric = (direction(gradient, 2, each, damping=0.1)[0] for each in (None, moments))
    for name in gradient:
        dense, other = (B @ A for A, B in (plain[name], metric[name]))
        torch.testing.assert_close(other * 3.3 * 5.5, dense, rtol=1e-3, atol=1e-6)
    name = names[0]
    X, Y = (torch.randn(60, n) for n in (gradient[name].shape[1], len(gradient[name])))
    sigma, G = X.T @ X, Y.T @ Y
    whole, _ = direction({name: gradient[name]}, 10**6, {name: (sigma, G)}, damping=0.1)
    damped = [M.double() + 0.1 * M.double().diagonal().mean() * torch.eye(len(M)).double() for M in (G, sigma)]
    natural = -torch.linalg.inv(damped[0]) @ gradient[name].double() @ torch.linalg.inv(damped[1])
    A, B = whole[name]
    torch.testing.assert_close((B @ A).double(), natural, rtol=1e-2, atol=1e-3 * float(natural.abs().max()))


def test_a_step_makes_its_judges_better_by_what_it_says(question, names, latents):
    judged = replace(question, asked=samples(6, SHAPE, 1))
    found = step(question, latents, names, rank=4, moments=None, held_out=latents, judged=judged)
    assert found.scale > 0 and found.after < found.base
    assert added(judged, found.factors, latents).mean() == pytest.approx(found.after, rel=1e-4)
    assert losses_under(judged, latents, [{}]).mean() == pytest.approx(found.base, rel=1e-5)


def test_a_step_that_helps_nobody_is_none(question, names, latents, monkeypatch):
    """Also where what is tried is no number any more."""
    monkeypatch.setattr("lora_atlas.diffusion.one_step.SCALES", (1e6, 1e30))
    found = step(question, latents, names, rank=1, moments=None)
    assert found.scale == 0 and found.after == found.base
    assert all(not B.any() for _, B in found.factors.values())
