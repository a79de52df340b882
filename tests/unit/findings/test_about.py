"""What a study is about: sentences of its configuration, and of what stands beside its models."""

from pathlib import Path

import pytest
import yaml
from plans import embedded_study

from lora_atlas.findings.about import sentences
from lora_atlas.study import StudyError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(monkeypatch):
    return embedded_study(monkeypatch)


def of(source, config):
    return config | {"pictures": config["pictures"] | {"source": source}}


def test_the_embedded_study_says_that_its_pictures_are_procedural(config):
    found = sentences(config, ROOT)
    assert found[0] == (
        "The pictures are painted by procedural painters of this project, no works of art, trained on at 64 pixels."
    )
    told = yaml.safe_load((ROOT / "workflow/resources/mini/about.yaml").read_text())
    assert found[1] == f"The base `mini/base` learnt from {told['base']}."
    assert found[2] == f"The extractor `clip` (open_clip) learnt from {told['clip']}."
    assert len(found) == 4  # base, clip, dino: a control learnt nothing


def test_a_folder_of_pictures_is_not_procedural(config):
    found = sentences(of("folder", config), ROOT)
    assert found[0].startswith("The pictures are files of a folder")
    assert "procedural" not in found[0]


@pytest.mark.parametrize("source", ["folder", "manifest", "huggingface", "artbench", "commons"])
def test_every_source_says_what_its_pictures_are(config, source):
    first = sentences(of(source, config), ROOT)[0]
    assert "procedural" not in first and "the study's own source" not in first
    assert first.endswith("trained on at 64 pixels.")


def test_the_size_is_the_studys(config):
    assert "at 512 pixels" in sentences(config | {"training": config["training"] | {"resolution": 512}}, ROOT)[0]


def test_of_an_unknown_model_nobody_says_what_it_learnt_from(config):
    hub = {"library": "open_clip", "model": "hf-hub:owner/clip", "pretrained": "openai", "revision": "a" * 40}
    mine = config | {
        "base": config["base"] | {"model": "owner/base", "revision": "b" * 40},
        "extractors": {"clip_l14": hub},
    }
    _, base, extractor = sentences(mine, ROOT)
    unknown = "nothing beside it says it here."
    assert base == f"The base `owner/base` learnt from what its authors say of owner/base; {unknown}"
    assert extractor.startswith("The extractor `clip_l14` (open_clip, openai) learnt from what its authors say of ")
    assert extractor.endswith(f"owner/clip; {unknown}")


@pytest.mark.parametrize("told", [None, "", "other: pictures of cats", "just words", "- a list"])
def test_a_folder_that_says_nothing_of_the_model_is_unknown(config, tmp_path, told):
    (tmp_path / "models/base").mkdir(parents=True)
    if told is not None:
        (tmp_path / "models/about.yaml").write_text(told)
    mine = config | {"base": config["base"] | {"model": "models/base"}, "extractors": {}}
    assert sentences(mine, tmp_path)[1].endswith("nothing beside it says it here.")


def test_a_folder_says_what_its_model_learnt_from(config, tmp_path):
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "models/about.yaml").write_text("mine: pictures of cats, and of 木版画\n", encoding="utf-8")
    mine = config | {"base": config["base"] | {"model": "models/mine"}, "extractors": {}}
    assert sentences(mine, tmp_path)[1] == "The base `models/mine` learnt from pictures of cats, and of 木版画."


def test_what_a_folder_says_is_no_word_on_a_model_of_the_hub(config, tmp_path):
    """Of one name, and not there: `models/mine` is then an id."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/about.yaml").write_text("mine: pictures of cats\n")
    mine = config | {"base": config["base"] | {"model": "models/mine"}, "extractors": {}}
    found = sentences(mine, tmp_path)[1]
    assert found.startswith("The base `models/mine` learnt from what its authors say of models/mine;")
    assert "cats" not in found


@pytest.mark.parametrize(
    "folder", sorted(path.parent.name for path in (ROOT / "workflow/resources").glob("*/about.yaml"))
)
def test_what_the_committed_models_learnt_from_can_be_read(config, folder):
    told = yaml.safe_load((ROOT / f"workflow/resources/{folder}/about.yaml").read_text())
    assert told and all((ROOT / f"workflow/resources/{folder}/{model}").is_dir() for model in told)
    found = sentences(config | {"base": config["base"] | {"model": f"workflow/resources/{folder}/base"}}, ROOT)
    assert found[1] == f"The base `{folder}/base` learnt from {told['base']}."


@pytest.mark.parametrize("text", ["base: these: those", "base: [", "base: \x00"])
def test_words_beside_a_model_that_are_no_yaml_are_named(config, tmp_path, text):
    (tmp_path / "base").mkdir()
    (tmp_path / "about.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"about\.yaml: not YAML of a model's folder and a few words in quotes"):
        sentences(config | {"base": config["base"] | {"model": str(tmp_path / "base")}}, ROOT)
