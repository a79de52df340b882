"""Descriptors: those a configuration has, by names that nobody parses, and the way through JSON."""

import json
from pathlib import Path

import pytest
import yaml
from plans import embedded_study

from lora_atlas.descriptors import (
    ACROSS,
    CONTROL,
    GENERATED,
    LEARNT,
    TRAINING,
    WEIGHTS,
    baseless,
    compared,
    descriptors,
    kinds,
    restored,
    stored,
)
from lora_atlas.schema import read as read_schema
from lora_atlas.variants import merge

ROOT = Path(__file__).parents[2]
SCHEMA = read_schema()
EVERY = {
    "kernels": ["delta", "factors", "down", "up"],
    "modules": ["gradient", "consensus", "plain", "kfac", "learnt"],
    "scales": ["unit", "raw"],
    "controls": ["norm", "set_size"],
}
MANY = {"num_inference_steps": 8, "guidance_scale": 1, "prompts": ["a"], "series": ["shared", "own"], "pictures": 4}


@pytest.fixture
def config(monkeypatch):
    return embedded_study(monkeypatch)


@pytest.fixture
def every(config):
    """All descriptors that there can be, of two extractors whose names begin alike."""
    clip = config["extractors"]["clip"]
    extractors = {n: e for n, e in config["extractors"].items() if e["library"] == "control"}
    return config | {
        "weights": config["weights"] | EVERY,
        "extractors": {"clip_l14": clip, "clip_h14": clip, **extractors},
        "generation": config["generation"] | {"worth": MANY},
    }


def names(found, *, kind=None):
    return [descriptor.name for descriptor in found if kind in (None, descriptor.kind)]


def test_names_are_unique(every):
    found = names(descriptors(every))
    assert len(set(found)) == len(found) > 40


@pytest.mark.parametrize("study", [None, *sorted(p.stem for p in (ROOT / "workflow/studies").glob("*.yaml"))])
def test_names_of_every_committed_study_are_unique(config, study):
    overlay = yaml.safe_load((ROOT / f"workflow/studies/{study}.yaml").read_text()) if study else {}
    mine = merge(config, overlay)
    mine["extractors"] = {name: each for name, each in mine["extractors"].items() if each is not None}
    found = names(descriptors(mine))
    assert len(set(found)) == len(found) > 0


def test_the_headline_is_the_first_kernel_with_the_first_weighting(every):
    found = descriptors(every)
    assert found[0].name == "delta_gradient" and found[0].kind == WEIGHTS
    mine = every | {"weights": every["weights"] | {"kernels": ["factors", "delta"], "modules": ["plain", "gradient"]}}
    assert descriptors(mine)[0].name == "factors"


def test_a_metric_of_updates_and_labels_weigh_updates_alone(every):
    found = descriptors(every)
    assert {d.kernel for d in found if d.modules == "kfac"} == {"delta"}
    assert {d.kernel for d in found if d.modules == "learnt"} == {"delta"}
    assert names(found, kind=LEARNT) == ["delta_learnt"]
    none = descriptors(every | {"weights": every["weights"] | {"kernels": ["factors"], "modules": ["kfac", "learnt"]}})
    assert not [d for d in none if d.kernel]


def test_norms_are_kept_of_modules_as_they_are_alone(every):
    raw = [d for d in descriptors(every) if d.scale == "raw"]
    assert [d.name for d in raw] == ["delta_raw", "factors_raw", "down_raw", "up_raw"]
    assert {d.modules for d in raw} == {"plain"}


def test_pictures_have_a_descriptor_of_every_source_and_both_ways_across(config, every):
    found = {d.name: d for d in descriptors(every) if d.extractor == "clip_l14"}
    steps, scales = config["generation"]["num_inference_steps"], config["generation"]["guidance_scale"]
    grid = [f"s{step}_g{scale:g}" for step in steps for scale in scales]
    assert [n for n, d in found.items() if d.kind == TRAINING] == ["clip_l14_training"]
    many = ["s8_g1_shared4", "s8_g1_own4"]
    assert [n for n, d in found.items() if d.kind == GENERATED] == [f"clip_l14_{at}" for at in grid + many]
    ways = {f"clip_l14_training_to_{at}" for at in grid} | {f"clip_l14_{at}_to_training" for at in grid}
    assert {n for n, d in found.items() if d.kind == ACROSS} == ways  # a series is for the worth curve alone
    to = found[f"clip_l14_training_to_{grid[0]}"]
    assert (to.query, to.gallery, to.source) == ("training", grid[0], None)
    assert found[f"clip_l14_{grid[0]}"].source == grid[0]
    assert [found[f"clip_l14_{at}"].pictures for at in many] == [4, 4]
    prompts, seeds = config["generation"]["prompts"], config["generation"]["seeds"]
    assert found[f"clip_l14_{grid[0]}"].pictures == len(prompts) * len(seeds)


def test_extractors_whose_names_begin_alike_stay_apart(every):
    found = descriptors(every)
    for extractor in ("clip_l14", "clip_h14"):
        mine = [d for d in found if d.extractor == extractor]
        assert mine and all(d.name.startswith(f"{extractor}_") for d in mine)
    assert len(names([d for d in found if d.extractor == "clip_l14"])) == len(
        names([d for d in found if d.extractor == "clip_h14"])
    )


def test_controls_see_training_pictures_or_nothing(every):
    found = [d for d in descriptors(every) if d.kind == CONTROL]
    assert found and {d.source for d in found if d.extractor} == {"training"}
    assert [d.name for d in found if d.control] == ["norm", "set_size"]


def test_what_compares_across_sources_stands_in_no_comparison(every):
    found = descriptors(every)
    across = set(names(found, kind=ACROSS))
    assert across and not across & set(names(compared(found)))
    assert kinds(found) == {d.name: d.kind for d in found if d.kind != ACROSS}
    assert list(kinds(found)) == names(compared(found))


def test_values_come_back_from_json_as_they_were(every):
    found = descriptors(every)
    back = restored(json.loads(json.dumps(stored(found))))
    assert list(back.values()) == found and list(back) == names(found)


def test_labels_are_words_and_apart(every):
    found = descriptors(every)
    labels = {d.name: d.label for d in found}
    assert len(set(labels.values())) == len(labels)
    assert labels["delta"] == "updates ΔW, every module as it is"
    assert labels["delta_raw"] == "updates ΔW, every module as it is, norms kept"
    assert labels["norm"] == "norm of the update"
    assert labels["clip_l14_training"] == "clip l14, training pictures"


@pytest.mark.parametrize(
    ("modules", "chosen"),
    [
        (["gradient", "consensus", "plain"], "consensus"),
        (["plain", "consensus"], "plain"),
        (["gradient"], None),
        (["kfac", "unit", "learnt"], None),
    ],
)
def test_a_folder_takes_the_first_weighting_that_needs_no_base(modules, chosen):
    assert baseless(modules) == chosen
