"""Sources of pictures: layouts, ids, choices, and files that are not what they seem."""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from asked import FOLDER
from hypothesis import given
from hypothesis import strategies as st

from lora_atlas import tables
from lora_atlas.pictures.decode import decode, encode_png, to_array
from lora_atlas.pictures.sources import SOURCES, SourceError, artists, collect, count, digests, listing, slug, titles

WORKFLOW = Path(__file__).parents[2] / "workflow"
CONFIG = FOLDER


def picture(seed: int, side: int = 20) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8))


def fill(folder: Path, number: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(number):
        (folder / f"picture-{n:02}.png").write_bytes(picture(first + n))
    return folder


def read(root: Path, artist: str, seed: int = 0, **changes) -> list[dict]:
    config = CONFIG | changes
    rows = collect(artist, artists(config, str(root))[artist], config, str(root), seed)
    tables.table("pictures", rows)  # every column, nothing else
    return rows


# --- layouts


def test_one_folder_per_artist(tmp_path):
    fill(tmp_path / "van_gogh", 2)
    fill(tmp_path / "Claude Monet", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not an artist")
    assert artists(CONFIG, str(tmp_path)) == {"claude_monet": None, "van_gogh": None}
    assert count(CONFIG, str(tmp_path)) == {"claude_monet": 3, "van_gogh": 2}


def test_artists_within_genres(tmp_path):
    fill(tmp_path / "Ukiyo-e" / "Hiroshige", 2)
    fill(tmp_path / "Impressionism" / "Monet", 1)
    assert artists(CONFIG, str(tmp_path)) == {"hiroshige": "ukiyo-e", "monet": "impressionism"}
    rows = read(tmp_path, "monet")
    assert rows[0]["genre"] == "impressionism"
    assert rows[0]["image"]["path"] == "Impressionism/Monet/picture-00.png"


def test_a_mixed_layout_is_refused_and_both_kinds_are_named(tmp_path):
    fill(tmp_path / "monet", 1)
    fill(tmp_path / "van_gogh" / "arles", 1)
    with pytest.raises(SourceError, match="'monet' hold pictures, 'van_gogh' hold only folders"):
        artists(CONFIG, str(tmp_path))


def test_a_study_may_run_in_the_folder_of_its_pictures(tmp_path):
    """`folder=.`: its own results, and folders without any picture, are neither artists nor genres."""
    fill(tmp_path / "monet", 2)
    fill(tmp_path / "repin", 1)
    before = count(CONFIG, str(tmp_path))
    (tmp_path / "notes" / "x").mkdir(parents=True)
    (tmp_path / "notes" / "x" / "y.txt").write_text("no picture")
    fill(tmp_path / "results" / "painters" / "pages", 1)
    (tmp_path / "results" / "painters" / "plan.parquet").write_bytes(b"a study's")
    assert count(CONFIG, str(tmp_path)) == before == {"monet": 2, "repin": 1}
    fill(tmp_path / "notes" / "x", 1)
    with pytest.raises(SourceError, match="'notes' hold only folders"):
        count(CONFIG, str(tmp_path))


def test_a_genre_of_linked_artists_is_a_genre(tmp_path):
    """Links are followed: beside artists such a folder is refused, and not passed over."""
    fill(tmp_path / "art" / "monet", 2)
    fill(tmp_path / "elsewhere" / "manet", 2)
    (tmp_path / "art" / "impressionism").mkdir()
    (tmp_path / "art" / "impressionism" / "manet").symlink_to(tmp_path / "elsewhere" / "manet")
    with pytest.raises(SourceError, match="'impressionism' hold only folders"):
        count(CONFIG, str(tmp_path / "art"))


def test_a_third_level_is_refused(tmp_path):
    fill(tmp_path / "impressionism" / "monet" / "early", 1)
    fill(tmp_path / "impressionism" / "sisley", 1)
    with pytest.raises(SourceError, match="'impressionism/monet' hold only folders"):
        artists(CONFIG, str(tmp_path))


def test_a_folder_without_artists_says_what_was_expected_and_what_was_found(tmp_path):
    (tmp_path / "loose.png").write_bytes(picture(0))
    with pytest.raises(SourceError) as caught:
        artists(CONFIG, str(tmp_path))
    assert "monet/water-lilies.jpg" in str(caught.value) and "found 'loose.png'" in str(caught.value)
    for folder in (tmp_path / "absent", tmp_path / "loose.png"):
        with pytest.raises(SourceError, match=f"{folder.name}: is (absent|not a folder)"):
            artists(CONFIG, str(folder))
    with pytest.raises(SourceError, match="`folder` is not set"):
        artists(CONFIG, None)


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(SourceError, match=r"'sinthetic'.*'synthetic', 'folder', 'manifest'"):
        artists(CONFIG | {"source": "sinthetic"}, None)


def test_hidden_folders_and_other_files_are_not_candidates(tmp_path):
    root = fill(tmp_path / "monet", 2).parent
    for name in (".git", "@eaDir", "__MACOSX"):
        fill(root / name, 1)
    for name in ("picture-00.txt", "metadata.json", "._picture-00.png", "README", "Thumbs.db"):
        (root / "monet" / name).write_text("x")
    (root / "monet" / "folder.png").mkdir()
    os.mkfifo(root / "monet" / "pipe.png")  # reading it would wait for ever
    assert count(CONFIG, str(root)) == {"monet": 2}
    assert [row["status"] for row in read(root, "monet")] == ["kept", "kept"]


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("van_gogh", "van_gogh"),
        ("Diego Velázquez", "diego_velazquez"),
        ("J. M. W. Turner", "j_m_w_turner"),
        ("Toulouse-Lautrec", "toulouse-lautrec"),
        ("../../etc/passwd", "etc_passwd"),
        ("<script>alert(1)</script>", "script_alert_1_script"),
        ("{artist}", "artist"),
    ],
)
def test_slugs(name, expected):
    assert slug(name) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_every_slug_is_safe_and_stable(name):
    found = slug(name)
    assert 1 <= len(found) <= 64 and set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    assert found[0] not in "-_" and slug(found) == found


