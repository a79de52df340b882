"""Intervals over artists. LoRAs of one artist are no independent witnesses of a descriptor: artists are.

A score of one study has a delete-one-artist jackknife with a t quantile (Efron & Stein 1981): of a mean over artists it
is the t interval, and it serves scores of pairs of LoRAs (ARI and its kin, CKA) too, where a bootstrap draws an artist
twice, copies of a LoRA fall together, and every resampling is lifted above the score that it should surround.

With several seeds of a study the artists are the same and their LoRAs are not: seeds and artists are crossed random
factors. The variance of the grand mean of a table (s seeds, a artists) is then (MS_a + MS_s − MS_e)/(s·a), with the
degrees of freedom of Satterthwaite (1946, Biometrics Bulletin 2:110); where seeds differ no more than their interaction
with artists does, MS_s − MS_e is nothing.

Scores have bounds and are skewed near them. Intervals are therefore made on the log-odds of the score between its
bounds, and brought back: at 12 artists × 3 seeds they cover 93 to 97 % where 95 is asked, also of skewed scores, where
percentiles of a bootstrap over artists cover 80 to 88 %. Of scores that lie almost all at a bound (a mean of .95 with a
few artists far below) they cover .88 to .93 (tests/unit/metrics/test_intervals.py simulates all of it).

Far out in the tails three seeds are too few for that: their variance is known from two degrees of freedom, and where
it comes out small by luck it is taken for nothing. One-sided tests of 12 artists or fewer keep the level of .0004 that
a correction for 59 claims asks for (.4 to 1.1 times it) where seeds differ up to .4 times as much as artists. With 50
artists they reject 2 and 7 times too often where seeds differ .2 and .4 times as much, and 25 times where they differ
more than artists do. Six seeds mend most of it (.8, 1.9 and 2.8). So what holds after the correction is sure of
artists, and of the seeds that were run.
"""

from dataclasses import dataclass

import numpy as np

from ..seeds import derive_seed

