"""Families of icons as pictures: packages of every shape, what is left out, bodies that are broken or reach outside."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from asked import FOLDER
from PIL import Image

from lora_atlas import tables
from lora_atlas.pictures.sources import artists, collect, count, digests
from lora_atlas.pictures.sources.iconify import render, subject
from lora_atlas.pictures.sources.listing import SourceError
from lora_atlas.sections import Icons

DISC = '<circle cx="8" cy="8" r="6" fill="#ff0000"/>'
OUTLINE = '<path fill="none" stroke="currentColor" d="M2 2h12v12h-12z"/>'
ASKED = FOLDER | {"source": "iconify", "min_side": 16}


def info(name: str, total: int, **more) -> dict:
    return {
        "name": name, "total": total, "author": {"name": f"{name} & sons"}, "license": {"spdx": "MIT"},
        "category": "Emoji", "palette": True, **more,
    }  # fmt: skip


def icons(prefix: str, bodies: dict[str, str], **more) -> dict:
    return {"prefix": prefix, "icons": {name: {"body": body} for name, body in bodies.items()}, "width": 16,
            "height": 16, **more}  # fmt: skip


@pytest.fixture
def package(tmp_path) -> Path:
    """All families in one package, as @iconify/json is."""
    families = {
        "round": (info("Round", 3), icons("round", {"cat-face": DISC, "dog": DISC.replace("6", "5"), "fox": OUTLINE})),
        "square": (info("Square", 2, palette=False, category="UI 24px"), icons("square", {"catFace": OUTLINE})),
        "greedy": (info("Greedy", 1, license={"spdx": "CC-BY-NC-4.0"}), icons("greedy", {"cat": DISC})),
        "brands": (info("Brands", 1, category="Logos"), icons("brands", {"acme": DISC})),
    }
    (tmp_path / "json").mkdir()
    (tmp_path / "collections.json").write_text(json.dumps({name: told for name, (told, _) in families.items()}))
    for name, (_, data) in families.items():
        (tmp_path / "json" / f"{name}.json").write_text(json.dumps(data))
    return tmp_path


def single(folder: Path, prefix: str, data: dict, **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "icons.json").write_text(json.dumps(data))
    (folder / "info.json").write_text(json.dumps(info(prefix.title(), len(data["icons"]), prefix=prefix, **more)))
    return folder


def collected(folder: Path, artist: str, **icons_asked) -> list[dict]:
    rows = collect(artist, "emoji", ASKED | {"icons": icons_asked or None}, str(folder), 0)
    tables.table("pictures", rows)
    return rows


def test_families_are_artists_with_their_author_and_licence(package):
    assert artists(ASKED, str(package)) == {"round": "emoji", "square": "ui_24px"}
    assert count(ASKED, str(package)) == {"round": 3, "square": 2}
    rows = collected(package, "round")
    assert [row["status"] for row in rows] == ["kept"] * 3
    assert {row["licence"] for row in rows} == {"MIT, Round & sons"}
    assert {row["subject"] for row in rows} == {"catface", "dog", "fox"}
    (other,) = collected(package, "square")
    assert other["subject"] == "catface"  # the same subject of another house


@pytest.mark.parametrize("name", ["cat-face", "cat_face", "CatFace", "catface"])
def test_a_subject_has_one_spelling(name):
    assert subject(name) == "catface"


def test_what_is_left_out_is_said_where_it_is_asked_for(package):
    for name, why in (("greedy", "CC-BY-NC-4.0, forbids commercial use"), ("brands", "category is Logos")):
        with pytest.raises(SourceError, match=f"{name} is left out: .*{why}"):
            artists(ASKED | {"artists": [name]}, str(package))
    asked = ASKED | {"icons": {"licences": ["CC-BY-NC-4.0"]}}
    assert set(artists(asked, str(package))) == {"greedy"}
    assert set(artists(ASKED | {"icons": {"categories": ["Logos"]}}, str(package))) == {"brands"}
    assert set(artists(ASKED | {"icons": {"palette": False}}, str(package))) == {"square"}
    with pytest.raises(SourceError, match="did you mean round"):
        artists(ASKED | {"artists": ["rund"]}, str(package))


def test_packages_of_single_families_do_too(tmp_path):
    one = single(tmp_path / "modules/round", "round", icons("round", {"a": DISC}))
    single(tmp_path / "modules/square", "square", icons("square", {"a": OUTLINE}))
    assert set(artists(ASKED, str(one))) == {"round"}
    assert set(artists(ASKED, str(tmp_path / "modules"))) == {"round", "square"}


def test_another_package_is_seen(tmp_path):
    folder = single(tmp_path / "x", "x", icons("x", {"a": DISC}))
    before = digests(ASKED, str(folder))
    assert digests(ASKED, str(folder)) == before
    single(folder, "x", icons("x", {"a": DISC, "b": OUTLINE}))
    assert digests(ASKED, str(folder)) != before


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "json").mkdir(), lambda p: (p / "cats").mkdir()])
def test_a_folder_that_is_no_package_is_said_with_what_would_be(tmp_path, make):
    make(tmp_path)
    with pytest.raises(SourceError, match=r"no family of icons in it; `make extras` .* expected one of"):
        artists(ASKED, str(tmp_path))
    with pytest.raises(SourceError, match="folder: not set"):
        artists(ASKED, None)


@pytest.mark.parametrize("text", ["{", "[]", '{"icons": []}'])
def test_a_damaged_package_names_its_file(package, text):
    (package / "json/round.json").write_text(text)
    with pytest.raises(SourceError, match=r"round\.json"):
        collected(package, "round")


BROKEN = {
    "open": ("<path d='M0 0", "broken: no XML"),
    "entity": ("<path d='&xxe;'/>", "broken: no XML"),
    "doctype": ("<!DOCTYPE svg><path/>", "broken: no XML"),
    "empty": ("", "draws nothing"),
    "blank": ('<rect width="16" height="16" fill="#ffffff"/>', "draws nothing"),
    "file": ('<image href="elsewhere.png" width="9" height="9"/>', "has a <image>"),
    "words": ("<text>x</text>", "has a <text>"),
    "reference": ('<use href="other.svg#a"/>', "outside itself"),
    "paint": ('<rect width="9" height="9" fill="url(other.svg#a)"/>', "outside itself"),
    "later": ('<use href="#a"><set attributeName="href" to="other.svg#a" fill="freeze"/></use>', "outside itself"),
    "huge": (f"<path d='M0 0{'h1' * 200_000}'/>", "too large"),
}


@pytest.mark.fault(
    "pictures", "an SVG that is broken, or refers to a file or an address", "a row with the reason; nothing is opened"
)
def test_a_drawing_that_is_broken_or_reaches_outside_is_a_row_with_the_reason(tmp_path):
    bodies = {name: body for name, (body, _) in BROKEN.items()} | {"good": DISC}
    data = icons("mixed", bodies)
    data["icons"]["flat"] = {"body": DISC, "width": 0}
    data["icons"]["gone"] = {"body": DISC, "hidden": True}
    data["icons"]["odd"] = "no object"
    rows = {row["subject"]: row for row in collected(single(tmp_path, "mixed", data), "mixed")}
    assert set(rows) == {*bodies, "flat"}
    assert rows["good"]["status"] == "kept"
    for name, (_, words) in BROKEN.items():
        assert rows[name]["status"] == "refused" and words in rows[name]["reason"], name
    assert "its box" in rows["flat"]["reason"]


def test_flags_and_skin_tones_are_left_out_by_name_and_by_category(tmp_path):
    bodies = {"flag-france": DISC, "triangular-flag": OUTLINE, "utopia": DISC.replace("6", "4"),
              "hand-medium-dark-skin-tone": DISC.replace("6", "3"), "hand": DISC.replace("6", "2")}  # fmt: skip
    folder = single(tmp_path, "x", icons("x", bodies, categories={"Flags": ["utopia"]}))
    status = {row["subject"]: row["status"] for row in collected(folder, "x")}
    assert [name for name, each in status.items() if each == "kept"] == ["hand"]
    kept = [row["subject"] for row in collected(folder, "x", flags=True) if row["status"] == "kept"]
    assert set(kept) == {"flagfrance", "triangularflag", "utopia", "hand"}


def test_a_family_that_tells_skin_tones_by_ends_alone_gives_each_drawing_once(tmp_path):
    """fluent-emoji: "artist" and "artist-medium-dark"; where not all five ends are there, they mean something else."""
    ends = ["light", "medium-light", "medium", "medium-dark", "dark"]
    names = ["artist", *(f"artist-{end}" for end in ends), "couple", *(f"couple-{end}" for end in ends)]
    names += ["couple-light-dark", "couple-dark-medium-light", "volume", "volume-medium", "moon", "moon-dark"]
    bodies = {name: DISC.replace("6", f"{2 + n / 5:g}") for n, name in enumerate(names)}
    rows = collected(single(tmp_path, "x", icons("x", bodies)), "x")
    kept = {row["subject"] for row in rows if row["status"] == "kept"}
    assert kept == {"artist", "couple", "volume", "volumemedium", "moon", "moondark"}
    assert sum("skin tone" in (row["reason"] or "") for row in rows) == 12


def test_an_end_that_the_family_declares_is_no_other_subject(tmp_path):
    """Remix' dice-line and dice-fill are one subject: `suffixes` of the file names these ends."""
    bodies = {"dice-line": DISC, "dice-fill": OUTLINE.replace("none", "currentColor"), "fill": DISC.replace("6", "4")}
    folder = single(tmp_path, "x", icons("x", bodies, suffixes={"line": "Line", "fill": "Fill", "": "Plain"}))
    assert sorted(row["subject"] for row in collected(folder, "x")) == ["dice", "dice", "fill"]