def test_names_without_latin_letters_keep_apart():
    assert slug("北斎") != slug("広重") and slug("北斎").startswith("artist-")
    assert slug("x" * 200) != slug("x" * 201)
    assert slug("e\u0301dith") == slug("édith") == "edith"


@pytest.mark.fault("pictures", "two artists whose names become one id", "refused, with both names")
@pytest.mark.parametrize("twins", [("Monet", "monet"), ("van Gogh", "van_gogh"), ("Manét", "manet")])
def test_two_folders_with_one_slug_are_refused_by_name(tmp_path, twins):
    for name in twins:
        fill(tmp_path / name, 1)
    with pytest.raises(SourceError) as caught:
        artists(CONFIG, str(tmp_path))
    assert all(repr(name) in str(caught.value) for name in twins)


def test_one_artist_in_two_genres_is_refused(tmp_path):
    fill(tmp_path / "a" / "monet", 1)
    fill(tmp_path / "b" / "Monet", 1)
    with pytest.raises(SourceError, match="'a/monet', 'b/Monet'"):
        artists(CONFIG, str(tmp_path))


@pytest.mark.fault("pictures", "file names with line breaks, escapes or no UTF-8", "printable labels")
def test_hostile_file_names_are_labels_and_never_break_a_table(tmp_path):
    folder = fill(tmp_path / "monet", 0)
    names = [
        b"<script>.png",
        b"\xff\xfe.png",
        b"\x1b[31m.png",
        b"a\nb.png",
        b"-rf.png",
        "北斎.png".encode(),
        b"x" * 250 + b".png",
    ]
    for n, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(picture(n))
    rows = read(tmp_path, "monet")
    assert [row["status"] for row in rows] == ["kept"] * len(names)
    labels = [row["image"]["path"] for row in rows]
    assert all(label.isprintable() for label in labels) and "monet/北斎.png" in labels
    assert tables.table("pictures", rows).column("image").to_pylist()[0]["path"] == labels[0]


def test_names_that_print_alike_are_still_two_files(tmp_path):
    folder = fill(tmp_path / "monet", 0)
    for name in ("a\x1b.png", "a\\x1b.png"):
        (folder / name).write_bytes(picture(0))
    assert sorted(row["status"] for row in read(tmp_path, "monet")) == ["kept", "refused"]


