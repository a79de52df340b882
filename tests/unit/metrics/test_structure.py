"""Structure: each measure against another implementation, what it must not see, and nulls that are nulls."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import kstest, rankdata, spearmanr

from lora_atlas import tables
from lora_atlas.metrics import structure as module
from lora_atlas.metrics.intervals import jackknife
from lora_atlas.metrics.structure import ARTISTS, LEVELS, LORAS, METRICS, WITHIN, structure
from lora_atlas.tables import KNOWN, TOGETHER, WHOLE

OPTIONS = {"scenario": TOGETHER, "permutations": 49, "confidence": 0.95, "seed": 0}
BOUNDS = (-1.0, 1.0)


@pytest.fixture(autouse=True)
def few_tests(monkeypatch):
    """Permutations of artists and within artists, which most tests do not look at."""
    monkeypatch.setattr(module, "TESTS", 19)
    monkeypatch.setattr(module, "RSA_LEAST", 19)


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


def measured(X: np.ndarray, Y: np.ndarray, level: str = LORAS, sizes=None, each: int = 4, **changes) -> dict[str, dict]:
    rows = structure({"left": embedded(X, each), "right": embedded(Y, each)}, sizes or {}, **OPTIONS | changes)
    tables.table("structure", rows)
    assert len({(row["level"], row["metric"]) for row in rows}) == len(rows)
    return {row["metric"]: row for row in rows if row["level"] == level}


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


def test_what_all_loras_have_in_common_costs_no_precision():
    X, Y = half_alike()
    near, far = measured(X, Y), measured(X + 300, Y - 200)
    assert far["CKA"]["value"] == pytest.approx(near["CKA"]["value"], abs=1e-5)
    for level in (ARTISTS, WITHIN):
        near, far = measured(X, Y, level), measured(X + 300, Y - 200, level)
        assert far["CKA"]["value"] == pytest.approx(near["CKA"]["value"], abs=1e-4)  # vectors are float32 themselves


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


ANOTHER = {
    "CKA": debiased_cka,
    "RSA": lambda X, Y: spearmanr(pdist(X), pdist(Y)).statistic,
    "Procrustes": lambda X, Y: 1 - procrustes(X, Y)[2],
    "mutual kNN": lambda X, Y: common_neighbours(X, Y, 4),
}


# Equally near LoRAs are neighbours at random: rounded vectors have no one answer for mutual kNN.
@pytest.mark.parametrize(
    ("metric", "rounded"), [*((metric, False) for metric in METRICS), *((metric, True) for metric in METRICS[:3])]
)
def test_intervals_are_those_of_every_measure_computed_anew_without_an_artist(metric, rounded):
    X, Y = half_alike(6)
    X, Y = X[:, :3], Y[:, 1:4]
    if rounded:  # distances that are equal share their rank, before and after
        X, Y = np.round(X), np.round(Y)
    found = measured(X, Y)[metric]
    artist = np.arange(24) // 4
    without = np.array([ANOTHER[metric](X[artist != a], Y[artist != a]) for a in range(6)])
    expected = jackknife(found["value"], without, BOUNDS).interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("place", [0.0, 2.3])
def test_a_measure_that_is_not_defined_without_one_artist_has_no_interval(place):
    Y = np.full((24, 1), place)
    Y[:4, 0] += [1, 2, 4, 8]  # without the first artist all are in one place
    for metric in ("CKA", "RSA", "Procrustes"):
        row = measured(random(), Y)[metric]
        assert np.isfinite(row["value"]) and row["low"] is row["high"] is None, metric


def test_a_permutation_that_changes_nothing_reaches_the_value():
    """Of two groups of three, every division is as far from the other as every other: the exact Mantel p is 1 here."""
    X, Y = np.array([0.0, 0, 0, 1, 1, 1])[:, None], np.array([0.0, 0, 1, 1, 1, 0])[:, None]
    every = [X, Y]
    ranks = [rankdata(pdist(Z)) for Z in every]
    value = np.corrcoef(*ranks)[0, 1]
    null = [np.corrcoef(ranks[0], rankdata(pdist(Y[list(p)])))[0, 1] for p in permutations(range(6))]
    exact = np.mean(np.array(null) >= value - 1e-9)
    assert measured(X, Y, each=2, permutations=499)["RSA"]["p"] == pytest.approx(exact, abs=0.06)


def test_what_has_all_loras_in_one_place_has_no_geometry():
    for level in LEVELS:
        found = measured(random(), np.zeros((24, 1)), level)
        assert found and all(row["value"] is None and row["p"] == 1 for row in found.values()), level


def test_two_artists_have_values_and_no_interval():
    spaces = {"left": embedded(random(6), each=3), "right": embedded(random(6, seed=1), each=3)}
    rows = structure(spaces, {}, **OPTIONS)
    assert [row["level"] for row in rows] == [LORAS] * 4 + [WITHIN] * 2  # two means are no geometry
    for row in rows:
        assert np.isfinite(row["value"]) and row["low"] is row["high"] is None


def test_equally_near_loras_are_not_taken_for_neighbours_by_their_place_in_the_table():
    """Two controls that know only one of two sizes agree by the size, not by the order of artists."""
    X = np.repeat([[0.0], [1.0]], 30, 0)
    Y = np.tile([[0.0], [1.0]], (30, 1))
    found = measured(X, Y)["mutual kNN"]
    assert found["value"] < 0.3


def test_every_pair_comes_once_in_the_order_given_and_the_order_of_rows_does_not_matter():
    spaces = {name: embedded(random(seed=i)) for i, name in enumerate("cab")}
    rows = structure(spaces, {}, **OPTIONS)
    assert [(row["level"], row["left"], row["right"], row["metric"]) for row in rows] == [
        (level, *pair, metric)
        for level, metrics in ((LORAS, METRICS), (ARTISTS, ("CKA", "RSA")), (WITHIN, ("CKA", "RSA")))
        for pair in (("c", "a"), ("c", "b"), ("a", "b"))
        for metric in metrics
    ]
    shuffled = spaces | {"a": spaces["a"].take(np.random.default_rng(0).permutation(24))}
    assert structure(shuffled, {}, **OPTIONS) == rows


def test_only_the_scenario_asked_for_counts():
    both = tables.pa.concat_tables([embedded(random(seed=8), scenario=KNOWN), embedded(random())])
    assert structure({"a": both, "b": embedded(random(seed=1))}, {}, **OPTIONS) == structure(
        {"a": embedded(random()), "b": embedded(random(seed=1))}, {}, **OPTIONS
    )


def test_without_a_basis_all_but_procrustes_look_at_the_loras_themselves():
    (X, Y), (P, Q) = half_alike(1), half_alike(2)
    spaces = {
        name: tables.pa.concat_tables([embedded(whole, scenario=WHOLE), embedded(part)])
        for name, whole, part in (("left", X, P[:, :3]), ("right", Y, Q[:, :2]))
    }
    rows = structure(spaces, {}, **OPTIONS | {"scenario": WHOLE})
    found = {(row["level"], row["metric"]): row for row in rows}
    direct, parts = measured(X, Y), measured(P[:, :3], Q[:, :2])
    for metric in METRICS:
        assert found[LORAS, metric] == (parts if metric == "Procrustes" else direct)[metric], metric
    for level in (ARTISTS, WITHIN):
        for metric, row in measured(X, Y, level).items():
            assert found[level, metric] == row


def test_descriptors_of_other_loras_are_named():
    with pytest.raises(ValueError, match="'delta' and 'clip' describe other LoRAs"):
        structure({"delta": embedded(random()), "clip": embedded(random(20))}, {}, **OPTIONS)
    with pytest.raises(ValueError, match="at least 4 LoRAs"):
        structure({"delta": embedded(random(3)), "clip": embedded(random(3))}, {}, **OPTIONS)


def test_a_descriptor_that_cannot_be_compared_is_named_with_what_is_wrong():
    good, broken = embedded(random()), random(seed=1)
    broken[3, 1] = np.nan
    place = good.schema.get_field_index("artist")
    others = good.set_column(place, good.schema.field(place), good["artist"].take(np.arange(24)[::-1]))
    twice = tables.pa.concat_tables([good, good.slice(0, 2)])
    for table, wrong in ((embedded(broken), "not finite"), (others, "other artists"), (twice, "twice")):
        with pytest.raises(ValueError, match=f"'clip'.* {wrong}"):
            structure({"delta": good, "clip": table}, {}, **OPTIONS)
    with pytest.raises(ValueError, match="'delta' has a LoRA twice"):
        structure({"delta": twice, "clip": good}, {}, **OPTIONS)
    with pytest.raises(ValueError, match="at least 1 permutation"):
        structure({"delta": good, "clip": good}, {}, **OPTIONS | {"permutations": 0})


def test_above_their_limit_of_work_cka_and_rsa_have_fewer_permutations_and_p_is_of_those(monkeypatch):
    X = random()
    monkeypatch.setattr(module, "RSA_WORK", 1)
    monkeypatch.setattr(module, "RSA_LEAST", 9)
    p = {metric: row["p"] for metric, row in measured(X, turned(X)).items()}
    assert p == pytest.approx({"CKA": 1 / 10, "RSA": 1 / 10, "Procrustes": 1 / 50, "mutual kNN": 1 / 50})


# --- artists' means, and LoRAs within artists


def unequal() -> np.ndarray:
    """Numbers of the artists of 24 LoRAs: seven artists of one to six."""
    return np.repeat(np.arange(7), [1, 6, 4, 4, 3, 3, 3])


def named(X: np.ndarray, artists: np.ndarray) -> tables.pa.Table:
    rows = embedded(X).to_pylist()
    for row, artist in zip(rows, artists, strict=True):
        row |= {"lora": f"{artist}/{row['lora']}", "artist": f"a{artist}"}
    return tables.table("embeddings", rows)


@pytest.mark.parametrize("level", [ARTISTS, WITHIN])
@pytest.mark.parametrize("metric", ["CKA", "RSA"])
def test_artists_means_and_what_is_left_of_them_are_measured_as_vectors_are(level, metric):
    X, Y = half_alike(7)
    X, Y, artists = X + 2, Y - 1, unequal()
    means = [np.stack([Z[artists == a].mean(0) for a in range(7)]) for Z in (X, Y)]
    if level == ARTISTS:
        of, (A, B) = np.arange(7), means
    else:
        of, (A, B) = artists, (Z - M[artists] for Z, M in zip((X, Y), means, strict=True))
    rows = structure({"left": named(X, artists), "right": named(Y, artists)}, {}, **OPTIONS)
    (found,) = (row for row in rows if (row["level"], row["metric"]) == (level, metric))
    value = ANOTHER[metric](A, B)
    without = np.array([ANOTHER[metric](A[of != a], B[of != a]) for a in range(7)])
    expected = (value, *jackknife(value, without, BOUNDS).interval(0.95))
    assert (found["value"], found["low"], found["high"]) == pytest.approx(expected, abs=1e-6)


def painters(seed: int, artists: int = 8, each: int = 4, shared: float = 0.0, common: float = 0.0):
    """Two descriptors of the same LoRAs: `shared` of their artists' centres is the same, and `common` of their own."""
    rng = np.random.default_rng(seed)

    def two(share: float, rows: int) -> list[np.ndarray]:
        same, *own = rng.normal(size=(3, rows, 5))
        return [share * same + (1 - share**2) ** 0.5 * one for one in own]

    who = np.repeat(np.arange(artists), each)
    centres, loras = two(shared, artists), two(common, artists * each)
    return [2 * c[who] + one for c, one in zip(centres, loras, strict=True)]


