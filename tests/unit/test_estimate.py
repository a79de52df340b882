"""Estimates: counts that are exact, bytes and hours that scale as they must, and words that say what was assumed."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from lora_atlas import estimate as room
from lora_atlas.config import check
from lora_atlas.estimate import estimate, text, write
from lora_atlas.hub import lock as locks
from lora_atlas.schema import read as read_schema
from lora_atlas.weights.modules import LIMIT

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
SCHEMA = read_schema()
RATES = yaml.safe_load((ROOT / "workflow/resources/rates.yaml").read_text())
STUDIES = ("artbench_sd15", "artbench_sdxl", "artbench_sd35", "artbench_flux")


def overlaid(study: str, **changes) -> dict:
    """The embedded configuration with an overlay of workflow/studies, as Snakemake lays it."""
    config, overlay = copy.deepcopy(CONFIG), yaml.safe_load((ROOT / f"workflow/studies/{study}.yaml").read_text())

    def lay(inner: dict, over: dict) -> None:
        for key, value in over.items():
            if isinstance(value, dict) and isinstance(inner.get(key), dict):
                lay(inner[key], value)
            else:
                inner[key] = value

    lay(config, overlay)
    lay(config, changes)
    return check(config, SCHEMA, ROOT)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("study", STUDIES)
def test_an_artbench_study_is_what_the_paper_shows(study):
    config = overlaid(study)
    assert {genre: len(names) for genre, names in config["pictures"]["artists"].items()} == dict.fromkeys(
        ("art_nouveau", "baroque", "post_impressionism", "renaissance", "ukiyo_e"), 10
    )
    found = estimate(config, RATES)
    assert (found.artists, found.loras, found.pictures, found.generated) == (50, 1000, 5000, 8000)
    libraries = {extractor["library"] for extractor in config["extractors"].values()}
    # No gradients of single pictures: each LoRA would be read for each few of them.
    assert libraries == {"open_clip", "timm", "csd", "control"}


def test_other_ways_to_ask_are_counted_pass_by_pass():
    """By hand: 168 pictures of queries, 128 + 16 · 3 samples each; 48 pictures of 12 queries of four, 8 samples, once
    and under 48 LoRAs without a way back; 24 LoRAs' 4 pictures, 16 samples, at four settings and twice saved again."""
    both = (overlaid("findings", **more) | {"variants": {}} for more in ({"attribution": {"ways": None}}, {}))
    plain, asked = (estimate(config, RATES) for config in both)
    samples = 168 * (128 + 16 * 3) + 48 * 8 * (1 + 16) + 24 * 4 * 16 * 6
    seconds = RATES["seconds"][RATES["bases"][CONFIG["base"]["model"]]["rates"]]["train"]
    assert asked.hours["attribution"] - plain.hours["attribution"] == pytest.approx(samples * seconds / 3600)


def test_variants_are_counted_with_what_they_make_themselves():
    """A seed makes everything again, another rank no pictures, another evaluation nothing of what is estimated."""
    config = overlaid("findings") | {"variants": {}}
    alone = estimate(config, RATES)

    def more(**overlay) -> room.Estimate:
        return estimate(config | {"variants": {"other": overlay}}, RATES)

    seed = more(seed=7)
    assert (seed.loras, seed.generated, seed.pictures) == (2 * alone.loras, 2 * alone.generated, 2 * alone.pictures)
    assert sum(seed.hours.values()) == pytest.approx(2 * sum(alone.hours.values()))
    steps = more(training={"steps": 2 * config["training"]["steps"]})
    assert (steps.pictures, steps.loras) == (alone.pictures, 2 * alone.loras)
    assert 2.9 < steps.hours["training"] / alone.hours["training"] < 3
    looks = more(evaluation={"confidence": 0.9})
    assert (looks.loras, looks.pictures, looks.generated, looks.hours) == (
        alone.loras, alone.pictures, alone.generated, alone.hours
    )  # fmt: skip
    # What a variant adds to look with looks at everything.
    less = config | {"extractors": {name: each for name, each in config["extractors"].items() if name != "dino"}}
    without = estimate(less, RATES)
    dino = {"extractors": {"dino": config["extractors"]["dino"]}}
    added = estimate(less | {"variants": {"other": dino}}, RATES)
    assert added.hours["features"] == pytest.approx(alone.hours["features"])
    assert added.disk["features"] == alone.disk["features"] > without.disk["features"]
    assert "those of 1 variant among them" in text(seed) and "variant" not in text(alone)


