"""Many LoRAs in one model: stacked adapters beside frozen linear layers and convolutions.

A batch holds K adapters × b samples, adapter-major. Every targeted layer gets A (K, r, in) and B (K, out, r); one
frozen product serves all K, two batched products of rank r serve each its own:

    y_k = W x_k + (α / r) B_k A_k x_k          (Hu et al. 2021, eq. 3)

A convolution's A_k is r kernels, kept as a matrix with in = channels × height × width; its B_k is a 1 × 1 convolution.

The base's weights are read once for K adapters instead of K times, and K small kernels become one. Nothing mixes
rows of different adapters, and no targeted network normalises over the batch, so each adapter's output and gradient
are those of a model of its own, to the rounding of a product of another shape.

`select` lets a batch hold some of the adapters only: those whose pictures have one shape, those that fit into memory,
those that are still alive. `flatten` lays all factors of an adapter into one row of one matrix, so that its optimizer,
its gradient's norm and its saved state are a row each.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

KINDS = (torch.nn.Linear, torch.nn.Conv2d)

Factors = tuple[torch.Tensor, torch.Tensor]


class Stacked(torch.nn.Module):
    """A frozen layer with K adapters: `frozen`, A (K, r, in), B (K, out, r), and the adapters of the next batch."""

    frozen: torch.nn.Linear | torch.nn.Conv2d

    def __init__(
        self, frozen: torch.nn.Linear | torch.nn.Conv2d, adapters: int, rank: int, scale: float, width: int, out: int
    ):
        super().__init__()
        self.frozen = frozen
        self.scale = scale
        self.active: torch.Tensor | None = None  # indices into K; None: all
        device = frozen.weight.device
        self.A = torch.nn.Parameter(torch.zeros(adapters, rank, width, device=device))
        self.B = torch.nn.Parameter(torch.zeros(adapters, out, rank, device=device))

    def present(self, dtype: torch.dtype) -> Factors:
        """A and B of the adapters of this batch."""
        A, B = (self.A, self.B) if self.active is None else (self.A[self.active], self.B[self.active])
        return A.to(dtype), B.to(dtype)


class StackedLinear(Stacked):
    """A frozen linear layer with K adapters; input (K·b, …, in) adapter-major, output (K·b, …, out)."""

    def __init__(self, frozen: torch.nn.Linear, adapters: int, rank: int, scale: float):
        super().__init__(frozen, adapters, rank, scale, frozen.in_features, frozen.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A, B = self.present(x.dtype)
        rows = x.reshape(len(A), -1, x.shape[-1])
        y = _Adapted.apply(rows, A, B, self.frozen.weight, self.frozen.bias, self.scale)
        return y.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """W x + s B A x of every adapter, and its gradients but those of W, which is frozen.

    What autograd makes of the same sum writes three tensors of the size of x or y more, two of them in the backward
    pass: the products of rank r are added where the frozen layer's are. On a CPU that is 7 to 9 % of a step.
    """

    @staticmethod
    def forward(ctx, x, A, B, weight, bias, scale):
        y = torch.nn.functional.linear(x, weight, bias)
        x, A, B, weight = (each.to(y.dtype) for each in (x, A, B, weight))  # within autocast they differ
        low = torch.bmm(x, A.transpose(1, 2))
        ctx.save_for_backward(x, low, A, B, weight)
        ctx.scale = scale
        return y.baddbmm_(low, B.transpose(1, 2), alpha=scale)

    @staticmethod
    def backward(ctx, dy):
        x, low, A, B, weight = ctx.saved_tensors
        d_low = torch.bmm(dy, B) * ctx.scale
        dx = (dy @ weight).baddbmm_(d_low, A) if ctx.needs_input_grad[0] else None
        return dx, torch.bmm(d_low.transpose(1, 2), x), torch.bmm(dy.transpose(1, 2), low * ctx.scale), None, None, None


class StackedConv(Stacked):
    """A frozen convolution with K adapters; input (K·b, in, h, w) adapter-major, output (K·b, out, h', w')."""

    frozen: torch.nn.Conv2d

    def __init__(self, frozen: torch.nn.Conv2d, adapters: int, rank: int, scale: float):
        if frozen.groups != 1 or frozen.padding_mode != "zeros":
            raise ValueError("only plain convolutions can have adapters: one group, padded with zeros")
        width = frozen.in_channels * frozen.kernel_size[0] * frozen.kernel_size[1]
        super().__init__(frozen, adapters, rank, scale, width, frozen.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A, B = self.present(x.dtype)
        K, r, c = len(A), A.shape[1], self.frozen
        b = len(x) // K
        # Each adapter's kernels see its own samples: one convolution with a group per adapter.
        grouped = x.view(K, b, *x.shape[1:]).transpose(0, 1).reshape(b, K * x.shape[1], *x.shape[2:])
        kernels = A.reshape(K * r, c.in_channels, *c.kernel_size)
        low = torch.nn.functional.conv2d(grouped, kernels, None, c.stride, c.padding, c.dilation, K)
        h, w = low.shape[2:]
        low = low.reshape(b, K, r, h * w).permute(1, 2, 0, 3).reshape(K, r, b * h * w)
        up = torch.bmm(B, low).view(K, -1, b, h, w).transpose(1, 2).reshape(K * b, -1, h, w)
        return torch.add(c(x), up, alpha=self.scale)


def targeted(model: torch.nn.Module, targets: Sequence[str], patterns: Mapping[str, str]) -> list[str]:
    """Names of the layers that the targets mean, sorted; `patterns`: target → pattern of layers' names.

    Raises ValueError for an unknown target, and where a target matches nothing.
    """
    unknown = sorted(set(targets) - set(patterns))
    if unknown:
        raise ValueError(f"training.targets: {unknown} unknown; of {type(model).__name__} there are {sorted(patterns)}")
    found = set()
    for target in targets:
        pattern = re.compile(patterns[target])
        names = [n for n, m in model.named_modules() if pattern.search(n) and isinstance(m, KINDS)]
        if not names:
            raise ValueError(f"training.targets: {target!r} matches no layer of {type(model).__name__}")
        found |= set(names)
    return sorted(found)


def stack(model: torch.nn.Module, names: Sequence[str], adapters: int, rank: int, scale: float) -> dict[str, Stacked]:
    """Replace the named layers of `model` in place; returns name → stacked layer.

    Raises ValueError that lists all names which are no linear layers or convolutions of the model.
    """
    known = {name for name, module in model.named_modules() if isinstance(module, KINDS)}
    absent = sorted(set(names) - known)
    if absent:
        raise ValueError(f"{type(model).__name__} has no linear layers or convolutions {absent}")
    return {name: _replace(model, name, adapters, rank, scale) for name in sorted(names)}


def _replace(model: torch.nn.Module, name: str, adapters: int, rank: int, scale: float) -> Stacked:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    frozen = holder.get_submodule(leaf)
    layer: Stacked
    if isinstance(frozen, torch.nn.Linear):
        layer = StackedLinear(frozen, adapters, rank, scale)
    elif isinstance(frozen, torch.nn.Conv2d):
        layer = StackedConv(frozen, adapters, rank, scale)
    else:
        raise TypeError(f"{name} is a {type(frozen).__name__}; only linear layers and convolutions have adapters")
    setattr(holder, leaf, layer)
    return layer


def unstack(model: torch.nn.Module, layers: Mapping[str, Stacked]) -> None:
    """Put the frozen layers back."""
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.frozen)


def select(layers: Mapping[str, Stacked], adapters: torch.Tensor | None) -> None:
    """The adapters (indices) whose samples the next batch holds, in this order; None: all."""
    for layer in layers.values():
        layer.active = adapters


@torch.no_grad()
def initialise(layers: Mapping[str, Stacked], seeds: Sequence[Mapping[str, int]]) -> None:
    """A_k uniform in ±1/√in (as PEFT does) from ``seeds[k][module]``, B_k zero."""
    generator = torch.Generator()
    for name, layer in layers.items():
        bound = layer.A.shape[2] ** -0.5
        for k, seed in enumerate(seeds):
            generator.manual_seed(seed[name])
            layer.A[k].copy_(torch.rand(layer.A[k].shape, generator=generator) * 2 * bound - bound)
        layer.B.zero_()


@torch.no_grad()
def put(layers: Mapping[str, Stacked], k: int, factors: Mapping[str, Factors]) -> None:
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


def factors(layers: Mapping[str, Stacked], k: int) -> dict[str, Factors]:
    """Adapter k as module → (A (r, in), B (out, r)), float32 on the CPU, the scale folded into B."""
    return {
        name: (layer.A[k].detach().float().cpu(), (layer.B[k] * layer.scale).detach().float().cpu())
        for name, layer in layers.items()
    }


def as_stored(frozen: torch.nn.Module, A: torch.Tensor, B: torch.Tensor) -> Factors:
    """Factors of a frozen layer as files hold them: kernels (r, in, h, w) and (out, r, 1, 1) of a convolution."""
    if not isinstance(frozen, torch.nn.Conv2d):
        return A, B
    return A.view(len(A), frozen.in_channels, *frozen.kernel_size), B[:, :, None, None]


def parameters(layers: Mapping[str, Stacked]) -> list[torch.nn.Parameter]:
    return [p for layer in layers.values() for p in (layer.A, layer.B)]


@dataclass(frozen=True)
class Flat:
    """All factors of K adapters, one row each; the layers' A and B are views of these rows."""

    rows: list[torch.nn.Parameter]  # K × (P,), each with its gradient, a row of `gradients`
    values: torch.Tensor  # (K, P)
    gradients: torch.Tensor  # (K, P), as of the last `gather`
    layers: torch.Tensor  # (K · P,) where backward passes add up, layer by layer
    widths: list[int]  # of each layer's A and B, for one adapter

    def clear(self) -> None:
        self.layers.zero_()

    def gather(self) -> None:
        """Sort the gradients by adapter: autograd wants a layer's in one piece, optimizer and norms an adapter's."""
        K = len(self.values)
        parts = self.layers.split([K * width for width in self.widths])
        torch.cat([part.view(K, -1) for part in parts], 1, out=self.gradients)


