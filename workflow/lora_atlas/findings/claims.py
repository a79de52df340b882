"""Claims, and whether they held.

Every claim is a test with a p-value, and all claims of a page are corrected together (Holm 1979): a page of twenty
claims at 5 % each would be wrong somewhere more often than not. "Larger" and "smaller" are decided by the two sides of
one test; "at chance" by two one-sided tests against a margin (Schuirmann 1987): a wide interval is no evidence of
nothing. Settings that are called best were chosen on the study's own seed, and are judged on the others.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..descriptors import (
    ACROSS,
    CONSENSUS,
    GENERATED,
    GRADIENT,
    KFAC,
    LEARNT,
    PICTURES,
    PLAIN,
    TRAINING,
    WEIGHTS,
    of_weights,
)
from ..metrics import BEST_CONTROL, intervals
from ..metrics.structure import ARTISTS, WITHIN
from ..tables import KNOWN, WHOLE, WHOLE_UNSEEN
from ..views import COMPONENTS, NO_BASIS, View
from . import gradient
from .evidence import Evidence, Pooled, Score, asked_unseen, over_seeds, pooled, two

HELD, FAILED, OPEN = "held", "did not hold", "undecided"
MARGIN = 0.10  # of mAP: nearer to chance than this is at chance


@dataclass(frozen=True)
class Claim:
    """A sentence; the p-values that it holds and that its opposite does; the numbers that it rests on, in words; how
    many seeds they are of; and the verdict, once all claims are known. `about`: the same claim in other studies, where
    the sentence names what is this study's own (None: it names nothing of the kind)."""

    sentence: str
    holds: float
    fails: float
    numbers: str
    seeds: int
    verdict: str = OPEN
    adjusted: float = 1.0
    about: str | None = None
    one_sided: bool = False  # its opposite cannot be shown

    @property
    def p(self) -> float:
        return self.holds if self.one_sided else min(1.0, 2 * min(self.holds, self.fails))


def larger(sentence: str, score: Score, numbers: str, about: str | None = None) -> Claim:
    """The claim that a difference, or a score over chance, is above nothing."""
    return Claim(sentence, score.larger, score.smaller, numbers, score.n, about=about)


def at_chance(sentence: str, pool: Pooled, descriptor: str) -> Claim:
    """The claim that a score is within MARGIN of chance: both one-sided tests must say so."""
    score = pool.score(descriptor)
    estimate, chance = intervals.crossed(pool.of(descriptor)), float(score.chance or 0.0)
    below, above = estimate.p(chance + MARGIN)[1], estimate.p(max(chance - MARGIN, 0.0))[0]
    above = 0.0 if chance <= MARGIN else above  # a score cannot be below nothing
    outside = min(1.0, 2 * min(estimate.p(chance + MARGIN)[0], estimate.p(max(chance - MARGIN, 0.0))[1]))
    numbers = f"mAP {score}, chance {two(chance)}, margin {two(MARGIN)}"
    return Claim(sentence, max(below, above), outside, numbers, score.n)


def judged(found: list[Claim], confidence: float) -> list[Claim]:
    """The claims with their verdicts: p-values adjusted for all of them together."""
    if not found:
        return []
    p = intervals.holm(np.array([claim.p for claim in found]))
    return [
        replace(
            claim,
            adjusted=float(each),
            verdict=OPEN if each > 1 - confidence else HELD if claim.holds < claim.fails else FAILED,
        )
        for claim, each in zip(found, p, strict=True)
    ]


def claims(evidence: Evidence) -> list[Claim]:
    """The claims of the paper and of this project that the study's tables can decide, judged together."""
    known = pooled(evidence)
    found: list[Claim] = []
    for section in (_controls, _modules, _pictures, _upper):
        found += section(evidence, known, unseen=False)
    if asked_unseen(evidence):
        unseen = pooled(evidence, unseen=True)
        for section in (_controls, _modules, _pictures, _upper):
            found += section(evidence, unseen, unseen=True)
    for more in (_gradient, _calibration, _structure, _initialisation, _mixtures):
        found += more(evidence)
    return judged(found, evidence.confidence)


