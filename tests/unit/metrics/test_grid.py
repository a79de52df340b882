"""The grid: its default is the headline, its whitening is what it says, no descriptor is given more than another."""

import numpy as np
import pytest
from plans import plan
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

from lora_atlas import tables
from lora_atlas.embeddings.components import CALIBRATIONS, embed, whole
from lora_atlas.metrics.grid import grid, steps, whiten
from lora_atlas.metrics.ranking import DISTANCES, chance
from lora_atlas.metrics.retrieval import retrieval
from lora_atlas.sections import Embedding
from lora_atlas.seeds import derive_seed
from lora_atlas.tables import KNOWN, WHOLE
from lora_atlas.views import View

EMBEDDING = Embedding(dimensions=5, calibrations=["none", "rescale", "crossfit"], calibration="crossfit", folds=5)
QUICK = {"confidence": 0.9, "seed": 7}
CROSSFIT, DIRECT = View("components", "crossfit", "L2"), View("whole", "none", "cosine")


def noisy(loras, d: int = 60, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    """X (N, d): an artist's centre and unit noise, in unequal directions."""
    rng = np.random.default_rng(seed)
    artists = np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    X = spread * rng.normal(size=(artists.max() + 1, d))[artists] + rng.normal(size=(len(loras), d))
    return X * np.geomspace(3, 0.3, d)


def gram(X: np.ndarray) -> np.ndarray:
    return X @ X.T


def run(grams, loras, embedding=EMBEDDING, view=CROSSFIT) -> list[dict]:
    rows = grid(grams, loras, embedding, view=view, **QUICK)
    tables.table("grid", rows)  # every column, nothing else
    return rows


def setting(row: dict) -> tuple:
    return row["dimensions"], row["whitening"], row["calibration"], row["distance"]


def vectors_of(loras, K: np.ndarray, dimensions: int) -> dict[str, np.ndarray]:
    """What embed gives, as its table holds it."""
    gallery = np.array(loras["split"].to_pylist()) == "gallery"
    found = embed(K, gallery, dimensions, list(CALIBRATIONS), folds=5, seed=derive_seed("folds", QUICK["seed"]))
    return {name: one.vectors.astype(np.float32).astype(float) for name, one in found.items()}


# --- the scores


def test_rows_without_whitening_are_those_of_the_table_retrieval():
    loras = plan()
    K = gram(noisy(loras))
    found = {setting(row): row for row in run({"delta": K}, loras)}
    spaces = {(KNOWN, name): vectors for name, vectors in vectors_of(loras, K, EMBEDDING.dimensions).items()}
    entries = [
        {"scenario": scenario, "calibration": name, "fold": 0, "vector": vector.astype(np.float32)}
        | {key: lora[key] for key in ("lora", "artist", "genre", "split")}
        for (scenario, name), vectors in (spaces | {(WHOLE, "none"): whole(K)}).items()
        for lora, vector in zip(loras.to_pylist(), vectors, strict=True)
    ]
    compared = 0
    for row in retrieval(tables.table("embeddings", entries), "delta", **QUICK):
        if (row["metric"], row["level"]) == ("mAP", "artist") and row["calibration"] in EMBEDDING.calibrations:
            plain = (EMBEDDING.dimensions, "none", row["calibration"], row["distance"])
            one = found[(36, "none", "whole", row["distance"]) if row["scenario"] == WHOLE else plain]
            for column in ("value", "low", "high", "chance"):
                assert one[column] == pytest.approx(row[column], rel=1e-12), column
            compared += 1
    assert compared == (3 + 1) * len(DISTANCES)


@pytest.mark.parametrize("dimensions", [2, 5, 8])
def test_every_number_of_dimensions_is_that_of_an_embedding_of_its_own(dimensions):
    loras = plan()
    K = gram(noisy(loras))
    embedding = EMBEDDING | {"calibrations": list(CALIBRATIONS)}
    found = {setting(row): row["value"] for row in run({"delta": K}, loras, embedding)}
    artists, split = (np.array(loras[name].to_pylist()) for name in ("artist", "split"))
    gallery = split == "gallery"
    relevant = artists[~gallery][:, None] == artists[gallery]
    for calibration, plain in vectors_of(loras, K, dimensions).items():
        whitened = plain.copy()
        for column in whitened.T:  # by hand, component by component
            column /= np.sqrt(np.mean((column[gallery] - np.mean(column[gallery])) ** 2))
        for whitening, vectors in (("none", plain), ("full", whitened)):
            for distance, far in (("L2", euclidean_distances), ("cosine", cosine_distances)):
                D = far(vectors[~gallery], vectors[gallery])
                expected = np.mean([average_precision_score(hits, -d) for hits, d in zip(relevant, D, strict=True)])
                assert found[dimensions, whitening, calibration, distance] == pytest.approx(expected)


def test_whitening_by_hand():
    X = np.array([[1.0, 5, 0], [3, 5, 1], [7, 9, 1e9]])
    found = whiten(X, np.array([True, True, False]))
    np.testing.assert_allclose(found[:, 0], X[:, 0] / 1.0)  # 1 and 3 have a standard deviation of 1
    np.testing.assert_array_equal(found[:, 1], X[:, 1])  # no spread in the gallery: as it is
    np.testing.assert_allclose(found[:, 2], X[:, 2] / 0.5)
    assert (whiten(np.ones((3, 2)), np.array([True, True, False])) == 1).all()


def test_whitening_finds_what_a_loud_component_drowns():
    """The first components are noise; the artists differ in the quiet ones."""
    loras = plan(artists=6, gallery=6, queries=3)
    rng = np.random.default_rng(0)
    artists = np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    loud = 30 * rng.normal(size=(len(loras), 2))
    quiet = np.eye(6)[artists] * 5 + 0.3 * rng.normal(size=(len(loras), 6))
    rows = run({"delta": gram(np.concatenate([loud, quiet], 1))}, loras)
    values = {setting(row): row["value"] for row in rows}
    assert values[8, "full", "none", "L2"] > 0.9
    assert values[5, "none", "none", "L2"] < 0.7


def test_queries_whose_artist_the_gallery_does_not_hold_are_not_asked():
    loras = plan(artists=6)
    K = gram(noisy(loras))
    stranger = loras.to_pylist()
    for row in stranger:
        if row["artist"] == "artist-5":
            row |= {"split": "query"}
    rows = run({"delta": K}, tables.table("plan", stranger))
    assert {round(row["chance"], 12) for row in rows} == {round(chance("mAP", 4, 20), 12)}
    assert max(row["value"] for row in rows) > 0.5


def test_without_a_query_values_are_null_and_nothing_is_best():
    loras = plan(queries=0)
    for view in (CROSSFIT, DIRECT):
        rows = run({"delta": gram(noisy(loras))}, loras, view=view)
        assert {row[key] for row in rows for key in ("value", "low", "high", "chance")} == {None}
        assert [row["remark"] for row in rows if row["remark"]] == ["default"]


# --- the same budget for all


def test_the_ladder_is_powers_of_two_up_to_what_the_gallery_allows_and_the_default():
    assert steps(48, 16, 5) == [2, 4, 8, 16, 32]
    assert steps(48, 20, 5) == [2, 4, 8, 16, 20, 32]
    assert steps(48, 100, 5) == [2, 4, 8, 16, 32, 37]  # 48 less a fold of 10, less the mean
    assert steps(10**4, 16, 5)[-1] == 128
    assert steps(10**4, 300, 5)[-2:] == [128, 300]
    assert steps(5, 16, 5) == [2, 3]


def test_every_descriptor_has_the_same_settings():
    loras = plan()
    rows = run({name: gram(noisy(loras, seed=seed)) for seed, name in enumerate("ab")}, loras)
    settings = [[setting(row) for row in rows if row["descriptor"] == name] for name in "ab"]
    assert settings[0] == settings[1] == sorted(set(settings[0]), key=settings[0].index)
    assert len(settings[0]) == (len(steps(24, 5, 5)) * 2 * 3 + 1) * len(DISTANCES)


def test_a_descriptor_of_few_directions_has_rows_once_at_as_many_as_it_has():
    loras = plan()
    rows = run({"colour": gram(noisy(loras, d=3)), "delta": gram(noisy(loras))}, loras)
    ladder = {name: [row["dimensions"] for row in rows if row["descriptor"] == name] for name in ("colour", "delta")}
    assert list(dict.fromkeys(ladder["colour"])) == [2, 3, 36]  # and all LoRAs as they are
    assert list(dict.fromkeys(ladder["delta"])) == [2, 4, 5, 8, 16, 36]
    assert ladder["colour"].count(3) == ladder["delta"].count(4)
    defaults = {row["descriptor"]: row["dimensions"] for row in rows if "default" in (row["remark"] or "")}
    assert defaults == {"colour": 3, "delta": 5}


# --- remarks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("view", "default"),
    [
        (CROSSFIT, (5, "none", "crossfit", "L2")),
        (View("components", "rescale", "CSLS"), (5, "none", "rescale", "CSLS")),
        (DIRECT, (36, "none", "whole", "cosine")),
    ],
)
def test_one_row_is_the_default_and_the_first_of_the_highest_is_best(seed, view, default):
    loras = plan()
    rows = run({name: gram(noisy(loras, seed=seed + i)) for i, name in enumerate("ab")}, loras, view=view)
    for name in "ab":
        of = [row for row in rows if row["descriptor"] == name]
        marked = [(setting(row), row["remark"]) for row in of if row["remark"]]
        values = [row["value"] for row in of]
        best = setting(of[values.index(max(values))])
        if best == default:
            assert marked == [(default, "default, best")]
        else:
            assert sorted(marked) == sorted([(default, "default"), (best, "best")])


