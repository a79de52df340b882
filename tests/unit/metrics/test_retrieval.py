"""Retrieval scores against scikit-learn, chance against every ranking, fair ties, and intervals that cover."""

from itertools import combinations
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from embedded import entry, noisy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import average_precision_score, ndcg_score

from lora_atlas import tables
from lora_atlas.embeddings.components import whole
from lora_atlas.metrics import ranking
from lora_atlas.metrics.ranking import DISTANCES, METRICS, ORDERS, TIE, Metric, chance, from_products, score
from lora_atlas.metrics.retrieval import KEPT, ask, queries, retrieval
from lora_atlas.metrics.retrieval import rows as told
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN

QUICK = {"confidence": 0.9, "seed": 0}


def scores(rows: list[dict], **changes) -> dict[tuple, dict]:
    """Rows by distance, level and metric; by scenario and calibration too where there are several."""
    found = retrieval(tables.table("embeddings", rows), "delta", **QUICK | changes)
    tables.table("retrieval", found)  # every column, nothing else
    several = len({(row["scenario"], row["calibration"]) for row in found}) > 1
    extra = ("scenario", "calibration") if several else ()
    keyed = {tuple(row[key] for key in (*extra, "distance", "level", "metric")): row for row in found}
    assert len(keyed) == len(found)
    return keyed


# --- scores of rankings

RANKINGS = st.lists(st.booleans(), min_size=2, max_size=30).filter(any)


@settings(deadline=None, max_examples=100)
@given(RANKINGS)
def test_average_precision_and_ndcg_are_scikit_learns(ranking):
    hits = np.array([ranking], float)
    descending = -np.arange(len(ranking), dtype=float)
    assert METRICS["mAP"].score(hits)[0] == pytest.approx(average_precision_score(hits[0], descending))
    assert METRICS["nDCG"].score(hits)[0] == pytest.approx(ndcg_score(hits, descending[None]))


@settings(deadline=None, max_examples=100)
@given(RANKINGS)
def test_the_other_scores_are_what_their_definitions_say(ranking):
    hits = np.array([ranking], float)
    places = [place for place, hit in enumerate(ranking, 1) if hit]
    R = len(places)
    inside = [place for place in places if place <= R]
    precision = [sum(ranking[:place]) / place for place in inside]
    assert METRICS["mAP@R"].score(hits)[0] == pytest.approx(sum(precision) / R)
    assert METRICS["MRR"].score(hits)[0] == pytest.approx(1 / places[0])
    for k in (1, 5, 10):
        assert METRICS[f"R@{k}"].score(hits)[0] == float(places[0] <= k)


def test_scores_worked_by_hand():
    hits = np.array([[0, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], float)
    expected = {
        "mAP": [(1 / 2 + 2 / 4 + 3 / 5) / 3, 1, 1 / 6],
        "mAP@R": [(1 / 2) / 3, 1, 0],
        "R@1": [0, 1, 0],
        "R@5": [1, 1, 0],
        "R@10": [1, 1, 1],
        "MRR": [1 / 2, 1, 1 / 6],
        "nDCG": [
            (1 / np.log2(3) + 1 / np.log2(5) + 1 / np.log2(6)) / (1 + 1 / np.log2(3) + 1 / 2),
            1,
            1 / np.log2(7),
        ],
    }
    assert set(expected) == set(METRICS)
    for metric, values in expected.items():
        assert METRICS[metric].score(hits) == pytest.approx(values), metric


# --- chance


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9, 12])
def test_chance_is_the_mean_over_every_ranking(metric, n):
    """All permutations of n items put the relevant ones on each set of places equally often."""
    for relevant in range(1, n + 1):
        every = np.zeros((comb(n, relevant), n))
        for row, places in zip(every, combinations(range(n), relevant), strict=True):
            row[list(places)] = 1
        assert chance(metric, relevant, n) == pytest.approx(METRICS[metric].score(every).mean()), relevant


@pytest.mark.parametrize("metric", METRICS)
def test_chance_in_a_large_gallery_is_the_mean_over_random_rankings(metric):
    rng = np.random.default_rng(0)
    hits = np.zeros((4000, 150))
    hits[:, :6] = 1
    values = METRICS[metric].score(rng.permuted(hits, axis=1))
    assert abs(chance(metric, 6, 150) - values.mean()) < 4 * values.std() / np.sqrt(4000)


