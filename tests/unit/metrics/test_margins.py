"""Margins: paired differences, over whichever control is best, of what a view looks at; and labels dealt at random."""

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.metrics import BEST_CONTROL, intervals
from lora_atlas.metrics.margins import differences, matrices, permuted, viewed
from lora_atlas.metrics.retrieval import ask, queries
from lora_atlas.tables import KNOWN, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View

LEVEL = 0.9
CROSSFIT, DIRECT = View("components", "crossfit", "L2"), View("whole", "none", "cosine")
KINDS = {"delta": "weights", "clip_training": "training pictures", "norm": "control", "mean_colour": "control"}


def asked(
    scores: dict[str, np.ndarray],
    artists: list[str],
    distance: str = "L2",
    scenario: str = KNOWN,
    calibration: str = "crossfit",
) -> tables.pa.Table:
    """The table "queries" of given scores."""
    rows = [
        {
            "scenario": scenario,
            "descriptor": descriptor,
            "calibration": calibration,
            "distance": distance,
            "level": "artist",
            "metric": "mAP",
            "lora": f"{artist}/{number}",
            "artist": artist,
            "value": float(value),
            "chance": 0.1,
        }
        for descriptor, values in scores.items()
        for number, (artist, value) in enumerate(zip(artists, values, strict=True))
    ]
    return tables.table("queries", rows)


