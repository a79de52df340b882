"""Charts: valid specifications, files of the right kind, few points, and names that mean harm."""

import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import altair
import jsonschema
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_atlas import tables
from lora_atlas.atlas.charts import ALONE, artist_colours, comparison, save, thumbnail, weight_map
from lora_atlas.descriptors import KINDS, Descriptor
from lora_atlas.pictures.decode import encode_png
from lora_atlas.tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from lora_atlas.views import View

HEADLINE = View("whole", "crossfit", "cosine")
COMPONENTS = View("components", "crossfit", "L2")
DELTA = Descriptor("weights", "delta", "plain", "unit")
SVG = "{http://www.w3.org/2000/svg}"
ARTISTS = {"monet": "impressionism", "sisley": "impressionism", "gris": "cubism", "hokusai": "ukiyo-e"}
HOSTILE = {
    "<script>alert(1)</script>": '"><img src=x onerror=alert(2)>',
    "a & b &amp; c": "'; drop table artists; --",
    "]]><!--": '{"signal": "event"}',
    "datum['x'] \\u003cb\\u003e": "a\nb",
    "北斎 🎨": "",
}


def embeddings(artists: dict[str, str | None], each: int = 4, dimensions: int = 6, **changes) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = []
    for artist, genre in artists.items():
        centre = 5 * rng.normal(size=dimensions)
        for n in range(each):
            row = {
                "scenario": WHOLE,
                "calibration": "none",
                "fold": 0,
                "lora": f"{artist}/{n:02}",
                "artist": artist,
                "genre": genre,
                "split": "query" if n == each - 1 else "gallery",
                "vector": (centre + rng.normal(size=dimensions)).astype(np.float32),
            }
            rows.append(row | changes)
    return tables.table("embeddings", rows)


def painters(artists: dict[str, str | None]) -> dict[str, str]:
    """A thumbnail of each artist, from a table of pictures."""
    return {artist: thumbnail(pictures([n], artist)) for n, artist in enumerate(artists)}


def pictures(seeds: list[int], artist: str = "monet", refused: int = 1) -> pa.Table:
    common = {"artist": artist, "genre": None, "source": "test", "licence": None, "subject": None}
    bad = {"picture": "0" * 64, "image": None, "width": None, "height": None, "status": "refused", "reason": "empty"}
    rows = [common | bad] * refused
    for seed in seeds:
        pixels = np.full((20, 30, 3), np.random.default_rng(seed).integers(0, 256, 3), np.uint8)
        image = {"bytes": encode_png(pixels), "path": None}
        good = {"picture": f"{seed:064}", "image": image, "width": 30, "height": 20, "status": "kept", "reason": None}
        rows.append(common | good)
    return tables.table("pictures", rows)


def mapped(artists: dict[str, str | None], descriptor: Descriptor = DELTA, **changes) -> altair.Chart:
    return weight_map(embeddings(artists, **changes), descriptor, HEADLINE, painters(artists), seed=3)


VALUES = {"delta": 0.5, "factors": 0.8, "clip_s8_g1": 0.6, "clip_training": 0.9, "mean_colour_training": 0.2}
KIND = dict(zip(VALUES, ["weights", "weights", "generated pictures", "training pictures", "control"], strict=True))


def score(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value and value - 0.1, "high": value and min(1.0, value + 0.1), "chance": 0.1}


def compared(
    values: dict[str, float | None], kinds: dict[str, str], ari: float | None = None, view: View = HEADLINE
) -> altair.Chart:
    found, grouped = [], []
    whole = view == HEADLINE
    scenario, calibration = (WHOLE, "none") if whole else (KNOWN, "crossfit")
    for descriptor, value in values.items():
        row = {"scenario": scenario, "descriptor": descriptor, "calibration": calibration, "distance": view.distance}
        row |= {"level": "artist", "metric": "mAP", "queries": 8} | score(value)
        found.append(row)
        # None of these may be drawn.
        others = [{"scenario": s} for s in (UNSEEN, TOGETHER, WHOLE_UNSEEN, KNOWN if whole else WHOLE)]
        others += [{"calibration": "rescale"}, {"distance": "CSLS"}, {"level": "genre"}]
        found += [row | other | score(0.123) for other in (*others, {"metric": "R@1"})]
        row = {"scenario": WHOLE if whole else TOGETHER, "descriptor": descriptor}
        row |= {"level": "artist", "algorithm": "Ward", "metric": "ARI"}
        grouped.append(row | score(value and value / 2 if ari is None else ari))
        others = [{"level": "genre"}, {"algorithm": "k-means"}, {"metric": "NMI"}]
        others += [{"scenario": TOGETHER if whole else WHOLE}]
        grouped += [row | other | score(0.123) for other in others]
    described = {"kinds": json.dumps(kinds), "view": json.dumps(view.stored()), "descriptors": "[]"}
    retrieval = tables.table("retrieval", found).replace_schema_metadata(described)
    return comparison(retrieval, tables.table("clustering", grouped))