def test_another_metric_is_one_entry_with_its_chance(monkeypatch):
    """Precision at 5, whose chance is R/n: nothing else needs to know of it."""
    precision = Metric(lambda hits: hits[:, :5].mean(1), lambda R, n: R / n)
    monkeypatch.setitem(METRICS, "P@5", precision)
    hits = np.zeros((1, 20))
    hits[0, [0, 3, 9]] = 1
    assert METRICS["P@5"].score(hits)[0] == 0.4 and chance("P@5", 3, 20) == 0.15


# --- ties


def nowhere(queries: int, gallery: int) -> list[dict]:
    """Every LoRA of a side has the same vector; the right ones stand first in the table."""
    rows = [entry(f"ada/q{n}", "query", [1, 0, 0]) for n in range(queries)]
    rows += [entry(f"ada/{n}", "gallery", [0, 2, 0]) for n in range(4)]
    return rows + [entry(f"bob/{n}", "gallery", [0, 2, 0]) for n in range(gallery - 4)]


def test_vectors_that_are_all_alike_score_at_chance_wherever_they_stand_in_the_table():
    for rows in (nowhere(100, 16), nowhere(100, 16)[::-1]):
        found = scores(rows)
        for (distance, _, metric), row in found.items():
            assert row["value"] == pytest.approx(row["chance"], abs=0.06), (distance, metric)
            assert row["chance"] == pytest.approx(chance(metric, 4, 16))


def test_a_tie_of_a_right_and_a_wrong_lora_counts_by_half():
    rows = [entry(f"ada/q{n}", "query", [0, 0]) for n in range(150)]
    rows += [entry("ada/0", "gallery", [0, 1]), entry("bob/0", "gallery", [1, 0]), entry("bob/1", "gallery", [3, 3])]
    found = scores(rows)
    assert found["L2", "artist", "R@1"]["value"] == pytest.approx(1 / 2, abs=0.04)
    assert found["L2", "artist", "mAP"]["value"] == pytest.approx(3 / 4, abs=0.02)
    # Each query is averaged over several orders of its ties, so that one alone is not all or nothing either.
    alone = [scores(rows[number : number + 1] + rows[-3:])["L2", "artist", "R@1"]["value"] for number in range(10)]
    assert sum(0 < value < 1 for value in alone) >= 8
    # Ties among the wrong ones alone cost nothing, and neither do ties among the right ones.
    rows[-2] = entry("ada/1", "gallery", [1, 0])
    assert {row["value"] for key, row in scores([*rows, rows[-1]]).items() if key[0] == "L2"} == {1.0}


def shuffled(D: np.ndarray, relevant: np.ndarray, metric: str, seed: int) -> float:
    """The definition, item by item: all items of a ranking are put in random orders within their ties, eight times."""
    order = np.argsort(D, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(D[order]) > TIE)])
    rng = np.random.Generator(np.random.PCG64(seed))
    orders = [order[np.lexsort((rng.random(len(D)), group))] for _ in range(ORDERS)]
    return float(np.mean([METRICS[metric].score(relevant[None, each])[0] for each in orders]))


@settings(deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 30), st.sampled_from([0, 1, 2, 9]), st.floats(0.05, 1.0)
)
def test_orders_of_ties_are_those_of_whole_rankings_shuffled(seed, asking, items, decimals, share):
    """Whether a tie is of equal numbers, of nearly equal ones, or there is none; of one kind of item or of both."""
    rng = np.random.default_rng(seed)
    D = rng.random((asking, items)).round(decimals) + rng.integers(0, 2, (asking, items)) * TIE / 3
    relevant = rng.random((asking, items)) < share
    seeds = rng.integers(0, 2**60, asking).tolist()
    found = score(D, relevant, list(METRICS), seeds=seeds)
    for metric in METRICS:
        for i in range(asking):
            expected = shuffled(D[i], relevant[i], metric, seeds[i]) if relevant[i].any() else np.nan
            assert found[metric][i] == pytest.approx(expected, rel=1e-12, nan_ok=True), metric


def test_nothing_is_shuffled_for_ties_of_one_kind(monkeypatch):
    """Every ranking of a thousand LoRAs has neighbours within the rounding of float32. Shuffling each made the job
    retrieval take seventeen times as long."""
    monkeypatch.setattr(ranking, "_orders", lambda *_: pytest.fail("a ranking is shuffled"))
    D = np.array([[0.1, 0.1, 0.2, 0.3, 0.3, 0.3 + TIE / 2]])
    right = np.array([[True, True, False, False, False, False]])
    assert score(D, right)["mAP"].tolist() == [1.0]
    assert score(D, ~right)["mAP"].tolist() == [pytest.approx((1 / 3 + 2 / 4 + 3 / 5 + 4 / 6) / 4)]


