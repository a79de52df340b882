"""The targets' algebra and the learning rate's schedule."""

import itertools

import pytest
import torch

from lora_atlas.diffusion.objectives.noise import Noise
from lora_atlas.diffusion.schedule import learning_rate
from lora_atlas.sections import Training


def test_targets_invert_the_forward_process():
    alphas = torch.linspace(0.99, 0.01, 50)
    x, epsilon = torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3)
    t = torch.randint(50, (8,))
    a = alphas[t].view(-1, 1, 1, 1)
    v = Noise(alphas, "v_prediction", None)
    noisy, value = v.noisy(x, epsilon, t), v.value(x, epsilon, t)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * value, x)
    torch.testing.assert_close((1 - a).sqrt() * noisy + a.sqrt() * value, epsilon)


def test_min_snr_weights():
    alphas = torch.tensor([0.99, 0.5, 0.1])  # SNR 99, 1, 1/9
    t = torch.arange(3)
    torch.testing.assert_close(Noise(alphas, "epsilon", 5.0).weight(t), torch.tensor([5 / 99, 1.0, 1.0]))
    torch.testing.assert_close(Noise(alphas, "v_prediction", 5.0).weight(t), torch.tensor([0.05, 0.5, 0.1]))


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("cosine", 0.0)])
def test_the_learning_rate_warms_up_and_then_keeps_to_its_schedule(recipe, schedule, last):
    training = Training(**recipe) | {"learning_rate": 0.5, "warmup": 4, "steps": 1000, "lr_schedule": schedule}
    rates = [learning_rate(training, step) for step in range(1000)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert all(late <= early for early, late in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.5 * last, abs=1e-5)
    assert rates[501] == pytest.approx(0.5 if schedule == "constant" else 0.25, rel=0.01)
