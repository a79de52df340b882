"""Controls: what a picture is without any style. A descriptor that is worth its name beats them.

Colours are measured in Oklab (Ottosson 2020), where Euclidean distance means what it looks like.
"""

from collections.abc import Callable

import numpy as np


def oklab(rgb: np.ndarray) -> np.ndarray:
    """uint8 sRGB (…, 3) → Oklab (…, 3) float64: lightness 0…1, green-red, blue-yellow (Ottosson 2020).

    Perceptual, so that Euclidean distance between colours means what it looks like: neither dark nor saturated
    pictures dominate, as they would in linear light.
    """
    encoded = rgb.astype(np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _mean_colour(pixels: np.ndarray) -> np.ndarray:
    """Oklab pixels (n, 3) → their mean (3,)."""
    return pixels.mean(0)


def _colour_moments(pixels: np.ndarray) -> np.ndarray:
    """Oklab pixels (n, 3) → mean, deviation and signed root of skewness (9,) (Stricker & Orengo 1995)."""
    centred = pixels - pixels.mean(0)
    return np.concatenate([pixels.mean(0), pixels.std(0), np.cbrt((centred**3).mean(0))])


CONTROLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean_colour": _mean_colour,
    "colour_moments": _colour_moments,
}
