"""Source "manifest": a table of pictures that anyone can write, one row a picture, fetched by URL.

CSV or Parquet. Columns: `artist`, `url`; optional `genre`, `sha256`, `sha1`, `title`, `author`, `licence`. A hash is
checked; where there is none, the first bytes that came are kept for good (`store`). The sources "huggingface" and
"commons" write such a table and are then read like it.
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ... import tables
from ...labels import printable
from ...sections import Pictures
from .. import store as stores
from .listing import Source, SourceError, at_most, choose, chosen_order, gathered, judged, names_of, row, slug, unknown

REQUIRED = ("artist", "url")
OPTIONAL = ("genre", "sha256", "sha1", "title", "author", "licence")
_HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha1": re.compile(r"[0-9a-f]{40}")}

Entry = dict[str, Any]  # one row of a manifest: REQUIRED and OPTIONAL, None where it says nothing


def read_columns(path: str | Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of a CSV or Parquet file by their place in it ("line 7", "row 3"), as text, "" as None, columns that nobody
    asked for left out.

    Raises SourceError naming the file, the columns and, where there is one, the line.
    """
    path = Path(path)
    try:
        stamp = path.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}; expected a CSV or Parquet file with {_columns(required)}"
        ) from None
    placed = _read(str(path), stamp.st_mtime_ns, stamp.st_size)
    places, rows = [place for place, _ in placed], [found for _, found in placed]
    missing = [name for name in required if rows and name not in rows[0]]
    if missing or not rows:
        there = f"it has {names_of(rows[0])}" if rows else "it has no rows"
        raise SourceError(f"{path}: no column {names_of(missing or required)}; {there}; expected {_columns(required)}")
    kept = [{name: found.get(name) for name in (*required, *optional)} for found in rows]
    for place, found in zip(places, kept, strict=True):
        empty = [name for name in required if not found[name]]
        if empty:
            raise SourceError(f"{path}, {place}: {names_of(empty)} is empty")
    return dict(zip(places, kept, strict=True))


@lru_cache(maxsize=4)
def _read(path: str, changed: int, size: int) -> tuple[tuple[str, dict[str, str | None]], ...]:
    """Place and row. Snakemake's graph asks several questions of one file: it is read once."""
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet as pq

            with open(path, "rb") as file:
                placed = [(f"row {n}", found) for n, found in enumerate(pq.read_table(file).to_pylist(), 1)]
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                # A row may have several lines, and there may be blank ones: the reader knows where it is.
                reader = csv.DictReader(file, strict=True)
                placed = [(f"line {reader.line_num}", found) for found in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(
            f"{path}: cannot be read as {'Parquet' if path.endswith('.parquet') else 'CSV'}: {error}"
        ) from error
    for place, found in placed:
        if None in found:
            raise SourceError(f"{path}, {place}: more fields than the header has; a comma in a field needs quotes")
    return tuple(
        (place, {key: (str(value).strip() or None) if value is not None else None for key, value in found.items()})
        for place, found in placed
    )


def _columns(required: Sequence[str]) -> str:
    return f"the column{'s' if len(required) > 1 else ''} {', '.join(required)}"


def write(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """A manifest as CSV, sorted, so that two versions of it differ in what changed."""
    columns = ["artist", "genre", "url", *OPTIONAL[1:]]
    ordered = sorted(entries, key=lambda entry: (entry["artist"], entry["url"]))
    with tables.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: entry.get(name) or "" for name in columns} for entry in ordered)