def test_what_is_kept_beside_and_sketches_are_counted():
    """Files up to 16 MB lie in the cache once more; of more than weights.exact_limit LoRAs each has a sketch."""
    found = estimate(overlaid("artbench_sd15"), RATES)
    assert found.disk["sketches"] == 1000 * 600_000 * 4
    assert found.disk["cache"] >= found.disk["pictures"]
    few = estimate(overlaid("findings") | {"variants": {}}, RATES)
    assert few.disk["sketches"] == 0
    assert few.disk["cache"] >= sum(few.disk[each] for each in ("pictures", "loras"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_byte_is_named_with_its_revision(study):
    found = estimate(overlaid(study), RATES)
    hub = [each for each in found.downloads if each.name.startswith("hf://")]
    assert len(hub) == 6 and all(len(each.revision) == 40 and each.bytes for each in hub)
    others = [each for each in found.downloads if each not in hub]
    assert len(others) == 2 and all(each.revision is None and each.bytes for each in others)
    said = text(found)
    assert all(each.name in said and (each.revision or "locked by the first fetch") in said for each in found.downloads)
    assert "ASSUMED, not measured" in said


def test_a_lock_makes_downloads_exact(tmp_path):
    lock, url = tmp_path / "s.lock.yaml", "https://artbench.eecs.berkeley.edu/files/ArtBench-10.csv"
    locks.settled(lock, "files", url, {"sha256": "ab" * 32, "bytes": 123})
    locks.settled(lock, "hub", "timm/x@main", {"commit": "c" * 40})
    locks.settled(lock, "hub", f"timm/x@{'c' * 40}", {"commit": "c" * 40, "files": {"a": {"sha256": "d", "bytes": 7}}})
    x = {"library": "timm", "model": "hf-hub:timm/x", "pretrained": None, "revision": "main"}
    config = overlaid("artbench_sd15", lock=str(lock), extractors={"x": x})
    found = {each.name: each for each in estimate(config, RATES).downloads}
    assert (found[url].revision, found[url].bytes, found[url].exact) == ("sha256:" + "ab" * 32, 123, True)
    assert (found["hf://timm/x"].revision, found["hf://timm/x"].bytes) == ("c" * 40, 7)


def test_what_is_twice_as_much_costs_twice_as_much():
    one = estimate(overlaid("artbench_sd15"), RATES)
    two = estimate(overlaid("artbench_sd15", training={"rank": 32}), RATES)
    assert two.disk["loras"] == 2 * one.disk["loras"] and two.hours == one.hours
    more = estimate(overlaid("artbench_sd15", training={"steps": 1000}), RATES)
    start = 50 * RATES["seconds"]["sd15"]["start"] / 3600
    assert more.hours["training"] - start == pytest.approx(2 * (one.hours["training"] - start))
    assert estimate(overlaid("artbench_sdxl"), RATES).disk["loras"] > 5 * one.disk["loras"]


def test_series_are_generated_and_paid_for_beside_the_grid():
    """The embedded study: 16 pictures at each of four settings, 64 in each of two series at 8 passes."""

    def of(worth):
        generation = CONFIG["generation"] | {"worth": worth}
        return estimate(check(copy.deepcopy(CONFIG) | {"generation": generation}, SCHEMA, ROOT), RATES)

    none, both = of(None), of(CONFIG["generation"]["worth"])
    assert (none.generated, both.generated) == (72 * 16 * 4, 72 * (16 * 4 + 64 * 2))
    rates = RATES["seconds"][RATES["bases"][CONFIG["base"]["model"]]["rates"]]
    more = 72 * 64 * 2 * 8 * rates["generate"] / 3600
    assert both.hours["generation"] - none.hours["generation"] == pytest.approx(more)
    one = of(CONFIG["generation"]["worth"] | {"series": ["own"]})
    assert one.generated == 72 * (16 * 4 + 64)


def test_guidance_takes_the_base_twice_as_long():
    """In the grid and in a series, each by itself; a picture with guidance is no second picture."""

    def of(**changes):
        generation = CONFIG["generation"] | {"guidance_scale": [1]} | changes
        return estimate(check(copy.deepcopy(CONFIG) | {"generation": generation}, SCHEMA, ROOT), RATES)

    worth = CONFIG["generation"]["worth"]
    plain, guided = of(worth=None), of(worth=None, guidance_scale=[3])
    steps = CONFIG["generation"]["num_inference_steps"]
    rates = RATES["seconds"][RATES["bases"][CONFIG["base"]["model"]]["rates"]]
    once_more = plain.generated / len(steps) * sum(steps) * rates["generate"] / 3600  # beside jobs that start
    assert guided.hours["generation"] - plain.hours["generation"] == pytest.approx(once_more)
    once, twice = (of(worth=worth | {"guidance_scale": scale}) for scale in (1, 3))
    more = [each.hours["generation"] - plain.hours["generation"] for each in (once, twice)]
    assert more[1] == pytest.approx(2 * more[0]) and more[0] > 0
    assert guided.generated == plain.generated and once.generated == twice.generated


OF = {  # base → denoiser, and the released model whose configuration it has, or the folder of its own
    "workflow/resources/mini/base": ("UNet", "unet"),
    "workflow/resources/mini-icons/base": ("UNet", "unet"),
    "workflow/resources/mini-flow/base": ("SD3", "transformer"),
    "workflow/resources/mini-flow-icons/base": ("SD3", "transformer"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("UNet", ("SD1.x", None)),
    "stabilityai/stable-diffusion-xl-base-1.0": ("UNet", ("SDXL", None)),
    "stabilityai/stable-diffusion-3.5-medium": ("SD3", ("SD3", "3.5 medium")),
    "black-forest-labs/FLUX.1-dev": ("Flux", ("FLUX", "dev")),
}


@pytest.mark.parametrize("base", RATES["bases"])
def test_the_size_of_a_lora_is_that_of_the_layers_of_its_base(base):
    """At the released size, built without memory: a rank's numbers, and the layers, of every target."""
    from types import SimpleNamespace

    import diffusers
    import torch

    from lora_atlas.diffusion import denoisers
    from lora_atlas.diffusion.stacked import targeted
    from lora_atlas.loras.families.released import RELEASED

    kind, model = getattr(denoisers, OF[base][0]), OF[base][1]
    if isinstance(model, str):
        config = json.loads((ROOT / base / model / "config.json").read_text())
        cls = config["_class_name"]
    else:
        family, variant = model
        known = next(each for each in RELEASED if each.family == family and variant in (None, each.variant))
        cls, config = known.cls, known.config
    with torch.device("meta"):
        network = getattr(diffusers, cls).from_config(config)
    modules = dict(network.named_modules())

    def of(target: str) -> list[str]:
        if OF[base][0] == "UNet":
            return targeted(network, [target], kind.targets)
        return kind(SimpleNamespace(transformer=network, vae_scale_factor=8)).layers([target])

    rates = RATES["bases"][base]
    for target in kind.targets:
        weights = [modules[name].weight for name in of(target)]
        assert rates["layers"][target] == len(weights)
        assert rates[target] == sum(w[0].numel() + len(w) for w in weights)  # a convolution's A has kernels, its B none


@pytest.mark.parametrize("study", STUDIES)
def test_the_matrices_of_single_modules_are_counted_and_fit_into_memory(study):
    """Those of one kernel are held together by whoever weighs modules."""
    config = overlaid(study)
    layers = RATES["bases"][config["base"]["model"]]["layers"]
    modules = sum(layers[target] for target in config["training"]["targets"])
    assert estimate(config, RATES).disk["weights"] == 1000**2 * 8 * (12 * 2 + 4 * modules)  # delta, down, up, kfac
    assert 8 * 1000**2 * modules <= LIMIT


def test_nothing_to_download_and_no_extractors_are_said(tmp_path):
    config = check(copy.deepcopy(CONFIG) | {"extractors": {}}, SCHEMA, ROOT)
    said = write(config, ROOT / "workflow/resources/rates.yaml", tmp_path / "estimate.md")
    assert "| nothing | | |" in said and "0 generated pictures" in said
    assert (tmp_path / "estimate.md").read_text() == said
    assert json.loads((tmp_path / "estimate.json").read_text())["loras"] == 72


def test_a_base_without_rates_is_named():
    config = copy.deepcopy(CONFIG)
    config["base"] = {"model": "o/other", "revision": "a" * 40}
    with pytest.raises(ValueError, match=r"no rates for 'o/other'.*Add the base there"):
        estimate(config, RATES)


def test_every_rate_says_where_it_comes_from():
    for rates in RATES["seconds"].values():
        assert rates["source"] and isinstance(rates["measured"], bool)
        assert rates["measured"] or "assumed" in rates["source"]
    assert room.estimate


@pytest.mark.parametrize("model", sorted(base for base in RATES["bases"] if base.startswith("workflow/")))
def test_a_base_of_the_project_is_known_from_another_folder(model, tmp_path, monkeypatch):
    here = estimate(overlaid("findings", base={"model": model}), RATES)
    monkeypatch.chdir(tmp_path)
    config = overlaid("findings", base={"model": model})
    assert Path(config["base"]["model"]).is_absolute()
    assert estimate(config, RATES).hours == here.hours