@pytest.mark.parametrize("metric", ["CKA", "RSA"])
def test_p_within_artists_is_uniform_where_descriptors_know_the_same_artists_and_nothing_else(monkeypatch, metric):
    monkeypatch.setattr(module, "TESTS", 39)
    jitter, within, whole = np.random.default_rng(0), [], []
    for seed in range(80):
        X, Y = painters(seed, shared=1.0)
        within.append(measured(X, Y, WITHIN, permutations=39)[metric]["p"] - jitter.uniform(0, 1 / 40))
        if seed < 10:
            whole.append(measured(X, Y, LORAS, permutations=39)[metric]["p"])
    assert max(whole) == pytest.approx(1 / 40)
    assert kstest(within, "uniform").pvalue > 0.005


@pytest.mark.parametrize("metric", ["CKA", "RSA"])
def test_p_of_artists_is_uniform_where_their_centres_have_nothing_in_common_though_loras_have(monkeypatch, metric):
    """LoRAs of an artist are near each other in both, wherever the artist is: the p of LoRAs says no more than that."""
    monkeypatch.setattr(module, "TESTS", 39)
    jitter, of_artists, whole = np.random.default_rng(0), [], []
    for seed in range(80):
        X, Y = painters(seed)
        of_artists.append(measured(X, Y, ARTISTS, permutations=39)[metric]["p"] - jitter.uniform(0, 1 / 40))
        if seed < 30:
            whole.append(measured(X, Y, LORAS, permutations=39)[metric]["p"])
    assert np.median(whole) < 0.1
    assert kstest(of_artists, "uniform").pvalue > 0.005