def entries_of(pictures: Pictures) -> dict[str, list[Entry]]:
    """Artist id → its rows, of the artists that the config names; raises SourceError for a row that cannot be."""
    path = pictures.manifest
    if path is None:
        raise SourceError(
            f"pictures.source is {pictures.source}, and pictures.manifest is not set: name a CSV or Parquet file "
            f"with {_columns(REQUIRED)} and, if you like, {', '.join(OPTIONAL)}"
        )
    found: dict[str, list[Entry]] = {}
    spelt: dict[str, str] = {}
    genres: dict[str, str | None] = {}
    seen: dict[str, str] = {}
    for place, entry in read_columns(path, REQUIRED, OPTIONAL).items():
        artist, url = slug(entry["artist"]), entry["url"]
        genre = entry["genre"] and slug(entry["genre"])
        if spelt.setdefault(artist, entry["artist"]) != entry["artist"]:
            raise SourceError(
                f"{path}, {place}: {names_of([spelt[artist], entry['artist']])} would both be called {artist!r}; "
                "write one of them throughout, or distinguish them"
            )
        if genres.setdefault(artist, genre) != genre:
            raise SourceError(f"{path}, {place}: {artist} is of two genres, {genres[artist]!r} and {genre!r}")
        if seen.setdefault(url, place) != place:
            raise SourceError(f"{path}, {place}: the URL of {seen[url]} again, {printable(url)[:200]}")
        for kind, form in _HASHES.items():
            if entry[kind] and not form.fullmatch(entry[kind].lower()):
                raise SourceError(f"{path}, {place}: {kind} {printable(entry[kind])[:80]!r} is no such hash")
        hashes = {kind: entry[kind] and entry[kind].lower() for kind in _HASHES}
        found.setdefault(artist, []).append(entry | hashes | {"artist": artist, "genre": genre})
    chosen = choose({artist: genres[artist] for artist in sorted(found)}, pictures)
    return {artist: found[artist] for artist in chosen}


def artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    found = entries_of(pictures)
    return choose({artist: rows[0]["genre"] for artist, rows in found.items()}, pictures)


def count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    return at_most({artist: len(rows) for artist, rows in entries_of(pictures).items()}, pictures.per_artist)


def digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    return {
        artist: hashlib.sha256(repr(sorted(tuple(e.values()) for e in map(_text, rows))).encode()).hexdigest()[:16]
        for artist, rows in entries_of(pictures).items()
    }


def is_there(pictures: Pictures) -> bool:
    """Whether the manifest, which a source on a network writes first, was written; raises where it has no place."""
    if pictures.manifest is None:
        raise SourceError(
            f"pictures.source is {pictures.source}: set pictures.manifest to the path of a CSV that `snakemake "
            "manifest` writes and you commit, such as workflow/studies/mine.csv"
        )
    return Path(pictures.manifest).exists()


def planned(artists: Callable, asked: Callable, unknown_yet: Any = None) -> Callable:
    """A question about a manifest, answered for the artists of the config while there is none yet."""

    def answer(pictures: Pictures, folder: str | None) -> dict[str, Any]:
        if is_there(pictures):
            return asked(pictures, folder)
        return dict.fromkeys(
            artists(pictures, folder), (pictures.per_artist or 10**6) if unknown_yet is None else unknown_yet
        )

    return answer


def client_of(pictures: Pictures) -> Any:
    from ..fetch import Client

    return Client(pictures.contact, private=pictures.private_network)


def _text(entry: Entry) -> dict[str, str]:
    return {name: entry[name] or "" for name in (*REQUIRED, *OPTIONAL)}


def collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    """The rows of one artist from the store, without a network; what was not fetched is refused with the reason."""
    found = entries_of(pictures)
    if artist not in found:
        raise SourceError(unknown(artist, list(found)))
    by_url, store = {entry["url"]: entry for entry in found[artist]}, stores.Store(pictures.store)

    def read(url: str) -> dict[str, Any]:
        entry = by_url[url]
        licence = " · ".join(part for part in (entry["licence"], entry["author"]) if part) or None
        data, reason = store.bytes_of(entry)
        return row(data, printable(url), artist, genre, printable(url), licence) | {"reason": reason}

    # What was never asked for, because enough others were good, is no row.
    asked = [url for url in chosen_order(by_url, artist, seed) if store.asked(by_url[url])]
    return gathered(asked, read, pictures, artist)


