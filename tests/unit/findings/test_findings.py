"""Findings: what tables of several seeds say together, verdicts of tests that are corrected for each other, and a page
of nothing else."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lora_atlas import tables
from lora_atlas.descriptors import ACROSS, CONTROL, GENERATED, LEARNT, TRAINING, WEIGHTS, Descriptor, kinds, stored
from lora_atlas.findings.claims import (
    FAILED,
    HELD,
    MARGIN,
    OPEN,
    Claim,
    at_chance,
    best_settings,
    claims,
    judged,
    larger,
    speakers,
)
from lora_atlas.findings.cost import seconds_per_lora
from lora_atlas.findings.evidence import Pooled, Score, asked_unseen, gather, over_seeds, pooled
from lora_atlas.findings.page import write
from lora_atlas.metrics import (
    BEST_CONTROL,
    clustering,
    crowd,
    drift,
    grid,
    intervals,
    margins,
    retrieval,
    structure,
    worth,
)
from lora_atlas.sections import Embedding
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View

EVALUATION = {"bootstrap": 200, "confidence": 0.9}
EMBEDDING = Embedding(dimensions=3, calibrations=["none", "crossfit"], calibration="crossfit", folds=3)
VIEW = View("whole", "crossfit", "cosine")
ARTISTS, EACH = 8, 5


def of_weights(kernel: str, how: str = "plain", scale: str = "unit", kind: str = WEIGHTS) -> Descriptor:
    return Descriptor(kind, kernel, how, scale)


def seen(extractor: str, at: str, query: str | None = None, *, series: str | None = None) -> Descriptor:
    if at == (query or at) == "training":
        return Descriptor(TRAINING, extractor=extractor, gallery=at, query=at)
    return Descriptor(
        ACROSS if query else GENERATED, extractor=extractor, gallery=at, query=query or at, setting="8 steps",
        series=series, passes=8, pictures=4,
    )  # fmt: skip


# Descriptor → how far artists are apart by it. Two extractors whose names begin alike: one sees well what is generated,
# the other what was trained on.
EVERY = {
    of_weights("delta", "gradient"): 4.0,
    of_weights("delta"): 3.0,
    of_weights("delta", scale="raw"): 2.5,
    of_weights("delta", "learnt", kind=LEARNT): 4.5,
    of_weights("factors"): 2.0,
    seen("clip_l14", "training"): 3.0,
    seen("clip_l14", "s8_g1"): 0.3,
    seen("clip_l14", "s8_g1_shared4", series="shared"): 0.4,
    seen("clip_l14", "s8_g1_own4", series="own"): 0.3,
    seen("clip_h14", "training"): 6.0,
    seen("clip_h14", "s8_g1"): 0.5,
    seen("clip_h14", "s8_g1", "training"): 0.4,
    Descriptor(CONTROL, control="norm"): 0.1,
}
PLANTED = {descriptor.name: apart for descriptor, apart in EVERY.items()} | {"down": 2.0}


def vectors(descriptor: str, seed: int, apart: float) -> np.ndarray:
    """(artists, LoRAs, 4); artists are the same in all seeds and descriptors, and so is what is within one."""
    rng = np.random.default_rng([seed, *descriptor.encode()])
    centres = np.random.default_rng(11).normal(size=(ARTISTS, 1, 4))
    return apart * centres + rng.normal(size=(ARTISTS, EACH, 4))


def embedded(descriptor: str, seed: int, apart: float) -> tables.pa.Table:
    X = vectors(descriptor, seed, apart)
    spaces = [(TOGETHER, "none"), (KNOWN, "none"), (KNOWN, "crossfit"), (WHOLE, "none")]
    rows = [
        {
            "scenario": scenario,
            "calibration": calibration,
            "fold": artist % 2 if scenario in (UNSEEN, WHOLE_UNSEEN) else 0,
            "lora": f"a{artist}/{number}",
            "artist": f"a{artist}",
            "genre": f"g{artist % 2}",
            "split": "gallery" if number < 3 else "query",
            "vector": X[artist, number],
        }
        for scenario, calibration in (*spaces, (UNSEEN, "none"), (WHOLE_UNSEEN, "none"))
        for artist in range(ARTISTS)
        for number in range(EACH)
    ]
    told = {"explained": [0.4] * 4, "held_out_ratio": [0.5] * 4, "held_out_ratio_predicted": [0.5] * 4}
    built = tables.table("embeddings", rows)
    return built.replace_schema_metadata({k: str(v) for k, v in told.items()})


def lay(folder, seed: int, apart=PLANTED, *, found=tuple(EVERY), view: View = VIEW, whole: bool = True) -> None:
    """The tables of one study, as the rules write them, of made-up vectors; not `whole`: those of retrieval alone."""
    options = EVALUATION | {"seed": seed}
    told = {"kinds": kinds(list(found)), "view": view.stored(), "descriptors": stored(list(found))}
    names = [descriptor.name for descriptor in found]
    spaces = {name: embedded(name, seed, apart[name]) for name in names}
    asked = {name: list(retrieval.ask(table, name, seed=seed)) for name, table in spaces.items()}
    every = {
        "retrieval": [row for n in names for row in retrieval.rows(asked[n], n, confidence=EVALUATION["confidence"])],
        "queries": [row for n in names for row in retrieval.queries(asked[n], n)],
    }
    if whole:
        every |= others(found, spaces, seed, apart, view, options, told)
    for name, rows in every.items():
        tables.write(folder / f"tables/{name}.parquet", name, rows, told)


def others(found, spaces, seed, apart, view, options, told):
    confidence = EVALUATION["confidence"]
    compared = {name: spaces[name] for name in told["kinds"]}
    quick = {"restarts": 1, "permutations": 5, "confidence": confidence, "seed": seed}
    clusters, _ = clustering.clusterings(compared, told["kinds"], calibration="crossfit", **quick)
    plan = planned()
    grams = {name: (lambda X: X @ X.T)(vectors(name, seed, apart[name]).reshape(-1, 4)) for name in compared}
    rng = np.random.default_rng(seed)
    curves = {}
    for descriptor in found:
        if descriptor.series:
            X = vectors(descriptor.name, seed, apart[descriptor.name])
            painted = [
                {
                    "picture": f"{row['lora']}-{j}",
                    "artist": row["artist"],
                    "lora": row["lora"],
                    "vector": X[int(row["artist"][1]), int(row["lora"][-1])] + rng.normal(size=4),
                }
                for row in plan.to_pylist()
                for j in range(4)
            ]
            curves[descriptor.name] = tables.table("features", painted)
    kernels = sorted({d.kernel for d in found if d.kernel})
    parts = [
        {
            "component": "all", "block": block, "factor": factor, "parameters": 9, "share": 1.0, "metric": "mAP",
            "value": 0.5, "low": 0.4, "high": 0.6, "matched": None, "matched_low": None, "matched_high": None,
            "chance": 0.1,
        }
        for kernel in kernels
        for factor in {"delta": ["delta"], "factors": ["A", "B", "both"], "down": ["A"]}[kernel]
        for block in ("all", "up", "up_blocks.0.attentions.1", "unet.up_blocks.0.attentions.1.to_q")
    ]  # fmt: skip
    weighed = [
        {
            "kernel": kernel, "weighting": how, "module": f"unet.{block}.to_q", "component": "self_attention",
            "block": block, "weight": 1.0, "share": 0.5, "weighted_share": share,
        }
        for kernel in kernels
        for how in ("plain", "gradient")
        for block, share in (("up_blocks.0", 0.25), ("down_blocks.0", 0.75))
    ]  # fmt: skip
    extractors = sorted({d.extractor for d in found if d.extractor})
    cost = [
        {"stage": stage, "item": item, "count": count, "seconds": seconds, "device": "cpu"}
        for stage, item, count, seconds in [
            ("train", "a0", 30, 60.0),
            *(("gram", kernel, 30, 3.0) for kernel in [*kernels, "modules"]),
            *([("generate", "a0", 120, 60.0)] if extractors else []),
            *(("features", extractor, 120, 12.0 + 12.0 * i) for i, extractor in enumerate(extractors)),
        ]
    ]
    every = {
        "crowd": [row for n, t in spaces.items() for row in crowd.crowd(t, n, view, confidence=confidence)],
        "drift": [row for n, t in spaces.items() for row in drift.drift(t, n, confidence=confidence)],
        "clustering": clusters,
        "structure": structure.structure(
            compared, {}, scenario=view.together, permutations=9, confidence=confidence, seed=seed
        ),
        "grid": grid.grid(grams, plan, EMBEDDING, view=view, confidence=confidence, seed=seed),
        "controls": margins.permuted(compared, view, permutations=20, confidence=confidence, seed=seed),
        "ablation": parts,
        "module_weights": weighed,
        "cost": cost,
    }
    if curves:
        every["worth_queries"] = worth.worth_queries(curves, plan, EMBEDDING, view=view, draws=2, seed=seed)
    return every


def planned(shared=()) -> tables.pa.Table:
    """The plan; `shared`: artists all of whose LoRAs have one picture, and one of their own beside it."""
    rows = [
        {
            "lora": f"a{artist}/{number}",
            "artist": f"a{artist}",
            "genre": f"g{artist % 2}",
            "split": "gallery" if number < 3 else "query",
            "seed": 0,
            "pictures": [f"a{artist}", "b"] if f"a{artist}" in shared else [f"a{artist}/{number}", "b"],
            "overlap": 0.5 if f"a{artist}" in shared else 0.0,
        }
        for artist in range(ARTISTS)
        for number in range(EACH)
    ]
    return tables.table("plan", rows)


VARIANTS = {
    "own": {"training.init": "own", "extractors.clip": None},
    "own2": {"training.init": "own", "seed": 8},
    "mixed": {"plan.mixtures": True},
    "both": {"plan.mixtures": True, "training.init": "own"},
}
REPLICATES = ["s1", "s2", "s3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study, three replicates, and variants in which the raw factors, or everything, are worth nothing."""
    root = tmp_path_factory.mktemp("findings") / "study"
    lay(root, 0)
    for seed, name in enumerate(REPLICATES, 1):
        lay(root / "variants" / name, seed)
    raw = PLANTED | {"factors": 0.0}
    lay(root / "variants/own", 5, raw, whole=False)
    lay(root / "variants/own2", 6, raw, whole=False)
    lay(root / "variants/mixed", 4, dict.fromkeys(PLANTED, 0.0), whole=False)
    lay(root / "variants/both", 7, PLANTED, whole=False)
    return root


