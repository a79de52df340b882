"""Clustering scores against scikit-learn, chance, and intervals against every resampling of a small case."""

from collections import Counter
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from sklearn import metrics as reference

from lora_atlas import tables
from lora_atlas.metrics import clustering as room
from lora_atlas.metrics.clustering import METRICS, clustering
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN

QUICK = {"bootstrap": 20, "level": 0.9, "restarts": 2, "permutations": 5, "seed": 0}
REFERENCE = {
    "ARI": reference.adjusted_rand_score,
    "AMI": reference.adjusted_mutual_info_score,
    "V-measure": reference.v_measure_score,
}


def embeddings(vectors, artists, genres=None, *, scenario: str = TOGETHER) -> pa.Table:
    rows = [
        {
            "scenario": scenario,
            "calibration": "none",
            "fold": 0,
            "lora": f"{artist}/{number:02d}",
            "artist": artist,
            "genre": None if genres is None else genres[number],
            "split": "gallery",
            "vector": vector,
        }
        for number, (vector, artist) in enumerate(zip(np.asarray(vectors, np.float32), artists, strict=True))
    ]
    return tables.table("embeddings", rows)


def scores(found: pa.Table, **changes) -> dict[tuple[str, str, str], dict]:
    rows = clustering(found, "delta", **QUICK | changes)
    tables.table("clustering", rows)  # every column, nothing else
    return {(row["level"], row["algorithm"], row["metric"]): row for row in rows}


def contingency(classes, clusters) -> np.ndarray:
    return reference.cluster.contingency_matrix(classes, clusters).astype(float)


