"""A folder of other people's LoRA files: mapped by space, asked with new files, and nothing of it can be lost."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import private
import pytest
from pages import held
from safetensors.numpy import load_file, save_file

from lora_atlas import tables

pytestmark = pytest.mark.slow

WIDTHS = {"down_blocks.0": 320, "down_blocks.1": 640, "mid_block": 1280}  # a few layers of an SD1.x
TEXT = 768


def modules(text: int = TEXT) -> dict[str, tuple[int, int]]:
    found = {}
    for block, width in WIDTHS.items():
        layer = f"{block}.attentions.0.transformer_blocks.0"
        found |= {f"{layer}.attn1.to_q": (width, width), f"{layer}.attn2.to_k": (width, text)}
    return found


def trained(
    seed: int, like: dict[str, np.ndarray] | None = None, rank: int = 2, text: int = TEXT
) -> dict[str, np.ndarray]:
    """Factors of a LoRA: of a run of its own, or a later checkpoint of another's."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, width) in modules(text).items():
        tensors[f"unet.{module}.lora_A.weight"] = rng.normal(size=(rank, width)).astype(np.float32)
        tensors[f"unet.{module}.lora_B.weight"] = rng.normal(size=(out, rank)).astype(np.float32)
    return tensors if like is None else {key: like[key] + 0.4 * value for key, value in tensors.items()}


