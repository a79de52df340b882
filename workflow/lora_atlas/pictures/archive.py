"""ArtBench-10 from where its authors publish it: two files over HTTP, one of them a tar of 1.6 GB.

The file that was being fetched is continued after a crash, in the version that it is of. What arrived is held to the
hash that the lock file names; where it names none, it is written there.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from ..hub import lock as locks
from ..tables import replacing
from .fetch import Client
from .sources.listing import SourceError


def fetch(
    archive: Mapping[str, str],
    *,
    store: str | Path,
    contact: str | None,
    private_network: bool,
    metadata: str,
    images: str,
    lock: str | None,
) -> None:
    """Download and unpack; raises SourceError for bytes that are not those of the lock, or a tar that is none."""
    client = Client(contact, private=private_network)
    kept = Path(store) / "archive"
    table = _downloaded(archive["metadata"], client, kept, lock)
    tar = _downloaded(archive["images"], client, kept, lock)
    with replacing(metadata) as temporary:
        shutil.copyfile(table, temporary)
    unpack(tar, Path(images))


def _downloaded(url: str, client: Client, folder: Path, lock: str | None) -> Path:
    """The whole file of a URL, in the store, with the hash of the lock."""
    name = hashlib.sha256(url.encode()).hexdigest()
    path, part, note = folder / name, folder / f"{name}.part", folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        part.touch()
        etag = json.loads(note.read_text())["etag"] if note.exists() else None
        with part.open("rb+") as sink:
            have = sink.seek(0, 2) if etag else 0
            client.save(url, sink, have, etag, started=lambda tag: _remember(note, tag))
        part.replace(path)
    digest = locks.sha256_of(path)
    expected = locks.settled(lock, "files", url, {"sha256": digest, "bytes": path.stat().st_size})["sha256"]
    print(f"{url}: {path.stat().st_size:,} bytes, sha256 {digest}", flush=True)
    if digest != expected:
        # Kept, but under a name that says what it is: the next run asks for the right one.
        path.replace(folder / f"{name}.{digest[:12]}")
        raise SourceError(f"{url}: changed: {lock} names sha256 {expected}, got {digest}")
    return path


def _remember(note: Path, etag: str | None) -> None:
    with replacing(note) as temporary:
        temporary.write_text(json.dumps({"etag": etag}))


def unpack(tar: Path, images: Path) -> None:
    """Files of a tar into the folder `images`, which is whole or absent; the tar's one top folder is left away."""
    part = images.with_name(images.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                _write(archive, member, part)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{tar}: cannot be unpacked ({type(error).__name__}: {error})") from error
    below = list(part.iterdir()) if part.exists() else []
    inner = below[0] if len(below) == 1 and below[0].is_dir() else part
    shutil.rmtree(images, ignore_errors=True)
    inner.replace(images)
    shutil.rmtree(part, ignore_errors=True)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """A file of a tar, below the folder; links, devices and bare folders are no pictures and are left out.

    Not `extractall`: what keeps it within the folder came with Python 3.11.4, and Debian 12 has 3.11.2.
    Raises tarfile.TarError for a name that leads elsewhere.
    """
    name = Path(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.TarError(f"{member.name!r} lies outside of it")
    if not member.isreg():
        return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None  # of a regular file
    with content, (folder / name).open("wb") as out:
        shutil.copyfileobj(content, out, 1 << 20)
