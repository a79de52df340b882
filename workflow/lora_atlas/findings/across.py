"""Across studies: which claims held in which of them.

A claim that holds on one collection of pictures is an anecdote. Every study judges the same claims by its own seeds;
here they stand side by side, a column a study.
"""

from collections.abc import Sequence
from pathlib import Path

from .. import tables
from ..tables import replacing
from .evidence import p_text

NOT_ASKED = "–"


class AcrossError(ValueError):
    """There is nothing to compare; the message says what to run."""


def write(paths: Sequence[str | Path], output: str | Path) -> None:
    """Write the page from tables "claims". Raises AcrossError where there is none, TableError for a damaged one."""
    if not paths:
        raise AcrossError("results/: no study here has claims; run `snakemake findings` of one, then of another")
    studies: dict[str, dict[str, str]] = {}
    bases: dict[str, str] = {}
    for path in paths:
        found = tables.read(path, "claims")
        told = tables.metadata(found)
        name = str(told.get("study", Path(path).parents[1].name))
        bases[name] = str(told.get("base", "unknown"))
        studies[name] = {row["claim"]: _cell(row) for row in found.to_pylist()}
    every = list(dict.fromkeys(claim for claims in studies.values() for claim in claims))
    # What most studies asked comes first; a claim of one study alone is last.
    every.sort(key=lambda claim: -sum(claim in claims for claims in studies.values()))
    lines = [
        "# What held where",
        "",
        "Written by a rule (`snakemake across`) from the claims of every study in results/, each judged by its own "
        "seeds and corrected for all of its claims together: the verdict and the corrected p; – where it does not ask.",
        "",
        *(f"- `{name}`: base `{base}`" for name, base in bases.items()),
        "",
        "| claim | " + " | ".join(f"`{name}`" for name in studies) + " |",
        "|---|" + "---|" * len(studies),
    ]
    for claim in every:
        cells = [claims.get(claim, NOT_ASKED) for claims in studies.values()]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (claim, *cells)) + " |")
    with replacing(output) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(row: dict) -> str:
    return f"**{row['verdict']}** ({p_text(row['p'])}; {row['seeds']} {'seed' if row['seeds'] == 1 else 'seeds'})"
