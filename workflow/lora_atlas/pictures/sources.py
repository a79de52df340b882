"""Where pictures come from: one signature for every source, found by name in SOURCES.

Decisions:

- Listing is cheap (it happens whenever Snakemake builds its graph) and never opens a picture; reading one
  artist's pictures is one job. So ``count`` is an upper bound: files that turn out to be refused are known only
  after reading.
- The id of an artist is a slug, safe in any path, wildcard or HTML attribute. Folder names stay out of paths
  and appear only as labels. Two names with one slug are an error that names both: nothing is merged silently.
- Which pictures ``per_artist`` keeps is decided by a hash of (seed, artist, file), not by order: one file more
  or less changes at most one choice, and refused files do not use up places.
- Kept pictures are stored as the bytes that were found. What they decode to is decided where they are used, so
  that no stage inherits another's resolution; the id of a picture is the SHA-256 of those bytes.
- A bad file is a row with a reason. Only an artist or a folder that is absent stops a study.
"""

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..seeds import derive_seed

# Files under other names (captions, tables, a README) are not candidates. Files under these names are, whatever
# they hold, and formats that are not read are among them: both end as refused rows that say why.
CANDIDATES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif")
    + (".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".eps", ".ppm", ".tga")
)
MAX_ARTIST_BYTES = 2**30  # one artist is one table, in memory at once
SYNTHETIC_PICTURES = 48
SYNTHETIC_SIDE = 64  # pixels, unless pictures.min_side asks for more

LAYOUT = """expected one folder of pictures per artist,
    {folder}/monet/water-lilies.jpg
    {folder}/hiroshige/station-12.png
or the same within genres,
    {folder}/impressionism/monet/water-lilies.jpg
    {folder}/ukiyo-e/hiroshige/station-12.png"""


class SourceError(ValueError):
    """The source as a whole cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Source:
    """The three questions that a source answers; the functions of the same names, below, ask them by config."""

    artists: Callable[[Mapping[str, Any], str | None], dict[str, str | None]]
    count: Callable[[Mapping[str, Any], str | None], dict[str, int]]
    collect: Callable[[str, str | None, Mapping[str, Any], str | None, int], list[dict[str, Any]]]


def artists(pictures: Mapping[str, Any], folder: str | None) -> dict[str, str | None]:
    """Artist id → genre (None where the source knows none), in the order of the source.

    `pictures`: the section of that name of the config; `folder`: its key of that name. Raises SourceError when the
    source is unknown or has no artists, or when pictures["artists"] names one that it does not have.
    """
    return _source(pictures).artists(pictures, folder)


def count(pictures: Mapping[str, Any], folder: str | None) -> dict[str, int]:
    """Artist id → how many pictures there can be at most; fewer when some are refused."""
    return _source(pictures).count(pictures, folder)


def collect(
    artist: str, genre: str | None, pictures: Mapping[str, Any], folder: str | None, seed: int
) -> list[dict[str, Any]]:
    """One artist's pictures as rows of the table "pictures", kept and refused, in the seeded order of choice.

    A row that could not be read has the id "path:" + SHA-256 of its label, and no image.
    """
    return _source(pictures).collect(artist, genre, pictures, folder, seed)


def slug(name: str) -> str:
    """A path-safe id: lower-case ASCII letters, digits, "-" and "_", 1 to 64 characters.

    It is the same for every spelling that differs only in case, accents or punctuation.

    A name without any such character (北斎) becomes "artist-" and a digest; a long one is cut and gets a digest.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    short = re.sub(r"[^a-z0-9-]+", "_", plain).strip("_-")
    digest = hashlib.sha256(os.fsencode(unicodedata.normalize("NFC", name))).hexdigest()[:10]
    if not short:
        return f"artist-{digest}"
    return short if len(short) <= 64 else f"{short[:53]}-{digest}"


# --- synthetic: the painters of this project


def _synthetic_artists(pictures: Mapping[str, Any], folder: str | None) -> dict[str, str | None]:
    from .synthetic import ARTISTS

    limit = pictures["artists_per_genre"]
    taken: dict[str, int] = {}
    listed: dict[str, str | None] = {}
    for name, style in ARTISTS.items():
        if taken.get(style.genre, 0) < limit:
            listed[name] = style.genre
            taken[style.genre] = taken.get(style.genre, 0) + 1
    beyond = [name for name in pictures["artists"] or [] if name in ARTISTS and name not in listed]
    if beyond:
        raise SourceError(
            f"pictures.artists names {_names(beyond)}, not among the first {limit} of each genre: "
            "raise pictures.artists_per_genre"
        )
    return _chosen(listed, pictures["artists"])