@pytest.fixture(scope="module")
def map_chart() -> altair.Chart:
    return mapped(ARTISTS)


@pytest.fixture(scope="module")
def comparison_chart() -> altair.Chart:
    return compared(VALUES, KIND)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    (file,) = Path(altair.__file__).parent.rglob("vega-lite-schema.json")
    return jsonschema.Draft7Validator(json.loads(file.read_text()))


def drawn(chart: altair.Chart, folder: Path) -> ElementTree.Element:
    save(chart, folder / "drawn.svg")
    return ElementTree.fromstring((folder / "drawn.svg").read_bytes())


def texts(svg: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in svg.iter(f"{SVG}text")]


def rows_of(chart: altair.Chart) -> list[list[dict]]:
    return list(chart.to_dict()["datasets"].values())


# --- specifications


@pytest.mark.parametrize("name", ["map_chart", "comparison_chart"])
def test_charts_are_valid_vega_lite(name, schema, request):
    specification = request.getfixturevalue(name).to_dict()
    schema.validate(specification)
    assert json.loads(json.dumps(specification, allow_nan=False)) == specification
    inner = specification["hconcat"][0]["layer"][0]
    with pytest.raises(jsonschema.ValidationError):  # the schema would notice
        schema.validate(specification | {"hconcat": [{"layer": [inner | {"mark": "nonsense"}]}]})


def test_the_map_has_one_point_a_lora_in_its_artists_colour(map_chart):
    points = next(rows for rows in rows_of(map_chart) if "lora" in rows[0])
    assert sorted(row["lora"] for row in points) == sorted(f"{a}/{n:02}" for a in ARTISTS for n in range(4))
    assert {row["split"] for row in points} == {"gallery", "query"}
    cells = next(rows for rows in rows_of(map_chart) if "url" in rows[0])
    colours = artist_colours(pd.DataFrame(points))
    assert {row["artist"]: row["colour"] for row in cells} == colours
    assert len({(row["column"], row["row"]) for row in cells}) == len(ARTISTS)


def test_the_map_keeps_neighbours_together(map_chart):
    frame = pd.DataFrame(next(rows for rows in rows_of(map_chart) if "lora" in rows[0]))
    places = frame[["x", "y"]].to_numpy()
    distance = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag([np.inf] * len(places))
    assert (frame.artist.to_numpy()[distance.argmin(1)] == frame.artist.to_numpy()).all()


def test_hulls_hold_the_points_of_their_genre(map_chart):
    from scipy.spatial import Delaunay

    points = pd.DataFrame(next(rows for rows in rows_of(map_chart) if "lora" in rows[0]))
    hulls = pd.DataFrame(next(rows for rows in rows_of(map_chart) if "order" in rows[0]))
    assert set(hulls.genre) == set(ARTISTS.values())
    for genre, hull in hulls.groupby("genre"):
        inside = Delaunay(hull[["x", "y"]].to_numpy()).find_simplex(points[points.genre == genre][["x", "y"]]) >= 0
        assert inside.all()


def test_the_map_says_what_circles_and_diamonds_are(map_chart, tmp_path):
    assert {"gallery", "query"} <= set(texts(drawn(map_chart, tmp_path)))


