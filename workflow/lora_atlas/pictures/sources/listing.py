"""What every source shares: the questions it answers, ids, the choice among candidates, and rows of pictures."""

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...labels import printable
from ...sections import Pictures
from ...seeds import derive_seed

MAX_ARTIST_BYTES = 2**30  # one artist is one table, in memory at once


class SourceError(ValueError):
    """The source as a whole cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Source:
    """The questions that a source answers; the functions of the same names in `sources` ask them by config.

    `photographs`: its pictures are photographs of things, of which two may show one; the painters of this project
    paint the same motifs on purpose, and nothing twice. Only sources that need a network have `list_pictures` (the rows
    of their manifest) and `fetch` (manifest rows → the store); the others have None. `about`: what its pictures are, in
    a few words that a page of findings can say. `titled_by`: the column of `pictures.manifest` that says which picture
    a title belongs to, where that is a table with titles. `subjects`: whether it knows what its pictures show.
    """

    artists: Callable[[Pictures, str | None], dict[str, str | None]]
    count: Callable[[Pictures, str | None], dict[str, int]]
    digests: Callable[[Pictures, str | None], dict[str, str]]
    collect: Callable[[str, str | None, Pictures, str | None, int], list[dict[str, Any]]]
    list_pictures: Callable[..., list[dict[str, Any]]] | None = None
    fetch: Callable[..., list[dict[str, Any]]] | None = None
    photographs: bool = True
    titled_by: str | None = None
    subjects: bool = False
    about: str = "pictures of the study's own source"


def slug(name: str) -> str:
    """A path-safe id: lower-case ASCII letters, digits, "-" and "_", 1 to 64 characters.

    It is the same for every spelling that differs only in case, accents or punctuation other than the hyphen.

    A name without any such character (北斎) becomes "artist-" and a digest; a long one is cut and gets a digest.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    short = re.sub(r"[^a-z0-9-]+", "_", plain).strip("_-")
    digest = hashlib.sha256(os.fsencode(unicodedata.normalize("NFC", name))).hexdigest()[:10]
    if not short:
        return f"artist-{digest}"
    return short if len(short) <= 64 else f"{short[:53]}-{digest}"


def chosen_order(labels: Iterable[str], artist: str, seed: int) -> list[str]:
    """Candidates in the order in which they are asked for: by a hash of (seed, artist, label)."""
    return sorted(labels, key=lambda label: (derive_seed("choice of pictures", seed, artist, printable(label)), label))


def wanted(pictures: Pictures) -> dict[str, str | None] | None:
    """Id → genre of the artists that pictures.artists names, a list of names or genre → names; None: all.

    A genre is None where the config leaves it to the source.
    """
    named = pictures.artists
    if not named:
        return None
    pairs = (
        [(name, slug(genre)) for genre, names in named.items() for name in names]
        if isinstance(named, Mapping)
        else [(name, None) for name in named]
    )
    found: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for name, genre in pairs:
        if slug(name) in found:
            raise SourceError(
                f"pictures.artists: {names_of([first[slug(name)], name])} are one artist, {slug(name)!r}; name it once"
            )
        found[slug(name)], first[slug(name)] = genre, name
    return found


def choose(listed: Mapping[str, str | None], pictures: Pictures) -> dict[str, str | None]:
    """Of the artists that a source has (id → genre), those that pictures.artists names, in the source's order."""
    named = wanted(pictures)
    if named is None:
        return dict(listed)
    for artist in named:
        if artist not in listed:
            raise SourceError(f"pictures.artists: {unknown(artist, list(listed))}")
    return {artist: named[artist] or genre for artist, genre in listed.items() if artist in named}


def row(
    data: bytes | None, label: str, artist: str, genre: str | None, source: str, licence: str | None = None
) -> dict[str, Any]:
    """A row of the table "pictures", refused until it is shown to be good."""
    digest = hashlib.sha256(label.encode() if data is None else data).hexdigest()
    return {
        "picture": f"path:{digest}" if data is None else digest,
        "artist": artist,
        "genre": genre,
        "image": None if data is None else {"bytes": data, "path": label},
        "width": None,
        "height": None,
        "source": source,
        "licence": licence,
        "subject": None,
        "status": "refused",
        "reason": None,
    }


def judged(found: dict[str, Any], first: dict[str, str], pictures: Pictures) -> dict[str, Any]:
    """A row with bytes, kept when they are a picture and were not seen before; adds it to `first` (id → label)."""
    from ..decode import PictureError, decode, encode_png, to_array, trimmed

    label, data = found["image"]["path"], found["image"]["bytes"]
    if found["picture"] in first:
        return found | {"image": None, "reason": f"same bytes as {first[found['picture']]}"}
    first[found["picture"]] = label
    try:
        image = decode(data, min_side=pictures.min_side)
        if pictures.trim:
            inner = trimmed(image)
            if min(inner.size) < pictures.min_side:
                raise PictureError("too small", f"{inner.width} × {inner.height} pixels within its margins")
            if inner.size != image.size:  # the picture is now another one, and so is its id
                image, data = inner, encode_png(to_array(inner))
                kept = {"subject": found["subject"]}
                found = row(data, label, *(found[key] for key in ("artist", "genre", "source", "licence"))) | kept
                if found["picture"] in first:
                    reason = f"same pixels as {first[found['picture']]} within its margins"
                    return found | {"image": None, "reason": reason}
                first[found["picture"]] = label
    except PictureError as error:
        return found | {"image": None, "reason": str(error)}
    return found | {"width": image.width, "height": image.height, "status": "kept"}


def gathered(
    labels: Iterable[str],
    read: Callable[[str], dict[str, Any]],
    pictures: Pictures,
    what: str,
) -> list[dict[str, Any]]:
    """Rows of candidates in their order, until pictures.per_artist are kept.

    `read`: label → a row of `row`, with its bytes, or without and with a reason. `what`: the artist, for an error.
    Raises SourceError when the pictures of one artist take more than MAX_ARTIST_BYTES.
    """
    rows: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    kept = size = 0
    for label in labels:
        if kept == pictures.per_artist:
            break
        found = read(label)
        name = found["image"] and found["image"]["path"]
        if found["image"] is not None:
            found = judged(found, first, pictures)
        if found["status"] == "refused" and "://" not in found["source"]:
            # A refused row has no image, and its file must be found by somebody.
            found = found | {"source": f"{found['source']}: {name or printable(label)}"}
        rows.append(found)
        if found["status"] == "kept":
            kept += 1
            size += len(found["image"]["bytes"])
        if size > MAX_ARTIST_BYTES:
            raise SourceError(
                f"{what}: {kept} pictures take more than {MAX_ARTIST_BYTES / 2**30:g} GiB; "
                "lower pictures.per_artist, or shrink the files"
            )
    return rows


def at_most(numbers: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """Numbers of pictures, none above the limit."""
    return {artist: number if limit is None else min(number, limit) for artist, number in numbers.items()}


def unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(slug(name), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the source has {names_of(known)}"
    return f"no artist {printable(name)!r}; {hint}"


def names_of(names: Iterable[str]) -> str:
    """At most eight names, quoted and printable."""
    names = [repr(printable(name)) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
