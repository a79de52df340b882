"""Charts of the evaluation: the worth curve, the structure of descriptors, the parts of the weights, and the drift."""

from collections.abc import Mapping
from string import ascii_uppercase

import altair as alt
import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from .. import tables
from ..descriptors import GENERATED, KINDS, PLAIN, WEIGHTS, Descriptor, of_weights, restored
from ..metrics.structure import ARTISTS, LORAS, WITHIN
from ..views import View
from .charts import COLOURS, GREY, INK, PAPER, labels, styled

SERIES = ["#2b6cb0", "#63a4dc", "#2f855a", "#7bc29a", "#805ad5", "#b79ae8", "#b7791f", "#e0b252"]
ON_CELLS = "#22242b"  # ink that stays dark on a dark page
DIVERGING = ["#1d4f91", "#8fb8e0", "#f6f2ea", "#efab8c", "#b5371f"]
SINGLE = r"(unet|transformer|text_encoder\w*)\."  # blocks that are one module
PARTS = 40  # of the ablation that are shown
SEEN = {"delta": "updates", "both": "raw factors", "A": "raw A", "B": "raw B"}  # the first that the ablation has
STAGES = {
    "train": "training LoRAs",
    "generate": "generating pictures",
    "features": "looking at pictures",
    "gram": "inner products of the weights",
    "base": "asking the base about its layers",
    "attribution": "asking the base about pictures",
}
SHOWN = 4  # descriptors of the weights whose level the worth curve is held against


def worth_curve(worth: pa.Table, retrieval: pa.Table) -> ChartType:
    """mAP from m generated pictures of each LoRA, m to the power of two, beside mAP from the weights alone: a panel for
    each extractor and each of its sampler settings, so that no interval lies on another."""
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
    letters = dict(zip(names, ascii_uppercase, strict=False))
    curves = worth.to_pandas()
    curves = curves[curves.metric == "mAP"]
    curves = curves.assign(
        extractor=[described[d].extractor for d in curves.descriptor],
        setting=[_series(described[d]) for d in curves.descriptor],
        label=[described[d].label for d in curves.descriptor],
    )
    most = int(curves.pictures.max())
    order = list(dict.fromkeys(curves.extractor))
    tints = {extractor: SERIES[2 * i % len(SERIES)] for i, extractor in enumerate(order)}
    columns = min(4, max(curves.groupby("extractor").descriptor.nunique()))
    flat = pd.concat(
        [pd.DataFrame({"descriptor": names, "value": level[names].to_numpy(), "pictures": m}) for m in (1, most)]
    )
    chance = next(iter(found.chance.dropna()), None)
    ends = _spread(pd.DataFrame({"name": names, "value": level[names].to_numpy()}))
    ends = ends.assign(letter=ends.name.map(letters), start=most * 1.06, end=most * 1.3)
    panels = [
        _worth_panel(part, flat, ends, most, tints[part.extractor.iloc[0]], chance)
        for extractor in order
        for _, part in curves[curves.extractor == extractor].groupby("descriptor", sort=False)
    ]
    legend = [f"{letters[name]}: {described[name].label} ({level[name]:.2f})" for name in names]
    return styled(
        alt.concat(*panels, columns=columns, spacing=20).properties(
            title=alt.Title(
                "What is a LoRA worth?",
                subtitle=[
                    "curves: retrieval from m generated pictures of every LoRA, with intervals over artists; "
                    "dashed: from its weights alone; dotted: chance",
                    f"where a curve meets a dashed line, that many pictures are worth a LoRA; {view.label}",
                    *legend,
                ],
            ),
        )
    )


def _worth_panel(
    part: pd.DataFrame, flat: pd.DataFrame, ends: pd.DataFrame, most: int, tint: str, chance: float | None
) -> ChartType:
    """One curve with its interval, and the levels of the weights, which letters name, and of chance."""
    x = alt.X(
        "pictures:Q",
        scale=alt.Scale(type="log", base=2, domain=[1, most * 1.7], nice=False),
        axis=alt.Axis(values=sorted(set(part.pictures)), format="d", grid=False),
        title="generated pictures of each LoRA",
    )
    y = alt.Y("value:Q", scale=alt.Scale(domain=[0, 1]), title="mAP of artists", axis=alt.Axis(tickCount=5))
    base = alt.Chart(part)
    band = base.mark_area(opacity=0.16, color=tint).encode(x=x, y=alt.Y("low:Q", title="mAP of artists"), y2="high:Q")
    line = base.mark_line(strokeWidth=2.2, color=tint).encode(x=x, y=y)
    dots = base.mark_circle(size=42, color=tint, opacity=1).encode(
        x=x, y=y, tooltip=["label", "pictures", alt.Tooltip("value:Q", format=".3f")]
    )
    rule = (
        alt.Chart(flat)
        .mark_line(strokeDash=[6, 4], strokeWidth=1.6, color=COLOURS[WEIGHTS])
        .encode(x=x, y=y, detail="descriptor:N")
    )
    at_chance = base.mark_rule(strokeDash=[1, 3], strokeWidth=1.4, color=GREY)
    known = [] if chance is None else [at_chance.encode(y=alt.datum(float(chance)))]
    # Letters stand at the ends of their lines, moved apart where these are nearer than a letter is high.
    beside = alt.Chart(ends)
    place = alt.Y("place:Q", scale=alt.Scale(domain=[0, 1]))
    leader = beside.mark_rule(strokeWidth=0.8, color=COLOURS[WEIGHTS]).encode(
        x=alt.X("start:Q", title="generated pictures of each LoRA"), x2="end:Q", y=y, y2="place:Q"
    )
    letter = beside.mark_text(align="left", dx=3, fontSize=11, fontWeight=600, color=COLOURS[WEIGHTS]).encode(
        x=alt.X("end:Q", title="generated pictures of each LoRA"), y=place, text="letter:N"
    )
    title = alt.Title(
        str(part.label.iloc[0]).replace(f", {int(part.pictures.max())} pictures", ""),
        fontSize=12,
        anchor="start",
        limit=310,
    )
    return alt.layer(*known, band, rule, line, dots, leader, letter).properties(width=250, height=220, title=title)


