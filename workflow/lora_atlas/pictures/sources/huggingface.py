"""Source "huggingface": a dataset of the hub, at a pinned commit, in Parquet, as most are or are mirrored.

Only what is wanted travels: of every file first the columns of artists and genres, which make the manifest; then, of
the row groups that hold a wanted picture, the column of images, batch by batch. The URL of a picture in the manifest
names dataset, commit, file and row, so that it can only ever mean the same bytes.
"""

import fnmatch
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...hub import tokens
from ...labels import printable
from ...sections import Pictures
from . import manifest
from .listing import Source, SourceError, choose, names_of, slug, wanted

BATCH = 16  # images in memory at once
BUFFER = 2**23  # bytes of a request: a row group of images is not held whole
_URL = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<path>[^#]+)#(?P<row>\d+)")


def listed(pictures: Pictures) -> list[dict[str, Any]]:
    """Rows of the manifest: every picture of the wanted artists. Raises SourceError."""
    dataset, named = _dataset(pictures), wanted(pictures)
    entries: list[dict[str, Any]] = []
    others: set[str] = set()
    many: dict[str, dict[str | None, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in _files(dataset, pictures):
        columns = [dataset["artist"], *([dataset["genre"]] if dataset["genre"] else [])]
        with _readable(dataset, path), _parquet(dataset, path, pictures) as file:
            found = _named_values(file, columns, path)
            for number, values in enumerate(zip(*found, strict=True)):
                artist, genre = values[0], values[1] if dataset["genre"] else None
                if artist is None:
                    continue
                if named is not None and slug(artist) not in named:
                    others.add(slug(artist))
                    continue
                many[slug(artist)][genre and slug(genre)].append(
                    {
                        "artist": artist,
                        "genre": genre and slug(genre),
                        "url": f"hf://datasets/{dataset['id']}@{dataset['revision']}/{path}#{number}",
                    }
                )
        print(f"{dataset['id']} {path}: {len(found[0]):,} rows read", flush=True)
    choose(dict.fromkeys([*many, *others]), pictures)  # raises for a name that the dataset lacks
    for artist, genres in many.items():
        asked = (named or {}).get(artist)
        genre = asked if asked in genres else max(genres, key=lambda g: (len(genres[g]), g or ""))
        # One genre an artist: what stands under others would be a second style under one name.
        # A manifest has one spelling of an artist, datasets that people typed have several: the most frequent one.
        spelt = Counter(entry["artist"] for entry in genres[genre])
        name = min(spelt, key=lambda each: (-spelt[each], each))
        entries += [entry | {"genre": asked or genre, "artist": name} for entry in genres[genre]]
    return entries


def get(pictures: Pictures) -> Callable:
    """For `manifest.fetch`: images of the wanted rows into the store, one line each."""

    def fetch_rows(entries: Sequence[Mapping[str, Any]], store: Any, check: Callable[[bytes], None]) -> None:
        files: dict[tuple[str, str, str], dict[int, Any]] = defaultdict(dict)
        for entry in entries:
            found = _URL.fullmatch(entry["url"])
            if found is None:
                store.refuse(entry, "not a row of a dataset: hf://datasets/ID@COMMIT/FILE#ROW", final=True)
                continue
            files[found["id"], found["commit"], found["path"]][int(found["row"])] = entry
        dataset = _dataset(pictures)
        for (name, commit, path), rows in files.items():
            pinned = dataset | {"id": name, "revision": commit}
            try:
                with _parquet(pinned, path, pictures) as file:
                    for number, data in _images(file, dataset["image"], sorted(rows)):
                        entry = rows.pop(number)
                        if data is None:
                            reason, size = "its row has no image bytes", 0
                        else:
                            reason, size = store.put(entry, data), len(data)
                        if reason:
                            store.refuse(entry, reason, final=False)
                        print(f"{entry['url']}: {reason or f'{size:,} bytes'}", flush=True)
                left = "the file has no such row"
            except SourceError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the hub or a file does, the other files go on
                left = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            for entry in rows.values():
                store.refuse(entry, left, final=False)
                print(f"{entry['url']}: {left}", flush=True)

    return fetch_rows


def _dataset(pictures: Pictures) -> dict[str, Any]:
    found = pictures.dataset
    if not found:
        raise SourceError(
            "pictures.source is huggingface: set pictures.dataset to {id: owner/name, revision: COMMIT, image: image, "
            "artist: artist, genre: style}; genre and files may be left out"
        )
    return {"genre": None, "files": "*.parquet", **found}


def _hub(pictures: Pictures) -> Any:
    # Read when the library is first imported.
    os.environ.setdefault("HF_HUB_USER_AGENT_ORIGIN", f"lora-atlas ({pictures.contact})")
    import huggingface_hub

    return huggingface_hub


def _files(dataset: Mapping[str, Any], pictures: Pictures) -> list[str]:
    hub = _hub(pictures)
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        tree = hub.HfApi().list_repo_tree(
            dataset["id"], revision=dataset["revision"], repo_type="dataset", recursive=True
        )
        paths = [each.path for each in tree if hasattr(each, "size")]
    except (HfHubHTTPError, HFValidationError) as error:
        reason = tokens.hidden(" ".join(str(error).split()))[:300]
        raise SourceError(f"pictures.dataset: {dataset['id']} at {dataset['revision']}: {reason}") from tokens.cause(
            error
        )
    found = sorted(path for path in paths if fnmatch.fnmatch(path, dataset["files"]) and path.endswith(".parquet"))
    if not found:
        raise SourceError(
            f"pictures.dataset: {dataset['id']} has no Parquet file {dataset['files']!r}, but "
            f"{names_of(sorted(paths))}; "
            "the hub's own conversion lies at the revision refs/convert/parquet"
        )
    return found


@contextmanager
def _readable(dataset: Mapping[str, Any], path: str) -> Iterator[None]:
    """Raise SourceError naming a file of the dataset for whatever Arrow or the hub raise while it is read."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - Arrow's own are of many types, and hubs' of many libraries
        # Arrow's words may hold bytes of the file.
        why = tokens.hidden(printable(" ".join(str(error).split()))[:150])
        raise SourceError(
            f"pictures.dataset: {dataset['id']} at {dataset['revision']}: {path} cannot be read as Parquet "
            f"({type(error).__name__}: {why}); run the same again, and if that fails too, name those that are sound "
            "in pictures.dataset.files"
        ) from tokens.cause(error)


def _parquet(dataset: Mapping[str, Any], path: str, pictures: Pictures) -> Any:
    """A file of the dataset, of which only what is read travels; raises whatever Arrow or the hub raise."""
    import pyarrow.parquet as pq

    hub = _hub(pictures)
    remote = hub.HfFileSystem(skip_instance_cache=True).open(
        f"datasets/{dataset['id']}/{path}", revision=dataset["revision"], cache_type="none"
    )
    return pq.ParquetFile(remote, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True)


def _named_values(file: Any, columns: Sequence[str], path: str) -> list[list[str | None]]:
    """Columns as text; the hub's ClassLabels are numbers whose names stand in the file's metadata."""
    absent = [name for name in columns if name not in file.schema_arrow.names]
    if absent:
        raise SourceError(
            f"pictures.dataset: {path} has no column {names_of(absent)}; it has {names_of(file.schema_arrow.names)}"
        )
    said = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = (said.get("info") or {}).get("features") or {}
    table, found = file.read(columns=list(columns)), []
    for name in columns:
        labels = features.get(name, {}).get("names")
        values = table[name].to_pylist()
        found.append(
            [
                None if v is None or (labels and v < 0) else labels[v] if labels and isinstance(v, int) else str(v)
                for v in values
            ]
        )
    return found


def _images(file: Any, column: str, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, bytes) of the rows, in order; row groups without any are not read."""
    if column not in file.schema_arrow.names:
        raise SourceError(f"pictures.dataset: no column {column!r}; there are {names_of(file.schema_arrow.names)}")
    wanted_rows, start = set(rows), 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if any(start <= number < end for number in wanted_rows):
            number = start
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=[column], use_threads=False):
                for offset in range(batch.num_rows):
                    if number + offset in wanted_rows:
                        value = batch.column(0)[offset].as_py()
                        yield number + offset, value.get("bytes") if isinstance(value, dict) else value
                number += batch.num_rows
        start = end


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    if manifest.is_there(pictures):
        return manifest.artists(pictures, folder)
    named = wanted(pictures)
    _dataset(pictures)
    if named is None:
        raise SourceError(
            f"pictures.source is huggingface, and there is no {pictures.manifest} yet: name the artists of the "
            "study in pictures.artists, then run `snakemake manifest`"
        )
    return named


def _digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    # A commit does not change: before and after it was listed an artist is the same.
    return dict.fromkeys(_artists(pictures, folder), json.dumps(_dataset(pictures), sort_keys=True))


SOURCE = Source(
    _artists,
    manifest.planned(_artists, manifest.count),
    _digests,
    manifest.collect,
    list_pictures=listed,
    fetch=lambda pictures, seed: manifest.fetch(pictures, seed, get(pictures)),
    titled_by="url",
    about="pictures of a dataset of the Hugging Face hub",
)
