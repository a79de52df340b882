"""Rectified flow: a straight way from picture to noise, of which the network predicts the velocity.

x_σ = (1 − σ)x + σε, and the velocity is ε − x (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206,
eq. 13). Every timestep counts alike in the loss: how often it is drawn is the weighting (ibid., §3.1).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ..errors import TrainingError
from .objective import Objective, Shift

EDGE = 1e-5  # of the unit interval, where the normal distribution has no quantile
MODE = 1.29  # the scale of mode sampling that did best of those tried in ibid., table 1


def logit_normal(u: torch.Tensor) -> torch.Tensor:
    """σ whose logit is standard normal, of uniform numbers (ibid., eq. 19)."""
    return torch.sigmoid(torch.special.ndtri(u.clamp(EDGE, 1 - EDGE)))


def mode(u: torch.Tensor) -> torch.Tensor:
    """σ with heavy tails, of uniform numbers (ibid., eq. 20)."""
    return 1 - u - MODE * (torch.cos(math.pi / 2 * u).square() - 1 + u)


def uniform(u: torch.Tensor) -> torch.Tensor:
    return u


DENSITIES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logit_normal": logit_normal,
    "mode": mode,
    "uniform": uniform,
}


@dataclass(frozen=True)
class Flow(Objective):
    """Timesteps are σ times the schedule's number of steps, which networks are told; `density` of DENSITIES; `shift`:
    the number of a picture's tokens → μ, of bases whose pipeline has a way of its own to it."""

    scheduler: Any
    density: str
    shift: Shift | None = None

    @classmethod
    def of(
        cls, scheduler: Any, device: str, min_snr_gamma: float | None, density: str, shift: Shift | None
    ) -> "Flow | None":
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            return None
        if min_snr_gamma is not None:
            raise TrainingError(
                "training.loss: min_snr weighs the timesteps of a diffusion, and this base is a rectified flow, whose "
                "timesteps are drawn as they count; set training.loss to epsilon (plain mean squared error)"
            )
        return cls(scheduler, density, shift)

    @property
    def length(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    def times(self, u: torch.Tensor, tokens: int) -> torch.Tensor:
        """Shifted towards noise as the base's own schedule is: by a constant, or by the number of a picture's tokens
        (ibid., eq. 23)."""
        sigma, config = DENSITIES[self.density](u), self.scheduler.config
        if config.use_dynamic_shifting:
            mu = (self.shift or self._of_schedule)(tokens)
            shifted: torch.Tensor = self.scheduler.time_shift(mu, 1.0, sigma)
            return shifted * self.length
        return config.shift * sigma / (1 + (config.shift - 1) * sigma) * self.length

    def _of_schedule(self, tokens: int) -> float:
        config = self.scheduler.config
        mu: float = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        return mu

    def noisy(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = (t / self.length).view(-1, 1, 1, 1)
        return (1 - sigma) * x + sigma * epsilon

    def value(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return epsilon - x

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(t), device=t.device)
