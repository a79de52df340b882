"""A frozen network asked about its layers: the error that is differentiated, and what a layer reads and writes as rows,
of which the gradient in its weights is a product."""

import torch

from .denoisers import Conditioning, Denoiser
from .objectives import Objective


def tokens(module: torch.nn.Module, x: torch.Tensor, *, entering: bool) -> torch.Tensor:
    """What a layer reads or writes, a row each token (n, T, d) float32; a convolution's inputs are its patches.

    With x its inputs and g the gradient in its outputs, the gradient in its weights (out, in) is Σ gᵀx over samples.
    """
    if not isinstance(module, torch.nn.Conv2d):
        return x.reshape(len(x), -1, x.shape[-1]).float()
    if not entering:
        return x.flatten(2).movedim(1, -1).float()
    if isinstance(module.padding, str):
        raise TypeError(f"a convolution padded by {module.padding!r}; only numbers are known here")
    patches = torch.nn.functional.unfold(
        x.float(), module.kernel_size, module.dilation, module.padding, module.stride
    )  # fmt: skip
    return patches.movedim(1, -1)


def error_of(
    denoiser: Denoiser,
    objective: Objective,
    x: torch.Tensor,
    epsilon: torch.Tensor,
    t: torch.Tensor,
    text: Conditioning,
) -> torch.Tensor:
    """The frozen network's error (n, c, h, w), whose gradients reach the outputs of all its layers.

    Parameters are frozen: gradients flow back to what the network is given, and pass all layers on the way.
    """
    for tensor in text.tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    noisy = objective.noisy(x, epsilon, t).requires_grad_()
    return denoiser.predict(noisy, t, text) - objective.value(x, epsilon, t)
