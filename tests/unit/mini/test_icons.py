"""What the base of icons learns from: free families that no study uses, captioned by what they show."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_atlas.mini import base, corpus, flow
from lora_atlas.mini.icon_card import write_card
from lora_atlas.mini.icons import COLOURED, Used, make, save_used, studied, words
from lora_atlas.pictures.sources import SourceError

ROOT = Path(__file__).parents[3]
MINI = ROOT / "workflow/resources/mini"
DISC = '<circle cx="8" cy="8" r="{}" fill="{}"/>'
THINGS = ("cat", "dog", "fox", "hen", "cow", "owl")


def family(folder: Path, name: str, drawings: dict[str, str], **more) -> None:
    known = json.loads((folder / "collections.json").read_text()) if (folder / "collections.json").is_file() else {}
    told = {"name": name.title(), "total": len(drawings), "author": {"name": f"{name}'s author"}}
    known[name] = told | {"license": {"spdx": "MIT"}, "category": "UI 24px", "palette": False} | more
    (folder / "json").mkdir(exist_ok=True)
    (folder / "collections.json").write_text(json.dumps(known))
    icons = {each: {"body": body} for each, body in drawings.items()}
    (folder / "json" / f"{name}.json").write_text(json.dumps({"prefix": name, "icons": icons}))


@pytest.fixture
def packages(tmp_path) -> Path:
    folder = tmp_path / "all"
    folder.mkdir()
    plain = {f"{thing}-outline": DISC.format(3 + i / 4, "#333333") for i, thing in enumerate(THINGS)}
    coloured = {thing: DISC.format(3 + i / 4, "#ee3300") for i, thing in enumerate(THINGS)}
    family(folder, "plain", plain)
    family(folder, "bright", coloured, palette=True, license={"spdx": "CC-BY-4.0"})
    family(folder, "bright-mono", plain)
    family(folder, "greedy", plain, license={"spdx": "CC-BY-NC-4.0"})
    family(folder, "copyleft", plain, license={"spdx": "GPL-3.0"})
    family(folder, "makers", plain, category="Programming")
    family(folder, "odd", {"cat": DISC.format(2, "#111111"), "acme-logo": DISC.format(4, "#111111"), "bad": "<g>"})
    return folder


def test_what_studies_use_is_never_learnt_from():
    """The studies of this repository: every family that they, or their variants, name."""
    found = studied(ROOT / "workflow/studies")
    assert {"twemoji", "fluent-emoji-flat", "streamline-kameleon-color", "tabler"} <= found and len(found) >= 50


def test_sisters_brands_and_licences_that_ask_for_more_are_left_out(packages):
    found, used = make(packages, {"bright"}, count=100, size=16, seed=0, workers=1)
    assert [(each.name, each.licence, each.drawings) for each in used] == [("odd", "MIT", 1), ("plain", "MIT", 6)]
    assert found.pictures.shape == (7, 16, 16, 3) and found.pictures.dtype == np.uint8 and found.noun == "icon"
    assert Counter(found.contents) == Counter({"cat": 2} | dict.fromkeys(THINGS[1:], 1))
    assert {each.author for each in used} == {"odd's author", "plain's author"}


def test_coloured_families_give_more_and_what_is_missing_comes_from_others(packages):
    _, used = make(packages, set(), count=5, size=16, seed=0, workers=1)
    drawn = {each.name: each.drawings for each in used}
    assert sum(drawn.values()) in (4, 5)  # one that was chosen may be broken
    assert drawn["bright"] >= max(n for name, n in drawn.items() if name != "bright") and COLOURED > 1
    again, _ = make(packages, set(), count=5, size=16, seed=0, workers=1)
    other, _ = make(packages, set(), count=5, size=16, seed=1, workers=1)
    first, _ = make(packages, set(), count=5, size=16, seed=0, workers=1)
    assert (again.pictures == first.pictures).all()
    assert again.contents != other.contents or (again.pictures != other.pictures).any()


def test_a_name_is_its_words_without_how_it_is_drawn():
    assert words("cat-face-outline-24px") == ["cat", "face"]
    assert words("arrow_left_2-filled") == ["arrow", "left"]
    assert words("x") == []


def test_a_folder_without_families_says_how_to_get_them(tmp_path):
    with pytest.raises(SourceError, match="make extras"):
        make(tmp_path, set(), count=1, size=16, seed=0, workers=1)


def test_captions_are_of_icons_and_a_corpus_keeps_what_it_is_of(tmp_path):
    assert corpus.content_caption("cat face", "icon") == "an icon of a cat face"
    assert (corpus.content_caption("", "icon"), corpus.content_caption("")) == ("an icon", "a painting")
    kept = corpus.Corpus(np.zeros((1, 4, 4, 3), np.uint8), ("cat",), ("cat",), "icon")
    corpus.save(kept, tmp_path / "c.safetensors")
    assert corpus.load(tmp_path / "c.safetensors").noun == "icon"


@pytest.mark.parametrize(
    ("network", "kind", "target"), [(base, "base", "pretrain_icons"), (flow, "flow", "pretrain_flow_icons")]
)
def test_a_base_learns_from_them_and_its_card_names_every_author(packages, tmp_path, network, kind, target):
    found, used = make(packages, {"bright"}, count=100, size=32, seed=0, workers=1)
    corpus.save(found, tmp_path / "corpus.safetensors")
    save_used(used, tmp_path / "used.json")
    model, log = tmp_path / "base", tmp_path / "log.json"
    state = tmp_path / "state.pt"
    network.build(tmp_path / "corpus.safetensors", MINI / "base/vae", model, log, steps=2, seed=0, state=state)
    folder = tmp_path / "export"
    folder.mkdir()
    write_card(
        found, tmp_path / "used.json", model, log, folder, source=packages, avoid={"bright"}, seed=0, network=kind
    )  # fmt: skip
    card = (folder / "README.md").read_text()
    for each in used:
        assert isinstance(each, Used) and f"| {each.title} | {each.author} | MIT | {each.drawings} |" in card
    assert (
        "use other families: none." in card and f"`snakemake {target}`" in card and (folder / "samples.png").is_file()
    )
    assert "base: 7 drawings of 2 icon families that no study uses" in (folder / "about.yaml").read_text()
    words_ = json.loads((model / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    assert "icon</w>" in words_ and "cat</w>" in words_
    assert torch.isfinite(torch.tensor([row["loss"] for row in json.loads(log.read_text())])).all()