def speakers(evidence: Evidence, pool: Pooled) -> list[str]:
    """The descriptors that speak for the weights: the headline, and of its kernel the consensus and the plain one."""
    described = evidence.described
    names = [name for name in of_weights(described) if name in pool.descriptors]
    if not names:
        return []
    alike = [name for name in names[1:] if described[name].kernel == described[names[0]].kernel]
    return [names[0], *(name for name in alike if described[name].modules in (GRADIENT, CONSENSUS, PLAIN))]


ARTIST, UNSEEN = "an artist", "an artist that nothing was fitted on"
CONTROLS = "The weights (`{}`) find {} better than every control does."
FOUND = re.compile(re.escape(CONTROLS).replace(r"\{\}", "(.+)"))  # descriptor and whom it finds, of such a claim


def _who(unseen: bool) -> str:
    return UNSEEN if unseen else ARTIST


def _controls(evidence: Evidence, pool: Pooled, *, unseen: bool) -> Iterator[Claim]:
    for descriptor in speakers(evidence, pool) if pool.controls else []:
        margin = pool.difference(descriptor, BEST_CONTROL)
        best = pool.best(pool.controls)
        yield larger(
            CONTROLS.format(descriptor, _who(unseen)),
            margin,
            f"mAP {pool.score(descriptor)}, chance {two(float(pool.chances.mean()))}; margin over the best control "
            f"(`{best}`) {margin}",
        )


def _modules(evidence: Evidence, pool: Pooled, *, unseen: bool) -> Iterator[Claim]:
    """Weighted modules against plain ones, and the scalar against the whole metric; of the headline's kernel."""
    described = evidence.described
    kernel = next((d.kernel for d in described.values() if d.kind == WEIGHTS), None)
    of_kernel = [
        name for name in of_weights(described) if described[name].kernel == kernel and name in pool.descriptors
    ]
    name = {described[each].modules: each for each in of_kernel}
    for how in (GRADIENT, CONSENSUS):
        if how in name and PLAIN in name:
            difference = pool.difference(name[how], name[PLAIN])
            yield larger(
                f"Modules weighted (`{name[how]}`) find {_who(unseen)} better than modules as they are "
                f"(`{name[PLAIN]}`).",
                difference,
                f"mAP {pool.score(name[how])} and {pool.score(name[PLAIN])}, difference {difference}",
            )
    if KFAC in name and GRADIENT in name:
        difference = pool.difference(name[GRADIENT], name[KFAC])
        yield larger(
            f"One number a module (`{name[GRADIENT]}`) does better than the K-FAC metric (`{name[KFAC]}`) for "
            f"{_who(unseen)}.",
            difference,
            f"difference of mAP {difference}",
        )


def best_settings(
    evidence: Evidence, *, unseen: bool, kinds: Sequence[str] = (GENERATED, TRAINING)
) -> list[tuple[str, View]]:
    """Of every extractor's pictures, by kind (generated, training; across: training pictures asked for among generated
    ones), the descriptor and the view that did best on the study's own
    seed: (descriptor, view). The views: no basis or components under each calibration, and each distance."""
    found: dict[tuple[str | None, str], tuple[float, str, View]] = {}
    for view in _views(evidence):
        try:
            pool = pooled(evidence, [evidence.study], unseen=unseen, view=view)
        except ValueError:  # a study whose tables lack the view
            continue
        for name in pool.descriptors:
            descriptor = evidence.described.get(name)
            if descriptor is None or descriptor.kind not in kinds:
                continue
            if descriptor.kind == ACROSS and descriptor.query != PICTURES:
                continue
            key, value = (descriptor.extractor, descriptor.kind), pool.mean(name)
            if key not in found or value > found[key][0]:
                found[key] = (value, name, view)
    return [(name, view) for _, name, view in found.values()]


def _views(evidence: Evidence) -> list[View]:
    frame = evidence.study.frame("queries")
    calibrations = list(dict.fromkeys(frame["calibration"][frame["scenario"] == KNOWN]))
    distances = list(dict.fromkeys(frame["distance"]))
    pairs = [(NO_BASIS, "none"), *((COMPONENTS, calibration) for calibration in calibrations)]
    return [View(basis, calibration, distance) for basis, calibration in pairs for distance in distances]