@pytest.fixture(scope="module")
def evidence(folder):
    return gather(folder, REPLICATES, VARIANTS, EVALUATION, 0)


@pytest.fixture(scope="module")
def found(evidence):
    return claims(evidence)


@pytest.fixture
def few(monkeypatch):
    """Fewer permutations, where no verdict is looked at."""
    monkeypatch.setattr(structure, "TESTS", structure.RSA_LEAST)


def of(found, *words: str) -> Claim:
    (claim,) = [claim for claim in found if all(word in claim.sentence for word in words)]
    return claim


# --- pooling


@pytest.mark.parametrize("view", [VIEW, View("components", "crossfit", "L2"), View("components", "none", "CSLS")])
def test_a_pooled_score_is_the_mean_over_seeds_and_artists(evidence, folder, view):
    found = pooled(evidence, view=view)
    values = []
    for place in (folder / "variants" / name for name in REPLICATES):
        frame = tables.read(place / "tables/retrieval.parquet", "retrieval").to_pandas()
        scenario, calibration = (WHOLE, "none") if view.basis == "whole" else (KNOWN, view.calibration)
        row = frame[
            (frame.scenario == scenario) & (frame.calibration == calibration) & (frame.distance == view.distance)
            & (frame.level == "artist") & (frame.metric == "mAP") & (frame.descriptor == "factors")
        ]  # fmt: skip
        values.append(row.value.item())
    score = found.score("factors")
    assert score.value == pytest.approx(np.mean(values)) and score.n == 3
    assert score.low < score.value < score.high and 0 < score.chance < 0.5