# --- rows


def test_a_kept_row_holds_the_bytes_that_were_found(tmp_path):
    fill(tmp_path / "monet", 1)
    (row,) = read(tmp_path, "monet")
    data = picture(0)
    assert row == {
        "picture": sha256(data).hexdigest(),
        "artist": "monet",
        "genre": None,
        "image": {"bytes": data, "path": "monet/picture-00.png"},
        "width": 24,
        "height": 20,
        "source": "folder",
        "licence": None,
        "subject": None,
        "status": "kept",
        "reason": None,
    }


@pytest.mark.fault(
    "pictures", "nine bad files of nine kinds in an artist's folder", "nine rows with reasons; the others are collected"
)
def test_bad_files_are_rows_with_reasons_and_the_rest_goes_on(tmp_path, monkeypatch):
    folder = fill(tmp_path / "monet", 2)
    bad = {
        "empty.jpg": b"",
        "page.jpg": b"<!doctype html><p>captcha",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\n",
        "half.png": picture(50)[:700],
        "small.png": picture(51, side=12),
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "text.png": b"hello",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "annex.jpg").symlink_to(".git/annex/objects/absent")
    (folder / "huge.tif").write_bytes(b"II*\0" + b"\0" * 5000)
    monkeypatch.setattr("lora_atlas.pictures.decode.MAX_BYTES", 4000)
    rows = read(tmp_path, "monet")
    refused = [row for row in rows if row["status"] == "refused"]
    assert len(rows) == 11 and len(refused) == 9
    assert all(row["image"] is None and row["reason"] for row in refused)
    assert {row["source"].removeprefix("folder: ").removeprefix("monet/") for row in refused} == {
        *bad,
        "annex.jpg",
        "huge.tif",
    }
    assert sorted(row["reason"].split(":")[0] for row in refused) == sorted(
        ["empty", "html", "git-lfs pointer", "truncated or damaged", "too small", "unsupported", "not a picture"]
        + ["unreadable", "too large"]
    )
    unread = [row["picture"] for row in refused if row["reason"].startswith(("unreadable", "too large"))]
    assert len(set(unread)) == 2 and all(name.startswith("path:") for name in unread)


@pytest.mark.fault("pictures", "one picture twice in a folder", "the second is refused, with the name of the first")
def test_the_second_of_two_files_with_the_same_bytes_is_refused(tmp_path):
    folder = fill(tmp_path / "monet", 2)
    (folder / "copy.png").write_bytes(picture(0))
    kept = [row for row in read(tmp_path, "monet") if row["status"] == "kept"]
    (refused,) = [row for row in read(tmp_path, "monet") if row["status"] == "refused"]
    assert len({row["picture"] for row in kept}) == 2
    assert refused["picture"] == sha256(picture(0)).hexdigest()
    assert refused["reason"] in ("same bytes as monet/picture-00.png", "same bytes as monet/copy.png")


def test_more_than_one_table_can_hold_is_an_error(tmp_path, monkeypatch):
    fill(tmp_path / "monet", 3)
    monkeypatch.setattr(listing, "MAX_ARTIST_BYTES", 2 * len(picture(0)))
    with pytest.raises(SourceError, match=r"lower pictures\.per_artist"):
        read(tmp_path, "monet")
    assert len(read(tmp_path, "monet", per_artist=2)) == 2


# --- choice


def ids(rows: list[dict]) -> list[str]:
    return [row["picture"] for row in rows if row["status"] == "kept"]


def test_the_choice_is_seeded_and_not_the_first_files(tmp_path):
    fill(tmp_path / "monet", 30)
    first = [sha256(picture(n)).hexdigest() for n in range(8)]
    chosen = ids(read(tmp_path, "monet", per_artist=8))
    assert len(chosen) == 8 and set(chosen) != set(first)
    assert chosen == ids(read(tmp_path, "monet", per_artist=8))
    assert set(chosen) != set(ids(read(tmp_path, "monet", seed=1, per_artist=8)))
    assert chosen == ids(read(tmp_path, "monet"))[:8]  # a larger limit adds, and takes nothing away
    assert count(CONFIG | {"per_artist": 8}, str(tmp_path)) == {"monet": 8}


