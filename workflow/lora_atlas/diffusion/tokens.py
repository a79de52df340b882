"""What a layer reads and writes, as rows: the form in which its gradient is a product of two matrices."""

import torch


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