def test_distances_that_differ_by_rounding_alone_are_ties():
    # The same numbers in another order have the same length, up to the last digits.
    rng = np.random.default_rng(0)
    vector = rng.lognormal(sigma=3, size=24).astype(np.float32)
    turns = [rng.permutation(vector) for _ in range(20)]
    lengths = [np.linalg.norm(turn.astype(np.float64)) for turn in turns]
    near, far = turns[np.argmin(lengths)], turns[np.argmax(lengths)]
    assert 0 < max(lengths) - min(lengths) < 1e-12 * max(lengths)
    for right, wrong in ((near, far), (far, near)):
        rows = [entry(f"ada/q{n}", "query", np.zeros(24)) for n in range(150)]
        rows += [entry("ada/0", "gallery", right), entry("bob/0", "gallery", wrong)]
        assert scores(rows)["L2", "artist", "R@1"]["value"] == pytest.approx(1 / 2, abs=0.04)


def test_vectors_that_have_nothing_in_common_score_at_chance_though_they_are_float32():
    """Queries show subjects that no gallery LoRA shows: all cosines between them are nothing. Where few LoRAs share any
    subject, many axes are of both sides, and stored as float32 they leave cosines of some 3e-8, in an order of their
    own: they scored .09 to .13, where chance is .06."""
    rng, subjects, found = np.random.default_rng(0), 10_000, []
    sides = [(f"artist{n}", number, number == 2) for n in range(50) for number in range(3)]
    for _ in range(6):
        shown = np.zeros((len(sides), 2 * subjects))
        for row, (_, _, query) in enumerate(sides):
            shown[row, rng.choice(subjects, 8, replace=False) + subjects * query] = 8**-0.5
        vectors = whole(shown @ shown.T).astype(np.float32)
        rows = [
            entry(f"{artist}/{number}", "query" if query else "gallery", vector)
            for (artist, number, query), vector in zip(sides, vectors, strict=True)
        ]
        found.append(scores(rows)["cosine", "artist", "mAP"])
    assert np.mean([each["value"] for each in found]) == pytest.approx(found[0]["chance"], abs=0.015)


def test_what_is_nearer_by_more_than_rounding_is_no_tie():
    rows = [entry(f"ada/q{n}", "query", [0, 0]) for n in range(20)]
    rows += [entry("bob/0", "gallery", [0, 1]), entry("ada/0", "gallery", [0, 1 - 1e-5])]
    assert scores(rows)["L2", "artist", "R@1"]["value"] == 1


# --- distances without vectors


@pytest.mark.parametrize("distance", DISTANCES)
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 9), gallery=st.integers(1, 25))
def test_distances_from_inner_products_are_those_of_the_vectors(distance, seed, queries, gallery):
    rng = np.random.default_rng(seed)
    Q, G = rng.normal(size=(queries, 4)), rng.lognormal(size=(gallery, 1)) * rng.normal(size=(gallery, 4))
    found = from_products(distance, Q @ G.T, np.square(Q).sum(1), np.square(G).sum(1))
    np.testing.assert_allclose(found, DISTANCES[distance](Q, G), atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_of_vectors_without_length_are_the_same_from_inner_products(distance):
    Q, G = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [1, 0], [6, 8]])
    found = from_products(distance, Q @ G.T, np.square(Q).sum(1), np.square(G).sum(1))
    np.testing.assert_allclose(found, DISTANCES[distance](Q, G), atol=1e-12)


def test_what_rounding_leaves_of_inner_products_is_no_distance():
    """The root of 1e-16 is 1e-8, which is no tie."""
    one = np.ones(1)
    for almost in (1 + 1e-15, 1 - 1e-15):
        assert from_products("L2", np.array([[almost]]), one, one) == 0
    assert from_products("L2", np.array([[1 - 1e-12]]), one, one) == pytest.approx(np.sqrt(2e-12), rel=1e-3)


# --- what is asked of what


