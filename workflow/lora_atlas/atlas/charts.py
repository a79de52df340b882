"""Charts: the map of the weights with the painters beside it, and the comparison of descriptors.

Vega-Lite through Altair, drawn by vl-convert: PNG and SVG without a browser. Colours carry meaning once: the hue is
the genre, the shade is the artist within it.
"""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from .. import tables
from ..descriptors import KINDS, Descriptor, restored
from ..views import View

INK, GREY, PAPER, LINE = "#22242a", "#70747e", "#fffdf8", "#ece7dc"
COLOURS = dict(zip(KINDS, ("#c8452d", "#e39a7b", "#2b6cb0", "#7a8a99", "#8f897e"), strict=True))
THUMBNAIL = 96  # pixels
ALONE = "a query's pictures alone"
STAR = "M0,-1L0.24,-0.33L0.95,-0.31L0.38,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.38,0.12L-0.95,-0.31L-0.24,-0.33Z"
MARKS = {"gallery": ("circle", 110), "query": ("diamond", 150), ALONE: (STAR, 130)}  # shape and size
SPOKEN_FOR = 4  # LoRAs among which pictures are placed


def weight_map(
    embeddings: pa.Table,
    descriptor: Descriptor,
    view: View,
    painters: Mapping[str, str],
    *,
    asked: Mapping[str, Mapping[str, float]] | None = None,
    seed: int,
) -> ChartType:
    """All LoRAs in two dimensions: genres as hulls, artists as colours, queries as diamonds.

    The vectors of all LoRAs under the view are laid out by t-SNE (van der Maaten & Hinton 2008) from a principal
    component start: near means alike, far means only "not near". `painters` maps artists to a picture's data URI.
    `asked`: a query's LoRA → LoRA → how far that stands out by one gradient of the query's pictures alone, which are
    drawn as a star among the LoRAs that they speak most for.
    """
    rows = _vectors(embeddings, descriptor.name, view)
    frame = pd.DataFrame([{k: row[k] for k in ("lora", "artist", "genre", "split")} for row in rows])
    frame["genre"] = frame["genre"].fillna("")
    frame[["x", "y"]] = layout(np.array([row["vector"] for row in rows], float), seed)
    colours = artist_colours(frame)
    artist_scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    span = max(np.ptp(frame["x"]), np.ptp(frame["y"])) * 0.58
    middle = {axis: (frame[axis].min() + frame[axis].max()) / 2 for axis in "xy"}
    x, y = (
        alt.X("x:Q", axis=None, scale=alt.Scale(domain=[middle["x"] - span, middle["x"] + span])),
        alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[middle["y"] - span, middle["y"] + span])),
    )
    layers = []
    marks = pd.concat([frame, _placed(frame, asked)], ignore_index=True) if asked else frame
    kinds = [kind for kind in MARKS if kind in set(marks["split"])]
    if frame["genre"].nunique() > 1:
        tones = {genre: colours[part["artist"].iloc[0]] for genre, part in frame.groupby("genre")}
        hulls = pd.DataFrame(
            [
                {"genre": genre, "colour": tones[genre], "order": i, "x": px, "y": py}
                for genre, part in frame.groupby("genre")
                for i, (px, py) in enumerate(_hull(part[["x", "y"]].to_numpy(), span * 0.04))
            ]
        )
        layers.append(
            alt.Chart(hulls)
            .mark_line(filled=True, opacity=0.10, strokeWidth=0, interpolate="linear-closed")
            .encode(x=x, y=y, order="order:Q", detail="genre:N", color=alt.Color("colour:N", scale=None))
        )
    points = alt.Chart(marks).mark_point(filled=True, opacity=0.92, strokeWidth=0.7, stroke="white")
    layers.append(
        points.encode(
            x=x,
            y=y,
            color=alt.Color("artist:N", scale=artist_scale, legend=None),
            shape=alt.Shape(
                "split:N",
                scale=alt.Scale(domain=kinds, range=[MARKS[kind][0] for kind in kinds]),
                legend=alt.Legend(
                    title=None, orient="bottom", symbolFillColor=GREY, symbolStrokeWidth=0, symbolSize=110
                ),
            ),
            size=alt.Size("split:N", scale=alt.Scale(domain=kinds, range=[MARKS[kind][1] for kind in kinds])),
            tooltip=["lora", "artist", "genre", "split"],
        )
    )
    count = frame["artist"].nunique()
    chart = alt.layer(*layers).properties(
        width=560,
        height=560,
        title=alt.Title(
            f"{len(frame)} LoRAs of {count} artists, by their weights alone",
            subtitle=[f"{descriptor.label}; t-SNE of their distances, {view.label}"],
        ),
    )
    return styled(
        alt.hconcat(chart, _painters(frame, colours, painters), spacing=24).resolve_scale(color="independent")
    )


