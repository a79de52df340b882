"""Charts of the evaluation: the worth curve, the structure of descriptors, the parts of the weights, and the drift."""

from collections.abc import Mapping

import altair as alt
import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from .. import tables
from ..descriptors import KINDS, PLAIN, WEIGHTS, Descriptor, of_weights, restored
from ..metrics.structure import ARTISTS, LORAS, WITHIN
from ..views import View
from .charts import COLOURS, GREY, INK, styled

SERIES = ["#2b6cb0", "#63a4dc", "#2f855a", "#7bc29a", "#805ad5", "#b79ae8", "#b7791f", "#e0b252"]
PARTS = 40  # of the ablation that are shown
SEEN = {"delta": "updates", "both": "raw factors", "A": "raw A", "B": "raw B"}  # the first that the ablation has
SHOWN = 4  # descriptors of the weights whose level the worth curve is held against


def worth_curve(worth: pa.Table, retrieval: pa.Table) -> ChartType:
    """mAP from m generated pictures of each LoRA, m to the power of two, beside mAP from the weights alone: a panel for
    each extractor, a line for each of its sampler settings."""
    told = tables.metadata(retrieval)
    described, view = restored(told["descriptors"]), View(**told["view"])
    found = retrieval.to_pandas()
    found = found[view.rows(found) & (found.level == "artist") & (found.metric == "mAP")]
    weights = of_weights(described)
    level = found.set_index("descriptor")["value"].reindex(weights)
    # The headline, the plain kernels, and whichever is highest of the rest.
    wanted = [weights[0], *(n for n in weights if described[n].modules == PLAIN)]
    wanted += [name for name in level.sort_values(ascending=False, kind="stable").index if name not in wanted]
    names = [name for name in weights if name in wanted[:SHOWN]]
    curves = worth.to_pandas()
    curves = curves[curves.metric == "mAP"]
    curves = curves.assign(
        extractor=[described[d].extractor for d in curves.descriptor],
        setting=[_series(described[d]) for d in curves.descriptor],
    )
    most = int(curves.pictures.max())
    order = list(dict.fromkeys(curves.setting))
    x = alt.X(
        "pictures:Q",
        scale=alt.Scale(type="log", base=2, domain=[1, most * 1.9]),
        axis=alt.Axis(values=sorted(set(curves.pictures)), format="d", grid=False),
        title="generated pictures of each LoRA",
    )
    y = alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="mAP of artists")
    colour = alt.Color("setting:N", scale=alt.Scale(domain=order, range=SERIES[: 2 * len(order) : 2]), legend=None)
    panels = []
    for extractor in dict.fromkeys(curves.extractor):
        part = curves[curves.extractor == extractor]
        base = alt.Chart(part)
        band = base.mark_area(opacity=0.10).encode(
            x=x, y=alt.Y("low:Q", title="mAP of artists"), y2="high:Q", color=colour
        )
        line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36)).encode(x=x, y=y, color=colour)
        flat = pd.concat(
            [pd.DataFrame({"descriptor": names, "value": level[names].to_numpy(), "pictures": m}) for m in (1, most)]
        )
        rule = (
            alt.Chart(flat)
            .mark_line(strokeDash=[6, 4], strokeWidth=2, color=COLOURS[WEIGHTS])
            .encode(x=x, y=y, detail="descriptor:N")
        )
        # Names at the right end of every line, moved apart where lines are nearer than a line of text is high.
        last = part[part.pictures == part.pictures.max()]
        ends = pd.concat(
            [
                pd.DataFrame({"name": names, "value": level[names].to_numpy(), "tint": COLOURS[WEIGHTS]}),
                pd.DataFrame(
                    {
                        "name": last.setting,
                        "value": last.value,
                        "tint": [SERIES[2 * order.index(setting)] for setting in last.setting],
                    }
                ),
            ]
        )
        label = (
            alt.Chart(_spread(ends.assign(pictures=most)))
            .mark_text(align="left", dx=8, fontSize=11, fontWeight=600)
            .encode(
                x=x,
                y=alt.Y("place:Q", scale=alt.Scale(domain=[0, 1])),
                text="name:N",
                color=alt.Color("tint:N", scale=None),
            )
        )
        title = alt.Title(f"pictures seen by {extractor}", fontSize=12, anchor="start")
        panels.append(
            alt.layer(alt.layer(band, line), rule, label)
            .resolve_scale(color="independent")
            .properties(width=330, height=340, title=title)
        )
    return styled(
        alt.hconcat(*panels, spacing=24).properties(
            title=alt.Title(
                "What is a LoRA worth?",
                subtitle=[
                    "retrieval from m generated pictures of every LoRA, beside retrieval from its weights (dashed)",
                    f"bands: intervals over artists; where a curve meets a dashed line, that many are worth a LoRA; "
                    f"{view.label}",
                ],
            ),
        )
    )


