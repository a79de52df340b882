"""What is kept under its key: whole or not at all, and looked at before it is used."""

import json
import os
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from lora_atlas.keys import Digests, canonical, key
from lora_atlas.store import Store, changed, place, summary

PARTS = {"job": "train_loras", "settings": {"rank": 4}, "of": "maren"}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "made").write_bytes(b"what was made")
    kept = Store(tmp_path / "store", Digests(None))
    kept.put(PARTS, {"a.bin": tmp_path / "made"}, {"device": "cuda"})
    return kept


def entry(store):
    return next(store.root.glob("??/*"))


def test_it_is_found_by_what_it_depends_on_however_that_is_written(store):
    found = store.find({"of": "maren", "settings": {"rank": 4.0}, "job": "train_loras"})
    assert found.files["a.bin"].read_bytes() == b"what was made" and found.told == {"device": "cuda"}
    assert store.find(PARTS | {"of": "joris"}) is None and store.remarks == []


def flipped(folder):
    data = bytearray((folder / "a.bin").read_bytes())
    data[3] ^= 1
    (folder / "a.bin").write_bytes(data)


def said(folder, **changes):
    told = json.loads((folder / "entry.json").read_text())
    (folder / "entry.json").write_text(json.dumps(told | changes))


@pytest.mark.fault(
    "caches",
    "an entry is flipped, cut, emptied, without its files, or names a path with ../",
    "said, removed and made again",
)
@pytest.mark.parametrize(
    "harm",
    [
        flipped,
        lambda folder: (folder / "a.bin").write_bytes(b"what was"),
        lambda folder: (folder / "a.bin").unlink(),
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").unlink(),
        lambda folder: said(folder, of=PARTS | {"of": "joris"}),
        lambda folder: said(folder, key="0" * 64),
        lambda folder: said(folder, files={"../a.bin": {"sha256": "0" * 64, "bytes": 1}}),
    ],
)
def test_what_is_cut_altered_or_false_is_removed_and_can_be_made_again(store, tmp_path, harm):
    harm(entry(store))
    assert store.find(PARTS) is None
    assert "made again" in store.remarks[0] and not list(store.root.glob("??/*"))
    store.put(PARTS, {"a.bin": tmp_path / "made"})
    assert store.find(PARTS) is not None


@pytest.mark.fault("caches", "a sound entry is copied under another key", "not used, removed")
def test_an_entry_that_is_planted_under_another_key_is_not_taken(store):
    other = PARTS | {"of": "joris"}
    planted = store.root / key(other)[:2] / key(other)
    shutil.copytree(entry(store), planted)
    assert store.find(other) is None and not planted.exists()


@pytest.mark.fault("caches", "a person edits a result in place", "the kept copy is as it was")
def test_what_is_placed_is_apart_from_what_is_kept(store, tmp_path):
    place(store.find(PARTS).files["a.bin"], tmp_path / "there/out.bin")
    (tmp_path / "there/out.bin").write_bytes(b"edited in place")
    assert store.find(PARTS).files["a.bin"].read_bytes() == b"what was made"


def test_of_several_records_of_a_file_the_last_is_true(tmp_path):
    """A rule whose outputs were others once leaves a record that nothing will ever match: it forces no job."""
    file = tmp_path / "norm.parquet"
    file.write_bytes(b"now")

    def record(name: str, content: bytes, **at) -> None:
        (tmp_path / ".made").mkdir(exist_ok=True)
        said = {"outputs": {str(file): sha256(content).hexdigest()}, "used": [], **at}
        (tmp_path / ".made" / f"{name}.json").write_text(json.dumps(said))

    record("embed_controls-1", b"of earlier settings", at=10)
    assert changed(tmp_path) == {str(file): "embed_controls"}
    record("embed_controls-2", b"now", at=20)
    assert changed(tmp_path) == {}
    file.write_bytes(b"altered")
    assert changed(tmp_path) == {str(file): "embed_controls"}
    record("embed_pictures-3", b"of a time when no record had one")
    assert changed(tmp_path) == {str(file): "embed_controls"}


def test_it_is_listed_and_pruned_by_last_use(store):
    assert "train_loras" in summary(store) and "1 entries" in summary(store)
    assert store.prune(1) == []
    old = time.time() - 3 * 86400
    os.utime(entry(store) / "entry.json", (old, old))
    assert store.prune(1, used={key(PARTS)}) == []
    assert [each.key for each in store.prune(1)] == [key(PARTS)]
    assert "nothing is kept" in summary(store)


