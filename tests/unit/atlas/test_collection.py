"""The map of a folder: copies are one point, lines are no noise, names have room, and the page is full."""

import numpy as np
import pandas as pd
import pytest
from pages import Collection, row

from lora_atlas import tables
from lora_atlas.atlas.charts import save
from lora_atlas.atlas.collection import _noise, collection_map, grouped, placed
from lora_atlas.collection.query import neighbours
from lora_atlas.collection.spaces import maps
from lora_atlas.tables import WHOLE


def drawn(rows: list[dict], X: np.ndarray):
    vectors = [
        {"scenario": WHOLE, "calibration": "none", "fold": 0, "vector": x.astype(np.float32), "lora": r["lora"],
         "artist": r["artist"] or "", "genre": None, "split": "gallery"}
        for r, x in zip(rows, X, strict=True)
    ]  # fmt: skip
    near = tables.table("neighbours", neighbours(Collection(rows, X)))
    return collection_map(rows, placed(rows, tables.table("embeddings", vectors), near, seed=0))


def layers(chart) -> dict[str, list[pd.DataFrame]]:
    """Kind of mark → the data of its layers."""
    found: dict[str, list[pd.DataFrame]] = {}
    for layer in chart.layer:
        found.setdefault(layer.mark["type"] if isinstance(layer.mark, dict) else layer.mark.type, []).append(layer.data)
    return found


@pytest.fixture(scope="module")
def folder() -> tuple[list[dict], np.ndarray]:
    """120 LoRAs: 60 alone, a run of 10 checkpoints, ten of one artist, and 10 updates of 4 copies each."""
    rng = np.random.default_rng(0)
    rows = [row(f"alone{i % 9}/{i} a long name of a style") for i in range(60)] + [row(f"run/{i}") for i in range(10)]
    run, artist = rng.normal(size=400), rng.normal(size=400)
    X = [rng.normal(size=400) for _ in range(60)] + [run + 0.8 * rng.normal(size=400) for _ in range(10)]
    rows += [row(f"ada/{i}") for i in range(10)]
    X += [artist + 1.5 * rng.normal(size=400) for _ in range(10)]
    for n in range(10):
        rows += [row(f"copies/{n}"), *(row(f"copies/{n}-{i}", f"copies/{n}", "same update") for i in range(3))]
        X += 4 * [rng.normal(size=400)]
    X = np.array(X)
    return rows, X / np.linalg.norm(X, axis=1, keepdims=True)


def test_copies_are_one_point_with_their_number(folder):
    found = layers(drawn(*folder))
    (points,) = found["circle"]
    assert len(points) == 60 + 10 + 10 + 10
    names = dict(zip(points["lora"], points["label"], strict=True))
    assert names["copies/3"] == "3 ×4" and names["ada/3"] == "3"
    assert points.set_index("lora")["copies"]["copies/3"] == "copies/3-0, copies/3-1, copies/3-2"
    assert not any(x.split("-")[0] == y.split("-")[0] for x, y in zip(points["nearest"], points["lora"], strict=True))


def test_lines_are_of_relations_and_not_of_noise(folder):
    rows, X = folder
    found = layers(drawn(rows, X))
    (points,), (lines,) = found["circle"], found["rule"]
    place = {(x, y): lora for lora, x, y in zip(points["lora"], points["x"], points["y"], strict=True)}
    for line in lines.itertuples():
        one, other = place[line.x, line.y], place[line.x2, line.y2]
        assert one.split("/")[0] == other.split("/")[0] in ("run", "ada"), (one, other, line.cosine)
    assert len(lines) > 30


def test_names_have_room_and_the_page_is_full(folder):
    chart = drawn(*folder)
    found, (width, height) = layers(chart), (chart.width, chart.height)
    (points,) = found["circle"]
    assert (width, height) == (1080, 720)
    texts = pd.concat(found["text"])
    assert texts["lora"].is_unique and len(texts) > 0.7 * len(points)
    assert {f"copies/{n}" for n in range(10)} <= set(texts["lora"])  # what stands for many comes first
    x, y = points["x"].to_numpy(), points["y"].to_numpy()
    assert min(np.ptp(x), np.ptp(y)) == pytest.approx(1)
    filled = np.histogram2d(x, y, bins=4, range=[[0, 1], [0, 1]])[0]
    assert (filled > 0).sum() >= 14


def test_an_opposite_stands_alone_and_chains_have_one_head():
    rows = [row("a"), row("b", "a", "same update"), row("c", "b", "nearly the same"), row("d", "a", "same update × -1")]
    rows.append(row("e", "d", "same bytes"))
    X = np.array([[1, 0], [1, 0], [1, 0.05], [-1, 0], [-1, 0]], float)
    assert grouped(rows, X) == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "d"}


def test_epochs_of_a_training_are_points_of_their_own_where_they_are_no_copy_of_the_first():
    """19 steps of 5°, each nearly the one before: cos 5° is a distance of 0.087, cos 10° of 0.17."""
    rows = [row("00"), *(row(f"{n:02d}", f"{n - 1:02d}", "nearly the same") for n in range(1, 19))]
    rows.append(row("02 again", "02", "same bytes"))
    angle = np.radians(5 * np.array([*range(19), 2]))
    found = grouped(rows, np.stack([np.cos(angle), np.sin(angle)], 1))
    assert found["01"] == "00" and found["02"] == found["03"] == found["02 again"] == "02" and found["18"] == "18"


@pytest.mark.parametrize("opposite", ["none", "exact", "slider"])
def test_an_opposite_hides_no_family(opposite):
    """Nine LoRAs of which two are at a cosine of 0.7; one may be the opposite of a third, or nearly."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(9, 4000))
    X[1] = 0.7 * X[0] + np.sqrt(1 - 0.49) * X[1]
    if opposite != "none":
        X[8] = -X[7] + (opposite == "slider") * rng.normal(size=4000)
    assert 0.03 < _noise(X) < 0.2


@pytest.mark.parametrize("count", [4, 5, 9])
def test_few_are_a_small_page_that_can_be_written(tmp_path, count):
    rng = np.random.default_rng(count)
    rows = [row(f"<script>{i}</script>") for i in range(count)]
    chart = drawn(rows, rng.normal(size=(count, 20)))
    assert chart.width < 1080
    save(chart, tmp_path / "map.svg")
    assert "<script>" not in (tmp_path / "map.svg").read_text()


def test_all_copies_of_one_are_a_point(tmp_path):
    rows = [row("a"), *(row(f"b{i}", "a", "same update") for i in range(4))]
    chart = drawn(rows, np.ones((5, 3)))
    assert len(layers(chart)["circle"][0]) == 1 and "rule" not in layers(chart)


def test_spaces_of_four_or_more_have_a_map(tmp_path):
    rows = [row(f"{i}", space="sd1") for i in range(4)] + [row("x", space="flux")]
    assert [path.relative_to(tmp_path).as_posix() for path in maps(tmp_path, rows)] == ["sd1/map.png", "sd1/map.svg"]
