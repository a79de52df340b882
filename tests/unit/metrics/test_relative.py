"""The same LoRAs on two bases: found where both know the same relations, and nowhere else."""

import numpy as np
import pyarrow as pa
import pytest

from lora_atlas import tables
from lora_atlas.metrics.relative import ALONE, RETRIEVAL, _correlations, _Profiles, _retrieved, bases

ARTISTS, GALLERY, QUERY = 12, 3, 2
EACH = GALLERY + QUERY
LORAS = [(f"artist{a:02}", f"artist{a:02}/{n:02}", "gallery" if n < GALLERY else "query")
         for a in range(ARTISTS) for n in range(EACH)]  # fmt: skip
SIZES = {lora: 10 for _, lora, _ in LORAS}


def embeddings(X: np.ndarray) -> pa.Table:
    rows = [
        {"scenario": scenario, "calibration": "none", "fold": -1, "lora": lora, "artist": artist, "genre": None,
         "split": split, "vector": x.tolist()}
        for scenario in (tables.WHOLE, tables.TOGETHER)
        for (artist, lora, split), x in zip(LORAS, X, strict=True)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def spread(centres: np.ndarray, noise: float, rng) -> np.ndarray:
    return np.repeat(centres, EACH, 0) + noise * rng.normal(size=(ARTISTS * EACH, centres.shape[1]))


def rotated(X: np.ndarray, width: int, rng) -> np.ndarray:
    """The same arrangement in a space of `width` dimensions."""
    return X @ np.linalg.qr(rng.normal(size=(width, width)))[0][: X.shape[1]]


def compared(left: np.ndarray, right: np.ndarray, permutations: int = 99) -> dict:
    rows = bases(
        {"delta": embeddings(left)}, {"delta": embeddings(right)}, SIZES,
        permutations=permutations, confidence=0.95, seed=0,
    )  # fmt: skip
    return {(row["level"], row["metric"]): row for row in rows}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_one_arrangement_in_two_spaces_is_found(rng):
    X = spread(rng.normal(size=(ARTISTS, 8)), 0.1, rng)
    found = compared(X, rotated(X, 30, rng))
    assert found["LoRAs", RETRIEVAL]["value"] == pytest.approx(found["LoRAs", ALONE]["value"], abs=1e-6)
    assert found["LoRAs", RETRIEVAL]["value"] > 0.95 and found["LoRAs", RETRIEVAL]["p"] == 0.01
    assert found["artists", "RSA"]["value"] == pytest.approx(1, abs=1e-6)


def test_relations_are_enough_and_noise_of_its_own_on_each_base_costs_a_little(rng):
    centres = rng.normal(size=(ARTISTS, 8))
    found = compared(spread(centres, 0.3, rng), rotated(spread(centres, 0.3, rng), 20, rng))
    assert found["LoRAs", RETRIEVAL]["value"] > 3 * found["LoRAs", RETRIEVAL]["null"]
    assert found["LoRAs", RETRIEVAL]["p"] == 0.01


def test_bases_that_know_the_same_artists_and_no_common_relation_are_at_chance():
    """Nobody is found by nearness to himself: each base tells artists without fault, and still p is uniform."""
    p = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        left, right = (spread(rng.normal(size=(ARTISTS, 8)), 0.05, rng) for _ in range(2))
        sides = [_Profiles(embeddings(X)) for X in (left, right)]
        found = {(row["level"], row["metric"]): row for row in _retrieved("delta", sides, 49, 0.95, seed)}
        assert found["LoRAs", ALONE]["value"] > 0.9
        p.append(found["LoRAs", RETRIEVAL]["p"])
    assert min(p) < 0.25 and max(p) > 0.75 and 0.3 < np.mean(p) < 0.7
    assert sum(each <= 0.05 for each in p) <= 4


def test_correlations_leave_out_the_places_of_both_artists(rng):
    Q, G = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    of_queries, of_gallery = rng.integers(0, 5, 6), rng.integers(0, 5, 4)
    found = _correlations(Q, G, of_queries, of_gallery)
    for i, a in enumerate(of_queries):
        for j, c in enumerate(of_gallery):
            others = [k for k in range(5) if k not in (a, c)]
            assert found[i, j] == pytest.approx(np.corrcoef(Q[i, others], G[j, others])[0, 1])


def test_profiles_that_do_not_vary_find_nobody():
    X = np.ones((ARTISTS * EACH, 3))
    found = compared(X, X, permutations=49)
    assert found["LoRAs", RETRIEVAL]["value"] < 0.35  # by lot
    assert found["LoRAs", RETRIEVAL]["p"] > 0.05


def test_a_descriptor_of_one_study_alone_is_left_out(rng):
    X = embeddings(spread(rng.normal(size=(ARTISTS, 8)), 0.1, rng))
    rows = bases({"delta": X, "factors": X}, {"delta": X}, SIZES, permutations=9, confidence=0.95, seed=0)
    assert {row["descriptor"] for row in rows} == {"delta"}
