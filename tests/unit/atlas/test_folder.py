"""The page of a folder: copies are one point, what is unrelated is called so, names are suggested of what is known."""

import numpy as np
import pytest
from pages import Collection, held, painted, row

from lora_atlas import tables
from lora_atlas.atlas import folder
from lora_atlas.atlas.collection import placed
from lora_atlas.collection.query import neighbours
from lora_atlas.collection.spaces import spaces
from lora_atlas.tables import WHOLE

EVIL = "</script><script>alert(1)</script>"


def file(lora: str, *labels: str | None, **changes) -> dict:
    artist, genre = (*labels, None, None)[:2]
    full = row(lora) | {"artist": artist, "genre": genre, "file": f"/somewhere/{lora}.safetensors", "bytes": 1_000_000}
    full |= {"header_family": None, "modules": 9, "parameters": 1000, "zero_share": 0.0, "remark": None}
    return full | {"status": "imported", "reason": None} | changes


def where(rows: list[dict], X: np.ndarray) -> dict:
    found = {}
    for space, members in spaces(rows).items():
        own = [i for i, each in enumerate(rows) if each["space"] == space]
        vectors = [
            {"scenario": WHOLE, "calibration": "none", "fold": 0, "vector": X[i].astype(np.float32), "split": "gallery",
             "lora": rows[i]["lora"], "artist": rows[i]["artist"] or "", "genre": None}
            for i in own
        ]  # fmt: skip
        near = tables.table("neighbours", neighbours(Collection(members, X[own])))
        found[space] = placed(members, tables.table("embeddings", vectors), near, seed=0)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """45 alone, a run of 6 checkpoints, one update in 3 files, one of another base, one that was refused."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    rows = [file(f"alone-{i}", norm=5.0 if i else 500.0) for i in range(45)]
    X = [rng.normal(size=400) for _ in rows]
    run = rng.normal(size=400)
    rows += [file(f"watercolour-{i:06}", norm=5.0) for i in range(6)]
    X += [run + 0.8 * rng.normal(size=400) for _ in range(6)]
    rows += [
        file("twin"),
        file("twin-b", copy_of="twin", relation="same update × 0.5"),
        file(EVIL, copy_of="twin-b", relation="same bytes"),
    ]
    X += 3 * [rng.normal(size=400)]
    rows.append(file("far", space="flux-1", family="Flux", header_family="SDXL", remark="one; two"))
    X.append(rng.normal(size=400))
    (root / "alone-3.png").write_bytes(painted(3))
    (root / "alone-4.preview.png").write_bytes(b"<html>no picture")
    for each in rows:
        each["file"] = str(root / f"{each['lora']}.safetensors")
    unit = np.array(X) / np.linalg.norm(X, axis=1, keepdims=True)
    refused = file("cut", space=None, status="refused", reason=f"cut short {EVIL}", norm=None)
    folder.write(root / "atlas.html", "mine", [*rows, refused], where(rows, unit))
    return root / "atlas.html"


def test_copies_are_one_point_and_each_base_a_map(written):
    data = held(written)
    names = [lora["name"] for lora in data["loras"]]
    assert len(names) == 45 + 6 + 1 + 1 and "twin-b" not in names
    twin = data["loras"][names.index("twin")]
    assert twin["count"] == 3 and twin["copies"] == [
        ["twin-b", "same update × 0.5 as twin"],
        [EVIL, "same bytes as twin-b"],
    ]
    assert [(each["name"], len(each["members"])) for each in data["maps"]] == [("sd1", 52), ("flux-1", 1)]
    assert data["lead"] == "55 LoRAs of 2 bases, 2 copies, 1 refused"


def test_what_is_unrelated_is_called_so_and_checkpoints_are_not(written):
    data = held(written)
    sd1, names = data["maps"][0], [lora["name"] for lora in data["loras"]]
    for i, name in enumerate(names[:52]):
        for j, (kind, words) in zip(sd1["near"][i], sd1["evidence"][i], strict=True):
            both = {name.split("-")[0], names[j].split("-")[0]}
            assert kind == ("near" if both == {"watercolour"} else "unrelated"), (name, names[j], words)
    frame = {(i, j) for i, near in enumerate(sd1["near"]) for j in near}
    assert all(i != j for i, j in frame)


def test_a_family_is_named_by_what_its_members_share(written):
    data = held(written)
    assert data["clusters"] == ["watercolour"]
    assert {lora["name"].split("-")[0] for lora in data["loras"] if lora["cluster"] == 0} == {"watercolour"}


def test_names_are_suggested_only_where_the_table_supports_them():
    rows = [file(f"x/{name}") for name in ("one", "two", "three", "four")]
    assert folder.suggested(rows[:3], rows) is None
    labelled = [file(f"x/{i}", "ada" if i < 3 else "bob") for i in range(8)]
    assert folder.suggested(labelled[:3], labelled) == "ada"
    # A word that all of the others have, too, says nothing; nor does what every trainer writes.
    named = [file(f"x/ink-lora-{i}") for i in range(6)]
    assert folder.suggested(named[:3], named) is None
    assert folder.suggested(named[:3], [*named[:3], *rows]) == "ink"


def test_previews_are_shown_and_what_is_none_is_not(written):
    data = {lora["name"]: lora for lora in held(written)["loras"]}
    assert data["alone-3"]["preview"] == [[0, "preview of alone-3"]] and data["alone-4"]["preview"] == []
    assert len(held(written)["pictures"]) == 1


def test_what_is_unusual_and_what_is_refused_are_said(written):
    saved = held(written)["saved"]
    assert "alone-0,sd1,its norm is 100 times the usual one of its base" in saved["unusual"]
    # What the reader remarked is no comparison with others, and a remark is one, whatever stands in it.
    assert "far" not in saved["unusual"]
    assert "far,flux-1,its header says that it is of SDXL" in saved["remarks"]
    assert "far,flux-1,one; two" in saved["remarks"]
    # 48 of 55 are: that is not what is unusual, and the sentence says it.
    assert "related to none" not in saved["unusual"]
    assert "updates have no related one among the others of the base" in written.read_text()
    assert saved["refused"].startswith("LoRA,reason\ncut,cut short")
    text = written.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


def test_of_few_loras_nothing_is_called_chance():
    """Of 5 LoRAs p is 2/5 at least: two checkpoints are beyond noise, and no more is said."""
    rng = np.random.default_rng(1)
    rows = [file(str(i)) for i in range(5)]
    X = np.array([rng.normal(size=400) for _ in rows])
    X[1] = X[0] + 0.3 * rng.normal(size=400)
    near = where(rows, X / np.linalg.norm(X, axis=1, keepdims=True))["sd1"].near
    pair = near[(near["one"] == "0") & (near["other"] == "1")].iloc[0]
    least = near["p"].min()
    kind, words = folder.told(rows[0], rows[1], pair.beyond, pair.p, pair.cosine, least)
    assert kind == "maybe" and pair.p > 0.05
    assert f"cosine {pair.cosine:.2g}" in words and words.endswith("the least that so few LoRAs can give")
    unrelated = folder.told(rows[0], rows[2], False, 0.9, 0.0, least)
    assert unrelated == ["unrelated", "unrelated: no nearer than chance, p 0.9"]


def test_a_map_says_of_how_many_its_places_mean_something():
    rng = np.random.default_rng(2)
    rows = [file(str(i)) for i in range(12)]
    X = rng.normal(size=(12, 400))
    placed = {"unrelated": X, "a pair": np.vstack([X[:1] + 0.3 * X[1:2], X[1:]])}
    placed = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in placed.items()}
    said = {name: folder._map("sd1", rows, where(rows, x)["sd1"], 0, {r["lora"]: r for r in rows})["says"]
            for name, x in placed.items()}  # fmt: skip
    assert said["unrelated"].endswith("none is nearer to another than noise, so that their places mean nothing")
    assert said["a pair"].endswith("2 of 12 are related; where the others, hollow, stand means nothing")
    one = folder._map("sd1", rows[:1], where(rows[:1], X[:1])["sd1"], 0, {"0": rows[0]})
    assert one["says"] == "1 LoRA of SD1.x"
