"""Source "folder": the user's own pictures, one folder an artist, with or without folders of genres above.

A CSV named by pictures.manifest may say more of a file: its columns are `file` (the path below the folder), `title`
and `licence`, each of the last two optional. Titles are shown, never trained on.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import machine, origin
from ...keys import DIGESTS
from ...labels import printable
from ...sections import Pictures
from .listing import Source, SourceError, at_most, choose, chosen_order, gathered, names_of, row, slug, unknown
from .manifest import read_columns

# Files under other names (captions, tables, a README) are not candidates. Files under these names are, whatever
# they hold, and formats that are not read are among them: both end as refused rows that say why.
CANDIDATES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif")
    + (".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg", ".eps", ".ppm", ".tga")
)

LAYOUT = """expected one folder of pictures per artist,
    {folder}/monet/water-lilies.jpg
    {folder}/hiroshige/station-12.png
or the same within genres,
    {folder}/impressionism/monet/water-lilies.jpg
    {folder}/ukiyo-e/hiroshige/station-12.png"""


@dataclass(frozen=True)
class _ArtistFolder:
    path: Path
    name: str  # as the user wrote it, "genre/artist" where there are genres
    genre: str | None


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    return _chosen(_artist_folders(folder), pictures)


def _chosen(found: dict[str, _ArtistFolder], pictures: Pictures) -> dict[str, str | None]:
    return choose({artist: each.genre for artist, each in found.items()}, pictures)


def _count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    found = _artist_folders(folder)
    numbers = {artist: len(_files(found[artist].path)) for artist in _chosen(found, pictures)}
    return at_most(numbers, pictures.per_artist)


def _digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    found, said = _artist_folders(folder), _said(pictures, folder)
    digests = {}
    for artist in _chosen(found, pictures):
        digest = hashlib.sha256()
        for path in _files(found[artist].path):
            held = DIGESTS.file(path) if path.is_file() else None
            digest.update(repr((os.fsencode(path.name), held, said.get(f"{found[artist].name}/{path.name}"))).encode())
        digests[artist] = digest.hexdigest()
    return digests


def _collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    from ..decode import MAX_BYTES

    found = _artist_folders(folder)
    if artist not in found:
        raise SourceError(unknown(artist, list(found)))
    if left := [path.name for path in _folders(found[artist].path) if _has_files(path)]:
        print(f"{printable(found[artist].name)}: its folders {names_of(left)} are not read", flush=True)
    files, said = {path.name: path for path in _files(found[artist].path)}, _said(pictures, folder)

    def read(name: str) -> dict[str, Any]:
        path, label = files[name], printable(f"{found[artist].name}/{name}")
        licence = said.get(f"{found[artist].name}/{name}", {}).get("licence")
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= MAX_BYTES else None
        except OSError as error:
            if machine.at_fault(error):
                raise
            return row(None, label, artist, genre, "folder", licence) | {"reason": f"unreadable: {error.strerror}"}
        if data is None:
            return row(None, label, artist, genre, "folder", licence) | {"reason": f"too large: {size:,} bytes"}
        return row(data, label, artist, genre, "folder", licence)

    return gathered(chosen_order(files, artist, seed), read, pictures, str(found[artist].path))


def _said(pictures: Pictures, folder: str | None) -> dict[str, dict[str, str]]:
    """What the CSV says: path below the folder → its other columns."""
    path = pictures.manifest
    if path is None:
        return {}
    rows = read_columns(path, required=["file"], optional=["title", "licence"])
    said = {os.path.normpath(found["file"]): found for found in rows.values()}
    root = Path(folder or "")
    absent = sorted(file for file in said if file.startswith(("..", os.sep)) or not (root / file).exists())
    if absent:
        raise SourceError(
            f"{path}: {names_of(absent)} not in {folder}; the column `file` names files below it, as monet/lilies.jpg"
        )
    return said


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
        if _has_files(path):
            with_files.append(path)
        elif _folders(path) and not _of_a_study(path):
            with_folders.append(path)
    if with_files and with_folders:  # what holds no picture at all is nobody's genre
        with_folders = [path for path in with_folders if _holds_pictures(path)]
    if with_files and with_folders:
        raise SourceError(
            f"{folder}: {names_of(path.name for path in with_files)} hold pictures, "
            f"{names_of(path.name for path in with_folders)} hold only folders: "
            f"artists and genres cannot be distinguished; {layout}"
        )
    if with_files:
        listed = [_ArtistFolder(path, path.name, None) for path in with_files]
    else:
        below = [(genre, path) for genre in with_folders for path in _folders(genre)]
        deep = [f"{genre.name}/{path.name}" for genre, path in below if not _has_files(path) and _folders(path)]
        if deep:
            raise SourceError(f"{folder}: {names_of(deep)} hold only folders, which are not read; {layout}")
        listed = [
            _ArtistFolder(path, f"{genre.name}/{path.name}", slug(genre.name))
            for genre, path in below
            if _has_files(path)
        ]
        _distinct([genre.name for genre in with_folders], "genres", folder)
    if not listed:
        found = names_of(entry.name for entry in sorted(root.iterdir())) or "nothing"
        raise SourceError(f"{folder}: no folder with pictures in it; {layout}\nfound {found}")
    slugs = _distinct([artist.name for artist in listed], "artists", folder)
    return dict(sorted(zip(slugs, listed, strict=True)))


def _of_a_study(folder: Path) -> bool:
    """Whether these are results: who runs a study in the folder of pictures has them beside the artists."""
    below = _folders(folder)
    return origin.are_results(folder) or (any(map(origin.are_results, below)) and not any(map(_has_files, below)))


def _holds_pictures(folder: Path, depth: int = 4) -> bool:
    """Whether there are pictures in the folder or so far below; links are followed, as artists' are."""
    return _has_files(folder) or (depth > 0 and any(_holds_pictures(path, depth - 1) for path in _folders(folder)))


def _distinct(names: list[str], what: str, folder: str) -> list[str]:
    """The slugs of the last parts of `names`; raises SourceError for two alike."""
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(slug(name.rsplit("/", 1)[-1]), name)
        if twin != name:
            raise SourceError(
                f"{folder}: the {what} {names_of([twin, name])} would both be called "
                f"{slug(name.rsplit('/', 1)[-1])!r}; rename one of the folders"
            )
    return list(seen)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # The others are hidden, or left by a NAS or an archiver.
            yield from [entry for entry in entries if not entry.name.startswith((".", "@", "__"))]
    except OSError as error:
        raise SourceError(f"{printable(str(folder))}: cannot be listed ({error.strerror})") from error


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _files(folder: Path) -> list[Path]:
    """Candidates, directly in the folder: regular files, and links that lead nowhere (git-annex leaves such)."""
    return [folder / name for name in sorted(entry.name for entry in _entries(folder) if _is_candidate(entry))]


def _has_files(folder: Path) -> bool:
    return any(map(_is_candidate, _entries(folder)))


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in CANDIDATES and (
        entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    )


SOURCE = Source(
    _artists,
    _count,
    _digests,
    _collect,
    titled_by="file",
    about="files of a folder, each artist's as its user sorted them",
)
