"""What jobs made, kept by the key of all that it depends on: for other studies, other people, and the same job again.

An entry is a folder, ``KEY[:2]/KEY``, of files and ``entry.json``: the ingredients that the key is the digest of, the
SHA-256 and bytes of each file, and what was measured (device, seconds). It is written beside and renamed, so that it is
there whole or not at all, and looked at before it is used: its key is that of its ingredients, its files are those that
it names. What is cut, altered or put under another key is removed and made again. What anybody on the machine may write
to, and what is a link, is not used; somebody else's stays where it is. An entry that one of the group forges with all
its digests is not told from a true one: a store is shared with people who are trusted.

Not Snakemake's own cache between workflows: that knows inputs by how they came about and not by content, nothing of the
modules that a script imports, only whole jobs, and leaves links that anybody may write to.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import keys
from .atomic import replacing

COPIED = 16 << 20  # bytes: larger files are linked where the disk cannot share their blocks
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file


@dataclass(frozen=True)
class Entry:
    """What lies under a key: `files` (name → path), and what was `told` of it."""

    key: str
    folder: Path
    files: dict[str, Path]
    told: dict[str, Any]


@dataclass(frozen=True)
class Listed:
    """An entry as `cache_list` shows it. `used`: seconds since the epoch."""

    key: str
    folder: Path
    job: str
    bytes: int
    used: float


class Store:
    """A folder of entries; the first `put` makes it."""

    def __init__(self, root: str | Path, digests: keys.Digests = keys.DIGESTS):
        self.root, self.digests = Path(root), digests
        self.remarks: list[str] = []  # of entries that could not be used
        self.used: list[str] = []  # keys that were asked for

    def find(self, parts: Mapping[str, Any]) -> Entry | None:
        """The entry of these ingredients, checked; one that is not what it should be is removed."""
        key = keys.key(parts)
        folder = self.root / key[:2] / key
        self.used.append(key)
        if not os.path.lexists(folder):
            return None
        exposed = self._exposed(folder)
        if exposed:
            self.remarks.append(f"{exposed}: nothing that lies there is used")
            return None
        wrong, found = self._looked_at(folder, key)
        if found is None:
            self.remarks.append(f"{folder}: {wrong}; it is {'made again' if _removed(folder) else 'not used'}")
            return None
        with contextlib.suppress(OSError):  # somebody else's
            os.utime(folder / "entry.json")
        return found

    def put(self, parts: Mapping[str, Any], files: Mapping[str, str | Path], told: Mapping[str, Any] = {}) -> None:
        """Keep files (name → path) under the key of their ingredients.

        Where nothing can be kept (no space, no right to write), a remark says so: what was made is there all the same.
        """
        key = keys.key(parts)
        folder = self.root / key[:2] / key
        self.used.append(key)
        temporary = None
        try:
            for made in (self.root, folder.parent):
                if not made.exists():
                    made.mkdir(parents=True, exist_ok=True)
                    _closed(made)
            exposed = self._exposed(folder)
            if exposed:
                raise PermissionError(exposed)
            temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=self.root))
            temporary.chmod(folder.parent.stat().st_mode & 0o7777)
            named = {}
            for name, path in files.items():
                place(path, temporary / name)
                _closed(temporary / name)
                named[name] = {"sha256": self.digests.file(path), "bytes": os.stat(path).st_size}
            entry = {"key": key, "of": keys.normalised(parts), "files": named, "told": keys.normalised(told)}
            (temporary / "entry.json").write_text(json.dumps(entry, indent=1, sort_keys=True))
            _closed(temporary / "entry.json")
            if os.path.lexists(folder) and self._looked_at(folder, key)[1] is None:
                _removed(folder)
            with contextlib.suppress(FileExistsError):
                _rename(temporary, folder)
        except OSError as error:
            self.remarks.append(f"{self.root}: nothing is kept there for other studies ({error.strerror or error})")
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def entries(self) -> Iterator[Listed]:
        """All entries, by their keys; sizes as their own words have them."""
        for folder in sorted(self.root.glob("??/*")):
            try:
                said = json.loads((folder / "entry.json").read_text())
                job, size = said["of"]["job"], sum(each["bytes"] for each in said["files"].values())
                used = (folder / "entry.json").stat().st_mtime
            except (OSError, ValueError, KeyError, TypeError):
                job, size, used = "damaged", 0, 0.0
            yield Listed(folder.name, folder, str(job), size, used)

    def prune(self, days: float, used: Collection[str] = ()) -> list[Listed]:
        """Remove entries whose last use is more than `days` ago and whose keys are not among those `used`."""
        limit = time.time() - 86400 * days
        gone = [
            each for each in self.entries() if each.job == "damaged" or (each.used < limit and each.key not in used)
        ]
        for each in gone:
            shutil.rmtree(each.folder, ignore_errors=True)
        for part in self.root.glob(".part-*"):  # of a process that was killed
            if part.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(part, ignore_errors=True)
        return [each for each in gone if not each.folder.exists()]

    def told_of_pruning(self, days: float, used: Collection[str], outdated: Collection[Path]) -> str:
        """Prune, remove folders of outdated code, and say in words what went."""
        freed = sum(map(_size, outdated))
        for folder in outdated:
            shutil.rmtree(folder, ignore_errors=True)
        gone = self.prune(days, used)
        return (
            f"{self.root}: {len(gone)} entries removed ({_bytes(sum(each.bytes for each in gone))}), unused for {days} "
            f"days and by no study here; {len(outdated)} folders of earlier code removed ({_bytes(freed)})"
        )

    def _exposed(self, folder: Path) -> str:
        """What is wrong with the folders that an entry lies in. The store itself may be where a link leads."""
        try:
            return _exposed(self.root.resolve(), folder.parent)
        except OSError as error:
            return f"{folder.parent} cannot be looked at ({error.strerror})"

    def _looked_at(self, folder: Path, key: str) -> tuple[str, Entry | None]:
        try:
            exposed = _exposed(folder, folder / "entry.json")
            if exposed:
                return exposed, None
            said = json.loads((folder / "entry.json").read_text())
            if said["key"] != key or keys.key(said["of"]) != key:
                return "it is the entry of another key", None
            for name, stated in said["files"].items():
                file = folder / name
                exposed = _exposed(file) if Path(name).name == name and os.path.lexists(file) else ""
                if exposed:
                    return exposed, None
                if Path(name).name != name or not file.is_file() or file.stat().st_size != stated["bytes"]:
                    return f"{name} is absent or cut", None
                if self.digests.file(file) != stated["sha256"]:
                    return f"{name} was altered", None
            return "", Entry(key, folder, {name: folder / name for name in said["files"]}, said["told"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"damaged ({type(error).__name__})", None


def summary(store: Store, outdated: Collection[Path] = ()) -> str:
    """What lies in a store, job by job, in words: entries, bytes, last use."""
    jobs: dict[str, list[Listed]] = {}
    for each in store.entries():
        jobs.setdefault(each.job, []).append(each)
    lines = [
        f"{job:20} {len(own):6} entries {_bytes(sum(each.bytes for each in own)):>10}   last used "
        f"{time.strftime('%Y-%m-%d', time.localtime(max(each.used for each in own)))}"
        for job, own in sorted(jobs.items())
    ]
    lines += [f"{folder}: of earlier code, {_bytes(_size(folder))}" for folder in outdated]
    return "\n".join([f"{store.root}:", *(lines or ["nothing is kept"])])


def used(results: Path) -> set[str]:
    """Keys that the studies below a folder have asked for."""
    found: set[str] = set()
    for record in results.glob("**/.made/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.update(json.loads(record.read_text())["used"])
    return found


def changed(study: Path, digests: keys.Digests = keys.DIGESTS) -> dict[str, str]:
    """Outputs of a study that no longer hold what their jobs made → the rule that made them: files that a disk lost
    bytes of, or that somebody put in their place, at whatever time. Of several records of a file, which rules leave
    whose outputs were others once, the last is true."""
    last: dict[str, tuple[int, str, str]] = {}
    for rule, at, outputs in _records(study):
        for file, made in outputs.items():
            last[file] = max(last.get(file, (-1, "", "")), (at, rule, made))
    return {file: rule for file, (_, rule, made) in last.items() if os.path.isfile(file) and digests.file(file) != made}


def recorded(study: Path) -> Iterator[str]:
    """An output of each job of a study that wrote down what it made, where it is still there."""
    for _, _, outputs in _records(study):
        found = next(iter(outputs), None)
        if found is not None and os.path.isfile(found):
            yield found


def _records(study: Path) -> Iterator[tuple[str, int, dict[str, str]]]:
    """What jobs of a study wrote down: the rule, when (0: before that was said), and output → its digest. A record that
    is damaged says nothing."""
    for record in sorted(study.glob(".made/*.json")):
        try:
            said = json.loads(record.read_text())
            found = record.stem.rpartition("-")[0], int(said.get("at", 0)), dict(said["outputs"])
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue
        yield found


def outdated(results: Path, current: Collection[Path]) -> list[Path]:
    """Folders ``cache/VERSION`` of studies, of rows that other code computed."""
    found = [folder for folder in sorted(results.glob("*/cache/*")) if re.fullmatch("[0-9a-f]{16}", folder.name)]
    return [folder for folder in found if folder not in current]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def place(source: str | Path, target: str | Path) -> None:
    """Put a file's content at `target`, atomically: by shared blocks where the file system can, else small files are
    copied, and large ones of one's own linked (copied where they cannot be).

    A file gets one link beside its own name and no third: links share their times, Snakemake touches what each job
    made, and two studies with one file would make each other's look newer than what was made from it."""
    with replacing(target) as temporary, open(source, "rb") as read:
        status = os.fstat(read.fileno())
        with open(temporary, "wb") as out:
            shared = _cloned(out.fileno(), read.fileno())
        large = status.st_size > COPIED and status.st_uid == os.geteuid()
        if not shared and not (large and _linked(source, temporary)):
            with open(temporary, "wb") as out:
                shutil.copyfileobj(read, out, 1 << 20)