def test_differences_are_of_the_same_seeds_and_artists(evidence):
    found = pooled(evidence)
    difference = found.difference("delta", "factors")
    assert difference.value == pytest.approx(found.score("delta").value - found.score("factors").value)
    estimate = intervals.crossed(found.of("delta") - found.of("factors"), intervals.DIFFERENCE)
    assert (difference.low, difference.high) == pytest.approx(estimate.interval(0.9))
    assert (difference.larger, difference.smaller) == pytest.approx(estimate.p(0.0))
    best = found.difference("delta", BEST_CONTROL)
    assert found.controls == ["norm"]
    assert best.value == pytest.approx(found.score("delta").value - found.score("norm").value)


def test_a_difference_may_be_across_views(evidence):
    here, there = pooled(evidence), pooled(evidence, view=View("components", "none", "L2"))
    difference = here.difference("delta", "factors", there)
    assert difference.value == pytest.approx(here.mean("delta") - there.mean("factors"))
    assert difference.value != pytest.approx(here.difference("delta", "factors").value, abs=1e-6)


def test_unseen_artists_are_those_of_the_headlines_own_scenario(evidence, folder):
    frame = tables.read(folder / "variants/s1/tables/retrieval.parquet", "retrieval").to_pandas()
    (study,) = [study for study in evidence.replicates if study.folder.name == "s1"]
    for view, scenario in ((VIEW, WHOLE_UNSEEN), (View("components", "crossfit", "cosine"), UNSEEN)):
        row = frame[
            (frame.scenario == scenario) & (frame.distance == "cosine") & (frame.level == "artist")
            & (frame.metric == "mAP") & (frame.descriptor == "factors")
        ]  # fmt: skip
        assert pooled(evidence, [study], unseen=True, view=view).mean("factors") == pytest.approx(row.value.item())
    assert asked_unseen(evidence)