def test_values_are_means_over_queries_of_scikit_learns_scores():
    rows = noisy(6, 3, 2, noise=0.8)
    found = scores(rows)
    gallery, queries = ([row for row in rows if row["split"] == split] for split in ("gallery", "query"))
    G = np.array([row["vector"] for row in gallery], float)
    for distance in ("L2", "cosine"):
        precision, gain = [], []
        for query in queries:
            q = query["vector"].astype(float)
            near = -np.linalg.norm(G - q, axis=1) if distance == "L2" else G @ q / np.linalg.norm(G, axis=1)
            relevant = np.array([row["artist"] == query["artist"] for row in gallery])
            precision.append(average_precision_score(relevant, near))
            gain.append(ndcg_score([relevant], [near - near.min()]))
        assert found[distance, "artist", "mAP"]["value"] == pytest.approx(np.mean(precision))
        assert found[distance, "artist", "nDCG"]["value"] == pytest.approx(np.mean(gain))
        assert found[distance, "artist", "mAP"]["chance"] == pytest.approx(chance("mAP", 3, 18))
        assert found[distance, "artist", "mAP"]["queries"] == 12


def test_distances_are_what_they_are_called():
    # By direction bob is nearer, by distance ada.
    rows = [entry("ada/q", "query", [1, 1]), entry("ada/0", "gallery", [1, 0]), entry("bob/0", "gallery", [9, 9])]
    found = scores(rows)
    assert found["L2", "artist", "R@1"]["value"] == 1 and found["cosine", "artist", "R@1"]["value"] == 0


def test_a_query_without_a_hit_counts_as_a_miss():
    rows = [entry("ada/0", "gallery", [0, 0.0]), entry("bob/0", "gallery", [5, 5])]
    rows += [entry("ada/q0", "query", [0, 1]), entry("ada/q1", "query", [4, 5])]
    row = scores(rows)["L2", "artist", "R@1"]
    assert row["value"] == 0.5 and row["queries"] == 2


def test_queries_that_cannot_be_asked_are_left_out_and_counted():
    rows = noisy(4, 3, 2, noise=0)
    known = scores(rows)
    stranger = [entry(f"stranger/{n}", "query", [0, 0, 0, n], "genre-9") for n in range(3)]
    found = scores(rows + stranger)
    for key, row in found.items():
        assert row["queries"] == 8
        assert (row["value"], row["chance"]) == (known[key]["value"], known[key]["chance"])


@pytest.mark.parametrize("split", ["gallery", "query"])
def test_where_nothing_can_be_asked_the_values_are_null_and_not_zero(split):
    rows = [row for row in noisy(3, 2, 2, noise=0) if row["split"] == split]
    for row in scores(rows).values():
        assert row["queries"] == 0
        assert [row[key] for key in ("value", "low", "high", "chance")] == [None] * 4


def test_at_genre_level_the_artists_own_loras_are_left_out():
    # Every query lies on its artist's own LoRAs, next to an artist of the other genre, and far from its own genre.
    places = {"ada": (0, "a"), "bob": (1, "b"), "ann": (10, "a"), "ben": (11, "b")}
    rows = []
    for artist, (place, genre) in places.items():
        rows += [entry(f"{artist}/{n}", "gallery", [place, 1], genre) for n in range(2)]
        rows += [entry(f"{artist}/q", "query", [place, 1], genre)]
    found = scores(rows)
    for metric in METRICS:
        assert found["L2", "artist", metric]["value"] == 1
    assert found["L2", "genre", "R@1"]["value"] == 0
    # Six LoRAs are left, two of them right: at places 3 and 4 for ada and ben, at places 5 and 6 for bob and ann.
    assert found["L2", "genre", "mAP"]["value"] == pytest.approx(((1 / 3 + 2 / 4) / 2 + (1 / 5 + 2 / 6) / 2) / 2)
    assert found["L2", "genre", "MRR"]["value"] == pytest.approx((1 / 3 + 1 / 5) / 2)
    assert found["L2", "genre", "mAP"]["chance"] == pytest.approx(chance("mAP", 2, 6))


def test_an_artist_alone_in_a_genre_is_not_asked_for_it():
    rows = noisy(5, 2, 3, noise=0.1)  # two genres of two artists, and one of one
    found = scores(rows)
    assert found["L2", "artist", "mAP"]["queries"] == 15 and found["L2", "genre", "mAP"]["queries"] == 12


def test_genre_level_is_absent_where_a_lora_has_none():
    rows = noisy(4, 2, 1, noise=0.1)
    rows[3]["genre"] = None
    assert {level for _, level, _ in scores(rows)} == {"artist"}