@pytest.mark.parametrize("metric", ["CKA", "RSA"])
def test_what_is_planted_in_artists_or_within_them_is_found_there(monkeypatch, metric):
    monkeypatch.setattr(module, "TESTS", 199)
    X, Y = painters(1, artists=12, shared=0.95)
    assert measured(X, Y, ARTISTS)[metric]["p"] == pytest.approx(1 / 200)
    assert measured(X, Y, WITHIN)[metric]["p"] > 0.02
    X, Y = painters(2, artists=12, common=0.9)
    row = measured(X, Y, WITHIN)[metric]
    assert row["p"] == pytest.approx(1 / 200) and row["null"] < row["null_high"] < row["low"] < row["value"]
    assert measured(X, Y, ARTISTS)[metric]["p"] > 0.02


def test_within_artists_only_loras_of_as_many_pictures_change_places(monkeypatch):
    orders, real = [], module._Arrangements.measure

    def recorded(self, p):
        orders.append(p.copy())
        return real(self, p)

    monkeypatch.setattr(module._Arrangements, "measure", recorded)
    artists = np.repeat(np.arange(6), 4)
    pictures = np.tile([5, 20, 5, 20], 6)
    loras = embedded(random())["lora"].to_pylist()
    measured(*half_alike(), sizes=dict(zip(loras, pictures.tolist(), strict=True)))
    orders = orders[1 + OPTIONS["permutations"] :]  # of all LoRAs, any of which may stand for any
    moved = [p for p in orders if len(p) == 24 and (p != np.arange(24)).any()]
    assert len(moved) >= 15
    for p in moved:
        assert sorted(p) == list(range(24))
        assert (artists[p] == artists).all() and (pictures[p] == pictures).all()
    assert {int(p[0]) for p in moved} == {0, 2}
    dealt = [p for p in orders if len(p) == 6 and (p != np.arange(6)).any()]
    assert {int(p[0]) for p in dealt} == set(range(6))  # any artist may stand for any


