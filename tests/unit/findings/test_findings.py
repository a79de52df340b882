"""Findings: what tables of several seeds say together, verdicts that intervals decide, and a page of nothing else."""

import re

import numpy as np
import pytest

from lora_atlas import tables
from lora_atlas.findings.claims import FAILED, HELD, OPEN, at_chance, changed, claims, positive
from lora_atlas.findings.evidence import Score, gather, over_seeds, pooled
from lora_atlas.findings.page import write
from lora_atlas.metrics import BEST_CONTROL, clustering, drift, grid, margins, retrieval, structure, worth
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN

EVALUATION = {"bootstrap": 200, "level": 0.9}
KINDS = {
    "delta": "weights",
    "factors": "weights",
    "clip_s8_g1": "generated pictures",
    "clip_training": "training pictures",
    "norm": "control",
}
APART = {"delta": 3.0, "factors": 2.0, "clip_s8_g1": 1.0, "clip_training": 4.0, "norm": 0.2}
ARTISTS, EACH = 6, 5


def vectors(descriptor: str, seed: int, apart: float) -> np.ndarray:
    rng = np.random.default_rng([seed, *descriptor.encode()])
    return apart * rng.normal(size=(ARTISTS, 1, 4)) + rng.normal(size=(ARTISTS, EACH, 4))


def embedded(descriptor: str, seed: int, apart: float) -> tables.pa.Table:
    X = vectors(descriptor, seed, apart)
    rows = [
        {
            "scenario": scenario,
            "calibration": calibration,
            "fold": artist % 2 if scenario == UNSEEN else 0,
            "lora": f"a{artist}/{number}",
            "artist": f"a{artist}",
            "genre": f"g{artist % 2}",
            "split": "gallery" if number < 3 else "query",
            "vector": X[artist, number],
        }
        for scenario, calibration in ((TOGETHER, "none"), (KNOWN, "none"), (KNOWN, "crossfit"), (UNSEEN, "none"))
        for artist in range(ARTISTS)
        for number in range(EACH)
    ]
    told = {"explained": [0.4] * 4, "held_out_ratio": [0.5] * 4, "held_out_ratio_predicted": [0.5] * 4}
    built = tables.table("embeddings", rows)
    return built.replace_schema_metadata({k: str(v) for k, v in told.items()})


