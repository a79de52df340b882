"""Structure: each measure against another implementation, what it must not see, and nulls that are nulls."""

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import kstest, spearmanr

from lora_atlas import tables
from lora_atlas.metrics.structure import METRICS, structure
from lora_atlas.tables import KNOWN, TOGETHER

OPTIONS = {"permutations": 49, "level": 0.95, "seed": 0}


def embedded(X: np.ndarray, each: int = 4, scenario: str = TOGETHER) -> tables.pa.Table:
    rows = [
        {
            "scenario": scenario,
            "calibration": "none",
            "fold": 0,
            "lora": f"a{i // each:02}/{i % each:02}",
            "artist": f"a{i // each:02}",
            "genre": None,
            "split": "gallery",
            "vector": x.astype(np.float32),
        }
        for i, x in enumerate(X)
    ]
    return tables.table("embeddings", rows)


def measured(X: np.ndarray, Y: np.ndarray, **changes) -> dict[str, dict]:
    rows = structure({"left": embedded(X), "right": embedded(Y)}, **OPTIONS | changes)
    tables.table("structure", rows)
    return {row["metric"]: row for row in rows}


def random(n: int = 24, k: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32).astype(float)


def turned(X: np.ndarray, seed: int = 0) -> np.ndarray:
    k = X.shape[1]
    return 3.7 * X @ np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))[0] + 2


def debiased_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """By dense matrices, as Song et al. write it."""

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        n, one = len(K), np.ones(len(K))
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        top = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return (top - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))

    K, L = X @ X.T, Y @ Y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def common_neighbours(X: np.ndarray, Y: np.ndarray, k: int) -> float:
    shares = []
    for i in range(len(X)):
        near = [sorted((np.linalg.norm(Z[i] - Z[j]), j) for j in range(len(Z)) if j != i)[:k] for Z in (X, Y)]
        shares.append(len({j for _, j in near[0]} & {j for _, j in near[1]}) / k)
    return float(np.mean(shares))


def half_alike(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X = random(seed=seed)
    return X, np.hstack([X[:, :3], random(seed=seed + 99)])


def test_every_measure_is_that_of_another_implementation():
    X, Y = half_alike()
    X, Y = X + 1.5, Y - 0.5  # none may depend on where the origin is
    found = measured(X, Y)
    assert found["CKA"]["value"] == pytest.approx(debiased_cka(X, Y), abs=1e-6)
    assert found["RSA"]["value"] == pytest.approx(spearmanr(pdist(X), pdist(Y)).statistic, abs=1e-5)
    padded = np.hstack([X, np.zeros((len(X), Y.shape[1] - X.shape[1]))])
    assert found["Procrustes"]["value"] == pytest.approx(1 - procrustes(padded, Y)[2], abs=1e-6)
    assert found["mutual kNN"]["value"] == pytest.approx(common_neighbours(X, Y, 4))


def test_neither_rotation_nor_scale_nor_place_matters():
    X = random()
    for row in measured(X, turned(X)).values():
        assert row["value"] == pytest.approx(1, abs=1e-4) and row["p"] == pytest.approx(1 / 50)
    A, B = half_alike(3)
    before, after = measured(A, B), measured(turned(A, 1), turned(B, 2))
    for metric in METRICS:
        assert after[metric]["value"] == pytest.approx(before[metric]["value"], abs=2e-4), metric


def test_the_debiased_cka_of_nothing_in_common_is_zero_and_the_biased_is_not():
    values, biased = [], []
    for seed in range(40):
        X, Y = random(16, 8, seed), random(16, 8, seed + 1000)
        values.append(measured(X, Y, permutations=1)["CKA"]["value"])
        X, Y = X - X.mean(0), Y - Y.mean(0)
        biased.append(np.square(X.T @ Y).sum() / np.sqrt(np.square(X.T @ X).sum() * np.square(Y.T @ Y).sum()))
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5
    assert np.mean(biased) > 0.2


@pytest.mark.parametrize("metric", METRICS)
def test_p_is_uniform_where_there_is_nothing_in_common(metric):
    jitter = np.random.default_rng(0)
    p = [
        measured(random(16, 4, seed), random(16, 4, seed + 500), permutations=39)[metric]["p"]
        - jitter.uniform(0, 1 / 40)
        for seed in range(80)
    ]
    if metric == "mutual kNN":  # overlaps come in steps: p is at most conservative
        assert np.mean(np.array(p) < 0.1) < 0.2
    else:
        assert kstest(p, "uniform").pvalue > 0.005


def test_the_null_is_the_mean_over_permutations_and_lies_where_theory_says():
    X, Y = half_alike(5)
    found = measured(X, Y, permutations=400)
    assert found["CKA"]["null"] == pytest.approx(0, abs=0.02)
    assert found["RSA"]["null"] == pytest.approx(0, abs=0.02)
    assert found["mutual kNN"]["null"] == pytest.approx(4 / 23, abs=0.015)  # k of the n − 1 others
    assert all(row["null"] < row["null_high"] < row["value"] for row in found.values())


def test_intervals_leave_artists_out():
    X, Y = half_alike(6)
    found = measured(X, Y)["CKA"]
    from lora_atlas.metrics.intervals import jackknife

    artist = np.arange(24) // 4
    without = np.array([debiased_cka(X[artist != a], Y[artist != a]) for a in range(6)])
    _, low, high = jackknife(found["value"], without, 0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, min(high, 1)), abs=1e-4)


def test_what_has_all_loras_in_one_place_has_no_geometry():
    found = measured(random(), np.zeros((24, 1)))
    assert all(row["value"] is None and row["p"] == 1 for row in found.values())


def test_two_artists_have_values_and_no_interval():

    spaces = {"left": embedded(random(6), each=3), "right": embedded(random(6, seed=1), each=3)}
    for row in structure(spaces, **OPTIONS):
        assert np.isfinite(row["value"]) and row["low"] is row["high"] is None


def test_equally_near_loras_are_not_taken_for_neighbours_by_their_place_in_the_table():
    """Two controls that know only one of two sizes agree by the size, not by the order of artists."""
    X = np.repeat([[0.0], [1.0]], 30, 0)
    Y = np.tile([[0.0], [1.0]], (30, 1))
    found = measured(X, Y)["mutual kNN"]
    assert found["value"] < 0.3


def test_every_pair_comes_once_in_the_order_given_and_the_order_of_rows_does_not_matter():
    spaces = {name: embedded(random(seed=i)) for i, name in enumerate("cab")}
    rows = structure(spaces, **OPTIONS)
    assert [(row["left"], row["right"]) for row in rows[:: len(METRICS)]] == [("c", "a"), ("c", "b"), ("a", "b")]
    shuffled = spaces | {"a": spaces["a"].take(np.random.default_rng(0).permutation(24))}
    assert structure(shuffled, **OPTIONS) == rows


def test_only_what_is_described_together_counts():
    both = tables.pa.concat_tables([embedded(random(seed=8), scenario=KNOWN), embedded(random())])
    assert structure({"a": both, "b": embedded(random(seed=1))}, **OPTIONS) == structure(
        {"a": embedded(random()), "b": embedded(random(seed=1))}, **OPTIONS
    )


def test_descriptors_of_other_loras_are_named():
    with pytest.raises(ValueError, match="'delta' and 'clip' describe other LoRAs"):
        structure({"delta": embedded(random()), "clip": embedded(random(20))}, **OPTIONS)
    with pytest.raises(ValueError, match="at least 4 LoRAs"):
        structure({"delta": embedded(random(3)), "clip": embedded(random(3))}, **OPTIONS)
