"""The map of a folder of LoRAs: who is near whom, by the weights alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from ..collection.chance import LEVEL
from ..collection.copies import NEARLY
from .charts import GREY, INK, artist_colours, layout, styled
from .places import over_the_page

RELATED, ALIKE = LEVEL, 0.1  # lines are drawn of a cosine above that, to the nearest and to those of p up to this
LOWEST, BEYOND = 1e-3, 1.5  # a share of all pairs, and how much further noise does not go: 3.1 and 4.6 deviations
QUARTERS = 6.9  # how far noise goes below the median, in distances of the lowest quarter from it: 4.6 deviations
WIDTH, HEIGHT = 1080, 720  # pixels, of FULL points and more; half as much of few
FULL = 40
EDGE = 0.03  # of the page, around all points
LETTER, LINE = 5.6, 12  # pixels of a label's letters
GAP = 3  # pixels between a point and its label
# Where a label stands: how it is aligned, and the way from its point.
SIDES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "right": ({"align": "left", "baseline": "middle"}, (1, 0)),
    "left": ({"align": "right", "baseline": "middle"}, (-1, 0)),
    "above": ({"align": "center", "baseline": "bottom"}, (0, -1)),
    "below": ({"align": "center", "baseline": "top"}, (0, 1)),
}


@dataclass(frozen=True)
class Placed:
    """LoRAs of one space on a page: `points`, one row a point with its place (0 to 1) and its label's side; `members`,
    the LoRAs of each point, by its first; `near`, the neighbours of points (one, other), whether they are `beyond`
    noise, and whether a line links them (`related`); `lines`, one row a line."""

    points: pd.DataFrame
    members: Mapping[str, list[str]]
    near: pd.DataFrame
    lines: pd.DataFrame


def placed(rows: Sequence[Mapping[str, Any]], embeddings: pa.Table, neighbours: pa.Table, *, seed: int) -> Placed:
    """Where LoRAs of one space stand, and which are related. `rows` of the table "loras", in the order of
    `embeddings`."""
    vectors = np.array(embeddings["vector"].to_pylist(), float)
    return _points(rows, grouped(rows, vectors), vectors, neighbours.to_pandas(), seed)


def collection_map(rows: Sequence[Mapping[str, Any]], where: Placed) -> ChartType:
    """LoRAs of one space in two dimensions, with lines between those that are nearer than chance.

    Colours are artists (folders) where there are several. Copies of one update are one point, with their number beside
    its name; a name is drawn where there is room.
    """
    frame, lines = where.points, where.lines
    scale = alt.Scale(domain=[-EDGE, 1 + EDGE])
    x, y = alt.X("x:Q", axis=None, scale=scale), alt.Y("y:Q", axis=None, scale=scale)
    layers = []
    if len(lines):
        darkness = alt.Opacity("cosine:Q", scale=alt.Scale(domain=[0, 1], range=[0.15, 0.9]), legend=None)
        rules = alt.Chart(lines).mark_rule(color=GREY, strokeWidth=1.2)
        layers.append(rules.encode(x=x, y=y, x2="x2:Q", y2="y2:Q", opacity=darkness))
    several = frame["artist"].nunique() > 1
    colours = artist_colours(frame)
    colour = (
        alt.Color(
            "artist:N",
            scale=alt.Scale(domain=list(colours), range=list(colours.values())),
            legend=alt.Legend(title=None, orient="right", symbolLimit=60) if len(colours) <= 60 else None,
        )
        if several
        else alt.value("#c8452d")
    )
    base = alt.Chart(frame).encode(x=x, y=y)
    layers.append(
        base.mark_circle(opacity=0.9, stroke="white", strokeWidth=0.8).encode(
            color=colour,
            size=alt.Size("size:Q", scale=None),
            tooltip=[
                "lora", "artist", "genre", "format", "kinds", "ranks", alt.Tooltip("norm:Q", format=".3g"), "nearest",
                alt.Tooltip("cosine:Q", format=".4f"), "copies",
            ],
        )
    )  # fmt: skip
    for side, (aligned, (right, down)) in SIDES.items():
        named = frame[frame["side"] == side]
        if len(named):
            # Of the largest point of this side; the others are at most a few pixels further.
            away = float(np.sqrt(named["size"].max() / np.pi)) + GAP
            text = alt.Chart(named).mark_text(**aligned, dx=right * away, dy=down * away, fontSize=10, color=INK)
            layers.append(text.encode(x=x, y=y, text="label:N"))
    space, family, (width, height) = rows[0]["space"], rows[0]["family"], _page(len(frame))
    alone = len(frame) == len(rows)
    chart = alt.layer(*layers).properties(
        width=width,
        height=height,
        title=alt.Title(
            f"{len(rows)} LoRAs of {family if family != 'other' else 'no known family'}, by their weights alone",
            subtitle=[
                f"space {space}; t-SNE of the distances of updates at norm one, spread over the page"
                + ("" if alone else "; a point with a number: copies of one update, or nearly"),
                f"lines: beyond noise and a cosine of {ALIKE:g}, to the nearest and to others of p ≤ {RELATED:g}",
            ],
        ),
    )
    return styled(chart)


def grouped(rows: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> dict[str, str]:
    """LoRA → the first of those that it is a copy of, or nearly, by itself: of a chain of which each is nearly the one
    before, as epochs of a training are, the ends need not be alike. What is the opposite of another stands alone.

    `vectors` (N, D): of the rows.
    """
    found: dict[str, str] = {row["lora"]: row["lora"] for row in rows}
    for row in rows:
        if row["copy_of"] in found and "× -" not in (row["relation"] or ""):
            found[row["lora"]] = row["copy_of"]
    for lora in found:
        while found[found[lora]] != found[lora]:
            found[lora] = found[found[lora]]
    unit = dict(zip(found, _unit(vectors), strict=True))
    firsts: dict[str, list[str]] = {}
    for lora, first in found.items():
        of = firsts.setdefault(first, [])
        near = (other for other in of if np.linalg.norm(unit[lora] - unit[other]) <= NEARLY)
        found[lora] = next(near, lora)
        of += [lora] * (found[lora] == lora)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows at norm one; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _points(
    rows: Sequence[Mapping[str, Any]], group: Mapping[str, str], vectors: np.ndarray, near: pd.DataFrame, seed: int
) -> Placed:
    first = [i for i, row in enumerate(rows) if group[row["lora"]] == row["lora"]]
    shown = [rows[i] for i in first]
    frame = pd.DataFrame([{key: row[key] for key in ("lora", "artist", "genre", "format", "norm")} for row in shown])
    frame["artist"] = frame["artist"].fillna("")
    frame["genre"] = frame["genre"].fillna("")
    frame["kinds"] = [", ".join(row["kinds"]) for row in shown]
    frame["ranks"] = [", ".join(map(str, row["ranks"])) for row in shown]
    members: dict[str, list[str]] = {}
    for lora, of in group.items():
        members.setdefault(of, []).append(lora)
    count = frame["lora"].map(lambda lora: len(members[lora]))
    frame["copies"] = [", ".join(name for name in members[lora] if name != lora) for lora in frame["lora"]]
    frame["size"] = 110.0 * np.sqrt(count)
    short = frame["lora"].map(lambda lora: _short(lora.rsplit("/", 1)[-1]))
    frame["label"] = [name if n == 1 else f"{name} ×{n}" for name, n in zip(short, count, strict=True)]
    near = near.assign(one=near["lora"].map(group), other=near["neighbour"].map(group))
    near = near[near["one"] != near["other"]].sort_values("distance", kind="stable")
    nearest = near.drop_duplicates("one").set_index("one")
    frame["nearest"] = [nearest["neighbour"].get(lora, "") for lora in frame["lora"]]
    frame["cosine"] = [nearest["cosine"].get(lora) for lora in frame["lora"]]
    frame[["x", "y"]] = over_the_page(layout(vectors[first], seed))
    is_nearest = near["other"] == near["one"].map(nearest["other"])
    beyond = near["cosine"] > max(ALIKE, _noise(vectors[first]))
    near = near.assign(beyond=beyond, related=beyond & ((near["p"] <= RELATED) | is_nearest))
    frame["side"] = _sides(frame, count.to_numpy())
    return Placed(frame, members, near, _lines(frame, near[near["related"]]))


def _noise(vectors: np.ndarray) -> float:
    """A cosine that no two unrelated LoRAs reach: BEYOND as far above the median as the LOWEST are below. What is
    related is above, and where nobody knows which are, p counts the related as chance, too. The few that are related
    and below, the opposite ends of a slider, are left out: further below than noise goes by the lowest quarter of
    pairs."""
    unit = _unit(vectors)
    cosine = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    if not len(cosine):
        return 1.0
    middle, quarter = (float(np.quantile(cosine, share)) for share in (0.5, 0.25))
    noise = cosine[cosine >= middle - QUARTERS * (middle - quarter)]
    return middle + BEYOND * (middle - float(np.quantile(noise, LOWEST)))


def _page(points: int) -> tuple[int, int]:
    """Width and height in pixels."""
    part = min(max(math.sqrt(points / FULL), 0.5), 1.0)
    return round(part * WIDTH), round(part * HEIGHT)


def _sides(frame: pd.DataFrame, count: np.ndarray) -> list[str]:
    """On which side of its point each label has room; "" where it has none. What stands for many comes first."""
    width, height = _page(len(frame))
    x = (frame["x"].to_numpy() + EDGE) / (1 + 2 * EDGE) * width
    y = height - (frame["y"].to_numpy() + EDGE) / (1 + 2 * EDGE) * height
    r = np.sqrt(frame["size"].to_numpy() / np.pi)
    points = np.stack([x - r, y - r, x + r, y + r], 1)
    taken = np.zeros((0, 4))
    found = [""] * len(frame)
    for i in np.argsort(-count, kind="stable").tolist():
        wide = LETTER * len(frame["label"].iloc[i])
        for side, (_, (right, down)) in SIDES.items():
            # The middle of the label, and half of what it takes.
            across = x[i] + right * (r[i] + GAP + wide / 2)
            along = y[i] + down * (r[i] + GAP + LINE / 2)
            box = np.array([across - wide / 2, along - LINE / 2, across + wide / 2, along + LINE / 2])
            inside = box.min() >= 0 and box[2] <= width and box[3] <= height
            if inside and not _overlaps(box, taken) and not _overlaps(box, np.delete(points, i, 0)):
                found[i] = side
                taken = np.vstack([taken, box])
                break
    return found


def _overlaps(box: np.ndarray, others: np.ndarray) -> bool:
    """Whether one of the others (n, 4) has something in common with a box (left, top, right, bottom)."""
    return bool(((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(1).any())


def _short(name: str) -> str:
    """Names of people's files differ at their ends as often as at their beginnings."""
    return name if len(name) <= 28 else f"{name[:12]}\u2026{name[-15:]}"


def _lines(frame: pd.DataFrame, near: pd.DataFrame) -> pd.DataFrame:
    """One line for each pair of points of which one is a near neighbour of the other."""
    place = frame.set_index("lora")[["x", "y"]]
    pairs: dict[tuple[str, str], float] = {}
    for one, other, cosine in zip(near["one"], near["other"], near["cosine"], strict=True):
        pair = (min(one, other), max(one, other))
        pairs[pair] = max(pairs.get(pair, 0.0), float(cosine))
    return pd.DataFrame(
        [
            {"x": place.x[a], "y": place.y[a], "x2": place.x[b], "y2": place.y[b], "cosine": cosine}
            for (a, b), cosine in pairs.items()
        ]
    )