def test_everything_else_is_the_mean_with_the_widest_of_the_intervals(evidence, folder):
    keys = ["scenario", "descriptor", "level", "algorithm", "metric"]
    found = over_seeds(evidence, "clustering", keys).set_index(keys)
    parts = [
        tables.read(folder / "variants" / name / "tables/clustering.parquet", "clustering").to_pandas().set_index(keys)
        for name in REPLICATES
    ]
    key = (WHOLE, "factors", "artist", "Ward", "ARI")
    rows = [part.loc[key] for part in parts]
    assert found.loc[key, "value"] == pytest.approx(np.mean([row["value"] for row in rows]))
    assert found.loc[key, "low"] == min(row["low"] for row in rows)
    assert found.loc[key, "high"] == max(row["high"] for row in rows)


def test_of_several_p_values_the_largest_counts(evidence, folder):
    keys = ["level", "left", "right", "metric"]
    found = over_seeds(evidence, "structure", keys).set_index(keys)["p"]
    parts = [
        tables.read(folder / "variants" / name / "tables/structure.parquet", "structure").to_pandas()
        for name in REPLICATES
    ]
    wanted = tables.pa.concat_tables([tables.pa.Table.from_pandas(part) for part in parts]).to_pandas()
    assert found.to_dict() == wanted.groupby(keys)["p"].max().to_dict()


# --- verdicts


def pool(table: np.ndarray, chance: float = 0.2) -> Pooled:
    return Pooled(["x"], np.asarray(table, float)[None], np.array([chance]), 0.95, [])


def spread(middle: float, width: float, seeds: int = 4, artists: int = 20) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(seeds, artists))
    return (middle + width * (noise - noise.mean()) / noise.std()).clip(0, 1)


@pytest.mark.parametrize(
    ("p", "verdict"), [((1e-5, 1.0), HELD), ((1.0, 1e-5), FAILED), ((0.2, 0.8), OPEN), ((0.026, 0.974), OPEN)]
)
def test_one_side_of_a_test_decides(p, verdict):
    (claim,) = judged([larger("x", Score(0.2, 0.1, 0.3, None, 3, *p), "numbers")], 0.95)
    assert claim.verdict == verdict and claim.seeds == 3
    assert claim.adjusted == pytest.approx(2 * min(p))


def test_a_claim_whose_opposite_cannot_be_shown_is_tested_on_its_one_side():
    """With 1,999 permutations p is .0005 at least, and doubled no such claim of a page of 59 could hold."""
    one = Claim("x", 1 / 2000, 1.0, "", 3, one_sided=True)
    others = [Claim("y", 0.5, 0.5, "", 3)] * 58
    first = judged([one, *others], 0.95)[0]
    assert first.adjusted == pytest.approx(59 / 2000) and first.verdict == HELD


def test_what_a_seed_does_not_say_is_not_said_of_all():
    """A seed without an error has no law of crowds; a forecast of the others would be of the worse ones."""
    frames = [
        pd.DataFrame({"descriptor": ["x", "y"], "artists": [20, 20], "value": [None, None], "law": law})
        for law in ([0.9, 0.9], [None, 0.7])
    ]
    seeds = [
        SimpleNamespace(has=lambda name: True, frame=lambda name, schema, f=f: f.astype({"law": float})) for f in frames
    ]
    found = over_seeds(SimpleNamespace(seeds=seeds), "crowd", ["descriptor", "artists"]).set_index("descriptor")["law"]
    assert np.isnan(found["x"]) and found["y"] == pytest.approx(0.8)