@pytest.mark.parametrize("level", ["artist", "genre"])
def test_folds_are_not_mixed(level):
    # The bases of two folds are unlike: in the second, all vectors are turned and far from those of the first.
    first = noisy(4, 3, 1, noise=0.9, seed=1)
    second = noisy(4, 2, 3, noise=0.9, seed=2, fold=1)
    for row in second:
        row["vector"] = -row["vector"][::-1] + 1
    one, other, both = scores(first), scores(second), scores(first + second)
    for key in both:
        if key[1] == level:
            parts = [one[key], other[key]]
            weights = [row["queries"] for row in parts]
            assert both[key]["queries"] == sum(weights)
            for column in ("value", "chance"):
                expected = np.average([row[column] for row in parts], weights=weights)
                assert both[key][column] == pytest.approx(expected)
    # A fold of queries only has no gallery to be asked of.
    orphans = [row | {"fold": 2} for row in second if row["split"] == "query"]
    assert all(row == both[key] for key, row in scores(first + second + orphans).items())


def test_scenarios_and_calibrations_are_not_mixed():
    one = noisy(4, 2, 2, noise=0.9, seed=1)
    other = noisy(4, 2, 2, noise=0.9, seed=2, calibration="rescale")
    unseen = noisy(4, 2, 2, noise=0.9, seed=3, scenario=UNSEEN)
    whole = noisy(4, 2, 2, noise=0.9, seed=4, scenario=WHOLE)
    strange = noisy(4, 2, 2, noise=0.9, seed=5, scenario=WHOLE_UNSEEN)
    together = scores(one + other + unseen + whole + strange)
    parts = {(KNOWN, "none"): one, (KNOWN, "rescale"): other, (UNSEEN, "none"): unseen}
    parts |= {(WHOLE, "none"): whole, (WHOLE_UNSEEN, "none"): strange}
    assert {key[:2] for key in together} == set(parts)
    for (scenario, calibration), rows in parts.items():
        for key, row in scores(rows).items():
            assert together[scenario, calibration, *key] == row


def test_a_basis_that_has_seen_the_queries_is_not_scored():
    rows = noisy(4, 2, 2, noise=0.9, seed=1)
    seen = noisy(4, 2, 2, noise=0.1, seed=2, scenario=TOGETHER)
    assert scores(rows + seen) == scores(rows) and scores(seen) == {}


def test_rows_come_out_the_same_twice_and_in_any_order_of_the_table():
    rows = noisy(5, 3, 2, noise=0.9)
    assert scores(rows) == scores(rows)
    turned = scores(rows[::-1])
    for key, row in scores(rows).items():
        for column in ("value", "low", "high", "chance"):
            assert turned[key][column] == pytest.approx(row[column])
    assert scores(nowhere(5, 9)) == scores(nowhere(5, 9))
    values = [scores(nowhere(5, 9), seed=seed)["L2", "artist", "mAP"]["value"] for seed in (0, 1)]
    assert values[0] != values[1]  # the orders of ties come from the study's seed


# --- intervals


def right_or_wrong(outcomes: dict[str, list[bool]]) -> list[dict]:
    """Each artist in a fold of its own, with one LoRA of another: a query is right, or wrong, as listed."""
    names = list(outcomes)
    rows = []
    for fold, (artist, right) in enumerate(outcomes.items()):
        rows.append(entry(f"{artist}/0", "gallery", [0.0], fold=fold))
        rows.append(entry(f"{names[fold - 1]}/1", "gallery", [1.0], fold=fold))
        rows += [entry(f"{artist}/q{n}", "query", [0.2 if yes else 0.8], fold=fold) for n, yes in enumerate(right)]
    return rows


def test_intervals_leave_out_artists_with_all_their_queries():
    outcomes = {"ada": [True], "bob": [True, False, False], "cy": [True, True, False, True, True]}
    without = [np.mean([yes for name in outcomes if name != left for yes in outcomes[name]]) for left in outcomes]
    error = np.sqrt(2 / 3 * np.square(np.array(without) - np.mean(without)).sum())
    odds = logit(6 / 9) + np.array([-1, 1]) * t.ppf(0.95, 2) * error / (6 / 9 * 3 / 9)
    row = scores(right_or_wrong(outcomes))["L2", "artist", "R@1"]
    assert row["value"] == pytest.approx(6 / 9) and row["queries"] == 9
    assert (row["low"], row["high"]) == pytest.approx(tuple(expit(odds)))


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Artists are hard or easy; taking their queries for independent would cover about 60 % here, not 90 %."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        ease = rng.beta(0.4, 0.4, 12)  # with mean one half: the truth
        outcomes = {f"artist-{n:02}": list(rng.random(5) < p) for n, p in enumerate(ease)}
        row = scores(right_or_wrong(outcomes))["L2", "artist", "R@1"]
        covered.append(row["low"] <= 0.5 <= row["high"])
    assert 0.84 <= np.mean(covered) <= 0.96


