"""A few coefficients of a transform at places that a seed draws: FourierFT, Gao et al. 2024, arXiv 2405.03003, and
WaveFT, Bilican et al. 2025, arXiv 2505.12532. PEFT saves the coefficients; the places follow from the seed of its
configuration and from the layer's shape, which stands in the base alone.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..factors import Factored, Update, of_dense
from .kind import Kind, Parts, names, number, unfit, whole

if TYPE_CHECKING:
    from ..formats import Spec


def _places(spec: "Spec", count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, drawn as PEFT draws them."""
    import torch

    out, width = spec.layer
    if count > out * width:
        raise ValueError(f"{spec.module} is {out} × {width} in the base, smaller than its {count} coefficients")
    seed = torch.Generator().manual_seed(int(number(spec.settings, "random_loc_seed", 777)))
    drawn = torch.randperm(out * width, generator=seed)[:count].numpy()
    return drawn // width, drawn % width


def _fourier(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    spectrum = np.zeros(spec.layer)
    spectrum[_places(spec, p["fourierft_spectrum"].size)] = p["fourierft_spectrum"]
    return of_dense(
        spec.module, (np.fft.ifft2(spectrum).real * number(spec.settings, "scaling", 150)).astype(np.float32)
    )


def _wave(spec: "Spec", update: Factored | None, p: Parts, base: np.ndarray) -> Update:
    """Quadrants of the padded coefficients are the four bands of one step of a wavelet transform."""
    rows, columns = _places(spec, p["waveft_spectrum"].size)
    scaling = number(spec.settings, "scaling", 25)
    out, width = spec.layer
    values = p["waveft_spectrum"].astype(np.float64)
    if spec.settings.get("use_idwt") is False:
        W = np.zeros((out, width))
        W[rows, columns] = values
        return of_dense(spec.module, (W * scaling).astype(np.float32))
    import torch
    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
    from peft.tuners.waveft.waverec2d import waverec2d

    family = spec.settings.get("wavelet_family") or "db1"
    if family not in WAVELET_REDUCTIONS:
        raise ValueError(f"wavelet_family of its configuration is none that PEFT knows: {family!r:.40}")
    taller, wider = (size + more for size, more in zip(spec.layer, WAVELET_REDUCTIONS[family], strict=True))
    taller, wider = taller + taller % 2, wider + wider % 2
    padded = torch.zeros(taller, wider, dtype=torch.float64)
    padded[rows + (taller - out) // 2, columns + (wider - width) // 2] = torch.from_numpy(values)
    h, w = taller // 2, wider // 2
    W = waverec2d((padded[:h, :w], (padded[:h, w:], padded[h:, :w], padded[h:, w:])), family).numpy()
    top, left = (W.shape[0] - out) // 2, (W.shape[1] - width) // 2
    W = W[top : top + out, left : left + width] * scaling
    return of_dense(spec.module, np.ascontiguousarray(W, np.float32))


def _kind(name: str, part: str, relative, settings: tuple[str, ...]) -> Kind:
    return Kind(
        name=name,
        spellings={part: rf"{part}(\.[\w-]+)?"},
        is_of=lambda parts: part in parts,
        incomplete=lambda keys: whole(name, set(), names(keys) - {part}, keys),
        mismatch=lambda s: None if len(s[part]) == 1 else unfit(s),
        shape=lambda s: (1, 1),
        rank=lambda s: 1,
        update=None,
        scaled=lambda parts, scale: False,
        relative=relative,
        sized=True,
        why="has coefficients at places that are drawn for the layer's shape, which stands in the base alone",
        settings=settings,
    )


FOURIERFT = _kind("FourierFT", "fourierft_spectrum", _fourier, ("random_loc_seed", "scaling"))
WAVEFT = _kind("WaveFT", "waveft_spectrum", _wave, ("random_loc_seed", "scaling", "use_idwt", "wavelet_family"))
