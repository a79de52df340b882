"""Objectives of training, a file each. A new one is its file, and its class in OBJECTIVES."""

from typing import Any

from ..errors import TrainingError
from .flow import Flow
from .noise import PREDICTIONS, Noise
from .objective import Objective, Shift

__all__ = ["OBJECTIVES", "Objective", "objective_of"]

OBJECTIVES: tuple[type[Objective], ...] = (Noise, Flow)


def objective_of(
    scheduler: Any,
    device: str,
    min_snr_gamma: float | None = None,
    density: str = "logit_normal",
    shift: Shift | None = None,
) -> Objective:
    """The objective that a base's own noise schedule asks for; raises TrainingError for one that is not here."""
    for kind in OBJECTIVES:
        found = kind.of(scheduler, device, min_snr_gamma, density, shift)
        if found is not None:
            return found
    raise TrainingError(
        f"base.model: its scheduler ({type(scheduler).__name__}, prediction_type "
        f"{scheduler.config.get('prediction_type', 'epsilon')!r}) is not a diffusion of type "
        f"{' or '.join(PREDICTIONS)}, nor a rectified flow (FlowMatchEulerDiscreteScheduler); the trainer knows these"
    )