def test_the_default_may_be_best():
    """Artists on a circle: two directions tell all apart, so the first row, which is the default, is perfect."""
    loras = plan()
    turn = np.pi / 3 * np.unique(loras["artist"].to_pylist(), return_inverse=True)[1]
    X = np.stack([np.cos(turn), np.sin(turn)], 1)
    X = np.concatenate([X, 1e-3 * np.random.default_rng(0).normal(size=(len(loras), 40))], 1)
    rows = run({"delta": gram(X)}, loras, EMBEDDING | {"dimensions": 2, "calibrations": ["crossfit"]})
    assert rows[0]["value"] == 1 and sum(row["value"] == 1 for row in rows) > 1
    assert [row["remark"] for row in rows] == ["default, best"] + [None] * (len(rows) - 1)


# --- errors, bytes


def test_a_descriptor_that_cannot_be_embedded_is_named():
    loras = plan()
    with pytest.raises(ValueError, match="clip: the Gram matrix is not finite"):
        run({"clip": np.full((36, 36), np.nan)}, loras)
    for gallery in (0, 1):
        few = plan(artists=3, gallery=gallery)
        with pytest.raises(ValueError, match=f"clip: a basis needs at least 4 gallery LoRAs; there are {3 * gallery}"):
            run({"clip": gram(noisy(few))}, few)


def test_a_descriptor_whose_gallery_is_all_alike_has_rows_of_chance_and_the_others_their_own():
    loras = plan(12, 4, 8)
    X = noisy(loras)
    alike = np.where(
        (np.array(loras["split"].to_pylist()) == "gallery")[:, None], X[:1] + 1e-7 * X, X
    )  # but for rounding
    for view in (CROSSFIT, DIRECT):
        rows = run({"size": gram(alike), "delta": gram(X)}, loras, view=view)
        none = [row for row in rows if row["descriptor"] == "size"]
        assert [setting(row) for row in none] == [(144, "none", "whole", distance) for distance in DISTANCES]
        for row in none:
            assert row["value"] == pytest.approx(row["chance"], abs=0.03) and row["low"] < row["chance"] < row["high"]
        assert [row for row in rows if row["descriptor"] == "delta"] == run({"delta": gram(X)}, loras, view=view)


def test_rows_come_out_the_same_twice():
    loras = plan()
    assert run({"delta": gram(noisy(loras))}, loras) == run({"delta": gram(noisy(loras))}, loras)
