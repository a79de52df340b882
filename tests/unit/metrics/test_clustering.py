"""Clustering scores against scikit-learn, chance, and intervals against artists left out one at a time."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.cluster import kmeans_plusplus

from lora_atlas import tables
from lora_atlas.metrics import BEST_CONTROL, intervals, partitions
from lora_atlas.metrics.clustering import WITHIN, clustering, clusterings
from lora_atlas.metrics.labels import _first, majority, probe
from lora_atlas.metrics.partitions import METRICS
from lora_atlas.seeds import derive_seed
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN

QUICK = {"confidence": 0.9, "restarts": 2, "permutations": 5, "seed": 0}
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


def scores(found: pa.Table, scenario: str = TOGETHER, **changes) -> dict[tuple[str, str, str], dict]:
    rows = clustering(found, "delta", **QUICK | changes)
    tables.table("clustering", rows)  # every column, nothing else
    assert len({(row["scenario"], row["level"], row["algorithm"], row["metric"]) for row in rows}) == len(rows)
    return {(row["level"], row["algorithm"], row["metric"]): row for row in rows if row["scenario"] == scenario}


def left_out(score, artists, bounds: tuple[float, float] = intervals.DIFFERENCE, level: float = 0.9):
    """Value, low and high of `score`, a function of a mask of LoRAs, leaving one artist out at a time."""
    who = np.array(artists)
    without = np.array([score(who != artist) for artist in sorted(set(artists))])
    value = score(np.ones(len(who), bool))
    return value, *intervals.jackknife(value, without, bounds).interval(level)


def contingency(classes, clusters) -> np.ndarray:
    return reference.cluster.contingency_matrix(classes, clusters).astype(float)


def scored(metric: str, tables: np.ndarray) -> np.ndarray:
    """A metric of contingency tables (..., classes, clusters)."""
    found = METRICS[metric](partitions.Crossed.of_tables(tables.reshape(-1, *tables.shape[-2:])))
    return found.reshape(tables.shape[:-2])


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
    assert scored(metric, contingency(*labelings)) == pytest.approx(expected, abs=1e-9)


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
    assert scored(metric, contingency(*labelings)) == pytest.approx(REFERENCE[metric](*labelings), abs=1e-9)


def test_scores_worked_by_hand():
    # Classes aaabbb, clusters 001111: of 15 pairs, 6 in classes, 1 + 6 in clusters, 1 + 3 in both; 6·7/15 by chance.
    table = np.array([[2.0, 1.0], [0.0, 3.0]])
    assert scored("ARI", table) == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    h_class, h_cluster = np.log(2), -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    mutual = np.log(2) - (4 / 6) * (-(np.log(1 / 4) / 4 + 3 * np.log(3 / 4) / 4))  # H(class) − H(class | cluster)
    assert scored("V-measure", table) == pytest.approx(2 * mutual / (h_class + h_cluster))


@pytest.mark.parametrize("metric", METRICS)
def test_a_stack_of_tables_is_scored_table_by_table(metric):
    stack = np.random.default_rng(0).integers(0, 5, (4, 3, 2, 5)).astype(float)
    found = scored(metric, stack)
    assert found.shape == (4, 3)
    for place in np.ndindex(4, 3):
        assert found[place] == pytest.approx(scored(metric, stack[place]), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, max_examples=25)
@given(LABELINGS, st.randoms(use_true_random=False))
def test_names_of_groups_and_classes_nobody_has_change_nothing(metric, labelings, random):
    table = contingency(*labelings)
    rows, columns = list(range(len(table))), list(range(table.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    padded = np.pad(table[rows][:, columns], ((0, 2), (1, 0)))
    assert scored(metric, padded) == pytest.approx(scored(metric, table), abs=1e-12)
    assert scored(metric, table.T) == pytest.approx(scored(metric, table), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12), st.booleans())
def test_labels_and_their_contingency_tables_are_scored_alike(seed, pairs, loras, leave):
    """One labelling against several, several against one, of all LoRAs or of some: to the last bit."""
    rng = np.random.default_rng(seed)
    labels, clusters = rng.integers(0, 4, (pairs, loras)), rng.integers(0, 6, loras)
    kept = rng.random((pairs, loras)) < 0.7 if leave else np.ones((pairs, loras), bool)
    kept[:, 0] = True
    tables = np.zeros((pairs, 4, 6))
    for pair, row in enumerate(kept):
        np.add.at(tables[pair], (labels[pair][row], clusters[row]), 1)
    found = partitions.Crossed.of_labels(labels, clusters, 4, 6, kept if leave else None)
    dense = partitions.Crossed.of_tables(tables)
    for name in ("classes", "clusters", "of", "count"):
        assert np.array_equal(getattr(found, name), getattr(dense, name)), name
    for metric, values in found.agreements().items():
        assert [*values] == [scored(metric, each) for each in tables]


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
    clusters = partitions.ALGORITHMS[algorithm](
        partitions.Points(vectors.astype(np.float32).astype(float)), 4, 2, derive_seed("clustering", algorithm, 0)
    )
    assert row["value"] == pytest.approx(reference.silhouette_score(vectors, clusters), abs=1e-5)
    assert row["chance"] is None


@pytest.mark.parametrize("seed", range(3))
def test_first_centres_of_k_means_are_scikit_learns(seed):
    X = np.random.default_rng(seed).normal(size=(40, 60))
    _, expected = kmeans_plusplus(X, 9, random_state=np.random.RandomState(seed))
    found = partitions.Points(X).spread_out(X, 9, np.random.RandomState(seed))
    np.testing.assert_array_equal(found, X[expected])


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_of_equals_are_random_and_others_are_the_nearest(tied):
    distance = np.repeat([[3.0, 1.0, 2.0 if tied else 1.5, 2.0, np.inf]], 400, 0)
    found = np.sort(_first(distance, 2, np.random.default_rng(0)), 1)
    assert (found[:, 0] == 1).all()
    shares = np.bincount(found[:, 1], minlength=5) / len(found)
    np.testing.assert_allclose(shares, [0, 0, 0.5, 0.5, 0] if tied else [0, 0, 1, 0, 0], atol=0.1)


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
            ("k-means, K estimated", [*METRICS, "silhouette", "K"]),
            ("Ward, K estimated", [*METRICS, "silhouette", "K"]),
            ("HDBSCAN", [*METRICS, "silhouette", "K"]),
            ("labels", ["silhouette", "1-NN", "5-NN"]),
        )
        for metric in metrics
    } | {("genre", "labels", "linear probe")} | {
        (WITHIN, algorithm, metric) for algorithm in ("k-means", "Ward") for metric in METRICS
    } | {(WITHIN, "labels", "1-NN")}  # fmt: skip
    for (level, algorithm, metric), row in found.items():
        if metric == "K":
            assert (row["low"], row["high"], row["chance"]) == (None, None, None)
            assert row["value"] == 6 or algorithm == "HDBSCAN"  # artists are tight: six groups are the widest apart
        elif ("estimated" in algorithm and level == "genre") or algorithm == "HDBSCAN":
            continue
        elif metric == "linear probe":  # of artists that it never saw, beyond all that it saw
            assert row["value"] > 0.9
        elif metric == "silhouette":
            assert row["low"] <= row["value"] <= row["high"] < 1 and row["value"] > 0.9
        else:  # of an artist's four LoRAs three are neighbours, and most of five
            assert (row["value"], row["low"], row["high"]) == pytest.approx((1, 1, 1)), (level, algorithm, metric)


def test_genres_are_scored_only_where_every_lora_has_one_and_there_are_several():
    vectors, artists = painters(4, 3, apart=2)
    cases = {
        "several": ([f"genre-{int(a[-1]) % 2}" for a in artists], {"artist", "genre", WITHIN}),
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
    assert scores(embeddings(vectors[:1], ["ada"])) == {}
    assert scores(embeddings(vectors[:2], ["ada", "bob"])) == {}


@pytest.mark.parametrize("scenario", [KNOWN, UNSEEN, WHOLE_UNSEEN])
def test_vectors_of_other_scenarios_are_not_looked_at(scenario):
    vectors, artists = painters(4, 4, apart=1.5)
    alone, other = embeddings(vectors, artists), embeddings(vectors[::-1], artists, scenario=scenario)
    assert scores(pa.concat_tables([other, alone])) == scores(alone)
    with pytest.raises(ValueError, match="clip_training: no embeddings of scenario 'together'"):
        clustering(other, "clip_training", **QUICK)


def test_the_same_seed_gives_the_same_rows_and_another_seed_another_chance():
    vectors, artists = painters(6, 4, apart=1)
    found = embeddings(vectors, artists)
    assert scores(found) == scores(found)
    # The silhouette of the true groups needs no clusters: only what is permuted for its chance depends on the seed.
    one, other = (scores(found, seed=seed)["artist", "labels", "silhouette"] for seed in (0, 1))
    assert one["chance"] != other["chance"]
    assert one | {"chance": None} == other | {"chance": None}


def test_loras_without_a_basis_are_clustered_too_as_if_they_were_alone():
    vectors, artists = painters(5, 4, apart=1.2, seed=1)
    genres = [f"genre-{int(a[-1]) % 2}" for a in artists]
    one = embeddings(vectors, artists, genres)
    other = embeddings(vectors[::-1] * 2, artists, genres)
    whole = embeddings(vectors[::-1] * 2, artists, genres, scenario=WHOLE)
    rows = clustering(pa.concat_tables([whole, one]), "delta", **QUICK)
    assert [row["scenario"] for row in rows] == [TOGETHER] * (len(rows) // 2) + [WHOLE] * (len(rows) // 2)
    assert scores(pa.concat_tables([whole, one])) == scores(one)
    found, expected = scores(pa.concat_tables([whole, one]), WHOLE), scores(other)
    assert found == {key: row | {"scenario": WHOLE} for key, row in expected.items()} != {}


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
    clusters = partitions.ALGORITHMS["Ward"](partitions.Points(vectors.astype(np.float32)), 4, 1, 0)
    rng = np.random.default_rng(5)
    shuffled = [rng.permutation(who) for _ in range(400)]
    v = np.mean([reference.v_measure_score(labels, clusters) for labels in shuffled])
    assert found["artist", "Ward", "V-measure"]["chance"] == pytest.approx(v, abs=0.03)
    width = np.mean([reference.silhouette_score(vectors, labels) for labels in shuffled])
    assert found["artist", "labels", "silhouette"]["chance"] == pytest.approx(width, abs=0.03)
    close = np.argsort(((vectors[:, None] - vectors) ** 2).sum(-1), 1)[:, 1]
    chance_level = np.mean([(labels == labels[close]).mean() for labels in shuffled])
    assert found["artist", "labels", "1-NN"]["chance"] == pytest.approx(chance_level, abs=0.02) and chance_level < 0.25


# --- intervals


@pytest.mark.parametrize("metric", ["silhouette", "1-NN"])
def test_intervals_of_means_leave_out_an_artist_with_all_its_loras(metric):
    # Three artists of 2, 3 and 5 LoRAs; some lie with their neighbours.
    places = [0, 9] + [10.2, 11.5, 24] + [10.6, 20, 21.1, 22.5, 25.2]
    vectors = np.array(places, np.float32)[:, None]
    artists = ["ada"] * 2 + ["bob"] * 3 + ["cy"] * 5
    who = np.unique(artists, return_inverse=True)[1]
    widths = reference.silhouette_samples(vectors, who)
    right = who[np.argsort(abs(vectors - vectors.T), 1)[:, 1]] == who
    values, bounds = (widths, intervals.DIFFERENCE) if metric == "silhouette" else (right, intervals.SCORE)
    expected = left_out(lambda kept: float(values[kept].mean()), artists, bounds)
    row = scores(embeddings(vectors, artists))["artist", "labels", metric]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(expected, abs=1e-6) and row["low"] < row["high"]


def test_intervals_at_genre_level_leave_out_artists_too():
    # One of eight artists lies with the other genre, with all of its LoRAs. Leaving out LoRAs, any of eighty, would
    # make an interval of a third of the width at most.
    who = np.repeat(np.arange(8), 10)
    genres, artists = [f"genre-{w % 2}" for w in who], [f"artist-{w}" for w in who]
    vectors = 1000.0 * np.where(who == 0, 1, who % 2) + np.random.default_rng(0).normal(size=80)
    row = scores(embeddings(vectors[:, None], artists, genres))["genre", "Ward", "ARI"]
    there = np.array(genres)
    expected = left_out(lambda kept: reference.adjusted_rand_score(there[kept], vectors[kept] > 500), artists)
    assert (row["value"], row["low"], row["high"]) == pytest.approx(expected)
    assert row["low"] < row["value"] - 0.3


@pytest.mark.parametrize("apart", [0, 1, 3])
def test_intervals_of_the_true_groups_hold_their_value(apart):
    for seed in range(5):
        vectors, artists = painters(10, 4, apart, seed)
        found = scores(embeddings(vectors, artists), permutations=1, restarts=1)
        for metric in ("silhouette", "1-NN"):
            row = found["artist", "labels", metric]
            assert row["low"] <= row["value"] <= row["high"]


def test_a_higher_level_gives_a_wider_interval():
    vectors, artists = painters(8, 4, apart=1)
    found = embeddings(vectors, artists)
    wide, narrow = (scores(found, confidence=level) for level in (0.95, 0.5))
    for key, row in narrow.items():
        if key[2] == "K":
            continue
        assert wide[key]["low"] <= row["low"] <= row["high"] <= wide[key]["high"]
        assert wide[key]["value"] == row["value"] and wide[key]["chance"] == row["chance"]


def test_hundreds_of_loras_are_scored_without_a_warning():
    labels = np.random.default_rng(0).integers(0, 12, (2, 300))
    counts = np.zeros((12, 12))
    np.add.at(counts, tuple(labels), 1)
    assert scored("AMI", counts) == pytest.approx(reference.adjusted_mutual_info_score(*labels), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("apart", [0, 1, 2])
def test_intervals_hold_their_value(apart, metric):
    held = []
    for seed in range(12):
        vectors, artists = painters(12, 6, apart, seed)
        for row in clustering(embeddings(vectors, artists), "d", confidence=0.95, restarts=1, permutations=2, seed=0):
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
            confidence=0.9, restarts=1, permutations=100, seed=seed,
        ):  # fmt: skip
            if (found["level"], found["algorithm"], found["metric"]) == ("genre", *row):
                values.append((found["value"], found["chance"]))
    value, chance = np.mean(values, axis=0)
    assert value == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_of_clusterings_are_a_jackknife_over_artists(metric):
    vectors, artists = painters(7, 4, 1, 0)
    who = np.array(artists)
    clusters = partitions.ALGORITHMS["Ward"](partitions.Points(vectors.astype(np.float32).astype(float)), 7, 1, 0)
    expected = left_out(lambda kept: REFERENCE[metric](who[kept], clusters[kept]), artists)
    row = scores(embeddings(vectors, artists))["artist", "Ward", metric]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(expected)


# --- groups that nobody counted


def test_the_number_of_groups_is_found_where_they_lie_apart():
    for count in (2, 3, 5, 8):
        vectors, artists = painters(count, 6, apart=30, seed=count)
        found = scores(embeddings(vectors, artists))
        for algorithm in ("Ward, K estimated", "k-means, K estimated"):
            assert found["artist", algorithm, "K"]["value"] == count
            assert found["artist", algorithm, "ARI"]["value"] == pytest.approx(1)


@pytest.mark.parametrize("apart", [0, 2, 30])
def test_the_number_of_groups_is_that_of_the_widest_silhouette_of_all_cuts(apart):
    points = partitions.Points(
        np.append(painters(6, 7, apart=apart, seed=3)[0], np.zeros((3, 6)), 0)
    )  # three are alike
    width = {}
    for k in range(2, len(points.X) // 2 + 1):
        labels = points.cut(k)
        width[k] = reference.silhouette_score(points.X, labels)
        near = partitions._added(points.distances, labels)
        assert partitions._widths(near, labels).mean() == pytest.approx(width[k])
    assert partitions.estimated_groups(points) == max(width, key=width.__getitem__)


@pytest.mark.parametrize("adjusted", [None, 0, 3, 9])
def test_all_agreements_at_once_are_those_one_by_one(adjusted):
    stack = np.random.default_rng(1).integers(0, 4, (7, 5, 6)).astype(float)
    found = partitions.Crossed.of_tables(stack).agreements(adjusted)
    assert list(found) == list(METRICS)
    for metric, values in found.items():
        of = stack[:adjusted] if metric == "AMI" else stack
        assert [*values] == [scored(metric, each) for each in of]


def test_noise_is_a_group_of_its_own_for_every_lora_of_it():
    rng = np.random.default_rng(0)
    tight = [centre + 0.01 * rng.normal(size=(5, 2)) for centre in ([0, 0], [9, 0], [0, 9])]
    far = np.array([[40.0, 40], [-50, 20], [30, -60]])
    clusters = partitions.hdbscan(np.concatenate([*tight, far]))
    assert sorted(np.bincount(clusters)) == [1, 1, 1, 5, 5, 5]
    assert len(set(clusters[15:])) == 3


def test_groups_of_hdbscan_are_scored_against_artists_noise_and_all():
    vectors, artists = painters(4, 6, apart=3, seed=5)
    vectors = vectors.astype(np.float32)
    row = scores(embeddings(vectors, artists))["artist", "HDBSCAN", "ARI"]
    expected = reference.adjusted_rand_score(artists, partitions.hdbscan(vectors.astype(float)))
    assert row["value"] == pytest.approx(expected)


# --- artists within a genre


def test_artists_in_a_genre_are_scored_genre_by_genre():
    # One genre's two artists lie apart; the other's two share both places. Whole numbers: ties are ties.
    places = {"a": [0, 10, 5], "b": [500, 510, 505], "c": [0, 900, 1, 901], "d": [2, 902, 3, 903]}
    artists = [artist for artist, xs in places.items() for _ in xs]
    genres = ["one" if artist in "ab" else "two" for artist in artists]
    vectors = np.array([[x] for xs in places.values() for x in xs])
    found = scores(embeddings(vectors, artists, genres))
    who = np.array(artists)
    two = reference.adjusted_rand_score(who[6:], (vectors[6:, 0] > 450).astype(int))
    assert found[WITHIN, "Ward", "ARI"]["value"] == pytest.approx((6 * 1 + 8 * two) / 14)
    # Nearest: all of the first genre. Of c c d d in a row the outer ones are right, the inner ones by half; twice.
    assert found[WITHIN, "labels", "1-NN"]["value"] == pytest.approx((6 + 2 * (1 + 0.5 + 0.5 + 1)) / 14)
    chance = (6 * (3 * 2 + 3 * 2) / (6 * 5) + 8 * (4 * 3 + 4 * 3) / (8 * 7)) / 14
    assert found[WITHIN, "labels", "1-NN"]["chance"] == pytest.approx(chance)


def test_intervals_within_genres_leave_out_artists_and_genres_of_which_one_artist_is_left():
    vectors, _ = painters(5, 4, apart=1, seed=2)
    who = np.array(["a"] * 2 + ["b"] * 5 + ["c"] * 4 + ["d"] * 3 + ["e"] * 6)
    genres = np.where(who < "c", "one", "two")
    vectors = vectors.astype(np.float32).astype(float)
    clusters = np.zeros(20, int)
    for genre, artists in (("one", 2), ("two", 3)):
        rows = genres == genre
        clusters[rows] = partitions.ALGORITHMS["Ward"](partitions.Points(vectors[rows]), artists, 1, 0)

    def score(kept: np.ndarray) -> float:
        parts = [kept & (genres == genre) for genre in ("one", "two")]
        parts = [part for part in parts if len(set(who[part])) > 1]
        values = [reference.adjusted_rand_score(who[part], clusters[part]) for part in parts]
        return np.average(values, weights=[part.sum() for part in parts])

    assert len({score(who != a) for a in "abcde"}) > 2
    row = scores(embeddings(vectors, list(who), list(genres)))[WITHIN, "Ward", "ARI"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(left_out(score, list(who)))


# --- neighbours by majority, and the probe


def test_five_neighbours_vote_as_scikit_learns_do():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    vectors, artists = painters(2, 12, apart=0.8, seed=4)  # of two artists and five votes none can tie
    expected = cross_val_score(KNeighborsClassifier(5), vectors.astype(np.float32), artists, cv=LeaveOneOut()).mean()
    assert scores(embeddings(vectors, artists))["artist", "labels", "5-NN"]["value"] == pytest.approx(expected)


def test_votes_that_tie_share_one_and_chance_is_that_of_the_labels_dealt():
    # On a line at 0, 1, 3, 7, 15 the two nearest of each are (1, 2), (0, 2), (1, 0), (2, 1), (3, 2).
    D = abs(np.subtract.outer(*[np.array([0.0, 1, 3, 7, 15])] * 2))
    who, permuted = np.array([0, 0, 1, 1, 1]), np.array([[0, 0, 1, 1, 1], [0, 1, 0, 1, 1]])
    found, chance_level = majority(D, who, np.arange(5), 2, permuted, np.random.default_rng(0))
    assert list(found) == [0.5, 0.5, 0, 0.5, 1]
    assert chance_level == pytest.approx((2.5 + (0.5 + 0 + 0.5 + 0.5 + 0.5)) / 10)


def with_queries(vectors, artists, genres=None, calibration: str = "crossfit") -> pa.Table:
    """Scenarios together and known artist; every fourth LoRA is a query."""
    parts = []
    for scenario in (TOGETHER, KNOWN):
        rows = embeddings(vectors, artists, genres, scenario=scenario).to_pylist()
        for number, row in enumerate(rows):
            row |= {"split": "query" if number % 4 == 3 else "gallery"}
            row |= {"calibration": calibration if scenario == KNOWN else "none"}
        parts.append(tables.table("embeddings", rows))
    return pa.concat_tables(parts)


def probed(vectors, artists) -> float:
    """Accuracy of scikit-learn's logistic regression on every fourth LoRA, learnt from the others."""
    from sklearn.linear_model import LogisticRegression

    X, who, query = vectors.astype(np.float32), np.array(artists), np.arange(len(vectors)) % 4 == 3
    X = X - X[~query].mean(0)
    X = X / np.sqrt(np.square(X[~query]).sum(1).mean())
    model = LogisticRegression(C=100, max_iter=5000).fit(X[~query], who[~query])
    return (model.predict(X[query]) == who[query]).mean()


