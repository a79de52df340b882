"""Pictures find their painter's LoRAs; what cannot be asked is said."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from painters import BASE, PAINTERS, PROBE, SETTINGS
from PIL import Image

from lora_atlas import tables
from lora_atlas.attribution import find as module
from lora_atlas.attribution.find import find, told
from lora_atlas.attribution.make import make
from lora_atlas.attribution.pictures import QueryError, read
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import open_lora, read_lora, write_lora
from lora_atlas.weights.gram import gram


def asked(case, query, cache, settings=SETTINGS, collections=None, **options):
    return find(
        query, collections or [case.known], BASE, settings, PROBE,
        caption="a painting", resolution=None, cache=cache, device="cpu", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows(case, tmp_path_factory):
    return asked(case, case.pictures, tmp_path_factory.mktemp("cache"))


def test_pictures_find_their_painter(rows):
    for painter in PAINTERS[:2]:
        whole = [row for row in rows if row["query"] == painter and row["picture"] is None]
        assert [row["rank"] for row in whole] == list(range(1, 11))
        assert whole[0]["artist"] == painter
        assert [row["artist"] for row in whole[:3]].count(painter) == 2
        assert whole[0]["pictures"] == 6 and whole[0]["prominence"] > whole[3]["prominence"]
        assert all(0 < row["p"] <= 1 for row in whole) and whole[0]["p"] == min(row["p"] for row in whole)
        single = [row for row in rows if row["query"] == painter and row["picture"] is not None]
        assert sorted({row["picture"] for row in single}) == [f"{i}.png" for i in range(6)]
        assert np.mean([row["artist"] == painter for row in single if row["rank"] == 1]) > 0.5
    tables.table("attributions", rows)


def test_the_answer_is_said_in_a_few_lines(rows):
    text = told(rows)
    painter = PAINTERS[0]
    assert f"{painter} (6 pictures), among the LoRAs of mini:" in text
    assert f"   1. {painter}/" in text and "by picture:" in text and "0.png → " in text
    assert "p is held against pictures of the base's own; for what it cannot draw it is too small" in text


def test_the_base_s_own_pictures_are_made_once(case, tmp_path, monkeypatch):
    path = case.pictures / PAINTERS[0] / "0.png"
    first = asked(case, path, tmp_path)
    monkeypatch.setattr(module.Asker, "own", lambda *_: pytest.fail("made again"))
    assert asked(case, path, tmp_path) == first
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(b"damaged")
    with pytest.raises(pytest.fail.Exception, match="made again"):
        asked(case, path, tmp_path)


def test_without_reference_or_with_few_loras_there_is_no_p(case, tmp_path):
    path = case.pictures / PAINTERS[0] / "1.png"
    alone = asked(case, path, tmp_path, SETTINGS | {"reference": 0})
    assert {row["p"] for row in alone} == {None} and "no p" in told(alone)
    few = replace(
        case.known, loras=case.known.loras[:4], files=case.known.files[:4], artists=case.known.artists[:4],
        genres=[None] * 4, grams={key: K[:4, :4] for key, K in case.known.grams.items()},
    )  # fmt: skip
    assert {row["p"] for row in asked(case, path, tmp_path, collections=[few])} == {None}


@pytest.mark.fault(
    "pictures", "one of the pictures that are asked about is damaged", "a row with the reason; the others are answered"
)
def test_a_picture_that_cannot_be_read_loses_no_other(case, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(case.pictures / PAINTERS[0] / "0.png", folder / "good.png")
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "notes.txt").write_text("no picture")
    found = asked(case, folder, tmp_path / "cache")
    assert {row["picture"] for row in found} == {"good.png", "bad.jpg"}
    (bad,) = [row for row in found if row["status"] == "refused"]
    assert bad["picture"] == "bad.jpg" and bad["reason"] and "bad.jpg: not read" in told(found)


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(QueryError, match=f"no picture in {tmp_path}"):
        read(tmp_path, 64)


def test_loras_of_another_base_are_refused_with_what_there_is(case, tmp_path):
    path = tmp_path / "other.safetensors"
    module_ = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    write_lora(path, {module_: Update(module_, np.ones((2, 320), "f4"), np.ones((320, 2), "f4"))}, {})
    other = replace(
        case.known, space="sd1", loras=["other"], files=[open_lora(path)], artists=[None], genres=[None],
        grams=gram([path], "delta"),
    )  # fmt: skip
    picture = case.pictures / PAINTERS[0] / "0.png"
    with pytest.raises(QueryError, match=r"no known LoRA is of .*mini/base.*LoRAs of: sd1.*--config base="):
        asked(case, picture, tmp_path, collections=[other])
    assert {row["space"] for row in asked(case, picture, tmp_path, collections=[other, case.known])} == {"mini"}


def test_a_text_encoder_s_part_says_nothing_here(case, tmp_path):
    """The same LoRAs with a text encoder's layers: the same answer."""
    files = []
    extra = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    for i, file in enumerate(case.known.files):
        updates = dict(read_lora(file.path).updates)
        rng = np.random.default_rng(i)
        updates[extra] = Update(extra, rng.normal(size=(2, 64)).astype("f4"), rng.normal(size=(64, 2)).astype("f4"))
        write_lora(tmp_path / f"{i}.safetensors", updates, {})
        files.append(tmp_path / f"{i}.safetensors")
    both = replace(case.known, files=[open_lora(path) for path in files], grams=gram(files, "delta"))
    picture = case.pictures / PAINTERS[1] / "2.png"
    alone, found = (
        asked(case, picture, tmp_path / "cache", SETTINGS | {"reference": 0}, [known]) for known in (case.known, both)
    )
    assert [row["lora"] for row in found] == [row["lora"] for row in alone]
    np.testing.assert_allclose(
        [row["prominence"] for row in found], [row["prominence"] for row in alone], rtol=1e-3, atol=1e-3
    )


def made(case, query, output, **settings):
    return make(
        query, BASE, SETTINGS | settings, output, rank=3, targets=["attention", "feed_forward"],
        caption="a painting", resolution=None, device="cpu",
    )  # fmt: skip


def test_one_step_makes_an_ordinary_lora_that_is_better_at_its_pictures(case, tmp_path):
    output = tmp_path / "step.safetensors"
    found = made(case, case.pictures / PAINTERS[0], output, samples=16)
    assert found.after < found.before and (found.pictures, found.judges) == (5, 1)
    updates = read_lora(output).updates
    assert {update.rank for update in updates.values()} == {3}
    assert set(updates) == {module for file in case.known.files for module in file.layout.specs}


def test_pictures_that_no_step_helps_are_said(case, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_atlas.diffusion.one_step.SCALES", (1e9,))
    with pytest.raises(QueryError, match="no step along the gradient of these 6 pictures"):
        made(case, case.pictures / PAINTERS[0], tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(QueryError, match="none of the pictures"):
        made(case, tmp_path / "x.png", tmp_path / "none.safetensors")
