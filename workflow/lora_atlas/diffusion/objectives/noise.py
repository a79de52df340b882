"""Denoising diffusion at discrete timesteps: the network predicts the noise, or the velocity."""

from dataclasses import dataclass
from typing import Any

import torch

from .objective import Objective, Shift

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Noise(Objective):
    """ᾱ_t (T,) of the base's schedule; epsilon (Ho et al. 2020, eq. 14) or velocity (Salimans & Ho 2022, eq. 7)."""

    alphas: torch.Tensor
    prediction: str
    min_snr_gamma: float | None

    @classmethod
    def of(
        cls, scheduler: Any, device: str, min_snr_gamma: float | None, density: str, shift: Shift | None
    ) -> "Noise | None":
        prediction = scheduler.config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS or not hasattr(scheduler, "alphas_cumprod"):
            return None
        return cls(scheduler.alphas_cumprod.float().to(device), prediction, min_snr_gamma)

    def times(self, u: torch.Tensor, tokens: int) -> torch.Tensor:
        T = len(self.alphas)
        return (u * T).long().clamp(max=T - 1)

    def noisy(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = self.alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * epsilon

    def value(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.prediction == "epsilon":
            return epsilon
        a = self.alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * epsilon - (1 - a).sqrt() * x

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Min-SNR-γ (Hang et al. 2023, §3.4), or one."""
        if self.min_snr_gamma is None:
            return torch.ones(len(t), device=t.device)
        snr = self.alphas[t] / (1 - self.alphas[t])
        clipped = snr.clamp(max=self.min_snr_gamma)
        return clipped / snr if self.prediction == "epsilon" else clipped / (snr + 1)
