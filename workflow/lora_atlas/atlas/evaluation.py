"""Charts of the evaluation: the worth curve, the structure of descriptors, the parts of the weights, and the drift."""

import altair as alt
import pandas as pd
import pyarrow as pa

from .. import tables
from ..embeddings import KINDS
from ..tables import KNOWN
from .charts import COLOURS, GREY, INK, styled

SERIES = ["#2b6cb0", "#63a4dc", "#2f855a", "#7bc29a", "#805ad5", "#b79ae8", "#b7791f", "#e0b252"]
WEIGHTS = {"delta": "#c8452d", "factors": "#e39a7b"}


def worth_curve(worth: pa.Table, retrieval: pa.Table) -> alt.Chart:
    """mAP from m generated pictures of each LoRA, m to the power of two, beside mAP from the weights alone."""
    described = tables.metadata(retrieval)
    found = retrieval.to_pandas()
    found = found[
        (found.scenario == KNOWN)
        & (found.calibration == described["calibration"])
        & (found.level == "artist")
        & (found.metric == "mAP")
        & (found.distance == "L2")
        & found.descriptor.isin(list(WEIGHTS))
    ]
    curves = worth.to_pandas()
    curves = curves[curves.metric == "mAP"]
    order = list(dict.fromkeys(curves.descriptor))
    most = int(curves.pictures.max())
    x = alt.X(
        "pictures:Q",
        scale=alt.Scale(type="log", base=2, domain=[1, most]),
        axis=alt.Axis(values=sorted(set(curves.pictures)), format="d", grid=False),
        title="generated pictures of each LoRA",
    )
    y = alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="mAP of artists")
    colour = alt.Color(
        "descriptor:N",
        sort=order,
        scale=alt.Scale(domain=order, range=SERIES[: len(order)]),
        legend=alt.Legend(title=None, orient="right", symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
    )
    base = alt.Chart(curves)
    band = base.mark_area(opacity=0.05).encode(x=x, y=alt.Y("low:Q", title="mAP of artists"), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36)).encode(x=x, y=y, color=colour)
    # The weights' lines end where the curves end, with their names above them.
    flat = pd.concat([found.assign(pictures=1), found.assign(pictures=most)])
    tint = alt.Color("descriptor:N", scale=alt.Scale(domain=list(WEIGHTS), range=list(WEIGHTS.values())), legend=None)
    weights = alt.Chart(flat)
    rule = weights.mark_line(strokeDash=[6, 4], strokeWidth=2.5).encode(x=x, y=y, color=tint)
    # The better of the two is named above its line, the other below.
    ranked = found.sort_values("value", ascending=False).assign(pictures=1)
    names = [
        alt.Chart(ranked.iloc[[i]])
        .mark_text(align="left", fontWeight=600, fontSize=12, dx=6, dy=dy)
        .encode(x=x, y=y, text="descriptor:N", color=tint)
        for i, dy in list(enumerate([-9, 11]))[: len(ranked)]
    ]
    chart = alt.layer(alt.layer(band, line), alt.layer(rule, *names).resolve_scale(color="shared")).resolve_scale(
        color="independent"
    )
    return styled(
        chart.properties(
            width=520,
            height=340,
            title=alt.Title(
                "What is a LoRA worth?",
                subtitle=[
                    "retrieval from m generated pictures of every LoRA, beside retrieval from its weights (dashed)",
                    "bands: intervals over artists; where a curve meets a dashed line, that many are worth a LoRA",
                ],
            ),
        )
    )


def structure_matrix(structure: pa.Table, kinds: dict[str, str]) -> alt.Chart:
    """Debiased CKA and rank correlation of distances, of every pair of descriptors."""
    frame = structure.to_pandas()
    frame = frame[frame.metric.isin(["CKA", "RSA"])]
    both = pd.concat([frame, frame.rename(columns={"left": "right", "right": "left"})])
    order = sorted(kinds, key=lambda d: KINDS.index(kinds[d]))
    charts = []
    for number, metric in enumerate(["CKA", "RSA"]):
        part = both[both.metric == metric]
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
                scale=alt.Scale(domain=[0, 1], range=["#f4efe4", "#c8452d"], clamp=True),
                legend=None,
            ),
            tooltip=["left", "right", "metric", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("p:Q", format=".3f")],
        )
        text = base.mark_text(fontSize=8).encode(
            text=alt.Text("value:Q", format=".2f"),
            color=alt.condition("datum.value > 0.55", alt.value("white"), alt.value(INK)),
        )
        charts.append((cells + text).properties(title=metric, width=alt.Step(24), height=alt.Step(24)))
    chart = alt.hconcat(*charts, spacing=16).properties(
        title=alt.Title(
            "Which descriptors have the same geometry?",
            subtitle="debiased linear CKA, and Spearman's correlation of all distances (RSA); 0 is what chance gives",
        )
    )
    return styled(chart)


def ablation_chart(ablation: pa.Table) -> alt.Chart:
    """mAP of parts of the weights (updates), beside random parts of as many parameters."""
    frame = ablation.to_pandas()
    frame = frame[(frame.metric == "mAP") & (frame.factor == "delta")]
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
    luck = base.mark_tick(color=INK, thickness=1.5, height=12, opacity=0.7).encode(x="chance:Q")
    return styled(
        alt.layer(random, middle, line, luck, dots).properties(
            width=420,
            height=alt.Step(22),
            title=alt.Title(
                "Which weights tell artists?",
                subtitle=[
                    "red: updates of one component and block, intervals over artists; black ticks: chance",
                    "grey: random modules of as many parameters, their mean and range",
                ],
            ),
        )
    )


def drift_chart(drift: pa.Table, descriptor: str) -> alt.Chart:
    """Spread of query scores over that of gallery scores, component by component, under every calibration."""
    frame = drift.to_pandas()
    frame = frame[frame.descriptor == descriptor]
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
                f"The drift of unseen LoRAs ({descriptor})",
                subtitle=[
                    "1: queries spread as the gallery does; bands: intervals over artists",
                    "circles: the closed form, from eigenvalues alone, for what no calibration gives",
                ],
            ),
        )
    )
