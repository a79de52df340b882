"""The summary: it says of each descriptor what the tables say, and what describing one LoRA costs."""

import pytest

from lora_atlas import tables
from lora_atlas.descriptors import ACROSS, GENERATED, LEARNT, WEIGHTS, Descriptor, kinds, restored, stored
from lora_atlas.findings.cost import seconds_per_lora, seconds_per_picture
from lora_atlas.summary import Line, lines, main, markdown, marked, shortened
from lora_atlas.views import View


def painted(extractor: str, guidance: int, *, kind: str = GENERATED, query: str | None = None) -> Descriptor:
    """Two pictures of each LoRA at eight steps."""
    at, passes = f"s8_g{guidance}", 8 if guidance == 1 else 16
    return Descriptor(kind, extractor=extractor, gallery=at, query=query or at, setting=at, passes=passes, pictures=2)


DESCRIPTORS = [
    Descriptor(WEIGHTS, "delta", "plain", "unit"),
    Descriptor(WEIGHTS, "delta", "plain", "raw"),
    painted("clip", 1),
    painted("clip", 3),
    painted("clip", 1, kind=ACROSS, query="training"),
]
KINDS = kinds(DESCRIPTORS)
VIEWS = [View("whole", "crossfit", "cosine"), View("components", "crossfit", "L2")]


@pytest.fixture(params=VIEWS, ids=lambda view: view.basis)
def study(request, tmp_path):
    view = request.param

    def score(descriptor, metric, value, scenario=None, distance=None, calibration=None):
        return {
            "scenario": scenario or view.known[0],
            "descriptor": descriptor,
            "calibration": calibration or view.known[1],
            "distance": distance or view.distance,
            "level": "artist",
            "metric": metric,
            "value": value,
            "low": value - 0.1,
            "high": value + 0.1,
            "chance": 0.2,
            "queries": 8,
        }

    values = dict(zip(KINDS, (0.7, 0.9, 0.5, 0.6), strict=True))
    retrieval = [score(d, m, v) for d, v in values.items() for m in ("mAP", "R@1")]
    retrieval += [score("clip_training_to_s8_g1", m, 1.0) for m in ("mAP", "R@1")]
    # Rows of every other view and of unseen artists, each in one thing alone unlike the headline's.
    for other in (
        {"scenario": view.unseen[0]},
        {"scenario": tables.TOGETHER},
        {"distance": "CSLS"},
        {"calibration": "rescale"},
    ):
        retrieval += [score(d, m, 0.0, **other) for d in KINDS for m in ("mAP", "R@1")]
    here, there = view.together, next(v.together for v in VIEWS if v != view)
    clustering = [
        {
            "scenario": scenario,
            "descriptor": d,
            "level": "artist",
            "algorithm": a,
            "metric": "ARI",
            "value": v,
            "low": v,
            "high": v,
            "chance": 0,
        }
        for d in KINDS
        for scenario, a, v in ((here, "Ward", 0.8), (here, "k-means", 0.1), (there, "Ward", 0.2))
    ]
    cost = [
        {"stage": stage, "item": item, "count": count, "seconds": seconds, "device": "cpu"}
        for stage, item, count, seconds in [
            ("train", "ada", 6, 60.0),
            ("train", "bob", 4, 40.0),
            ("gram", "delta", 10, 5.0),
            ("generate", "ada", 24, 30.0),
            ("generate", "bob", 16, 10.0),
            ("features", "clip", 100, 50.0),
        ]
    ]
    folder = tmp_path / "study"
    described = {"kinds": KINDS, "view": view.stored(), "descriptors": stored(DESCRIPTORS)}
    tables.write(folder / "tables/retrieval.parquet", "retrieval", retrieval, described)
    tables.write(folder / "tables/clustering.parquet", "clustering", clustering)
    tables.write(folder / "tables/cost.parquet", "cost", cost)
    return folder


def read(study):
    return [tables.read(study / f"tables/{name}.parquet", name) for name in ("retrieval", "clustering", "cost")]


def test_lines_are_the_headline_best_first_within_a_kind(study):
    found = lines(*read(study))
    assert [line.descriptor for line in found] == ["delta_raw", "delta", "clip_s8_g3", "clip_s8_g1"]
    assert found[0].mAP == pytest.approx((0.9, 0.8, 1.0))
    assert {line.ari for line in found} == {0.8}