@pytest.mark.parametrize("cosine", [0.99, 0.9, 0.6, 0.3])
def test_the_probe_tells_groups_apart_that_every_neighbour_tells_apart(cosine):
    """As many coordinates as LoRAs, as without a basis: 12 artists of 4 gallery LoRAs and 2 queries. Divided each by
    its own spread they were at chance, .08, where the nearest neighbour was always right."""
    rng, who = np.random.default_rng(0), np.repeat(np.arange(12), 6)
    X = np.sqrt(cosine) * rng.normal(size=(12, 5000))[who] + np.sqrt(1 - cosine) * rng.normal(size=(72, 5000))
    K = X @ X.T
    d = np.sqrt(np.diag(K))
    values, vectors = np.linalg.eigh(K / np.outer(d, d))
    gallery = np.tile([True] * 4 + [False] * 2, 12)
    right, chance = probe(vectors * np.sqrt(values.clip(0)), who, [(gallery, ~gallery)])
    assert np.nanmean(right) == 1 and chance == pytest.approx(1 / 12)


def test_the_probe_learns_from_the_gallery_and_is_asked_about_queries():
    vectors, artists = painters(5, 8, apart=1.2, seed=6)
    found = scores(with_queries(vectors, artists), calibration="crossfit")["artist", "labels", "linear probe"]
    assert found["value"] == pytest.approx(probed(vectors, artists)) and found["chance"] == pytest.approx(0.2)