def fetch(
    pictures: Pictures,
    seed: int,
    get: Callable[[Sequence[Entry], stores.Store, Callable[[bytes], None]], None],
) -> list[dict[str, Any]]:
    """Fetch what the study needs of its manifest into the store; a row for each picture that was asked for: its
    `url`, `artist`, `status` (kept or refused), `reason`, `sha256` and `size`.

    `get`: entries that the store lacks → the store, whatever becomes of each; it never raises for one picture. Each
    artist's pictures are asked for in the seeded order and only until pictures.per_artist are good: what is
    refused is replaced by the next, and no server is asked for what nobody will look at.
    """
    from ..decode import decode

    def check(data: bytes) -> None:
        decode(data, min_side=pictures.min_side)

    store = stores.Store(pictures.store)
    found = entries_of(pictures)
    waiting: dict[str, list[Entry]] = {}
    asked: dict[str, list[tuple[Entry, bool, str | None]]] = {}
    judges: dict[str, _Judge] = {}
    for artist, rows in found.items():
        by_url = {entry["url"]: entry for entry in rows}
        waiting[artist] = [by_url[url] for url in chosen_order(by_url, artist, seed)]
        asked[artist], judges[artist] = [], _Judge(store, pictures)
    while True:
        batch: list[Entry] = []
        for artist, rest in waiting.items():
            limit = pictures.per_artist
            lacking = len(rest) if limit is None else limit - judges[artist].good
            batch += rest[:lacking]
            waiting[artist] = rest[lacking:]
        if not batch:
            break
        get([entry for entry in batch if store.wants(entry)], store, check)
        for entry in batch:
            asked[entry["artist"]].append((entry, *judges[entry["artist"]].of(entry)))
    return [
        {
            "url": printable(entry["url"]),
            "artist": artist,
            "status": "kept" if good else "refused",
            "reason": None if good else reason,
            "sha256": (store.record(entry) or {}).get("sha256"),
            "size": (store.record(entry) or {}).get("size"),
        }
        for artist, rows in asked.items()
        for entry, good, reason in rows
    ]


class _Judge:
    """Says of one artist's entries, one after another, whether what the store has is a good picture, as `collect` will
    say it; `good`: how many were."""

    def __init__(self, store: stores.Store, pictures: Pictures):
        self.store, self.pictures = store, pictures
        self.first: dict[str, str] = {}
        self.good = 0

    def of(self, entry: Entry) -> tuple[bool, str | None]:
        """Whether it is, and why not."""
        data, reason = self.store.bytes_of(entry)
        if data is None:
            return False, reason
        found = judged(row(data, printable(entry["url"]), entry["artist"], None, "manifest"), self.first, self.pictures)
        kept = found["status"] == "kept"
        self.good += kept
        return kept, found["reason"]


def good(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Artist → number of good pictures among rows of `fetch`."""
    counts = dict.fromkeys((each["artist"] for each in rows), 0)
    for each in rows:
        counts[each["artist"]] += each["status"] == "kept"
    return counts


def lacks(artist: str, pictures: Pictures, seed: int, settled: bool) -> bool:
    """Whether the store lacks something that this artist needs; `settled`: it was asked for, and that is enough."""
    if settled:
        return False
    store = stores.Store(pictures.store)
    judge = _Judge(store, pictures)
    by_url = {entry["url"]: entry for entry in entries_of(pictures).get(artist, [])}
    if not any(map(store.wants, by_url.values())):
        return False  # there is nothing left to ask for, and nothing need be decoded to see it
    for url in chosen_order(by_url, artist, seed):
        if judge.good == pictures.per_artist:
            break
        if store.wants(by_url[url]):
            return True
        judge.of(by_url[url])
    return False


def _fetch(pictures: Pictures, seed: int) -> list[dict[str, Any]]:
    from .. import fetch as network

    return fetch(pictures, seed, network.getter(pictures))


SOURCE = Source(artists, count, digests, collect, fetch=_fetch, titled_by="url", about="pictures that a manifest lists")
