"""The page of a study: its map, its LoRAs and what its tables say, in one HTML file that needs no network.

Data stand in the page as JSON, in a script element that no browser runs; the page's own script makes elements of them
and sets their text, and never parses them as HTML. A content security policy names the digests of the page's script and
style and allows nothing else: no request of whatever kind, no other script, no frame. Charts are SVG of this project's
chart code, of which a list of elements and attributes is kept (`drawing`).
"""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import tables

if TYPE_CHECKING:
    from altair.typing import ChartType

TEMPLATES = Path(__file__).with_name("templates")
SVG = "http://www.w3.org/2000/svg"
# What charts are made of; of anything else that an SVG may hold nothing is kept.
ELEMENTS = {"svg", "g", "path", "rect", "text", "tspan", "line", "circle", "defs", "clipPath"}
ATTRIBUTES = {
    "viewBox", "transform", "d", "fill", "stroke", "opacity", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r",
    "width", "height", "dx", "dy", "id", "class",
}  # fmt: skip
PREFIXES = ("fill-", "stroke-", "font-", "text-", "clip-", "dominant-")
LOCAL = re.compile(r"url\(#[\w-]+\)")


@dataclass(frozen=True)
class Finding:
    """What a table says: a question, a sentence of the table, a chart, and rows that can be saved.

    `table`: its name and where it lies, seen from the page; `rows` in the order of `columns`.
    """

    name: str
    title: str
    sentence: str
    chart: str | None = None
    table: str | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    notes: Sequence[str] = ()

    @property
    def csv(self) -> str:
        """The rows as a table of comma-separated values, with a line of names."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return lines.getvalue()


def write(path: str | Path, data: Mapping[str, Any], findings: Sequence[Finding] = ()) -> None:
    """Write the page, atomically."""
    text = render(data, findings)
    with tables.replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(data: Mapping[str, Any], findings: Sequence[Finding] = ()) -> str:
    """The page as HTML. `data`: what trained.py and folder.py give; `findings` stand below each other on their own."""
    told = dict(data) | {"saved": {each.name: each.csv for each in findings if each.rows}}
    style, script = (_text(TEMPLATES / name) for name in ("atlas.css", "atlas.js"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("atlas.html").render(
        data=data,
        findings=findings,
        json=Markup(escaped(told)),
        style=Markup(style),
        script=Markup(script),
        policy=policy(script, style),
    )


def escaped(value: Any) -> str:
    """JSON as it may stand in a script element: no text of anybody's ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Half of a pair of surrogates is no Unicode text: a name of a file may hold one.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def policy(script: str, style: str) -> str:
    """The content security policy of a page with this one script and this one style."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {digest(script)}",
            f"style-src {digest(style)}",
            "img-src data:",
            "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def drawing(chart: "ChartType", name: str) -> str:
    """A chart as an SVG element that stands within a page, with a name: what it is made of and nothing else."""
    import vl_convert

    from .charts import unframed  # altair, which a page without charts has no use for

    return cleaned(vl_convert.vegalite_to_svg(unframed(chart).to_dict()), name)


def cleaned(svg: str, name: str) -> str:
    """An SVG without whatever is not on the lists of what charts are made of, and with coordinates to a tenth."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(svg)
    _clean(root)
    root.set("role", "img")
    root.set("aria-label", name)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    # Within HTML the element needs no name space.
    return ElementTree.tostring(root, encoding="unicode").replace(f' xmlns="{SVG}"', "", 1)


def _clean(element: ElementTree.Element) -> None:
    for child in list(element):
        if child.tag.removeprefix(f"{{{SVG}}}") in ELEMENTS and child.tag.startswith(f"{{{SVG}}}"):
            _clean(child)
            if not len(child) and child.tag.endswith("}g") and not (child.text or "").strip():
                element.remove(child)
        else:
            element.remove(child)
    for name, value in list(element.attrib.items()):
        kept = name in ATTRIBUTES or name.startswith(PREFIXES)
        # The picture as a whole has a name, and its parts none that a reader would say; a tip shows what they are.
        if name == "aria-label" and element.tag != f"{{{SVG}}}g":
            element.set("data-label", value)
        if not kept or ("url(" in value and not LOCAL.fullmatch(value)):
            del element.attrib[name]
        elif name in ("d", "transform"):
            element.set(name, re.sub(r"-?\d+\.\d{2,}(?:e-?\d+)?", lambda found: f"{float(found[0]):.4g}", value))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def wrapped(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    """Rows for a Finding: numbers to five digits, nothing where there is nothing."""

    def plain(value: Any) -> Any:
        if value is None or value != value:
            return None
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [[plain(row[name]) for name in columns] for row in rows]