def test_seconds_are_those_of_one_lora(study):
    seconds = seconds_per_lora(read(study)[2], restored(stored(DESCRIPTORS)))
    assert seconds["delta"] == seconds["delta_raw"] == 0.5
    # 10 LoRAs, 40 pictures at two settings: 2 pictures a LoRA and setting, 0.5 s to look at each, and 1 s to paint on
    # average, of which guidance, with its two passes a step, takes twice what no guidance takes.
    assert seconds["clip_s8_g1"] == pytest.approx(2 * (2 / 3 + 0.5))
    assert seconds["clip_s8_g3"] == pytest.approx(2 * (4 / 3 + 0.5))


def costs(*rows):
    names = ("stage", "item", "count", "seconds")
    return tables.table("cost", [dict(zip(names, row, strict=True), device="cpu") for row in rows])


def named(*found):
    return {descriptor.name: descriptor for descriptor in found}


def test_extractors_whose_names_begin_alike_have_seconds_of_their_own():
    """Names were once parsed back at the first underscore: clip_l14_s8_g1 was seen by clip at step "l14"."""
    cost = costs(("generate", "a", 40, 40.0), ("features", "clip_l14", 40, 20.0), ("features", "clip_h14", 40, 80.0))
    found = seconds_per_lora(cost, named(*(painted(e, g) for e in ("clip_l14", "clip_h14") for g in (1, 3))))
    # As many pictures at either setting, of which guidance takes twice the time: 2/3 and 4/3 s to paint one.
    assert found == pytest.approx(
        {
            "clip_l14_s8_g1": 2 * (2 / 3 + 0.5),
            "clip_l14_s8_g3": 2 * (4 / 3 + 0.5),
            "clip_h14_s8_g1": 2 * (2 / 3 + 2.0),
            "clip_h14_s8_g3": 2 * (4 / 3 + 2.0),
        }
    )


def test_a_series_takes_the_seconds_of_all_its_pictures():
    """Of 2 pictures with two passes a step and 62 with one, 66 parts of the time: a mean hides which are which."""
    grid = painted("clip", 3)
    at = "s8_g1_own62"
    series = Descriptor(
        GENERATED, extractor="clip", gallery=at, query=at, setting=at, series="own", passes=8, pictures=62
    )
    found = named(grid, series)
    cost = costs(("generate", "a", 64, 66.0), ("features", "clip", 64, 64.0))
    each = seconds_per_picture(cost, found)
    assert each == pytest.approx({"clip_s8_g3": 2 + 1, f"clip_{at}": 1 + 1})
    assert seconds_per_lora(cost, found) == pytest.approx({name: each[name] * found[name].pictures for name in found})


def test_weighted_modules_cost_the_gram_matrix_of_single_modules():
    cost = costs(("gram", "delta", 10, 5.0), ("gram", "modules", 10, 20.0))
    plain, weighted = (Descriptor(WEIGHTS, "delta", how, "unit") for how in ("plain", "gradient"))
    learnt = Descriptor(LEARNT, "delta", "learnt", "unit")
    found = seconds_per_lora(cost, named(plain, weighted, learnt))
    assert found == {"delta": 0.5, "delta_gradient": 2.0, "delta_learnt": 2.0}


def test_what_was_not_measured_has_no_seconds():
    raw = Descriptor(WEIGHTS, "factors", "plain", "unit")
    found = named(raw, painted("clip", 1), Descriptor("control", control="norm"))
    assert seconds_per_lora(costs(("gram", "delta", 10, 5.0)), found) == dict.fromkeys(found)
    assert seconds_per_picture(costs(("generate", "a", 4, 4.0)), found) == {}


def test_readme_is_rewritten_between_its_marks(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: written by `make readme` -->\nold\n<!-- /results -->\nafter\n")
    page = tmp_path / "descriptors.md"
    page.write_text(readme.read_text())
    main([str(study), "--readme", str(readme), "--page", str(page)])
    assert markdown(shortened(lines(*read(study)))) in readme.read_text()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert markdown(lines(*read(study))) in text
    assert "old" not in text
    with pytest.raises(ValueError, match="lacks the marks"):
        marked("nothing", "table")


def test_of_each_kind_the_best_two_are_shown_first_and_the_plain_weights():
    found = [
        Line(name, kind, (1.0 - i / 10, 0.0, 1.0), 1.0, 1.0, 0.1, None)
        for kind, names in {"weights": "abc", "control": "xy"}.items()
        for i, name in enumerate([*names, "delta"] if kind == "weights" else names)
    ]
    assert [line.descriptor for line in shortened(found)] == ["a", "b", "delta", "x", "y"]


def test_it_prints_and_says_what_is_missing(study, tmp_path, capsys):
    main([str(study)])
    printed = capsys.readouterr().out
    assert "delta_raw" in printed
    assert "0.90 (0.80–1.00)" in printed
    with pytest.raises(SystemExit, match="run `snakemake tables` first"):
        main([str(tmp_path)])