def _pictures(evidence: Evidence, pool: Pooled, *, unseen: bool) -> Iterator[Claim]:
    every = speakers(evidence, pool)
    weights = [name for name in every if evidence.described[name].modules != PLAIN] or every
    for other, view in best_settings(evidence, unseen=unseen):
        against = pooled(evidence, unseen=unseen, view=view)
        if other not in against.descriptors:
            continue
        training = evidence.described[other].kind == TRAINING
        what = f"{evidence.described[other].label} (`{other}`; {view.label}"
        what += "; nobody has these who is handed a LoRA)" if training else "; its best setting)"
        for descriptor in weights:
            difference = pool.difference(descriptor, other, against)
            yield larger(
                f"The weights (`{descriptor}`) find {_who(unseen)} better than {what} do.",
                difference,
                f"mAP {pool.score(descriptor)} and {against.score(other)}, difference {difference}",
                f"The weights (`{descriptor}`) find {_who(unseen)} better than `{evidence.described[other].extractor}` "
                f"of {'training' if training else 'generated'} pictures does.",
            )


def _gradient(evidence: Evidence) -> Iterator[Claim]:
    """One gradient of a query's pictures against its LoRA, and against looking: at generated pictures, at training
    pictures on both sides."""
    if not gradient.there(evidence):
        return
    # Models that look at pictures, generated ones too: not the base, whose gradient this is.
    looking = {each.extractor for each in evidence.described.values() if each.kind == ACROSS}
    for unseen in (False, True) if asked_unseen(evidence) else (False,):
        one = gradient.attributed(evidence, scenario=WHOLE_UNSEEN if unseen else WHOLE)
        if one is None:
            continue
        rivals = [(name, evidence.view, "the LoRA that was trained on them", f" (`{name}`)")
                  for name in speakers(evidence, pooled(evidence, unseen=unseen))[:1]]  # fmt: skip
        for kind, what in ((ACROSS, "generated pictures of the LoRAs"), (TRAINING, "training pictures on both sides")):
            every = [
                (other, view)
                for other, view in best_settings(evidence, unseen=unseen, kinds=(kind,))
                if evidence.described[other].extractor in looking
            ]
            for other, view in sorted(every, key=lambda pair: -_own(evidence, *pair, unseen=unseen))[:1]:
                seen = evidence.described[other].extractor
                details = f" (`{seen}`: `{other}`, {view.label})"
                rivals.append((other, view, f"{what} do, seen by the best extractor", details))
        for other, view, what, details in rivals:
            against = pooled(evidence, unseen=unseen, view=view)
            if other not in against.descriptors or not one.alike(against):
                continue
            difference = one.difference(gradient.NAME, other, against)
            yield larger(
                f"One gradient of a query's pictures finds the LoRAs of {_who(unseen)} better than {what}{details}.",
                difference,
                f"mAP {one.score(gradient.NAME)} and {against.score(other)}, difference {difference}",
                f"One gradient of a query's pictures finds the LoRAs of {_who(unseen)} better than {what}.",
            )


def _own(evidence: Evidence, descriptor: str, view: View, *, unseen: bool) -> float:
    """How well a descriptor did on the study's own seed."""
    return pooled(evidence, [evidence.study], unseen=unseen, view=view).mean(descriptor)


def _upper(evidence: Evidence, pool: Pooled, *, unseen: bool) -> Iterator[Claim]:
    """A metric learnt from labels, where it is held out: artists that it never saw."""
    learnt = [n for n, d in evidence.described.items() if d.kind == LEARNT and n in pool.descriptors]
    pairs = [(upper, descriptor) for upper in learnt for descriptor in speakers(evidence, pool)[:1]]
    for upper, descriptor in pairs if unseen else []:
        difference = pool.difference(upper, descriptor)
        yield larger(
            f"A weighting of modules learnt from labels of other artists (`{upper}`) finds more than one that saw none "
            f"(`{descriptor}`).",
            difference,
            f"mAP {pool.score(upper)} and {pool.score(descriptor)}, difference {difference}",
        )


