"""The learning rate's schedule."""

import math

from ..sections import Training


def learning_rate(training: Training, step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up, then constant, or half a cosine down to zero."""
    warmup, steps = training.warmup, training.steps
    rate = training.learning_rate * min(1.0, (step + 1) / max(1, warmup))
    if training.lr_schedule == "cosine" and step >= warmup:
        rate *= 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return rate