def _synthetic_count(pictures: Mapping[str, Any], folder: str | None) -> dict[str, int]:
    each = _synthetic_number(pictures)
    return dict.fromkeys(_synthetic_artists(pictures, folder), each)


def _synthetic_number(pictures: Mapping[str, Any]) -> int:
    return SYNTHETIC_PICTURES if pictures["per_artist"] is None else pictures["per_artist"]


def _synthetic_collect(
    artist: str, genre: str | None, pictures: Mapping[str, Any], folder: str | None, seed: int
) -> list[dict[str, Any]]:
    from .decode import encode_png
    from .synthetic import ARTISTS, CONTENTS, paint

    if artist not in ARTISTS:
        raise SourceError(_unknown(artist, list(ARTISTS)))
    side = max(SYNTHETIC_SIDE, pictures["min_side"])
    contents = list(CONTENTS)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number in range(_synthetic_number(pictures)):
        content = contents[number % len(contents)]
        painted = paint(ARTISTS[artist], content, derive_seed("synthetic picture", seed, artist, number), side)
        row = _row(encode_png(painted), f"{number:04}-{slug(content)}.png", artist, genre, "synthetic", "Apache-2.0")
        if row["picture"] in seen:
            raise RuntimeError(
                f"the painter {artist} painted {content!r} twice alike: its seeds do not reach the picture"
            )
        seen.add(row["picture"])
        rows.append(row | {"width": side, "height": side, "status": "kept"})
    return rows


# --- folder: the user's own pictures


@dataclass(frozen=True)
class _ArtistFolder:
    path: Path
    name: str  # as the user wrote it, "genre/artist" where there are genres
    genre: str | None


def _folder_artists(pictures: Mapping[str, Any], folder: str | None) -> dict[str, str | None]:
    found = _artist_folders(folder)
    listed = {artist: found[artist].genre for artist in found}
    # A user may write the folder's name or its id.
    return _chosen(listed, [slug(name) for name in pictures["artists"]] if pictures["artists"] else None)


def _folder_count(pictures: Mapping[str, Any], folder: str | None) -> dict[str, int]:
    found, limit = _artist_folders(folder), pictures["per_artist"]
    numbers = {artist: len(_files(found[artist].path)) for artist in _folder_artists(pictures, folder)}
    return {artist: number if limit is None else min(number, limit) for artist, number in numbers.items()}


def _folder_collect(
    artist: str, genre: str | None, pictures: Mapping[str, Any], folder: str | None, seed: int
) -> list[dict[str, Any]]:
    found = _artist_folders(folder)
    if artist not in found:
        raise SourceError(_unknown(artist, list(found)))
    limit = pictures["per_artist"]
    files = _files(found[artist].path)
    files.sort(key=lambda path: (derive_seed("choice of pictures", seed, artist, _printable(path.name)), path.name))
    rows: list[dict[str, Any]] = []
    first: dict[str, str] = {}  # picture → label of the first file with its bytes
    kept = size = 0
    for path in files:
        if kept == limit:
            break
        label = _printable(f"{found[artist].name}/{path.name}")
        row = _read(path, label, artist, genre, first, pictures["min_side"])
        rows.append(row)
        if row["status"] == "kept":
            kept += 1
            size += len(row["image"]["bytes"])
        if size > MAX_ARTIST_BYTES:
            raise SourceError(
                f"{found[artist].path}: {kept} pictures take more than {MAX_ARTIST_BYTES / 2**30:g} GiB; "
                "lower pictures.per_artist, or shrink the files"
            )
    return rows


def _read(
    path: Path, label: str, artist: str, genre: str | None, first: dict[str, str], min_side: int
) -> dict[str, Any]:
    """The row of one file; adds it to `first`."""
    from .decode import MAX_BYTES, PictureError, decode

    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else None
    except OSError as error:
        return _row(None, label, artist, genre, "folder") | {"reason": f"unreadable: {error.strerror}"}
    if data is None:
        return _row(None, label, artist, genre, "folder") | {"reason": f"too large: {size:,} bytes"}
    row = _row(data, label, artist, genre, "folder")
    if row["picture"] in first:
        return row | {"image": None, "reason": f"same bytes as {first[row['picture']]}"}
    first[row["picture"]] = label
    try:
        width, height = decode(data, min_side=min_side).size
    except PictureError as error:
        return row | {"image": None, "reason": str(error)}
    return row | {"width": width, "height": height, "status": "kept"}