@pytest.mark.parametrize("changes", [{"min_side": 64}, {"min_side": 64, "trim": True}], ids=str)
def test_a_drawing_of_the_size_that_was_asked_for_is_never_too_small(package, changes):
    config = FOLDER | {"source": "iconify", "icons": {"size": 32}} | changes
    rows = collect("round", None, config, str(package), 0)
    assert any(row["status"] == "kept" for row in rows)
    assert not any("too small" in (row["reason"] or "") for row in rows)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_drawings_are_centred_on_the_ground_and_inked():
    """A disc in the middle of its box; one of no colour takes the ink; grey has no colour; a wide one is not bent."""
    x = pixels(render(DISC, (0, 0, 16, 16), Icons(size=48)))
    assert x.shape == (48, 48, 3) and tuple(x[24, 24]) == (255, 0, 0) and tuple(x[0, 0]) == (255, 255, 255)
    red = (x == [255, 0, 0]).all(2)
    assert np.abs(np.argwhere(red).mean(0) - 23.5).max() < 0.6
    ink = pixels(
        render(OUTLINE.replace("none", "currentColor"), (0, 0, 16, 16), Icons(ink="#123456", ground="#eeeeee"))
    )
    assert tuple(ink[32, 32]) == (0x12, 0x34, 0x56) and tuple(ink[0, 0]) == (0xEE,) * 3
    grey = pixels(render(DISC, (0, 0, 16, 16), Icons(grey=True)))
    assert (grey == grey[..., :1]).all() and grey.min() < 200
    wide = pixels(render(DISC, (-8, 0, 32, 16), Icons(size=64)))
    mask = (wide[..., 1] < 128) & (wide[..., 0] > 128)
    height, width = np.ptp(np.argwhere(mask), axis=0)
    assert abs(int(height) - int(width)) <= 1 and height < 26


