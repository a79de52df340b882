"""Source "artbench": ArtBench-10 as its authors publish it (Liao et al. 2022, arXiv 2206.11404).

`pictures.manifest` is the metadata CSV (columns `name`, `artist`, `label`, and more), `folder` the image folder with
<label>/<name>, or <split>/<label>/<name>. An artist who stands under two styles is taken in the one that
pictures.artists names, else in the one with the more pictures: a genre here is one label an artist.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import machine
from ...keys import DIGESTS
from ...labels import printable
from ...sections import Pictures
from .listing import Source, SourceError, at_most, choose, chosen_order, gathered, names_of, row, slug, unknown, wanted
from .manifest import read_columns

REQUIRED = ("name", "artist", "label")
OPTIONAL = ("split", "is_public_domain")


def _entries(pictures: Pictures, folder: str | None) -> dict[str, list[dict[str, Any]]]:
    """Artist id → rows of the metadata, each with `artist` and `genre` as ids; empty lists before there is a CSV."""
    path, named = pictures.manifest, wanted(pictures)
    if path is None or folder is None:
        raise SourceError(
            "pictures.source is artbench: set pictures.manifest to the path of ArtBench-10.csv, and `folder` to that "
            "of the image folder beside it; with pictures.archive they are downloaded to there"
        )
    if not Path(path).exists() and pictures.archive:
        if named is None:
            raise SourceError(f"{path} is still to be fetched: name the artists of the study in pictures.artists")
        return {artist: [] for artist in named}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for entry in read_columns(path, REQUIRED, OPTIONAL).values():
        genre = slug(entry["label"])
        found.setdefault(slug(entry["artist"]), {}).setdefault(genre, []).append(entry | {"genre": genre})
    if named is not None:
        for artist, asked in named.items():
            if artist in found and asked is not None and asked not in found[artist]:
                raise SourceError(
                    f"{path}: {artist} has no pictures of {asked!r}, but of {names_of(sorted(found[artist]))}"
                )
    chosen = choose(dict.fromkeys(sorted(found)), pictures)
    largest = {artist: max(sorted(found[artist]), key=lambda g: len(found[artist][g])) for artist in chosen}
    return {artist: found[artist][genre or largest[artist]] for artist, genre in chosen.items()}


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    named = wanted(pictures) or {}
    entries = _entries(pictures, folder)
    return {artist: rows[0]["genre"] if rows else named.get(artist) for artist, rows in entries.items()}


def _count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    numbers = {artist: len(rows) for artist, rows in _entries(pictures, folder).items()}
    if not any(numbers.values()):  # not known yet: as many as are asked for
        numbers = dict.fromkeys(numbers, pictures.per_artist or 10**6)
    return at_most(numbers, pictures.per_artist)


def _digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    found = _entries(pictures, folder)
    if pictures.archive or folder is None:
        # What is published does not change: before and after it was fetched an artist is the same.
        return dict.fromkeys(found, "ArtBench-10")

    def held(entry: Mapping[str, Any]) -> Any:
        file = next((place for place in _places(folder, entry) if place.is_file()), None)
        return dict(entry), None if file is None else DIGESTS.file(file)

    return {artist: hashlib.sha256(repr([*map(held, own)]).encode()).hexdigest() for artist, own in found.items()}


def _places(folder: str | Path, entry: Mapping[str, Any]) -> list[Path]:
    splits = [entry["split"]] if entry["split"] in ("train", "test") else []
    return [Path(folder, *part, entry["label"], entry["name"]) for part in ([], *([split] for split in splits))]


def _collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    from ..decode import MAX_BYTES

    found = _entries(pictures, folder)
    if artist not in found:
        raise SourceError(unknown(artist, list(found)))
    assert folder is not None  # there are no entries without one
    by_name = {entry["name"]: entry for entry in found[artist]}

    def read(name: str) -> dict[str, Any]:
        entry, label = by_name[name], printable(f"{by_name[name]['label']}/{name}")
        licence = "public domain" if (entry["is_public_domain"] or "").lower() == "true" else None
        if Path(name).name != name or Path(entry["label"]).name != entry["label"]:
            return row(None, label, artist, genre, "artbench", licence) | {"reason": "unreadable: its name is a path"}
        places = _places(folder, entry)
        try:
            place = next((place for place in places if place.exists()), places[0])
            data = place.read_bytes() if place.stat().st_size <= MAX_BYTES else None
        except OSError as error:
            if machine.at_fault(error):
                raise
            return row(None, label, artist, genre, "artbench", licence) | {"reason": f"unreadable: {error.strerror}"}
        if data is None:
            return row(None, label, artist, genre, "artbench", licence) | {"reason": "too large"}
        return row(data, label, artist, genre, "artbench", licence)

    return gathered(chosen_order(by_name, artist, seed), read, pictures, artist)


SOURCE = Source(_artists, _count, _digests, _collect, about="photographs of works of art in ArtBench-10")
