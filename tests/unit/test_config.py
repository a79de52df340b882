"""The configuration: what is committed passes, and everything wrong is named at once, by key."""

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas.config import check, cut, filled, outdated, placed, quoted, resolve
from lora_atlas.findings.about import sentences
from lora_atlas.schema import read as read_schema
from lora_atlas.study import StudyError
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View, headline

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
SCHEMA = read_schema()


def overlaid(changes: dict[str, Any], config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """The committed configuration with some keys set, given as "section.key"."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *sections, key = name.split(".")
        inner = config
        for section in sections:
            inner = inner[section]
        inner[key] = value
    return config


def checked(changes: dict[str, Any]) -> dict[str, Any]:
    return check(overlaid(changes), SCHEMA, ROOT)


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(StudyError) as caught:
        checked(changes)
    first, *rest = str(caught.value).split("\n  - ")
    assert first == "the configuration cannot be used:"
    return rest


def handed_over(*entries: str) -> dict[str, Any]:
    """The committed configuration as Snakemake makes it of `--config ENTRY...`: nested values are all text."""
    from snakemake.cli import parse_config
    from snakemake.utils import update_config

    config = copy.deepcopy(CONFIG)
    update_config(config, parse_config(entries))
    return config


# --- what is right


def test_the_committed_configuration_is_accepted_and_stays_as_it_is():
    assert checked({}) == CONFIG


def test_the_check_does_not_touch_what_it_is_given():
    given_ = overlaid({"extractors.clip": None, "training.rank": "8"})
    before = copy.deepcopy(given_)
    check(given_, SCHEMA, ROOT)
    assert given_ == before


def test_every_key_of_the_schema_is_in_the_committed_configuration():
    """A study is an overlay of it, and every key is listed there with its default."""

    def compare(schema: dict, config: dict, place: str) -> None:
        assert set(config) == set(schema["properties"]) == set(schema["required"]), place
        for key, inner in schema["properties"].items():
            if "properties" in inner:
                compare(inner, config[key], f"{place}.{key}")

    compare(SCHEMA, CONFIG, "config")


@pytest.mark.parametrize(
    "changes",
    [
        {"base.model": "stabilityai/sdxl", "base.revision": "462165984030d82259a11f4367a4eed129e94a7b"},
        {"pictures.per_artist": None, "pictures.artists": ["maren", "pauline"]},
        {"weights.kernels": ["down"], "weights.components": ["self_attention"], "weights.blocks": ["up"]},
        {"extractors.large": {"library": "open_clip", "model": "ViT-L-14", "pretrained": "openai"}},
        {
            "extractors.hub": {
                "library": "timm",
                "model": "hf-hub:timm/vit_small",
                "pretrained": None,
                "revision": "a" * 40,
            }
        },
        {"plan.gallery": [1], "plan.query": [1], "pictures.per_artist": 2},
        {"generation.worth": None},
        {"weights.kernels": ["factors"], "weights.modules": ["gradient", "learnt"]},
        {"weights.modules": ["plain"], "weights.scales": ["unit"], "weights.controls": []},
        {"evaluation.basis": "components", "evaluation.distance": "L2"},
    ],
)
def test_other_studies_are_accepted(changes):
    assert checked(changes) == overlaid(changes)


def test_an_overlay_takes_an_extractor_away_with_null():
    assert set(checked({"extractors.clip": None})["extractors"]) == {"dino", "one_gradient", "mean_colour"}
    assert checked({"extractors": dict.fromkeys(CONFIG["extractors"])})["extractors"] == {}


# --- values that arrive as text


def test_nested_text_of_the_command_line_is_typed():
    entries = [
        "training={rank: 8, alpha: 0.5, caption: 3 boats, targets: [attention]}",
        "plan={gallery: [4, 2], query: [2]}",
        "pictures={per_artist: null, artists: [maren, odile]}",
        "evaluation={confidence: 0.9}",
        "extractors={clip: null}",
        "base={revision: null}",
        "folder=null",
        "seed=3",
    ]
    raw = handed_over(*entries)
    assert raw["training"]["rank"] == "8" and raw["extractors"]["clip"] == "null"  # so it is no idle test
    config = check(raw, SCHEMA, ROOT)
    expected = {
        "training.rank": 8,
        "training.alpha": 0.5,
        "training.caption": "3 boats",
        "training.targets": ["attention"],
        "plan.gallery": [4, 2],
        "plan.query": [2],
        "pictures.per_artist": None,
        "pictures.artists": ["maren", "odile"],
        "evaluation.confidence": 0.9,
        "seed": 3,
    }
    wanted = overlaid(expected)
    del wanted["extractors"]["clip"]
    assert config == wanted
    assert isinstance(config["training"]["rank"], int) and config["base"]["revision"] is None


def test_a_number_in_scientific_notation_is_a_number():
    """YAML 1.1 reads 2e-3, without a point, as text: in a file and on the command line alike."""
    assert check(handed_over("training={learning_rate: 2e-3}"), SCHEMA, ROOT)["training"]["learning_rate"] == 0.002
    overlay = yaml.safe_load("training: {learning_rate: 1e-4}")["training"]
    assert checked({f"training.{k}": v for k, v in overlay.items()})["training"]["learning_rate"] == 0.0001


@pytest.mark.parametrize("text", ["12", "null", "true", "[a, b]", "{a: 1}", "1.5"])
def test_text_where_text_is_wanted_stays_text(text):
    assert checked({"training.caption": text})["training"]["caption"] == text
    kept = resolve(overlaid({"generation.prompts": [text]}), SCHEMA)
    assert kept["generation"]["prompts"] == [text]


@pytest.mark.fault("configuration", "a path that no file can have: thousands of letters, or NUL", "refused by key")
@pytest.mark.parametrize("key", ["folder", "query", "lock", "base.model", "weights.base", "pictures.manifest"])
@pytest.mark.parametrize("text", ["x" * 5000, "y" * 256, "a\0b"])
def test_a_path_that_no_file_can_have_is_named(key, text):
    assert any(problem.startswith(f"{key}: ") for problem in problems({key: text}))


@pytest.mark.fault("configuration", "text on the command line where a number is wanted", "refused by key")
@pytest.mark.parametrize("text", ["many", "[", "x: [", "1.5", ""])
def test_text_that_is_no_number_is_named(text):
    (problem,) = problems({"training.rank": text})
    assert problem.startswith("training.rank: expected a whole number")


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(
        {
            "training.rank": st.integers(1, 10**6),
            "training.alpha": st.floats(1e-3, 1e6),
            "pictures.min_side": st.integers(1, 10**4),
            "plan.gallery": st.lists(st.integers(1, 20), min_size=1, max_size=5),
            "generation.guidance_scale": st.lists(st.floats(1, 30), min_size=1, max_size=4, unique=True),
            "weights.components": st.none() | st.lists(st.sampled_from(["other"]), min_size=1, max_size=1),
        }
    )
)
def test_typing_undoes_what_the_command_line_does(values):
    def text(value: Any) -> Any:
        if isinstance(value, list):
            return [text(inner) for inner in value]
        return yaml.safe_dump(value).removesuffix("\n...\n") if value is not None else "null"

    assert resolve(overlaid({k: text(v) for k, v in values.items()}), SCHEMA) == overlaid(values)
    whole = {k: yaml.safe_dump(v, default_flow_style=True).removesuffix("\n...\n") for k, v in values.items()}
    assert resolve(overlaid(whole), SCHEMA) == overlaid(values)


# --- what is wrong


@pytest.mark.fault("configuration", "a key with a typing error", "refused, with the nearest right key")
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sede", "'seed'"),
        ("picture", "'pictures'"),
        ("training.learnig_rate", "'learning_rate'"),
        ("training.lr_warmup", "'warmup'"),
        ("pictures.per_artists", "'per_artist'"),
        ("resources.memory_mb", "'mem_mb'"),
        ("extractors.clip.libary", "'library'"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(key, nearest):
    assert problems({key: 1}) == [f"{key}: no such key; did you mean {nearest}?"]


@pytest.mark.fault("configuration", "a name that YAML reads as a number", "refused, with how to write it")
@pytest.mark.parametrize("key", ["folder", "query", "base.model", "pictures.manifest"])
@pytest.mark.parametrize("value", [2024, 202411, 1.5, True])
def test_a_name_that_yaml_took_for_a_number_is_said_with_how_to_write_it(key, value):
    """snakemake/snakemake#2431, #3650: --config folder=2024_11 arrives as 202411."""
    (problem,) = problems({key: value})
    assert problem.startswith(f"{key}: {value!r} is no text, since --config reads values as YAML") and "./" in problem


@pytest.mark.parametrize("value", [["SDXL"], {"a": ""}, {"a": "b"}])
def test_a_name_that_yaml_took_for_a_list_or_a_mapping_is_said_with_how_to_write_it(value):
    (problem,) = problems({"folder": value})
    assert """--config 'folder= "[a] {b}: c" '""" in problem


@pytest.mark.parametrize(
    "name",
    [
        "my #1",
        "[SDXL] #1",
        "{a}",
        "a: b",
        "2024_11",
        "1e3",
        "yes",
        "null",
        "~",
        "it's #2",
        'a "b" #3',
        "\\ #4",
        "艺术家 🎨",
    ],
)
@pytest.mark.parametrize("key", ["folder", "query", "base.model"])
def test_the_spelling_that_is_told_is_read_as_the_name(key, name):
    """Snakemake's own reader of --config is the oracle, after a shell's."""
    from snakemake.cli import parse_config

    (entry,) = shlex.split(f"'{quoted(key, name)}'")
    found = parse_config([entry])
    for part in key.split("."):
        found = found[part]
    assert found == name


@pytest.mark.fault("configuration", "a path with #, which YAML cuts as a comment", "told, with the whole path")
def test_a_path_that_was_cut_at_a_comment_is_told_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SDXL #1").mkdir()
    assert """there is 'SDXL #1'""" in cut("folder", "SDXL") and """'folder= "SDXL #1" '""" in cut("folder", "SDXL")
    assert cut("query", str(tmp_path / "SDXL")).count(str(tmp_path)) == 2
    assert cut("folder", "SD") == cut("folder", "absent/x") == cut("folder", None) == cut("folder", "SDXL #1") == ""
    (problem,) = problems({"query": "SDXL"})
    assert problem.startswith("query: there is no file or folder 'SDXL' (there is 'SDXL #1'")


def test_a_home_is_found_where_a_shell_leaves_it(tmp_path, monkeypatch):
    """A shell turns ~ into a home where a word begins with it, and folder=~/loras does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = overlaid({"folder": "~/loras", "query": "~/q"})
    found = placed(config, ROOT)
    assert (found["folder"], found["query"]) == (f"{tmp_path}/loras", f"{tmp_path}/q")
    (tmp_path / "~" / "loras").mkdir(parents=True)
    assert placed(config, ROOT)["folder"] == "~/loras"  # what is called so is meant


def test_a_key_near_to_none_lists_those_that_there_are():
    (problem,) = problems({"plan.zzz": 1})
    assert problem == "plan.zzz: no such key; there are mixtures, content, gallery, query"


@pytest.mark.fault("configuration", "a value that is none of the choices", "refused, with the choices")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights.kernels": ["delta", "delt"]}, "weights.kernels.1: 'delt' is unknown; did you mean 'delta'?"),
        ({"weights.kernels": ["raw"]}, "weights.kernels.0: 'raw' is unknown; there are delta, factors, down, up"),
        ({"training.loss": "min-snr"}, "training.loss: 'min-snr' is unknown; did you mean 'min_snr'?"),
        ({"weights.modules": ["gradients"]}, "weights.modules.0: 'gradients' is unknown; did you mean 'gradient'?"),
        (
            {"weights.modules": ["plain", "xyz"]},
            "weights.modules.1: 'xyz' is unknown; there are gradient, consensus, unit, kfac, plain, learnt",
        ),
        ({"evaluation.basis": "hole"}, "evaluation.basis: 'hole' is unknown; did you mean 'whole'?"),
        ({"evaluation.distance": "cosin"}, "evaluation.distance: 'cosin' is unknown; did you mean 'cosine'?"),
        ({"pictures.source": "foldr"}, "pictures.source: 'foldr' is unknown; did you mean 'folder'?"),
        ({"extractors.clip.library": "openclip"}, "extractors.clip.library: 'openclip' is unknown"),
        (
            {"embedding.calibration": 3},
            "embedding.calibration: 3 is unknown; one of ['none', 'rescale', 'lzw', 'crossfit', 'split']",
        ),
    ],
)
def test_an_unknown_choice_names_the_known_ones(changes, words):
    (problem,) = problems(changes)
    assert problem.startswith(words)


@pytest.mark.fault("configuration", "a number out of its bounds", "refused, with the bounds")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": "Demo/../x"}, "study: 'Demo/../x' does not match"),
        ({"study": "../up"}, "study: '../up' does not match"),
        ({"seed": -1}, "seed: -1 is less than the minimum of 0"),
        ({"training.rank": 0}, "training.rank: 0 is less than the minimum of 1"),
        ({"training.resolution": 60}, "training.resolution: 60 is not a multiple of 8"),
        (
            {"weights.kernels": "delta"},
            'weights.kernels: expected a list, found "delta"; a single one is written [delta]',
        ),
        ({"study": 12}, "study: expected text, found 12; in quotes it is text: '12'"),
        ({"training.rank": True}, "training.rank: expected a whole number, found true"),
        ({"evaluation.confidence": 1}, "evaluation.confidence: 1 "),
        ({"plan.gallery": []}, "plan.gallery: []"),
        ({"generation.seeds": [0, 0]}, "generation.seeds: [0, 0] has non-unique elements"),
        ({"resources": None}, "resources: expected a mapping of keys, found null"),
        ({"extractors": None}, "extractors: expected a mapping of keys, found null"),
    ],
)
def test_a_value_out_of_bounds_is_named(changes, words):
    (problem,) = problems(changes)
    assert problem.startswith(words)


def test_an_absent_key_is_named():
    config = copy.deepcopy(CONFIG)
    del config["seed"], config["training"]["rank"]
    with pytest.raises(StudyError, match=r"(?s)'seed' is a required.*training: 'rank' is a required"):
        check(config, SCHEMA, ROOT)


@pytest.mark.fault("configuration", "several mistakes in one file", "all named at once")
def test_several_problems_are_named_at_once():
    found = problems({"training.rank": 0, "weights.kernels": ["delt"], "sede": 1, "seed": -1, "plan.galery": [1]})
    assert len(found) == 5
    for words in ("sede", "seed: -1", "plan.galery", "training.rank", "weights.kernels.0"):
        assert sum(problem.startswith(words) for problem in found) == 1, found


def test_problems_of_folders_and_of_pictures_are_named_at_once():
    found = problems(
        {
            "base.model": "no/such/folder",
            "extractors.Clip": {"library": "control", "model": "mean_colour", "pretrained": None},
            "extractors.lost": {"library": "timm", "model": "no/such/model", "pretrained": None},
            "embedding.calibrations": ["none"],
            "pictures.per_artist": 3,
            "pictures.artists": ["maren"],
        }
    )
    names = ["base.model", "extractors.Clip", "extractors.lost.model", "embedding.calibration", "plan", "pictures"]
    assert [problem.split(":")[0] for problem in found] == names


# --- the base


@pytest.mark.fault("configuration", "a base that is not there", "refused, with what to put there")
def test_an_absent_base_says_what_to_put_there():
    (problem,) = problems({"base.model": "workflow/resources/maxi/base"})
    assert problem.startswith("base.model: there is no diffusers model at 'workflow/resources/maxi/base'")
    assert all(words in problem for words in ("model_index.json", "unet/", "vae/", "base.revision"))


@pytest.mark.parametrize("model", ["workflow/resources/mini/dino", "workflow/resources"])
def test_a_folder_that_holds_no_base_is_refused(model):
    (problem,) = problems({"base.model": model})
    assert problem.startswith(f"base.model: there is no diffusers model at {model!r}")


def test_a_folder_of_an_architecture_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "MochiPipeline", "transformer": ["diffusers", "X"]}')
    (problem,) = problems({"base.model": str(tmp_path)})
    assert problem.startswith(f"base.model: '{tmp_path}' holds a MochiPipeline")
    assert all(name in problem for name in ("UNet2DConditionModel", "FluxPipeline", "ZImagePipeline"))
    for text in ('{"_class_name": "FluxPipeline"}', '{"unet": ["diffusers", "UNet2DConditionModel"]}'):
        (tmp_path / "model_index.json").write_text(text)
        assert checked({"base.model": str(tmp_path)})


def test_a_hub_id_needs_its_revision():
    assert problems({"base.model": "runwayml/stable-diffusion-v1-5"}) == [
        "base.model: there is no folder 'runwayml/stable-diffusion-v1-5' with a model_index.json here; if it is a hub "
        "id, name the commit to use in base.revision"
    ]


def test_a_local_folder_needs_no_revision(tmp_path):
    (tmp_path / "models" / "sd").mkdir(parents=True)
    (tmp_path / "models" / "sd" / "model_index.json").write_text("{}")
    changes = {"base.model": "models/sd", "extractors.clip": None, "extractors.dino": None}  # a hub id by its looks
    assert check(overlaid(changes), SCHEMA, tmp_path)["base"]["revision"] is None


# --- the weights and their descriptors


def files(folder: Path) -> dict[str, Any]:
    """A study of LoRA files that are there."""
    (folder / "monet").mkdir()
    (folder / "monet" / "one.safetensors").write_bytes(b"never opened here")
    return {"loras.source": "folder", "folder": str(folder)}


def test_files_whose_base_nobody_names_are_told_what_to_write(tmp_path):
    mine = files(tmp_path)
    (problem,) = problems(mine | {"weights.modules": ["gradient", "kfac"]})
    assert problem.startswith("weights.modules: ['gradient', 'kfac'] all need a base or labels")
    assert problem.endswith("write weights.modules: [consensus]")
    written = yaml.safe_load(problem.rpartition("write weights.modules: ")[2])
    assert checked(mine | {"weights.modules": written})["weights"]["modules"] == ["consensus"]
    # The headline of a folder is the first that needs no base.
    assert checked(mine | {"weights.modules": ["gradient", "plain"]})["weights"]["modules"] == ["gradient", "plain"]


def test_two_descriptors_of_one_name_are_refused():
    twin = CONFIG["extractors"]["clip"]
    # An extractor that sees training pictures → s4_g1, and one whose own name says so.
    (problem,) = problems({"extractors.clip_training_to": twin, "extractors.clip": twin})
    assert problem.startswith("extractors: two descriptors would be called clip_training_to_s4_g1")
    assert problem.endswith("give an extractor another name")
    assert checked({"extractors.clip_l14": twin, "extractors.clip_h14": twin})


@pytest.mark.parametrize(
    ("kernels", "modules"), [(["factors"], ["kfac", "learnt"]), (["down", "up"], ["kfac"]), (["delta"], ["learnt"])]
)
def test_a_study_without_a_descriptor_of_the_weights_is_refused(kernels, modules):
    (problem,) = problems({"weights.kernels": kernels, "weights.modules": modules})
    assert problem.startswith(f"weights.modules: {modules} with weights.kernels {kernels} leaves no descriptor")
    assert problem.endswith("add plain to weights.modules")
    assert checked({"weights.kernels": kernels, "weights.modules": [*modules, "plain"]})


def test_weightings_of_updates_are_enough_with_updates():
    assert checked({"weights.kernels": ["delta"], "weights.modules": ["kfac", "learnt"]})


def test_worth_is_typed_on_the_command_line():
    assert check(handed_over("generation={worth: null}"), SCHEMA, ROOT)["generation"]["worth"] is None
    found = check(handed_over("generation={worth: {pictures: 4, series: [own]}}"), SCHEMA, ROOT)
    assert found == overlaid({"generation.worth.pictures": 4, "generation.worth.series": ["own"]})


def test_the_probe_is_typed_on_the_command_line():
    found = check(handed_over("weights={probe: {samples: 8, prompts: [a cat]}}"), SCHEMA, ROOT)
    assert found == overlaid({"weights.probe.samples": 8, "weights.probe.prompts": ["a cat"]})


@pytest.mark.parametrize(
    ("basis", "known", "unseen", "together", "label"),
    [
        ("whole", (WHOLE, "none"), (WHOLE_UNSEEN, "none"), WHOLE, "no basis, CSLS"),
        (
            "components", (KNOWN, "rescale"), (UNSEEN, "none"), TOGETHER,
            "principal components, calibration rescale, CSLS",
        ),
    ],
)  # fmt: skip
def test_the_headline_is_a_basis_a_calibration_and_a_distance(basis, known, unseen, together, label):
    """Rows of all tables are of the scenario and the calibration that it names."""
    calibrations = {"embedding.calibration": "rescale", "embedding.calibrations": ["none", "rescale"]}
    found = headline(checked({"evaluation.basis": basis, "evaluation.distance": "CSLS"} | calibrations))
    assert (found.known, found.unseen, found.together, found.label) == (known, unseen, together, label)
    assert View(**found.stored()) == found == View(basis, "rescale", "CSLS")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generation.worth.series": ["shard"]}, "generation.worth.series.0: 'shard' is unknown; did you mean"),
        ({"generation.worth.picture": 3}, "generation.worth.picture: no such key; did you mean 'pictures'?"),
        ({"generation.worth.pictures": 0}, "generation.worth.pictures: 0 is less than the minimum of"),
        ({"generation.worth.prompts": []}, "generation.worth.prompts: []"),
        ({"weights.modules": []}, "weights.modules: []"),
        ({"weights.modules": ["plain", "plain"]}, "weights.modules: ['plain', 'plain'] has non-unique elements"),
        ({"weights.probe.sample": 3}, "weights.probe.sample: no such key; did you mean 'samples'?"),
        ({"weights.probe.samples": 0}, "weights.probe.samples: 0 is less than the minimum of 1"),
        ({"weights.probe.seed": -1}, "weights.probe.seed: -1 is less than the minimum of 0"),
        ({"weights.probe.prompts": []}, "weights.probe.prompts: []"),
        ({"weights.probe": None}, "weights.probe: expected a mapping of keys, found null"),
    ],
)
def test_what_is_wrong_with_series_weightings_and_the_probe_is_named(changes, words):
    (problem,) = problems(changes)
    assert problem.startswith(words)


# --- the pictures


def test_an_artist_with_too_few_pictures_is_named_with_the_number_needed(tmp_path):
    for artist, number in {"Claude Monet": 5, "Berthe Morisot": 2, "Camille Pissarro": 3}.items():
        (tmp_path / artist).mkdir()
        for n in range(number):
            (tmp_path / artist / f"{n}.png").write_bytes(b"never opened here")
    mine = {"folder": str(tmp_path), "pictures.source": "folder", "plan.gallery": [2, 3], "plan.query": [1, 2]}
    (problem,) = problems(mine)
    assert problem.startswith("plan: too few pictures: berthe_morisot (2), camille_pissarro (3); each artist needs 5 ")
    assert "pictures.artists" in problem and "monet" not in problem
    assert checked(mine | {"plan.gallery": [1, 1], "plan.query": [1]})["plan"]["gallery"] == [1, 1]


def test_a_limit_that_is_below_the_plan_is_named_and_not_the_artists(tmp_path):
    for artist in ("monet", "repin"):
        (tmp_path / artist).mkdir()
        for n in range(9):
            (tmp_path / artist / f"{n}.png").write_bytes(b"never opened here")
    mine = {"folder": str(tmp_path), "pictures.source": "folder", "plan.gallery": [4], "plan.query": [3]}
    (problem,) = problems(mine | {"pictures.per_artist": 5})
    assert "pictures.per_artist allows 5; raise it to 7 or more" in problem and "monet" not in problem
    assert checked(mine | {"pictures.per_artist": 7})["pictures"]["per_artist"] == 7


@pytest.mark.parametrize(
    "changes",
    [{"plan.content": "shared"}, {"weights.controls": ["norm", "content"]}],
    ids=lambda each: next(iter(each)),
)
def test_a_source_that_knows_no_subjects_splits_by_none(tmp_path, changes):
    for artist in ("monet", "repin"):
        (tmp_path / artist).mkdir()
        for n in range(9):
            (tmp_path / artist / f"{n}.png").write_bytes(b"never opened here")
    mine = {"folder": str(tmp_path), "pictures.source": "folder", "plan.gallery": [4], "plan.query": [3]}
    (problem,) = problems(mine | changes)
    assert problem.startswith(next(iter(changes))) and "pictures.source folder does not say" in problem


@pytest.mark.fault("configuration", "an artist that the source lacks", "refused by name")
def test_an_artist_that_the_source_lacks_is_named():
    assert problems({"pictures.artists": ["maren", "odil"]}) == [
        "pictures.artists: no artist 'odil'; did you mean odile?"
    ]


def test_one_artist_is_no_study():
    assert problems({"pictures.artists": ["maren"]}) == ["pictures: a study compares artists, and there is only maren"]


def test_a_folder_that_is_not_set_says_what_to_put_there():
    (problem,) = problems({"pictures.source": "folder"})
    assert "`folder` is not set" in problem and "monet/water-lilies.jpg" in problem


# --- the network


@pytest.mark.fault(
    "configuration", "a model of the hub by a branch that may move, without a lock", "refused, with what to write"
)
def test_models_of_the_hub_need_a_commit_or_a_lock():
    hub = {"library": "timm", "model": "hf-hub:timm/vit", "pretrained": None}
    (problem,) = problems({"extractors.vit": hub})
    assert problem.startswith("extractors.vit.revision: name the commit of hf-hub:timm/vit, or set `lock`")
    assert problems({"extractors.vit": hub | {"revision": "main"}})
    assert checked({"extractors.vit": hub | {"revision": "b" * 40}})
    assert checked({"extractors.vit": hub, "lock": "mine.lock.yaml"})
    (problem,) = problems({"base.model": "o/base", "base.revision": "main"})
    assert problem.startswith("base.revision: 'main' is no commit of o/base")


def test_weights_of_style_extractors_are_files_or_of_the_hub():
    for library in ("csd", "vgg_gram"):
        (problem,) = problems({"extractors.s": {"library": library, "model": "no/such", "pretrained": None}})
        assert problem.startswith("extractors.s: there is no 'no/such'")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures.archive": {"metadata": "http://x/a", "images": "http://x/b"}}, "pictures.archive: only the source"),
        ({"pictures.source": "manifest"}, "pictures.source is manifest, and pictures.manifest is not set"),
        (
            {"pictures.source": "commons", "pictures.manifest": "x.csv"},
            "pictures.source is commons: set pictures.c",
        ),
        (
            {"pictures.source": "huggingface", "pictures.manifest": "x.csv"},
            "pictures.source is huggingface: set ",
        ),
        ({"pictures.dataset": {"id": "o/d"}}, "pictures.dataset: "),
        ({"pictures.contact": "a\nb"}, "pictures.contact: "),
    ],
)
def test_half_a_source_is_named(changes, words):
    assert any(problem.startswith(words) for problem in problems(changes))


def test_artists_may_stand_under_genres():
    chosen = {"strokes": ["maren"], "points": ["odile"]}
    assert checked({"pictures.artists": chosen})["pictures"]["artists"] == chosen


# --- where the project is, and where the study is


def test_what_only_the_project_has_is_taken_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = check(CONFIG, SCHEMA, ROOT)
    assert found["base"]["model"] == str(ROOT / "workflow/resources/mini/base")
    assert found["extractors"]["clip"]["model"] == str(ROOT / "workflow/resources/mini/clip")
    assert found["extractors"]["mean_colour"]["model"] == "mean_colour"
    assert found["pictures"]["manifest"] is None and found["lock"] is None


def test_what_lies_here_goes_before_what_the_project_has(tmp_path, monkeypatch):
    mine = tmp_path / "workflow/resources/mini"
    mine.parent.mkdir(parents=True)
    mine.symlink_to(ROOT / "workflow/resources/mini")
    monkeypatch.chdir(tmp_path)
    assert check(CONFIG, SCHEMA, ROOT)["base"]["model"] == CONFIG["base"]["model"]


def test_a_model_that_only_the_working_directory_has_is_found_there(tmp_path, monkeypatch):
    (tmp_path / "mine").symlink_to(ROOT / "workflow/resources/mini")
    monkeypatch.chdir(tmp_path)
    changes = {"base.model": "mine/base", "extractors.clip.model": "mine/clip", "extractors.dino.model": "mine/dino"}
    found = check(overlaid(changes), SCHEMA, ROOT)
    assert found["base"]["model"] == "mine/base" and found["extractors"]["dino"]["model"] == "mine/dino"
    assert "manner of handling" in " ".join(sentences(found, Path()))  # what about.yaml says of the mini CLIP


def test_keys_that_are_left_out_are_the_projects_and_a_variant_is_whole():
    assert filled({"seed": 3, "plan": {"query": [2]}}, CONFIG) == overlaid({"seed": 3, "plan.query": [2]})
    assert filled({"seed": 3}, {"seed": 1, "folder": "a"}, {"seed": 2}) == {"seed": 3, "folder": "a"}
    # An extractor that the study has switched off does not come back in its variants.
    variant = {"shared": {"study": "demo", "stages": []}, "extractors": {}}
    assert filled(variant, CONFIG) == variant


def test_an_old_name_of_a_key_is_accepted_with_a_warning_and_wins_over_the_default():
    old = {"seed": 3, "evaluation": {"level": 0.9}, "variants": {"wide": {"evaluation": {"level": 0.5}}}}
    found = filled(old, CONFIG)
    assert found["evaluation"] == CONFIG["evaluation"] | {"confidence": 0.9}
    assert found["variants"] == {"wide": {"evaluation": {"confidence": 0.5}}}
    # As Snakemake merges files of configuration.
    merged = CONFIG | {"evaluation": CONFIG["evaluation"] | {"level": 0.8}}
    assert filled(merged)["evaluation"]["confidence"] == 0.8
    said = list(outdated(old))
    assert [line.split(" is called ")[0] for line in said] == ["evaluation.level", "variants.wide.evaluation.level"]
    assert "evaluation.confidence" in said[0] and list(outdated(CONFIG)) == []
    assert old["evaluation"] == {"level": 0.9}
