"""One gradient: what the pictures of a query find without a LoRA of their own, beside what its LoRA finds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..attribution.study import ABSENT, ALARM, BOTH, CENTRINGS
from ..attribution.ways import OWN
from ..descriptors import CONSENSUS, GRADIENT, PLAIN
from ..metrics import worth
from ..tables import SCHEMAS, WHOLE, WHOLE_UNSEEN
from .evidence import Evidence, Pooled, Study

NAME = "one gradient"


def there(evidence: Evidence) -> bool:
    """Whether all studies that verdicts come from asked their base."""
    return all(study.has("attribution_queries") for study in evidence.seeds)


def attributed(
    evidence: Evidence,
    *,
    scenario: str = WHOLE,
    pictures: int | None = None,
    modules: str = PLAIN,
    centring: str = BOTH,
    metric: str = "mAP",
) -> Pooled | None:
    """Scores of one way to ask, by seed and artist, in the form in which those of descriptors come; None where it was
    not asked."""
    asked = {"scenario": scenario, "modules": modules, "centring": centring, "metric": metric}
    return _pooled(evidence, "attribution_queries", asked, pictures)


def _pooled(evidence: Evidence, table: str, asked: dict[str, Any], pictures: int | None) -> Pooled | None:
    """Scores of the rows of a table of queries that say what was asked, by seed and artist."""
    wide = []
    chances = []
    for study in evidence.seeds:
        frame = study.frame(table)
        size = frame["pictures"].isna() if pictures is None else frame["pictures"] == pictures
        chosen = frame[size & np.logical_and.reduce([frame[key] == value for key, value in asked.items()])]
        wide.append(chosen.groupby("artist")["value"].mean())
        chances.append(chosen["chance"].mean())
    artists = sorted(set().union(*(each.index for each in wide)))
    if not artists:
        return None
    cube = np.stack([each.reindex(artists).to_numpy(float) for each in wide])[None]
    return Pooled([NAME], cube, np.array([np.nanmean(chances)]), evidence.confidence, [])


def other_ways(evidence: Evidence) -> Iterator[list[str]]:
    """Rows: another way to ask and its setting; mAP by all pictures and by single ones, and of generated pictures how
    often the very LoRA is ranked first by all. None where a study was not asked so."""
    if not all(study.has("attribution_way_queries") for study in evidence.seeds):
        return
    frames = [study.frame("attribution_way_queries") for study in evidence.seeds]
    for way, setting in dict.fromkeys(tuple(key) for frame in frames for key in frame[["way", "setting"]].to_numpy()):
        asked = {"way": way, "setting": setting}
        found = [
            _pooled(evidence, "attribution_way_queries", asked | {"metric": metric}, pictures)
            for metric, pictures in (("mAP", None), ("mAP", 1), (OWN, None))
        ]
        yield [way, setting, *("" if each is None else str(each.score(NAME)) for each in found)]


def _sizes(evidence: Evidence) -> list[tuple[int | None, str]]:
    """How many pictures of a query were asked about, and the same in words; all of them first."""
    sizes = {int(m) for s in evidence.seeds for m in s.frame("attribution_queries")["pictures"].dropna()}
    return [(None, "all of a query"), *((m, str(m)) for m in sorted(sizes))]


def ways(evidence: Evidence) -> Iterator[list[str]]:
    """Rows: a way to ask, mAP and R@1 of known artists, mAP of unseen ones."""
    for pictures, many in _sizes(evidence):
        for modules in (PLAIN, GRADIENT, CONSENSUS) if pictures is None else (PLAIN,):
            for centring in CENTRINGS if pictures is None and modules == PLAIN else (BOTH,):
                asked: dict[str, Any] = {"pictures": pictures, "modules": modules, "centring": centring}
                found = [
                    attributed(evidence, **asked),
                    attributed(evidence, metric="R@1", **asked),
                    attributed(evidence, scenario=WHOLE_UNSEEN, **asked),
                ]
                if found[0] is not None:
                    cells = ["" if each is None else str(each.score(NAME)) for each in found]
                    yield [many, modules, centring, *cells]


def alarms(evidence: Evidence) -> Iterator[list[str]]:
    """Rows: how often any LoRA is found at ALPHA, with the artist's LoRAs there and without them."""
    for pictures, many in _sizes(evidence):
        there_, absent = (
            attributed(evidence, scenario=scenario, pictures=pictures, metric=ALARM) for scenario in (WHOLE, ABSENT)
        )
        if there_ is not None and absent is not None:
            yield [many, str(there_.score(NAME)), str(absent.score(NAME))]


def worth_in_pictures(evidence: Evidence, descriptors: Sequence[str]) -> list[dict[str, Any]]:
    """Where the gradient of so many training pictures finds as much as the LoRA trained on all of them, as
    worth.pooled gives it; of the queries with most pictures."""
    studies = []
    for study in evidence.seeds:
        frame = study.frame("attribution_queries")
        asked = (frame["scenario"] == WHOLE) & (frame["modules"] == PLAIN) & (frame["centring"] == BOTH)
        frame = frame[asked & (frame["metric"] == "mAP")]
        plan = study_plan(evidence, study)
        most = max(plan[lora] for lora in frame["lora"])
        frame = frame[frame["lora"].map(plan) == most]
        curve = frame.assign(pictures=frame["pictures"].fillna(most).astype(int), descriptor=NAME)
        curve = curve[SCHEMAS["worth_queries"].names].drop_duplicates(["lora", "pictures"])
        reference = worth.references(study.table("queries"), descriptors, evidence.view).to_pandas()
        reference = reference[(reference["metric"] == "mAP") & reference["lora"].isin(set(curve["lora"]))]
        studies.append(
            (
                pa.Table.from_pandas(curve, SCHEMAS["worth_queries"], preserve_index=False),
                pa.Table.from_pandas(reference, SCHEMAS["queries"], preserve_index=False),
            )
        )
    return worth.pooled(
        studies, {}, {}, bootstrap=evidence.bootstrap, confidence=evidence.confidence, seed=evidence.seed
    )


def study_plan(evidence: Evidence, study: Study) -> dict[str, int]:
    """LoRA → number of its training pictures; of a variant that shares the study's plan, the study's."""
    for each in (study, evidence.study):
        if (plan := each.plan()) is not None:
            rows = plan.select(["lora", "pictures"]).to_pylist()
            return {row["lora"]: len(row["pictures"]) for row in rows}
    return {}