def test_verdicts_are_of_all_claims_together():
    one = Claim("x", 0.01, 0.99, "", 1)
    assert [claim.verdict for claim in judged([one], 0.95)] == [HELD]
    several = judged([one, *[Claim("y", 0.5, 0.5, "", 1)] * 9], 0.95)
    assert [claim.verdict for claim in several] == [OPEN] * 10
    assert several[0].adjusted == pytest.approx(0.2)
    assert judged([], 0.95) == []


def test_a_wide_interval_is_no_evidence_of_chance():
    wide, tight, far = (
        judged([at_chance("x", pool(table), "x")], 0.95)[0]
        for table in (spread(0.2, 0.35, 2, 4), spread(0.2, 0.05), spread(0.8, 0.05))
    )
    assert wide.verdict == OPEN
    assert tight.verdict == HELD and tight.seeds == 4
    assert far.verdict == FAILED
    assert f"margin {MARGIN:.2f}" in tight.numbers and "chance 0.20" in tight.numbers


def test_far_below_chance_is_not_at_chance():
    below = judged([at_chance("x", pool(spread(0.2, 0.05), chance=0.6), "x")], 0.95)[0]
    assert below.verdict == FAILED


def test_at_chance_where_nothing_can_be_below_the_margin():
    """A score of 0.05 is within 0.10 of a chance of 0.05: nothing is below nothing, and one side suffices."""
    assert judged([at_chance("x", pool(spread(0.05, 0.01), chance=0.05), "x")], 0.95)[0].verdict == HELD


def test_claims_come_with_the_verdict_that_was_planted(found):
    for descriptor in ("delta_gradient", "delta"):
        for who in ("find an artist better than every", "find an artist that nothing was fitted on better than every"):
            assert of(found, f"(`{descriptor}`)", who).verdict == HELD
    for name in ("clip_l14_s8_g1", "clip_h14_s8_g1"):
        assert of(found, f"(`{name}", "find an artist better than").verdict == HELD
    assert of(found, "(`clip_h14_training`", "find an artist better than").verdict in (FAILED, OPEN)
    assert of(found, "arrange artists alike", "clip_h14_training").verdict == HELD
    assert of(found, "A of its own", "(`delta_gradient`)").verdict == HELD
    assert of(found, "raw factors", "are at chance").verdict in (HELD, OPEN)
    assert of(found, "mixtures", "`delta`").verdict in (HELD, OPEN)
    assert {claim.verdict for claim in found} <= {HELD, OPEN, FAILED}


def test_a_claim_says_how_many_seeds_it_rests_on(found):
    assert of(found, "(`delta`)", "an artist better than every").seeds == 3
    assert of(found, "A of its own", "(`delta_gradient`)").seeds == 2
    assert of(found, "mixtures", "`delta`").seeds == 1
    assert of(found, "arrange artists alike", "clip_h14_training").seeds == 3


def test_verdicts_come_from_the_replicates(tmp_path):
    """In the choosing seed the weights know nothing; the others say that they do."""
    some = [d for d in EVERY if d.name in ("delta", "norm", "clip_l14_s8_g1")]
    lay(tmp_path, 0, PLANTED | {"delta": 0.0}, found=some, whole=False)
    for seed, name in enumerate(REPLICATES, 1):
        lay(tmp_path / "variants" / name, seed, found=some, whole=False)
    alone, replicated = (gather(tmp_path, names, {}, EVALUATION, 0) for names in ([], REPLICATES))
    words = ("`delta`", "find an artist better than every")
    assert of(claims(alone), *words).verdict != HELD and of(claims(alone), *words).seeds == 1
    assert of(claims(replicated), *words).verdict == HELD and of(claims(replicated), *words).seeds == 3
    assert [study.folder for study in alone.seeds] == [tmp_path]
    assert [study.folder.name for study in replicated.seeds] == REPLICATES