@torch.no_grad()
def flatten(layers: Mapping[str, Stacked]) -> Flat:
    """Lay the factors of `layers` out again, in place, with gradients of zero."""
    params = parameters(layers)
    K, device = len(params[0]), params[0].device
    widths = [p[0].numel() for p in params]
    values = torch.empty(K, sum(widths), device=device)
    gradients, parts = torch.zeros_like(values), torch.zeros(values.numel(), device=device)
    slots = zip(params, values.split(widths, 1), parts.split([K * width for width in widths]), strict=True)
    for p, value, gradient in slots:
        value.copy_(p.flatten(1))
        p.data = value.view(p.shape)
        p.grad = gradient.view(p.shape)
    rows = [torch.nn.Parameter(row) for row in values]
    for row, gradient in zip(rows, gradients, strict=True):
        row.grad = gradient
    return Flat(rows, values, gradients, parts, widths)


@torch.no_grad()
def clip_gradients(gradients: torch.Tensor, limit: float) -> torch.Tensor:
    """Scale each adapter's gradient, a row of (K, P), to norm ≤ `limit` in place; returns the norms before (K,)."""
    norms = gradients.square().sum(1).sqrt()
    gradients.mul_((limit / norms.clamp(min=1e-12)).clamp(max=1.0).unsqueeze(1))
    return norms
