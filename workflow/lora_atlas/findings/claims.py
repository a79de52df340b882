"""Claims, and whether they held: a claim is a difference with an interval, and held where all of that says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics import BEST_CONTROL
from ..tables import KNOWN, UNSEEN
from .evidence import Evidence, Pooled, Score, Study, over_seeds, pooled, two

HELD, FAILED, OPEN = "held", "did not hold", "undecided"


@dataclass(frozen=True)
class Claim:
    """A sentence, the verdict on it, and the numbers that it rests on, in words."""

    sentence: str
    verdict: str
    numbers: str


def positive(difference: Score) -> str:
    """The verdict on "is larger": decided only where the interval lies on one side of zero."""
    if difference.low > 0:
        return HELD
    return FAILED if difference.high < 0 else OPEN


def at_chance(score: Score) -> str:
    """The verdict on "is at chance": its interval holds the chance level."""
    return HELD if score.low <= score.chance <= score.high else FAILED


def claims(evidence: Evidence) -> list[Claim]:
    """The claims of the paper and of this project that the study's tables can decide."""
    known = pooled(evidence)
    found = [*_beyond_controls(evidence, known), *_beyond_pictures(evidence, known)]
    found += [*_unseen(evidence), *_structure(evidence), *_initialisation(evidence), *_mixtures(evidence)]
    return found


def _beyond_controls(evidence: Evidence, known: Pooled):
    for descriptor in ("delta", "factors"):
        if descriptor in known.descriptors and known.controls:
            margin = known.difference(descriptor, BEST_CONTROL)
            best = known.best(evidence.of_kind("control"))
            yield Claim(
                f"The weights (`{descriptor}`) tell artists better than every control does.",
                positive(margin),
                f"mAP {known.score(descriptor)}; margin over the best control (`{best}`) {margin}",
            )


def _beyond_pictures(evidence: Evidence, known: Pooled):
    generated = [d for d in evidence.of_kind("generated pictures") if d in known.descriptors]
    for extractor in dict.fromkeys(d.split("_", 1)[0] for d in generated):
        each = [d for d in generated if d.split("_", 1)[0] == extractor]
        for descriptor in each:
            difference = known.difference("delta", descriptor)
            yield Claim(
                f"The weights tell artists better than {extractor.upper()} features of generated pictures do "
                f"(`delta` against `{descriptor}`).",
                positive(difference),
                f"difference of mAP {difference}",
            )
    for descriptor in evidence.of_kind("training pictures"):
        if descriptor in known.descriptors:
            difference = known.difference("delta", descriptor)
            yield Claim(
                f"The weights tell artists better than the training pictures themselves do (`{descriptor}`, which "
                "nobody has who is handed a LoRA).",
                positive(difference),
                f"difference of mAP {difference}",
            )


def _unseen(evidence: Evidence):
    if not (evidence.study.frame("queries")["scenario"] == UNSEEN).any():
        return
    unseen = pooled(evidence, scenario=UNSEEN)
    score = unseen.score("delta")
    above = Score(score.value - score.chance, score.low - score.chance, score.high - score.chance, n=score.n)
    yield Claim(
        "A style that no basis has seen is still found by the weights, better than by chance.",
        positive(above),
        f"artist-disjoint mAP {score}, chance {score.chance:.2f}",
    )
    if unseen.controls:
        margin = unseen.difference("delta", BEST_CONTROL)
        best = unseen.best(d for d in evidence.of_kind("control") if d in unseen.descriptors)
        yield Claim(
            "Of such a style the weights tell more than every control does.",
            positive(margin),
            f"margin over the best control (`{best}`) {margin}",
        )


def _structure(evidence: Evidence):
    if not all(study.has("structure") for study in evidence.seeds):
        return
    frame = over_seeds(evidence, "structure", ["left", "right", "metric"])
    for descriptor in evidence.of_kind("training pictures"):
        pair = frame[
            (frame["metric"] == "CKA")
            & (frame["left"].isin(["delta", descriptor]) & frame["right"].isin(["delta", descriptor]))
        ]
        for row in pair.to_dict("records"):
            yield Claim(
                f"Weights and training pictures (`delta`, `{descriptor}`) arrange LoRAs alike, more than chance would.",
                HELD if row["p"] <= 1 - evidence.level else OPEN,
                f"debiased CKA {Score(row['value'], row['low'], row['high'])}, null {two(row['null'])}, "
                f"largest p of the seeds {row['p']:.3f}; what both know of artists is part of it",
            )


def changed(evidence: Evidence, **settings: Any) -> Study | None:
    """The variant that differs from the study in these settings of training alone (besides extractors)."""
    wanted = {f"training.{key}": value for key, value in settings.items()}
    for changes, study in evidence.variants.values():
        if {key: value for key, value in changes.items() if not key.startswith("extractors.")} == wanted:
            return study
    return None


def _initialisation(evidence: Evidence):
    own = changed(evidence, init="own")
    if own is None:
        return
    scores = pooled(evidence, [own])
    difference = scores.difference("delta", "factors")
    yield Claim(
        "Where every LoRA starts from an A of its own, as LoRAs of different people do, updates tell artists better "
        "than raw factors do.",
        positive(difference),
        f"`delta` {scores.score('delta')}, `factors` {scores.score('factors')}, difference {difference}",
    )
    factors = scores.score("factors")
    yield Claim(
        "With such LoRAs, raw factors (the paper's embedding) are at chance.",
        at_chance(factors),
        f"mAP {factors}, chance {factors.chance:.2f}",
    )


def _mixtures(evidence: Evidence):
    for changes, study in evidence.variants.values():
        if changes.get("plan.mixtures"):
            scores = pooled(evidence, [study])
            for descriptor in ("delta", "factors"):
                if descriptor in scores.descriptors:
                    score = scores.score(descriptor)
                    yield Claim(
                        f"LoRAs trained on random mixtures of artists are at chance (`{descriptor}`): what tells LoRAs "
                        "apart is in the pictures.",
                        at_chance(score),
                        f"mAP {score}, chance {score.chance:.2f}",
                    )


def scenarios(evidence: Evidence) -> Mapping[str, Pooled]:
    """The scenarios of retrieval that the study was asked, pooled."""
    asked = set(evidence.study.frame("queries")["scenario"])
    return {scenario: pooled(evidence, scenario=scenario) for scenario in (KNOWN, UNSEEN) if scenario in asked}
