"""What a study's tables say, as findings of its page: a sentence that is made of a table, a chart, and rows to save."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
from altair.typing import ChartType

from ..descriptors import CONTROL, GENERATED, TRAINING, Descriptor, of_weights
from ..metrics.structure import LORAS, WITHIN
from ..views import View
from . import evaluation
from .charts import comparison
from .page import Finding, drawing, wrapped

Read = Mapping[str, pa.Table]
SCORE = ["value", "low", "high"]
# What a difference between two of these numbers is worth, the page cannot say: verdicts ask other seeds.
OWN_SEED = (
    "All of it is this study's own seed, with intervals over artists; which differences held, corrected for all claims "
    "and over the seeds that there are, is in FINDINGS.md."
)


def findings(read: Read, described: Mapping[str, Descriptor], view: View) -> list[Finding]:
    """All that the tables of a study have to say; `read`: name → table."""
    asked: dict[str, Callable[[Read, Mapping[str, Descriptor], View], Finding]] = {
        "retrieval": _comparison, "worth": _worth, "ablation": _ablation, "structure": _structure, "drift": _drift,
        "cost": _cost,
    }  # fmt: skip
    return [make(read, described, view) for table, make in asked.items() if table in read]


def _finding(
    name: str,
    sentence: str,
    chart: ChartType,
    table: str,
    frame: pd.DataFrame,
    columns: list[str],
) -> Finding:
    title = chart.title
    notes = title.subtitle if isinstance(title.subtitle, list) else [title.subtitle]
    return Finding(
        name, title.text, sentence, drawing(chart, f"Chart: {title.text}"), table, columns,
        wrapped(frame[columns].to_dict("records"), columns), tuple(notes),
    )  # fmt: skip


def _headline(retrieval: pa.Table, view: View) -> pd.DataFrame:
    frame = retrieval.to_pandas()
    return frame[view.rows(frame) & (frame.level == "artist") & (frame.metric == "mAP")].dropna(subset=["value"])


def _best(frame: pd.DataFrame, described: Mapping[str, Descriptor], kind: str) -> tuple[str, str] | None:
    own = frame[[name in described and described[name].kind == kind for name in frame.descriptor]]
    if not len(own):
        return None
    row = own.sort_values("value", ascending=False, kind="stable").iloc[0]
    return described[row.descriptor].label, _within(row)


def _within(row: Any) -> str:
    """A score and its interval."""
    return f"{row.value:.2f} ({row.low:.2f}–{row.high:.2f})"


def _comparison(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    frame = _headline(read["retrieval"], view)
    first = frame[frame.descriptor == of_weights(described)[0]] if of_weights(described) else frame[:0]
    words = []
    if len(first):
        row = first.iloc[0]
        words.append(
            f"By its weights alone ({described[row.descriptor].label}) a query LoRA finds its artist's with a mean "
            f"average precision of {_within(row)}, where chance gives {row.chance:.2f}"
        )
    others = {
        GENERATED: "the best descriptor of generated pictures ({}) {}",
        TRAINING: "training pictures ({}), which nobody has who is handed a LoRA, {}",
        CONTROL: "the best control ({}) {}",
    }
    told = [said.format(*best) for kind, said in others.items() if (best := _best(frame, described, kind)) is not None]
    sentence = "; ".join(["; ".join(words), *told]).strip("; ") + f". {OWN_SEED}"
    columns = ["descriptor", *SCORE, "chance", "queries"]
    return _finding(
        "comparison", sentence, comparison(read["retrieval"], read["clustering"]), "retrieval", frame, columns
    )


def _worth(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    chart = evaluation.worth_curve(read["worth"], read["retrieval"])
    frame = read["worth"].to_pandas()
    frame = frame[frame.metric == "mAP"]
    last = frame[frame.pictures == frame.pictures.max()].sort_values("value", ascending=False, kind="stable").iloc[0]
    sentence = (
        f"{int(last.pictures)} pictures of each LoRA, as {described[last.descriptor].label}, reach {_within(last)}"
    )
    if "crossings" in read and of_weights(described):
        crossings = read["crossings"].to_pandas()
        headline = of_weights(described)[0]
        own = crossings[(crossings.metric == "mAP") & (crossings.reference == headline)]
        met = own.dropna(subset=["value"]).sort_values("value")
        if len(met):
            row = met.iloc[0]
            sentence += f"; the weights are worth {row.value:.0f} pictures ({described[row.descriptor].label})"
        elif len(own):
            level = own.iloc[0].reference_value
            sentence += f"; the weights ({level:.2f}) are worth more pictures than the {int(own.most.max())} there are"
    return _finding("worth", f"{sentence}. {OWN_SEED}", chart, "worth", frame, ["descriptor", "pictures", *SCORE])


def _ablation(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    chart = evaluation.ablation_chart(read["ablation"])
    frame = read["ablation"].to_pandas()
    frame = frame[frame.metric == "mAP"].dropna(subset=["value"])
    factor = next((name for name in evaluation.SEEN if name in set(frame.factor)), "delta")
    shown = frame[(frame.factor == factor) & ~frame.block.str.match(evaluation.SINGLE)]
    parts = shown[(shown.component != "all") | (shown.block != "all")]
    whole = shown[(shown.component == "all") & (shown.block == "all")]
    sentence = "No part of the weights was looked at."
    if len(parts):
        best = parts.sort_values("value", ascending=False, kind="stable").iloc[0]
        where = "" if best.component == "all" else f" ({best.component.replace('_', ' ')})"
        sentence = (
            f"The best of {len(parts)} parts, {best.block}{where}, {best.share:.0%} of the parameters, reaches "
            f"{_within(best)}, the best by these very queries"
        )
        if len(whole):
            sentence += f"; all modules as they are {_within(whole.iloc[0])}"
        if pd.notna(best.matched):
            sentence += f"; random modules of as many parameters {best.matched:.2f}"
        sentence += "."
    columns = ["component", "block", "factor", "share", *SCORE, "matched", "matched_low", "matched_high", "chance"]
    return _finding("ablation", sentence, chart, "ablation", frame, columns)


def _structure(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    chart = evaluation.structure_matrix(read["structure"], described)
    frame = read["structure"].to_pandas()
    frame = frame[frame.metric == "CKA"]
    sentence = "1 is the same geometry; what chance gives is 0, and within artists what the table says of each pair."
    names = of_weights(described)
    pictures = [name for name, each in described.items() if each.kind == GENERATED and each.series is None]
    if names and pictures:
        first, told = names[0], []
        for level, words in ((LORAS, "among all LoRAs"), (WITHIN, "among those of one artist")):
            rows = frame[(frame.level == level) & (frame.left == first) & frame.right.isin(pictures)]
            rows = pd.concat(
                [rows, frame[(frame.level == level) & (frame.right == first) & frame.left.isin(pictures)]]
            ).dropna(subset=["value"])
            if len(rows):
                least, most = (f"{rows.null.agg(which):.2f}".replace("-0.00", "0.00") for which in ("min", "max"))
                chance = least if least == most else f"{least} to {most}"
                told.append(f"{rows.value.min():.2f} to {rows.value.max():.2f} {words}, where chance gives {chance}")
        if told:
            sentence = (
                f"The geometry of the weights ({described[first].label}) and that of generated pictures agree by a CKA "
                f"of {', and '.join(told)}; 1 is the same geometry."
            )
    columns = ["level", "left", "right", *SCORE, "null", "null_high", "p"]
    return _finding("structure", sentence, chart, "structure", frame, columns)


def _drift(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    names = [name for name in described if name in set(read["drift"]["descriptor"].to_pylist())]
    headline = described[names[0]]
    chart = evaluation.drift_chart(read["drift"], headline)
    frame = read["drift"].to_pandas()
    frame = frame[frame.descriptor == headline.name]
    none = frame[frame.calibration == "none"]["value"].median()
    others = frame[frame.calibration != "none"].groupby("calibration")["value"].median()
    sentence = (
        "Along the middle one of the principal components, LoRAs that the basis was not fitted on spread "
        f"{none:.2f} times as far as the gallery's"
    )
    if len(others):
        best = min(others.index, key=lambda name: abs(1 - others[name]))
        sentence += f"; with calibration {best} {others[best]:.2f} times"
    columns = ["calibration", "component", "explained", *SCORE, "held_out", "predicted"]
    return _finding("drift", sentence + ".", chart, "drift", frame, columns)


def _cost(read: Read, described: Mapping[str, Descriptor], view: View) -> Finding:
    chart = evaluation.cost_chart(read["cost"])
    frame = read["cost"].to_pandas()
    stages = frame.groupby("stage").agg(seconds=("seconds", "sum"), count=("count", "sum"))
    most = stages.seconds.idxmax()
    share = stages.seconds[most] / stages.seconds.sum()
    sentence = (
        f"{_long(stages.seconds.sum())} of all jobs together; {evaluation.STAGES.get(most, most)} took {share:.0%}"
    )
    if "train" in stages.index:
        row = stages.loc["train"]
        sentence += f", {row.seconds / row['count']:.1f} s a LoRA" if most == "train" else ""
    if "gram" in stages.index:
        sentence += f"; comparing the weights took {_long(stages.seconds['gram'])}"
    return _finding("cost", sentence + ".", chart, "cost", frame, ["stage", "item", "count", "seconds", "device"])


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
