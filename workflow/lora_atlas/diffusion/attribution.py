"""One gradient: which LoRAs would make the frozen base better at given pictures, without training or generating any.

The loss L of a few pictures under the base changes, to first order, by ⟨∂L/∂W, ΔW⟩ when a LoRA ΔW is added. A LoRA
that was trained on such pictures went that way: −⟨ΔW, g⟩, g = ∂L/∂W, is large. No LoRA is trained for the query, and
one pass over the pictures serves any number of LoRAs.

With x what a layer reads and y what it writes, g = Σ (∂L/∂y)ᵀ x over tokens, and ⟨BA, g⟩ = Σ B ∘ (g Aᵀ). Where the
gradients of some pictures fit into the memory that is given, they are held, and every LoRA is read once for all of
them. Where not even one does, products are taken as each layer's gradient appears and the gradient is dropped: it is
never kept for two layers at once, and every LoRA is read once for every batch of every picture: of few LoRAs, or few
pictures, of a large base.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import progress
from ..loras.files import LoraFile
from ..seeds import derive_seed
from ..weights.gram import Group, of_module, reading, stacked, tiles
from . import room
from .denoisers import Conditioning, Denoiser
from .objectives import Objective
from .streams import stratified
from .tokens import error_of, tokens

MEMORY = 2**31  # bytes of gradients that are held at once

# A layer's updates of all LoRAs, some at a time: which of them, and theirs. One without the layer is left out.
LoRAs = Callable[[str], Iterator[tuple[Sequence[int], Group]]]
Consumer = Callable[[str, int, torch.Tensor], None]  # a layer, a picture, and a part of its gradient (out, in)


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
class Question:
    """How pictures are asked about: the frozen network and its objective, one prompt for all, the samples that each
    picture has, and how many noisy latents (of several pictures) go through the network at once."""

    denoiser: Denoiser
    objective: Objective
    text: Conditioning
    asked: Samples
    batch: int


@dataclass(frozen=True)
class Products:
    """`values` (modules, pictures, LoRAs): −⟨ΔW, g⟩, g of the mean loss over samples; `losses` (pictures,)."""

    modules: tuple[str, ...]
    values: np.ndarray
    losses: np.ndarray


class _Layer:
    """A target layer: hands on its part of the gradient of every picture of a batch."""

    def __init__(self, name: str, module: torch.nn.Module, consume: Consumer):
        self.name, self.module, self.consume = name, module, consume
        self.pictures: list[tuple[int, slice]] = []  # of the batch: a picture, and which of its samples are it

    def seen(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """A forward hook: keeps what the layer read, and asks for the gradient in what it wrote."""
        read = inputs[0].detach()  # in its own numbers, until it is asked for: of all layers these are held together

        def differentiated(gradient: torch.Tensor) -> None:
            x, g = tokens(module, read, entering=True), tokens(module, gradient.detach(), entering=False)
            for picture, part in self.pictures:
                self.consume(self.name, picture, g[part].flatten(0, 1).T @ x[part].flatten(0, 1))

        output.register_hook(differentiated)


def differentiate(
    question: Question, latents: torch.Tensor, names: Sequence[str], consume: Consumer, *, once: bool = False
) -> np.ndarray:
    """Hand on the gradient of each picture's mean loss in each layer, in parts; returns the losses (pictures,).

    `latents` (p, c, h, w) of the pictures, `names` of the layers (within the network); `once`: of the first batch
    alone.
    """
    denoiser, objective, asked = question.denoiser, question.objective, question.asked
    count, device = len(asked.u), denoiser.device
    layers = [_Layer(name, denoiser.module.get_submodule(name), consume) for name in names]
    losses = np.zeros(len(latents))
    hooks = [layer.module.register_forward_hook(layer.seen) for layer in layers]

    def asked_of(pictures: np.ndarray, which: np.ndarray) -> torch.Tensor:
        here = [(each, _places(pictures, each)) for each in np.unique(pictures).tolist()]
        for layer in layers:
            layer.pictures = here
        t = objective.times(asked.u[which], denoiser.tokens((latents.shape[2], latents.shape[3]))).to(device)
        epsilon, x = asked.epsilon[which].to(device), latents[pictures].to(device)
        error = error_of(denoiser, objective, x, epsilon, t, question.text.first(len(which)))
        loss = error.square().mean(dim=tuple(range(1, error.ndim))) * objective.weight(t) / count
        loss.sum().backward()
        return loss.detach()

    asking = progress.task(f"gradients of {len(latents)} pictures", len(latents) * count, unit="samples")
    try:
        with asking as advance:
            for pictures, which in _batches(len(latents), count, question.batch):
                loss = asked_of(pictures, which)
                np.add.at(losses, pictures, loss.double().cpu().numpy())
                advance(len(which))
                if once:
                    break
    finally:
        for hook in hooks:
            hook.remove()
    return losses


def fitting(question: Question, latents: torch.Tensor, names: Sequence[str]) -> Question:
    """The question in batches that the device has room for, found by trials whose gradients nobody has; asked once,
    however many parts the pictures then come in."""
    device, most = question.denoiser.device, len(latents) * len(question.asked.u)
    if not room.scarce(device) or not most:
        return question

    def trial(size: int) -> None:
        few = -(-size // len(question.asked.u))  # pictures whose samples are as many, or a few more
        asked = replace(question, batch=size)
        differentiate(asked, latents[:few], names, lambda name, picture, gradient: None, once=True)

    what = "samples of pictures through the base"
    return replace(question, batch=room.largest(trial, min(question.batch, most), what, device))


def gradients(
    question: Question, latents: torch.Tensor, names: Sequence[str]
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Layer → gradients (pictures, out, in) float32 of the pictures' mean losses, held; and the losses (pictures,)."""
    module, held = question.denoiser.module, {}
    for name in names:
        shape = (len(latents), *matrix(module.get_submodule(name)))
        held[name] = torch.zeros(shape, device=question.denoiser.device)

    def add(name: str, picture: int, gradient: torch.Tensor) -> None:
        held[name][picture] += gradient

    return held, differentiate(question, latents, names, add)