SCORE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # bounds of scores, and of differences of scores
EDGE = 1e-9  # how near to a bound a score is taken for: log-odds end there


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, degrees of freedom and bounds (None: it has none)."""

    value: float
    error: float
    freedom: float
    bounds: tuple[float, float] | None = SCORE

    def interval(self, confidence: float) -> tuple[float, float]:
        """Low and high at `confidence`, within the bounds; the value twice where nothing varies."""
        from scipy.stats import t

        if not self.error > 0:
            return self.value, self.value
        if not np.isfinite(self.error):
            return self.bounds or (-np.inf, np.inf)
        width = t.ppf((1 + confidence) / 2, self.freedom) * self.error
        if self.bounds is None:
            return self.value - width, self.value + width
        middle, slope = self._odds(self.bounds)
        ends = middle + np.array([-width, width]) * slope
        low, high = self.bounds
        ends = low + (high - low) / (1 + np.exp(-ends.clip(-500, 500)))
        return float(min(ends[0], self.value)), float(max(ends[1], self.value))

    def p(self, null: float = 0.0) -> tuple[float, float]:
        """One-sided p-values of "larger than `null`" and of "smaller than `null`"; where nothing varies, that all of n
        artists are on one side, 2⁻ⁿ."""
        from scipy.stats import t

        if not self.error > 0:  # as many artists as one, all alike: a test of signs
            least = 0.5 ** (self.freedom + 1)
            return (least, 1.0) if self.value > null else (1.0, least) if self.value < null else (1.0, 1.0)
        if not np.isfinite(self.error):
            return 1.0, 1.0
        if self.bounds is None:
            score = (self.value - null) / self.error
        else:
            middle, slope = self._odds(self.bounds)
            score = (middle - _odds(null, self.bounds)) / (self.error * slope)
        return float(t.sf(score, self.freedom)), float(t.cdf(score, self.freedom))

    def _odds(self, bounds: tuple[float, float]) -> tuple[float, float]:
        """Log-odds of the value between bounds, and their slope there."""
        low, high = bounds
        share = np.clip((self.value - low) / (high - low), EDGE, 1 - EDGE)
        return float(np.log(share / (1 - share))), float(1 / (share * (1 - share) * (high - low)))


def _odds(value: float, bounds: tuple[float, float]) -> float:
    share = np.clip((value - bounds[0]) / (bounds[1] - bounds[0]), EDGE, 1 - EDGE)
    return float(np.log(share / (1 - share)))


def mean(values: np.ndarray, artists: np.ndarray, bounds: tuple[float, float] | None = SCORE) -> Estimate:
    """The mean of `values` (n,) whose `artists` (n,) are numbers; leaving one artist out at a time."""
    sums, counts = np.bincount(artists, values), np.bincount(artists)
    sums, counts = sums[counts > 0], counts[counts > 0]
    value = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(value, np.inf, 1.0, bounds)
    return jackknife(value, (sums.sum() - sums) / (counts.sum() - counts), bounds)


def jackknife(value: float, without: np.ndarray, bounds: tuple[float, float] | None = None) -> Estimate:
    """A value with its delete-one-artist values `without` (artists,)."""
    n = len(without)
    error = float(np.sqrt((n - 1) / n * np.square(without - np.mean(without)).sum()))
    return Estimate(float(value), error if error > 1e-12 else 0.0, n - 1, bounds)


def crossed(table: np.ndarray, bounds: tuple[float, float] | None = SCORE) -> Estimate:
    """The grand mean of a table (seeds, artists) of crossed random factors; artists with an absent cell are left
    out."""
    table = table[:, np.isfinite(table).all(0)]
    s, a = table.shape
    if not a:
        return Estimate(np.nan, np.inf, 1.0, bounds)
    value = float(table.mean())
    if a < 2:
        return Estimate(value, np.inf, 1.0, bounds)
    of_seeds, of_artists = table.mean(1), table.mean(0)
    MS_a = s * np.square(of_artists - value).sum() / (a - 1)
    freedom, total = a - 1.0, MS_a
    if s > 1:
        MS_s = a * np.square(of_seeds - value).sum() / (s - 1)
        rest = table - of_seeds[:, None] - of_artists[None] + value
        MS_e = np.square(rest).sum() / ((s - 1) * (a - 1))
        if MS_s > MS_e:
            total = MS_a + MS_s - MS_e
            freedom = total**2 / (MS_a**2 / (a - 1) + MS_s**2 / (s - 1) + MS_e**2 / ((s - 1) * (a - 1)))
            freedom = max(freedom, min(s, a) - 1.0)  # where mean squares nearly cancel it comes below any of theirs
    error = float(np.sqrt(total / (s * a)))
    return Estimate(value, error if error > 1e-12 else 0.0, float(freedom), bounds)


def against_best(differences: list[Estimate], confidence: float) -> tuple[float, float, float, float, float]:
    """Value, low, high and one-sided p-values ("larger", "smaller") of the smallest of several differences, as of a
    descriptor and each control: its margin over whichever control is best.

    The margin is above zero where all differences are (an intersection of alternatives, which needs no correction:
    Berger 1982, Technometrics 24:295), and below where one is (a union, corrected by Bonferroni): no control has to be
    chosen for the best, so neither side of the interval rests on a choice.
    """
    ends = [each.interval(confidence) for each in differences]
    strict = [each.interval(1 - (1 - confidence) / len(differences)) for each in differences]
    larger, smaller = zip(*(each.p(0.0) for each in differences), strict=True)
    value = min(each.value for each in differences)
    return (
        value,
        min(low for low, _ in ends),
        max(min(high for _, high in strict), value),
        max(larger),
        min(1.0, len(differences) * min(smaller)),
    )


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) adjusted for all n together (Holm 1979, Scand. J. Statist. 6:65)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    found = np.empty(len(p))
    found[order] = stepped
    return found


def resampled(values: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """Means (…, bootstrap) of tables (…, seeds, artists) with both resampled, each on its own (the pigeonhole
    bootstrap, Owen 2007, Ann. Appl. Stat. 1:386); NaN cells are absent. For what has no standard error, as a crossing
    of curves."""
    seeds, artists = values.shape[-2:]
    rng = np.random.Generator(np.random.PCG64(derive_seed("intervals", "crossed", seed)))
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=bootstrap).astype(float)
    columns = rng.multinomial(artists, np.full(artists, 1 / artists), size=bootstrap).astype(float)
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    sums = np.einsum("bs,...sa,ba->...b", rows, filled, columns, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / np.einsum("bs,...sa,ba->...b", rows, there.astype(float), columns, optimize=True)