def _series(descriptor: Descriptor) -> str:
    if descriptor.series is None:
        return str(descriptor.source)
    return {"shared": "shared prompts", "own": "own prompts"}[descriptor.series]


def _spread(frame: pd.DataFrame, least: float = 0.035) -> pd.DataFrame:
    """Places of names beside levels that are nearer to each other than a line of text is high."""
    frame = frame.sort_values("value", ascending=False, kind="stable")
    places, above = [], 1.0 + least
    for value in frame["value"]:
        above = min(float(value), above - least)
        places.append(above)
    return frame.assign(place=places)


def structure_matrix(structure: pa.Table, described: Mapping[str, Descriptor]) -> ChartType:
    """Debiased CKA of every pair of descriptors: of all LoRAs, and within artists."""
    names = [n for n, d in described.items() if d.kind in KINDS and d.series is None and d.scale in (None, "unit")]
    frame = structure.to_pandas()
    frame = frame[(frame.metric == "CKA") & frame.left.isin(names) & frame.right.isin(names)]
    both = pd.concat([frame, frame.rename(columns={"left": "right", "right": "left"})])
    order = sorted(names, key=lambda d: KINDS.index(described[d].kind))
    charts = []
    levels = [level for level in (LORAS, ARTISTS, WITHIN) if level in set(frame.level)]
    for number, metric in enumerate(levels):
        part = both[both.level == metric]
        base = alt.Chart(part).encode(
            x=alt.X("left:N", sort=order, title=None, axis=alt.Axis(labelAngle=-60, ticks=False, labelLimit=160)),
            y=alt.Y(
                "right:N",
                sort=order,
                title=None,
                axis=alt.Axis(ticks=False, labels=number == 0, labelLimit=180),
            ),
        )
        cells = base.mark_rect(stroke="#fffdf8", strokeWidth=1).encode(
            color=alt.Color(
                "value:Q",
                scale=alt.Scale(domain=[-1, 0, 1], range=["#2b6cb0", "#f4efe4", "#c8452d"], clamp=True),
                legend=None,
            ),
            tooltip=["left", "right", "level", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("p:Q", format=".3f")],
        )
        text = (
            base.transform_filter("isValid(datum.value)")
            .mark_text(fontSize=8)
            .encode(
                text=alt.Text("value:Q", format=".2f"),
                color=alt.condition("datum.value > 0.55", alt.value("white"), alt.value(INK)),
            )
        )
        charts.append((cells + text).properties(title=metric, width=alt.Step(24), height=alt.Step(24)))
    chart = alt.hconcat(*charts, spacing=16).properties(
        title=alt.Title(
            "Which descriptors have the same geometry?",
            subtitle="debiased linear CKA; 0 is what chance gives; within artists: each LoRA less its artist's mean",
        )
    )
    return styled(chart)