def test_loras_of_few_pictures_that_are_noisy_in_both_are_nothing_in_common(monkeypatch):
    """Taken for exchangeable with those of many pictures they would be: their distances are larger in both."""
    monkeypatch.setattr(module, "TESTS", 39)
    pictures = np.tile([4, 4, 4, 40, 40, 40], 6)
    sizes = {lora: int(n) for lora, n in zip(embedded(random(36), 6)["lora"].to_pylist(), pictures, strict=True)}
    jitter, known, ignored = np.random.default_rng(0), [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X, Y = rng.normal(size=(2, 36, 4)) * np.where(pictures == 4, 3.0, 0.5)[:, None]
        known.append(measured(X, Y, WITHIN, sizes, 6, permutations=1)["RSA"]["p"] - jitter.uniform(0, 1 / 40))
        if seed < 20:
            ignored.append(measured(X, Y, WITHIN, None, 6, permutations=1)["RSA"]["p"])
    assert max(ignored) <= 2 / 40 + 1e-9
    assert kstest(known, "uniform").pvalue > 0.005


def test_levels_of_which_too_little_is_there_have_no_rows():
    few = {"left": embedded(random(16)), "right": embedded(random(16, seed=1))}  # four artists
    assert {row["level"] for row in structure(few, {}, **OPTIONS)} == {LORAS, WITHIN}
    alone = {"left": embedded(random(12), each=1), "right": embedded(random(12, seed=1), each=1)}
    assert {row["level"] for row in structure(alone, {}, **OPTIONS)} == {LORAS, ARTISTS}
    different = {lora: n for n, lora in enumerate(embedded(random())["lora"].to_pylist())}
    spaces = {"left": embedded(random()), "right": embedded(random(seed=1))}
    assert {row["level"] for row in structure(spaces, different, **OPTIONS)} == {LORAS, ARTISTS}


def test_artists_and_what_is_within_them_are_tested_with_permutations_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "TESTS", 99)
    X = random()
    for level in (ARTISTS, WITHIN):
        for row in measured(X, turned(X), level, permutations=3).values():
            assert row["value"] == pytest.approx(1) and row["p"] == pytest.approx(1 / 100, abs=0.011)