def lay(folder, seed: int, apart=APART) -> None:
    """The tables of one study, as the rules write them, of made-up vectors."""
    options = EVALUATION | {"seed": seed}
    spaces = {name: embedded(name, seed, apart[name]) for name in KINDS}
    asked = {name: list(retrieval.ask(table, name, seed=seed)) for name, table in spaces.items()}
    told = {"kinds": KINDS, "calibration": "crossfit"}
    queries = [row for name in KINDS for row in retrieval.queries(asked[name], name, "crossfit")]
    quick = {"restarts": 1, "permutations": 5}
    clusters, _ = clustering.clusterings(spaces, KINDS, calibration="crossfit", **quick, **options)
    plan = tables.table(
        "plan",
        [
            {k: row[k] for k in ("lora", "artist", "genre", "split")} | {"seed": 0, "pictures": ["p"], "overlap": 0.0}
            for row in spaces["delta"].to_pylist()
            if row["scenario"] == TOGETHER
        ],
    )
    embedding = {"dimensions": 3, "calibrations": ["none", "crossfit"], "calibration": "crossfit", "folds": 3}
    grams = {n: (lambda X: X @ X.T)(vectors(n, seed, apart[n]).reshape(-1, 4)) for n in KINDS if KINDS[n] != "control"}
    rng = np.random.default_rng(seed)
    painted = [
        {
            "picture": f"{row['lora']}-{j}",
            "artist": row["artist"],
            "lora": row["lora"],
            "vector": vectors("clip_s8_g1", seed, 1.0)[int(row["artist"][1]), int(row["lora"][-1])]
            + rng.normal(size=4),
        }
        for row in plan.to_pylist()
        for j in range(4)
    ]
    curve = worth.worth_queries({"clip_s8_g1": tables.table("features", painted)}, plan, embedding, draws=2, seed=seed)
    parts = [
        {
            "component": "all", "block": "all", "factor": factor, "parameters": 9, "share": 1.0, "metric": "mAP",
            "value": 0.5, "low": 0.4, "high": 0.6, "matched": None, "matched_low": None, "matched_high": None,
            "chance": 0.1,
        }
        for factor in ("A", "B", "both", "delta")
    ]  # fmt: skip
    cost = [
        {"stage": stage, "item": item, "count": count, "seconds": seconds, "device": "cpu"}
        for stage, item, count, seconds in [
            ("train", "a0", 30, 60.0),
            ("gram", "delta", 30, 3.0),
            ("gram", "factors", 30, 3.0),
            ("generate", "a0", 120, 60.0),
            ("features", "clip", 120, 12.0),
        ]
    ]
    every = {
        "retrieval": [r for n in KINDS for r in retrieval.rows(asked[n], n, **options)],
        "queries": queries,
        "drift": [r for n, t in spaces.items() for r in drift.drift(t, n, **options)],
        "clustering": clusters,
        "structure": structure.structure(spaces, permutations=9, level=0.9, seed=seed),
        "grid": grid.grid(grams, plan, embedding, **options),
        "controls": margins.permuted(spaces, "crossfit", permutations=20, level=0.9, seed=seed),
        "ablation": parts,
        "worth_queries": curve,
        "cost": cost,
    }
    for name, rows in every.items():
        tables.write(folder / f"tables/{name}.parquet", name, rows, told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study, two replicates, and two variants in which the raw factors are worth nothing."""
    root = tmp_path_factory.mktemp("findings") / "study"
    lay(root, 0)
    for name, seed in (("s1", 1), ("s2", 2)):
        lay(root / "variants" / name, seed)
    lay(root / "variants/own", 5, APART | {"factors": 0.0})
    lay(root / "variants/mixed", 4, dict.fromkeys(KINDS, 0.0))
    return root


VARIANTS = {"own": {"training.init": "own", "extractors.clip": None}, "mixed": {"plan.mixtures": True}}


@pytest.fixture(scope="module")
def evidence(folder):
    return gather(folder, ["s1", "s2"], VARIANTS, EVALUATION, 0)


# --- pooling


def test_a_pooled_score_is_the_mean_over_seeds_and_artists(evidence, folder):
    found = pooled(evidence)
    values = []
    for place in (folder, folder / "variants/s1", folder / "variants/s2"):
        frame = tables.read(place / "tables/retrieval.parquet", "retrieval").to_pandas()
        row = frame[
            (frame.scenario == KNOWN) & (frame.calibration == "crossfit") & (frame.distance == "L2")
            & (frame.level == "artist") & (frame.metric == "mAP") & (frame.descriptor == "delta")
        ]  # fmt: skip
        values.append(row.value.item())
    score = found.score("delta")
    assert score.value == pytest.approx(np.mean(values)) and score.n == 3
    assert score.low < score.value < score.high


def test_differences_are_of_the_same_seeds_and_artists(evidence):
    found = pooled(evidence)
    difference = found.difference("delta", "factors")
    assert difference.value == pytest.approx(found.score("delta").value - found.score("factors").value)
    i, j = (found.descriptors.index(name) for name in ("delta", "factors"))
    spread = found.spread[i] - found.spread[j]
    assert (difference.low, difference.high) == pytest.approx(tuple(np.quantile(spread, [0.05, 0.95])))
    best = found.difference("delta", BEST_CONTROL)
    assert best.value == pytest.approx(found.score("delta").value - found.score("norm").value)


def test_everything_else_is_the_mean_with_the_widest_of_the_intervals(evidence, folder):
    keys = ["descriptor", "level", "algorithm", "metric"]
    found = over_seeds(evidence, "clustering", keys).set_index(keys)
    parts = [
        tables.read(place / "tables/clustering.parquet", "clustering").to_pandas().set_index(keys)
        for place in (folder, folder / "variants/s1", folder / "variants/s2")
    ]
    key = ("delta", "artist", "Ward", "ARI")
    rows = [part.loc[key] for part in parts]
    assert found.loc[key, "value"] == pytest.approx(np.mean([row["value"] for row in rows]))
    assert found.loc[key, "low"] == min(row["low"] for row in rows)
    assert found.loc[key, "high"] == max(row["high"] for row in rows)


# --- verdicts


@pytest.mark.parametrize(
    ("score", "verdict"),
    [(Score(0.2, 0.1, 0.3), HELD), (Score(0.2, -0.1, 0.3), OPEN), (Score(-0.2, -0.3, -0.1), FAILED)],
)
def test_an_interval_on_one_side_of_zero_decides(score, verdict):
    assert positive(score) == verdict


def test_chance_is_held_where_the_interval_holds_it():
    assert at_chance(Score(0.2, 0.1, 0.3, chance=0.15)) == HELD
    assert at_chance(Score(0.2, 0.16, 0.3, chance=0.15)) == FAILED


def test_claims_come_with_the_verdict_that_was_planted(evidence):
    found = {claim.sentence: claim.verdict for claim in claims(evidence)}

    def of(*words: str) -> str:
        (sentence,) = [s for s in found if all(word in s for word in words)]
        return found[sentence]

    assert of("`delta`", "every control") == HELD
    assert of("against `clip_s8_g1`") == HELD
    assert of("`clip_training`, which nobody") in (FAILED, OPEN)
    assert of("arrange LoRAs alike") in (HELD, OPEN)
    assert of("Of such a style") == HELD
    assert of("A of its own") == HELD
    assert of("raw factors", "are at chance") == HELD
    assert of("mixtures", "`delta`") == HELD and of("mixtures", "`factors`") == HELD


def test_a_variant_is_known_by_what_it_changes(evidence, folder):
    assert changed(evidence, init="own").folder == folder / "variants/own"
    assert changed(evidence, init="own", noise="shared") is None and changed(evidence, rank=4) is None


# --- the page


@pytest.fixture(scope="module")
def page(folder):
    path = folder / "FINDINGS.md"
    write(path, folder, study="mine", replicates=["s1", "s2"], variants=VARIANTS, evaluation=EVALUATION, seed=0)
    return path.read_text()


def test_every_section_is_there_and_no_number_is_missing(page):
    titles = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert (
        "linear probe" in page
        and len(titles) == 10
        and titles[0] == "What held, and what did not"
        and "What is a LoRA worth?" in titles
    )
    assert "3 seeds of the study" in page and "One seed only" not in page
    assert not re.search(r"\bnan\b|None|Score\(", page)


def test_every_table_has_as_many_cells_in_every_row(page):
    for block in re.findall(r"(?:^\|.*\|\n?)+", page, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line.strip())) for line in block.strip().splitlines()}
        assert len(widths) == 1, block[:200]


def test_the_same_tables_give_the_same_page(page, folder, tmp_path):
    other = tmp_path / "again.md"
    write(other, folder, study="mine", replicates=["s1", "s2"], variants=VARIANTS, evaluation=EVALUATION, seed=0)
    assert other.read_text() == page


def test_an_absent_table_is_named(folder, tmp_path):
    with pytest.raises(tables.TableError, match=r"variants/s9/tables/queries\.parquet"):
        write(tmp_path / "x.md", folder, study="m", replicates=["s9"], variants={}, evaluation=EVALUATION, seed=0)
    assert not (tmp_path / "x.md").exists()