def test_the_probe_without_a_basis_is_asked_about_queries_without_one():
    (vectors, artists), (other, _) = painters(5, 8, apart=1.2, seed=6), painters(5, 8, apart=0.4, seed=7)
    whole = [row | {"scenario": WHOLE} for row in with_queries(other, artists).to_pylist()[:40]]
    for row, number in zip(whole, range(40), strict=True):
        row["split"] = "query" if number % 4 == 3 else "gallery"
    found = scores(
        pa.concat_tables([with_queries(vectors, artists), tables.table("embeddings", whole)]), WHOLE,
        calibration="crossfit",
    )  # fmt: skip
    assert probed(other, artists) != probed(vectors, artists)
    assert found["artist", "labels", "linear probe"]["value"] == pytest.approx(probed(other, artists))


def test_the_probe_of_genres_never_saw_the_artists_that_it_is_asked_about():
    """Artists lie apart and genres mean nothing: whoever knows an artist knows its genre, and nobody does."""
    values = []
    for seed in range(10):
        vectors, artists = painters(12, 6, apart=5, seed=seed, dimensions=16)
        genres = [f"genre-{int(a[-2:]) % 2}" for a in artists]
        row = scores(embeddings(vectors, artists, genres), permutations=1, restarts=1, seed=seed)
        values.append(row["genre", "labels", "linear probe"]["value"])
    assert np.mean(values) < 0.7