@pytest.mark.parametrize(("view", "scenario"), [(HEADLINE, WHOLE), (COMPONENTS, TOGETHER)], ids=["whole", "components"])
def test_the_map_reads_the_headlines_scenario_of_all_loras(view, scenario):
    def drawn_of(table):
        return weight_map(table, DELTA, view, painters(ARTISTS), seed=3).to_dict()

    wanted = embeddings(ARTISTS, scenario=scenario)
    others = [
        embeddings(ARTISTS, dimensions=5, scenario=WHOLE if scenario == TOGETHER else TOGETHER),
        embeddings(ARTISTS, scenario=UNSEEN),
        embeddings(ARTISTS, scenario=WHOLE_UNSEEN),
        embeddings(ARTISTS, scenario=KNOWN, calibration="rescale"),
    ]
    assert drawn_of(wanted) == drawn_of(pa.concat_tables([others[0], wanted, *others[1:]]))


def test_the_map_says_how_it_looks_at_weights():
    raw = Descriptor("weights", "factors", "plain", "raw")
    for view, words in ((HEADLINE, "no basis, cosine"), (COMPONENTS, "principal components, calibration crossfit, L2")):
        table = embeddings(ARTISTS, scenario=view.together)
        title = weight_map(table, raw, view, painters(ARTISTS), seed=0).to_dict()["hconcat"][0]["title"]
        (subtitle,) = title["subtitle"]
        assert subtitle.startswith("raw factors, every module as it is, norms kept;") and words in subtitle


@pytest.mark.parametrize(("view", "scenario"), [(HEADLINE, "whole"), (COMPONENTS, "together")])
def test_a_table_without_that_scenario_is_named(view, scenario):
    raw = Descriptor("weights", "factors", "plain", "raw")
    with pytest.raises(ValueError, match=f"factors_raw: no embeddings of scenario '{scenario}'"):
        weight_map(embeddings(ARTISTS, scenario=KNOWN), raw, view, painters(ARTISTS), seed=0)


@pytest.mark.parametrize("view", [HEADLINE, COMPONENTS], ids=["whole", "components"])
def test_the_comparison_draws_the_headline_rows_and_no_others(view):
    specification = compared(VALUES, KIND, view=view).to_dict()
    assert view.label in specification["title"]["subtitle"][0]
    for panel, share in zip(specification["hconcat"], (1, 0.5), strict=True):
        rows = specification["datasets"][panel["data"]["name"]]
        assert len(rows) == len(VALUES)
        assert {row["descriptor"]: row["value"] / share for row in rows} == VALUES
        assert {row["descriptor"]: row["kind"] for row in rows} == KIND


def test_the_comparison_is_by_kind_and_the_best_first_within_one(comparison_chart):
    specification = comparison_chart.to_dict()
    orders = [layer["encoding"]["y"]["sort"] for panel in specification["hconcat"] for layer in panel["layer"]]
    assert all(order == ["factors", "delta", "clip_s8_g1", "clip_training", "mean_colour_training"] for order in orders)


def test_a_descriptor_without_a_kind_is_left_out(tmp_path):
    chart = compared(VALUES | {"clip_training_to_s8_g1": 0.4}, KIND)
    assert all("clip_training_to_s8_g1" not in [row["descriptor"] for row in rows] for rows in rows_of(chart))


# --- files