def kohya(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same update as kohya's trainer writes it: other names, float16, an alpha."""
    found = {}
    for key, value in tensors.items():
        module, part = key.removeprefix("unet.").rsplit(".lora_", 1)
        name = "lora_unet_" + module.replace(".", "_")
        found[f"{name}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = value.astype(np.float16)
        found[f"{name}.alpha"] = np.array(1.0, np.float16)
    for name in {key.split(".")[0] for key in found}:
        found[f"{name}.lora_up.weight"] *= np.float16(2)  # alpha / rank is a half
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    for artist in ("ada", "bob"):
        (root / artist).mkdir()
    first, second = trained(1), trained(2)
    save_file(first, root / "ada/one.safetensors")
    save_file(trained(11, first), root / "ada/one-later.safetensors")
    save_file(kohya(first), root / "ada/one-kohya.safetensors")
    save_file(second, root / "bob/two.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    save_file(trained(12, second), root / "bob/two-later\u3000final.safetensors")  # an ideographic space
    save_file(trained(3), root / "bob/<script>alert(1)</script>.safetensors".replace("/script", "\\script"))
    save_file(trained(4, text=2048), root / "of another base.safetensors")
    save_file({key: np.zeros_like(value) for key, value in first.items()}, root / "zero.safetensors")
    shutil.copy(root / "ada/one.safetensors", root / "copy.safetensors")
    (root / "cut.safetensors").write_bytes((root / "ada/one.safetensors").read_bytes()[:5000])
    (root / "evil.pt").write_bytes(pickle.dumps({"x": 1}))
    return root


def asked(folder: Path, *more: str) -> list[str]:
    return ["--configfile", "workflow/studies/my_loras.yaml", "--config", f"folder={folder}", *more]


@pytest.fixture(scope="module")
def mapped(copied, folder):
    text = copied.run(*asked(folder))
    return copied.root / "results/my_loras", text


def inventory(results: Path) -> dict[str, dict]:
    return {row["lora"]: row for row in tables.read(results / "tables/loras.parquet", "loras").to_pylist()}


def test_every_file_is_a_row_imported_or_refused_with_the_reason(mapped):
    rows = inventory(mapped[0])
    refused = {lora: row["reason"] for lora, row in rows.items() if row["status"] == "refused"}
    assert set(refused) == {"zero", "cut", "evil"}
    assert "every update is zero" in refused["zero"]
    assert "cut short" in refused["cut"] or "damaged" in refused["cut"]
    assert refused["evil"].startswith("a pickle that is damaged, or not one that torch writes")
    assert rows["ada/one"]["artist"] == "ada" and rows["copy"]["artist"] is None
    assert rows["ada/one"]["ranks"] == [2] and rows["ada/one"]["zero_share"] == 0
    assert rows["bob/two"]["family"] == "SD1.x" and rows["bob/two"]["header_family"] == "SDXL"
    assert "zero: every update is zero" in mapped[1] and "3 refused" in mapped[1]


def test_nothing_that_is_handed_on_names_person_machine_or_folder(copied, folder, mapped):
    files = private.outputs(mapped[0])
    assert {".parquet", ".safetensors", ".html", ".png", ".svg"} <= {path.suffix for path in files}
    assert private.told(files, private.words(copied.root, folder)) == []


def test_copies_are_named_whatever_their_format(mapped):
    rows = inventory(mapped[0])
    assert (rows["ada/one-kohya"]["copy_of"], rows["ada/one-kohya"]["relation"]) == ("ada/one", "same update")
    assert (rows["copy"]["copy_of"], rows["copy"]["relation"]) == ("ada/one", "same bytes")
    assert rows["ada/one-later"]["copy_of"] is None


def test_families_have_spaces_of_their_own_and_each_of_four_a_map(mapped):
    results, rows = mapped[0], inventory(mapped[0])
    spaces = {row["space"] for row in rows.values() if row["space"]}
    small = rows["of another base"]["space"]
    assert len(spaces) == 2 and small != rows["ada/one"]["space"]
    for space in spaces:
        for name in ("neighbours.parquet", "embedding.parquet", "weights/delta.safetensors"):
            assert (results / "spaces" / space / name).stat().st_size > 0
        for name in ("map.png", "map.svg"):
            assert (results / "spaces" / space / name).is_file() == (space != small)
    whole = tables.read(results / "tables/neighbours.parquet", "neighbours").to_pylist()
    assert {row["space"] for row in whole} == {"sd1"}  # the other LoRA has none
    page = (results / "atlas.html").read_text()
    assert "<script>alert" not in page
    data = held(page)
    assert [each["name"] for each in data["maps"]] == ["sd1", small]
    assert {lora["name"] for lora in data["loras"]} >= {"ada/one", "of another base"}
    one = next(lora for lora in data["loras"] if lora["name"] == "ada/one")
    assert one["count"] == 3 and [copy[0] for copy in one["copies"]] == ["ada/one-kohya", "copy"]


def test_what_is_gone_of_one_space_is_made_again_by_its_stage_alone(copied, folder, mapped):
    (mapped[0] / "spaces/sd1/map.svg").unlink()
    text = copied.run(*asked(folder))
    assert "The page to open: " in text and "results/my_loras/atlas.html" in text.split("The page to open: ")[1]
    assert (mapped[0] / "spaces/sd1/map.svg").is_file()
    assert "rule space_maps" in text and "rule space_weights" not in text and "rule inventory" not in text
    assert "Nothing to be done" in copied.run(*asked(folder))


def test_checkpoints_of_one_run_are_nearer_than_any_other_file(mapped):
    rows = inventory(mapped[0])
    found = tables.read(
        mapped[0] / "spaces" / rows["ada/one"]["space"] / "neighbours.parquet", "neighbours"
    ).to_pylist()
    near = {(row["lora"], row["neighbour"]): row["distance"] for row in found}
    assert near["ada/one-kohya", "ada/one"] < 1e-3
    runs = {"1": ["ada/one", "ada/one-later", "ada/one-kohya", "copy"], "2": ["bob/two", "bob/two-later\\u3000final"]}
    within = [d for (a, b), d in near.items() if any(a in run and b in run for run in runs.values())]
    across = [d for (a, b), d in near.items() if not any(a in run and b in run for run in runs.values())]
    assert max(within) < min(across)


def test_a_second_run_has_nothing_to_do_and_a_new_file_costs_only_itself(copied, folder, mapped, tmp_path):
    assert "Nothing to be done" in copied.run(*asked(folder))
    grown = tmp_path / "grown"
    shutil.copytree(folder, grown)
    sketches = sorted(mapped[0].glob("cache/*/sketches/*"))
    before = {path: path.stat().st_mtime_ns for path in sketches}
    save_file(trained(5), grown / "new.safetensors")
    copied.run(*asked(grown))
    assert {path: path.stat().st_mtime_ns for path in sketches} == before
    assert len(list(mapped[0].glob("cache/*/sketches/*"))) == len(sketches) + 1
    assert inventory(mapped[0])["new"]["status"] == "imported"


@pytest.mark.parametrize("engine", ["exact", "sketch"])
def test_a_query_finds_its_run_and_a_copy_is_at_no_distance(copied, folder, mapped, tmp_path, engine):
    tensors = load_file(folder / "bob/two.safetensors")
    save_file(trained(13, tensors), tmp_path / "q.safetensors")
    save_file(kohya(tensors), tmp_path / "twin.safetensors")
    save_file(trained(6, text=1024), tmp_path / "sd2.safetensors")
    text = copied.run("query", *asked(folder, f"query={tmp_path}", f"weights={{engine: {engine}}}"))
    found = tables.read(next((mapped[0] / "query").glob("*.parquet")), "query").to_pylist()
    first = {row["query"]: row for row in found if row["rank"] in (None, 1)}
    assert first["q"]["lora"].startswith("bob/two") and first["q"]["artist"] == "bob"
    assert first["twin"]["lora"] == "bob/two" and first["twin"]["distance"] < 1e-3
    assert first["twin"]["relation"] == "same update"
    assert first["sd2"]["status"] == "refused" and "SD2.x" in first["sd2"]["reason"]
    assert all(0 < row["p"] <= 1 for row in found if row["p"] is not None)
    page = next((mapped[0] / "query").glob("*.html")).read_text()
    assert "It is known: same update as bob/two." in page and "SD2.x" in page
    assert "sd2: refused" in text
    shutil.rmtree(mapped[0] / "query")


def test_names_that_people_give_are_names(copied, folder, tmp_path):
    """Braces, commas, quotes and brackets in folders and files are no patterns of Snakemake's."""
    theirs = tmp_path / "set {v2}, my (LoRAs) [SDXL]"
    theirs.mkdir()
    for i, name in enumerate(("style {wildcard}", "a=b", "it's 100%")):
        save_file(trained(20 + i), theirs / f"{name}.safetensors")
    study = "study=names"
    copied.run(*asked(theirs, study))
    found = {row["lora"] for row in inventory(copied.root / "results/names").values()}
    assert found == {"style {wildcard}", "a=b", "it's 100%"}
    copied.run("query", *asked(theirs, study, f"query={theirs / 'style {wildcard}.safetensors'}"))
    (answers,) = (copied.root / "results/names/query").glob("*.parquet")
    # Of the folder that it lies in: all but itself.
    assert {row["lora"] for row in tables.read(answers, "query").to_pylist()} == found - {"style {wildcard}"}


def test_results_of_another_folder_are_told_and_nothing_of_them_stays(copied, folder, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for place, text in ((one, 768), (other, 2048)):
        place.mkdir()
        for i in range(2):
            save_file(trained(30 + i, text=text), place / f"{i}.safetensors")
    results = copied.root / "results/twice"
    assert "is of another folder" not in copied.run(*asked(one, "study=twice"))
    spaces = {path.name for path in (results / "spaces").iterdir()}
    said = copied.run(*asked(other, "study=twice"))
    assert f"results/twice is of another folder, and is made anew of {other}; with study=NAME both are kept" in said
    after = {path.name for path in (results / "spaces").iterdir()}
    assert spaces and after and not spaces & after
    assert "is of another folder" not in copied.run(*asked(other, "study=twice"))


def test_what_is_not_there_is_said_before_any_job(copied, folder, tmp_path):
    for arguments, words in (
        (["--configfile", "workflow/studies/my_loras.yaml"], "folder: not set"),
        (asked(tmp_path / "absent"), "is absent"),
        (asked(tmp_path), "no LoRA files in it"),
        (asked(folder, "query=absent.safetensors"), "query: there is no file"),
    ):
        text = copied.run(*arguments, fails=True)
        assert words in text and "Traceback" not in text
    assert "query: name a LoRA file" in copied.run("query", *asked(folder), fails=True)
