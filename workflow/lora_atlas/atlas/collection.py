"""The map of a folder of LoRAs: who is near whom, by the weights alone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from ..collection.spaces import MAPPED
from .charts import GREY, INK, PAPER, artist_colours, layout, styled

NAMED = 60  # LoRAs up to which every point has its name beside it
RELATED, ALIKE = 0.05, 0.1  # a line is drawn to a neighbour of p up to this, and to the nearest of a cosine above that
SIZE = 720  # pixels


def collection_map(
    rows: Sequence[Mapping[str, Any]], embeddings: pa.Table, neighbours: pa.Table, *, seed: int
) -> ChartType:
    """LoRAs of one space in two dimensions, with lines between those that are nearer than chance.

    `rows` of the table "loras", in the order of `embeddings`. Colours are artists (folders) where there are several.
    """
    frame = pd.DataFrame([{key: row[key] for key in ("lora", "artist", "genre", "format", "norm")} for row in rows])
    frame["artist"] = frame["artist"].fillna("")
    frame["genre"] = frame["genre"].fillna("")
    frame["kinds"] = [", ".join(row["kinds"]) for row in rows]
    frame["ranks"] = [", ".join(map(str, row["ranks"])) for row in rows]
    frame["copy"] = [f"{row['relation']} as {row['copy_of']}" if row["copy_of"] else "" for row in rows]
    frame["short"] = [_short(row["lora"].rsplit("/", 1)[-1]) for row in rows]
    near = neighbours.to_pandas()
    first = near[near["rank"] == 1].set_index("lora")
    frame["nearest"] = frame["lora"].map(first["neighbour"]).fillna("")
    frame["cosine"] = frame["lora"].map(first["cosine"])
    vectors = np.array(embeddings["vector"].to_pylist(), float)
    frame[["x", "y"]] = layout(vectors, seed)
    span = max(np.ptp(frame["x"]), np.ptp(frame["y"]), 1e-6) * 0.6
    middle = {axis: (frame[axis].min() + frame[axis].max()) / 2 for axis in "xy"}
    domain = {axis: alt.Scale(domain=[middle[axis] - span, middle[axis] + span]) for axis in "xy"}
    x, y = alt.X("x:Q", axis=None, scale=domain["x"]), alt.Y("y:Q", axis=None, scale=domain["y"])
    layers = []
    lines = _lines(frame, near)
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
        base.mark_circle(size=120, opacity=0.9, stroke="white", strokeWidth=0.8).encode(
            color=colour,
            tooltip=[
                "lora", "artist", "genre", "format", "kinds", "ranks", alt.Tooltip("norm:Q", format=".3g"), "nearest",
                alt.Tooltip("cosine:Q", format=".4f"), "copy",
            ],
        )
    )  # fmt: skip
    if len(frame) <= NAMED:
        layers.append(base.mark_text(dy=-11, fontSize=10, color=INK).encode(text="short:N"))
    space, family = rows[0]["space"], rows[0]["family"]
    chart = alt.layer(*layers).properties(
        width=SIZE,
        height=SIZE,
        title=alt.Title(
            f"{len(frame)} LoRAs of {family if family != 'other' else 'no known family'}, by their weights alone",
            subtitle=[
                f"space {space}; t-SNE of the distances of updates at norm one",
                f"lines: neighbours nearer than chance (p ≤ {RELATED:g}), or nearest and of a cosine above {ALIKE:g}",
            ],
        ),
    )
    return styled(chart.interactive() if len(frame) > NAMED else chart)


def index(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A page that leads to the maps of spaces: space → rows of the table "loras"."""
    parts = []
    for space, rows in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        copies = sum(row["copy_of"] is not None for row in rows)
        count = "1 LoRA" if len(rows) == 1 else f"{len(rows)} LoRAs"
        family = rows[0]["family"]
        words = f"{count} of {family if family != 'other' else 'no known family'}"
        words += f", {copies} of them copies, or nearly" if copies else ""
        head = f"<h2>{escape(space)}</h2><p>{escape(words)}</p>"
        if len(rows) >= MAPPED:
            picture = f'<img src="{quote(space)}/map.png" alt="map of {escape(words)}" loading="lazy">'
            parts.append(f'<section>{head}<a href="{quote(space)}/atlas.html">{picture}</a></section>')
        else:
            names = "".join(f"<li>{escape(row['lora'])}</li>" for row in rows)
            parts.append(f"<section>{head}<p>too few for a map:</p><ul>{names}</ul></section>")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>LoRA Atlas</title>\n<style>'
        f"body {{ margin: 2rem; background: {PAPER}; color: {INK}; font: 16px Helvetica, Arial, sans-serif }}"
        "section { display: inline-block; vertical-align: top; width: 26rem; margin: 0 2rem 2rem 0 }"
        "img { width: 100% } h2 { margin: 0 } li { overflow-wrap: anywhere }</style>\n"
        f"<h1>LoRAs, by base</h1>\n{chr(10).join(parts)}\n</html>\n"
    )


def _short(name: str) -> str:
    """Names of people's files differ at their ends as often as at their beginnings."""
    return name if len(name) <= 28 else f"{name[:12]}\u2026{name[-15:]}"


def _lines(frame: pd.DataFrame, near: pd.DataFrame) -> pd.DataFrame:
    """One line for each pair of which one is a near neighbour of the other."""
    place = frame.set_index("lora")[["x", "y"]]
    # With few LoRAs no p-value can be small: the nearest is then worth a line by its cosine alone.
    known = near[(near["p"] <= RELATED) | ((near["rank"] == 1) & (near["cosine"] > ALIKE))]
    pairs = {
        tuple(sorted(pair)): c for *pair, c in zip(known["lora"], known["neighbour"], known["cosine"], strict=True)
    }
    return pd.DataFrame(
        [
            {"x": place.x[a], "y": place.y[a], "x2": place.x[b], "y2": place.y[b], "cosine": max(float(c), 0.0)}
            for (a, b), c in pairs.items()
        ]
    )
