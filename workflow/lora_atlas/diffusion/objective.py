"""What a step of training aims at: the noise schedule's target, its weight, and the learning rate's schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the LoRA and the step, or what to change."""


@dataclass(frozen=True)
class Target:
    """What the UNet should predict at (x₀, ε, t), and the weight of its error there."""

    alphas: torch.Tensor  # ᾱ_t, (T,)
    prediction: str
    min_snr_gamma: float | None

    def noisy(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = self.alphas[t].view(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * epsilon

    def value(self, x: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.prediction == "epsilon":
            return epsilon
        a = self.alphas[t].view(-1, 1, 1, 1)  # v-prediction, Salimans & Ho 2022, eq. 7
        return a.sqrt() * epsilon - (1 - a).sqrt() * x

    def weight(self, t: torch.Tensor) -> torch.Tensor:
        """Min-SNR-γ (Hang et al. 2023, §3.4), or one."""
        if self.min_snr_gamma is None:
            return torch.ones(len(t), device=t.device)
        snr = self.alphas[t] / (1 - self.alphas[t])
        clipped = snr.clamp(max=self.min_snr_gamma)
        return clipped / snr if self.prediction == "epsilon" else clipped / (snr + 1)


def target(scheduler: Any, training: Mapping[str, Any], device: str) -> Target:
    """The training target that the base's own noise schedule asks for; raises TrainingError for one without it."""
    config = scheduler.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
        raise TrainingError(
            f"base.model: its scheduler ({type(scheduler).__name__}, prediction_type {prediction!r}) is not a "
            "diffusion of type epsilon or v_prediction; the trainer knows these two"
        )
    gamma = training["min_snr_gamma"] if training["loss"] == "min_snr" else None
    return Target(scheduler.alphas_cumprod.float().to(device), prediction, gamma)


def learning_rate(training: Mapping[str, Any], step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up, then constant, or half a cosine down to zero."""
    warmup, steps = training["warmup"], training["steps"]
    rate = training["learning_rate"] * min(1.0, (step + 1) / max(1, warmup))
    if training["lr_schedule"] == "cosine" and step >= warmup:
        rate *= 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return rate