@pytest.mark.fault(
    "caches", "nothing can be written where the cache is", "a remark; the results are there all the same"
)
def test_where_nothing_can_be_kept_a_remark_says_so(tmp_path):
    (tmp_path / "store").write_text("a file")
    kept = Store(tmp_path / "store", Digests(None))
    kept.put(PARTS, {"a": tmp_path / "store"})
    assert "nothing is kept there" in kept.remarks[0]


# --- whom it is shared with


def linked(path, elsewhere):
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.fault(
    "caches",
    "an entry that anybody may write to (mode 666 or 777), or one that is, or has in it, a link out of the cache",
    "said, and not used; one's own is removed and made again, and what the link leads to stays",
)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder, _: folder.chmod(0o777), "anybody on this machine may write"),
        (lambda folder, _: (folder / "a.bin").chmod(0o666), "anybody on this machine may write"),
        (lambda folder, _: (folder / "entry.json").chmod(0o646), "anybody on this machine may write"),
        (linked, "is a link"),
        (lambda folder, elsewhere: linked(folder / "a.bin", elsewhere), "is a link"),
        (lambda folder, elsewhere: linked(folder / "entry.json", elsewhere), "is a link"),
    ],
)
def test_what_anybody_may_write_to_and_what_is_a_link_is_not_used(store, tmp_path, harm, words):
    harm(entry(store), tmp_path / "elsewhere")
    there = (tmp_path / "elsewhere").exists()
    assert store.find(PARTS) is None
    assert words in store.remarks[0] and "made again" in store.remarks[0] and not list(store.root.glob("??/*"))
    assert (tmp_path / "elsewhere").exists() == there
    store.put(PARTS, {"a.bin": tmp_path / "made"})
    assert store.find(PARTS) is not None and len(store.remarks) == 1


@pytest.mark.fault("caches", "the same, planted by another user", "said, not used, and left where it is")
@pytest.mark.parametrize("name", [".", "a.bin"])
def test_what_somebody_else_planted_stays(store, tmp_path, monkeypatch, name):
    planted = entry(store)
    (planted / name).chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: planted.stat().st_uid + 1)
    assert store.find(PARTS) is None
    assert "anybody on this machine may write" in store.remarks[0] and "it is not used" in store.remarks[0]
    store.put(PARTS, {"a.bin": tmp_path / "made"})
    assert (planted / "a.bin").exists() and store.find(PARTS) is None


@pytest.mark.fault(
    "caches", "a cache in whose folders anybody may write", "nothing of it is used, nothing is kept or removed; said"
)
@pytest.mark.parametrize("which", [lambda store: store.root, lambda store: entry(store).parent])
def test_a_store_that_anybody_may_write_to_is_left_alone(store, tmp_path, which):
    which(store).chmod(0o1777)
    assert store.find(PARTS) is None and "nothing that lies there is used" in store.remarks[0]
    store.put(PARTS, {"a.bin": tmp_path / "made"})
    assert "nothing is kept there" in store.remarks[1] and "chmod o-w" in store.remarks[1]
    which(store).chmod(0o755)
    assert store.find(PARTS) is not None and not list(store.root.glob(".part-*"))


def test_a_shard_that_is_a_link_is_not_followed_and_a_store_behind_a_link_is(store, tmp_path):
    (tmp_path / "named").symlink_to(store.root)
    assert Store(tmp_path / "named", Digests(None)).find(PARTS) is not None
    linked(entry(store).parent, tmp_path / "elsewhere")
    assert store.find(PARTS) is None and "is a link" in store.remarks[0]
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_nothing_is_kept_that_anybody_may_write_to_whatever_the_umask(tmp_path):
    (tmp_path / "made").write_bytes(b"what was made")
    before = os.umask(0)
    try:
        kept = Store(tmp_path / "store", Digests(None))
        kept.put(PARTS, {"a.bin": tmp_path / "made"})
        assert kept.find(PARTS) is not None and kept.remarks == []
    finally:
        os.umask(before)
    assert not [path for path in (kept.root, *kept.root.rglob("*")) if path.stat().st_mode & 0o002]


