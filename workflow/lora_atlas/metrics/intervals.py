"""Intervals over artists. LoRAs of one artist are no independent witnesses of a descriptor: artists are resampled.

Means over LoRAs or queries have a percentile bootstrap. Scores of pairs of LoRAs (ARI and its kin, CKA, Mantel) have a
delete-one-artist jackknife with a t quantile (Efron & Stein 1981): a bootstrap draws an artist twice, the copies of a
LoRA always fall together, and every resampling is lifted above the score that it should surround.

With several seeds of a study the artists are the same and their LoRAs are not: seeds and artists are crossed factors,
and both are resampled, each on its own (the pigeonhole bootstrap, Owen 2007, Ann. Appl. Stat. 1:386), which errs on
the side of too much variance.
"""

import numpy as np

from ..seeds import derive_seed

Interval = tuple[float, float, float]  # value, low, high


def draws(artists: int, bootstrap: int, seed: int) -> np.ndarray:
    """How often each artist is in each resampling, (bootstrap, artists) float64.

    One seed gives one set of resamplings, so that differences of descriptors are differences of pairs.
    """
    rng = np.random.Generator(np.random.PCG64(derive_seed("intervals", "artists", seed)))
    return rng.multinomial(artists, np.full(artists, 1 / artists), size=bootstrap).astype(float)


def resampled(values: np.ndarray, artists: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of `values` (…, n) in every resampling, (…, bootstrap).

    `artists` (n,) are numbers, `weights` those of draws(). A resampling without any of the values is NaN.
    """
    artists = np.asarray(artists, int)
    member = np.zeros((len(artists), weights.shape[1]))
    member[np.arange(len(artists)), artists] = 1
    asked = weights @ member.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (values @ member) @ weights.T / asked


def percentiles(value: float, resamplings: np.ndarray, level: float) -> Interval:
    """A value with the percentile interval of its resamplings; those that are not finite are left out."""
    finite = resamplings[np.isfinite(resamplings)]
    if not len(finite):
        return float(value), np.nan, np.nan
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(value), float(low), float(high)


def mean(values: np.ndarray, artists: np.ndarray, weights: np.ndarray, level: float) -> Interval:
    """The mean of `values` (n,) and its bootstrap interval over artists."""
    return percentiles(float(np.mean(values)), resampled(np.asarray(values, float), artists, weights), level)


def jackknife(value: float, without: np.ndarray, level: float) -> Interval:
    """A value with the interval of its delete-one-artist values `without` (artists,)."""
    from scipy.stats import t

    n = len(without)
    width = t.ppf((1 + level) / 2, n - 1) * np.sqrt((n - 1) / n * np.square(without - np.mean(without)).sum())
    return float(value), float(value - width), float(value + width)


def crossed(values: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """Means (bootstrap,) of a table (seeds, artists) with both resampled; NaN cells are absent (Owen 2007, §4).

    `values` may have leading axes (…, seeds, artists), which are resampled alike: (…, bootstrap).
    """
    seeds, artists = values.shape[-2:]
    rng = np.random.Generator(np.random.PCG64(derive_seed("intervals", "crossed", seed)))
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=bootstrap).astype(float)
    columns = rng.multinomial(artists, np.full(artists, 1 / artists), size=bootstrap).astype(float)
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    sums = np.einsum("bs,...sa,ba->...b", rows, filled, columns, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / np.einsum("bs,...sa,ba->...b", rows, there.astype(float), columns, optimize=True)