def painters(count: int, loras: int, apart: float, seed: int = 0, dimensions: int = 6) -> tuple[np.ndarray, list[str]]:
    """Vectors of LoRAs around their artists' centres, and the artists."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(count), loras)
    vectors = apart * rng.normal(size=(count, dimensions))[who] + rng.normal(size=(len(who), dimensions))
    return vectors, [f"artist-{n:02d}" for n in who]


# --- scores of contingency tables

LABELINGS = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n) for _ in range(2)])
)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=60)
@given(LABELINGS)
def test_scores_of_random_labelings_are_scikit_learns(metric, labelings):
    expected = REFERENCE[metric](*labelings)
    assert METRICS[metric](contingency(*labelings)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "labelings",
    [
        ([0] * 6, [0] * 6),
        ([0] * 6, range(6)),
        (range(6), [0] * 6),
        (range(6), range(6)),
        ([0, 0, 1, 1], [1, 1, 0, 0]),
        ([0, 0, 1, 1], [0, 1, 0, 1]),
    ],
    ids=["one group", "one class", "one cluster", "all alone", "renamed", "crossed"],
)
def test_scores_at_the_limits_are_scikit_learns(metric, labelings):
    labelings = [list(labels) for labels in labelings]
    assert METRICS[metric](contingency(*labelings)) == pytest.approx(REFERENCE[metric](*labelings), abs=1e-9)


def test_scores_worked_by_hand():
    # Classes aaabbb, clusters 001111: of 15 pairs, 6 in classes, 1 + 6 in clusters, 1 + 3 in both; 6·7/15 by chance.
    table = np.array([[2.0, 1.0], [0.0, 3.0]])
    assert METRICS["ARI"](table) == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    h_class, h_cluster = np.log(2), -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    mutual = np.log(2) - (4 / 6) * (-(np.log(1 / 4) / 4 + 3 * np.log(3 / 4) / 4))  # H(class) − H(class | cluster)
    assert METRICS["V-measure"](table) == pytest.approx(2 * mutual / (h_class + h_cluster))


@pytest.mark.parametrize("metric", METRICS)
def test_a_stack_of_tables_is_scored_table_by_table(metric):
    stack = np.random.default_rng(0).integers(0, 5, (4, 3, 2, 5)).astype(float)
    found = METRICS[metric](stack)
    assert found.shape == (4, 3)
    for place in np.ndindex(4, 3):
        assert found[place] == pytest.approx(METRICS[metric](stack[place]), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(LABELINGS, st.randoms(use_true_random=False))
def test_names_of_groups_and_classes_nobody_has_change_nothing(metric, labelings, random):
    table = contingency(*labelings)
    rows, columns = list(range(len(table))), list(range(table.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    padded = np.pad(table[rows][:, columns], ((0, 2), (1, 0)))
    assert METRICS[metric](padded) == pytest.approx(METRICS[metric](table), abs=1e-12)
    assert METRICS[metric](table.T) == pytest.approx(METRICS[metric](table), abs=1e-12)


# --- silhouette and 1-NN


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 4), min_size=4, max_size=16).filter(lambda w: len(set(w)) > 1))
def test_silhouettes_are_scikit_learns_groups_of_one_too(seed, who):
    vectors = np.random.default_rng(seed).normal(size=(len(who), 3)).astype(np.float32)
    if len(set(who)) == len(who):
        who = who[:-1] + who[:1]
    found = scores(embeddings(vectors, [f"artist-{w}" for w in who]), permutations=1, restarts=1)
    expected = reference.silhouette_score(vectors.astype(float), who)
    assert found["artist", "labels", "silhouette"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["k-means", "Ward"])
def test_silhouettes_of_clusters_are_scikit_learns(algorithm):
    vectors, artists = painters(4, 5, apart=1.5, seed=3)
    row = scores(embeddings(vectors, artists))["artist", algorithm, "silhouette"]
    clusters = room.ALGORITHMS[algorithm](
        vectors.astype(np.float32).astype(float), 4, 2, room.derive_seed("clustering", algorithm, 0)
    )
    assert row["value"] == pytest.approx(reference.silhouette_score(vectors, clusters), abs=1e-5)
    assert row["chance"] is None


def one_nearest(vectors: np.ndarray, labels: list[str]) -> float:
    """Leave-one-out accuracy in whole numbers: the share of right ones among the nearest."""
    total = 0.0
    for i in range(len(labels)):
        square = {j: int(((vectors[i] - vectors[j]) ** 2).sum()) for j in range(len(labels)) if j != i}
        nearest = [j for j, d in square.items() if d == min(square.values())]
        total += sum(labels[j] == labels[i] for j in nearest) / len(nearest)
    return total / len(labels)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(6, 14))
def test_the_nearest_neighbour_is_right_as_counted_on_a_grid_full_of_ties(seed, count):
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([[[0, 0], [0, 1], [2, 2]], rng.integers(0, 3, (count - 3, 2))])
    artists = [f"artist-{n % 3}" for n in range(count)]
    row = scores(embeddings(vectors, artists), permutations=1, restarts=1)["artist", "labels", "1-NN"]
    assert row["value"] == pytest.approx(one_nearest(vectors, artists))


def test_ties_for_the_nearest_neighbour_are_shared():
    row = scores(embeddings([[0], [1], [2], [3]], ["ada", "ada", "bob", "bob"]))["artist", "labels", "1-NN"]
    assert row["value"] == 0.75  # the two in the middle are right by half
    # Every place is shared by two of each: one in three of those at distance zero is right, whatever the order.
    places, artists = [[0], [0], [0], [0], [9], [9], [9], [9]], ["ada", "ada", "bob", "bob"] * 2
    for order in (range(8), range(7, -1, -1), [0, 2, 4, 6, 1, 3, 5, 7]):
        shuffled = embeddings([places[i] for i in order], [artists[i] for i in order])
        assert scores(shuffled)["artist", "labels", "1-NN"]["value"] == pytest.approx(1 / 3)


# --- whole rows


def test_groups_that_lie_apart_are_found_at_both_levels():
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(6), 4)
    genres = [f"genre-{w % 2}" for w in who]
    # Genres lie 1000 apart, artists 30, LoRAs of one artist about 1.
    vectors = np.stack([1000.0 * (who % 2), 30.0 * who, np.zeros(24)], 1) + 0.3 * rng.normal(size=(24, 3))
    found = scores(embeddings(vectors, [f"artist-{w}" for w in who], genres))
    assert set(found) == {
        (level, algorithm, metric)
        for level in ("artist", "genre")
        for algorithm, metrics in (
            ("k-means", [*METRICS, "silhouette"]),
            ("Ward", [*METRICS, "silhouette"]),
            ("labels", ["silhouette", "1-NN"]),
        )
        for metric in metrics
    }
    for (_, _, metric), row in found.items():
        if metric == "silhouette":
            assert row["low"] <= row["value"] <= row["high"] < 1 and row["value"] > 0.9
        else:
            assert (row["value"], row["low"], row["high"]) == pytest.approx((1, 1, 1))


def test_genres_are_scored_only_where_every_lora_has_one_and_there_are_several():
    vectors, artists = painters(4, 3, apart=2)
    cases = {
        "several": ([f"genre-{int(a[-1]) % 2}" for a in artists], {"artist", "genre"}),
        "none": (None, {"artist"}),
        "one is missing": (["a"] * 6 + ["b"] * 5 + [None], {"artist"}),
        "all alike": (["a"] * 12, {"artist"}),
    }
    for name, (genres, expected) in cases.items():
        assert {level for level, _, _ in scores(embeddings(vectors, artists, genres))} == expected, name


def test_one_artist_or_one_lora_an_artist_gives_no_rows_and_no_error():
    vectors, _ = painters(4, 1, apart=2)
    assert scores(embeddings(vectors, ["ada"] * 4)) == {}
    assert scores(embeddings(vectors, ["ada", "bob", "cy", "dee"])) == {}


@pytest.mark.parametrize("scenario", [KNOWN, UNSEEN])
def test_vectors_of_other_scenarios_are_not_looked_at(scenario):
    vectors, artists = painters(4, 4, apart=1.5)
    alone, other = embeddings(vectors, artists), embeddings(vectors[::-1], artists, scenario=scenario)
    assert scores(pa.concat_tables([other, alone])) == scores(alone)
    with pytest.raises(ValueError, match="clip_training: no embeddings of scenario 'together'"):
        clustering(other, "clip_training", **QUICK)


def test_the_same_seed_gives_the_same_rows_and_another_seed_other_intervals():
    vectors, artists = painters(6, 4, apart=1)
    found = embeddings(vectors, artists)
    assert scores(found) == scores(found)
    # The silhouette of the true groups needs no clusters: only the draws can move its interval.
    one, other = (scores(found, seed=seed)["artist", "labels", "silhouette"] for seed in (0, 1))
    assert one["value"] == other["value"] and one["low"] != other["low"]


# --- chance


def test_chance_is_near_zero_for_adjusted_scores_and_not_for_v_measure():
    vectors, artists = painters(6, 5, apart=2, seed=1)
    found = scores(embeddings(vectors, artists), permutations=200)
    for algorithm in ("k-means", "Ward"):
        assert found["artist", algorithm, "ARI"]["value"] > 0.4
        assert abs(found["artist", algorithm, "ARI"]["chance"]) < 0.015
        assert abs(found["artist", algorithm, "AMI"]["chance"]) < 0.03
        assert found["artist", algorithm, "V-measure"]["chance"] > 0.2


def test_chance_is_what_scikit_learn_gives_for_shuffled_artists():
    vectors, artists = painters(4, 4, apart=1.5, seed=2)
    found = scores(embeddings(vectors, artists), permutations=400)
    who = np.unique(artists, return_inverse=True)[1]
    clusters = room.ALGORITHMS["Ward"](vectors.astype(np.float32), 4, 1, 0)
    rng = np.random.default_rng(5)
    shuffled = [rng.permutation(who) for _ in range(400)]
    v = np.mean([reference.v_measure_score(labels, clusters) for labels in shuffled])
    assert found["artist", "Ward", "V-measure"]["chance"] == pytest.approx(v, abs=0.03)
    width = np.mean([reference.silhouette_score(vectors, labels) for labels in shuffled])
    assert found["artist", "labels", "silhouette"]["chance"] == pytest.approx(width, abs=0.03)
    close = np.argsort(((vectors[:, None] - vectors) ** 2).sum(-1), 1)[:, 1]
    luck = np.mean([(labels == labels[close]).mean() for labels in shuffled])
    assert found["artist", "labels", "1-NN"]["chance"] == pytest.approx(luck, abs=0.02) and luck < 0.25


# --- intervals


def resamplings(artists: int) -> dict[tuple[int, ...], float]:
    """Every way to draw as many artists with replacement, and its probability."""
    drawn = Counter(tuple(sorted(draw)) for draw in product(range(artists), repeat=artists))
    return {draw: count / artists**artists for draw, count in drawn.items()}


def steps(every: dict[tuple[int, ...], float]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct scores of all resamplings, ascending, and the probability of each score or a lower one."""
    draws = resamplings(max(map(len, every)))
    values, place = np.unique(np.round(list(every.values()), 9), return_inverse=True)
    return values, np.cumsum(np.bincount(place, [draws[draw] for draw in every]))


