"""Charts of the evaluation: they are drawn, and what they show is what the tables say."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from lora_atlas import tables
from lora_atlas.atlas import evaluation, says
from lora_atlas.atlas.charts import save
from lora_atlas.descriptors import ACROSS, CONTROL, GENERATED, WEIGHTS, Descriptor, kinds, stored
from lora_atlas.metrics.structure import LEVELS
from lora_atlas.tables import KNOWN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View

VIEW = View("whole", "crossfit", "cosine")


def painted(at: str, *, query: str | None = None, series: str | None = None) -> Descriptor:
    return Descriptor(
        ACROSS if query else GENERATED, extractor="clip", gallery=at, query=query or at, setting=at, series=series,
        passes=8, pictures=4,
    )  # fmt: skip


DELTA, FACTORS = (Descriptor(WEIGHTS, kernel, "plain", "unit") for kernel in ("delta", "factors"))
PLAIN = [DELTA, FACTORS, painted("s8_g1"), Descriptor(CONTROL, control="norm")]
# These stand in no matrix: norms that are kept, a series, what compares across sources.
OTHERS = [
    Descriptor(WEIGHTS, "delta", "plain", "raw"),
    painted("s8_g1_shared4", series="shared"),
    painted("s8_g1_own4", series="own"),
    painted("s8_g1", query="training"),
]
DESCRIPTORS = PLAIN + OTHERS
LEVEL = {"delta": 0.5, "factors": 0.45, "delta_raw": 0.3, "clip_s8_g1": 0.4, "norm": 0.2}


def row(**values):
    return {"value": 0.5, "low": 0.4, "high": 0.6} | values


@pytest.fixture
def retrieval(tmp_path):
    base = {"scenario": WHOLE, "calibration": "none", "distance": "cosine", "level": "artist", "metric": "mAP"}
    rows = [row(descriptor=d, chance=0.1, queries=4, value=v, **base) for d, v in LEVEL.items()]
    # Rows of unseen artists and of other views, each in one thing unlike the headline's.
    for other in ({"scenario": WHOLE_UNSEEN}, {"scenario": KNOWN}, {"distance": "L2"}, {"metric": "R@1"}):
        rows += [row(descriptor=d, chance=0.1, queries=4, value=0.99, **base | other) for d in LEVEL]
    told = {"kinds": kinds(DESCRIPTORS), "view": VIEW.stored(), "descriptors": stored(DESCRIPTORS)}
    tables.write(tmp_path / "r.parquet", "retrieval", rows, told)
    return tables.read(tmp_path / "r.parquet", "retrieval")


def charts(retrieval):
    worth = [
        row(descriptor=d, pictures=m, metric="mAP", seconds=None, value=0.1 * m)
        for d in ("clip_s8_g1", "clip_s8_g1_shared4", "clip_s8_g1_own4")
        for m in (1, 2, 4)
    ]
    names = [d.name for d in DESCRIPTORS if d.kind != ACROSS]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    structure = [
        row(level=level, left=a, right=b, metric=m, null=0.0, null_high=0.1, p=0.01, value=0.1 * number)
        | ({"value": None, "low": None, "high": None} if b == "norm" else {})
        for number, level in enumerate(LEVELS, 1)
        for a, b in pairs
        for m in ("CKA", "RSA", "Procrustes", "mutual kNN")
    ]
    ablation = [
        row(component=c, block=b, factor=f, parameters=9, share=0.3, metric="mAP", chance=0.1)
        | {"matched": None, "matched_low": None, "matched_high": None}
        for c in ("all", "feed_forward")
        for b in ("all", "up", "unet.up_blocks.0.attentions.0")
        for f in ("delta", "both")
    ]
    drift = [
        row(descriptor=d, calibration=c, component=k, explained=0.2)
        | {"held_out": 0.5 if c == "none" else None, "predicted": 0.45 if c == "none" else None}
        for d in ("delta", "factors")
        for c in ("none", "crossfit")
        for k in (1, 2, 3)
    ]
    described = {d.name: d for d in DESCRIPTORS}
    return {
        "worth": evaluation.worth_curve(tables.table("worth", worth), retrieval),
        "structure": evaluation.structure_matrix(tables.table("structure", structure), described),
        "ablation": evaluation.ablation_chart(tables.table("ablation", ablation)),
        "drift": evaluation.drift_chart(tables.table("drift", drift), DELTA),
    }


def data(chart):
    return [value for rows in chart.to_dict()["datasets"].values() for value in rows]


@pytest.mark.parametrize("name", ["worth", "structure", "ablation", "drift"])
def test_a_chart_is_drawn_with_ink_on_it(retrieval, tmp_path, name):
    from PIL import Image

    path = tmp_path / f"{name}.png"
    save(charts(retrieval)[name], path)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50
    save(charts(retrieval)[name], path.with_suffix(".svg"))
    assert "NaN" not in path.with_suffix(".svg").read_text()


def test_curves_and_weights_stand_on_one_scale(retrieval):
    found = data(charts(retrieval)["worth"])
    curves = [d for d in found if "seconds" in d]
    assert {(d["descriptor"], d["pictures"], d["value"]) for d in curves if d["descriptor"] == "clip_s8_g1"} == {
        ("clip_s8_g1", m, 0.1 * m) for m in (1, 2, 4)
    }
    assert {(d["descriptor"], d["extractor"], d["setting"]) for d in curves} == {
        ("clip_s8_g1", "clip", "s8_g1"),
        ("clip_s8_g1_shared4", "clip", "shared prompts"),
        ("clip_s8_g1_own4", "clip", "own prompts"),
    }
    # Of the headline view, and of weights whose norms are not kept.
    weights = {(d["descriptor"], d["value"]) for d in found if "descriptor" in d and "seconds" not in d}
    assert weights == {("delta", 0.5), ("factors", 0.45)}


def test_extractors_whose_names_begin_alike_have_a_panel_each(retrieval):
    """Names were once parsed back at the first underscore, and "l14" is no sampler setting."""
    found = [
        Descriptor(
            GENERATED, extractor=extractor, gallery="s8_g1", query="s8_g1", setting="8 steps", passes=8, pictures=2
        )
        for extractor in ("clip_l14", "clip_h14")
    ]
    told = {"kinds": kinds(DESCRIPTORS), "view": VIEW.stored(), "descriptors": stored(DESCRIPTORS + found)}
    told = retrieval.replace_schema_metadata({k: tables.json.dumps(v) for k, v in told.items()})
    worth = [row(descriptor=d.name, pictures=m, metric="mAP", seconds=None) for d in found for m in (1, 2)]
    panels = evaluation.worth_curve(tables.table("worth", worth), told).to_dict()["concat"]
    titles = [panel["title"]["text"] for panel in panels]
    assert titles == ["clip l14, 8 steps", "clip h14, 8 steps"]


def test_every_pair_is_shown_on_both_sides(retrieval):
    found = data(charts(retrieval)["structure"])
    for number, level in enumerate(LEVELS, 1):
        cells = [d for d in found if d.get("metric") == "CKA" and d["level"] == level]
        assert len(cells) == 12 and {(d["left"], d["right"]) for d in cells} == {(d["right"], d["left"]) for d in cells}
        assert {d["left"] for d in cells} == {d.name for d in PLAIN}
        assert {d["value"] for d in cells if "norm" not in (d["left"], d["right"])} == {0.1 * number}


def test_the_drift_is_that_of_the_descriptor(retrieval):
    chart = charts(retrieval)["drift"]
    assert {d["descriptor"] for d in data(chart) if "descriptor" in d} == {"delta"}
    assert DELTA.label in chart.to_dict()["title"]["subtitle"][0]


def test_no_interval_of_the_drift_is_cut_and_no_component_is_added(retrieval):
    """The axis once began at a component 0, and bands that were wide were cut off."""
    rows = [
        row(descriptor="delta", calibration="none", component=k, explained=0.2, held_out=None, predicted=None)
        | {"low": 0.1 / k, "high": 4.0 * k}
        for k in (1, 2, 3)
    ]
    panel = evaluation.drift_chart(tables.table("drift", rows), DELTA).to_dict()["concat"][0]["layer"][0]["encoding"]
    low, high = panel["y"]["scale"]["domain"]
    assert low < 0.1 / 3 and high > 12
    assert panel["x"]["scale"]["domain"] == [0.5, 3.5] and panel["x"]["axis"]["values"] == [1, 2, 3]


def test_every_curve_of_worth_has_a_panel_of_its_own(retrieval):
    """Eight intervals upon each other were mud."""
    panels = charts(retrieval)["worth"].to_dict()["concat"]
    assert len(panels) == 3 and len({panel["title"]["text"] for panel in panels}) == 3


def test_tones_of_the_structure_differ_where_values_do(retrieval):
    """Colours at 0 and at -0.5 were hardly two; lightness differs by 0.2 of black to white."""
    steps = [sum(int(tone[i : i + 2], 16) for i in (1, 3, 5)) / 765 for tone in evaluation.DIVERGING]
    assert len(steps) == 5 and all(abs(a - b) > 0.15 for a, b in pairwise(steps))


def test_single_modules_are_left_out_of_the_parts(retrieval):
    parts = pd.DataFrame([d for d in data(charts(retrieval)["ablation"]) if "part" in d])
    assert set(parts.block) == {"all", "up"} and set(parts.factor) == {"delta"}


@pytest.mark.parametrize(("factors", "words"), [(["A", "B", "both"], "raw factors"), (["A"], "raw A")])
def test_a_study_without_updates_shows_the_parts_that_it_has(factors, words, tmp_path):
    rows = [
        row(component="all", block=b, factor=f, parameters=9, share=0.3, metric="mAP", chance=0.1)
        | {"matched": None, "matched_low": None, "matched_high": None}
        for b in ("all", "up")
        for f in factors
    ]
    chart = evaluation.ablation_chart(tables.table("ablation", rows))
    assert {d["factor"] for d in data(chart)} == {factors[-1]} and len(data(chart)) == 2
    assert chart.to_dict()["title"]["subtitle"][0].startswith(f"red: {words} of one component")
    save(chart, tmp_path / "ablation.svg")


def test_sentences_of_findings_are_made_of_their_tables(retrieval):
    """The best part is the best of how many; weights that no number of pictures reaches are said to be so."""
    described = {d.name: d for d in DESCRIPTORS}
    ablation = [
        row(
            component="feed_forward",
            block=b,
            factor="delta",
            parameters=9,
            share=0.25,
            metric="mAP",
            chance=0.1,
            value=v,
        )
        | {"matched": 0.3, "matched_low": 0.2, "matched_high": 0.4}
        for b, v in (("up", 0.7), ("down", 0.6))
    ]
    worth = [row(descriptor="clip_s8_g1", pictures=m, metric="mAP", seconds=None, value=0.1 * m) for m in (1, 4)]
    crossing = {
        "descriptor": "clip_s8_g1",
        "reference": "delta",
        "metric": "mAP",
        "value": None,
        "low": None,
        "high": None,
    }
    crossing |= {"most": 4, "never": 1.0, "reference_value": 0.5, "reference_seconds": None, "seconds": None}
    clusters = [
        row(scenario=WHOLE, descriptor=d, level="artist", algorithm="Ward", metric="ARI", chance=0.0) for d in LEVEL
    ]
    read = {
        "retrieval": retrieval, "clustering": tables.table("clustering", clusters),
        "worth": tables.table("worth", worth),
        "ablation": tables.table("ablation", ablation), "crossings": tables.table("crossings", [crossing]),
    }  # fmt: skip
    found = {each.name: each for each in says.findings(read, described, VIEW)}
    assert set(found) == {"comparison", "worth", "ablation"}
    assert found["ablation"].sentence == (
        "The best of 2 parts, up (feed forward), 25% of the parameters, reaches 0.70 (0.40–0.60), the best by these "
        "very queries; random modules of as many parameters 0.30."
    )
    assert (
        "reach 0.40 (0.40–0.60); the weights (0.50) are worth more pictures than the 4 there are. All of it is this "
        "study's own seed" in found["worth"].sentence
    )
    assert "mean average precision of 0.50 (0.40–0.60), where chance gives 0.10" in found["comparison"].sentence
    met = tables.table("crossings", [crossing | {"value": 2.4}])
    (again,) = [each for each in says.findings(read | {"crossings": met}, described, VIEW) if each.name == "worth"]
    assert "the weights are worth 2 pictures" in again.sentence
    assert all(each.chart.startswith("<svg") and each.rows for each in found.values())