# --- differences


KINDS = {"delta": "weights", "clip": "training pictures", "norm": "control", "colour": "control"}


@pytest.fixture(scope="module")
def several():
    apart = {"delta": 1.5, "clip": 1.2, "norm": 0.3, "colour": 0.5}
    tables_of = {name: embeddings(*painters(8, 5, a, seed=i)) for i, (name, a) in enumerate(apart.items())}
    rows, differences = clusterings(tables_of, KINDS, **QUICK | {"confidence": 0.9})
    tables.table("clustering", rows)
    tables.table("differences", differences)
    return tables_of, rows, {(r["algorithm"], r["metric"], r["left"], r["right"]): r for r in differences}


def estimates(tables_of, left: str, others: list[str], metric: str = "ARI") -> list[intervals.Estimate]:
    """Differences of one descriptor and each of others in Ward's ARI or in 1-NN, the same artist left out of both."""
    without, values = {}, {}
    for name in (left, *others):
        X, who = (np.array(tables_of[name][column].to_pylist()) for column in ("vector", "artist"))
        clusters = partitions.ALGORITHMS["Ward"](partitions.Points(X), 8, 1, 0)
        D = ((X[:, None] - X) ** 2).sum(-1) + np.diag([np.inf] * len(X))
        right = who[D.argmin(1)] == who

        def score(kept, who=who, clusters=clusters, right=right) -> float:
            return reference.adjusted_rand_score(who[kept], clusters[kept]) if metric == "ARI" else right[kept].mean()

        values[name] = score(who != "")
        without[name] = np.array([score(who != artist) for artist in sorted(set(who))])
    return [
        intervals.jackknife(values[left] - values[name], without[left] - without[name], intervals.DIFFERENCE)
        for name in others
    ]


