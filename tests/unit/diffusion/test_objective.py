"""The targets' algebra and the learning rate's schedule."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.training_utils import compute_density_for_timestep_sampling

from lora_atlas.diffusion.denoisers.flux2 import Flux2
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.diffusion.objectives import objective_of
from lora_atlas.diffusion.objectives.flow import MODE, Flow
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


def _flow(density: str = "uniform", **schedule) -> Flow:
    found = Flow.of(FlowMatchEulerDiscreteScheduler(**schedule), "cpu", None, density, None)
    assert found is not None
    return found


def test_a_flow_goes_straight_from_picture_to_noise():
    x, epsilon, t = torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3), torch.linspace(0, 1000, 8)
    flow = _flow()
    noisy, velocity = flow.noisy(x, epsilon, t), flow.value(x, epsilon, t)
    torch.testing.assert_close(noisy[0], x[0])
    torch.testing.assert_close(noisy[-1], epsilon[-1])
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * velocity, x)
    torch.testing.assert_close(noisy + (1 - sigma) * velocity, epsilon)
    assert torch.equal(flow.weight(t), torch.ones(8))


def test_timesteps_are_drawn_as_published():
    """Logit-normal: quantiles of the normal distribution. Mode: as diffusers has it, from the same u."""
    u = torch.tensor([0.0, 0.158655, 0.5, 0.841345, 0.99999])
    found = _flow("logit_normal").times(u, 64) / 1000
    torch.testing.assert_close(torch.logit(found[1:4]), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-4, rtol=1e-4)
    assert found.isfinite().all() and (found.diff() > 0).all()
    torch.manual_seed(0)
    theirs = compute_density_for_timestep_sampling("mode", 100, mode_scale=MODE)
    torch.manual_seed(0)
    torch.testing.assert_close(_flow("mode").times(torch.rand(100), 64) / 1000, theirs)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_timesteps_are_shifted_as_the_bases_own_schedule_is(kind):
    """As diffusers' scheduler shifts its own: by a constant, or by mu of the number of tokens."""
    u = torch.linspace(0.05, 1, 20)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=u.flip(0).tolist())
    torch.testing.assert_close(_flow(shift=3.0).times(u, 64), theirs.timesteps.flip(0), atol=1e-3, rtol=1e-5)
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": kind}
    flow = _flow(**dynamic)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        theirs = FlowMatchEulerDiscreteScheduler(**dynamic)
        theirs.set_timesteps(sigmas=u.flip(0).tolist(), mu=mu)
        torch.testing.assert_close(flow.times(u, tokens), theirs.timesteps.flip(0), atol=1e-3, rtol=1e-5)
    assert (flow.times(u[:-1], 4096) > flow.times(u[:-1], 256)).all()


def test_a_pipeline_that_shifts_in_its_own_way_is_followed():
    """FLUX.2's pipelines take μ of the number of tokens and of steps, and not what their schedule's numbers say."""
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    u = torch.linspace(0.05, 1, 20)
    for tokens in (1024, 4096, 16384):
        theirs = FlowMatchEulerDiscreteScheduler(**dynamic)
        mu = compute_empirical_mu(tokens, 50)
        theirs.set_timesteps(sigmas=u.flip(0).tolist(), mu=mu)
        flow = objective_of(FlowMatchEulerDiscreteScheduler(**dynamic), "cpu", density="uniform", shift=Flux2.shift)
        torch.testing.assert_close(flow.times(u, tokens), theirs.timesteps.flip(0), atol=1e-3, rtol=1e-5)
    assert mu > 1.15


def test_a_schedule_of_neither_kind_is_named():
    with pytest.raises(TrainingError, match=r"base\.model: its scheduler \(DDIMScheduler, prediction_type 'sample'\)"):
        objective_of(DDIMScheduler(prediction_type="sample"), "cpu")
