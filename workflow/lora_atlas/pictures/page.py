"""The page of a study's pictures: what was kept, what was refused, and why. One file, which needs no network.

Everything that a server or a user wrote (names, titles, licences, reasons) is text: Jinja2 escapes it, links are only
made of http and https, and pictures are shown as small JPEGs that were encoded here.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from .. import tables
from ..sections import Pictures
from ..study import needed
from .decode import decode
from .sources import titles

SIDE = 112  # pixels of a thumbnail
SHOWN = 60  # pictures of an artist; the rest is counted
KINDS = {
    "near-duplicate under": "near-duplicate of another artist's",
    "near-duplicate": "near-duplicate of the same artist's",
    "same bytes": "same bytes as another",
}
TEMPLATES = Path(__file__).with_name("templates")


def write(
    path: str | Path,
    study: str,
    paths: Sequence[str | Path],
    duplicates: str | Path,
    plan: Mapping[str, Any],
    pictures: Pictures,
) -> None:
    """Write the page of tables "pictures" and "duplicates"; `plan` and `pictures` are sections of the config."""
    html = render(
        study, [tables.read(p, "pictures") for p in paths], tables.read(duplicates, "duplicates"), plan, pictures
    )
    with tables.replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(study: str, found: Sequence[Any], duplicates: Any, plan: Mapping[str, Any], pictures: Pictures) -> str:
    """The page as HTML."""
    alike = {row["picture"]: row["reason"] for row in duplicates.to_pylist()}
    said = titles(pictures)
    artists = [_artist(table, alike, said) for table in found]
    artists.sort(key=lambda artist: (artist["genre"] or "", artist["name"]))
    reasons: Counter[str] = Counter()
    for artist in artists:
        reasons.update(artist["reasons"])
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("pictures.html").render(
        study=study,
        source=pictures.source,
        needed=needed(plan),
        artists=artists,
        reasons=reasons.most_common(),
        kept=sum(artist["kept"] for artist in artists),
        refused=sum(artist["refused"] for artist in artists),
        bytes=sum(artist["bytes"] for artist in artists),
        shown=SHOWN,
    )


def _artist(table: Any, alike: Mapping[str, str], said: Mapping[str, str]) -> dict[str, Any]:
    tiles: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    kept = size = 0
    for part in table.to_batches(max_chunksize=16):
        for row in part.to_pylist():
            first = first or row
            reason = row["reason"] if row["status"] == "refused" else alike.get(row["picture"])
            kept += reason is None
            size += len(row["image"]["bytes"]) if row["image"] else 0
            few = sum((tile["reason"] is None) == (reason is None) for tile in tiles) < SHOWN
            if few:
                tiles.append(_tile(row, reason, said))
            else:
                tiles.append({"reason": reason, "more": True})
    return {
        "name": first.get("artist", ""),
        "genre": first.get("genre"),
        "kept": kept,
        "refused": len(tiles) - kept,
        "bytes": size,
        "good": [tile for tile in tiles if tile["reason"] is None and not tile["more"]],
        "bad": [tile for tile in tiles if tile["reason"] is not None and not tile["more"]],
        "more": sum(tile["more"] for tile in tiles),
        "reasons": Counter(_kind(tile["reason"]) for tile in tiles if tile["reason"]),
        "licences": Counter(tile["licence"] for tile in tiles if not tile["more"] and tile["licence"]).most_common(4),
    }


def _tile(row: Mapping[str, Any], reason: str | None, said: Mapping[str, str]) -> dict[str, Any]:
    label = row["image"]["path"] if row["image"] else row["source"].partition(": ")[2] or None
    source = row["source"]
    return {
        "more": False,
        "reason": reason,
        "label": said.get(source)
        or said.get(label or "")
        or label
        or (source if "://" in source else row["picture"][:17]),
        "size": f"{row['width']} × {row['height']}" if row["width"] else "",
        "licence": row["licence"] or "",
        "link": source if source.startswith(("https://", "http://")) else None,
        "image": _thumbnail(row["image"]["bytes"]) if row["image"] else None,
    }


def _kind(reason: str) -> str:
    """A reason without what differs from picture to picture."""
    if reason.startswith("HTTP "):
        return " ".join(reason.split()[:2])
    for start, kind in KINDS.items():
        if reason.startswith(start):
            return kind
    return reason.split(":")[0]


def _thumbnail(data: bytes) -> str:
    image = decode(data, min_side=1)
    image.thumbnail((SIDE * 2, SIDE * 2), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
