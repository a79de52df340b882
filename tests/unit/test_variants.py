"""Variants: overlays that share with their study what they do not change."""

from pathlib import Path

import pytest
import yaml
from plans import SCHEMA, embedded_study

from lora_atlas.config import check
from lora_atlas.study import StudyError
from lora_atlas.variants import STAGES, changes, merge, replicates, variants

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch):
    return embedded_study(monkeypatch)


def only(config, overlay):
    return variants(config | {"variants": {"other": overlay}})["other"]


@pytest.mark.parametrize(
    ("overlay", "shared"),
    [
        ({"seed": 1}, []),
        ({"pictures": {"per_artist": 40}}, []),
        ({"plan": {"mixtures": True}}, ["pictures"]),
        ({"training": {"rank": 8}}, ["pictures", "plan"]),
        ({"base": {"variant": "fp16"}}, ["pictures", "plan"]),
        ({"generation": {"batch": 3}}, ["pictures", "plan", "loras"]),
        ({"generation": {"worth": None}}, ["pictures", "plan", "loras"]),
        ({"weights": {"modules": ["plain"]}}, list(STAGES)),
        ({"evaluation": {"basis": "components"}}, list(STAGES)),
        ({"embedding": {"dimensions": 4}}, list(STAGES)),
        ({"training": {"rank": 8}, "generation": {"batch": 3}}, ["pictures", "plan"]),
    ],
)
def test_what_a_variant_does_not_change_is_its_studys(config, overlay, shared):
    variant = only(config, overlay)
    packing = {"artists_per_job": config["resources"]["artists_per_job"]}
    assert variant["shared"] == {"study": "demo", "stages": shared, **packing}
    assert variant["study"] == "demo/variants/other" and variant["variants"] == {}


def test_nothing_generated_is_shared_by_a_study_that_generates_nothing(config):
    controls = {name: each for name, each in config["extractors"].items() if each["library"] == "control"}
    variant = only(config | {"extractors": controls}, {"extractors": {"clip": config["extractors"]["clip"]}})
    assert variant["shared"]["stages"] == ["pictures", "plan", "loras"]


def test_a_variant_is_a_configuration_of_its_own_that_passes_the_check(config):
    variant = only(config, {"training": {"rank": 8}, "extractors": {"clip": None}})
    checked = check(variant, SCHEMA, ROOT)
    assert checked["training"] == config["training"] | {"rank": 8}
    assert set(checked["extractors"]) == set(config["extractors"]) - {"clip"}


@pytest.mark.parametrize("key", ["study", "variants", "shared", "loras", "query"])
def test_a_variant_may_not_be_another_study(config, key):
    with pytest.raises(StudyError, match=rf"variants\.other.*{key}"):
        only(config, {key: {}, "seed": 4})


def test_a_variant_that_changes_nothing_is_refused(config):
    with pytest.raises(StudyError, match=r"variants\.other: changes nothing"):
        only(config, {"training": {"rank": config["training"]["rank"]}})


@pytest.mark.fault("configuration", "a wrong key in a variant", "refused, with the right key")
def test_a_wrong_key_of_a_variant_is_named_with_the_right_one(config):
    with pytest.raises(StudyError, match=r"training\.rnk: no such key; did you mean 'rank'"):
        check(only(config, {"training": {"rnk": 8}}), SCHEMA, ROOT)


def test_a_study_names_all_that_is_wrong_with_its_variants_before_any_job(config):
    several = {"a": {"training": {"rnk": 8}}, "b": {"plan": {"gallery": [40], "query": [40]}}, "c": {"seed": 3}}
    with pytest.raises(StudyError) as caught:
        check(config | {"variants": several}, SCHEMA, ROOT)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2
    assert lines[0].startswith("  - variants.a: training.rnk: no such key")
    assert lines[1].startswith("  - variants.b: plan: each artist needs 80 pictures")


def test_loras_that_are_there_have_no_variants(config, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    mine = config | {"loras": {"source": "folder"}, "folder": str(tmp_path), "variants": {"c": {"seed": 3}}}
    with pytest.raises(StudyError, match="variants: only a study that trains its LoRAs has any"):
        check(mine, SCHEMA, ROOT)


def test_mappings_are_merged_and_all_else_replaced():
    found = merge({"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"c": [9]}, "e": {"f": 1}})
    assert found == {"a": {"b": 1, "c": [9]}, "d": 3, "e": {"f": 1}}


def test_a_variant_may_have_other_descriptors_and_no_series(config):
    variant = only(config, {"generation": {"worth": None}, "weights": {"modules": ["plain"]}})
    checked = check(variant, SCHEMA, ROOT)
    assert checked["generation"]["worth"] is None and checked["weights"]["modules"] == ["plain"]
    found = changes(config, variant)
    assert found["weights.modules"] == ["plain"] and "generation.worth" in {key[:16] for key in found}


def test_changes_are_named_by_their_path():
    before = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert changes(before, {"a": {"b": 1, "c": 5}, "d": [1, 2]}) == {"a.c": 5, "d": [1, 2]}
    assert changes(before, {"a": {"c": 2}, "d": [1], "e": 0}) == {"a.b": None, "e": 0}
    assert changes(before, before) == {}


def test_replicates_differ_in_the_seed_alone(config):
    several = {"s1": {"seed": 1}, "r": {"training": {"rank": 2}}, "both": {"seed": 2, "training": {"rank": 2}}}
    assert replicates(config | {"variants": several}) == ["s1"]


@pytest.mark.parametrize("study", ["findings", "sweep"])
def test_the_committed_variants_are_sound(config, study):
    overlay = yaml.safe_load((ROOT / f"workflow/studies/{study}.yaml").read_text())
    for variant in variants(merge(config, overlay)).values():
        check(variant, SCHEMA, ROOT)
        assert "pictures" in variant["shared"]["stages"] or "seed" in str(overlay["variants"])


@pytest.mark.parametrize("study", ["findings", "sweep"])
def test_every_variant_of_the_studies_that_come_with_the_project_is_sound(config, study):
    overlay = yaml.safe_load((ROOT / f"workflow/studies/{study}.yaml").read_text())
    found = variants(check(merge(config, overlay), SCHEMA, ROOT))
    assert set(found) == set(overlay["variants"]) and len(found) > 5
    assert all(each["shared"]["study"] == "demo" for each in found.values())