def test_best_settings_are_those_of_the_choosing_seed(tmp_path):
    """Which of two settings is best differs between the choosing seed and the others."""
    two = [of_weights("delta"), seen("clip", "s8_g1"), seen("clip", "s8_g3")]
    for name, seed, best in (("", 0, "clip_s8_g1"), ("variants/s1", 1, "clip_s8_g3")):
        apart = {"delta": 3.0, "clip_s8_g1": 0.0, "clip_s8_g3": 0.0} | {best: 4.0}
        lay(tmp_path / name, seed, apart, found=two, whole=False)
    evidence = gather(tmp_path, ["s1"], {}, EVALUATION, 0)
    assert [name for name, _ in best_settings(evidence, unseen=False)] == ["clip_s8_g1"]
    claim = of(claims(evidence), "find an artist better than", "clip_s8_g1")
    assert f"{pooled(evidence).score('delta')}" in claim.numbers  # and the numbers those of the others


def test_extractors_whose_names_begin_alike_stay_apart(evidence):
    """Names were once parsed back by a split at the first underscore: clip_l14 and clip_h14 both were "clip", and
    int("l14_s8") ended the page."""
    names = [name for name, _ in best_settings(evidence, unseen=False)]
    described = {name: evidence.described[name] for name in names}
    assert sorted((d.extractor, d.kind) for d in described.values()) == sorted(
        (extractor, kind) for extractor in ("clip_l14", "clip_h14") for kind in (GENERATED, TRAINING)
    )
    cost = seconds_per_lora(evidence.study.table("cost"), evidence.described)
    # 60 s for 120 pictures, and 12 s or 24 s to look at them; four of a LoRA.
    assert cost["clip_h14_s8_g1"] == pytest.approx(4 * (0.5 + 0.1))
    assert cost["clip_l14_s8_g1"] == pytest.approx(4 * (0.5 + 0.2))
    assert cost["clip_l14_training"] is None and cost["delta"] == pytest.approx(0.1)


def test_speakers_are_the_headline_and_its_kernel(evidence):
    assert speakers(evidence, pooled(evidence)) == ["delta_gradient", "delta"]


def test_a_variant_is_known_by_what_it_changes(evidence, folder):
    own = evidence.alike(training__init="own")  # of any seed, and whatever it leaves out of the extractors
    assert [study.folder for study in own] == [folder / "variants/own", folder / "variants/own2"]
    assert [study.folder.name for study in evidence.alike(plan__mixtures=True)] == ["mixed"]
    assert [s.folder.name for s in evidence.alike(training__init="own", plan__mixtures=True)] == ["both"]
    assert evidence.alike(training__init="own", training__noise="shared") == evidence.alike(training__rank=4) == []


# --- the page

ABOUT = ["The pictures are of a test.", "The base `b` learnt from nothing."]
TITLES = [
    "What held, and what did not",
    "What is a LoRA worth?",
    "Retrieval",
    "How many styles can be told apart?",
    "Clusters",
    "Controls",
    "Do weights and pictures have the same geometry?",
    "Which weights?",
    "What the weightings do",
    "How many numbers suffice, and the same budget for everybody",
    "The drift of unseen LoRAs",
    "Other settings",
]


def written(path, folder, replicates=REPLICATES, variants=VARIANTS, about=ABOUT, given=None) -> str:
    write(
        path, folder, study="mine", replicates=replicates, variants=variants, evaluation=EVALUATION, about=about,
        seed=0, given=given,
    )  # fmt: skip
    return path.read_text()


def check_tables(page: str) -> None:
    assert not re.search(r"\bnan\b|\binf\b|None|Score\(|Descriptor\(", page)
    for block in re.findall(r"(?:^\|.*\|\n?)+", page, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line.strip())) for line in block.strip().splitlines()}
        assert len(widths) == 1, block[:200]


@pytest.fixture(scope="module")
def page(folder):
    return written(folder / "FINDINGS.md", folder)


def test_every_section_is_there_and_no_number_is_missing(page):
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == TITLES
    assert "linear probe" in page and "Headline: no basis, cosine" in page
    assert "comes from 3 other seeds" in page and "One seed only" not in page
    check_tables(page)


def test_a_study_without_replicates_says_that_it_is_one_seed(folder, tmp_path):
    page = written(tmp_path / "one.md", folder, replicates=[], variants={})
    assert "**One seed only**" in page and "other seeds, each" not in page
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == TITLES[:-1]
    check_tables(page)


def test_what_the_study_is_about_is_said(page):
    assert f"{' '.join(ABOUT)} No number here reproduces one of the paper's." in page


