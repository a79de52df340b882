"""Where pictures come from: one signature for every source, found by name in SOURCES.

Decisions:

- Listing is cheap (it happens whenever Snakemake builds its graph), needs no network and never opens a picture;
  reading one artist's pictures is one job. So ``count`` is an upper bound: files that turn out to be refused are
  known only after reading.
- A source on a network is listed once, into a manifest: a file that users commit, so that a rerun asks for the same
  pictures. Before there is one, the artists are those that the config names.
- Pictures from a network are fetched once, into a store that all studies share (`store`), and collected from there:
  a change of this code never asks a museum again.
- The id of an artist is a slug, safe in any path, wildcard or HTML attribute. Folder names stay out of paths
  and appear only as labels. Two names with one slug are an error that names both: nothing is merged silently.
- Which pictures ``per_artist`` keeps is decided by a hash of (seed, artist, file), not by order: one file more
  or less changes at most one choice, and refused files do not use up places.
- Kept pictures are stored as the bytes that were found. What they decode to is decided where they are used, so
  that no stage inherits another's resolution; the id of a picture is the SHA-256 of those bytes.
- A bad file is a row with a reason. Only an artist or a folder that is absent stops a study.
"""

import os
from collections.abc import Mapping
from typing import Any

from ...sections import Pictures
from ...study import require
from . import artbench, commons, folder, huggingface, iconify, manifest, once, synthetic
from .listing import Source, SourceError, names_of, slug

__all__ = [
    "SOURCES",
    "Source",
    "SourceError",
    "artists",
    "collect",
    "count",
    "digests",
    "fetch",
    "slug",
    "source",
    "titles",
]


def artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    """Artist id → genre (None where the source knows none), in the order of the source.

    `pictures`: the section of that name of the config; `folder`: its key of that name. Raises SourceError when the
    source is unknown or has no artists, or when pictures.artists names one that it does not have.
    """
    return source(pictures).artists(pictures, folder)


def count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    """Artist id → how many pictures there can be at most; fewer when some are refused."""
    return source(pictures).count(pictures, folder)


def digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    """Artist id → a digest of what the source says of the artist: another one means that it is collected again."""
    return source(pictures).digests(pictures, folder)


def collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    """One artist's pictures as rows of the table "pictures", kept and refused, in the seeded order of choice.

    A row that could not be read has the id "path:" + SHA-256 of its label, and no image.
    """
    return source(pictures).collect(artist, genre, pictures, folder, seed)


def fetch(artist: str, pictures: Pictures, plan: Mapping[str, int], seed: int) -> None:
    """Fetch into the store what the study lacks, where its source lies on a network; else do nothing.

    The first process that needs something fetches for all artists, so that no server sees more than one study's two
    connections and no file is read twice; the others wait for it. `plan`: the most pictures of a gallery and of a
    query LoRA. Raises StudyError naming all artists left with too few, after everything else was fetched.
    """
    get = source(pictures).fetch
    if get is not None:
        with once.fetching(pictures.store) as together:
            if manifest.lacks(artist, pictures, seed, together.settled(pictures, seed)):
                counts = manifest.good(get(pictures, seed))
                require(
                    counts,
                    {side: [number] for side, number in plan.items()},
                    "after everything else was fetched (the log says why; a rerun asks for what is missing)",
                )
                together.settle(pictures, seed)


def titles(pictures: Pictures) -> dict[str, str]:
    """Title of a picture by its URL or its path below the folder, where a table beside the source knows any."""
    path, key = pictures.manifest, source(pictures).titled_by
    if path is None or key is None:
        return {}
    rows = [row for row in manifest.read_columns(path, required=[key], optional=["title"]).values() if row["title"]]
    return {os.path.normpath(row[key]) if key == "file" else row[key]: row["title"] for row in rows}


def source(pictures: Pictures) -> Source:
    """The source that pictures.source names; raises SourceError."""
    try:
        return SOURCES[pictures.source]
    except KeyError:
        raise SourceError(f"pictures.source: no source {pictures.source!r}; there are {names_of(SOURCES)}") from None


SOURCES: dict[str, Source] = {
    "synthetic": synthetic.SOURCE,
    "folder": folder.SOURCE,
    "manifest": manifest.SOURCE,
    "huggingface": huggingface.SOURCE,
    "iconify": iconify.SOURCE,
    "artbench": artbench.SOURCE,
    "commons": commons.SOURCE,
}