def test_one_file_more_changes_at_most_one_choice(tmp_path):
    folder = fill(tmp_path / "monet", 30)
    before = set(ids(read(tmp_path, "monet", per_artist=8)))
    for n in range(5):
        (folder / f"new-{n}.png").write_bytes(picture(100 + n))
        after = set(ids(read(tmp_path, "monet", per_artist=8)))
        assert len(after - before) <= 1
        before = after


def test_refused_files_do_not_use_up_places(tmp_path):
    folder = fill(tmp_path / "monet", 10)
    for n in range(20):
        (folder / f"bad-{n}.jpg").write_bytes(b"<html>%d" % n)
    rows = read(tmp_path, "monet", per_artist=10)
    assert len(ids(rows)) == 10
    assert count(CONFIG | {"per_artist": 40}, str(tmp_path)) == {"monet": 30}  # an upper bound


# --- artists by name


def test_artists_are_filtered_by_folder_name_or_id(tmp_path):
    for name in ("Claude Monet", "raphael", "repin"):
        fill(tmp_path / name, 1)
    names = ["repin", "Claude Monet"]
    assert list(artists(CONFIG | {"artists": names}, str(tmp_path))) == ["claude_monet", "repin"]
    assert list(count(CONFIG | {"artists": names}, str(tmp_path))) == ["claude_monet", "repin"]
    with pytest.raises(SourceError, match="no artist 'claude_mone'; did you mean claude_monet"):
        artists(CONFIG | {"artists": ["Claude Mone"]}, str(tmp_path))
    with pytest.raises(SourceError, match="no artist 'zzz'; the source has 'claude_monet', 'raphael', 'repin'"):
        artists(CONFIG | {"artists": ["zzz"]}, str(tmp_path))
    with pytest.raises(SourceError, match="no artist 'turner'"):
        collect("turner", None, CONFIG, str(tmp_path), 0)


# --- synthetic, with painters that stand in for the real ones


@dataclass(frozen=True)
class Style:
    genre: str
    hue: int


@pytest.fixture
def painters(monkeypatch):
    room = types.ModuleType("lora_atlas.pictures.synthetic")
    room.CONTENTS = ("landscape", "portrait", "still life")
    names = [f"{genre}_{n}" for n in range(4) for genre in ("points", "strokes")]
    room.ARTISTS = {name: Style(name.split("_")[0], 40 * n) for n, name in enumerate(names)}
    room.calls = []

    def paint(style, content, seed, size):
        room.calls.append((content, seed, size))
        return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)

    room.paint = paint
    monkeypatch.setitem(sys.modules, room.__name__, room)
    monkeypatch.setattr("lora_atlas.pictures.synthetic", room, raising=False)
    return room


SYNTHETIC = CONFIG | {"source": "synthetic", "min_side": 64}


def test_synthetic_artists_are_the_first_of_each_genre(painters):
    assert artists(SYNTHETIC, None) == {
        "points_0": "points",
        "strokes_0": "strokes",
        "points_1": "points",
        "strokes_1": "strokes",
    }
    assert len(artists(SYNTHETIC | {"artists_per_genre": 4}, None)) == 8
    assert list(artists(SYNTHETIC | {"artists": ["strokes_1"]}, None)) == ["strokes_1"]
    assert count(SYNTHETIC, None) == dict.fromkeys(artists(SYNTHETIC, None), 48)


def test_unknown_and_excluded_painters_are_told_apart(painters):
    with pytest.raises(SourceError, match="no artist 'stroke_1'; did you mean strokes_1"):
        artists(SYNTHETIC | {"artists": ["stroke_1"]}, None)
    with pytest.raises(SourceError, match=r"'points_3'.*raise pictures\.artists_per_genre"):
        artists(SYNTHETIC | {"artists": ["points_3"]}, None)


def test_synthetic_pictures_cycle_contents_and_have_their_own_seeds(painters):
    rows = collect("points_0", "points", SYNTHETIC | {"per_artist": 7}, None, 0)
    tables.table("pictures", rows)
    contents, seeds, sizes = zip(*painters.calls, strict=True)
    assert contents == ("landscape", "portrait", "still life") * 2 + ("landscape",)
    assert len(set(seeds)) == 7 and set(sizes) == {64}
    assert {row["status"] for row in rows} == {"kept"} and len(ids(rows)) == len(set(ids(rows))) == 7
    assert rows[2]["image"]["path"] == "0002-still_life.png"
    painted = painters.paint(None, "", seeds[2], 64)
    assert (to_array(decode(rows[2]["image"]["bytes"], min_side=64)) == painted).all()