def test_the_page_begins_with_what_is_asked_first(page, found, evidence):
    short = page.split("\n\n")[1]
    pool, first = pooled(evidence), speakers(evidence, pooled(evidence))[0]
    assert short.startswith(f"**In short.** By its weights alone (`{first}`)")
    assert (
        f"mean average precision of {pool.score(first)}" in short
        and str(pooled(evidence, unseen=True).score(first)) in short
    )
    assert f"`{pool.best(pool.controls)}`" in short
    (claim,) = [
        each
        for each in found
        if each.sentence == f"The weights (`{first}`) find an artist better than every control does."
    ]
    assert f"more than each of those: **{claim.verdict}**." in short
    counts = [sum(each.verdict == verdict for each in found) for verdict in ("held", "did not hold", "undecided")]
    assert f"{counts[0]} held and {counts[1]} did not; {counts[2]} are undecided" in short and sum(counts) == len(found)


def test_each_row_of_claims_says_its_seeds(page, found):
    _, rest = page.split("## What held, and what did not\n\n", 1)
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in rest.split("\n\n", 1)[0].splitlines()]
    assert rows[0] == ["claim", "verdict", "numbers", "adjusted p", "seeds"]
    assert [(row[0], row[1], row[4]) for row in rows[2:]] == [
        (claim.sentence, f"**{claim.verdict}**", str(claim.seeds)) for claim in found
    ]
    assert {row[4] for row in rows[2:]} == {"1", "2", "3"}
    assert f"corrected for all {len(found)} claims" in page


def test_both_extractors_are_in_the_table_of_worth_by_their_descriptors(page):
    assert "`clip_l14_s8_g1_shared4`" in page and "`clip_l14_s8_g1_own4`" in page
    assert "by clip_l14 where all LoRAs have the same prompt and the same noise" in page


def test_other_settings_name_the_variants_that_are_of_them(page):
    """Those of one setting and several seeds are one row; what a study leaves out of the extractors is no setting."""
    _, rest = page.split("## Other settings\n\n", 1)
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in rest.split("\n\n", 1)[0].splitlines()]
    assert [(row[0], row[-1]) for row in rows[2:]] == [
        ("the study", "3"),
        ("training.init own (`own`, `own2`)", "2"),
        ("plan.mixtures True (`mixed`)", "1"),
        ("plan.mixtures True, training.init own (`both`)", "1"),
    ]


def test_the_same_tables_give_the_same_page(page, folder, tmp_path):
    assert written(tmp_path / "again.md", folder) == page


def test_what_lies_in_the_folder_and_is_no_input_is_not_read(folder, tmp_path):
    """Tables that other settings left: the page is written as if they were not there."""
    every = list(folder.rglob("*.parquet"))
    without = [path for path in every if path.stem not in ("crowd", "worth", "worth_queries", "crossings")]

    whole = written(tmp_path / "all.md", folder, given=every)
    less = written(tmp_path / "some.md", folder, given=without)
    assert whole == written(tmp_path / "none.md", folder)
    titles = {line for line in whole.splitlines() if line.startswith("## ")}
    assert len(titles - {line for line in less.splitlines() if line.startswith("## ")}) == 2
    with pytest.raises(tables.TableError, match="none of the job's inputs"):
        gather(folder, [], {}, EVALUATION, 0, without).study.table("crowd")


def test_an_absent_table_is_named(folder, tmp_path):
    with pytest.raises(tables.TableError, match=r"variants/s9/tables/queries\.parquet"):
        written(tmp_path / "x.md", folder, replicates=["s9"], variants={})
    assert not (tmp_path / "x.md").exists()


def test_pictures_that_loras_share_are_said(tmp_path, few):
    some = [d for d in EVERY if d.name in ("delta", "norm")]
    lay(tmp_path, 0, found=some)
    plain = written(tmp_path / "p.md", tmp_path, [], {})
    assert "LoRAs that share pictures" not in plain  # no plan is beside the tables: it is another study's
    tables.write(tmp_path / "plan.parquet", "plan", planned())
    assert written(tmp_path / "p.md", tmp_path, [], {}) == plain  # and here none does
    tables.write(tmp_path / "plan.parquet", "plan", planned(shared=("a1", "a3")))
    shared = written(tmp_path / "p.md", tmp_path, [], {})
    (told,) = [part for part in shared.split("\n\n") if part.startswith("**LoRAs that share pictures**")]
    assert "a1 (gallery LoRAs share up to 50% of their pictures, 3 of 3 from the very same pictures)" in told
    assert "a3 (query LoRAs share up to 50% of their pictures, 2 of 2 from the very same pictures)" in told
    assert "a0" not in told and "seed 1" not in told


