"""The page of a query: of each file that was asked about, the nearest known LoRAs and what that is worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import tables
from ..collection.query import voted
from .page import TEMPLATES, policy

Row = Mapping[str, Any]


def write(path: str | Path, study: str, rows: Sequence[Row], *, linked: bool = True) -> None:
    """Write the page of rows of the table "query", atomically; `linked` to the page of all LoRAs, if it is there."""
    text = render(study, rows, linked=linked)
    with tables.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(study: str, rows: Sequence[Row], *, linked: bool = True) -> str:
    """The page as HTML; it has no script."""
    style = (TEMPLATES / "atlas.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    answers = [
        answer([row for row in rows if row["query"] == name]) for name in dict.fromkeys(r["query"] for r in rows)
    ]
    return environment.get_template("query.html").render(
        study=study, answers=answers, linked=linked, style=Markup(style), policy=policy("", style)
    )


def answer(rows: Sequence[Row]) -> dict[str, Any]:
    """What is said of one query: a sentence, and a line a neighbour."""
    first = rows[0]
    return {
        "name": first["query"],
        "refused": first["reason"] if first["status"] == "refused" else None,
        "space": first["space"],
        "says": says(first),
        "labelled": any(row["artist"] or row["genre"] for row in rows),
        "near": [{**row, "mark": mark(row)} for row in rows if row["rank"] is not None],
    }


def mark(row: Row) -> tuple[str, str, str]:
    """A sign, its style, and words for how a neighbour is related. `chance`: the cosine that unrelated LoRAs reach."""
    if row["relation"]:
        return "=", "right", row["relation"]
    if row["chance"] is None:
        return "", "kin", "too few LoRAs to tell"
    if row["cosine"] > row["chance"]:
        return "✓", "right", "nearer than chance"
    return "–", "kin", "unrelated: no nearer than chance"


def says(first: Row) -> str:
    """What the neighbours say of a query, by the row of the nearest."""
    if first["status"] == "refused":
        return ""
    if first["relation"]:
        return f"It is known: {first['relation']} as {first['lora']}."
    if votes := voted(first):
        return f"Its neighbours speak for {votes}."
    if first["chance"] is None:
        return "So few LoRAs do not tell what is nearer than chance."
    nearer = first["cosine"] > first["chance"]
    return "Some are nearer than chance." if nearer else "It is unrelated to all of them: none is nearer than chance."
