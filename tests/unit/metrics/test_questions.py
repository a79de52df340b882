"""Questions: what is asked of vectors, of inner products and under a view is what the table "retrieval" asks."""

import numpy as np
import pytest
from plans import plan

from lora_atlas import tables
from lora_atlas.embeddings.components import CALIBRATIONS, AlikeError, embed, whole
from lora_atlas.metrics.questions import questions, stored, under
from lora_atlas.metrics.ranking import DISTANCES, METRICS, chance
from lora_atlas.metrics.retrieval import ask
from lora_atlas.sections import Embedding
from lora_atlas.seeds import derive_seed
from lora_atlas.tables import KNOWN, WHOLE
from lora_atlas.views import View
from lora_atlas.weights.products import normalise

EMBEDDING = Embedding(dimensions=5, calibrations=["none"], calibration="crossfit", folds=5)
SEED = 7


def noisy(loras, d: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    artists = np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    return 0.6 * rng.normal(size=(artists.max() + 1, d))[artists] + rng.normal(size=(len(loras), d))


def embedded(loras, vectors, scenario: str, calibration: str):
    rows = [
        {"scenario": scenario, "calibration": calibration, "fold": 0, "vector": vector.astype(np.float32)}
        | {key: lora[key] for key in ("lora", "artist", "genre", "split")}
        for lora, vector in zip(loras.to_pylist(), vectors, strict=True)
    ]
    return tables.table("embeddings", rows)


def retrieved(table, distance: str):
    """What the table "retrieval" asks of artists: the loras asked, and metric → scores."""
    (one,) = (a for a in ask(table, "delta", seed=SEED) if (a.level, a.distance) == ("artist", distance))
    return one.loras, one.scores


def test_the_queries_whose_artist_the_gallery_holds_are_asked():
    rows = plan().to_pylist()
    for row in rows:
        if row["artist"] == "artist-2":
            row["split"] = "query"
        if row["lora"] == "artist-4/03":
            row["split"] = "query"
    asked = questions(tables.table("plan", rows), SEED)
    assert [rows[i]["artist"] for i in asked.rows] == [f"artist-{a}" for a in (0, 0, 1, 1, 3, 3, 4, 4, 4, 5, 5)]
    assert [rows[i]["split"] == "gallery" for i in range(36)] == asked.gallery.tolist()
    gallery = [row["artist"] for row in rows if row["split"] == "gallery"]
    for row, relevant in zip(asked.rows, asked.relevant, strict=True):
        assert relevant.tolist() == [artist == rows[row]["artist"] for artist in gallery]
    assert asked.artists.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert asked.chance == pytest.approx((8 * chance("mAP", 4, 19) + 3 * chance("mAP", 3, 19)) / 11)
    nobody = questions(plan(queries=0), SEED)
    assert not len(nobody.rows) and nobody.chance is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_inner_products_score_as_their_vectors_do(distance):
    loras = plan()
    X, asked = noisy(loras), questions(loras, SEED)
    found, expected = (f(K, distance, tuple(METRICS)) for f, K in ((asked.from_products, X @ X.T), (asked.scores, X)))
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric]), metric
    assert 0 < found["mAP"].mean() < 1
    assert asked.precision(X, distance) == pytest.approx(expected["mAP"])


@pytest.mark.parametrize("distance", DISTANCES)
def test_loras_in_one_place_tie_by_their_inner_products_too(distance):
    """Ten places for 1200 LoRAs, which mean nothing: brought to norm one, each is off its place by rounding."""
    loras = plan(60, 10, 10)
    rng = np.random.default_rng(1)
    where = rng.integers(0, 10, len(loras))
    X = rng.normal(size=(10, 4))[where]
    sizes = np.where(np.array(loras["split"].to_pylist()) == "gallery", 1.0, 3.0)[:, None]  # and so are sides
    asked = questions(loras, SEED)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    found = asked.from_products(normalise((X * sizes) @ (X * sizes).T, "unit"), distance, ("mAP", "R@1"))
    assert np.isfinite(found["mAP"]).all()
    expected = asked.scores(np.round(X / lengths, 12), distance, ("mAP", "R@1"))
    for metric, slack in (("mAP", 0.004), ("R@1", 0.02)):  # random orders of ties are not the same orders
        assert found[metric].mean() == pytest.approx(expected[metric].mean(), abs=slack)
    assert np.mean((found["R@1"] > 0) & (found["R@1"] < 1)) > 0  # every query is near many, and the right may be first


def test_what_cannot_be_told_apart_is_at_chance_by_inner_products():
    loras = plan(20, 4, 10)
    asked = questions(loras, SEED)
    for K in (np.zeros((280, 280)), np.ones((280, 280))):
        for distance in DISTANCES:
            assert asked.from_products(K, distance)["mAP"].mean() == pytest.approx(asked.chance, abs=0.02)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_view_without_a_basis_is_retrieval_of_the_loras_themselves(distance):
    loras = plan()
    X, asked = noisy(loras), questions(loras, SEED)
    K = X @ X.T
    names, expected = retrieved(embedded(loras, whole(K), WHOLE, "none"), distance)
    found = under(K, asked, View("whole", "none", distance), EMBEDDING, SEED, tuple(METRICS))
    assert names == [loras["lora"][int(i)].as_py() for i in asked.rows]
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric]), metric


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_view_of_components_is_retrieval_of_the_embedding(calibration, distance):
    loras = plan()
    X, asked = noisy(loras), questions(loras, SEED)
    K = X @ X.T
    one = embed(K, asked.gallery, 5, [calibration], folds=5, seed=derive_seed("folds", SEED))[calibration]
    _, expected = retrieved(embedded(loras, one.vectors, KNOWN, calibration), distance)
    found = under(K, asked, View("components", calibration, distance), EMBEDDING, SEED, ("mAP", "R@1"))
    assert set(found) == {"mAP", "R@1"}
    for metric in found:
        assert (found[metric] == expected[metric]).all()
    assert (asked.scores(stored(one.vectors), distance)["mAP"] == expected["mAP"]).all()


@pytest.mark.parametrize("view", [View("whole", "none", "cosine"), View("components", "crossfit", "L2")])
def test_a_gallery_that_says_nothing_is_refused_under_every_view(view):
    loras = plan()
    asked = questions(loras, SEED)
    with pytest.raises(AlikeError, match="all alike"):
        under(np.ones((36, 36)), asked, view, EMBEDDING, SEED)
    with pytest.raises(ValueError, match="not finite"):
        under(np.full((36, 36), np.nan), asked, view, EMBEDDING, SEED)
    few = questions(plan(3, 1), SEED)
    with pytest.raises(ValueError, match="at least 4 gallery LoRAs; there are 3"):
        under(np.eye(9), few, view, EMBEDDING, SEED)
