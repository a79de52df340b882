"""Many LoRAs in one model: stacked adapters beside frozen linear layers.

A batch holds K adapters × b samples, adapter-major. Every targeted ``Linear`` gets A (K, r, in) and B (K, out, r);
one frozen product serves all K, two batched products of rank r serve each its own:

    y_k = W x_k + (α / r) B_k A_k x_k          (Hu et al. 2021, eq. 3)

The base's weights are read once for K adapters instead of K times, and K small kernels become one. Nothing mixes
rows of different adapters, and no targeted network normalises over the batch, so each adapter's output and gradient
are those of a model of its own, to the rounding of a product of another shape.
"""

import re
from collections.abc import Mapping, Sequence

import torch

TARGETS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
    "projection": r"\.proj_(in|out)$",
}

Factors = tuple[torch.Tensor, torch.Tensor]


class StackedLinear(torch.nn.Module):
    """A frozen linear layer with K adapters; input (K·b, …, in) adapter-major, output (K·b, …, out)."""

    def __init__(self, linear: torch.nn.Linear, adapters: int, rank: int, scale: float):
        super().__init__()
        self.linear = linear
        self.scale = scale
        device = linear.weight.device
        self.A = torch.nn.Parameter(torch.zeros(adapters, rank, linear.in_features, device=device))
        self.B = torch.nn.Parameter(torch.zeros(adapters, linear.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(len(self.A), -1, x.shape[-1])
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        low = torch.bmm(rows, A.transpose(1, 2))
        y = self.linear(rows)
        return torch.baddbmm(y, low, B.transpose(1, 2), alpha=self.scale).view(*x.shape[:-1], -1)


def targeted(model: torch.nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that the targets mean, sorted.

    Raises ValueError for an unknown target, and where a target matches nothing.
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown:
        raise ValueError(f"training.targets: {unknown} unknown; there are {sorted(TARGETS)}")
    found = set()
    for target in targets:
        pattern = re.compile(TARGETS[target])
        names = [n for n, m in model.named_modules() if pattern.search(n) and isinstance(m, torch.nn.Linear)]
        if not names:
            raise ValueError(f"training.targets: {target!r} matches no linear layer of {type(model).__name__}")
        found |= set(names)
    return sorted(found)


def stack(
    model: torch.nn.Module, names: Sequence[str], adapters: int, rank: int, scale: float
) -> dict[str, StackedLinear]:
    """Replace the named linear layers of `model` in place; returns name → stacked layer.

    Raises ValueError that lists all names which are no linear layers of the model.
    """
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    absent = sorted(set(names) - linear)
    if absent:
        raise ValueError(f"{type(model).__name__} has no linear layers {absent}")
    return {name: _replace(model, name, adapters, rank, scale) for name in sorted(names)}


def _replace(model: torch.nn.Module, name: str, adapters: int, rank: int, scale: float) -> StackedLinear:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    layer = StackedLinear(holder.get_submodule(leaf), adapters, rank, scale)
    setattr(holder, leaf, layer)
    return layer


def unstack(model: torch.nn.Module, layers: Mapping[str, StackedLinear]) -> None:
    """Put the frozen layers back."""
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.linear)


@torch.no_grad()
def initialise(layers: Mapping[str, StackedLinear], seeds: Sequence[Mapping[str, int]]) -> None:
    """A_k uniform in ±1/√in (as PEFT does) from ``seeds[k][module]``, B_k zero."""
    generator = torch.Generator()
    for name, layer in layers.items():
        bound = layer.linear.in_features**-0.5
        for k, seed in enumerate(seeds):
            generator.manual_seed(seed[name])
            layer.A[k].copy_(torch.rand(layer.A[k].shape, generator=generator) * 2 * bound - bound)
        layer.B.zero_()


@torch.no_grad()
def put(layers: Mapping[str, StackedLinear], k: int, factors: Mapping[str, Factors]) -> None:
    """Load one LoRA as adapter k; a smaller rank is padded with zeros, an absent module is left as it is.

    Raises ValueError that names every module which the model lacks or whose shape differs.
    """
    wrong = [
        name
        for name, (A, B) in factors.items()
        if name not in layers or A.shape[1] != layers[name].A.shape[2] or B.shape[0] != layers[name].B.shape[1]
    ]
    if wrong:
        raise ValueError(f"adapter {k}: no such modules in the model, or of another shape: {wrong}")
    for name, (A, B) in factors.items():
        layers[name].A[k].zero_()[: A.shape[0]] = A
        layers[name].B[k].zero_()[:, : B.shape[1]] = B


def factors(layers: Mapping[str, StackedLinear], k: int) -> dict[str, Factors]:
    """Adapter k as module → (A (r, in), B (out, r)), float32 on the CPU, the scale folded into B."""
    return {
        name: (layer.A[k].detach().float().cpu(), (layer.B[k] * layer.scale).detach().float().cpu())
        for name, layer in layers.items()
    }


def parameters(layers: Mapping[str, StackedLinear]) -> list[torch.nn.Parameter]:
    return [p for layer in layers.values() for p in (layer.A, layer.B)]


@torch.no_grad()
def clip_gradients(params: Sequence[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scale each adapter's gradient to norm ≤ `limit`; returns the norms before (K,)."""
    norms = torch.stack([p.grad.flatten(1).square().sum(1) for p in params]).sum(0).sqrt()
    factor = (limit / norms.clamp(min=1e-12)).clamp(max=1.0)
    for p in params:
        p.grad.mul_(factor.view(-1, *[1] * (p.grad.ndim - 1)))
    return norms
