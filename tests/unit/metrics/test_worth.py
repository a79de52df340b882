"""The worth curve: where it meets the weights, the truth planted; and that all pictures are the ordinary pipeline."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from lora_atlas import tables
from lora_atlas.descriptors import GENERATED, Descriptor
from lora_atlas.embeddings.components import embed, whole
from lora_atlas.embeddings.describe import embed_pictures
from lora_atlas.metrics import intervals
from lora_atlas.metrics.ranking import chance
from lora_atlas.metrics.retrieval import ask, queries
from lora_atlas.metrics.worth import (
    WorthError,
    _isotonic,
    _orders,
    counts,
    crossing,
    crossings,
    curves,
    pooled,
    references,
    worth_queries,
)
from lora_atlas.sections import Embedding, Extractor
from lora_atlas.seeds import derive_seed
from lora_atlas.tables import KNOWN, UNSEEN, WHOLE
from lora_atlas.views import View

EMBEDDING = Embedding(dimensions=6, calibrations=["none", "crossfit"], calibration="crossfit", folds=3)
OPTIONS = {"bootstrap": 400, "confidence": 0.9, "seed": 0}
CROSSFIT, DIRECT = View("components", "crossfit", "L2"), View("whole", "none", "cosine")
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


def test_orders_are_permutations_and_begin_with_every_picture_before_any_comes_again():
    orders = _orders(5, 12, 0)
    assert orders.shape == (12, 5) and (np.sort(orders, 1) == np.arange(5)).all()
    firsts = orders[:, 0].tolist()
    assert sorted(firsts[:5]) == sorted(firsts[5:10]) == list(range(5)) and len(set(firsts[10:])) == 2
    assert len({tuple(order) for order in orders.tolist()}) > 8
    assert (orders == _orders(5, 12, 0)).all() and (orders != _orders(5, 12, 1)).any()


def test_orders_take_every_picture_to_every_place_alike():
    counts = np.zeros((4, 4))
    for seed in range(500):
        for order in _orders(4, 4, seed):
            counts[np.arange(4), order] += 1
    assert (counts[0] == 500).all()
    assert (np.abs(counts[1:] - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


def units(features, plan, pictures: int) -> np.ndarray:
    """Unit vectors (N, pictures, d) of the LoRAs of the plan."""
    vector = {(row["lora"], int(row["picture"].rsplit("-", 1)[1])): row["vector"] for row in features.to_pylist()}
    cube = np.array([[vector[lora, j] for j in range(pictures)] for lora in plan["lora"].to_pylist()])
    return cube / np.linalg.norm(cube, axis=2, keepdims=True)


def usual(plan, X: np.ndarray, view: View, seed: int) -> dict[tuple[str, str], float]:
    """(metric, LoRA) → score, as an embeddings table of X (N, d) is asked."""
    gallery = np.array(plan["split"].to_pylist()) == "gallery"
    if view.basis == "whole":
        vectors = whole(X @ X.T)
    else:
        found = embed(X @ X.T, gallery, 6, [view.calibration], folds=3, seed=derive_seed("folds", seed))
        vectors = found[view.calibration].vectors
    rows = [
        {key: row[key] for key in ("lora", "artist", "genre", "split")}
        | {"scenario": view.known[0], "calibration": view.known[1], "fold": 0, "vector": vector.astype(np.float32)}
        for row, vector in zip(plan.to_pylist(), vectors, strict=True)
    ]
    return {
        (row["metric"], row["lora"]): row["value"]
        for row in queries(list(ask(tables.table("embeddings", rows), "d", seed=seed)), "d")
        if (row["distance"], row["level"]) == (view.distance, "artist")
    }


@pytest.mark.parametrize("view", [CROSSFIT, DIRECT, View("whole", "none", "L2"), View("components", "none", "cosine")])
def test_all_pictures_are_the_ordinary_descriptor(plan, tmp_path, view):
    features = painted(plan, 2.0)
    tables.write(tmp_path / "f.parquet", "features", features)
    descriptor = Descriptor(GENERATED, extractor="clip", gallery="s2_g1", query="s2_g1")
    assert descriptor.name == "clip_s2_g1"
    embed_pictures(
        {("clip", "s2_g1"): tmp_path / "f.parquet"},
        plan,
        [descriptor],
        {"clip": Extractor("open_clip", "mini")},
        EMBEDDING,
        seed=3,
        outputs={"clip_s2_g1": tmp_path / "e.parquet"},
    )
    asked = ask(tables.read(tmp_path / "e.parquet", "embeddings"), "clip_s2_g1", seed=3)
    kept = tables.table("queries", queries(list(asked), "clip_s2_g1"))
    expected = {
        (row["metric"], row["lora"]): row["value"] for row in references(kept, ["clip_s2_g1"], view).to_pylist()
    }
    rows = worth_queries({"clip_s2_g1": features}, plan, EMBEDDING, view=view, draws=3, seed=3)
    tables.table("worth_queries", rows)
    found = {(row["metric"], row["lora"]): row["value"] for row in rows if row["pictures"] == 5}
    assert found == pytest.approx(expected) and len(found) == 2 * 12


@pytest.mark.parametrize("view", [CROSSFIT, DIRECT])
def test_pictures_of_one_draw_are_the_first_of_one_order_and_a_score_is_the_mean_over_draws(plan, view):
    features = painted(plan, 3.0)
    cube = units(features, plan, 5)
    rows = worth_queries({"clip": features}, plan, EMBEDDING, view=view, draws=3, seed=3)
    orders = _orders(5, 3, 3)
    for m in (1, 2, 4, 5):
        each = [usual(plan, cube[:, order[:m]].mean(1), view, 3) for order in orders]
        found = {(row["metric"], row["lora"]): row["value"] for row in rows if row["pictures"] == m}
        assert found == pytest.approx({key: np.mean([one[key] for one in each]) for key in each[0]}), m
    assert {row["pictures"] for row in rows} == {1, 2, 4, 5}


def test_more_pictures_find_more(plan):
    rows = worth_queries({"clip": painted(plan, 4.0, 16)}, plan, EMBEDDING, view=CROSSFIT, draws=8, seed=0)
    found = curves(tables.table("worth_queries", rows), {"clip": 0.5}, confidence=0.9)
    tables.table("worth", found)
    mAP = {row["pictures"]: row["value"] for row in found if row["metric"] == "mAP"}
    assert list(mAP) == [1, 2, 4, 8, 16] and mAP[16] > mAP[4] > mAP[1]
    assert {row["pictures"]: row["seconds"] for row in found}[8] == 4.0


def test_loras_with_another_number_of_pictures_are_named(plan):
    features = painted(plan, 1.0)
    with pytest.raises(WorthError, match="artist5/04 has 4"):
        worth_queries({"clip": features.slice(0, len(features) - 1)}, plan, EMBEDDING, view=CROSSFIT, draws=2, seed=0)


def test_features_of_other_loras_are_refused(plan):
    other = [row | {"lora": "x" + row["lora"]} for row in painted(plan, 1.0).to_pylist()]
    with pytest.raises(WorthError, match="clip: its features are of none of the plan's LoRAs"):
        worth_queries({"clip": tables.table("features", other)}, plan, EMBEDDING, view=CROSSFIT, draws=2, seed=0)


def test_points_of_the_curve_are_means_over_queries_with_intervals_over_artists(plan):
    series = {"clip": painted(plan, 3.0), "dino": painted(plan, 5.0)}
    rows = worth_queries(series, plan, EMBEDDING, view=DIRECT, draws=2, seed=0)
    found = curves(tables.table("worth_queries", rows), {"clip": 0.5}, confidence=0.8)
    tables.table("worth", found)
    assert len(found) == 2 * 4 * 2
    for point in found:
        of = [r for r in rows if all(r[key] == point[key] for key in ("descriptor", "pictures", "metric"))]
        values, artists = np.array([row["value"] for row in of]), [ARTISTS.index(row["artist"]) for row in of]
        estimate = intervals.mean(values, np.array(artists))
        assert len(of) == 12
        assert (point["value"], point["low"], point["high"]) == pytest.approx((estimate.value, *estimate.interval(0.8)))
        assert point["seconds"] == (0.5 * point["pictures"] if point["descriptor"] == "clip" else None)


@pytest.mark.parametrize("view", [CROSSFIT, DIRECT])
def test_pictures_that_tell_no_lora_of_the_gallery_from_another_score_chance(plan, view):
    same = [row | {"vector": np.ones(12)} for row in painted(plan, 1.0).to_pylist()]
    rows = worth_queries({"clip": tables.table("features", same)}, plan, EMBEDDING, view=view, draws=2, seed=0)
    for m in (1, 2, 4, 5):
        mAP = [row["value"] for row in rows if (row["pictures"], row["metric"]) == (m, "mAP")]
        assert len(mAP) == 12 and np.mean(mAP) == pytest.approx(chance("mAP", 3, 18), abs=0.06)
        right = [row["value"] for row in rows if (row["pictures"], row["metric"]) == (m, "R@1")]
        assert np.mean(right) == pytest.approx(1 / 6, abs=0.12) and np.mean(right) > 0


def test_a_gallery_too_small_is_named_with_its_number_of_pictures(plan):
    kept = [row["artist"] < "artist3" and row["lora"][-2:] in ("00", "04") for row in plan.to_pylist()]
    few = plan.filter(tables.pa.array(kept))
    with pytest.raises(WorthError, match="clip, 1 pictures of each LoRA: a basis needs at least 4 gallery LoRAs"):
        worth_queries({"clip": painted(plan, 1.0)}, few, EMBEDDING, view=DIRECT, draws=1, seed=0)


def test_a_query_whose_artist_is_not_in_the_gallery_is_not_asked(plan):
    rows = plan.to_pylist()
    for row in rows[:3]:
        row["split"] = "query"
    found = worth_queries(
        {"clip": painted(plan, 1.0)}, tables.table("plan", rows), EMBEDDING, view=CROSSFIT, draws=2, seed=0
    )
    assert {row["artist"] for row in found} == set(ARTISTS[1:])


def test_references_are_what_the_view_looks_at_of_known_artists():
    rows = [
        {"scenario": scenario, "descriptor": descriptor, "calibration": calibration, "distance": distance}
        | {"level": level, "metric": "mAP", "lora": "a/1", "artist": "a", "value": 0.5, "chance": 0.1}
        for scenario, calibration in ((KNOWN, "none"), (KNOWN, "crossfit"), (UNSEEN, "none"), (WHOLE, "none"))
        for descriptor in ("delta", "down", "clip")
        for distance in ("L2", "cosine")
        for level in ("artist", "genre")
    ]
    table = tables.table("queries", rows)
    for view, expected in ((CROSSFIT, (KNOWN, "crossfit", "L2")), (DIRECT, (WHOLE, "none", "cosine"))):
        found = references(table, ["delta", "down"], view).to_pylist()
        assert [row["descriptor"] for row in found] == ["delta", "down"]
        assert {(row["scenario"], row["calibration"], row["distance"], row["level"]) for row in found} == {
            (*expected, "artist")
        }


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
    return tables.table("worth_queries", curve), references(table, ["delta"], CROSSFIT)


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