def test_intervals_hold_their_value_and_widen_with_the_level():
    rows = noisy(10, 3, 2, noise=0.9)
    wide, narrow = (scores(rows, confidence=level) for level in (0.95, 0.5))
    for key, row in narrow.items():
        assert wide[key]["low"] <= row["low"] <= row["high"] <= wide[key]["high"]
        assert wide[key]["low"] <= row["value"] <= wide[key]["high"]
    assert wide["L2", "artist", "mAP"]["low"] < narrow["L2", "artist", "mAP"]["low"]


@pytest.mark.parametrize("metric", METRICS)
def test_artists_that_lie_apart_are_found_without_fail(metric):
    rows = noisy(6, 3, 2, noise=1e-3)
    row = scores(rows)["L2", "artist", metric]
    assert (row["value"], row["low"], row["high"]) == (1, 1, 1) and row["chance"] < 1


def test_queries_near_nobody_in_particular_score_near_chance():
    rng = np.random.default_rng(3)
    rows = [row | {"vector": rng.normal(size=4).astype(np.float32)} for row in noisy(20, 4, 10, noise=0)]
    found = scores(rows)
    for metric in METRICS:
        row = found["L2", "artist", metric]
        assert row["value"] == pytest.approx(row["chance"], abs=0.06)


def test_the_table_of_rows_is_one_line_a_metric():
    found = retrieval(tables.table("embeddings", noisy(4, 2, 1, noise=0.5)), "clip_training", **QUICK)
    assert isinstance(tables.table("retrieval", found), pa.Table) and len(found) == len(DISTANCES) * 2 * len(METRICS)
    assert {row["descriptor"] for row in found} == {"clip_training"}


def test_queries_of_every_scenario_calibration_and_distance_are_kept_and_rows_are_their_means():
    found = tables.table(
        "embeddings",
        noisy(5, 3, 2, noise=0.9, seed=1)
        + noisy(5, 3, 2, noise=0.9, seed=2, calibration="crossfit")
        + noisy(5, 3, 2, noise=0.9, seed=3, scenario=WHOLE)
        + noisy(5, 3, 2, noise=0.9, seed=4, scenario=UNSEEN),
    )
    asked = list(ask(found, "delta", seed=0))
    each = queries(asked, "delta")
    tables.table("queries", each)
    kept: dict[tuple, list[dict]] = {}
    for row in each:
        key = tuple(row[name] for name in ("scenario", "calibration", "distance", "level", "metric"))
        kept.setdefault(key, []).append(row)
    assert {key[:3] for key in kept} == {
        (*pair, distance)
        for pair in ((KNOWN, "none"), (KNOWN, "crossfit"), (WHOLE, "none"), (UNSEEN, "none"))
        for distance in DISTANCES
    }
    assert told(asked, "delta", confidence=0.9) == retrieval(found, "delta", **QUICK)
    compared = 0
    for row in retrieval(found, "delta", **QUICK):
        if row["metric"] in KEPT:
            of = kept[tuple(row[name] for name in ("scenario", "calibration", "distance", "level", "metric"))]
            assert len({one["lora"] for one in of}) == len(of) == row["queries"]
            assert all(one["lora"].split("/")[0] == one["artist"] for one in of)
            for column in ("value", "chance"):
                assert np.mean([one[column] for one in of]) == pytest.approx(row[column])
            compared += 1
    assert compared == len(kept) == 4 * len(DISTANCES) * 2 * len(KEPT)


def test_vectors_of_one_direction_score_at_chance_in_cosine():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        lengths, direction = rng.uniform(0.5, 3, 6), rng.normal(size=16)
        artists = [f"artist-{n % 6}" for n in range(120)]
        vectors = [lengths[n % 6] * direction for n in range(120)]
        splits = ["gallery"] * 24 + ["query"] * 96
        lengthy = zip(artists, splits, vectors, strict=True)
        found = [entry(f"{artist}/{n:03}", split, v) for n, (artist, split, v) in enumerate(lengthy)]
        rows = retrieval(tables.table("embeddings", found), "d", **QUICK)
        for row in rows:
            if row["distance"] == "cosine":
                assert row["value"] == pytest.approx(row["chance"], abs=0.08), row["metric"]


def test_an_empty_table_is_an_error_that_names_the_descriptor():
    with pytest.raises(ValueError, match="clip_training"):
        retrieval(tables.table("embeddings", []), "clip_training", **QUICK)