def random_scores(seed: int = 0) -> tuple[dict[str, np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    artists = [f"artist{i // 2}" for i in range(20)]
    return {descriptor: rng.uniform(size=20) for descriptor in KINDS}, artists


def keyed(rows: list[dict]) -> dict[tuple[str, str], dict]:
    tables.table("differences", rows)
    found = {(row["left"], row["right"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def compared(table: tables.pa.Table, view: View = CROSSFIT, level: float = LEVEL) -> dict[tuple[str, str], dict]:
    return keyed(differences(table, KINDS, view, confidence=level))


def estimate(scores: dict[str, np.ndarray], artists: list[str], left: str, right: str) -> intervals.Estimate:
    """The difference of two descriptors, artist by artist."""
    apart = [np.mean((scores[left] - scores[right])[np.array(artists) == a]) for a in sorted(set(artists))]
    return intervals.crossed(np.array([apart]), intervals.DIFFERENCE)


def test_a_difference_is_paired_query_by_query():
    scores, artists = random_scores()
    found = compared(asked(scores, artists))["delta", "norm"]
    one = estimate(scores, artists, "delta", "norm")
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([one.value, *one.interval(LEVEL)])
    scores["clip_training"] = scores["delta"] - 0.25
    found = compared(asked(scores, artists))["delta", "clip_training"]
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([0.25] * 3)


def test_a_margin_over_the_best_control_is_that_over_every_control():
    scores, artists = random_scores(1)
    scores["norm"] += 0.2 - scores["norm"].mean()
    scores["mean_colour"] += 0.22 - scores["mean_colour"].mean()  # either could be best
    found = compared(asked(scores, artists))["delta", BEST_CONTROL]
    both = [estimate(scores, artists, "delta", control) for control in ("norm", "mean_colour")]
    assert found["value"] == pytest.approx(scores["delta"].mean() - 0.22)
    assert found["low"] == pytest.approx(min(one.interval(LEVEL)[0] for one in both))
    assert found["high"] == pytest.approx(min(one.interval(1 - (1 - LEVEL) / 2)[1] for one in both))


def test_every_pair_comes_once_and_no_control_is_held_against_the_best_control():
    scores, artists = random_scores(2)
    found = compared(asked(scores, artists))
    assert len(found) == 6 + 2
    assert ("norm", BEST_CONTROL) not in found and ("delta", "norm") in found


def test_the_order_of_rows_does_not_matter_and_what_the_view_does_not_look_at_is_left_alone():
    scores, artists = random_scores(3)
    table = asked(scores, artists)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    noise = [
        asked(random_scores(9)[0], artists, *other)
        for other in (
            ("cosine",),
            ("L2", KNOWN, "none"),
            ("L2", WHOLE, "none"),
            ("L2", WHOLE_UNSEEN, "none"),
            ("CSLS", UNSEEN, "none"),
        )
    ]
    mixed = tables.pa.concat_tables([shuffled, *noise])
    assert compared(mixed) == compared(table)


@pytest.mark.parametrize(
    ("view", "known", "unseen"),
    [
        (CROSSFIT, (KNOWN, "crossfit"), (UNSEEN, "none")),
        (View("components", "none", "CSLS"), (KNOWN, "none"), (UNSEEN, "none")),
        (DIRECT, (WHOLE, "none"), (WHOLE_UNSEEN, "none")),
    ],
)
def test_a_view_looks_at_known_and_unseen_artists_under_one_basis_and_distance(view, known, unseen):
    pairs = [(KNOWN, "none"), (KNOWN, "crossfit"), (UNSEEN, "none"), (WHOLE, "none"), (WHOLE_UNSEEN, "none")]
    every = {
        (*pair, distance): random_scores(seed * 10 + i)[0]
        for seed, pair in enumerate(pairs)
        for i, distance in enumerate(("L2", "cosine", "CSLS"))
    }
    artists = random_scores()[1]
    table = tables.pa.concat_tables([asked(scores, artists, key[2], *key[:2]) for key, scores in every.items()])
    frame = viewed(table.to_pandas(), view)
    seen = frame[["scenario", "calibration", "distance"]].drop_duplicates().itertuples(index=False)
    assert {tuple(row) for row in seen} == {(*known, view.distance), (*unseen, view.distance)}
    assert len(frame) == 2 * len(KINDS) * 20
    found = differences(table, KINDS, view, confidence=LEVEL)
    assert len(found) == 2 * 8
    for scenario, calibration in (known, unseen):
        scores = every[scenario, calibration, view.distance]
        rows = keyed([row for row in found if row["scenario"] == scenario])
        expected = scores["delta"].mean() - scores["clip_training"].mean()
        assert rows["delta", "clip_training"]["value"] == pytest.approx(expected)


def test_matrices_hold_the_scores_of_the_descriptors_asked_for_in_their_order_beside_their_artists():
    scores, artists = random_scores(6)
    table = asked(scores | {"other": np.ones(20)}, artists)
    table = table.take(np.random.default_rng(1).permutation(len(table)))
    (one,) = matrices(table, KINDS, CROSSFIT).values()
    assert one.descriptors == list(KINDS) and one.artists == sorted(set(artists))
    order = np.argsort([f"{artist}/{n}" for n, artist in enumerate(artists)])
    np.testing.assert_array_equal(one.scores, [scores[name][order] for name in KINDS])
    assert [one.artists[i] for i in one.of] == [artists[i] for i in order]


def test_descriptors_that_were_asked_other_queries_are_named():
    scores, artists = random_scores(4)
    table = asked(scores, artists)
    with pytest.raises(ValueError, match="norm"):
        differences(
            table.slice(0, 45), {k: KINDS[k] for k in ("delta", "clip_training", "norm")}, CROSSFIT, confidence=LEVEL
        )


# --- labels dealt at random


def embedded(
    signal: float,
    seed: int = 0,
    artists: int = 8,
    constant: bool = False,
    space: tuple[str, str] = (KNOWN, "crossfit"),
) -> tables.pa.Table:
    rng = np.random.default_rng(seed)
    centres = signal * rng.normal(size=(artists, 5))
    rows = [
        {
            "scenario": space[0],
            "calibration": space[1],
            "fold": 0,
            "lora": f"a{artist}/{number}",
            "artist": f"a{artist}",
            "genre": None,
            "split": "gallery" if number < 4 else "query",
            "vector": np.zeros(5) if constant else centres[artist] + rng.normal(size=5),
        }
        for artist in range(artists)
        for number in range(6)
    ]
    return tables.table("embeddings", rows)


def test_permuted_labels_are_at_chance_and_true_ones_are_not():
    table = embedded(4.0)
    (found,) = permuted({"delta": table}, CROSSFIT, permutations=400, confidence=0.95, seed=0)
    tables.table("controls", [found])
    assert found["value"] == pytest.approx(found["expected"], abs=0.01)
    assert found["low"] < found["expected"] < found["high"] < found["observed"]
    assert found["p"] == pytest.approx(1 / 401)


def test_the_score_of_true_labels_is_that_of_the_retrieval_table():
    table = embedded(1.0, 3)
    (found,) = permuted({"delta": table}, CROSSFIT, permutations=2, confidence=0.95, seed=0)
    one = [row["value"] for row in queries(list(ask(table, "delta", seed=0)), "delta")
           if (row["distance"], row["metric"], row["level"]) == ("L2", "mAP", "artist")]  # fmt: skip
    assert found["observed"] == pytest.approx(np.mean(one))


def test_p_is_uniform_where_labels_mean_nothing():
    from scipy.stats import kstest

    p = [
        permuted({"x": embedded(0.0, seed, 5)}, CROSSFIT, permutations=39, confidence=0.95, seed=seed)[0]["p"]
        for seed in range(120)
    ]
    assert kstest(np.array(p) - np.random.default_rng(0).uniform(0, 1 / 40, 120), "uniform").pvalue > 0.01


def test_a_descriptor_that_cannot_tell_loras_apart_is_at_chance():
    (found,) = permuted({"set_size": embedded(0, constant=True)}, CROSSFIT, permutations=50, confidence=0.9, seed=0)
    assert found["observed"] == pytest.approx(found["expected"], abs=0.12)


def test_labels_are_permuted_under_the_view_of_known_artists():
    parts = {space: embedded(1.0, seed, space=space) for seed, space in enumerate(
        [(KNOWN, "none"), (KNOWN, "crossfit"), (WHOLE, "none"), (WHOLE_UNSEEN, "none"), (UNSEEN, "none")]
    )}  # fmt: skip
    options = {"permutations": 20, "confidence": 0.9, "seed": 0}
    for view in (CROSSFIT, DIRECT, View("whole", "none", "CSLS")):
        (found,) = permuted({"delta": tables.pa.concat_tables(list(parts.values()))}, view, **options)
        assert permuted({"delta": parts[view.known]}, view, **options) == [found]
        one = [row["value"] for row in queries(list(ask(parts[view.known], "delta", seed=0)), "delta")
               if (row["distance"], row["metric"], row["level"]) == (view.distance, "mAP", "artist")]  # fmt: skip
        assert found["observed"] == pytest.approx(np.mean(one))