def ablation_chart(ablation: pa.Table) -> ChartType:
    """mAP of parts of the weights (updates where the study has them), beside random parts of as many parameters; single
    modules are left out."""
    frame = ablation.to_pandas()
    frame = frame[frame.metric == "mAP"]
    factor = next((name for name in SEEN if name in set(frame.factor)), "delta")
    frame = frame[frame.factor == factor]
    frame = frame[~frame.block.str.match(r"(unet|transformer|text_encoder\w*)\.")]
    # Of a base of many blocks, the best parts.
    frame = frame.sort_values("value", ascending=False, kind="stable").head(PARTS)
    frame = frame.assign(part=frame.component + " · " + frame.block)
    order = list(frame.sort_values(["value"], ascending=False, kind="stable").part)
    base = alt.Chart(frame).encode(
        y=alt.Y("part:N", sort=order, title=None, axis=alt.Axis(ticks=False, labelLimit=240, labelPadding=8))
    )
    x = alt.X("value:Q", title="mAP of artists", scale=alt.Scale(domain=[0, 1]))
    random = base.mark_bar(height=11, color="#ddd6c8").encode(
        x=alt.X("matched_low:Q", title="mAP of artists"), x2="matched_high:Q"
    )
    middle = base.mark_tick(color=GREY, thickness=2, height=11).encode(x="matched:Q")
    line = base.mark_rule(color=COLOURS["weights"], strokeWidth=2.5, opacity=0.45).encode(x="low:Q", x2="high:Q")
    dots = base.mark_circle(color=COLOURS["weights"], opacity=1).encode(
        x=x, size=alt.Size("share:Q", title="share of parameters", scale=alt.Scale(range=[30, 260]))
    )
    at_chance = base.mark_tick(color=INK, thickness=1.5, height=12, opacity=0.7).encode(x="chance:Q")
    return styled(
        alt.layer(random, middle, line, at_chance, dots).properties(
            width=420,
            height=alt.Step(22),
            title=alt.Title(
                "Which weights tell artists?",
                subtitle=[
                    f"red: {SEEN[factor]} of one component and block, intervals over artists; black ticks: chance",
                    "grey: random modules of as many parameters, their mean and range",
                ],
            ),
        )
    )


def drift_chart(drift: pa.Table, descriptor: Descriptor) -> ChartType:
    """Spread of query scores over that of gallery scores, component by component, under every calibration."""
    frame = drift.to_pandas()
    frame = frame[frame.descriptor == descriptor.name]
    order = list(dict.fromkeys(frame.calibration))
    x = alt.X("component:Q", title="principal component", axis=alt.Axis(grid=False, format="d"))
    colour = alt.Color(
        "calibration:N",
        sort=order,
        scale=alt.Scale(domain=order, range=["#22242a", *SERIES[:7:2]]),
        legend=alt.Legend(title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
    )
    base = alt.Chart(frame)
    # Of few LoRAs some intervals are wide beyond what a chart can show: they are cut off.
    top = max(2.0, min(3.0, 1.1 * float(frame.value.max())))
    y = alt.Y("low:Q", title="spread of queries / spread of gallery", scale=alt.Scale(domain=[0, top]))
    band = base.mark_area(opacity=0.10, clip=True).encode(x=x, y=y, y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2, clip=True).encode(x=x, y="value:Q", color=colour)
    told = base.transform_filter("isValid(datum.predicted)").mark_point(
        size=42, color=INK, filled=False, strokeWidth=1.5
    )
    one = alt.Chart(pd.DataFrame({"y": [1.0]})).mark_rule(color=GREY, strokeDash=[3, 3]).encode(y="y:Q")
    return styled(
        alt.layer(band, one, line, told.encode(x=x, y="predicted:Q")).properties(
            width=460,
            height=300,
            title=alt.Title(
                f"The drift of unseen LoRAs ({descriptor.name})",
                subtitle=[
                    "1: queries spread as the gallery does; bands: intervals over artists",
                    "circles: the closed form, from eigenvalues alone, for what no calibration gives",
                ],
            ),
        )
    )