def _cloned(out: int, read: int) -> bool:
    try:
        fcntl.ioctl(out, _FICLONE, read)
    except OSError:
        return False
    return True


def _linked(source: str | Path, temporary: Path) -> bool:
    beside = temporary.with_name(temporary.name + ".link")
    try:
        os.link(source, beside)
    except OSError:  # another file system, or one without links
        return False
    if os.stat(beside).st_nlink > 2:
        beside.unlink()
        return False
    beside.replace(temporary)
    return True


def _exposed(*paths: Path) -> str:
    """What is wrong with the first of these that anybody on the machine may write to, or that is a link; else ""."""
    for path in paths:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return f"{path} is a link, as the cache never makes one"
        if mode & stat.S_IWOTH:
            return f"anybody on this machine may write to {path} (chmod o-w takes that right away)"
    return ""


def _closed(path: Path) -> None:
    """Take the right to write away from others than owner and group, whatever the umask."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & stat.S_IWOTH:
        path.chmod(mode & ~stat.S_IWOTH)


def _removed(folder: Path) -> bool:
    """Remove an entry that is not used (a link, and never what it leads to); somebody else's that is exposed stays."""
    with contextlib.suppress(OSError):
        whole = folder.is_dir() and not folder.is_symlink()
        if os.lstat(folder).st_uid != os.geteuid() and _exposed(folder, *(folder.iterdir() if whole else ())):
            return False
        if whole:
            shutil.rmtree(folder)
        else:
            folder.unlink()
    return not os.path.lexists(folder)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError from error
        raise
