"""Intervals over artists: paired, of the right width, and covering what they should where the truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas.metrics.intervals import crossed, draws, jackknife, mean, percentiles, resampled


def test_a_resampling_draws_as_many_artists_as_there_are():
    weights = draws(7, 50, 3)
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and (weights >= 0).all()
    assert (draws(7, 50, 3) == weights).all() and (draws(7, 50, 4) != weights).any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), min_size=1, max_size=30))
def test_a_resampled_mean_is_the_mean_of_the_copies(entries):
    artists, values = np.array([a for a, _ in entries]), np.array([v for _, v in entries])
    weights = draws(5, 20, 0)
    for found, row in zip(resampled(values, artists, weights), weights, strict=True):
        copies = np.repeat(values, row[artists].astype(int))
        assert np.isnan(found) if not len(copies) else found == pytest.approx(copies.mean())


def test_the_bootstrap_of_a_mean_has_the_width_of_theory():
    rng = np.random.default_rng(0)
    values, artists = rng.normal(size=400), np.arange(400)
    value, low, high = mean(values, artists, draws(400, 4000, 0), 0.95)
    assert value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_the_bootstrap_covers_a_known_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    artists = np.repeat(np.arange(40), 3)
    weights = draws(40, 400, 0)
    covered = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=40), 3) + 0.3 * rng.normal(size=120)
        _, low, high = mean(values, artists, weights, 0.9)
        covered += low <= 0 <= high
    assert 0.84 <= covered / 300 <= 0.95


def test_the_jackknife_of_a_mean_is_students_interval():
    rng = np.random.default_rng(2)
    x = rng.normal(size=12)
    without = np.array([np.delete(x, i).mean() for i in range(12)])
    value, low, high = jackknife(x.mean(), without, 0.95)
    from scipy.stats import t

    assert (low, high) == pytest.approx(t.interval(0.95, 11, x.mean(), x.std(ddof=1) / 12**0.5))
    assert value == x.mean()


def test_what_is_not_finite_is_left_out_of_percentiles():
    assert percentiles(1.0, np.array([0.0, np.nan, 2.0]), 0.5)[1:] == (0.5, 1.5)
    assert np.isnan(percentiles(1.0, np.array([np.nan]), 0.5)[1])


def test_crossed_resamplings_spread_by_seeds_and_by_artists():
    """Of v = artist + seed the bootstrap variance is the plug-in variance of each mean, added (Owen 2007)."""
    rng = np.random.default_rng(3)
    artist, seed = rng.normal(size=30), 2 * rng.normal(size=5)
    spread = crossed(artist[None, :] + seed[:, None], 20000, 0)
    assert spread.mean() == pytest.approx(artist.mean() + seed.mean(), abs=0.05)
    assert spread.var() == pytest.approx(artist.var() / 30 + seed.var() / 5, rel=0.06)


def test_crossed_is_the_weighted_mean_of_the_cells_that_are_there():
    values = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, np.nan]])
    stack = np.stack([values, values + 1])
    alone, both = crossed(values, 200, 1), crossed(stack, 200, 1)
    assert both[0] == pytest.approx(alone, nan_ok=True) and both[1] == pytest.approx(alone + 1, nan_ok=True)
    assert np.nanmin(alone) >= 1 and np.nanmax(alone) <= 5


def test_with_one_seed_only_artists_are_resampled():
    values = np.array([[1.0, 2.0, 4.0]])
    possible = {round(float(np.mean(c)), 9) for c in np.stack(np.meshgrid(*[values[0]] * 3), -1).reshape(-1, 3)}
    assert {round(float(v), 9) for v in crossed(values, 500, 0)} <= possible
