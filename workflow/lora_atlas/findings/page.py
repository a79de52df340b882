"""The page FINDINGS.md: claims with their verdicts, then the tables behind them, each with how to read it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..descriptors import ACROSS, CONSENSUS, CONTROL, GENERATED, GRADIENT, PLAIN, TRAINING, WEIGHTS, of_weights
from ..metrics import BEST_CONTROL, worth
from ..metrics.structure import LEVELS
from ..tables import replacing
from ..views import NO_BASIS
from . import gradient
from .claims import FAILED, HELD, OPEN, Claim, asked_unseen, claims, speakers
from .cost import seconds_per_lora, seconds_per_picture
from .evidence import Evidence, Pooled, Score, gather, over_seeds, p_text, pooled, row_of, settings_of, two

MODULE = r"(unet|transformer|text_encoder\w*)\."  # how the name of a single module begins
STYLE_BLOCK, CONTENT_BLOCK = "up_blocks.0.attentions.1", "up_blocks.0.attentions.0"  # of SDXL, by B-LoRA

SEEDS = 6  # fewer say little of how far seeds differ (metrics/intervals.py)
CROWDS = (2, 5, 10, 20, 50, 100, 1000)  # numbers of artists that the page shows, besides all of a study


def write(
    path: str | Path,
    folder: str | Path,
    *,
    study: str,
    replicates: Sequence[str],
    variants: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    about: Sequence[str],
    seed: int,
    given: Iterable[str | Path] | None = None,
) -> list[dict[str, Any]]:
    """Write the findings of the study in `folder`; `variants`: name → keys that differ, `about`: sentences on what the
    pictures are and what the models learnt from, `given`: the files that may be read (None: all).

    Returns rows of the table "claims". Raises TableError for a table that is absent.
    """
    evidence = gather(folder, replicates, variants, evaluation, seed, given)
    found = claims(evidence)
    parts = [*_claims(evidence, found), *(part for section in SECTIONS for part in section(evidence))]
    with replacing(path) as temporary:
        temporary.write_text("\n\n".join([*_head(study, evidence, about, found), *parts]) + "\n")
    return [
        {
            "claim": claim.about or claim.sentence, "sentence": claim.sentence, "verdict": claim.verdict,
            "numbers": claim.numbers, "p": claim.adjusted, "seeds": claim.seeds,
        }
        for claim in found
    ]  # fmt: skip


def _head(study: str, evidence: Evidence, about: Sequence[str], found: Sequence[Claim]) -> Iterator[str]:
    queries = evidence.study.frame("queries")
    seeds = len(evidence.seeds)
    yield f"# What the study `{study}` found"
    yield from _in_short(evidence, found)
    yield (
        "Written by a rule from the study's tables (`snakemake findings`); nothing here is typed by hand. "
        f"{queries['artist'].nunique()} artists. Headline: {evidence.view.label}, the same for every descriptor."
    )
    if evidence.replicates:
        yield (
            f"Settings called best were chosen on the study's own seed; every verdict and number below comes from "
            f"{seeds} other {'seeds' if seeds > 1 else 'seed'}: the same artists, their pictures drawn or split anew, "
            f"and other LoRAs. {evidence.confidence:.0%} intervals, of scores of queries over seeds and artists as "
            "crossed factors, of all else from the lowest to the highest of the seeds' own."
        )
        if 1 < seeds < SEEDS:
            yield (
                f"{seeds} seeds do not say surely how far seeds differ: 95 % intervals allow for it, while p-values "
                "that are corrected for a page of claims are too small where seeds differ much and artists are many "
                "(docs/method.md has how much, simulated). What held is sure of artists, and of these seeds' LoRAs."
            )
    else:
        yield (
            f"**One seed only**, {evidence.confidence:.0%} intervals over artists. They know nothing of how another "
            "training would have come out, and settings called best were chosen on these very queries; for other seeds "
            "run the study with variants, as workflow/studies/findings.yaml does for the embedded study."
        )
    yield " ".join([*about, "No number here reproduces one of the paper's."])
    yield from _overlaps(evidence)


def _in_short(evidence: Evidence, found: Sequence[Claim]) -> Iterator[str]:
    """What is asked first, for who knows none of the names: are artists told apart, and by more than chance?"""
    pool = pooled(evidence)
    names = speakers(evidence, pool)
    if not names or not pool.controls:
        return
    best = pool.best(pool.controls)
    chance = two(float(pool.chances.mean()))
    said = (
        f"**In short.** By its weights alone (`{names[0]}`) a LoRA finds the other LoRAs of its artist at a mean "
        f"average precision of {pool.score(names[0])}, where 1 is all of them first, chance gives {chance}, and the "
        f"best of those descriptions that know no style (`{best}`) {two(pool.mean(best))}. "
    )
    # The first claim of all is of the first descriptor and the best control.
    said += f"That the weights find more than each of those: **{found[0].verdict}**. "
    if asked_unseen(evidence):
        unseen = pooled(evidence, unseen=True)
        said += (
            "Artists that nothing was fitted on, ranked in half of the gallery, are found at "
            f"{unseen.score(names[0])}, chance {two(float(unseen.chances.mean()))}; of what fits nothing (modules as "
            "they are or by the base, pictures without a basis) that is the first question again, in a smaller crowd. "
        )
    counted = [sum(claim.verdict == verdict for claim in found) for verdict in (HELD, FAILED, OPEN)]
    yield (
        f"{said}Of the {len(found)} claims below {counted[0]} held and {counted[1]} did not; {counted[2]} are "
        "undecided: artists, seeds or permutations are too few for a verdict on all of them together, and nothing else "
        "is said by it. Names and words are explained in docs/descriptors.md and docs/method.md of LoRA Atlas."
    )


def _overlaps(evidence: Evidence) -> Iterator[str]:
    """Artists whose LoRAs share pictures: their LoRAs are fewer than they seem."""
    told = []
    for number, study in enumerate(evidence.seeds):
        if (table := study.plan()) is None:  # a study that shares another's plan
            continue
        plan = table.to_pandas()
        for (artist, split), part in plan.groupby(["artist", "split"], sort=True):
            share = part["overlap"].max()
            if share > 0:
                alike = len(part) - part["pictures"].map(lambda p: tuple(sorted(p))).nunique()
                same = f", {alike + 1} of {len(part)} from the very same pictures" if alike else ""
                told.append((number, f"{artist} ({split} LoRAs share up to {share:.0%} of their pictures{same})"))
    if told:
        several = len(evidence.seeds) > 1
        listed = "; ".join(f"seed {n + 1}: {text}" if several else text for n, text in told[:12])
        more = f"; and {len(told) - 12} more" if len(told) > 12 else ""
        yield (
            f"**LoRAs that share pictures**, since their artist has few: {listed}{more}. They are no independent "
            "witnesses; intervals are over artists, so an artist counts once however many LoRAs share its pictures."
        )


def _claims(evidence: Evidence, found: Sequence[Claim]) -> Iterator[str]:
    yield "## What held, and what did not"
    yield _table(
        ["claim", "verdict", "numbers", "adjusted p", "seeds"],
        [
            [claim.sentence, f"**{claim.verdict}**", claim.numbers, p_text(claim.adjusted), str(claim.seeds)]
            for claim in found
        ],
    )
    yield (
        f"A claim held, or did not hold, where its two-sided p-value, corrected for all {len(found)} claims of this "
        f"page together (Holm), is at most {1 - evidence.confidence:.2g}; it is undecided otherwise. Intervals are not "
        "corrected. A margin over the best control is above nothing where the difference to every control is. At "
        "chance means nearer to it than the margin that is named, by two one-sided tests."
    )


def _worth(evidence: Evidence) -> Iterator[str]:
    if not all(study.has("worth_queries") for study in evidence.seeds):
        return
    yield "## What is a LoRA worth?"
    described = evidence.described
    weights = of_weights(described)
    curves = [study.table("worth_queries") for study in evidence.seeds]
    references = [worth.references(study.table("queries"), weights, evidence.view) for study in evidence.seeds]
    cost = evidence.study.table("cost")
    each = seconds_per_lora(cost, described)
    reading = {d: seconds for d, seconds in each.items() if d in weights and seconds is not None}
    rows = worth.pooled(
        list(zip(curves, references, strict=True)),
        seconds_per_picture(cost, described),
        reading,
        bootstrap=evidence.bootstrap,
        confidence=evidence.confidence,
        seed=evidence.seed,
    )
    shown = set(speakers(evidence, pooled(evidence)))
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
            if row["metric"] == "mAP" and row["reference"] in shown
        ],
    )
    yield _table(
        ["pictures by", *(f"{m}" for m in _counts(curves))],
        [
            [f"`{descriptor}`", *(two(part.get(m, float("nan"))) if m in part else "" for m in _counts(curves))]
            for descriptor, part in _curve(curves).items()
        ],
    )
    yield "mAP by the number of generated pictures of each LoRA."
    yield from _same(evidence, _curve(curves))
    yield (
        "`never reached in`: the share of resamplings in which all pictures together stay below the weights. Seconds "
        "are for one LoRA that is there, on the machine that ran the study. Prompts are taken as they are: no interval "
        "knows of other prompts."
    )


def _counts(curves: Sequence[Any]) -> list[int]:
    return sorted(set().union(*(set(curve["pictures"].to_pylist()) for curve in curves)))


def _curve(curves: Sequence[Any]) -> dict[str, dict[int, float]]:
    """Descriptor → number of pictures → mAP, the mean over seeds."""
    frame = pd.concat([curve.to_pandas().assign(seed=i) for i, curve in enumerate(curves)])
    means = frame[frame["metric"] == "mAP"].groupby(["descriptor", "pictures"], sort=False)["value"].mean()
    return {d: {int(m): float(v) for (_, m), v in part.items()} for d, part in means.groupby(level=0, sort=False)}


def _same(evidence: Evidence, curve: Mapping[str, Mapping[int, float]]) -> Iterator[str]:
    """What it helps that all LoRAs generate the same prompts from the same noise."""
    for name in curve:
        descriptor = evidence.described[name]
        twin = next(
            (
                o
                for o in curve
                if evidence.described[o].extractor == descriptor.extractor and evidence.described[o].series == "own"
            ),
            None,
        )
        if descriptor.series == "shared" and twin is not None:
            yield (
                f"One picture of each LoRA finds its artist at mAP {two(curve[name][1])} by {descriptor.extractor} "
                f"where all LoRAs have the same prompt and the same noise, and at {two(curve[twin][1])} where each has "
                "its own: the first curve rests on everybody painting the same thing."
            )


def _pictures(row: Mapping[str, Any]) -> str:
    def told(value: float | None) -> str:
        if value is None or pd.isna(value):
            return f"> {row['most']}"
        return "≤ 1" if value <= 1 else f"{value:.1f}"

    return f"{told(row['value'])} ({told(row['low'])} to {told(row['high'])})"


def _best_first(pool: Pooled) -> list[str]:
    return sorted(pool.descriptors, key=lambda descriptor: -pool.mean(descriptor))


def _retrieval(evidence: Evidence) -> Iterator[str]:
    yield "## Retrieval"
    found = {"a known artist": pooled(evidence)}
    if asked_unseen(evidence):
        found["an artist that nothing was fitted on"] = pooled(evidence, unseen=True)
    for number, (who, pool) in enumerate(found.items()):
        order = _best_first(pool)
        clusters = _ward(evidence) if number == 0 else {}
        yield f"A query of {who}, mAP, {evidence.view.label}:"
        yield _table(
            ["descriptor", "looks at", "mAP", "over the best control", *["Ward ARI"] * bool(clusters)],
            [
                [
                    f"`{d}`",
                    evidence.kinds.get(d, ACROSS),
                    str(pool.score(d)),
                    str(pool.difference(d, BEST_CONTROL)) if pool.controls and evidence.kinds.get(d) != CONTROL else "",
                    *[clusters.get(d, "")] * bool(clusters),
                ]
                for d in order
            ],
        )
        yield f"Chance: mAP {pool.chances.mean():.2f}."
    across = [d for d in evidence.described.values() if d.kind == ACROSS]
    if across:
        yield (
            "`…_training_to_…` asks with training pictures among LoRAs that are known by generated ones; "
            "`…_to_training` asks with generated pictures among training pictures."
        )


def _ward(evidence: Evidence) -> dict[str, str]:
    frame = over_seeds(evidence, "clustering", ["scenario", "descriptor", "level", "algorithm", "metric"])
    frame = frame[frame["scenario"] == evidence.view.together]
    chosen = frame[(frame["level"] == "artist") & (frame["algorithm"] == "Ward") & (frame["metric"] == "ARI")]
    return {row["descriptor"]: _cell(row) for row in chosen.to_dict("records")}


def _gradient(evidence: Evidence) -> Iterator[str]:
    if not gradient.there(evidence):
        return
    yield "## Which LoRAs do pictures speak for?"
    yield (
        "Pictures of a query → gallery LoRAs, by one gradient of the frozen base's loss: no LoRA of the query is "
        "trained, and nothing is generated."
    )
    yield _table(
        ["pictures", "modules", "centred", "known artist, mAP", "R@1", "unseen artist, mAP"], gradient.ways(evidence)
    )
    yield (
        "Centred: LoRAs less the mean of those that are ranked, gradients less the mean of pictures that the base "
        "itself generates, or of the pictures of artists that are known: of the gallery, and for an unseen artist, of "
        "its other half. An unseen artist is ranked among the LoRAs of half of the artists, and weights of modules are "
        "fitted on the other half alone."
    )
    found = list(gradient.alarms(evidence))
    if found:
        yield _table(["pictures", "a LoRA at p ≤ 0.05, artist there", "artist's LoRAs left out"], found)
        yield (
            "p is corrected for having looked at all LoRAs, against sets of the base's own pictures. With the artist's "
            "LoRAs left out whatever is found is a false alarm, of which p promises 0.05."
        )
    others = list(gradient.other_ways(evidence))
    if others:
        yield "Asked in other ways, LoRAs centred by their mean and gradients as they are:"
        yield _table(["way", "of it", "all pictures, mAP", "single ones, mAP", "the very LoRA first"], others)
        yield (
            "Exact losses, and the gradient beside them, are asked of the queries with fewest pictures. Generated "
            "pictures are queries for the LoRAs of the painter whose LoRA drew them, and for that very LoRA."
        )
    speaking = speakers(evidence, pooled(evidence))
    for row in gradient.worth_in_pictures(evidence, speaking):
        yield (
            f"The gradient of {_pictures(row)} training pictures finds as much as the LoRA trained on all "
            f"{row['most']} of them, `{row['reference']}` "
            f"({two(row['reference_value'])}); never in {row['never']:.0%} of resamplings."
        )


def _crowd(evidence: Evidence) -> Iterator[str]:
    if not all(study.has("crowd") for study in evidence.seeds):
        return
    frame, shown = over_seeds(evidence, "crowd", ["descriptor", "artists"]), _headliners(evidence)
    frame = frame[frame["descriptor"].isin(shown)].set_index(["descriptor", "artists"])
    most = frame.index.get_level_values("artists")[frame["value"].notna()].max()
    sizes = [K for K in sorted(set(frame.index.get_level_values("artists"))) if K in CROWDS or most == K]
    rows = []
    for descriptor in [d for d in shown if d in frame.index]:
        of = frame.loc[descriptor]
        cells = [_in_a_crowd(of.loc[K]) if K in of.index else "" for K in sizes]
        rows.append([f"`{descriptor}`", *cells, *(_number(of[name].iloc[0]) for name in ("separation", "spread"))])
    if not rows:
        return
    yield "## How many styles can be told apart?"
    yield _table(["descriptor", *(f"{K} artists" for K in sizes), "d", "s"], rows)
    yield (
        "How often the nearest LoRA is the artist's own, of as many artists, known ones; chance is one in so many. In "
        "italics what the law forecasts that is fitted to the rest, identification among alternatives that the right "
        "one exceeds by d standard deviations, itself spread by s over queries (Green & Swets 1966); where every query "
        "is right there is no law to fit."
    )


def _in_a_crowd(row: Any) -> str:
    if not pd.isna(row["value"]):
        return _cell(row)
    if pd.isna(row["law"]):
        return ""
    return f"*{_cell({'value': row['law'], 'low': row['low'], 'high': row['high']})}*"


def _clustering(evidence: Evidence) -> Iterator[str]:
    yield "## Clusters"
    frame = over_seeds(evidence, "clustering", ["scenario", "descriptor", "level", "algorithm", "metric"])
    frame = frame[frame["scenario"] == evidence.view.together]
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
    found = speakers(evidence, known)
    for kind in (GENERATED, TRAINING, CONTROL):
        each = [d for d in evidence.of_kind(kind) if d in known.descriptors]
        if each:
            found.append(known.best(each))
    return found


def _controls(evidence: Evidence) -> Iterator[str]:
    yield "## Controls"
    frame = over_seeds(evidence, "controls", ["control", "descriptor", "level", "metric"])
    inside = (frame["low"] <= frame["expected"]) & (frame["expected"] <= frame["high"])
    yield (
        f"Where the gallery's artists are permuted among its LoRAs, {inside.sum()} of {len(frame)} descriptors "
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
    frame = over_seeds(evidence, "structure", ["level", "left", "right", "metric"])
    kinds, weights = evidence.kinds, speakers(evidence, pooled(evidence))
    others = [d for d in kinds if kinds[d] != WEIGHTS and evidence.described[d].series is None]
    shown = frame[frame["left"].isin(weights[:1]) & frame["right"].isin(others)]
    rows = []
    for (level, right), part in shown.groupby(["level", "right"], sort=False):
        values = part.set_index("metric")
        for metric in values.index:
            row = values.loc[metric]
            if not pd.isna(row["value"]):
                rows.append([level, f"`{right}`", metric, _cell(row), two(row["null"]), f"{row['p']:.3f}"])
    order = {level: i for i, level in enumerate(LEVELS)}
    rows.sort(key=lambda row: order[row[0]])
    yield f"`{weights[0]}` beside:" if weights else ""
    yield _table(["level", "descriptor", "measure", "value", "null", "largest p"], rows)
    yield (
        "CKA is debiased, RSA is the rank correlation of all distances (Mantel), Procrustes is one less the disparity, "
        "mutual kNN the share of common neighbours; `null` is the mean over permutations: of all LoRAs, of artists "
        "(their means are compared), or of the LoRAs of each artist among each other (each less its artist's mean)."
    )


def _ablation(evidence: Evidence) -> Iterator[str]:
    yield "## Which weights?"
    frame = over_seeds(evidence, "ablation", ["component", "block", "factor", "metric"])
    frame = frame[frame["metric"] == "mAP"]
    frame = frame[frame["factor"].isin({"delta", "both"} & set(frame["factor"]) or {"A", "B"})]
    single = frame["block"].str.match(MODULE)
    order = {"by": ["factor", "value"], "ascending": [True, False], "kind": "stable"}
    for part, what in (
        (frame[~single], "Components and blocks:"),
        (frame[single].nlargest(12, "value"), "The best modules:"),
    ):
        if len(part):
            yield what
            yield _table(
                ["component", "block", "factor", "share of parameters", "mAP", "random parts of that size"],
                [
                    [
                        row.component,
                        row.block,
                        row.factor,
                        f"{row.share:.1%}",
                        "" if pd.isna(row.value) else f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})",
                        ""
                        if pd.isna(row.matched)
                        else f"{row.matched:.2f} ({row.matched_low:.2f} to {row.matched_high:.2f})",
                    ]
                    for row in part.sort_values(**order).itertuples()
                ],
            )
    yield "Modules as they are, each part at norm one: what a part holds, whatever weight it would be given."
    asked = [name for name in (STYLE_BLOCK, CONTENT_BLOCK) if name in set(frame["block"])]
    if asked:
        factor = max(frame["factor"], key=("A", "B", "both", "delta").index)
        blocks = frame[~single & (frame["component"] == "all") & (frame["block"] != "all")]
        best = blocks[(blocks["factor"] == factor) & blocks["value"].notna()].nlargest(1, "value")
        yield " ".join(
            [
                f"B-LoRA (arXiv 2403.14572) trains `{STYLE_BLOCK}` of SDXL for style and `{CONTENT_BLOCK}` for "
                "content.",
                *(f"Here the best block is `{row.block}` ({two(row.value)})." for row in best.itertuples()),
            ]
        )


def _weighting(evidence: Evidence) -> Iterator[str]:
    if not all(study.has("module_weights") for study in evidence.seeds):
        return
    frame = over_seeds(evidence, "module_weights", ["kernel", "weighting", "module", "component", "block"])
    frame = frame.assign(place=frame["block"].str.split(".").str[:2].str.join("."))
    first = frame["kernel"].iloc[0]
    frame = frame[frame["kernel"] == first]
    sums = frame.groupby(["place", "weighting"], sort=True)["weighted_share"].sum().unstack("weighting")
    yield "## What the weightings do"
    names = [name for name in dict.fromkeys(frame["weighting"]) if name in sums]
    yield _table(
        ["block", *(f"`{n}`" for n in names)], [[p, *(f"{v:.1%}" for v in row)] for p, row in sums[names].iterrows()]
    )
    yield f"Shares of the squared norms of all LoRAs (kernel `{first}`), as they are and as modules are weighted."


def _budget(evidence: Evidence) -> Iterator[str]:
    yield "## How many numbers suffice, and the same budget for everybody"
    frame = pd.concat([study.frame("grid").assign(seed=i) for i, study in enumerate(evidence.seeds)])
    own = evidence.study.frame("grid")
    keys = ["dimensions", "whitening", "calibration", "distance"]
    weights = speakers(evidence, pooled(evidence))
    curve = frame[
        frame["descriptor"].isin(weights)
        & (frame["whitening"] == "none")
        & frame["calibration"].isin(["none", evidence.view.calibration])
        & (frame["distance"] == evidence.view.distance)
    ]
    if len(curve):
        wide = curve.groupby(["descriptor", "calibration", "dimensions"], sort=True)["value"].mean().unstack()
        columns = list(wide.columns)
        whole = frame[(frame["calibration"] == NO_BASIS) & (frame["distance"] == evidence.view.distance)]
        whole = whole.groupby("descriptor")["value"].mean()
        yield _table(
            ["descriptor", "calibration", *(str(c) for c in columns), "no basis"],
            [
                [f"`{d}`", f"`{c}`", *("" if pd.isna(v) else two(v) for v in row), two(whole[d])]
                for (d, c), row in wide.iterrows()
            ],
        )
        yield f"mAP of known artists by the number of principal components, {evidence.view.distance}."
    rows = []
    for descriptor, part in frame.groupby("descriptor", sort=False):
        default = part[part["remark"].fillna("").str.contains("default")]["value"].mean()
        # The best setting is that of the study's own seed, here on the others.
        chosen = own[own["descriptor"] == descriptor].groupby(keys, sort=False)["value"].mean()
        if chosen.empty or chosen.isna().all():
            continue
        best = dict(zip(keys, chosen.idxmax(), strict=True))
        value = part[(part[keys] == pd.Series(best)).all(axis=1)]["value"].mean()
        setting = f"no basis, {best['distance']}"
        if best["calibration"] != NO_BASIS:
            setting = f"{best['dimensions']} dimensions, whitening {best['whitening']}, {best['calibration']}, "
            setting += best["distance"]
        rows.append((value, [f"`{descriptor}`", two(default), two(value), setting]))
    yield _table(
        ["descriptor", "headline setting", "best setting", "which"],
        [row for _, row in sorted(rows, key=lambda r: -r[0])],
    )
    chosen = "; the best setting was chosen on the very queries that it is scored on, so it flatters all of them alike."
    if evidence.replicates:
        chosen = "; the best setting was chosen on the study's own seed and is scored here on the others."
    yield (
        f"Every descriptor was given the same grid of dimensions, whitening, calibrations and distances{chosen} CSLS "
        "also sees the other queries, through how crowded the gallery is by them."
    )


def _drift(evidence: Evidence) -> Iterator[str]:
    yield "## The drift of unseen LoRAs"
    frame = over_seeds(evidence, "drift", ["descriptor", "calibration", "component"])
    rows = []
    for descriptor in speakers(evidence, pooled(evidence)):
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
    groups: dict[str, dict[str, Any]] = {}
    for name, (changes, study) in evidence.variants.items():
        told = ", ".join(f"{key} {value}" for key, value in settings_of(changes).items())
        groups.setdefault(told, {})[name] = study
    if not groups:
        return
    yield "## Other settings"
    described = evidence.described
    names = [n for n in of_weights(described) if described[n].modules in (PLAIN, GRADIENT, CONSENSUS)]

    def row(told: str, pool: Pooled) -> list[str]:
        cells = [str(pool.score(n)) if n in pool.descriptors else "" for n in names]
        return [told, *cells, f"{pool.chances.mean():.2f}", str(pool.seeds)]

    rows = [row("the study", pooled(evidence))]
    for told, found in groups.items():
        named = ", ".join(f"`{name}`" for name in found)
        rows.append(row(f"{told} ({named})", pooled(evidence, list(found.values()))))
    yield _table(["what differs", *(f"`{n}`, mAP" for n in names), "chance", "seeds"], rows)


SECTIONS: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    _worth,
    _retrieval,
    _gradient,
    _crowd,
    _clustering,
    _controls,
    _structure,
    _ablation,
    _weighting,
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
    return "\n".join(map(row_of, [header, ["---"] * len(header), *rows]))