DRAWN = '<path d="M2 8h12" stroke="#00f" stroke-width="4" stroke-dasharray="12"{0}>{1}</path>'
GONE = ' stroke-dashoffset="12"'
ENDS = {
    "to": '<animate attributeName="stroke-dashoffset" dur="1s" to="0" fill="freeze"/>',
    "values": '<animate attributeName="stroke-dashoffset" dur="1s" values="12;3;0;" fill="freeze"/>',
    "set": '<set attributeName="stroke-dashoffset" begin="1s" to="0" fill="freeze"/>',
}


@pytest.mark.fault("pictures", "an icon that draws itself", "it is drawn as it ends, not as it begins")
@pytest.mark.parametrize("animation", ENDS.values(), ids=ENDS)
def test_a_drawing_that_draws_itself_is_drawn_as_it_ends(animation):
    """Most families are still; line-md and its like begin with nothing: SMIL's end is what `fill="freeze"` keeps."""
    box = (0, 0, 16, 16)
    still = render(DRAWN.format("", ""), box, Icons())
    assert render(DRAWN.format(GONE, animation), box, Icons()) == still
    for endless in (animation.replace("freeze", "remove"), animation.replace("fill", 'repeatCount="indefinite" fill')):
        with pytest.raises(ValueError, match="draws nothing"):  # what does not stay is as before it begins
            render(DRAWN.format(GONE, endless), box, Icons())
    styled = DRAWN.format(' style="stroke-dashoffset:12;opacity:1"', animation)
    assert render(styled, box, Icons()) == still
    linked = animation.replace("attributeName", 'href="#a" attributeName')
    elsewhere = DRAWN.format(f'{GONE} id="a"', "") + f"<g>{linked}</g>"
    assert render(elsewhere, box, Icons()) == still


def test_an_animated_transform_ends_where_it_leads():
    """Alone it takes the place of the element's own; as a sum it follows it (SVG 1.1, 19.2.12). Links are kept."""
    square = '<defs><path id="a" d="M0 0h4v4h-4z"/></defs><use xlink:href="#a" transform="translate(2 2)">{}</use>'
    moves = '<animateTransform attributeName="transform" type="translate" values="0 0;8 8" fill="freeze"{}/>'
    box = (0, 0, 16, 16)

    def at(animation: str) -> list[int]:
        inked = (pixels(render(square.format(animation), box, Icons())) < 128).all(2)
        return [round(float(end)) for end in np.argwhere(inked).mean(0) / 64 * 16 / (7 / 8) - 8 / 7]

    assert at("") == [4, 4] and at(moves.format("")) == [10, 10]
    assert at(moves.format(' additive="sum"')) == [12, 12]


def test_the_same_package_gives_the_same_bytes(package):
    assert collected(package, "round") == collected(package, "round")
