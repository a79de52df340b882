"""Drift: ratios of spreads, component by component, with what was measured and foretold beside them."""

import numpy as np
import pytest
from scipy.stats import t

from lora_atlas import tables
from lora_atlas.metrics.drift import drift
from lora_atlas.tables import KNOWN, TOGETHER


def written(tmp_path, shrink: dict[str, np.ndarray], artists: int = 200, zero: bool = False, seed: int = 0):
    """An embeddings table whose query scores are `shrink` (calibration → per component) times as wide."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "scenario": scenario,
            "calibration": calibration,
            "fold": 0,
            "lora": f"a{artist}/{number}",
            "artist": f"a{artist}",
            "genre": None,
            "split": "gallery" if number < 3 else "query",
            "vector": rng.normal(size=2) * (1 if number < 3 else factor) * ([1, 0] if zero else 1),
        }
        for scenario in (TOGETHER, KNOWN)
        for calibration, factor in shrink.items()
        for artist in range(artists)
        for number in range(5)
    ]
    told = {"explained": [0.6, 0.2], "held_out_ratio": [0.5, 0.3], "held_out_ratio_predicted": [0.52, 0.28]}
    tables.write(tmp_path / "e.parquet", "embeddings", rows, told)
    return tables.read(tmp_path / "e.parquet", "embeddings")


def test_the_ratio_of_spreads_is_found_and_its_interval_holds_it(tmp_path):
    table = written(tmp_path, {"none": np.array([0.5, 0.25]), "rescale": np.array([1.0, 1.0])})
    rows = drift(table, "delta", confidence=0.99)
    tables.table("drift", rows)
    assert [(row["calibration"], row["component"]) for row in rows] == [
        ("none", 1),
        ("none", 2),
        ("rescale", 1),
        ("rescale", 2),
    ]
    for row, truth in zip(rows, (0.5, 0.25, 1, 1), strict=True):
        assert row["low"] < row["value"] < row["high"] and row["low"] <= truth <= row["high"]
        assert row["value"] == pytest.approx(truth, rel=0.1)
    assert [row["held_out"] for row in rows] == [0.5, 0.3, None, None]
    assert [row["predicted"] for row in rows] == [0.52, 0.28, None, None]


def test_a_component_without_spread_has_no_ratio(tmp_path):
    table = written(tmp_path, {"none": np.array([0.5, 0.5])}, artists=5, zero=True)
    first, second = drift(table, "delta", confidence=0.9)
    assert first["value"] is not None and second["value"] is None
    assert second["low"] is second["high"] is None


def test_intervals_leave_out_one_artist_at_a_time_on_the_logarithm_of_the_ratio(tmp_path):
    table = written(tmp_path, {"none": np.array([0.5, 0.25])}, artists=7)
    table = table.filter(tables.pa.array(np.arange(len(table)) != len(table) - 1))  # one artist has a query less
    frame = table.to_pandas()
    frame = frame[frame["scenario"] == KNOWN]
    query, who = (frame["split"] == "query").to_numpy(), frame["artist"].to_numpy()
    squares = np.square(np.stack(frame["vector"]).astype(float))

    def ratio(kept: np.ndarray) -> np.ndarray:
        return np.sqrt(squares[kept & query].mean(0) / squares[kept & ~query].mean(0))

    value = ratio(who != "")
    without = np.log([ratio(who != artist) for artist in sorted(set(who))])
    error = np.sqrt(6 / 7 * np.square(without - without.mean(0)).sum(0))
    rows = drift(table, "delta", confidence=0.9)
    for row, one, half in zip(rows, value, t.ppf(0.95, 6) * error, strict=True):
        expected = (one, one * np.exp(-half), one * np.exp(half))
        assert (row["value"], row["low"], row["high"]) == pytest.approx(expected)


def test_intervals_cover_the_ratio_as_often_as_they_say(tmp_path):
    covered = []
    for seed in range(60):
        for row in drift(
            written(tmp_path, {"none": np.array([0.5, 0.25])}, artists=12, seed=seed), "d", confidence=0.9
        ):
            covered.append(row["low"] <= (0.5, 0.25)[row["component"] - 1] <= row["high"])
    assert 0.82 <= np.mean(covered) <= 0.97


def test_one_artist_has_a_ratio_and_no_interval(tmp_path):
    for row in drift(written(tmp_path, {"none": np.array([0.5, 0.5])}, artists=1), "delta", confidence=0.9):
        assert row["value"] > 0 and row["low"] is row["high"] is None


def test_an_artist_that_holds_all_of_a_component_leaves_no_interval(tmp_path):
    """Without it the gallery has no spread, and there is no ratio to compare with."""
    table = written(tmp_path, {"none": np.array([1.0, 1.0])}, artists=5)
    rows = table.to_pylist()
    for row in rows:
        if row["artist"] != "a0":
            row["vector"] = [row["vector"][0], 0.0]
    found = tables.table("embeddings", rows).replace_schema_metadata(table.schema.metadata)
    first, second = drift(found, "delta", confidence=0.9)
    assert first["low"] < first["value"] < first["high"]
    assert second["value"] is not None and second["low"] is second["high"] is None
