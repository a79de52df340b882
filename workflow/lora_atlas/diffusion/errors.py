"""What can go wrong with a base and in training."""


class BaseModelError(ValueError):
    """The base model cannot be used; the message says what to put where."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the LoRA and the step, or what to change."""