def products(
    question: Question,
    latents: torch.Tensor,
    names: Sequence[str],
    loras: LoRAs,
    count: int,
    *,
    memory: int = MEMORY,
    seen: Callable[[slice, Mapping[str, torch.Tensor]], None] | None = None,
) -> Products:
    """−⟨ΔW, g⟩ of pictures and `count` LoRAs, layer by layer.

    Gradients of as many pictures as fit into `memory` (bytes) are held at once, and shown to `seen` with the pictures
    that they are of; if not one fits, none is, and nothing is shown.
    """
    values = np.zeros((len(names), len(latents), count))
    place = {name: i for i, name in enumerate(names)}
    one = held_bytes(question.denoiser, names)
    question = fitting(question, latents, names)
    if one > memory:

        def take(name: str, picture: int, gradient: torch.Tensor) -> None:
            for members, group in loras(name):
                values[place[name]][picture, members] -= contracted(gradient[None], group)[0]

        return Products(tuple(names), values, differentiate(question, latents, names, take))
    losses = []
    for start in range(0, len(latents), memory // one):
        part = slice(start, min(start + memory // one, len(latents)))
        held, of_part = gradients(question, latents[part], names)
        losses.append(of_part)
        for name in names:
            for members, group in loras(name):
                values[place[name]][part, members] -= contracted(held[name], group)
        if seen is not None:
            seen(part, held)
    return Products(tuple(names), values, np.concatenate(losses) if losses else np.zeros(0))


def held_bytes(denoiser: Denoiser, names: Sequence[str]) -> int:
    """Bytes of one picture's gradients in these layers."""
    return 4 * sum(int(np.prod(matrix(denoiser.module.get_submodule(name)))) for name in names)


def contracted(gradient: torch.Tensor, group: Group) -> np.ndarray:
    """⟨ΔW, g⟩ (pictures, LoRAs) of gradients (pictures, out, in) and updates of one layer, of any kind."""
    stack = stacked(group)
    A = torch.from_numpy(np.ascontiguousarray(stack.A)).to(gradient.device)
    B = torch.from_numpy(np.concatenate(stack.B, 1)).to(gradient.device)
    by_row = ((gradient @ A.T) * B).sum(1).double().cpu().numpy()
    return np.add.reduceat(by_row, np.cumsum([0, *stack.ranks[:-1]]), axis=1)


def matrix(module: torch.nn.Module) -> tuple[int, int]:
    """Shape (out, in) of a layer's weight as a matrix: in = channels × height × width of a convolution."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return len(weight), weight[0].numel()


@contextmanager
def of_files(files: Sequence[LoraFile], prefix: str) -> Iterator[LoRAs]:
    """The updates of LoRA files, read as a layer is asked for; `prefix` of the network's layers in their names."""
    with reading(files) as read:

        def loras(name: str) -> Iterator[tuple[Sequence[int], Group]]:
            module = prefix + name
            read_module = of_module(read, module)
            for tile in tiles(files, module):
                yield tile, read_module(tile, "left")

        yield loras


def _places(pictures: np.ndarray, picture: int) -> slice:
    """Where the samples of a picture lie in a batch."""
    found = np.flatnonzero(pictures == picture)
    return slice(int(found[0]), int(found[-1]) + 1)


def _batches(pictures: int, count: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures and samples of each batch, the samples of a picture in a row."""
    picture, which = np.divmod(np.arange(pictures * count), count)
    for start in range(0, len(picture), batch):
        yield picture[start : start + batch], which[start : start + batch]
