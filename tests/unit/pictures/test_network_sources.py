"""Sources that are tables or lie on a network: manifest, artbench, commons, huggingface; each against the loopback."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from hashlib import sha1, sha256
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import hub_server
import numpy as np
import pytest
from asked import FOLDER
from museum import send, serving

from lora_atlas import tables
from lora_atlas.pictures.archive import fetch as fetch_archive
from lora_atlas.pictures.archive import unpack
from lora_atlas.pictures.decode import encode_png
from lora_atlas.pictures.fetch import Client, Limits
from lora_atlas.pictures.sources import (
    SourceError,
    artists,
    collect,
    commons,
    count,
    digests,
    fetch,
    manifest,
    source,
    titles,
)
from lora_atlas.sections import Pictures
from lora_atlas.study import StudyError

CALM = Limits(attempts=2, connect=60, read=60, deadline=120, backoff=0.01)
CONFIG = FOLDER | {"source": "manifest", "contact": "atlas@example.org", "store": ""}


def picture(seed: int, side: int = 40) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def written(path: Path, rows: list[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def museum():
    with serving() as found:
        yield found


def study(tmp_path, rows, **changes) -> dict:
    return CONFIG | {"manifest": written(tmp_path / "m.csv", rows), "store": str(tmp_path / "store")} | changes


def archived(config: Pictures, places: dict) -> None:
    asked = {key: getattr(config, key) for key in ("archive", "store", "contact", "private_network")}
    fetch_archive(asked.pop("archive"), **asked, **places)


def fetched(config: Pictures, seed: int = 0) -> list[dict]:
    client = Client(config.contact, private=True, limits=CALM)
    return manifest.fetch(config, seed, client.fetch_all)


def collected(config: Pictures, artist: str) -> list[dict]:
    rows = collect(artist, artists(config, None)[artist], config, None, 0)
    tables.table("pictures", rows)
    return rows


# --- manifest


def test_a_manifest_is_fetched_into_the_store_and_collected_without_a_network(museum, tmp_path):
    museum.paths |= {f"/{n}": picture(n) for n in range(5)}
    rows = [
        {
            "artist": "Claude Monet",
            "genre": "Impressionism",
            "url": f"{museum.url}/{n}",
            "licence": "CC0",
            "author": "x",
        }
        for n in range(3)
    ] + [{"artist": "Repin", "genre": "realism", "url": f"{museum.url}/{n}", "title": "Barge"} for n in (3, 4)]
    config = study(tmp_path, rows)
    assert artists(config, None) == {"claude_monet": "impressionism", "repin": "realism"}
    assert count(config, None) == {"claude_monet": 3, "repin": 2}
    assert {row["status"] for row in fetched(config)} == {"kept"}
    museum.log.clear()
    kept = collected(config, "claude_monet")
    assert museum.log == [] and sorted(row["picture"] for row in kept) == sorted(
        sha256(picture(n)).hexdigest() for n in range(3)
    )
    assert kept[0]["licence"] == "CC0 · x" and kept[0]["source"].startswith(museum.url)
    assert fetched(config) and museum.log == []  # a second fetch asks for nothing
    assert titles(config) == {f"{museum.url}/3": "Barge", f"{museum.url}/4": "Barge"}


def test_refused_pictures_are_replaced_and_no_more_is_asked_for_than_is_needed(museum, tmp_path):
    museum.paths |= {f"/{n}": picture(n) for n in range(30)}
    museum.paths |= {"/1": b"<html>", "/2": picture(2, side=8), "/3": picture(4), "/5": picture(5)[:300]}
    config = study(tmp_path, [{"artist": "a", "url": f"{museum.url}/{n}"} for n in range(30)], per_artist=20)
    rows = fetched(config)
    assert sum(row["status"] == "kept" for row in rows) == 20
    assert len(museum.numbers()) == len(rows) < 30
    found = collected(config, "a")
    assert sum(row["status"] == "kept" for row in found) == 20 and len(found) == len(rows)
    assert all(row["reason"] for row in found if row["status"] == "refused")


@pytest.mark.fault(
    "downloads",
    "a store was filled by a study that asked for smaller pictures, or for fewer",
    "what is lacking now is fetched: as many are kept as from an empty store",
)
@pytest.mark.parametrize("more", [{"min_side": 30}, {"per_artist": 6}, {"trim": True, "min_side": 36}], ids=str)
def test_what_another_study_fetched_hides_nothing_that_is_lacking(museum, tmp_path, more):
    """`collect` and `fetch` judge alike: by size, equal bytes and margins."""
    framed = np.pad(np.random.default_rng(99).integers(0, 256, (30, 30, 3), dtype=np.uint8), ((5, 5), (5, 5), (0, 0)))
    bodies = [picture(n, 20 if n % 2 else 40) for n in range(12)] + [picture(0), picture(2), encode_png(framed)] * 2
    museum.paths |= {f"/{n}": body for n, body in enumerate(bodies)}
    rows = [{"artist": "monet", "url": f"{museum.url}/{n}"} for n in range(len(bodies))]

    def kept(store: str, **changes) -> int:
        config = study(tmp_path, rows, per_artist=4, min_side=16, private_network=True) | changes
        config = config | {"store": str(tmp_path / store)}
        client = Client(config.contact, private=True, limits=CALM)
        if manifest.lacks("monet", config, 0, settled=False):
            manifest.fetch(config, 0, client.fetch_all)
        assert not manifest.lacks("monet", config, 0, settled=False)
        return sum(row["status"] == "kept" for row in collected(config, "monet"))

    assert kept("used") == 4
    assert kept("used", **more) == kept("fresh", **more) == more.get("per_artist", 4)


def test_one_bad_picture_is_a_row_with_its_reason(museum, tmp_path):
    good, other = sha256(picture(0)).hexdigest(), "f" * 64
    museum.paths |= {"/0": picture(0), "/1": picture(1)}
    rows = [{"artist": "a", "url": f"{museum.url}/{n}", "sha256": h} for n, h in ((0, good), (1, other), (2, ""))]
    config = study(tmp_path, rows)
    fetched(config)
    found = {row["source"][-1]: row for row in collected(config, "a")}
    assert found["0"]["status"] == "kept"
    assert found["1"]["reason"].startswith(f"changed: expected sha256 {other}, got ")
    assert found["2"]["reason"] == "HTTP 404 Not Found" and found["2"]["image"] is None


def test_a_manifest_may_be_parquet(tmp_path):
    import pandas as pd

    pd.DataFrame({"artist": ["a", "b"], "url": ["http://x/1", "http://x/2"]}).to_parquet(tmp_path / "m.parquet")
    config = CONFIG | {"manifest": str(tmp_path / "m.parquet"), "store": str(tmp_path)}
    assert artists(config, None) == {"a": None, "b": None}


def test_a_change_of_one_artist_changes_no_other_digest(tmp_path):
    rows = [{"artist": a, "url": f"http://x/{a}{n}"} for a in "ab" for n in range(3)]
    before = digests(study(tmp_path, rows), None)
    after = digests(study(tmp_path, [*rows, {"artist": "b", "url": "http://x/new"}]), None)
    assert before["a"] == after["a"] and before["b"] != after["b"]


@pytest.mark.fault("downloads", "a line of a manifest that is wrong", "refused, with the number of the line")
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"artist": "a"}], "no column 'url'; it has 'artist'; expected the columns artist, url"),
        ([{"artist": "a", "url": ""}], "line 2: 'url' is empty"),
        ([{"artist": "a", "url": "u"}, {"artist": "A", "url": "v"}], "line 3: 'a', 'A' would both be called 'a'"),
        ([{"artist": "a", "url": "u"}, {"artist": "b", "url": "u"}], "line 3: the URL of line 2 again"),
        (
            [{"artist": "a", "url": "u", "genre": "x"}, {"artist": "a", "url": "v", "genre": "y"}],
            "line 3: a is of two genres, 'x' and 'y'",
        ),
        ([{"artist": "a", "url": "u", "sha256": "abc"}], "line 2: sha256 'abc' is no such hash"),
    ],
)
def test_a_bad_manifest_names_the_line(tmp_path, rows, words):
    with pytest.raises(SourceError) as caught:
        artists(study(tmp_path, rows), None)
    assert words in str(caught.value) and "m.csv" in str(caught.value)


@pytest.mark.fault("downloads", "a manifest that is absent, damaged or empty", "refused by name")
def test_an_absent_damaged_or_empty_manifest_says_so(tmp_path):
    config = CONFIG | {"store": str(tmp_path), "manifest": str(tmp_path / "no.csv")}
    with pytest.raises(SourceError, match=r"no\.csv: No such file"):
        artists(config, None)
    with pytest.raises(SourceError, match=r"pictures\.manifest is not set"):
        artists(config | {"manifest": None}, None)
    for data, words in (
        (b"", "no rows"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        (b"artist,url\na,b,c\n", "line 2"),
    ):
        (tmp_path / "m.csv").write_bytes(data)
        with pytest.raises(SourceError, match=words):
            artists(config | {"manifest": str(tmp_path / "m.csv")}, None)
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        artists(config | {"manifest": str(tmp_path / "m.parquet")}, None)


def test_hostile_names_are_labels(museum, tmp_path):
    museum.paths["/0"] = picture(0)
    rows = [{"artist": "../../etc", "url": museum.url + "/0", "title": "<script>", "licence": "\x1b[31m"}]
    config = study(tmp_path, rows)
    fetched(config)
    (row,) = collected(config, "etc")
    assert row["status"] == "kept"


def test_a_genre_of_the_config_goes_before_that_of_the_source(tmp_path):
    rows = [{"artist": "Claude Monet", "genre": "x", "url": "u"}, {"artist": "b", "genre": "x", "url": "v"}]
    config = study(tmp_path, rows, artists={"Late Work": ["claude monet"]})
    assert artists(config, None) == {"claude_monet": "late_work"}
    with pytest.raises(SourceError, match="no artist 'c'"):
        artists(config | {"artists": {"g": ["c"]}}, None)
    with pytest.raises(SourceError, match="are one artist, 'b'"):
        artists(config | {"artists": {"g": ["b"], "h": ["B"]}}, None)


# --- one fetch for all


@pytest.mark.fault("downloads", "two jobs fetch into one store at once", "every picture is asked for once")
def test_jobs_that_start_together_fetch_everything_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with serving(delay=0.01) as museum:
        museum.paths |= {f"/{n}": picture(n) for n in range(24)}
        museum.paths["/5"] = lambda h: send(h, b"", 404)
        rows = [{"artist": "abc"[n // 8], "url": f"{museum.url}/{n}"} for n in range(24)]
        config = study(tmp_path, rows, per_artist=7)
        with ThreadPoolExecutor(3) as jobs:
            list(jobs.map(lambda artist: fetch(artist, config, {"gallery": 3, "query": 3}, 0), "abc"))
        assert museum.most <= 2
        once = museum.numbers()
        assert set(once.values()) == {1} and len(once) in (21, 22)
        museum.log.clear()
        fetch("a", config, {"gallery": 3, "query": 3}, 0)
        assert museum.log == []
    assert all(sum(row["status"] == "kept" for row in collected(config, artist)) == 7 for artist in "abc")


@pytest.mark.fault(
    "downloads",
    "so many pictures are refused that an artist has too few",
    "all such artists are named, after everything was fetched",
)
def test_artists_left_with_too_few_are_all_named_after_the_rest_was_fetched(museum, tmp_path):
    museum.paths |= {f"/{n}": picture(n) for n in (0, 1, 2, 3, 8, 16)}
    rows = [{"artist": ["ada", "bob", "cyd"][n // 8], "url": f"{museum.url}/{n}"} for n in range(24)]
    config = study(tmp_path, rows)
    with pytest.raises(StudyError, match=r"after everything else was fetched.*\n.*: bob \(1\), cyd \(1\); each"):
        fetch("bob", config, {"gallery": 2, "query": 2}, 0)
    assert set(museum.numbers()) == {f"/{n}" for n in range(24)} and max(museum.numbers().values()) == 1
    museum.paths |= {f"/{n}": picture(n) for n in range(24)}
    for path in (tmp_path / "store/records").rglob("*.json"):  # a museum that found its pictures again
        path.write_text(path.read_text().replace('"final": true', '"final": false'))
    fetch("bob", config, {"gallery": 2, "query": 2}, 0)
    assert museum.asked("/0") == 1 and museum.asked("/9") == 2


# --- folder with a table


def test_a_folder_may_have_titles_and_licences(tmp_path):
    (tmp_path / "art/monet").mkdir(parents=True)
    for n in range(2):
        (tmp_path / f"art/monet/{n}.png").write_bytes(picture(n))
    said = written(tmp_path / "said.csv", [{"file": "monet/1.png", "title": "Lilies", "licence": "CC0"}])
    config = CONFIG | {"source": "folder", "manifest": said, "store": ""}
    rows = collect("monet", None, config, str(tmp_path / "art"), 0)
    assert {row["image"]["path"]: row["licence"] for row in rows} == {"monet/0.png": None, "monet/1.png": "CC0"}
    assert titles(config) == {"monet/1.png": "Lilies"}
    written(tmp_path / "said.csv", [{"file": "monet/7.png", "licence": "CC0"}])
    with pytest.raises(SourceError, match=r"said\.csv: 'monet/7\.png' not in"):
        collect("monet", None, config, str(tmp_path / "art"), 0)


def test_a_table_may_spell_paths_as_find_does_and_lines_are_counted_as_an_editor_does(tmp_path):
    (tmp_path / "monet").mkdir()
    (tmp_path / "monet" / "a.png").write_bytes(picture(1))
    table = tmp_path / "m.csv"
    table.write_text('file,title,licence\n\n./monet/a.png,"Lilies,\nin two lines",CC0\n')
    config = FOLDER | {"manifest": str(table)}
    assert titles(config) == {"monet/a.png": "Lilies,\nin two lines"}
    (row,) = collect("monet", None, config, str(tmp_path), 0)
    assert row["licence"] == "CC0"
    table.write_text('file,title\n\n./monet/a.png,"in\ntwo lines"\n,Nothing\n')
    with pytest.raises(SourceError, match="line 5: 'file' is empty"):
        collect("monet", None, config, str(tmp_path), 0)
    table.write_text(f"file,title\n{tmp_path}/monet/a.png,Lilies\n")
    with pytest.raises(SourceError, match="names files below it"):
        collect("monet", None, config, str(tmp_path), 0)


@pytest.mark.fault("pictures", "a picture is there twice, with other margins, where margins are cut", "one is used")
def test_two_pictures_that_differ_in_their_margins_alone_are_one(tmp_path):
    inner = np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    (tmp_path / "monet").mkdir()
    for name, margin in (("a", 3), ("b", 6), ("c", 9)):
        framed = np.pad(inner, ((margin, margin), (margin, margin), (0, 0)))
        (tmp_path / "monet" / f"{name}.png").write_bytes(encode_png(framed))
    config = FOLDER | {"trim": True}
    rows = collect("monet", None, config, str(tmp_path), 0)
    tables.table("pictures", rows)
    assert [row["status"] for row in rows] == ["kept", "refused", "refused"]
    assert all("same pixels as" in row["reason"] for row in rows[1:])


def test_margins_are_cut_where_that_is_asked_for(tmp_path):
    framed = np.full((100, 80, 3), 240, np.uint8)
    framed[20:90, 10:75] = np.random.default_rng(0).integers(0, 256, (70, 65, 3))
    (tmp_path / "monet").mkdir()
    (tmp_path / "monet/a.png").write_bytes(encode_png(framed))
    config = CONFIG | {"source": "folder", "manifest": None, "store": "", "trim": True}
    (row,) = collect("monet", None, config, str(tmp_path), 0)
    assert (row["width"], row["height"], row["status"]) == (65, 70, "kept")
    assert row["picture"] == sha256(row["image"]["bytes"]).hexdigest()
    (row,) = collect("monet", None, config | {"min_side": 68}, str(tmp_path), 0)
    assert row["reason"] == "too small: 65 × 70 pixels within its margins"


# --- artbench


def artbench(tmp_path) -> tuple[dict, str]:
    rows, folder = [], tmp_path / "images"
    for artist, label, numbers in (
        ("jan-steen", "baroque", range(4)),
        ("jan-steen", "realism", range(4, 6)),
        ("titian", "renaissance", range(6, 9)),
    ):
        for n in numbers:
            name, split = f"{artist}_{n}.jpg", ("train", "test")[n % 2]
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            (folder / split / label / name).write_bytes(picture(n))
            rows.append(
                {"name": name, "artist": artist, "url": "u", "is_public_domain": "True", "label": label, "split": split}
            )
    config = CONFIG | {"source": "artbench", "store": "", "manifest": written(tmp_path / "ArtBench-10.csv", rows)}
    return config, str(folder)


def test_artbench_is_read_as_published(tmp_path):
    config, folder = artbench(tmp_path)
    assert artists(config, folder) == {"jan-steen": "baroque", "titian": "renaissance"}
    assert count(config, folder) == {"jan-steen": 4, "titian": 3}
    rows = collect("jan-steen", "baroque", config, folder, 0)
    assert [row["status"] for row in rows] == ["kept"] * 4 and rows[0]["licence"] == "public domain"
    (tmp_path / "images/train/baroque/jan-steen_0.jpg").unlink()
    rows = collect("jan-steen", "baroque", config, folder, 0)
    assert sorted(row["reason"] or "" for row in rows) == ["", "", "", "unreadable: No such file or directory"]


def test_artbench_takes_the_style_that_is_asked_for(tmp_path):
    config, folder = artbench(tmp_path)
    chosen = config | {"artists": {"realism": ["jan-steen"], "renaissance": ["titian"]}}
    assert artists(chosen, folder) == {"jan-steen": "realism", "titian": "renaissance"}
    assert count(chosen, folder)["jan-steen"] == 2
    with pytest.raises(SourceError, match="titian has no pictures of 'baroque', but of 'renaissance'"):
        artists(config | {"artists": {"baroque": ["titian"]}}, folder)


def test_artbench_is_planned_before_it_is_there(tmp_path):
    archive = {"metadata": "https://x/m.csv", "images": "https://x/i.tar"}
    config = CONFIG | {"source": "artbench", "manifest": str(tmp_path / "no.csv"), "archive": archive, "store": ""}
    config |= {"artists": {"baroque": ["Jan Steen"]}, "per_artist": 30}
    assert artists(config, "images") == {"jan_steen": "baroque"} and count(config, "images") == {"jan_steen": 30}
    before = digests(config, "images")
    written(tmp_path / "no.csv", [{"name": "x.jpg", "artist": "jan steen", "label": "baroque"}])
    assert digests(config, "images") == before  # what is collected then is not collected again by the next run
    with pytest.raises(SourceError, match=r"set pictures\.manifest"):
        artists(config | {"manifest": None}, "images")


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.fault("downloads", "an archive is replaced upstream", "refused with both hashes; what was unpacked stays")
def test_the_archive_is_fetched_unpacked_and_held_to_its_lock(museum, tmp_path):
    data = tar_of({"artbench/train/baroque/a.jpg": picture(0), "artbench/test/baroque/b.jpg": picture(1)})
    museum.paths |= {"/m.csv": b"name,artist,label\n", "/i.tar": lambda h: send(h, data, ETag='"one"')}
    config = CONFIG | {"archive": {"metadata": museum.url + "/m.csv", "images": museum.url + "/i.tar"}}
    config |= {"store": str(tmp_path / "store")}
    places = {
        "metadata": str(tmp_path / "m.csv"),
        "images": str(tmp_path / "images"),
        "lock": str(tmp_path / "s.lock.yaml"),
    }
    archived(config, places)
    assert (tmp_path / "images/train/baroque/a.jpg").read_bytes() == picture(0)
    assert sha256(data).hexdigest() in (tmp_path / "s.lock.yaml").read_text()
    archived(config, places)
    assert museum.numbers() == {"/m.csv": 1, "/i.tar": 1}
    museum.paths["/i.tar"] = tar_of({"x": b"other"})
    with pytest.raises(SourceError, match=f"changed: .*{sha256(data).hexdigest()}, got "):
        archived(config | {"store": str(tmp_path / "other")}, places)
    assert (tmp_path / "images/train/baroque/a.jpg").exists()


@pytest.mark.fault(
    "downloads",
    "an archive with members ../../x or /tmp/x",
    "refused; nothing is written outside",
)
@pytest.mark.parametrize("name", ["../../escape", "/tmp/escape"])
def test_a_tar_never_writes_outside(museum, tmp_path, name):
    museum.paths |= {"/m.csv": b"x", "/i.tar": tar_of({name: b"x", "a/b": b"y"})}
    config = CONFIG | {
        "archive": {"metadata": museum.url + "/m.csv", "images": museum.url + "/i.tar"},
        "store": str(tmp_path / "s"),
    }
    places = {"metadata": str(tmp_path / "in/m.csv"), "images": str(tmp_path / "in/images"), "lock": None}
    with pytest.raises(SourceError, match=f"cannot be unpacked .*{name!r} lies outside of it"):
        archived(config, places)
    assert not Path("/tmp/escape").exists() and not (tmp_path / "escape").exists()


def test_links_of_a_tar_are_left_out(tmp_path):
    """What is behind one is then no more than a folder of that name."""
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
        for name, data in {"a/link/x.jpg": b"x", "a/b.jpg": b"b"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    unpack(tmp_path / "i.tar", tmp_path / "images")
    assert {file.relative_to(tmp_path / "images").as_posix() for file in (tmp_path / "images").rglob("*.jpg")} == {
        "link/x.jpg", "b.jpg"
    }  # fmt: skip
    assert not (tmp_path / "images/link").is_symlink() and not (tmp_path / "elsewhere").exists()


# --- commons


def page(n: int, url: str, **changes) -> dict:
    extra = {"LicenseShortName": {"value": "CC BY-SA 4.0"}, "Artist": {"value": '<a href="//x">Some<b>body</b></a>'}}
    info = {"url": f"{url}/f/{n}", "sha1": sha1(picture(n)).hexdigest(), "mime": "image/jpeg", "extmetadata": extra}
    return {"pageid": n, "title": f"File:{n}.jpg", "imageinfo": [info | changes]}


def wiki(museum, categories: dict[str, list[dict]], lags: int = 0):
    museum.lags = lags

    def answer(handler):
        asked = {key: values[0] for key, values in parse_qs(urlsplit(handler.path).query).items()}
        assert asked["maxlag"] == "5" and "example.org" in handler.headers["User-Agent"]
        if museum.lags:
            museum.lags -= 1
            body = {"error": {"code": "maxlag", "info": "6 seconds lagged"}}
            return send(handler, json.dumps(body).encode(), Retry_After="1")
        pages = categories.get(asked["gcmtitle"], [])
        start = int(asked.get("gcmcontinue", 0))
        body = {"query": {"pages": pages[start : start + 2]}}
        if start + 2 < len(pages):
            body["continue"] = {"gcmcontinue": str(start + 2), "continue": "gcmcontinue||"}
        send(handler, json.dumps(body).encode())

    museum.paths["/w/api.php"] = answer


def test_categories_of_commons_become_a_manifest(museum, tmp_path, capsys):
    museum.paths |= {f"/f/{n}": picture(n) for n in range(9)}
    bad = [page(6, museum.url, mime="video/webm"), page(7, museum.url, extmetadata={})]
    wiki(
        museum,
        {"Category:Monet": [page(n, museum.url) for n in range(5)] + bad, "Category:Repin": [page(8, museum.url)]},
        lags=1,
    )
    config = CONFIG | {"source": "commons", "api": museum.url + "/w/api.php", "store": str(tmp_path / "store")}
    config |= {"manifest": str(tmp_path / "m.csv")}
    config |= {"categories": {"Monet": {"categories": ["Category:Monet"], "genre": "Impressionism"}, "repin": "Repin"}}
    assert artists(config, None) == {"monet": "impressionism", "repin": None} and count(config, None)["monet"] > 0
    entries = commons.listed(config, Client("atlas@example.org", private=True, limits=CALM))
    manifest.write(config.manifest, entries)
    said = capsys.readouterr().out
    assert "it is video/webm" in said and "it names no licence" in said
    assert count(config, None) == {"monet": 5, "repin": 1}
    first = Path(config.manifest).read_text()
    assert "CC BY-SA 4.0" in first and "Some body" in first and sha1(picture(0)).hexdigest() in first
    fetched(config)
    assert [row["status"] for row in collected(config, "monet")] == ["kept"] * 5
    assert collected(config, "repin")[0]["licence"] == "CC BY-SA 4.0 · Some body"
    museum.paths["/f/8"] = picture(99)  # somebody uploads another version
    fetched(config | {"store": str(tmp_path / "elsewhere")})
    (row,) = collected(config | {"store": str(tmp_path / "elsewhere")}, "repin")
    assert row["reason"].startswith("changed: expected sha1 ")
    assert museum.most <= 2


@pytest.mark.fault(
    "downloads", "a wiki answers with an error, or an empty category", "refused, with what the wiki said"
)
def test_an_empty_category_and_a_wiki_that_refuses_are_named(museum, tmp_path):
    wiki(museum, {})
    config = CONFIG | {
        "source": "commons",
        "api": museum.url + "/w/api.php",
        "categories": {"monet": "Paintings by Mone"},
    }
    client = Client("atlas@example.org", private=True, limits=CALM)
    with pytest.raises(SourceError, match="no picture of monet in 'Paintings by Mone'"):
        commons.listed(config, client)
    museum.paths["/w/api.php"] = b'{"error": {"code": "badvalue", "info": "no such thing"}}'
    with pytest.raises(SourceError, match="badvalue: no such thing"):
        commons.listed(config, client)
    museum.paths["/w/api.php"] = b"<html>"
    with pytest.raises(SourceError, match="no JSON"):
        commons.listed(config, client)
    with pytest.raises(SourceError, match=r"set pictures\.categories"):
        artists(config | {"categories": None}, None)


# --- huggingface, by the hub's own client, in processes of their own: it reads its address when it is imported


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"image": {"bytes": picture(n, side=120), "path": None}, "artist": [0, 1, 2][n // 10], "style": "Some Style"}
        for n in range(30)
    ]
    schema = pa.schema([("image", image), ("artist", pa.int64()), ("style", pa.string())])
    names = {"artist": {"names": ["Claude Monet", "Ilya Repin", "Raphael"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(rows, schema).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": names}})}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=5, compression="none", use_dictionary=False)
    return buffer.getvalue()


RUN = """
import json, sys
from lora_atlas.pictures.sources import source, manifest
from lora_atlas.sections import Pictures
config = Pictures(**json.loads(sys.argv[1]))
if sys.argv[2] == "list":
    manifest.write(config.manifest, source(config).list_pictures(config))
