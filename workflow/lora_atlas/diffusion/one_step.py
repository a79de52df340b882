"""A LoRA in one step: the best update of rank r along one gradient of the base, and how far to go.

In the base's K-FAC metric (Martens & Grosse 2015, arXiv 1503.05671) an update ΔW of a layer costs ‖G^½ ΔW Σ^½‖², with Σ
and G the damped second moments of what the layer reads and of the gradients in what it writes. Of all updates of rank r
the one that lowers ⟨g, ΔW⟩ most for its cost is

    ΔW = −G^−½ [ G^−½ g Σ^−½ ]ᵣ Σ^−½,

[·]ᵣ the truncated singular value decomposition (Eckart & Young 1936); without a metric it is that of −g itself. One
scale for all layers is found by a line search over losses (of pictures that gave no gradient, where there are any). The
result is an ordinary LoRA. LoRA-GA (Wang et al. 2024, arXiv 2407.05000) starts training from singular vectors of the
first gradient in a like way.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .attribution import Question, fitting, gradients
from .classifier import LoRA, losses_under

SCALES = tuple(2.0 ** (k / 2) for k in range(-16, 1))  # of the step whose first order says that the loss is halved
DAMPING = 0.1  # of the mean eigenvalue, added to both moments

Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # layer → Σ (in, in), G (out, out)


@dataclass(frozen=True)
class Step:
    """`factors`: layer → A (r, in), B (out, r); `base` and `after`: the loss that the line search looked at, without
    and with them; `scale`: of the step, relative to the one that would halve the loss were it linear."""

    factors: LoRA
    base: float
    after: float
    scale: float


def mean_gradient(question: Question, latents: torch.Tensor, names: list[str]) -> tuple[dict[str, torch.Tensor], float]:
    """Layer → gradient (out, in) of the mean loss of pictures, one picture after the other; and the loss."""
    total: dict[str, torch.Tensor] = {}
    loss = 0.0
    question = fitting(question, latents[:1], names)
    for z in latents:
        held, own = gradients(question, z[None], names)
        loss += float(own[0]) / len(latents)
        for name, g in held.items():
            total[name] = total[name].add_(g[0]) if name in total else g[0]
    return {name: g / len(latents) for name, g in total.items()}, loss


def direction(
    gradient: Mapping[str, torch.Tensor], rank: int, moments: Moments | None, damping: float = DAMPING
) -> tuple[LoRA, float]:
    """The update of rank `rank` along −g, layer by layer, and ⟨g, ΔW⟩ (negative); float32 on the CPU."""
    found: LoRA = {}
    slope = 0.0
    for name, g in gradient.items():
        left = right = None
        M = g.double()
        if moments is not None and name in moments:
            right, left = (inverse_power(X.to(g.device), 0.5, damping) for X in moments[name])
            M = left @ M @ right
        U, S, Vt = torch.linalg.svd(M, full_matrices=False)
        r = min(rank, len(S))
        B, A = -U[:, :r] * S[:r].sqrt(), S[:r].sqrt()[:, None] * Vt[:r]
        if left is not None and right is not None:
            B, A = left @ B, A @ right
        slope += float((B * (g.double() @ A.T)).sum())
        found[name] = (A.float().cpu(), B.float().cpu())
    return found, slope


def step(
    question: Question,
    latents: torch.Tensor,
    names: list[str],
    *,
    rank: int,
    moments: Moments | None,
    held_out: torch.Tensor | None = None,
    judged: Question | None = None,
) -> Step:
    """One step for pictures (latents (p, c, h, w)), as far as lowers most the mean loss of `held_out` ones (None: of
    the same) by the question `judged` (None: the same): other noise, so that no luck with the noise is followed."""
    gradient, loss = mean_gradient(question, latents, names)
    factors, slope = direction(gradient, rank, moments)
    unit = 0.5 * loss / max(-slope, 1e-30)
    scales = np.array([0.0, *SCALES]) * unit
    tried = [{name: (A, B * float(scale)) for name, (A, B) in factors.items()} for scale in scales]
    found = losses_under(judged or question, latents if held_out is None else held_out, tried).mean(0)
    best = int(np.argmin(np.where(np.isfinite(found), found, np.inf)))  # a step too far is no number
    return Step(tried[best], float(found[0]), float(found[best]), float(scales[best] / unit))


def inverse_power(X: torch.Tensor, power: float, damping: float) -> torch.Tensor:
    """(X + λI)^−power float64, λ = `damping` × the mean eigenvalue."""
    values, U = torch.linalg.eigh(X.double())
    values = values.clamp(min=0)
    return (U * (values + damping * values.mean().clamp(min=1e-30)) ** -power) @ U.T