def test_shared_pictures_of_replicates_are_said_by_their_seed(tmp_path, few):
    some = [d for d in EVERY if d.name in ("delta", "norm")]
    for place in (tmp_path, tmp_path / "variants/s1", tmp_path / "variants/s2"):
        lay(place, 1, found=some)
        shared = ("a2",) if place.name == "s2" else ("a0",) if place == tmp_path else ()
        tables.write(place / "plan.parquet", "plan", planned(shared))
    page = written(tmp_path / "p.md", tmp_path, ["s1", "s2"], {})
    (told,) = [part for part in page.split("\n\n") if part.startswith("**LoRAs that share pictures**")]
    assert "seed 2: a2 (gallery" in told and "a0" not in told  # that of the choosing seed is no evidence


# --- studies of less

DELTA_ALONE = [d for d in EVERY if d.kernel != "factors"]
FACTORS_ALONE = [d for d in EVERY if d.kernel != "delta"]
NO_PICTURES = [d for d in EVERY if d.extractor is None]
NO_CONTROLS = [d for d in EVERY if d.kind != CONTROL]
WEIGHTS_ALONE = [of_weights("delta")]
DOWN_ALONE = [of_weights("down")]


@pytest.mark.parametrize(
    "some",
    [DELTA_ALONE, FACTORS_ALONE, NO_PICTURES, NO_CONTROLS, WEIGHTS_ALONE, DOWN_ALONE],
    ids=["delta alone", "factors alone", "no pictures", "no controls", "one descriptor", "down alone"],
)
def test_a_study_of_less_has_a_whole_page(some, tmp_path, few):
    lay(tmp_path, 0, found=some)
    variants = {"own": VARIANTS["own"], "mixed": VARIANTS["mixed"]}
    for name in variants:
        lay(tmp_path / "variants" / name, 5, found=some, whole=False)
    page = written(tmp_path / "p.md", tmp_path, [], variants)
    absent = set() if any(d.series for d in some) else {"What is a LoRA worth?"}
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [title for title in TITLES if title not in absent]
    check_tables(page)
    names = set(re.findall(r"`([a-z0-9_]+)`", page))
    kernels = {d.kernel for d in some if d.kernel}
    other = {"factors", "delta"} - kernels
    assert not other & names
    assert some[0].name in names and "Here the best block is `up` (0.50)." in page


@pytest.mark.parametrize("view", [View("components", "crossfit", "L2"), View("components", "none", "cosine")])
def test_a_headline_of_components_has_a_whole_page(view, tmp_path, few):
    some = [d for d in EVERY if d.name in ("delta", "factors", "clip_l14_training", "norm")]
    lay(tmp_path, 0, found=some, view=view)
    page = written(tmp_path / "p.md", tmp_path, [], {})
    assert f"Headline: {view.label}" in page
    check_tables(page)


def test_a_learnt_metric_alone_is_compared_with_nothing(tmp_path, few):
    some = [of_weights("delta", "learnt", kind=LEARNT), seen("clip", "training")]
    lay(tmp_path, 0, {"delta_learnt": 3.0, "clip_training": 3.0}, found=some)
    check_tables(written(tmp_path / "p.md", tmp_path, [], {}))


def test_an_extractor_that_sees_nothing_makes_no_claim(tmp_path, few):
    """Its pictures are all one to it: there is no geometry to compare, and no number to state."""
    some = [of_weights("delta"), seen("clip", "training"), Descriptor(CONTROL, control="norm")]
    lay(tmp_path, 0, PLANTED | {"clip_training": 1.0}, found=some)
    path = tmp_path / "tables/structure.parquet"
    rows = tables.read(path, "structure").to_pylist()
    nothing = {"value": None, "low": None, "high": None, "p": 1.0}
    rows = [row | (nothing if "clip_training" in (row["left"], row["right"]) else {}) for row in rows]
    tables.write(path, "structure", rows)
    check_tables(written(tmp_path / "p.md", tmp_path, [], {}))