@pytest.mark.parametrize("name", ["map_chart", "comparison_chart"])
def test_a_png_is_twice_the_size_of_the_svg(name, request, tmp_path):
    chart = request.getfixturevalue(name)
    svg = drawn(chart, tmp_path)
    assert svg.tag == f"{SVG}svg"
    save(chart, tmp_path / "chart.png")
    data = (tmp_path / "chart.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    image = Image.open(io.BytesIO(data))
    assert image.size == (2 * int(svg.get("width")), 2 * int(svg.get("height")))
    assert len(image.convert("RGB").getcolors(2**24)) > 50  # something is drawn


def test_the_drawing_names_artists_and_values(map_chart, comparison_chart, tmp_path):
    on_map = texts(drawn(map_chart, tmp_path))
    assert set(ARTISTS) | set(ARTISTS.values()) <= set(on_map)
    assert any("16 LoRAs of 4 artists" in text for text in on_map)
    compared_ = texts(drawn(comparison_chart, tmp_path))
    assert set(VALUES) | set(KINDS) | {f"{value:.2f}" for value in VALUES.values()} <= set(compared_)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for number, make in enumerate([lambda: mapped(ARTISTS), lambda: compared(VALUES, KIND)]):
        for copy in "ab":
            save(make(), tmp_path / f"{number}{copy}.svg")
        assert (tmp_path / f"{number}a.svg").read_bytes() == (tmp_path / f"{number}b.svg").read_bytes()


def test_a_derived_seed_of_63_bits_is_taken():
    """t-SNE itself takes 32."""
    chart = weight_map(embeddings(ARTISTS), DELTA, HEADLINE, painters(ARTISTS), seed=2**63 - 1)
    assert chart.to_dict()["hconcat"]


def test_a_file_is_replaced_whole(comparison_chart, tmp_path):
    path = tmp_path / "deep" / "chart.svg"
    path.parent.mkdir()
    path.write_text("before")
    with path.open() as reader:
        save(comparison_chart, path)
        assert reader.read() == "before"  # who has it open goes on reading the old one
    assert path.read_text().startswith("<svg")
    assert os.listdir(path.parent) == ["chart.svg"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(comparison_chart, tmp_path):
    (tmp_path / "chart.svg" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"chart\.svg"):
        save(comparison_chart, tmp_path / "chart.svg")
    assert os.listdir(tmp_path) == ["chart.svg"]


def test_another_format_is_refused_by_name(comparison_chart, tmp_path):
    with pytest.raises(ValueError, match=r"chart\.pdf: charts are \.png or \.svg"):
        save(comparison_chart, tmp_path / "chart.pdf")
    assert not os.listdir(tmp_path)


# --- few points, no genres, no values


@pytest.mark.parametrize(
    ("artists", "changes"),
    [
        ({"monet": "impressionism"}, {}),
        ({"monet": None}, {}),
        ({"monet": None, "gris": None, "hokusai": None}, {}),
        ({"monet": "impressionism", "gris": None}, {}),
        ({"monet": "impressionism", "gris": "cubism"}, {"each": 1}),
        ({"monet": "impressionism", "gris": "cubism", "hokusai": "ukiyo-e"}, {"each": 1}),
        ({"monet": None}, {"each": 2}),
        ({f"artist-{n}": f"genre-{n % 7}" for n in range(40)}, {"each": 2}),
        ({"monet": "impressionism", "gris": "cubism"}, {"dimensions": 2}),
        ({"monet": "impressionism", "gris": "cubism"}, {"dimensions": 1}),
    ],
    ids=["one artist", "one without genre", "no genres", "a genre missing", "two points", "three points"]
    + ["two points of one", "many", "two dimensions", "one dimension"],
)
def test_a_map_of_little_is_still_a_map(artists, changes, tmp_path, schema):
    chart = mapped(artists, **changes)
    schema.validate(chart.to_dict())
    assert set(artists) <= set(texts(drawn(chart, tmp_path)))
    points = next(rows for rows in rows_of(chart) if "lora" in rows[0])
    assert len(points) == len(artists) * changes.get("each", 4)
    assert np.isfinite([[row["x"], row["y"]] for row in points]).all()


def test_one_genre_or_none_has_no_hull():
    for artists in ({"monet": None, "gris": None}, {"monet": "g", "gris": "g"}):
        assert not any("order" in rows[0] for rows in rows_of(mapped(artists)))


def test_undefined_scores_are_drawn_as_nothing(tmp_path, schema):
    chart = compared(VALUES | {"delta": None}, KIND)
    schema.validate(chart.to_dict())
    found = texts(drawn(chart, tmp_path))
    assert "delta" in found and "0.50" not in found and "nan" not in " ".join(found).lower()
    order = chart.to_dict()["hconcat"][0]["layer"][0]["encoding"]["y"]["sort"]
    assert order[:2] == ["factors", "delta"]  # the last of its kind
    drawn(compared(dict.fromkeys(VALUES), KIND), tmp_path)
    drawn(compared({}, KIND), tmp_path)


def test_scores_below_zero_are_within_the_axis():
    for panel in compared(VALUES, KIND, ari=-0.25).to_dict()["hconcat"][1:]:
        low, high = panel["layer"][0]["encoding"]["x"]["scale"]["domain"]
        assert low <= -0.35 and high == 1.0


# --- names that mean harm


@pytest.mark.fault(
    "tables and pages",
    "artists and genres named <script> or with quotes",
    "text in the SVG; no element, link or handler of theirs",
)
def test_hostile_names_are_text_in_the_drawing(tmp_path):
    named = Descriptor("control", control="</text><script>alert(3)</script>")
    svg = drawn(mapped(HOSTILE, descriptor=named), tmp_path)  # well-formed, for one
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} <= {"svg", "g", "path", "rect", "text", "image"}
    for element in svg.iter():
        assert not any(name.lower().startswith("on") for name in element.attrib)
        links = [value for name, value in element.attrib.items() if name.endswith("href")]
        assert all(link.startswith("data:image/png;base64,") for link in links)
    found = texts(svg)
    assert set(HOSTILE) <= set(found)
    assert any("</text><script>alert(3)</script>" in text for text in found)


@pytest.mark.fault("tables and pages", "descriptors named <script>", "text in the SVG")
def test_hostile_descriptors_are_text_in_the_drawing(tmp_path):
    names = list(HOSTILE)
    svg = drawn(compared(dict.fromkeys(names, 0.5), dict.fromkeys(names, "weights")), tmp_path)
    assert not list(svg.iter(f"{SVG}script")) and set(names) <= set(texts(svg))


# --- thumbnails and colours


def test_a_thumbnail_is_the_first_kept_picture():
    import base64

    found = thumbnail(pictures([5, 6], refused=2))
    kind, data = found.split(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    expected = np.random.default_rng(5).integers(0, 256, 3)
    assert image.size == (96, 96) and (np.asarray(image.convert("RGB")) == expected).all()


def frame(counts: list[int]) -> pd.DataFrame:
    """Artists of genres, so many each; one genre without a name where there is one."""
    pairs = [(f"g{g:02}" if len(counts) > 1 else "", f"a{g:02}-{n:02}") for g, k in enumerate(counts) for n in range(k)]
    return pd.DataFrame(pairs * 2, columns=["genre", "artist"])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_no_two_artists_have_one_colour(counts):
    colours = artist_colours(frame(counts))
    assert len(colours) == len(set(colours.values())) == sum(counts)
    assert all(len(c) == 7 and c[0] == "#" and int(c[1:], 16) >= 0 for c in colours.values())


def test_artists_of_a_genre_share_a_hue():
    import colorsys

    def hue(colour: str) -> float:
        return colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]

    colours = artist_colours(frame([4, 4, 4]))
    hues = np.array([[hue(colours[f"a{g:02}-{n:02}"]) for n in range(4)] for g in range(3)])
    assert np.ptp(hues, axis=1).max() < 0.02
    assert min(abs(a - b) for i, a in enumerate(hues[:, 0]) for b in hues[:i, 0]) > 0.2
    alone = artist_colours(frame([3]))  # without genres the hue tells the artist
    assert min(abs(hue(a) - hue(b)) for a in alone.values() for b in alone.values() if a != b) > 0.2


def test_colours_do_not_depend_on_the_order_of_rows():
    artists = frame([3, 2, 5])
    assert artist_colours(artists) == artist_colours(artists.sample(frac=1, random_state=0))


def test_pictures_that_were_asked_about_are_stars_among_the_loras_that_they_speak_for():
    """At the mean place of the four that stand out most, weighted by how far; in the colour of their artist."""
    table = embeddings(ARTISTS)
    loras = [row["lora"] for row in table.to_pylist() if row["split"] == "gallery"]
    query = next(row["lora"] for row in table.to_pylist() if row["split"] == "query")
    prominence = dict.fromkeys(loras, -1.0) | {loras[2]: 6.0, loras[4]: 2.0}
    chart = weight_map(table, DELTA, HEADLINE, painters(ARTISTS), asked={query: prominence}, seed=3).to_dict()
    rows = next(rows for rows in chart["datasets"].values() if "split" in rows[0])
    place = {row["lora"]: np.array([row["x"], row["y"]]) for row in rows if row["split"] != ALONE}
    (star,) = [row for row in rows if row["split"] == ALONE]
    np.testing.assert_allclose([star["x"], star["y"]], 0.75 * place[loras[2]] + 0.25 * place[loras[4]], rtol=1e-5)
    assert star["artist"] == query.split("/")[0]
    assert f"{len(table)} LoRAs" in chart["hconcat"][0]["title"]["text"]
    plain = weight_map(table, DELTA, HEADLINE, painters(ARTISTS), seed=3).to_dict()
    assert ALONE not in str(plain)