def _artist_folders(folder: str | None) -> dict[str, _ArtistFolder]:
    """Artist id → its folder, sorted by id. An artist's own subfolders are not read."""
    if folder is None:
        raise SourceError(f"pictures.source is folder, and `folder` is not set; {LAYOUT.format(folder='FOLDER')}")
    root = Path(folder)
    layout = LAYOUT.format(folder=folder)
    if not root.is_dir():
        raise SourceError(f"{folder}: {'is not a folder' if root.exists() else 'is absent'}; {layout}")
    with_files, with_folders = [], []
    for path in _folders(root):
        if _files(path):
            with_files.append(path)
        elif _folders(path):
            with_folders.append(path)
    if with_files and with_folders:
        raise SourceError(
            f"{folder}: {_names(path.name for path in with_files)} hold pictures, "
            f"{_names(path.name for path in with_folders)} hold only folders: "
            f"artists and genres cannot be told apart; {layout}"
        )
    if with_files:
        listed = [_ArtistFolder(path, path.name, None) for path in with_files]
    else:
        below = [(genre, path) for genre in with_folders for path in _folders(genre)]
        deep = [f"{genre.name}/{path.name}" for genre, path in below if not _files(path) and _folders(path)]
        if deep:
            raise SourceError(f"{folder}: {_names(deep)} hold only folders, which are not read; {layout}")
        listed = [
            _ArtistFolder(path, f"{genre.name}/{path.name}", slug(genre.name)) for genre, path in below if _files(path)
        ]
        _distinct([genre.name for genre in with_folders], "genres", folder)
    if not listed:
        found = _names(entry.name for entry in sorted(root.iterdir())) or "nothing"
        raise SourceError(f"{folder}: no folder with pictures in it; {layout}\nfound {found}")
    slugs = _distinct([artist.name for artist in listed], "artists", folder)
    return dict(sorted(zip(slugs, listed, strict=True)))


def _distinct(names: list[str], what: str, folder: str) -> list[str]:
    """The slugs of the last parts of `names`; raises SourceError for two alike."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(slug(name.rsplit("/", 1)[-1]), name)
        if twin != name:
            raise SourceError(
                f"{folder}: the {what} {_names([twin, name])} would both be called "
                f"{slug(name.rsplit('/', 1)[-1])!r}; rename one of the folders"
            )
    return list(seen)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # The others are hidden, or left by a NAS or an archiver.
            yield from [entry for entry in entries if not entry.name.startswith((".", "@", "__"))]
    except OSError as error:
        raise SourceError(f"{_printable(str(folder))}: cannot be listed ({error.strerror})") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _files(folder: Path) -> list[Path]:
    """Candidates, directly in the folder: regular files, and links that lead nowhere (git-annex leaves such)."""
    return sorted(
        Path(entry.path)
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in CANDIDATES
        and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)))
    )


# --- shared


def _row(
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
        "status": "refused",
        "reason": None,
    }


def _printable(name: str) -> str:
    """A label for tables: without control characters, and valid UTF-8 whatever bytes the file system holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _chosen(listed: dict[str, str | None], names: list[str] | None) -> dict[str, str | None]:
    if not names:
        return listed
    for name in names:
        if name not in listed:
            raise SourceError(f"pictures.artists: {_unknown(name, list(listed))}")
    return {artist: genre for artist, genre in listed.items() if artist in names}


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or difflib.get_close_matches(slug(name), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the source has {_names(known)}"
    return f"no artist {_printable(name)!r}; {hint}"


def _names(names: Any) -> str:
    """At most eight names, quoted and printable."""
    names = [repr(_printable(name)) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _source(pictures: Mapping[str, Any]) -> Source:
    try:
        return SOURCES[pictures["source"]]
    except KeyError:
        known = _names(SOURCES)
        raise SourceError(f"pictures.source: no source {pictures['source']!r}; there are {known}") from None


SOURCES: dict[str, Source] = {
    "synthetic": Source(_synthetic_artists, _synthetic_count, _synthetic_collect),
    "folder": Source(_folder_artists, _folder_count, _folder_collect),
}
