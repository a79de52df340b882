"""The worth curve: where it meets the weights, the truth planted; and that all pictures are the ordinary pipeline."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from lora_atlas import tables
from lora_atlas.embeddings import embed_pictures
from lora_atlas.metrics.retrieval import ask, queries
from lora_atlas.metrics.worth import (
    WorthError,
    _choices,
    _isotonic,
    counts,
    crossing,
    crossings,
    curves,
    pooled,
    references,
    worth_queries,
)
from lora_atlas.tables import KNOWN

EMBEDDING = {"dimensions": 6, "calibrations": ["none", "crossfit"], "calibration": "crossfit", "folds": 3}
OPTIONS = {"bootstrap": 400, "level": 0.9, "seed": 0}
ARTISTS = [f"artist{n}" for n in range(6)]


@pytest.fixture(scope="module")
def plan():
    rows = [
        {
            "lora": f"{artist}/{n:02}",
            "artist": artist,
            "genre": None,
            "split": "gallery" if n < 3 else "query",
            "seed": n,
            "pictures": [f"{artist}{n}"],
            "overlap": 0.0,
        }
        for artist in ARTISTS
        for n in range(5)
    ]
    return tables.table("plan", rows)


def painted(plan, noise: float, pictures: int = 5, seed: int = 0):
    """Features of generated pictures: an artist's direction, a prompt's, and noise."""
    rng = np.random.default_rng(seed)
    centre = {artist: rng.normal(size=12) for artist in ARTISTS}
    prompt = rng.normal(size=(pictures, 12))
    rows = [
        {
            "picture": f"{row['lora']}-{j}",
            "artist": row["artist"],
            "lora": row["lora"],
            "vector": centre[row["artist"]] + prompt[j] + noise * rng.normal(size=12),
        }
        for row in plan.to_pylist()
        for j in range(pictures)
    ]
    return tables.table("features", rows)


def test_powers_of_two_and_all_are_asked_for():
    assert counts(1) == [1] and counts(5) == [1, 2, 4, 5] and counts(16) == [1, 2, 4, 8, 16]


def test_choices_are_different_and_all_where_there_are_few():
    assert sorted(_choices(4, 2, 8, 0)) == [(a, b) for a in range(4) for b in range(a + 1, 4)]
    many = list(_choices(16, 8, 8, 0))
    assert len(set(many)) == 8 and all(len(set(c)) == 8 and max(c) < 16 for c in many)
    assert many == list(_choices(16, 8, 8, 0)) != list(_choices(16, 8, 8, 1))


def test_all_pictures_are_the_ordinary_descriptor(plan, tmp_path):
    features = painted(plan, 2.0)
    tables.write(tmp_path / "f.parquet", "features", features)
    outputs = {name: tmp_path / f"{name}.parquet" for name in ("clip_s2_g1", "clip_training", "a", "b")}
    outputs |= {"clip_training_to_s2_g1": outputs.pop("a"), "clip_s2_g1_to_training": outputs.pop("b")}
    training = tables.table(
        "features",
        [
            {"picture": row["pictures"][0], "artist": row["artist"], "lora": None, "vector": np.arange(1, 13) + i % 5}
            for i, row in enumerate(plan.to_pylist())
        ],
    )
    tables.write(tmp_path / "t.parquet", "features", training)
    embed_pictures(
        {("clip", "s2_g1"): tmp_path / "f.parquet", ("clip", "training"): tmp_path / "t.parquet"},
        plan,
        {"clip": {"library": "open_clip"}},
        ["s2_g1"],
        EMBEDDING,
        seed=3,
        outputs=outputs,
    )
    table = tables.read(outputs["clip_s2_g1"], "embeddings")
    usual = [
        row["value"]
        for row in queries(list(ask(table, "clip_s2_g1", seed=3)), "clip_s2_g1", "crossfit")
        if (row["scenario"], row["distance"], row["metric"]) == (KNOWN, "L2", "mAP")
    ]
    rows = worth_queries({"clip_s2_g1": features}, plan, EMBEDDING, draws=3, seed=3)
    tables.table("worth_queries", rows)
    assert [row["value"] for row in rows if row["pictures"] == 5 and row["metric"] == "mAP"] == pytest.approx(usual)


def test_more_pictures_find_more(plan):
    rows = worth_queries({"clip": painted(plan, 4.0, 16)}, plan, EMBEDDING, draws=8, seed=0)
    found = curves(tables.table("worth_queries", rows), {"clip": 0.5}, **OPTIONS)
    tables.table("worth", found)
    mAP = {row["pictures"]: row["value"] for row in found if row["metric"] == "mAP"}
    assert list(mAP) == [1, 2, 4, 8, 16] and mAP[16] > mAP[4] > mAP[1]
    assert {row["pictures"]: row["seconds"] for row in found}[8] == 4.0


def test_loras_with_another_number_of_pictures_are_named(plan):
    features = painted(plan, 1.0)
    with pytest.raises(WorthError, match="artist5/04 has 4"):
        worth_queries({"clip": features.slice(0, len(features) - 1)}, plan, EMBEDDING, draws=2, seed=0)


def test_features_of_other_loras_are_refused(plan):
    other = [row | {"lora": "x" + row["lora"]} for row in painted(plan, 1.0).to_pylist()]
    with pytest.raises(WorthError, match="clip: its features are of none of the plan's LoRAs"):
        worth_queries({"clip": tables.table("features", other)}, plan, EMBEDDING, draws=2, seed=0)


def test_pictures_that_are_all_alike_are_named_with_their_number(plan):
    same = [row | {"vector": np.ones(12)} for row in painted(plan, 1.0).to_pylist()]
    with pytest.raises(WorthError, match=r"clip, 1 pictures of each LoRA: .*alike"):
        worth_queries({"clip": tables.table("features", same)}, plan, EMBEDDING, draws=2, seed=0)


def test_a_query_whose_artist_is_not_in_the_gallery_is_not_asked(plan):
    rows = plan.to_pylist()
    for row in rows[:3]:
        row["split"] = "query"
    found = worth_queries({"clip": painted(plan, 1.0)}, tables.table("plan", rows), EMBEDDING, draws=2, seed=0)
    assert {row["artist"] for row in found} == set(ARTISTS[1:])


# --- where curve and weights meet


def test_isotonic_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = rng.normal(size=rng.integers(1, 9))
        assert _isotonic(x) == pytest.approx(IsotonicRegression().fit_transform(np.arange(len(x)), x))


def test_a_crossing_worked_by_hand():
    m, curve = np.array([1, 2, 4, 8]), np.array([0.2, 0.4, 0.6, 0.8])
    assert crossing(m, curve, 0.6) == pytest.approx(4)
    assert crossing(m, curve, 0.5) == pytest.approx(2**1.5)
    assert crossing(m, curve, 0.1) == 1 and crossing(m, curve, 0.81) == np.inf
    # A lucky two pictures are no crossing: pooled with what follows, they are .45.
    assert crossing(m, np.array([0.2, 0.6, 0.3, 0.8]), 0.5) == pytest.approx(2 ** (2 + 1 / 7))


def planted(at: dict[int, float], weights: float, spread: float = 0.02, seed: int = 0, artists: int = 20):
    """Tables of scores around given means: m → mAP of the curve, and mAP of the weights."""
    rng = np.random.default_rng(seed)
    hard = spread * rng.normal(size=artists)  # a hard artist is hard for both
    names = [f"a{n}" for n in range(artists)]
    curve = [
        {"descriptor": "clip", "pictures": m, "metric": "mAP", "lora": f"{name}/9", "artist": name}
        | {"value": value + hard[n] + spread / 4 * rng.normal()}
        for m, value in at.items()
        for n, name in enumerate(names)
    ]
    told = {"scenario": KNOWN, "descriptor": "delta", "calibration": "crossfit", "distance": "L2", "level": "artist"}
    reference = [
        told
        | {"metric": "mAP", "lora": f"{name}/9", "artist": name, "chance": 0.1}
        | {"value": weights + hard[n] + spread / 4 * rng.normal()}
        for n, name in enumerate(names)
    ]
    table = tables.table("queries", reference)
    return tables.table("worth_queries", curve), references(table, ["delta"], "crossfit")


CURVE = {1: 0.3, 2: 0.45, 4: 0.6, 8: 0.75}


def test_a_planted_worth_is_found_within_its_interval():
    (found,) = crossings(*planted(CURVE, 0.6), {"clip": 0.5}, {"delta": 0.01}, **OPTIONS)
    tables.table("crossings", [found])
    assert found["value"] == pytest.approx(4, rel=0.08)
    assert 3.5 < found["low"] < found["value"] < found["high"] < 4.6
    assert (found["most"], found["never"], found["reference_seconds"]) == (8, 0.0, 0.01)
    assert found["seconds"] == pytest.approx(found["value"] * 0.5)


def test_pairing_makes_the_interval_narrow():
    """Artists that are hard for both routes cancel: twenty times the spread between artists changes little."""
    (calm,) = crossings(*planted(CURVE, 0.6, 0.001), {}, {}, **OPTIONS)
    curve, reference = planted(CURVE, 0.6, 0.001, seed=1)
    shift = {f"a{n}": x for n, x in enumerate(0.1 * np.random.default_rng(5).normal(size=20))}
    moved = []
    for name, table in (("worth_queries", curve), ("queries", reference)):
        rows = [row | {"value": row["value"] + shift[row["artist"]]} for row in table.to_pylist()]
        moved.append(tables.table(name, rows))
    (rough,) = crossings(*moved, {}, {}, **OPTIONS)
    assert rough["high"] - rough["low"] < 3 * (calm["high"] - calm["low"]) + 0.05
    assert rough["seconds"] is None and rough["reference_seconds"] is None


def test_weights_that_pictures_never_reach_are_worth_more_than_all_of_them():
    (found,) = crossings(*planted(CURVE, 0.95), {"clip": 1.0}, {}, **OPTIONS)
    assert found["value"] is found["low"] is found["high"] is found["seconds"] is None and found["never"] == 1.0


def test_weights_that_one_picture_reaches_are_worth_one_at_most():
    (found,) = crossings(*planted(CURVE, 0.1), {"clip": 1.0}, {}, **OPTIONS)
    assert (found["value"], found["low"], found["high"], found["never"]) == (1.0, 1.0, 1.0, 0.0)


def test_an_open_interval_has_no_upper_end():
    (found,) = crossings(*planted(CURVE, 0.745, 0.08, seed=4), {}, {}, **OPTIONS)
    assert 0.05 < found["never"] < 1 and found["high"] is None and found["low"] is not None


def test_seeds_together_are_their_mean_and_know_of_their_spread():
    parts = [planted(CURVE, 0.6 + shift, seed=i) for i, shift in enumerate((-0.1, 0.0, 0.1))]
    (alone,) = crossings(*parts[1], {}, {}, **OPTIONS)
    (together,) = pooled(parts, {}, {}, **OPTIONS)
    assert together["value"] == pytest.approx(4, rel=0.1)
    assert together["high"] - together["low"] > 3 * (alone["high"] - alone["low"])


def test_tables_of_other_queries_are_refused():
    with pytest.raises(WorthError, match=r"different LoRAs \(a10/9"):
        crossings(planted(CURVE, 0.6)[0], planted(CURVE, 0.6, artists=4)[1], {}, {}, **OPTIONS)
