"""Margins: paired differences, the best control chosen anew in every resampling, and labels dealt at random."""

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.metrics import BEST_CONTROL, intervals
from lora_atlas.metrics.margins import differences, permuted
from lora_atlas.metrics.retrieval import ask, queries
from lora_atlas.tables import KNOWN

OPTIONS = {"bootstrap": 300, "level": 0.9, "seed": 5}
KINDS = {"delta": "weights", "clip_training": "training pictures", "norm": "control", "mean_colour": "control"}


def asked(scores: dict[str, np.ndarray], artists: list[str], distance: str = "L2") -> tables.pa.Table:
    """The table "queries" of given scores."""
    rows = [
        {
            "scenario": KNOWN,
            "descriptor": descriptor,
            "calibration": "crossfit",
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
    return {(row["left"], row["right"]): row for row in rows}


def test_a_difference_is_paired_query_by_query():
    scores, artists = random_scores()
    scores["clip_training"] = scores["delta"] - 0.25
    found = keyed(differences(asked(scores, artists), KINDS, **OPTIONS))["delta", "clip_training"]
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([0.25] * 3)


def test_the_best_control_is_chosen_anew_in_every_resampling():
    scores, artists = random_scores(1)
    found = keyed(differences(asked(scores, artists), KINDS, **OPTIONS))["delta", BEST_CONTROL]
    number = np.unique(artists, return_inverse=True)[1]
    weights = intervals.draws(10, OPTIONS["bootstrap"], OPTIONS["seed"])
    copies = [np.repeat(np.arange(20), row[number].astype(int)) for row in weights]
    spread = [scores["delta"][c].mean() - max(scores[k][c].mean() for k in ("norm", "mean_colour")) for c in copies]
    best = max(scores[k].mean() for k in ("norm", "mean_colour"))
    assert found["value"] == pytest.approx(scores["delta"].mean() - best)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(spread, [0.05, 0.95])))


def test_every_pair_comes_once_and_no_control_is_held_against_the_best_control():
    scores, artists = random_scores(2)
    found = keyed(differences(asked(scores, artists), KINDS, **OPTIONS))
    assert len(found) == 6 + 2
    assert ("norm", BEST_CONTROL) not in found and ("delta", "norm") in found


def test_the_order_of_rows_does_not_matter_and_other_distances_are_left_alone():
    scores, artists = random_scores(3)
    table = asked(scores, artists)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    noise = asked(random_scores(9)[0], artists, "cosine")
    mixed = tables.pa.concat_tables([shuffled, noise])
    assert keyed(differences(mixed, KINDS, **OPTIONS)) == keyed(differences(table, KINDS, **OPTIONS))


def test_descriptors_that_were_asked_other_queries_are_named():
    scores, artists = random_scores(4)
    table = asked(scores, artists)
    with pytest.raises(ValueError, match="norm"):
        differences(table.slice(0, 45), {k: KINDS[k] for k in ("delta", "clip_training", "norm")}, **OPTIONS)


# --- labels dealt at random


def embedded(signal: float, seed: int = 0, artists: int = 8, constant: bool = False) -> tables.pa.Table:
    rng = np.random.default_rng(seed)
    centres = signal * rng.normal(size=(artists, 5))
    rows = [
        {
            "scenario": KNOWN,
            "calibration": "crossfit",
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
    (found,) = permuted({"delta": table}, "crossfit", permutations=400, level=0.95, seed=0)
    tables.table("controls", [found])
    assert found["value"] == pytest.approx(found["expected"], abs=0.01)
    assert found["low"] < found["expected"] < found["high"] < found["observed"]
    assert found["p"] == pytest.approx(1 / 401)


def test_the_score_of_true_labels_is_that_of_the_retrieval_table():
    table = embedded(1.0, 3)
    (found,) = permuted({"delta": table}, "crossfit", permutations=2, level=0.95, seed=0)
    one = [row["value"] for row in queries(list(ask(table, "delta", seed=0)), "delta", "crossfit")
           if (row["distance"], row["metric"], row["level"]) == ("L2", "mAP", "artist")]  # fmt: skip
    assert found["observed"] == pytest.approx(np.mean(one))


def test_p_is_uniform_where_labels_mean_nothing():
    from scipy.stats import kstest

    p = [
        permuted({"x": embedded(0.0, seed, 5)}, "crossfit", permutations=39, level=0.95, seed=seed)[0]["p"]
        for seed in range(120)
    ]
    assert kstest(np.array(p) - np.random.default_rng(0).uniform(0, 1 / 40, 120), "uniform").pvalue > 0.01


def test_a_descriptor_that_cannot_tell_loras_apart_is_at_chance():
    (found,) = permuted({"set_size": embedded(0, constant=True)}, "crossfit", permutations=50, level=0.9, seed=0)
    assert found["observed"] == pytest.approx(found["expected"], abs=0.12)
