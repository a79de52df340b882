"""The loss of pictures under each of many LoRAs, with common noise: a diffusion classifier whose classes are LoRAs.

A diffusion model classifies a picture by the condition under which it denoises it best (Li et al. 2023, arXiv
2303.16203, eq. 3 to 5); here a LoRA is the condition. Stacked adapters see the same noisy latents, so a batch holds K
LoRAs at once, and differences of losses are free of most of the noise. It is exact where one gradient is a first order,
and costs a pass of the network for every LoRA, picture and sample.
"""

from collections.abc import Sequence

import numpy as np
import torch

from . import stacked
from .attribution import Question

LoRA = dict[str, stacked.Factors]  # layer within the network → A (r, in), B (out, r)


@torch.no_grad()
def losses_under(question: Question, latents: torch.Tensor, loras: Sequence[LoRA], *, at_once: int = 16) -> np.ndarray:
    """Mean losses (pictures, LoRAs) of latents (p, c, h, w) under each LoRA; `at_once` LoRAs share a batch, and samples
    are split so that no batch is larger than the question says, or than one sample of each."""
    denoiser, objective, asked = question.denoiser, question.objective, question.asked
    device, count = denoiser.device, len(asked.u)
    names = sorted(set().union(*loras))
    rank = max((len(A) for lora in loras for A, _ in lora.values()), default=1)
    found = np.zeros((len(latents), len(loras)))
    for first in range(0, len(loras), at_once):
        group = loras[first : first + at_once]
        layers = stacked.stack(denoiser.module, names, len(group), rank, 1.0)
        try:
            for k, lora in enumerate(group):
                stacked.put(layers, k, lora)
            each = max(1, question.batch // len(group))
            for picture, z in enumerate(latents):
                for start in range(0, count, each):
                    part = slice(start, min(start + each, count))
                    t = objective.times(asked.u[part], denoiser.tokens((z.shape[1], z.shape[2]))).to(device)
                    epsilon = asked.epsilon[part].to(device)
                    x = z.to(device).expand(len(t), *z.shape)
                    noisy, value = objective.noisy(x, epsilon, t), objective.value(x, epsilon, t)
                    n = len(t)
                    guess = denoiser.predict(
                        noisy.repeat(len(group), 1, 1, 1), t.repeat(len(group)), question.text.first(n * len(group))
                    ).view(len(group), n, *z.shape)
                    error = (guess - value).square().mean(dim=(2, 3, 4)) * objective.weight(t)
                    found[picture, first : first + len(group)] += error.sum(1).double().cpu().numpy() / count
        finally:
            stacked.unstack(denoiser.module, layers)
    return found
