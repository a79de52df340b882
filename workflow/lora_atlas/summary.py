"""The result of a study in a few lines: how well each description of a LoRA tells artists, and what it costs.

``python -m lora_atlas.summary results/demo`` prints it; ``--page FILE`` puts it between that file's marks, and
``--readme FILE`` what one looks at first.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import tables
from .descriptors import KINDS, restored
from .findings.cost import seconds_per_lora
from .views import View


@dataclass(frozen=True)
class Line:
    """One descriptor at artist level; `mAP` is (value, low, high), `seconds` per LoRA."""

    descriptor: str
    kind: str
    mAP: tuple[float, float, float]
    recall: float
    ari: float
    chance: float
    seconds: float | None


def lines(retrieval: Any, clustering: Any, cost: Any) -> list[Line]:
    """Lines of a study's tables, best first within a kind; descriptors that compare across sources are left out."""
    told = tables.metadata(retrieval)
    kinds, view = told["kinds"], View(**told["view"])
    headline = (*view.known, view.distance, "artist")
    scores = {
        (row["descriptor"], row["metric"]): row
        for row in retrieval.to_pylist()
        if (row["scenario"], row["calibration"], row["distance"], row["level"]) == headline
    }
    ward = {
        row["descriptor"]: row["value"]
        for row in clustering.to_pylist()
        if (row["scenario"], row["level"], row["algorithm"], row["metric"]) == (view.together, "artist", "Ward", "ARI")
    }
    seconds = seconds_per_lora(cost, restored(told["descriptors"]))
    found = []
    for descriptor, kind in kinds.items():
        row = scores[descriptor, "mAP"]
        found.append(
            Line(
                descriptor,
                kind,
                (row["value"], row["low"], row["high"]),
                scores[descriptor, "R@1"]["value"],
                ward[descriptor],
                row["chance"],
                seconds[descriptor],
            )
        )
    return sorted(found, key=lambda line: (KINDS.index(line.kind), -line.mAP[0]))


def _columns(found: list[Line]) -> list[list[str]]:
    return [
        [
            line.descriptor,
            line.kind,
            f"{line.mAP[0]:.2f} ({line.mAP[1]:.2f}–{line.mAP[2]:.2f})",
            f"{line.recall:.2f}",
            f"{line.ari:.2f}",
            "" if line.seconds is None else f"{line.seconds:.2g}",
        ]
        for line in found
    ]


HEADER = ["descriptor", "looks at", "mAP (interval)", "R@1", "Ward ARI", "seconds a LoRA"]


def markdown(found: list[Line]) -> str:
    """The summary as a Markdown table."""
    rows = [HEADER, ["---", "---", *["---:"] * 4], *_columns(found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shortened(found: list[Line], plain: str = "delta") -> list[Line]:
    """Of each kind the best two, and the plain weights: what one looks at first."""
    place = {line.descriptor: sum(other.kind == line.kind for other in found[:i]) for i, line in enumerate(found)}
    return [line for line in found if place[line.descriptor] < 2 or line.descriptor == plain]


def marked(text: str, table: str) -> str:
    """The text with the table between its marks; ValueError where there are no marks."""
    start, end = "<!-- results: written by `make readme` -->", "<!-- /results -->"
    before, opening, rest = text.partition(start)
    _, closing, after = rest.partition(end)
    if not (opening and closing):
        raise ValueError(f"the text lacks the marks {start} and {end}")
    return f"{before}{start}\n{table}\n{end}{after}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lora_atlas.summary", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="the study's folder, such as results/demo")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table into FILE instead of printing it")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write its most telling lines into FILE")
    asked = parser.parse_args(arguments)
    try:
        parts = [tables.read(asked.study / "tables" / f"{t}.parquet", t) for t in ("retrieval", "clustering", "cost")]
    except tables.TableError as error:
        sys.exit(f"{error}\nrun `snakemake tables` first")
    found = lines(*parts)
    for file, shown in ((asked.page, found), (asked.readme, shortened(found))):
        if file:
            file.write_text(marked(file.read_text(), markdown(shown)))
    if asked.page or asked.readme:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    printed = Table(
        title="Telling artists apart: a query LoRA among the gallery's", title_justify="left", box=SIMPLE_HEAD
    )
    for number, name in enumerate(HEADER[:1] + HEADER[2:]):
        printed.add_column(name, justify="right" if number else "left", no_wrap=True)
    for kind in KINDS:
        part = [line for line in found if line.kind == kind]
        if part:
            printed.add_row(f"[bold]{kind}[/bold]")
        for name, _, *scores in _columns(part):
            printed.add_row("  " + name, *scores)
        printed.add_section()
    console = Console()
    console.print(printed)
    console.print(f"Chance: mAP {found[0].chance:.2f}, ARI 0.  Tables: {asked.study / 'tables'}", soft_wrap=True)
    if (page := asked.study / "atlas.html").is_file():
        console.print(f"Page: {page}", soft_wrap=True)
    for chart in sorted((asked.study / "charts").glob("*.png")):
        console.print(f"Chart: {chart}", soft_wrap=True)


if __name__ == "__main__":
    main()
