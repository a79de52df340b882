"""The page of a study: what it holds is what the tables say, it is small, and no name of anybody's leaves its place."""

import base64
import hashlib
import html
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pages import DESCRIBED, VIEW, held, painted, study
from PIL import Image

from lora_atlas import tables
from lora_atlas.atlas import asked as asked_page
from lora_atlas.atlas import page, places, trained
from lora_atlas.atlas.page import Finding, cleaned, escaped, policy, render
from lora_atlas.atlas.thumbnails import SIDES, Thumbnails, beside

HOSTILE = {
    "</script><script>alert(1)</script>": "<!--<script>",
    '"><img src=x onerror=alert(2)>': "]]>",
    "a\u2028b\u2029c & d &amp; e": "'; drop table artists; --",
    "javascript:alert(3)": "北斎 🎨",
}
PLAIN = {"ada": "north", "bob": "north", "cyd": "south", "dee": "south"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return study(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    evil = next(iter(HOSTILE))
    return study(tmp_path_factory.mktemp("hostile"), HOSTILE, name=evil, title=evil)


class Elements(HTMLParser):
    """Elements of a page and their attributes, and what stands in scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


# --- names that mean harm


@pytest.mark.parametrize("text", [*HOSTILE, *HOSTILE.values(), "\ud800 half a pair", "\\u003c/script>"])
def test_json_in_a_script_element_never_ends_it(text):
    import json

    found = escaped({"name": text})
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found) == {"name": text}
    found.encode()


def test_hostile_names_make_no_elements(hostile):
    """The same elements as those of a page with plain names: nothing that a name holds is one."""
    found = Elements(hostile.read_text()).found
    scripts = [attributes for tag, attributes in found if tag == "script"]
    assert scripts == [{"id": "data", "type": "application/json"}, {}]
    assert not any(tag == "img" for tag, _ in found)
    for _, attributes in found:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        assert not any("javascript:" in (value or "") for name, value in attributes.items() if name in ("href", "src"))
    data = held(hostile)
    assert {artist["name"] for artist in data["artists"]} == set(HOSTILE)
    assert {title for lora in data["loras"] for _, title in lora["training"]} == {next(iter(HOSTILE))}


def test_the_page_asks_nobody_for_anything(plain):
    text = plain.read_text()
    for name, value in ((n, v) for _, attributes in Elements(text).found for n, v in attributes.items()):
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value in ("FINDINGS.md",), (name, value)
    (said,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    said = html.unescape(said)
    assert "default-src 'none'" in said and "connect-src 'none'" in said and "unsafe" not in said and "http" not in said
    # The policy names the digests of the very style and script that stand in the page.
    (style,), script = (
        re.findall(r"<style>(.*?)</style>", text, re.S),
        re.findall(r"<script>(.*?)</script>", text, re.S),
    )
    for kind, (inside,) in (("style", [style]), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in said
    assert said == policy(script[0], style)


def test_the_script_never_parses_text_as_html():
    script = (page.TEMPLATES / "atlas.js").read_text()
    used = script.replace("there is no innerHTML here", "")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "fetch(",
        "XMLHttp",
    ):
        assert word not in used, word


def test_an_svg_keeps_what_charts_are_made_of_and_nothing_else():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 9 9" width="9" onload="x()">'
        "<script>alert(1)</script><foreignObject><p>x</p></foreignObject>"
        '<image xlink:href="http://x/y.png"/><style>*{}</style>'
        '<g transform="translate(0.123456,2)" clip-path="url(#a-1)">'
        '<text style="x" onclick="y()" fill="url(http://x)">a &lt;b&gt;</text>'
        '<path d="M0.123456,1e-7L2,3" fill="#22242a" aria-label="x: 1"/></g>'
        '<use href="#a"/><a href="javascript:x"><text>z</text></a></svg>'
    )
    found = cleaned(svg, "Which?")
    assert found == (
        '<svg viewBox="0 0 9 9" role="img" aria-label="Which?">'
        '<g transform="translate(0.1235,2)" clip-path="url(#a-1)"><text>a &lt;b&gt;</text>'
        '<path d="M0.1235,1e-7L2,3" fill="#22242a" data-label="x: 1" /></g></svg>'
    )


def asked(name: str, lora: str, rank: int = 1, **changes) -> dict:
    row = {"query": name, "space": "sd1", "rank": rank, "lora": lora, "artist": None, "genre": None, "distance": 1.2}
    row |= {"cosine": 0.28, "p": 0.4, "chance": 0.3, "relation": None, "artist_vote": None, "artist_share": None}
    return row | {"genre_vote": None, "genre_share": None, "status": "answered", "reason": None} | changes


def test_the_page_of_a_query_says_what_the_table_says_and_names_are_text():
    evil = next(iter(HOSTILE))
    rows = [
        asked("far", "a"),
        asked("near", "b", cosine=0.9, p=0.01, artist_vote="ada", artist_share=1.0),
        asked("near", "c", rank=2),
        asked("twin", "d", relation="same update × 0.5", cosine=1.0),
        asked("few", "e", chance=None),
        asked(evil, evil, artist=evil, genre=evil),
        asked("cut", "", status="refused", reason=f"cut short {evil}", rank=None),
    ]
    text = asked_page.render(evil, rows)
    elements = Elements(text).found
    assert not any(tag in ("script", "img") for tag, _ in elements)
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert (
        all(link.startswith("../atlas.html") and '"' not in link and "<" not in link for link in links)
        and len(links) == 7
    )
    for words in (
        "It is unrelated to all of them: none is nearer than chance.",
        "speak for artist ada (100% of the evidence)",
        "It is known: same update × 0.5 as d.", "So few LoRAs do not tell",
        "unrelated: no nearer than chance", "cut short",
    ):  # fmt: skip
        assert words in text
    assert "default-src &#39;none&#39;" in text


# --- what it holds


def test_every_lora_is_there_with_its_pictures(plain):
    data = held(plain)
    assert [lora["name"] for lora in data["loras"]] == [f"{artist}/{n:02}" for artist in PLAIN for n in range(4)]
    assert data["lead"] == "16 LoRAs of 4 artists in 2 genres" and data["genres"] == ["north", "south"]
    for lora in data["loras"]:
        assert len(lora["training"]) == 3 and len(lora["generated"]) == 2
        assert all(
            data["pictures"][n].startswith("data:image/webp;base64,") for n, _ in lora["training"] + lora["generated"]
        )
    # A picture that several LoRAs learnt stands in the page once.
    assert len(data["pictures"]) == 4 * 5 + 16 * 2
    assert [each["colour"] for each in data["artists"]] == [0, 1, 2, 3] and [
        each["shape"] for each in data["artists"]
    ] == [0, 0, 1, 1]


def test_every_descriptor_has_a_map_and_its_words(plain):
    data = held(plain)
    assert [each["name"] for each in data["maps"]] == [each.name for each in DESCRIBED]
    assert [each["label"] for each in data["maps"]] == [each.label for each in DESCRIBED]
    assert dict(data["groups"]) == {
        "weights": [0, 1],
        "generated pictures": [3],
        "training pictures": [2],
        "control": [4],
    }
    for each in data["maps"]:
        assert len(each["x"]) == len(each["y"]) == 16
        assert min(each["x"] + each["y"]) >= 0 and max(each["x"] + each["y"]) <= 10_000


@pytest.mark.parametrize("number", range(len(DESCRIBED)))
def test_neighbours_are_those_of_the_tables(plain, number):
    """Of each query the nearest is the artist's where R@1 of the table "queries" is 1, and the average precision is the
    table's."""
    data, name = held(plain), DESCRIBED[number].name
    frame = tables.read(plain.parent / "queries.parquet", "queries").to_pandas()
    frame = frame[VIEW.rows(frame) & (frame.level == "artist") & (frame.descriptor == name)]
    first = frame[frame.metric == "R@1"].set_index("lora")["value"]
    mean = frame[frame.metric == "mAP"].set_index("lora")["value"]
    each, asked = data["maps"][number], 0
    for i, lora in enumerate(data["loras"]):
        assert i not in each["near"][i]
        assert all(data["loras"][j]["split"] == "gallery" for j in each["near"][i])
        assert each["distance"][i] == sorted(each["distance"][i])
        if lora["split"] == "query":
            asked += 1
            assert (data["loras"][each["near"][i][0]]["artist"] == lora["artist"]) == (first[lora["name"]] == 1)
            assert each["scores"][i][0] == pytest.approx(mean[lora["name"]], abs=6e-4)
        else:
            assert each["scores"][i] is None
    assert asked == 4 == len(first)


def test_neighbours_are_ranked_as_retrieval_ranks_them():
    """Against all distances of scikit-learn."""
    from sklearn.metrics.pairwise import cosine_distances

    X = np.random.default_rng(0).normal(size=(30, 5))
    gallery = np.arange(0, 30, 2)
    near, distance = trained.neighbours(X, gallery, "cosine")
    D = cosine_distances(X)
    for i in range(30):
        others = [j for j in gallery if j != i]
        expected = sorted(others, key=lambda j: D[i, j])[: near.shape[1]]
        assert near[i].tolist() == expected
        np.testing.assert_allclose(distance[i], D[i, expected], atol=1e-12)


def test_findings_say_what_the_tables_say(plain):
    text = plain.read_text()
    row = next(
        r
        for r in tables.read(plain.parent / "retrieval.parquet", "retrieval").to_pylist()
        if (r["descriptor"], r["scenario"], r["distance"], r["level"], r["metric"])
        == ("delta", "whole", "cosine", "artist", "mAP")
    )
    assert f"average precision of {row['value']:.2f} ({row['low']:.2f}–{row['high']:.2f})" in text
    saved = held(plain)["saved"]["comparison"].splitlines()
    assert saved[0] == "descriptor,value,low,high,chance,queries" and len(saved) == 1 + len(DESCRIBED)
    assert "1 minutes" not in text and "60 seconds of all jobs together" in text


def test_a_table_is_saved_as_it_stands():
    finding = Finding("x", "X?", "x.", None, "loras", ["a", "b"], [[1.5, 'say "x", y'], [None, "=1+1\nz"]])
    assert finding.csv == 'a,b\n1.5,"say ""x"", y"\n,"=1+1\nz"\n'


# --- places


def test_maps_lie_on_the_first_as_nearly_as_they_can():
    """A space that is the first one turned and mirrored moves nothing; its own neighbourhoods are kept."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(6, 8)), 5, 0) + 0.1 * rng.normal(size=(30, 8))
    Q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    found = places.maps({"one": X, "turned": X @ Q, "alike": np.ones((30, 2))}, "one", 0)
    assert np.abs(found["one"] - found["turned"]).mean() < 0.15
    for each in found.values():
        assert each.shape == (30, 2) and each.min() >= 0 and each.max() <= 1
        assert len(np.unique(each.round(6), axis=0)) == 30


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_loras_have_places(n):
    X = np.random.default_rng(n).normal(size=(n, 3))
    assert np.isfinite(places.maps({"one": X, "two": -X}, "one", 0)["two"]).all()


# --- pictures


def test_pictures_are_within_their_budget_and_each_is_there_once():
    rng = np.random.default_rng(0)
    shown = Thumbnails(60_000)
    for n in range(40):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8)).save(buffer, "PNG")
        assert shown.add(str(n), buffer.getvalue()) == n == shown.add(str(n), b"")
    uris = shown.uris()
    assert sum(map(len, uris)) <= 60_000 and len(uris) == 40
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size for uri in uris}
    assert len(sizes) == 1 and next(iter(sizes))[0] in SIDES[1:]
    assert Thumbnails(1000).add("x", b"<html>") is None


def test_a_small_picture_is_not_made_larger():
    shown = Thumbnails(10**6)
    shown.add("x", painted(0, 40))
    assert Image.open(io.BytesIO(base64.b64decode(shown.uris()[0].split(",")[1]))).size == (40, 40)


@pytest.mark.parametrize("name", ["a.v2.png", "a.v2.preview.png", "a.v2.jpeg"])
def test_a_preview_lies_beside_its_file(tmp_path, name):
    (tmp_path / "a.v2.safetensors").write_bytes(b"x")
    assert beside(tmp_path / "a.v2.safetensors") is None
    (tmp_path / "a.png").write_bytes(b"of another")
    (tmp_path / name).write_bytes(painted(1))
    assert beside(tmp_path / "a.v2.safetensors") == painted(1)


def test_the_page_of_a_small_study_is_small(plain):
    assert plain.stat().st_size < 600_000


def test_a_study_of_nothing_that_compares_is_still_a_page():
    data = {
        "kind": "folder", "study": "none", "lead": "0 LoRAs", "facts": [], "links": [], "setting": None, "genres": [],
        "artists": [], "clusters": [], "loras": [], "maps": [], "groups": [], "measure": "", "pictures": [],
    }  # fmt: skip
    assert "<h1>none</h1>" in render(data)
