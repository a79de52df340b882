"""Drift: ratios of spreads, component by component, with what was measured and foretold beside them."""

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.metrics.drift import drift
from lora_atlas.tables import KNOWN, TOGETHER


def written(tmp_path, shrink: dict[str, np.ndarray], artists: int = 200, zero: bool = False):
    """An embeddings table whose query scores are `shrink` (calibration → per component) times as wide."""
    rng = np.random.default_rng(0)
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
    rows = drift(table, "delta", bootstrap=400, level=0.99, seed=0)
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
    first, second = drift(table, "delta", bootstrap=20, level=0.9, seed=0)
    assert first["value"] is not None and second["value"] is None
