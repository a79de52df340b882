"""The summary: it says of each descriptor what the tables say, and what describing one LoRA costs."""

import pytest

from lora_atlas import tables
from lora_atlas.summary import lines, main, markdown, marked, seconds_per_lora

KINDS = {
    "delta": "weights",
    "delta_raw": "weights",
    "clip_s8_g1": "generated pictures",
    "clip_s8_g3": "generated pictures",
}


@pytest.fixture
def study(tmp_path):
    def score(descriptor, metric, value, distance="L2", calibration="crossfit"):
        return {
            "scenario": tables.KNOWN,
            "descriptor": descriptor,
            "calibration": calibration,
            "distance": distance,
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
    retrieval += [score(d, "mAP", 0.0, "cosine") for d in KINDS] + [
        score(d, "mAP", 0.0, calibration="none") for d in KINDS
    ]
    clustering = [
        {
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
        for a, v in (("Ward", 0.8), ("k-means", 0.1))
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
    described = {"kinds": KINDS, "calibration": "crossfit"}
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
    seconds = seconds_per_lora(read(study)[2], KINDS)
    assert seconds["delta"] == seconds["delta_raw"] == 0.5
    # 10 LoRAs, 40 pictures at two settings: 2 pictures a LoRA and setting, 0.5 s to look at each, and 1 s to paint on
    # average, of which guidance, with its two passes a step, takes twice what no guidance takes.
    assert seconds["clip_s8_g1"] == pytest.approx(2 * (2 / 3 + 0.5))
    assert seconds["clip_s8_g3"] == pytest.approx(2 * (4 / 3 + 0.5))


def test_readme_is_rewritten_between_its_marks(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: written by `make readme` -->\nold\n<!-- /results -->\nafter\n")
    main([str(study), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert markdown(lines(*read(study))) in text
    assert "old" not in text
    with pytest.raises(ValueError, match="lacks the marks"):
        marked("nothing", "table")


def test_it_prints_and_says_what_is_missing(study, tmp_path, capsys):
    main([str(study)])
    printed = capsys.readouterr().out
    assert "delta_raw" in printed
    assert "0.90 (0.80–1.00)" in printed
    with pytest.raises(SystemExit, match="run `snakemake tables` first"):
        main([str(tmp_path)])