def _placed(frame: pd.DataFrame, asked: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Rows for sets of pictures: at the mean place of the LoRAs that they speak most for, the more the nearer."""
    places = frame.set_index("lora")
    rows = []
    for lora, prominence in asked.items():
        most = sorted(prominence, key=lambda other: -prominence[other])[:SPOKEN_FOR]
        weights = np.array([max(prominence[other], 0.0) for other in most]) + 1e-9
        x, y = weights @ places.loc[most, ["x", "y"]].to_numpy(float) / weights.sum()
        row = places.loc[lora]
        rows.append({"lora": lora, "artist": row["artist"], "genre": row["genre"], "split": ALONE, "x": x, "y": y})
    return pd.DataFrame(rows)


def _painters(frame: pd.DataFrame, colours: Mapping[str, str], painters: Mapping[str, str]) -> ChartType:
    """The legend: every artist with one painting, in columns by genre."""
    artists = frame.drop_duplicates("artist").sort_values(["genre", "artist"])
    columns = 3 if len(artists) > 8 else 2
    cells = pd.DataFrame(
        [
            {
                "artist": row.artist,
                "genre": row.genre,
                "url": painters[row.artist],
                "colour": colours[row.artist],
                "column": i % columns,
                "row": -(i // columns),
            }
            for i, row in enumerate(artists.itertuples())
        ]
    )
    rows = int(-cells["row"].min()) + 1
    step = min(140, 560 // rows)
    side = min(92, step - 34)
    base = alt.Chart(cells).encode(x=alt.X("column:O", axis=None), y=alt.Y("row:O", axis=None, sort="descending"))
    frames = base.mark_square(size=(side + 8) ** 2, opacity=1).encode(color=alt.Color("colour:N", scale=None))
    pictures = base.mark_image(width=side, height=side).encode(url="url:N")
    name = base.mark_text(dy=side / 2 + 13, fontSize=11, fontWeight=600, color=INK).encode(text="artist:N")
    genre = base.mark_text(dy=side / 2 + 25, fontSize=10, color=GREY).encode(text="genre:N")
    return alt.layer(frames, pictures, name, genre).properties(width=columns * 108, height=rows * step)


def comparison(retrieval: pa.Table, clustering: pa.Table) -> ChartType:
    """Descriptors side by side: retrieval mAP and Ward ARI of artists, with intervals and chance."""
    told = tables.metadata(retrieval)
    kinds, view = told["kinds"], View(**told["view"])
    words = labels(kinds, restored(told["descriptors"]))
    found = retrieval.to_pandas()
    found = found[view.rows(found) & (found.level == "artist") & (found.metric == "mAP")]
    grouped = clustering.to_pandas()
    grouped = grouped[grouped.scenario == view.together]
    grouped = grouped[(grouped.level == "artist") & (grouped.algorithm == "Ward") & (grouped.metric == "ARI")]
    panels = {"retrieval: mAP": found, "clustering: ARI (Ward)": grouped}
    # Best first within a kind, and the kinds in the order of the argument, so that like stands beside like.
    order = sorted(kinds, key=lambda d: (KINDS.index(kinds[d]), -_value(found, d)))
    charts = []
    for number, (title, frame) in enumerate(panels.items()):
        frame = frame[frame.descriptor.isin(order)].assign(
            kind=lambda f: f.descriptor.map(kinds), label=lambda f: f.descriptor.map(words)
        )
        frame = frame[["descriptor", "label", "kind", "value", "low", "high", "chance"]]
        y = alt.Y(
            "label:N",
            sort=[words[name] for name in order],
            title=None,
            axis=alt.Axis(labels=number == 0, ticks=False, domain=False, labelLimit=400, labelPadding=10),
        )
        scale = alt.Scale(domain=[min(0.0, float(frame["low"].min(skipna=True))), 1.0])
        colour = alt.Color(
            "kind:N",
            scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
            legend=alt.Legend(title=None, orient="top", direction="horizontal", symbolOpacity=1)
            if number == 0
            else None,
        )
        base = alt.Chart(frame).encode(y=y)
        lines = base.mark_rule(strokeWidth=2.5, opacity=0.45).encode(
            x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", color=colour
        )
        dots = base.mark_circle(size=95, opacity=1).encode(
            x=alt.X("value:Q", scale=scale),
            color=colour,
            tooltip=["label", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
                     alt.Tooltip("high:Q", format=".3f")],
        )  # fmt: skip
        numbers = base.mark_text(dy=-9, fontSize=9, color=INK).encode(
            x=alt.X("value:Q", scale=scale), text=alt.Text("value:Q", format=".2f")
        )
        at_chance = base.mark_tick(color=INK, thickness=1.5, height=12, opacity=0.7).encode(
            x=alt.X("chance:Q", scale=scale)
        )
        charts.append(alt.layer(lines, at_chance, dots, numbers).properties(width=300, height=alt.Step(26)))
    chart = alt.hconcat(*charts, spacing=20).properties(
        title=alt.Title(
            "How well each description of a LoRA tells artists",
            subtitle=[
                f"lines: intervals over artists; upright ticks: chance; {view.label}",
                "descriptors of training pictures know what nobody knows who is handed a LoRA: an upper bound",
            ],
        )
    )
    return styled(chart)


def labels(names: Iterable[str], described: Mapping[str, Descriptor]) -> dict[str, str]:
    """Descriptor → its name in words; where two would be called alike, or nothing else is known, the name itself."""
    found = {name: described[name].label if name in described else name for name in names}
    often = Counter(found.values())
    return {name: label if often[label] == 1 else f"{label} ({name})" for name, label in found.items()}


def _value(frame: pd.DataFrame, descriptor: str) -> float:
    values = frame.loc[frame.descriptor == descriptor, "value"].dropna()
    return float(values.iloc[0]) if len(values) else -1.0


def save(chart: ChartType, path: str | Path) -> None:
    """Write a chart as .png (twice its size in pixels) or .svg, atomically."""
    import vl_convert

    path = Path(path)
    specification = chart.to_dict()
    if path.suffix == ".svg":
        data = vl_convert.vegalite_to_svg(specification).encode()
    elif path.suffix == ".png":
        data = vl_convert.vegalite_to_png(specification, scale=2)
    else:
        raise ValueError(f"{path}: charts are .png or .svg")
    with tables.replacing(path) as temporary:
        temporary.write_bytes(data)


def thumbnail(pictures: pa.Table) -> str:
    """Data URI of an artist's first kept picture, as a small square PNG."""
    from PIL import Image

    from ..pictures.decode import crop_square, decode

    first = next(row for row in pictures.to_pylist() if row["status"] == "kept")
    small = crop_square(decode(first["image"]["bytes"], min_side=1), THUMBNAIL)
    buffer = io.BytesIO()
    (small if isinstance(small, Image.Image) else Image.fromarray(small)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def artist_colours(frame: pd.DataFrame) -> dict[str, str]:
    """A colour for each artist: hues evenly over genres, shades within one; over artists where there are no genres."""
    import colorsys

    pairs = frame[["genre", "artist"]].drop_duplicates().sort_values(["genre", "artist"])
    if pairs["genre"].nunique() == 1:
        pairs = pairs.assign(genre=pairs["artist"])
    genres = list(dict.fromkeys(pairs["genre"]))
    colours = {}
    for number, genre in enumerate(genres):
        artists = pairs.loc[pairs.genre == genre, "artist"]
        for shade, artist in enumerate(artists):
            lightness = 0.46 if len(artists) == 1 else 0.36 + 0.30 * shade / (len(artists) - 1)
            r, g, b = colorsys.hls_to_rgb((0.03 + number / len(genres)) % 1, lightness, 0.62)
            colours[artist] = f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"
    return colours


def _vectors(embeddings: pa.Table, descriptor: str, view: View) -> Sequence[dict[str, Any]]:
    rows = [row for row in embeddings.to_pylist() if row["scenario"] == view.together]
    if not rows:
        raise ValueError(f"{descriptor}: no embeddings of scenario {view.together!r}")
    return rows


def layout(X: np.ndarray, seed: int) -> np.ndarray:
    """Places (n, 2) of vectors (n, d): t-SNE (van der Maaten & Hinton 2008); of fewer than 5, two coordinates."""
    from sklearn.manifold import TSNE

    if X.shape[1] < 2:  # the start needs two
        X = np.pad(X, ((0, 0), (0, 2 - X.shape[1])))
    if len(X) < 5:
        return X[:, :2]
    perplexity = min(15.0, (len(X) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed % 2**32).fit_transform(X.astype(np.float32))


def _hull(points: np.ndarray, margin: float) -> np.ndarray:
    """Outline (m, 2) of the points, rounded off and widened by a margin; a circle's outline where they are few."""
    from scipy.spatial import ConvexHull, QhullError

    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = margin * np.stack([np.cos(angles), np.sin(angles)], 1)
    wide = (points[:, None] + ring).reshape(-1, 2)
    try:
        return wide[ConvexHull(wide).vertices]
    except QhullError:
        return wide


def styled(chart: ChartType) -> ChartType:
    return (
        chart.configure(background=PAPER, font="Helvetica Neue, Helvetica, Arial, sans-serif", padding=18)
        .configure_view(stroke=None)
        .configure_title(color=INK, fontSize=17, anchor="start", subtitleColor=GREY, subtitleFontSize=12, offset=14)
        .configure_axis(
            gridColor=LINE, labelColor=INK, titleColor=INK, titleFontWeight="normal", domain=False, labelFlush=False
        )
        .configure_legend(labelColor=INK)
    )


def unframed(chart: ChartType) -> ChartType:
    """A chart as it stands in a page, which has a title and a ground of its own."""
    bare = chart.copy(deep=True)
    bare.title = alt.Undefined
    bare.config.background = "transparent"
    bare.config.padding = 4
    return bare