def test_studies_that_share_a_large_file_do_not_share_its_times(store, tmp_path, monkeypatch):
    # Snakemake touches what a job made (snakemake.dag, check_and_touch_output): by a link, another study's file, too.
    monkeypatch.setattr("lora_atlas.store.COPIED", 0)
    monkeypatch.setattr("lora_atlas.store._cloned", lambda out, read: False)  # as on a disk that shares no blocks
    made = store.find(PARTS).files["a.bin"]
    first, second = tmp_path / "first/base.bin", tmp_path / "second/base.bin"
    place(made, first)
    place(made, second)
    assert first.samefile(made) and second.read_bytes() == made.read_bytes()
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert first.stat().st_mtime == 1 and second.stat().st_mtime == 2
    # What was placed and is kept anew, under another key.
    store.put(PARTS | {"of": "joris"}, {"a.bin": first})
    os.utime(store.find(PARTS | {"of": "joris"}).files["a.bin"], (3, 3))
    assert first.stat().st_mtime == 1


FILLS = """
import resource, signal, sys, time
from pathlib import Path
from lora_atlas.keys import Digests
from lora_atlas.store import Store
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
store = Store(folder / "store", Digests(None))
if limit:  # the write that goes over it ends in an error, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
print("ready", flush=True)
sys.stdin.readline()
found = 0
for number in range(1 if limit else 60):
    parts = {"job": "train_loras", "of": number}
    store.put(parts, {"a.bin": folder / "made", "b.bin": folder / "made"})
    entry = store.find(parts)
    found += entry is not None and all(f.read_bytes() == (folder / "made").read_bytes() for f in entry.files.values())
print(found, store.remarks)
"""


def filling(folder, *limits):
    """What processes say that keep the same entries at the same time."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "workflow")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FILLS, str(folder), str(limit)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for limit in limits
    ]  # fmt: skip
    assert [each.stdout.readline() for each in running] == ["ready\n"] * len(running)
    for each in running:
        each.stdin.write("go\n")
        each.stdin.flush()
    return [each.communicate()[0].strip() for each in running]


@pytest.mark.fault("caches", "two processes fill the same entries at once", "each finds whole entries, once each")
def test_two_processes_fill_the_same_entries(tmp_path):
    (tmp_path / "made").write_bytes(bytes(range(256)) * 400)
    assert filling(tmp_path, 0, 0) == ["60 []"] * 2
    assert len(list((tmp_path / "store").glob("??/*"))) == 60 and not list((tmp_path / "store").glob(".part-*"))


@pytest.mark.fault("caches", "the disk is full while an entry is kept", "a remark; nothing of the entry is left")
def test_a_full_disk_leaves_nothing_of_an_entry(tmp_path):
    (tmp_path / "made").write_bytes(bytes(range(256)) * 400)
    (said,) = filling(tmp_path, 50_000)
    assert said.startswith("0 [") and "nothing is kept there" in said and "File too large" in said
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert filling(tmp_path, 0) == ["60 []"]


# --- keys


def test_what_means_the_same_has_one_form():
    assert canonical({"b": 2.0, "a": (1, 0.1)}) == canonical({"a": [1.0, 0.1], "b": 2}) == '{"a":[1,0.1],"b":2}'
    assert len({canonical(each) for each in ({"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": 1.5})}) == 5


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), os, b"bytes", slice(1)])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError, match="no canonical form"):
        canonical({"a": value})


@pytest.mark.fault("caches", "a file gets other bytes and its old date", "seen as another file")
def test_another_byte_is_seen_whatever_the_date(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_atlas.atomic.SETTLED", -1.0)
    digests, file = Digests(tmp_path / "memo.jsonl"), tmp_path / "base.bin"
    file.write_bytes(b"one")
    before, times = digests.file(file), file.stat()
    assert Digests(tmp_path / "memo.jsonl").file(file) == before
    for number, put in enumerate((lambda: file.write_bytes(b"two"), lambda: (tmp_path / "new").replace(file))):
        (tmp_path / "new").write_bytes(b"%d.." % number)
        # Until Linux 6.13 a file's times move on by ticks of milliseconds only.
        while (tmp_path / "new").stat().st_ctime_ns <= file.stat().st_ctime_ns:
            (tmp_path / "new").touch()
        put()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        now = Digests(tmp_path / "memo.jsonl").file(file)
        assert now != before
        before = now


@pytest.mark.fault("caches", "the memo of digests is cut, or nonsense", "read past; the digests are right")
def test_a_memo_that_is_cut_or_nonsense_is_read_past(tmp_path):
    memo = tmp_path / "memo.jsonl"
    memo.write_text('[1, 2\n{"a": 1}\n[1, 2, 3, 4, 5, "", "short"]\n')
    (tmp_path / "x").write_bytes(b"x")
    assert Digests(memo).file(tmp_path / "x") == Digests(None).file(tmp_path / "x")