else:
    print(json.dumps([row["status"] for row in source(config).fetch(config, 0)]))
"""


def test_a_dataset_gives_only_what_is_wanted(museum, tmp_path):
    data = parquet()
    hub_server.serve_repository(museum, "datasets", "o/d", {"data/train-0.parquet": data, "README.md": b"x"})
    config = CONFIG | {"source": "huggingface", "artists": ["claude monet"], "manifest": str(tmp_path / "m.csv")}
    config |= {"store": str(tmp_path / "store"), "per_artist": 4}
    config |= {
        "dataset": {"id": "o/d", "revision": hub_server.COMMIT, "image": "image", "artist": "artist", "genre": "style"}
    }
    assert artists(config, None) == {"claude_monet": None} and count(config, None) == {"claude_monet": 4}
    before = digests(config, None)

    def run(what: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(config.plain()), what],
            env=hub_server.environment(museum, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run("list")
    assert artists(config, None) == {"claude_monet": "some_style"} and digests(config, None) == before
    assert len(manifest.entries_of(config)["claude_monet"]) == 10
    museum.log.clear()
    assert run("fetch").strip().splitlines()[-1] == json.dumps(["kept"] * 4)
    spans = [h["Range"] for _, h in museum.log if "Range" in h]
    travelled = sum(_length(span, len(data)) for span in spans)
    assert spans and travelled < len(data) * 0.5, (spans, len(data))  # the footer, and two of six row groups
    rows = collected(config, "claude_monet")
    assert [row["status"] for row in rows] == ["kept"] * 4
    assert {row["picture"] for row in rows} <= {sha256(picture(n, side=120)).hexdigest() for n in range(10)}
    museum.log.clear()
    run("fetch")
    assert museum.log == [] or not [h for _, h in museum.log if "Range" in h]


def _length(span: str, size: int) -> int:
    first, _, last = span.removeprefix("bytes=").partition("-")
    return min(int(last or size - 1), size - 1) - int(first) + 1


@pytest.mark.fault(
    "downloads",
    "a dataset's Parquet file is cut, junk, or has a flipped bit anywhere",
    "named, with what to do, or read",
)
def test_a_damaged_file_of_a_dataset_is_named(monkeypatch):
    """Arrow raises many types of errors, at any step; the hub's file system is a file in memory here."""
    from lora_atlas.pictures.sources import huggingface

    whole = parquet()
    config = CONFIG | {"source": "huggingface", "artists": None}
    config |= {"dataset": {"id": "o/d", "revision": "a" * 40, "image": "image", "artist": "artist"}}
    held = {}
    hub = SimpleNamespace(
        HfFileSystem=lambda **_: SimpleNamespace(open=lambda *_, **__: io.BytesIO(held["data"])),
        HfApi=lambda: SimpleNamespace(list_repo_tree=lambda *_, **__: [SimpleNamespace(path="0.parquet", size=1)]),
    )
    monkeypatch.setattr(huggingface, "_hub", lambda _: hub)

    def refused(data: bytes) -> bool:
        held["data"] = data
        try:
            return not huggingface.listed(config)
        except SourceError as error:
            said = str(error)
            assert ("o/d at aaa" in said and "0.parquet" in said) or "pictures.dataset: 0.parquet has no column" in said
            assert len(said) < 400 and said.isprintable()
            return True

    assert not refused(whole)
    for data in (b"", b"PAR1", b"<html>", b"x" * 99, *(whole[:cut] for cut in range(1, len(whole), len(whole) // 20))):
        assert refused(data)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(footer, len(whole), 11):
        refused(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])


def test_a_dataset_without_a_list_of_artists_says_what_to_do(tmp_path):
    dataset = {"id": "o/d", "revision": "a" * 40, "image": "image", "artist": "artist"}
    config = CONFIG | {"source": "huggingface", "manifest": str(tmp_path / "m.csv"), "dataset": dataset}
    with pytest.raises(SourceError, match="run `snakemake manifest`"):
        artists(config, None)
    with pytest.raises(SourceError, match=r"set pictures\.manifest"):
        artists(config | {"manifest": None}, None)
    with pytest.raises(SourceError, match=r"set pictures\.dataset"):
        artists(config | {"dataset": None, "artists": ["a"]}, None)


def test_sources_that_fetch_have_both_halves():
    for name in ("commons", "huggingface"):
        assert source(CONFIG | {"source": name}).list_pictures is not None