def _series(descriptor: Descriptor) -> str:
    if descriptor.series is None:
        return str(descriptor.source)
    return {"shared": "shared prompts", "own": "own prompts"}[descriptor.series]


def _spread(frame: pd.DataFrame, least: float = 0.06) -> pd.DataFrame:
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
    words = labels(names, described)
    both = both.assign(row=both.right.map(words), column=both.left.map(words))
    order = [words[name] for name in sorted(names, key=lambda d: KINDS.index(described[d].kind))]
    charts = []
    levels = [level for level in (LORAS, ARTISTS, WITHIN) if level in set(frame.level)]
    for number, metric in enumerate(levels):
        part = both[both.level == metric]
        base = alt.Chart(part).encode(
            # One below the other, on a page that is higher than wide; columns are named once, below them all.
            x=alt.X(
                "column:N",
                sort=order,
                title=None,
                axis=alt.Axis(labelAngle=-60, ticks=False, labels=number == len(levels) - 1, labelLimit=400),
            ),
            y=alt.Y("row:N", sort=order, title=None, axis=alt.Axis(ticks=False, labelLimit=400)),
        )
        cells = base.mark_rect(stroke=PAPER, strokeWidth=1).encode(
            color=alt.Color(
                "value:Q",
                # Five tones: between three, a weak negative is hardly told from none.
                scale=alt.Scale(domain=[-1, -0.5, 0, 0.5, 1], range=DIVERGING, clamp=True),
                legend=None,
            ),
            tooltip=[
                "column",
                "row",
                alt.Tooltip("value:Q", format=".3f"),
                alt.Tooltip("null:Q", format=".3f"),
                alt.Tooltip("p:Q", format=".3f"),
            ],
        )
        text = (
            base.transform_filter("isValid(datum.value)")
            .mark_text(fontSize=8, aria=False)
            .encode(
                text=alt.Text("value:Q", format=".2f"),
                color=alt.condition("abs(datum.value) > 0.7", alt.value("white"), alt.value(ON_CELLS)),
                # What chance reaches, too.
                opacity=alt.condition("datum.value > datum.null_high", alt.value(1.0), alt.value(0.45)),
            )
        )
        charts.append((cells + text).properties(title=metric, width=alt.Step(24), height=alt.Step(24)))
    chart = alt.vconcat(*charts, spacing=16).properties(
        title=alt.Title(
            "Which descriptors have the same geometry?",
            subtitle="debiased linear CKA; pale numbers: no more than chance reaches, which within artists is not 0; "
            "there each LoRA is less its artist's mean",
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
    frame = frame[~frame.block.str.match(SINGLE)]
    # Of a base of many blocks, the best parts.
    frame = frame.sort_values("value", ascending=False, kind="stable").head(PARTS)
    frame = frame.assign(part=frame.component.str.replace("_", " ") + " · " + frame.block)
    order = list(frame.sort_values(["value"], ascending=False, kind="stable").part)
    base = alt.Chart(frame).encode(
        y=alt.Y("part:N", sort=order, title=None, axis=alt.Axis(ticks=False, labelLimit=240, labelPadding=8))
    )
    x = alt.X("value:Q", title="mAP of artists", scale=alt.Scale(domain=[0, 1]))
    # What is held against the result is thin, pale and below it.
    random = base.mark_rule(color="#cfc8ba", strokeWidth=1.5, yOffset=6).encode(
        x=alt.X("matched_low:Q", title="mAP of artists"), x2="matched_high:Q"
    )
    middle = base.mark_tick(color=GREY, thickness=1.5, height=7, yOffset=6).encode(x="matched:Q")
    line = base.mark_rule(color=COLOURS["weights"], strokeWidth=3, opacity=0.5).encode(x="low:Q", x2="high:Q")
    dots = base.mark_circle(color=COLOURS["weights"], opacity=1, tooltip=True).encode(
        tooltip=["part", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("share:Q", format=".1%")],
        x=x,
        size=alt.Size("share:Q", title="share of parameters", scale=alt.Scale(range=[30, 260])),
    )
    at_chance = base.mark_tick(color=INK, thickness=1.5, height=12, opacity=0.7).encode(x="chance:Q")
    return styled(
        alt.layer(random, middle, line, at_chance, dots).properties(
            width=420,
            height=alt.Step(22),
            title=alt.Title(
                "Which weights tell artists?",
                subtitle=[
                    f"red: {SEEN[factor]} of one component and block, intervals over artists; upright ticks: chance",
                    "grey, below: random modules of as many parameters, their mean and range",
                ],
            ),
        )
    )


def drift_chart(drift: pa.Table, descriptor: Descriptor) -> ChartType:
    """Spread of query scores over that of gallery scores, component by component: a panel for each calibration, on a
    scale of ratios, whole."""
    frame = drift.to_pandas()
    frame = frame[frame.descriptor == descriptor.name]
    order = list(dict.fromkeys(frame.calibration))
    components = sorted(set(frame.component))
    tints = dict(zip(order, [INK, *SERIES[::2] * len(order)], strict=False))
    floor = 2.0**-5
    frame = frame.assign(**{name: frame[name].clip(lower=floor, upper=1 / floor) for name in ("low", "value", "high")})
    domain = [min(0.5, float(frame.low.min())) * 0.9, max(2.0, float(frame.high.max())) * 1.1]
    step = max(1, len(components) // 6)
    x = alt.X(
        "component:Q",
        title="principal component",
        scale=alt.Scale(domain=[components[0] - 0.5, components[-1] + 0.5], nice=False, zero=False),
        axis=alt.Axis(grid=False, format="d", values=components[::step]),
    )
    ticks = alt.Axis(values=[2.0**k for k in range(-5, 6)], format="~r")
    ratio = alt.Scale(type="log", base=2, domain=domain, nice=False)
    panels = []
    for calibration in order:
        part = frame[frame.calibration == calibration]
        base, tint = alt.Chart(part), tints[calibration]
        y = alt.Y("value:Q", title="queries / gallery", scale=ratio, axis=ticks)
        band = base.mark_area(opacity=0.16, color=tint).encode(
            x=x, y=alt.Y("low:Q", title="queries / gallery", scale=ratio, axis=ticks), y2="high:Q"
        )
        one = base.mark_rule(color=GREY, strokeDash=[3, 3]).encode(y=alt.datum(1.0))
        line = base.mark_line(strokeWidth=2.2, color=tint).encode(x=x, y=y)
        told = base.transform_filter("isValid(datum.predicted)").mark_point(
            size=40, color=INK, filled=False, strokeWidth=1.5
        )
        title = "no calibration" if calibration == "none" else f"calibration {calibration}"
        panels.append(
            alt.layer(band, one, line, told.encode(x=x, y="predicted:Q")).properties(
                width=230, height=190, title=alt.Title(title, fontSize=12, anchor="start")
            )
        )
    return styled(
        alt.concat(*panels, columns=3, spacing=20).properties(
            title=alt.Title(
                "The drift of unseen LoRAs",
                subtitle=[
                    "spread of queries over that of the gallery, 1: alike; bands: intervals over artists; "
                    + descriptor.label,
                    "circles: the closed form, from eigenvalues alone, for what no calibration gives",
                ],
            ),
        )
    )


def cost_chart(cost: pa.Table) -> ChartType:
    """Where a study's time went: seconds of all jobs of each stage."""
    frame = cost.to_pandas()
    frame = frame.assign(job=[STAGES.get(stage, stage) for stage in frame.stage])
    frame = frame.groupby("job", as_index=False).agg(seconds=("seconds", "sum"), count=("count", "sum"))
    frame = frame.assign(minutes=frame.seconds / 60).sort_values("seconds", ascending=False)
    base = alt.Chart(frame).encode(
        y=alt.Y("job:N", sort=list(frame.job), title=None, axis=alt.Axis(ticks=False, labelLimit=300, labelPadding=8))
    )
    bars = base.mark_bar(height=12, color=COLOURS[GENERATED]).encode(
        x=alt.X("minutes:Q", title="minutes of all jobs together"),
        tooltip=["job", alt.Tooltip("minutes:Q", format=".1f"), "count"],
    )
    words = base.mark_text(align="left", dx=5, fontSize=11, color=INK).encode(
        x="minutes:Q", text=alt.Text("minutes:Q", format=",.1f")
    )
    return styled(
        alt.layer(bars, words).properties(
            width=460,
            height=alt.Step(24),
            title=alt.Title("What did it cost?", subtitle="minutes that jobs took, processes' starts included"),
        )
    )
