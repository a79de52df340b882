"""The page FINDINGS.md: claims with their verdicts, then the tables behind them, each with how to read it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..metrics import BEST_CONTROL, worth
from ..summary import seconds_per_lora, seconds_per_picture
from ..tables import KNOWN, replacing
from .claims import claims, scenarios
from .evidence import Evidence, Score, gather, over_seeds, pooled, two

LIMITS = """These are procedural painters and a base model of 64 pixels: what holds here shows that the method works and
where it breaks, and is no measurement of art. No number here reproduces one of the paper's."""


def write(
    path: str | Path,
    folder: str | Path,
    *,
    study: str,
    replicates: Sequence[str],
    variants: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    seed: int,
) -> None:
    """Write the findings of the study in `folder`; `variants`: name → keys that differ. Raises TableError for a table
    that is absent."""
    evidence = gather(folder, replicates, variants, evaluation, seed)
    parts = [part for section in SECTIONS for part in section(evidence)]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join([*_head(study, evidence), *parts]) + "\n")


def _head(study: str, evidence: Evidence) -> Iterator[str]:
    queries = evidence.study.frame("queries")
    seeds = len(evidence.seeds)
    yield f"# What the study `{study}` found"
    yield (
        "Written by a rule from the study's tables (`snakemake findings`); nothing here is typed by hand. "
        f"{queries['artist'].nunique()} artists; {seeds} {'seeds' if seeds > 1 else 'seed'} of the study, each with "
        f"other pictures and other LoRAs; {evidence.level:.0%} intervals, of scores of queries over "
        f"{'seeds and artists' if seeds > 1 else 'artists'}, of all else from the lowest to the highest of the seeds' "
        f"own. Headline setting: calibration `{evidence.calibration}`, L2 distance, the same number of dimensions for "
        "every descriptor."
    )
    if seeds == 1:
        yield (
            "**One seed only.** Intervals know nothing of how another training would have come out; for that run "
            "`snakemake --configfile workflow/studies/findings.yaml`."
        )
    yield LIMITS.replace("\n", " ")


def _claims(evidence: Evidence) -> Iterator[str]:
    yield "## What held, and what did not"
    rows = [[claim.sentence, f"**{claim.verdict}**", claim.numbers] for claim in claims(evidence)]
    yield _table(["claim", "verdict", "numbers"], rows)
    yield (
        "A claim held where its whole interval says so, did not hold where the whole interval says the opposite, and "
        "is undecided otherwise. A claim of being at chance holds where the interval holds the chance level."
    )


def _worth(evidence: Evidence) -> Iterator[str]:
    if not all(study.has("worth_queries") for study in evidence.seeds):
        return
    yield "## What is a LoRA worth?"
    weights = {d: kind for d, kind in evidence.kinds.items() if kind == "weights" and not d.endswith("_raw")}
    curves = [study.table("worth_queries") for study in evidence.seeds]
    references = [worth.references(study.table("queries"), weights, evidence.calibration) for study in evidence.seeds]
    cost = evidence.study.table("cost")
    reading = {d: seconds for d, seconds in seconds_per_lora(cost, evidence.kinds).items() if d in weights}
    rows = worth.pooled(
        list(zip(curves, references, strict=True)),
        seconds_per_picture(cost, evidence.kinds),
        reading,
        bootstrap=evidence.bootstrap,
        level=evidence.level,
        seed=evidence.seed,
    )
    yield (
        "So many generated pictures of each LoRA, seen through an extractor, find its artist as well as its weights "
        "do. Where even all of them do not, the number is larger than that."
    )
    yield _table(
        ["pictures by", "weights by", "worth, in pictures", "never reached in", "seconds by pictures", "by weights"],
        [
            [
                f"`{row['descriptor']}`",
                f"`{row['reference']}` ({row['reference_value']:.2f})",
                _pictures(row),
                f"{row['never']:.0%}",
                _number(row["seconds"], "{:.2g}"),
                _number(row["reference_seconds"], "{:.2g}"),
            ]
            for row in rows
            if row["metric"] == "mAP"
        ],
    )
    yield (
        "`never reached in`: the share of resamplings in which all pictures together stay below the weights. Seconds "
        "are for one LoRA that is there, on the machine that ran the study. Prompts are taken as they are: no interval "
        "knows of other prompts."
    )


def _pictures(row: Mapping[str, Any]) -> str:
    def told(value: float | None) -> str:
        if value is None or pd.isna(value):
            return f"> {row['most']}"
        return "≤ 1" if value <= 1 else f"{value:.1f}"

    return f"{told(row['value'])} ({told(row['low'])} to {told(row['high'])})"


