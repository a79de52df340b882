"""Make: a LoRA of some pictures in one step, without training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..diffusion import base as bases
from ..diffusion import stacked
from ..diffusion.attribution import samples
from ..diffusion.classifier import LoRA
from ..diffusion.denoisers import Denoiser
from ..diffusion.one_step import step
from ..loras.factors import Update
from ..loras.files import write_lora
from ..sections import Attribution, Base
from .asking import asker
from .pictures import QueryError, read

HELD_OUT = 5  # every so many-th picture judges the step, where there are as many; else the same, under other noise


@dataclass(frozen=True)
class Made:
    """`pictures` behind the gradient and `judges` of the step; the judges' mean loss before and after; `scale` of the
    step (one_step.Step)."""

    pictures: int
    judges: int
    before: float
    after: float
    scale: float


def make(
    query: str | Path,
    base: Base,
    settings: Attribution,
    output: str | Path,
    *,
    rank: int,
    targets: Sequence[str],
    caption: str,
    resolution: int | None,
    device: str,
) -> Made:
    """Write the LoRA of rank `rank` that one step along the gradient of pictures gives, in the layers of `targets`.

    Raises QueryError where no picture can be read, and where no step makes the base better at these pictures;
    BaseModelError for the base.
    """
    ask = asker(base, settings, caption=caption, resolution=resolution, device=device)
    pixels = [each.pixels for found in read(query, ask.resolution) for each in found.usable if each.pixels is not None]
    if not pixels:
        raise QueryError(f"query: none of the pictures in {query} can be read; `snakemake attribute` says why")
    judges = pixels[HELD_OUT - 1 :: HELD_OUT]
    own = [each for i, each in enumerate(pixels) if (i + 1) % HELD_OUT] if judges else pixels
    denoiser = ask.denoiser
    names = denoiser.layers(targets)
    other = samples(settings.samples, denoiser.latent_shape(ask.resolution), 1)
    found = step(
        ask.question, ask.latents(own), names, rank=rank, moments=None,
        held_out=ask.latents(judges) if judges else None, judged=replace(ask.question, asked=other),
    )  # fmt: skip
    if not found.scale:
        raise QueryError(
            f"query: no step along the gradient of these {len(pixels)} pictures makes {base.model} better at "
            f"{'those held out' if judges else 'them under other noise'}; give more pictures or more "
            "attribution.samples, or train a LoRA"
        )
    metadata = {
        "lora_atlas.version": __version__,
        "lora_atlas.base": bases.identity(base),
        "lora_atlas.made": "one step",
        **denoiser.header,
    }
    write_lora(output, updates_of(found.factors, denoiser), metadata)
    return Made(len(own), len(judges) or len(own), found.base, found.after, found.scale)


def updates_of(factors: LoRA, denoiser: Denoiser) -> dict[str, Update]:
    """Module → update, as files hold them: kernels of convolutions in their shape."""
    found = {}
    for name, (A, B) in factors.items():
        A, B = stacked.as_stored(denoiser.module.get_submodule(name), A, B)
        found[denoiser.prefix + name] = Update(denoiser.prefix + name, A.numpy(), B.numpy())
    return found


def told(made: Made, output: str | Path) -> str:
    """What was made, in a sentence."""
    return (
        f"{output}: one step along the gradient of {made.pictures} pictures; the mean loss of {made.judges} pictures "
        f"under noise that gave no gradient went from {made.before:.5f} to {made.after:.5f}"
    )