def test_synthetic_seeds_depend_on_study_and_artist_and_on_nothing_else(painters):
    def make(artist="points_0", seed=0, **changes):
        return ids(collect(artist, "points", SYNTHETIC | {"per_artist": 4} | changes, None, seed))

    assert make() == make() == make(per_artist=6)[:4]
    assert not set(make()) & set(make(seed=1)) and not set(make()) & set(make("points_1"))
    assert len(collect("points_0", "points", SYNTHETIC, None, 0)) == 48
    painters.calls.clear()
    make(min_side=96)
    assert {size for _, _, size in painters.calls} == {96}


def test_a_painter_deaf_to_its_seed_is_noticed(painters):
    painters.paint = lambda style, content, seed, size: np.zeros((size, size, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="twice alike"):
        collect("points_0", "points", SYNTHETIC, None, 0)


def test_the_real_painters():
    pytest.importorskip("lora_atlas.pictures.synthetic")
    listed = artists(SYNTHETIC, None)
    assert len(listed) == 12 and len(set(listed.values())) == 6
    artist, genre = next(iter(listed.items()))
    rows = collect(artist, genre, SYNTHETIC | {"per_artist": 5}, None, 0)
    assert [row["status"] for row in rows] == ["kept"] * 5
    assert all(decode(row["image"]["bytes"], min_side=64).size == (64, 64) for row in rows)
    assert rows == collect(artist, genre, SYNTHETIC | {"per_artist": 5}, None, 0)


# --- cost


def test_listing_imports_nothing_heavy(tmp_path):
    """Snakemake lists artists in every process that it starts."""
    fill(tmp_path / "monet", 1)
    code = (
        "import sys; from lora_atlas.pictures import sources; from lora_atlas.sections import Pictures\n"
        f"c = {CONFIG!r}\nsources.artists(c, {str(tmp_path)!r}); sources.count(c, {str(tmp_path)!r})\n"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'pandas', 'PIL') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(WORKFLOW)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# What a source is asked about, where it needs more than the folder of pictures beside it; a new one is added here.
SAID: dict[str, dict] = {name: {"source": name} for name in SOURCES}
OFFLINE = [name for name, source in SOURCES.items() if source.fetch is None and name != "artbench"]


@pytest.mark.parametrize("name", OFFLINE)
def test_every_source_without_a_network_answers_all_questions(tmp_path, name):
    for artist in ("monet", "repin"):
        fill(tmp_path / artist, 3)
    # The same folder is a package of icons.
    drawings = {f"{n}": {"body": f'<circle cx="8" cy="8" r="{n + 2}"/>'} for n in range(3)}
    (tmp_path / "icons.json").write_text(json.dumps({"prefix": "round", "icons": drawings}))
    (tmp_path / "info.json").write_text(json.dumps({"prefix": "round", "total": 3}))
    asked, folder = FOLDER | {"min_side": 16} | SAID[name], str(tmp_path)
    there, numbers, found = artists(asked, folder), count(asked, folder), digests(asked, folder)
    assert there and set(there) == set(numbers) == set(found) and all(number > 0 for number in numbers.values())
    artist, genre = next(iter(there.items()))
    rows = collect(artist, genre, asked | {"per_artist": 2}, folder, 0)
    tables.table("pictures", rows)
    assert [row["artist"] for row in rows if row["status"] == "kept"] == [artist] * 2
    assert isinstance(titles(asked), dict)


def test_a_source_fetches_what_it_lists():
    assert {"synthetic", "folder", "manifest", "huggingface", "artbench", "commons"} <= set(SOURCES)
    fetching = {name for name, source in SOURCES.items() if source.fetch is not None}
    assert {"manifest", "huggingface", "commons"} <= fetching
    assert {name for name, source in SOURCES.items() if source.list_pictures is not None} <= fetching