def _retrieval(evidence: Evidence) -> Iterator[str]:
    yield "## Retrieval"
    for scenario, found in scenarios(evidence).items():
        order = sorted(found.descriptors, key=lambda d, found=found: -found.score(d).value)
        clusters = _ward(evidence) if scenario == KNOWN else {}
        yield f"A query of a{'n' if scenario.startswith('u') else ''} {scenario}, mAP:"
        yield _table(
            ["descriptor", "looks at", "mAP", "over the best control", *["Ward ARI"] * bool(clusters)],
            [
                [
                    f"`{d}`",
                    evidence.kinds.get(d, "across sources"),
                    str(found.score(d)),
                    str(found.difference(d, BEST_CONTROL)) if evidence.kinds.get(d) != "control" else "",
                    *[clusters.get(d, "")] * bool(clusters),
                ]
                for d in order
            ],
        )
        yield f"Chance: mAP {found.chances.mean():.2f}."
    yield (
        "`clip_training_to_s8_g1` asks with training pictures among LoRAs that are known by generated ones; "
        "`clip_s8_g1_to_training` asks with generated pictures among training pictures."
    )


def _ward(evidence: Evidence) -> dict[str, str]:
    frame = over_seeds(evidence, "clustering", ["descriptor", "level", "algorithm", "metric"])
    chosen = frame[(frame["level"] == "artist") & (frame["algorithm"] == "Ward") & (frame["metric"] == "ARI")]
    return {row["descriptor"]: _cell(row) for row in chosen.to_dict("records")}


def _clustering(evidence: Evidence) -> Iterator[str]:
    yield "## Clusters"
    frame = over_seeds(evidence, "clustering", ["descriptor", "level", "algorithm", "metric"])
    frame = frame[frame["metric"].isin(["ARI", "1-NN", "5-NN", "linear probe", "K"])]
    shown = [d for d in _headliners(evidence) if d in set(frame["descriptor"])]
    rows = []
    for (level, algorithm, metric), part in frame.groupby(["level", "algorithm", "metric"], sort=False):
        values = part.set_index("descriptor")
        cells = [_cell(values.loc[d]) if d in values.index else "" for d in shown]
        chance = values["chance"].mean() if "chance" in values else float("nan")
        rows.append([level, algorithm, metric, *cells, _number(chance)])
    yield _table(["level", "by", "metric", *(f"`{d}`" for d in shown), "chance"], rows)
    yield (
        "K is estimated by the silhouette of Ward's partitions, for k-means too. HDBSCAN's K counts every LoRA that it "
        "calls noise as a group. An interval from 1 to 1 is that of a score which no left-out artist changes, and no "
        "certainty."
    )


def _headliners(evidence: Evidence) -> list[str]:
    """The descriptors that a wide table can show: the weights, and the best of every other kind."""
    known = pooled(evidence)
    found = [d for d in ("delta", "factors") if d in known.descriptors]
    for kind in ("generated pictures", "training pictures", "control"):
        each = [d for d in evidence.of_kind(kind) if d in known.descriptors]
        if each:
            found.append(known.best(each))
    return found


def _controls(evidence: Evidence) -> Iterator[str]:
    yield "## Controls"
    frame = over_seeds(evidence, "controls", ["control", "descriptor", "level", "metric"])
    inside = (frame["low"] <= frame["expected"]) & (frame["expected"] <= frame["high"])
    yield (
        f"Where the gallery's artists are dealt to its LoRAs at random, {inside.sum()} of {len(frame)} descriptors "
        "have the chance level within the range of the permutations"
        + (
            "; not " + ", ".join(f"`{d}`" for d in frame[~inside]["descriptor"]) + "."
            if not inside.all()
            else ", as they must."
        )
    )
    shown = frame[frame["descriptor"].isin(_headliners(evidence))]
    yield _table(
        ["descriptor", "labels permuted", "chance", "true labels", "p"],
        [
            [
                f"`{row.descriptor}`",
                f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})",
                f"{row.expected:.2f}",
                f"{row.observed:.2f}",
                f"{row.p:.3f}",
            ]
            for row in shown.itertuples()
        ],
    )


def _structure(evidence: Evidence) -> Iterator[str]:
    yield "## Do weights and pictures have the same geometry?"
    frame = over_seeds(evidence, "structure", ["left", "right", "metric"])
    kinds = evidence.kinds
    shown = frame[
        (frame["left"].isin(["delta", "factors"]) & ~frame["right"].map(kinds).isin(["weights"]))
        | (frame["right"].isin(["delta", "factors"]) & ~frame["left"].map(kinds).isin(["weights"]))
    ]
    rows = []
    for (left, right), part in shown.groupby(["left", "right"], sort=False):
        values = part.set_index("metric")
        cells = [f"{_cell(values.loc[m])}, null {two(values.loc[m, 'null'])}" for m in values.index]
        rows.append([f"`{left}`", f"`{right}`", *cells, f"{part['p'].max():.3f}"])
    metrics = list(dict.fromkeys(shown["metric"]))
    yield _table(["", "", *metrics, "largest p"], rows)
    yield (
        "CKA is debiased, RSA is the rank correlation of all distances (Mantel), Procrustes is one less the disparity, "
        "mutual kNN the share of common neighbours; `null` is the mean over permutations of the LoRAs."
    )


