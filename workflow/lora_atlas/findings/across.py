"""Across studies: which claims held in which of them, and whether two bases arrange the same LoRAs alike.

A claim that holds on one collection of pictures is an anecdote. Every study judges the same claims by its own seeds;
here they stand side by side, a column a study.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import tables
from ..tables import replacing
from .bases import Told, compare, section
from .claims import ARTIST, FOUND, UNSEEN
from .evidence import p_text, row_of

NOT_ASKED = "–"


class AcrossError(ValueError):
    """There is nothing to compare; the message says what to run."""


def write(
    paths: Sequence[str | Path], output: str | Path, *, permutations: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Write the page from tables "claims" (results/STUDY/tables/claims.parquet); returns rows of the table "bases".

    Raises AcrossError where there are no claims, TableError for a damaged table.
    """
    if not paths:
        raise AcrossError("results/: no study here has claims; run `snakemake findings` of one, then of another")
    studies: dict[str, dict[str, str]] = {}
    numbers = []
    known = []
    for path in paths:
        found = tables.read(path, "claims")
        known.append(Told.of(path, found))
        judged = found.to_pylist()
        studies[known[-1].name] = {row["claim"]: _cell(row) for row in judged}
        numbers += _numbers(known[-1].name, judged)
    every = list(dict.fromkeys(claim for claims in studies.values() for claim in claims))
    # What most studies asked comes first; a claim of one study alone is last.
    every.sort(key=lambda claim: -sum(claim in claims for claims in studies.values()))
    lines = [
        "# What held where",
        "",
        "Written by a rule (`snakemake across`) from the claims of every study in results/, each judged by its own "
        "seeds and corrected for all of its claims together: the verdict and the corrected p; – where it does not ask.",
        "",
        *(f"- `{study.name}`: base `{study.base}`" for study in known),
        "",
    ]
    if numbers:
        lines += ["How well the weights find an artist (mean average precision):", ""]
        lines += _table([("study", "by", ARTIST, UNSEEN), *numbers])
    cells = [(claim, *(claims.get(claim, NOT_ASKED) for claims in studies.values())) for claim in every]
    lines += _table([("claim", *(f"`{name}`" for name in studies)), *cells])
    rows = list(compare(known, permutations=permutations, confidence=confidence, seed=seed))
    lines += section(known, rows) if rows else []
    with replacing(output) as temporary:
        temporary.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    return rows


def _numbers(study: str, rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Study, descriptor, and how well that finds artists: known ones, and those that nothing was fitted on."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if match := FOUND.fullmatch(row["claim"]):
            found.setdefault(match[1], {})[match[2]] = row["numbers"]
    return [
        (f"`{study}`", f"`{descriptor}`", *(said.get(who, NOT_ASKED) for who in (ARTIST, UNSEEN)))
        for descriptor, said in found.items()
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of Markdown, of which the first row is the head."""
    head, *lines = map(row_of, rows)
    return [head, "|---" * len(rows[0]) + "|", *lines, ""]


def _cell(row: dict) -> str:
    return f"**{row['verdict']}** ({p_text(row['p'])}; {row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'})"
