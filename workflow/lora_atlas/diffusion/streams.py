"""What each LoRA sees at each step: a function of its own seeds and the step, never of its neighbours.

No generator's state is ever saved: a job that goes on at step n draws what it would have drawn.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..seeds import derive_seed
from .stacked import Factors

Shape = tuple[int, int]  # of latents: height, width


@dataclass(frozen=True)
class Draw:
    """One LoRA at one step: b pictures of one shape, their noise (b, c, h, w), and what their timesteps are made of: b
    numbers uniform in [0, 1)."""

    shape: Shape
    pictures: list[Any]
    epsilon: torch.Tensor
    u: torch.Tensor


def draw(
    stream: int,
    order: int,
    step: int,
    pictures: Mapping[Shape, Sequence[Any]],
    batch: int,
    channels: int,
) -> Draw:
    """What a LoRA sees at a step; `pictures` are its own, by shape.

    `order` seeds the order of pictures, `stream` noise and timesteps. A batch has one shape; n pictures in all are
    seen equally often in every n steps, since a shape comes as often as it has pictures and its pictures come in
    epochs, each a new permutation. Timesteps are stratified over the batch, so that every stretch of the schedule is
    seen equally often too (Kingma et al. 2021, app. I.1).
    """
    generator, picked = torch.Generator(), []
    shape, use, name = _shape_of(order, step, pictures, generator)
    places = pictures[shape]
    for position in range(use * batch, (use + 1) * batch):
        epoch, place = divmod(position, len(places))
        generator.manual_seed(derive_seed("epoch", order, epoch, *name))
        picked.append(places[int(torch.randperm(len(places), generator=generator)[place])])
    generator.manual_seed(derive_seed("noise", stream, step))
    epsilon = torch.randn(batch, channels, *shape, generator=generator)
    return Draw(shape, picked, epsilon, stratified(batch, generator))


def stratified(count: int, generator: torch.Generator) -> torch.Tensor:
    """Numbers (count,) uniform in [0, 1), one in each of as many equal parts, in their order."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count


def _shape_of(
    order: int, step: int, pictures: Mapping[Shape, Sequence[Any]], generator: torch.Generator
) -> tuple[Shape, int, tuple]:
    """The shape of a step, how many steps had it before, and what tells its epochs from another shape's."""
    if len(pictures) == 1:
        return next(iter(pictures)), step, ()
    slots = [shape for shape, own in sorted(pictures.items()) for _ in own]
    epoch, place = divmod(step, len(slots))
    generator.manual_seed(derive_seed("shapes", order, epoch))
    order_of_slots = [slots[i] for i in torch.randperm(len(slots), generator=generator)[: place + 1]]
    shape = order_of_slots[-1]
    return shape, epoch * len(pictures[shape]) + order_of_slots.count(shape) - 1, shape


def initial_seeds(modules: Sequence[str], loras: Sequence[str], seed: int, init: str) -> list[dict[str, int]]:
    """Seeds of the initial A: the same for all LoRAs (`shared`), or each its own (`own`)."""
    return [
        {name: derive_seed("initial A", seed, name, *([lora] if init == "own" else [])) for name in modules}
        for lora in loras
    ]


def hash_factors(factors: Mapping[str, Factors]) -> str:
    """Hash of the A factors: LoRAs that share it are comparable factor by factor."""
    digest = hashlib.sha256()
    for name, (A, _) in sorted(factors.items()):
        digest.update(name.encode() + A.numpy().tobytes())
    return digest.hexdigest()