def _ablation(evidence: Evidence) -> Iterator[str]:
    yield "## Which weights?"
    frame = over_seeds(evidence, "ablation", ["component", "block", "factor", "metric"])
    frame = frame[(frame["metric"] == "mAP") & (frame["factor"].isin(["delta", "both"]))]
    frame = frame.sort_values(["factor", "value"], ascending=[True, False], kind="stable")
    yield _table(
        ["component", "block", "factor", "share of parameters", "mAP", "random parts of that size"],
        [
            [
                row.component,
                row.block,
                row.factor,
                f"{row.share:.0%}",
                f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})",
                "" if pd.isna(row.matched) else f"{row.matched:.2f} ({row.matched_low:.2f} to {row.matched_high:.2f})",
            ]
            for row in frame.itertuples()
        ],
    )


def _budget(evidence: Evidence) -> Iterator[str]:
    yield "## The same budget for everybody"
    frame = pd.concat([study.frame("grid").assign(seed=i) for i, study in enumerate(evidence.seeds)])
    rows = []
    for descriptor, part in frame.groupby("descriptor", sort=False):
        default = part[part["remark"].fillna("").str.contains("default")]["value"].mean()
        keys = ["dimensions", "whitening", "calibration", "distance"]
        means = part.groupby(keys, sort=False)["value"].mean()
        best = dict(zip(keys, means.idxmax(), strict=True))
        setting = (
            f"{best['dimensions']} dimensions, whitening {best['whitening']}, {best['calibration']}, {best['distance']}"
        )
        rows.append((means.max(), [f"`{descriptor}`", f"{default:.2f}", f"{means.max():.2f}", setting]))
    yield _table(
        ["descriptor", "default setting", "best setting", "which"],
        [row for _, row in sorted(rows, key=lambda r: -r[0])],
    )
    yield (
        "Every descriptor was given the same grid of dimensions, whitening, calibrations and distances. The best "
        "setting was chosen on the very queries that it is scored on, so it flatters all of them alike; CSLS also sees "
        "the other queries, through how crowded the gallery is by them."
    )


def _drift(evidence: Evidence) -> Iterator[str]:
    yield "## The drift of unseen LoRAs"
    frame = over_seeds(evidence, "drift", ["descriptor", "calibration", "component"])
    rows = []
    for descriptor in ("delta", "factors"):
        part = frame[(frame["descriptor"] == descriptor)]
        for component in [c for c in (1, 2, 4, 8, 16) if c in set(part["component"])]:
            at = part[part["component"] == component].set_index("calibration")
            before = at.loc["none"] if "none" in at.index else None
            extra = ["", ""] if before is None else [f"{before['held_out']:.2f}", f"{before['predicted']:.2f}"]
            rows.append([f"`{descriptor}`", str(component), *extra, *(f"{v:.2f}" for v in at["value"])])
    names = list(dict.fromkeys(frame["calibration"]))
    yield _table(["descriptor", "component", "left out", "closed form", *(f"`{n}`" for n in names)], rows)
    yield (
        "The spread of query scores over that of gallery scores, component by component: one where nothing drifts. "
        "`left out` is the same ratio measured by leaving gallery LoRAs out, and `closed form` is computed from "
        "eigenvalues alone (Lee, Zou & Wright 2010)."
    )


def _variants(evidence: Evidence) -> Iterator[str]:
    rows = []
    for name, (changes, study) in evidence.variants.items():
        scores = pooled(evidence, [study])
        told = ", ".join(f"{k} {v}" for k, v in changes.items() if not k.startswith("extractors."))
        rows.append(
            [f"`{name}`", told, *(str(scores.score(d)) for d in ("delta", "factors")), f"{scores.chances.mean():.2f}"]
        )
    if rows:
        yield "## Other settings"
        known = pooled(evidence, [evidence.study])
        rows.insert(
            0, ["the study", "", *(str(known.score(d)) for d in ("delta", "factors")), f"{known.chances.mean():.2f}"]
        )
        yield _table(["variant", "what differs", "`delta`, mAP", "`factors`, mAP", "chance"], rows)
        yield "One seed each; intervals over artists."


SECTIONS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    _claims,
    _worth,
    _retrieval,
    _clustering,
    _controls,
    _structure,
    _ablation,
    _budget,
    _drift,
    _variants,
)


def _cell(row: Any) -> str:
    if pd.isna(row["low"]):
        return two(row["value"])
    # A jackknife knows no bounds; the scores do.
    return str(Score(row["value"], max(row["low"], -1.0), min(row["high"], 1.0)))


def _number(value: float | None, form: str | None = None) -> str:
    if value is None or pd.isna(value):
        return ""
    return two(value) if form is None else form.format(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)