@pytest.mark.parametrize("metric", ["silhouette", "1-NN"])
def test_intervals_of_means_resample_artists_and_an_artist_drawn_twice_counts_twice(metric):
    # Three artists of 2, 3 and 5 LoRAs; some lie with their neighbours. All 27 resamplings are scored
    # on LoRAs written out as often as their artist was drawn.
    places = [0, 9] + [10.2, 11.5, 24] + [10.6, 20, 21.1, 22.5, 25.2]
    vectors = np.array(places, np.float32)[:, None]
    artists = ["ada"] * 2 + ["bob"] * 3 + ["cy"] * 5
    who = np.unique(artists, return_inverse=True)[1]
    widths = reference.silhouette_samples(vectors, who)
    right = who[np.argsort(abs(vectors - vectors.T), 1)[:, 1]] == who

    def score(draw: tuple[int, ...]) -> float:
        chosen = np.concatenate([np.flatnonzero(who == artist) for artist in draw])
        return float((widths if metric == "silhouette" else right)[chosen].mean())

    values, reached = steps({draw: score(draw) for draw in resamplings(3)})
    # A level whose quantiles lie well within a step: thousands of random draws then find the same score.
    tails = np.linspace(0.02, 0.4, 77)
    tail = max(tails, key=lambda q: min(abs(reached[:-1] - q).min(), abs(reached[:-1] - 1 + q).min()))
    assert min(abs(reached[:-1] - tail).min(), abs(reached[:-1] - 1 + tail).min()) > 0.02
    low, high = values[np.searchsorted(reached, [tail, 1 - tail])]

    row = scores(embeddings(vectors, artists), bootstrap=3000, level=1 - 2 * tail)["artist", "labels", metric]
    assert row["value"] == pytest.approx(score((0, 1, 2)), abs=1e-6)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-6) and low < high


