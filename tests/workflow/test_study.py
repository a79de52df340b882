"""The whole chain on a tiny study: it ends in sound tables, reruns what it must, and the same bytes come twice."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import private
import pytest
from pages import held
from safetensors import safe_open

from lora_atlas import tables

pytestmark = pytest.mark.slow

ARTISTS = ["berthe", "joris", "maren", "odile"]


TIMED = (
    "log.parquet",
    "tables/cost.parquet",
    "tables/worth.parquet",
    "tables/crossings.parquet",
    "FINDINGS.md",
    "atlas.html",
)


def untimed(results: Path, name: str) -> list[dict]:
    """Rows of a table without the seconds in it."""
    rows = tables.read(results / f"tables/{name}.parquet", name).to_pylist()
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def digests(folder: Path) -> dict[str, str]:
    """Every file of a study but logs, and those that hold times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not {"logs", "cost", "state", ".made"} & set((name := str(path.relative_to(folder))).split("/"))
        and not name.endswith(TIMED)
    }


def test_it_ends_in_tables_and_charts(tiny):
    results = tiny.root / "results/tiny"
    for path in (results / "tables").glob("*.parquet"):
        name = path.stem.removeprefix("clustering_")  # differences of clusters are a table of differences
        assert len(tables.read(path, name)) > 0, path
    assert len(list((results / "tables").glob("*.parquet"))) == 21
    for chart in ("weight_map", "comparison", "structure", "ablation", "drift", "worth"):
        assert (results / f"charts/{chart}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (results / f"charts/{chart}.svg").read_bytes()[:200]
    assert not (results / "state").exists() or not any((results / "state").rglob("*.pt"))


def test_the_page_holds_every_lora_and_every_descriptor(tiny):
    results = tiny.root / "results/tiny"
    data = held(results / "atlas.html")
    plan = tables.read(results / "plan.parquet", "plan").to_pylist()
    assert [lora["name"] for lora in data["loras"]] == [row["lora"] for row in plan]
    assert all(lora["training"] and lora["generated"] for lora in data["loras"])
    assert {each["name"] for each in data["maps"]} == {path.stem for path in (results / "embeddings").glob("*.parquet")}
    assert set(data["saved"]) == {"comparison", "worth", "ablation", "structure", "drift", "cost"}


def test_the_report_holds_pages_charts_and_findings(tiny, tmp_path):
    tiny.make("--report", str(tmp_path / "report.zip"))
    inside = {Path(name).name for name in zipfile.ZipFile(tmp_path / "report.zip").namelist()}
    assert {"atlas.html", "index.html", "FINDINGS.md", "comparison.png", "worth.png", "report.html"} <= inside


def test_every_descriptor_is_embedded_alike(tiny):
    found = {}
    for path in (tiny.root / "results/tiny/embeddings").glob("*.parquet"):
        table = tables.read(path, "embeddings")
        rows = [row for row in table.to_pylist() if (row["scenario"], row["calibration"]) == (tables.KNOWN, "none")]
        assert sorted({row["artist"] for row in rows}) == ARTISTS
        assert len(rows) == 12
        assert np.isfinite([row["vector"] for row in rows]).all()
        found[path.stem] = len(rows[0]["vector"])
    assert {"delta", "factors", "clip_training", "dino_s2_g1", "mean_colour_training"} <= set(found)
    assert max(found.values()) == 4
    # A colour has three numbers, a norm and a count have one.
    assert {name for name, size in found.items() if size < 4} <= {"mean_colour_training", "norm", "set_size"}


def test_no_file_of_a_lora_tells_the_artist_or_the_caption(tiny):
    for path in (tiny.root / "results/tiny/loras").rglob("*.safetensors"):
        data = path.read_bytes()
        header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode()
        assert not any(word in header for word in (*ARTISTS, "painting", str(tiny.root)))


def test_nothing_that_is_handed_on_names_person_machine_or_folder(tiny):
    files = private.outputs(tiny.root / "results/tiny")
    assert {".parquet", ".safetensors", ".html", ".md", ".png", ".svg"} <= {path.suffix for path in files}
    assert private.told(files, private.words(tiny.root, tiny.root.parent.parent)) == []


def test_the_cost_of_every_route_is_measured(tiny):
    rows = tables.read(tiny.root / "results/tiny/tables/cost.parquet", "cost").to_pylist()
    counts = {(row["stage"], row["item"]): row["count"] for row in rows}
    for stage, each in (("train", 1), ("generate", 2)):  # a pack of three artists, and one of the fourth
        assert sorted(count for (name, _), count in counts.items() if name == stage) == [3 * each, 9 * each]
    assert counts["features", "clip"] == 4 * 12 + 2 * 12
    assert counts["gram", "delta"] == 12
    assert all(row["seconds"] > 0 for row in rows)


def test_a_second_run_has_nothing_to_do(tiny):
    assert "Nothing to be done" in tiny.make()


def test_touching_the_library_reruns_nothing_and_editing_it_reruns_what_uses_it(tiny):
    library = tiny.root / "workflow/lora_atlas"
    for path in library.rglob("*.py"):
        path.touch()
    assert tiny.planned() == {}
    for file, expected in {
        "metrics/retrieval.py": {"retrieval", "own_retrieval", "worth", "draw_charts", "study_page", "write_findings"},
        "atlas/charts.py": {"draw_charts", "study_page"},
        "atlas/page.py": {"study_page"},
        "findings/page.py": {"write_findings"},
        # The page reads its table, which stands beside another.
        "metrics/crowd.py": {"retrieval", "own_retrieval", "worth", "draw_charts", "study_page", "write_findings"},
    }.items():
        path = library / file
        before = path.read_text()
        path.write_text(before + "\nREMARK = 1\n")
        try:
            assert set(tiny.planned()) == expected, file
        finally:
            path.write_text(before)
        assert tiny.planned() == {}


def test_a_stage_alone_is_forced_with_what_follows(tiny):
    planned = tiny.planned("--forcerun", "embed_weights")
    follow = {"clustering", "retrieval", "structure", "worth", "draw_charts", "study_page", "write_findings"}
    assert set(planned) == {"embed_weights", *follow}


def test_one_lora_is_trained_again_by_its_name_whatever_is_kept(tiny):
    """As README and docs/reruns.md say; the path as people write it, and a variant's."""
    for home in ("results/tiny", "results/tiny/variants/own"):
        lora = f"{home}/loras/odile/02.safetensors"
        before = (tiny.root / lora).read_bytes()
        text = tiny.run(*tiny.study, "--forcerun", f"./{lora}", "--", lora)
        assert re.search(r"train_loras: made \d of \d parts", text)
        assert (tiny.root / lora).read_bytes() == before
    tiny.make()


def test_one_lora_is_made_by_its_name(tiny):
    lora = "results/tiny/loras/odile/02.safetensors"
    before = (tiny.root / lora).read_bytes()
    (tiny.root / lora).unlink()
    assert tiny.planned(lora) == {"train_loras": 1, "unpack_loras": 1}
    tiny.make(lora)
    assert (tiny.root / lora).read_bytes() == before
    # The same bytes came again: what follows has nothing to do but to add up the cost.
    assert set(tiny.planned()) <= {"cost", "worth", "draw_charts", "study_page", "write_findings"}
    tiny.make()


def test_a_lora_is_asked_about_and_the_study_knows_it(tiny, tmp_path):
    asked = tmp_path / "whose.safetensors"
    asked.write_bytes((tiny.root / "results/tiny/loras/odile/02.safetensors").read_bytes())
    text = tiny.make("query", "--config", f"query={asked}")
    rows = tables.read(tiny.root / "results/tiny/query/whose.parquet", "query").to_pylist()
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert (rows[0]["lora"], rows[0]["relation"]) == ("odile/02", "same update") and rows[0]["distance"] < 1e-3
    assert rows[0]["artist"] == "odile" and 0 < rows[0]["p"] <= 1
    assert "odile/02" in text and "same update" in text


@pytest.fixture
def asked(tiny, tmp_path) -> Path:
    """A folder of three of a painter's pictures."""
    folder = tmp_path / "whose"
    folder.mkdir()
    rows = tables.read(tiny.root / "results/tiny/pictures/odile.parquet", "pictures").to_pylist()
    for i, row in enumerate(rows[:3]):
        (folder / f"{i}.png").write_bytes(row["image"]["bytes"])
    return folder


def test_pictures_are_asked_about_and_a_lora_is_made_of_them(tiny, asked):
    text = tiny.make("attribute", "--config", f"query={asked}")
    rows = tables.read(tiny.root / "results/tiny/attribution/whose.parquet", "attributions").to_pylist()
    assert {row["picture"] for row in rows} == {None, "0.png", "1.png", "2.png"}
    assert [row["rank"] for row in rows if row["picture"] is None] == list(range(1, 11))
    assert all(0 < row["p"] <= 1 and row["artist"] in ARTISTS for row in rows)
    assert "whose (3 pictures), among the LoRAs of study:" in text and "by picture:" in text
    done = tiny.make("one_step", "--config", f"query={asked}", "training={rank: 3}", "attribution={samples: 8}")
    assert "one step along the gradient of 3 pictures" in done
    with safe_open(tiny.root / "results/tiny/one_step/whose.safetensors", "np") as file:
        keys = list(file.keys())
        assert {file.get_slice(key).get_shape()[0] for key in keys if "lora_A" in key} == {3}
    with safe_open(tiny.root / "results/tiny/loras/odile/00.safetensors", "np") as file:
        assert keys == list(file.keys())


def test_a_folder_of_lora_files_is_asked_about_where_its_base_is_named(tiny, asked):
    """The study's own files, as a folder that nobody trained: the base is known by its layers, whatever its name."""
    found = [
        "--configfile",
        "workflow/studies/my_loras.yaml",
        "--config",
        "folder=results/tiny/loras",
        f"query={asked}",
    ]
    folder = replace(tiny, study=[])
    text = folder.run("attribute", *found, "attribution={samples: 2, reference: 0}")
    rows = tables.read(tiny.root / "results/my_loras/attribution/whose.parquet", "attributions").to_pylist()
    assert {row["artist"] for row in rows} <= set(ARTISTS) and {row["p"] for row in rows} == {None}
    assert "no p: fewer than 8 LoRAs, or attribution.reference is 0" in text
    absent = folder.run("attribute", *found, "base={model: no/such}", fails=True)
    assert "base.model" in absent and "no/such" in absent and "Traceback" not in absent
    assert "snakemake attribute" in folder.run("attribute", *found[:-1], fails=True)


def test_a_variant_shares_what_it_does_not_change(tiny):
    results = tiny.root / "results/tiny"
    own = results / "variants/own"
    assert len(list((own / "loras").rglob("*.safetensors"))) == 12
    for shared in ("pictures", "plan", "plan.parquet", "duplicates.parquet", "generated"):
        assert not (own / shared).exists()
    a, b = (tables.read(folder / "tables/queries.parquet", "queries").to_pandas() for folder in (results, own))
    assert set(a.lora) == set(b.lora)
    scores = [frame[frame.descriptor == "factors"].value.to_numpy() for frame in (a, b)]
    assert (scores[0] != scores[1]).any()
    # Controls of training pictures do not depend on the initialisation.
    colours = [frame[frame.descriptor == "mean_colour_training"].value.to_numpy() for frame in (a, b)]
    assert (colours[0] == colours[1]).all()


def test_a_variant_may_name_its_own_packing_where_loras_are_shared(tiny):
    """They stay in the study's packs, whatever it says."""
    changed = {"embedding": {"dimensions": 3}}
    plain = tiny.planned("--config", f"variants={json.dumps({'few': changed})}")
    packed = tiny.planned(
        "--config", f"variants={json.dumps({'few': changed | {'resources': {'artists_per_job': 1}}})}"
    )
    assert packed == plain and packed["few_embed_weights"] == 1 and "few_train_loras" not in packed


def test_a_variant_of_another_seed_is_the_whole_study_again(tiny):
    planned = tiny.planned("--config", "variants={again: {seed: 5}}")
    assert planned["again_train_loras"] == 2 and planned["again_collect_pictures"] == 4
    assert not {"train_loras", "collect_pictures"} & set(planned)


def test_the_findings_are_those_of_the_tables(tiny):
    text = (tiny.root / "results/tiny/FINDINGS.md").read_text()
    frame = tables.read(tiny.root / "results/tiny/tables/retrieval.parquet", "retrieval").to_pandas()
    row = frame[
        (frame.scenario == tables.WHOLE) & (frame.descriptor == "delta_gradient") & (frame.calibration == "none")
        & (frame.distance == "cosine") & (frame.level == "artist") & (frame.metric == "mAP")
    ].iloc[0]  # fmt: skip
    assert f"mAP {row.value:.2f} (" in text
    assert "One seed only" in text and "`own`" in text and "training.init own" in text
    assert not any(word in text for word in ("nan", "None", str(tiny.root)))


def test_studies_are_compared_as_they_are(tiny):
    """Without its file a study of that name would be another, which `across` began to make: all of its jobs, and a page
    without its seeds."""
    claims = tiny.root / "results/tiny/tables/claims.parquet"
    before = claims.stat().st_mtime_ns
    assert tiny.planned("across", "--config", "seed=7") == {"across": 1, "compare_studies": 1}
    tiny.run("across", "--config", "study=tiny")
    page = (tiny.root / "results/ACROSS.md").read_text()
    assert "| claim | `tiny` |" in page and claims.stat().st_mtime_ns == before
    assert "Nothing to be done" in tiny.run("across", "--config", "study=tiny", "seed=7")
    content = claims.read_bytes()
    try:
        tables.write(claims, "claims", tables.read(claims, "claims").slice(1))
        assert tiny.planned("across") == {"across": 1, "compare_studies": 1}
    finally:
        claims.write_bytes(content)
        os.utime(claims, ns=(before, before))


def test_every_stage_has_a_name(tiny):
    stages = [
        "pictures",
        "plan",
        "loras",
        "generated",
        "features",
        "weights",
        "embeddings",
        "tables",
        "charts",
        "findings",
        "atlas",
    ]
    assert "Nothing to be done" in tiny.make(*stages)
    assert set(stages) <= set(tiny.run("--list-target-rules").split())


def test_memory_and_threads_rerun_nothing(tiny):
    changed = "threads: 2, mem_mb: 5000, runtime: 90, loras_per_pack: 2, time_budget: 50, checkpoint_every: 7"
    assert tiny.planned("--config", f"resources={{{changed}}}") == {}


def test_loras_are_exported_under_kohyas_names_where_the_study_asks_for_it(tiny):
    assert tiny.planned("--config", "export=kohya") == {"export_kohya": 4}
    path = "results/tiny/kohya/odile/01.safetensors"
    tiny.make(path)
    with safe_open(tiny.root / path, "np") as file:
        keys = list(file.keys())
    assert keys and all(key.startswith("lora_unet_") for key in keys)


def test_another_recipe_of_training_keeps_the_pictures_and_the_plan(tiny):
    planned = tiny.planned("--config", "training={learning_rate: 0.0007}")
    assert planned["train_loras"] == planned["own_train_loras"] == 2 and planned["unpack_loras"] == 4
    assert not {"collect_pictures", "plan"} & set(planned)


def test_the_same_study_twice_gives_the_same_bytes(tiny):
    results = tiny.root / "results/tiny"

    # The variant has the same rules: it need not be made twice. What was asked meanwhile is no part of the study.
    def own() -> dict[str, str]:
        apart = ("variants/", "query/", "attribution/whose", "one_step/", "kohya/")
        return {name: digest for name, digest in digests(results).items() if not name.startswith(apart)}

    first = own()
    assert any(name.startswith("loras/") for name in first)
    worth = [untimed(results, name) for name in ("worth", "crossings")]
    tiny.make("tables", "charts", "--forceall")
    assert own() == first
    assert [untimed(results, name) for name in ("worth", "crossings")] == worth


def test_results_without_snakemakes_notes_say_that_settings_are_not_known(tiny, tmp_path):
    assert "does not say here with which settings" not in tiny.make("--dry-run")
    shutil.copytree(tiny.root / "results/tiny", tmp_path / "results/tiny")
    text = tiny.make("--dry-run", "--directory", str(tmp_path))
    assert re.search(r"of what (\d+) of \1 jobs made, \.snakemake does not say here with which settings", text)