def _calibration(evidence: Evidence) -> Iterator[Claim]:
    """Does calibrating principal components help retrieval at all, and does a basis?"""
    frame = evidence.study.frame("queries")
    calibration = evidence.view.calibration
    if calibration == "none" or not {"none", calibration} <= set(frame["calibration"][frame["scenario"] == KNOWN]):
        return
    for descriptor in _plain(evidence)[:1]:
        for distance in ("L2", "cosine"):
            before, after = (pooled(evidence, view=View(COMPONENTS, c, distance)) for c in ("none", calibration))
            difference = after.difference(descriptor, descriptor, before)
            yield larger(
                f"On principal components, calibration (`{calibration}`) helps `{descriptor}` to find an artist, by "
                f"{distance}.",
                difference,
                f"mAP {after.score(descriptor)} with it, {before.score(descriptor)} without, difference {difference}",
            )
        for unseen in (False, True) if asked_unseen(evidence) else (False,):
            whole = pooled(evidence, unseen=unseen, view=View(NO_BASIS, "none", "cosine"))
            parts = pooled(evidence, unseen=unseen, view=View(COMPONENTS, calibration, "L2"))
            difference = whole.difference(descriptor, descriptor, parts)
            # Components of other artists' LoRAs are taken as they are: calibration is of artists that are known.
            which = "the principal components of other artists' LoRAs" if unseen else "calibrated principal components"
            yield larger(
                f"`{descriptor}` finds {_who(unseen)} better without a basis than on {which}.",
                difference,
                f"mAP {whole.score(descriptor)} (no basis, cosine) and {parts.score(descriptor)} (components, L2), "
                f"difference {difference}",
            )


def _plain(evidence: Evidence) -> list[str]:
    return [name for name in of_weights(evidence.described) if evidence.described[name].modules == PLAIN]


def _structure(evidence: Evidence) -> Iterator[Claim]:
    if not all(study.has("structure") for study in evidence.seeds):
        return
    frame = over_seeds(evidence, "structure", ["level", "left", "right", "metric"])
    weights = [n for n, d in evidence.described.items() if d.kind == WEIGHTS]
    sentences: dict[str, Callable[[str, str], str]] = {
        ARTISTS: lambda left, right: f"Weights and training pictures (`{left}`, `{right}`) arrange artists alike.",
        WITHIN: lambda left, right: (
            f"They agree within artists too (`{left}`, `{right}`): sets of one artist's pictures that are unlike have "
            "LoRAs that are unlike."
        ),
    }
    for level, sentence in sentences.items():
        for descriptor in evidence.of_kind(TRAINING):
            pair = [weights[0], descriptor] if weights else []
            rows = frame[
                (frame["level"] == level)
                & (frame["metric"] == "CKA")
                & frame["left"].isin(pair)
                & frame["right"].isin(pair)
                & frame["value"].notna()  # of a descriptor that sees no difference there is none
            ]
            for row in rows.to_dict("records"):
                score = Score(row["value"], row["low"], row["high"])
                yield Claim(
                    sentence(*pair),
                    row["p"],
                    1.0,
                    f"debiased CKA {score}, null {two(row['null'])}, largest p of the seeds {row['p']:.3f}, "
                    f"{'artists' if level == ARTISTS else 'LoRAs within artists'} permuted",
                    len(evidence.seeds),
                    one_sided=True,  # a permutation test asks whether there is anything in common
                )


def _initialisation(evidence: Evidence) -> Iterator[Claim]:
    own = evidence.alike(training__init="own")
    if not own:
        return
    pool = pooled(evidence, own)
    raw = [n for n in _plain(evidence) if evidence.described[n].kernel == "factors" and n in pool.descriptors]
    for descriptor in speakers(evidence, pool):
        for factors in raw:
            if evidence.described[descriptor].kernel == "factors":
                continue
            difference = pool.difference(descriptor, factors)
            yield larger(
                f"Where every LoRA starts from an A of its own, as LoRAs of different people do, updates "
                f"(`{descriptor}`) find an artist better than raw factors (`{factors}`).",
                difference,
                f"mAP {pool.score(descriptor)} and {pool.score(factors)}, difference {difference}",
            )
    for factors in raw:
        yield at_chance(
            f"With such LoRAs, raw factors (`{factors}`, the paper's embedding) are at chance.", pool, factors
        )


def _mixtures(evidence: Evidence) -> Iterator[Claim]:
    mixed = evidence.alike(plan__mixtures=True)
    if not mixed:
        return
    pool = pooled(evidence, mixed)
    for descriptor in speakers(evidence, pool):
        yield at_chance(
            f"LoRAs trained on random mixtures of artists are at chance (`{descriptor}`): what distinguishes LoRAs is "
            "in the pictures.",
            pool,
            descriptor,
        )
