"""What a step of training aims at: how a latent is noised, what the network should predict there, and the weight of its
error."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

Shift = Callable[[int], float]  # tokens of a picture → μ, by which a flow's timesteps are shifted towards noise


class Objective(ABC):
    """x₀ and ε are latents (n, c, h, w); timesteps (n,) are what `times` makes of uniform numbers, and what the network
    is given."""

    @classmethod
    @abstractmethod
    def of(
        cls, scheduler: Any, device: str, min_snr_gamma: float | None, density: str, shift: Shift | None
    ) -> "Objective | None":
        """The objective that a base's own noise schedule asks for; None if it is of another kind.

        `min_snr_gamma`: γ of Min-SNR weights; None: every timestep counts alike. `density`: how timesteps are drawn
        where the schedule does not say, as of flow.DENSITIES. `shift`: where the schedule asks for one that depends on
        the picture's size, and the pipeline has a way of its own to it.
        """

    @abstractmethod
    def times(self, u: torch.Tensor, tokens: int) -> torch.Tensor:
        """Timesteps (n,) of numbers (n,) uniform in [0, 1), for pictures of as many tokens."""

    @abstractmethod
    def noisy(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def value(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network should predict."""

    @abstractmethod
    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Weight (n,) of the squared error."""
