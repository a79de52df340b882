"""Pictures from a network, by Snakemake itself: a manifest, a server, reruns; and studies that are only planned."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from museum import serving

from lora_atlas import tables
from lora_atlas.pictures.decode import encode_png

pytestmark = pytest.mark.slow


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (80, 90, 3), dtype=np.uint8))


def manifest(path: Path, museum, numbers: dict[str, range]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["artist", "genre", "url"])
        for artist, those in numbers.items():
            writer.writerows([artist, "prints", f"{museum.url}/{n}"] for n in those)


def asked(path: Path, **changes) -> list[str]:
    pictures = {"source": "manifest", "manifest": str(path), "contact": "atlas@example.org", "private_network": True}
    pictures |= {"store": str(path.parent / "store"), "per_artist": 6} | changes
    plan = "plan={gallery: [2], query: [2]}"
    return ["--config", "study=net", f"pictures={json.dumps(pictures)}", plan]


def planned(text: str) -> dict[str, int]:
    rules = ("collect_pictures", "find_duplicates", "show_pictures")
    return {rule: int(found[1]) for rule in rules if (found := re.search(rf"^{rule} +(\d+)$", text, re.MULTILINE))}


def test_pictures_of_a_manifest_are_fetched_once_and_a_new_artist_costs_only_itself(copied, tmp_path):
    path = tmp_path / "m.csv"
    with serving() as museum:
        museum.paths |= {f"/{n}": picture(n) for n in range(40)}
        museum.paths["/3"] = b"<html>please wait"
        manifest(path, museum, {"ada": range(8), "bob": range(10, 18)})
        copied.run("pictures", *asked(path))
        assert museum.most <= 2
        results = copied.root / "results/net"
        for artist in ("ada", "bob"):
            kept = tables.read(results / f"pictures/{artist}.parquet", "pictures").to_pylist()
            assert sum(row["status"] == "kept" for row in kept) == 6
        assert "ada" in (results / "pictures/index.html").read_text()
        assert "Nothing to be done" in copied.run("pictures", *asked(path))
        before = (results / "pictures/ada.parquet").stat().st_mtime_ns
        museum.log.clear()
        manifest(path, museum, {"ada": range(8), "bob": range(10, 18), "cyd": range(20, 28)})
        text = copied.run("pictures", "--dry-run", *asked(path))
        assert planned(text) == {"collect_pictures": 1, "find_duplicates": 1, "show_pictures": 1}
        copied.run("pictures", *asked(path))
        assert (results / "pictures/ada.parquet").stat().st_mtime_ns == before
        fresh = {int(name[1:]) for name in museum.numbers()} - {3}
        assert fresh <= set(range(20, 28))
        assert "Nothing to be done" in copied.run("pictures", *asked(path))


def test_artists_left_with_too_few_are_named_after_everything_was_fetched(copied, tmp_path):
    path = tmp_path / "m.csv"
    with serving() as museum:
        museum.paths |= {f"/{n}": picture(n) for n in (*range(6), 10, 20)}  # the others are not there
        manifest(path, museum, {"ada": range(6), "bob": range(10, 16), "cyd": range(20, 26)})
        text = copied.run("pictures", *asked(path, store=str(tmp_path / "store")), "study=few", fails=True)
        assert "bob (1), cyd (1)" in text and "ada (" not in text and "Traceback" not in text
        assert len(museum.numbers()) == 18


def test_a_fetch_without_a_contact_is_refused_before_any_job(copied, tmp_path):
    path = tmp_path / "m.csv"
    with serving() as museum:
        manifest(path, museum, {"ada": range(6), "bob": range(10, 16)})
        text = copied.run("pictures", *asked(path, contact=None), "study=nobody", fails=True)
        assert "pictures.contact is not set" in text and "localrule" not in text
        assert museum.log == []
    text = copied.run("pictures", "--dry-run", *asked(path, contact=None), "study=nobody")
    assert planned(text)["collect_pictures"] == 2


@pytest.mark.fault(
    "Snakemake and SLURM",
    "a study that fetches pictures is run again, otherwise, without pictures.contact",
    "refused as at first; nothing is taken for what was asked",
)
def test_a_change_without_a_contact_is_refused_too_and_what_is_there_needs_none(copied, tmp_path):
    path = tmp_path / "m.csv"
    with serving() as museum:
        museum.paths |= {f"/{n}": picture(n) for n in range(20)}
        manifest(path, museum, {"ada": range(6), "bob": range(10, 16)})
        copied.run("pictures", *asked(path), "study=again")
        changed = [*asked(path, contact=None, min_side=70), "study=again"]
        assert planned(copied.run("pictures", "--dry-run", *changed))["collect_pictures"] == 2
        assert "pictures.contact is not set" in copied.run("pictures", *changed, fails=True)
        # It is asked of what fetches: a variant may, where its study does not.
        web = {"source": "manifest", "manifest": str(path), "store": str(tmp_path / "web")}
        variant = ["--config", "study=paints", f"variants={json.dumps({'web': {'pictures': web}})}"]
        text = copied.run(
            "results/paints/variants/web/pictures/ada.parquet", *variant, "plan={gallery: [2], query: [2]}", fails=True
        )
        assert "pictures.contact is not set" in text and "localrule" not in text
        assert "Nothing to be done" in copied.run("pictures", *asked(path, contact=None), "study=again")


@pytest.mark.fault(
    "caches",
    "the lock file pins another commit, or has lost its entry",
    "the model is fetched, and what follows made anew",
)
def test_a_lock_that_says_otherwise_is_obeyed(copied, tmp_path):
    dino = {"library": "timm", "model": "hf-hub:me/dino", "pretrained": None}
    lock = tmp_path / "lock.yaml"
    ask = ["--dry-run", "--configfile", "tiny.yaml", "--config", "study=locked", f"lock={lock}"]
    ask.append(f"extractors={json.dumps({'clip': None, 'dino': dino, 'one_gradient': None})}")
    receipt = copied.root / "results/locked/models/dino.json"
    receipt.parent.mkdir(parents=True, exist_ok=True)
    receipt.write_text(json.dumps({"repository": "me/dino", "commit": "a" * 40, "files": {}}))

    def fetches(said: str) -> bool:
        lock.write_text(said)
        return re.search(r"^fetch_model +1$", copied.run(*ask), re.MULTILINE) is not None

    entry = "hub: {me/dino@main: {commit: %s}}"
    assert not fetches(entry % ("a" * 40)) and fetches(entry % ("b" * 40)) and fetches("hub: {}")


@pytest.mark.parametrize(("study", "unet"), [("artbench_sd15", "stable-diffusion-v1-5"), ("artbench_sdxl", "xl-base")])
def test_the_artbench_studies_plan_and_estimate_without_a_network(copied, study, unet):
    overlay = ["--configfile", f"workflow/studies/{study}.yaml"]
    text = copied.run("--dry-run", *overlay)
    assert re.search(r"^fetch_model +6$", text, re.MULTILINE) and re.search(
        r"^collect_pictures +50$", text, re.MULTILINE
    )
    said = copied.run("estimate", *overlay)
    assert "50 artists, 1,000 LoRAs" in said and unet in said
    downloads = json.loads((copied.root / f"results/{study}/estimate.json").read_text())["downloads"]
    hub = [each for each in downloads if each["name"].startswith("hf://")]
    assert len(hub) == 6 and all(re.fullmatch("[0-9a-f]{40}", each["revision"]) for each in hub)
    assert len(downloads) == 8 and all(each["bytes"] for each in downloads)