def test_intervals_at_genre_level_resample_artists_too():
    # One of eight artists lies with the other genre, with all of its LoRAs: a third of the resamplings leave it out
    # and score 1. Resampling LoRAs would leave out all ten of them about never.
    who = np.repeat(np.arange(8), 10)
    genres = [f"genre-{w % 2}" for w in who]
    vectors = 1000.0 * np.where(who == 0, 1, who % 2) + np.random.default_rng(0).normal(size=80)
    found = scores(embeddings(vectors[:, None], [f"artist-{w}" for w in who], genres), bootstrap=300)
    row = found["genre", "Ward", "ARI"]
    assert row["value"] == pytest.approx(reference.adjusted_rand_score(genres, vectors > 500))
    assert row["low"] < row["value"] < 0.7 and row["high"] == pytest.approx(1)


@pytest.mark.parametrize("apart", [0, 1, 3])
def test_intervals_of_the_true_groups_hold_their_value(apart):
    for seed in range(5):
        vectors, artists = painters(10, 4, apart, seed)
        found = scores(embeddings(vectors, artists), bootstrap=200, permutations=1, restarts=1)
        for metric in ("silhouette", "1-NN"):
            row = found["artist", "labels", metric]
            assert row["low"] <= row["value"] <= row["high"]


def test_a_higher_level_gives_a_wider_interval():
    vectors, artists = painters(8, 4, apart=1)
    found = embeddings(vectors, artists)
    wide, narrow = (scores(found, level=level, bootstrap=200) for level in (0.95, 0.5))
    for key, row in narrow.items():
        assert wide[key]["low"] <= row["low"] <= row["high"] <= wide[key]["high"]
        assert wide[key]["value"] == row["value"] and wide[key]["chance"] == row["chance"]


def test_hundreds_of_loras_are_scored_without_a_warning():
    labels = np.random.default_rng(0).integers(0, 12, (2, 300))
    counts = np.zeros((12, 12))
    np.add.at(counts, tuple(labels), 1)
    assert METRICS["AMI"](counts) == pytest.approx(reference.adjusted_mutual_info_score(*labels), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("apart", [0, 1, 2])
def test_intervals_hold_their_value(apart, metric):
    held = []
    for seed in range(12):
        vectors, artists = painters(12, 6, apart, seed)
        for row in clustering(
            embeddings(vectors, artists), "d", bootstrap=200, level=0.95, restarts=1, permutations=2, seed=0
        ):
            if row["metric"] == metric:
                held.append(row["low"] <= row["value"] <= row["high"])
    assert np.mean(held) > 0.9


@pytest.mark.parametrize("row", [("Ward", "ARI"), ("Ward", "V-measure"), ("labels", "1-NN"), ("labels", "silhouette")])
def test_genres_drawn_by_lot_score_at_chance(row):
    values = []
    for seed in range(20):
        vectors, artists = painters(12, 6, 3, seed)  # artists tell apart, and genres mean nothing
        genres = [f"genre-{int(a[-2:]) % 4}" for a in artists]
        for found in clustering(
            embeddings(vectors, artists, genres), "d",
            bootstrap=20, level=0.9, restarts=1, permutations=100, seed=seed,
        ):  # fmt: skip
            if (found["level"], found["algorithm"], found["metric"]) == ("genre", *row):
                values.append((found["value"], found["chance"]))
    value, chance = np.mean(values, axis=0)
    assert value == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_of_clusterings_are_a_jackknife_over_artists(metric):
    score = REFERENCE[metric]
    vectors, artists = painters(7, 4, 1, 0)
    who = np.array(artists)
    clusters = room.ALGORITHMS["Ward"](vectors.astype(np.float32).astype(float), 7, 1, 0)
    without = np.array([score(who[who != a], clusters[who != a]) for a in sorted(set(artists))])
    width = t.ppf(0.95, 6) * np.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum())
    (row,) = (
        row
        for row in clustering(
            embeddings(vectors, artists), "d", bootstrap=20, level=0.9, restarts=1, permutations=2, seed=0
        )
        if (row["algorithm"], row["metric"]) == ("Ward", metric)
    )
    value = score(who, clusters)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((value, value - width, min(value + width, 1)))