ASKED = [("Ward", "ARI"), ("labels", "1-NN")]


@pytest.mark.parametrize(("algorithm", "metric"), ASKED)
def test_a_difference_is_jackknifed_with_the_same_artist_left_out_of_both(several, algorithm, metric):
    tables_of, _, found = several
    (expected,) = estimates(tables_of, "delta", ["clip"], metric)
    row = found[algorithm, metric, "delta", "clip"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((expected.value, *expected.interval(0.9)))


@pytest.mark.parametrize(("algorithm", "metric"), ASKED)
def test_a_margin_over_the_best_control_is_that_over_every_control(several, algorithm, metric):
    """The controls are as good as each other: neither is taken for the best."""
    tables_of = several[0] | {
        "norm": embeddings(*painters(8, 5, 0.5, seed=8)),
        "colour": embeddings(*painters(8, 5, 0.5, seed=9)),
    }
    differences = clusterings(tables_of, KINDS, **QUICK)[1]
    both = estimates(tables_of, "delta", ["norm", "colour"], metric)
    (row,) = (
        row
        for row in differences
        if (row["algorithm"], row["metric"], row["left"], row["right"]) == (algorithm, metric, "delta", BEST_CONTROL)
    )
    low = min(one.interval(0.9)[0] for one in both)
    high = max(min(one.interval(0.95)[1] for one in both), row["value"])
    assert row["value"] == pytest.approx(min(one.value for one in both))
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_descriptors_are_compared_in_both_scenarios_each_with_itself(several):
    tables_of = several[0]
    two = {}
    for name, other in (("delta", "clip"), ("clip", "delta")):  # without a basis each is what the other is with one
        rows = [row | {"scenario": WHOLE} for row in tables_of[other].to_pylist()]
        two[name] = pa.concat_tables([tables_of[name], tables.table("embeddings", rows)])
    _, differences = clusterings(two, dict.fromkeys(two, "weights"), **QUICK)
    tables.table("differences", differences)
    found = {(row["scenario"], row["algorithm"], row["metric"]): row for row in differences}
    assert len(found) == len(differences) == 2 * 3
    for algorithm, metric in (("Ward", "ARI"), ("k-means", "ARI"), ("labels", "1-NN")):
        one, other = found[TOGETHER, algorithm, metric], found[WHOLE, algorithm, metric]
        assert one["value"] == -other["value"] != 0
        assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_without_controls_nothing_is_compared_with_the_best_of_them(several):
    two = {name: several[0][name] for name in ("delta", "clip")}
    differences = clusterings(two, dict.fromkeys(two, "weights"), **QUICK)[1]
    assert {(r["left"], r["right"]) for r in differences} == {("delta", "clip")}


def test_descriptors_of_other_artists_are_not_paired(several):
    vectors, artists = painters(8, 5, 1, seed=1)
    renamed = [a.replace("07", "99") for a in artists]
    for case in (embeddings(vectors, renamed), embeddings(vectors[:35], artists[:35])):
        with pytest.raises(ValueError, match=r"clip: expected the artists of delta.*artist-07"):
            clusterings(several[0] | {"clip": case}, KINDS, **QUICK)
    with pytest.raises(ValueError, match=r"colour: .*no embeddings"):
        clusterings({name: several[0][name] for name in ("delta", "clip", "norm")}, KINDS, **QUICK)


def test_jackknives_of_scores_and_of_differences_cover_the_mean_of_other_artists():
    """Both descriptors see the same artists' centres, so that only a paired interval has the right width."""
    rng = np.random.default_rng(0)
    who, found = np.repeat(np.arange(12), 6), []
    for _ in range(300):
        centres, both = rng.normal(size=(12, 6)), []
        for apart in (1.0, 0.8):
            clusters = partitions.ALGORITHMS["Ward"](
                partitions.Points(apart * centres[who] + rng.normal(size=(72, 6))), 12, 1, 0
            )
            table = contingency(who, clusters)
            left = np.stack([table * (np.arange(12) != a)[:, None] for a in range(12)])
            both.append(np.append(scored("ARI", left), scored("ARI", table)))
        found.append([both[0], both[0] - both[1]])
    for each in np.swapaxes(found, 0, 1):
        ends = np.array([intervals.jackknife(row[-1], row[:-1], intervals.DIFFERENCE).interval(0.9) for row in each])
        assert 0.84 <= np.mean((ends[:, 0] <= each[:, -1].mean()) & (each[:, -1].mean() <= ends[:, 1])) <= 0.97


def test_every_pair_is_compared_once_and_others_with_the_best_control(several):
    _, rows, found = several
    assert len(found) == 3 * (6 + 2)
    values = {(r["descriptor"], r["algorithm"], r["metric"]): r["value"] for r in rows if r["level"] == "artist"}
    for algorithm, metric in (("Ward", "ARI"), ("k-means", "ARI"), ("labels", "1-NN")):
        best = max(values[name, algorithm, metric] for name in ("norm", "colour"))
        row = found[algorithm, metric, "delta", BEST_CONTROL]
        assert row["value"] == pytest.approx(values["delta", algorithm, metric] - best)
        assert row["low"] < row["value"] < row["high"]


def test_the_rows_of_all_are_the_rows_of_each(several):
    tables_of, rows, _ = several
    alone = clustering(tables_of["clip"], "clip", **QUICK | {"confidence": 0.9})
    assert [row for row in rows if row["descriptor"] == "clip"] == alone
