"""One gradient: which LoRAs would make the frozen base better at given pictures, without training or generating any.

The loss L of a few pictures under the base changes, to first order, by ⟨∂L/∂W, ΔW⟩ when a LoRA ΔW is added. A LoRA
that was trained on such pictures went that way: −⟨ΔW, g⟩, g = ∂L/∂W, is large. No LoRA is trained for the query, and
one pass over the pictures serves any number of LoRAs.

With x what a layer reads and y what it writes, g = Σ (∂L/∂y)ᵀ x over tokens, and ⟨BA, g⟩ = Σ B ∘ (g Aᵀ). Products are
taken as each layer's gradient appears and the gradient is dropped: it is never kept for two layers at once, and of a
LoRA only the layer at hand is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..seeds import derive_seed
from ..weights.stack import Stack
from .denoisers import Conditioning, Denoiser
from .objectives import Objective
from .streams import stratified
from .tokens import error_of, tokens

LoRAs = Callable[[str], Stack]  # a module's updates of all LoRAs, in one order; those of a LoRA without it are zero


@dataclass(frozen=True)
class Samples:
    """The noisy samples that every picture is asked about with: noise (n, c, h, w) and u (n,), stratified in [0, 1)."""

    epsilon: torch.Tensor
    u: torch.Tensor


def samples(count: int, shape: Sequence[int], seed: int) -> Samples:
    """Seeded samples of latents of `shape` (c, h, w): the same for all pictures, which then differ by themselves."""
    generator = torch.Generator().manual_seed(derive_seed("attribution", seed))
    u = stratified(count, generator)
    return Samples(torch.randn(count, *shape, generator=generator), u)


@dataclass(frozen=True)
class Products:
    """`values` (modules, pictures, LoRAs): −⟨ΔW, g⟩, g of the mean loss over samples; `losses` (pictures,)."""

    modules: tuple[str, ...]
    values: np.ndarray
    losses: np.ndarray


class _Layer:
    """A target layer: its part of −⟨ΔW, g⟩, added up for every picture of a batch."""

    def __init__(self, name: str, module: torch.nn.Module, loras: LoRAs, values: np.ndarray):
        self.name, self.module, self.loras, self.values = name, module, loras, values
        self.pictures: list[tuple[int, slice]] = []  # of the batch: a picture, and which of its samples are it

    def seen(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook: keeps what the layer read, and asks for the gradient in what it wrote."""
        x = tokens(module, inputs[0].detach(), entering=True)

        def differentiated(gradient: torch.Tensor) -> None:
            self._add(x, tokens(module, gradient.detach(), entering=False))

        output.register_hook(differentiated)

    def _add(self, x: torch.Tensor, g: torch.Tensor) -> None:
        stack = self.loras(self.name)
        A = torch.from_numpy(stack.A).to(x.device)
        B = torch.from_numpy(np.concatenate(stack.B, 1)).to(x.device)
        starts = np.cumsum([0, *stack.ranks[:-1]])
        for picture, part in self.pictures:
            gradient = g[part].flatten(0, 1).T @ x[part].flatten(0, 1)  # (out, in)
            by_row = (B * (gradient @ A.T)).sum(0).double().cpu().numpy()
            self.values[picture] -= np.add.reduceat(by_row, starts)


def products(
    denoiser: Denoiser,
    objective: Objective,
    latents: torch.Tensor,
    text: Conditioning,
    loras: LoRAs,
    names: Sequence[str],
    *,
    asked: Samples,
    batch: int,
) -> Products:
    """What the gradients of pictures say of LoRAs, layer by layer.

    `latents` (p, c, h, w) of the pictures, `text` of one prompt for all, `names` of the layers (within the network),
    `loras`: a layer's name → updates; `asked`: the samples that each picture has; `batch`: noisy latents at once, of
    several pictures. Every LoRA has an update in every layer, if one of zeros.
    """
    count = len(asked.u)
    device = denoiser.device
    N = len(loras(names[0]))
    values = np.zeros((len(names), len(latents), N))
    layers = [
        _Layer(name, denoiser.module.get_submodule(name), loras, own) for name, own in zip(names, values, strict=True)
    ]
    losses = np.zeros(len(latents))
    hooks = [layer.module.register_forward_hook(layer.seen) for layer in layers]
    try:
        for pictures, which in _batches(len(latents), count, batch):
            here = [(each, _places(pictures, each)) for each in np.unique(pictures).tolist()]
            for layer in layers:
                layer.pictures = here
            t = objective.times(asked.u[which]).to(device)
            epsilon, x = asked.epsilon[which].to(device), latents[pictures].to(device)
            error = error_of(denoiser, objective, x, epsilon, t, text.first(len(which)))
            loss = error.square().mean(dim=tuple(range(1, error.ndim))) * objective.weight(t) / count
            loss.sum().backward()
            np.add.at(losses, pictures, loss.detach().double().cpu().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return Products(tuple(names), values, losses)


def _places(pictures: np.ndarray, picture: int) -> slice:
    """Where the samples of a picture lie in a batch."""
    found = np.flatnonzero(pictures == picture)
    return slice(int(found[0]), int(found[-1]) + 1)


def _batches(pictures: int, count: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures and samples of each batch, the samples of a picture in a row."""
    picture, which = np.divmod(np.arange(pictures * count), count)
    for start in range(0, len(picture), batch):
        yield picture[start : start + batch], which[start : start + batch]
