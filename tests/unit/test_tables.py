"""Tables: whole or not at all, checked on the way in and out, and the same bytes for the same rows."""

import json
import math
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atlas import tables
from lora_atlas.tables import SCHEMAS, TableError, metadata, read, replacing, table, write

WORKFLOW = Path(__file__).parents[2] / "workflow"

PLAN = {
    "lora": "monet/00",
    "artist": "monet",
    "genre": None,
    "split": "gallery",
    "seed": 2**63 - 1,
    "pictures": ["aa", "bb"],
    "overlap": 0.5,
}


def log(count: int, loss: float | None = 0.25) -> list[dict]:
    return [
        {"lora": f"monet/{n:02}", "step": n, "loss": loss, "gradient_norm": n / 3, "seconds": 0.5} for n in range(count)
    ]


def run(code: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(WORKFLOW)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
REAL = st.none() | st.floats(allow_nan=False)
VALUES = {
    pa.string(): TEXT,
    pa.float64(): st.floats(allow_nan=False),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.list_(pa.string()): st.lists(TEXT, max_size=3),
    pa.list_(pa.float32()): st.lists(st.floats(allow_nan=False, width=32), max_size=3),
    SCHEMAS["generated"].field("image").type: st.fixed_dictionaries(
        {"bytes": st.binary(max_size=20), "path": st.none() | TEXT}
    ),
    pa.list_(pa.int64()): st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    SCHEMAS["loras"].field("components").type: st.lists(
        st.fixed_dictionaries({"component": TEXT, "norm": st.floats(allow_nan=False)}), max_size=3
    ),
}
ROWS = st.sampled_from(sorted(SCHEMAS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            st.fixed_dictionaries(
                {f.name: (st.none() | VALUES[f.type]) if f.nullable else VALUES[f.type] for f in SCHEMAS[name]}
            ),
            max_size=4,
        ),
    )
)


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_what_is_written_is_read_back_in_every_table(tmp_path_factory, drawn):
    name, rows = drawn
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    write(path, name, rows)
    found = read(path, name)
    assert found.to_pylist() == rows
    assert found.schema == SCHEMAS[name] and found == table(name, rows)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_table_without_rows_has_all_its_columns(tmp_path, name):
    write(tmp_path / "t.parquet", name, [])
    found = read(tmp_path / "t.parquet", name)
    assert found.num_rows == 0 and found.schema == SCHEMAS[name]
    assert pa.null() not in found.schema.types


@pytest.mark.fault("tables and pages", "NaN, which pandas makes null", "stays NaN")
def test_not_a_number_and_null_stay_two_things(tmp_path):
    write(tmp_path / "t.parquet", "training_log", log(1, math.nan) + log(1, None) + log(1, math.inf))
    found = read(tmp_path / "t.parquet", "training_log")["loss"]
    first, second, third = found.to_pylist()
    assert math.isnan(first) and second is None and third == math.inf and found.null_count == 1


@pytest.mark.fault(
    "tables and pages", "a column of nulls alone, which becomes the type null", "keeps the type of the schema"
)
def test_a_column_of_nulls_keeps_its_type(tmp_path):
    for path, loss in ((tmp_path / "a", None), (tmp_path / "b", 0.5)):
        write(path, "training_log", log(3, loss))
    joined = pa.concat_tables([read(tmp_path / name, "training_log") for name in "ab"])
    assert joined["loss"].to_pylist() == [None] * 3 + [0.5] * 3


# --- what a writer is told


def test_missing_and_extra_columns_are_named_with_their_row():
    wrong = {key: value for key, value in PLAN.items() if key not in ("seed", "genre")} | {"sead": 1, "note": ""}
    with pytest.raises(TableError) as caught:
        table("plan", [PLAN, wrong])
    message = str(caught.value)
    assert "table 'plan', row 1" in message
    assert "missing columns ['genre', 'seed']" in message and "unknown columns ['note', 'sead']" in message


@pytest.mark.parametrize("name", [n for n, schema in SCHEMAS.items() if any(f.nullable for f in schema)])
def test_optional_columns_may_be_null_and_not_absent(name):
    drawn = {f.name: None for f in SCHEMAS[name]}
    for field in SCHEMAS[name]:
        if field.nullable:
            with pytest.raises(TableError, match=rf"missing columns \['{field.name}'\], unknown columns \[\]"):
                table(name, [{key: value for key, value in drawn.items() if key != field.name}])


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": "one"},
        {"lora": 7},
        {"overlap": "half"},
        {"pictures": [3]},
        {"pictures": 3},
        {"genre": ["a"]},
        {"seed": True},
        {"lora": b"\xff"},
    ],
    ids=str,
)
def test_a_mistyped_value_is_an_error_of_its_table(tmp_path, wrong):
    with pytest.raises(TableError, match="table 'plan'"):
        table("plan", [PLAN, PLAN | wrong])
    with pytest.raises(TableError, match="table 'plan'"):
        write(tmp_path / "t.parquet", "plan", [PLAN | wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_null_in_a_required_column_is_refused_by_name(tmp_path, name):
    sample = {pa.string(): "x", pa.float64(): 0.5, pa.int64(): 1}
    image = {"bytes": b"x", "path": None}
    whole = {f.name: [] if pa.types.is_list(f.type) else sample.get(f.type, image) for f in SCHEMAS[name]}
    assert table(name, [whole]).num_rows == 1
    required = [field.name for field in SCHEMAS[name] if not field.nullable]
    assert required
    for column in required:
        with pytest.raises(TableError, match=f"table '{name}': column '{column}' has 2 nulls"):
            table(name, [whole | {column: None}, whole, whole | {column: None}])
        # A table built elsewhere is not trusted either.
        foreign = pa.Table.from_pylist([whole | {column: None}], schema=SCHEMAS[name])
        with pytest.raises(TableError, match=rf"t\.parquet: column '{column}' has 1 nulls"):
            write(tmp_path / "t.parquet", name, foreign)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_other_columns_is_not_written(tmp_path):
    whole = table("training_log", log(2))
    others = [
        whole.drop_columns(["loss"]),
        whole.append_column("note", pa.array(["", ""])),
        whole.rename_columns(["lora", "step", "loss", "norm", "seconds"]),
        whole.select(["step", "lora", "loss", "gradient_norm", "seconds"]),
        whole.set_column(1, "step", pa.array([0.0, 1.0])),
        table("plan", [PLAN]),
    ]
    for other in others:
        with pytest.raises(TableError, match=r"t\.parquet: columns are not those of table 'training_log'"):
            write(tmp_path / "t.parquet", "training_log", other)
    assert list(tmp_path.iterdir()) == []


# --- metadata

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
KEYS = TEXT.filter(lambda key: key and key != "lora_atlas" and not key.startswith("ARROW:"))


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_metadata_comes_back_as_it_was_given(tmp_path_factory, given_metadata):
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    write(path, "training_log", log(1), given_metadata)
    found = metadata(read(path, "training_log"))
    ours = found.pop("lora_atlas")
    assert (ours["table"], ours["version"], ours["rows"]) == ("training_log", tables.VERSION, 1)
    assert found == given_metadata


# --- the same bytes


def test_the_same_rows_are_the_same_bytes_however_they_arrive(tmp_path):
    rows = log(40)
    whole = table("training_log", rows)
    extra = {"b": {"y": 1, "x": [2.5]}, "a": "ä"}
    write(tmp_path / "rows", "training_log", rows, extra)
    expected = (tmp_path / "rows").read_bytes()
    forms = {
        "a generator": (row for row in rows),
        "columns in another order": [dict(reversed(row.items())) for row in rows],
        "a table": whole,
        "chunks": pa.concat_tables([whole[:7], whole[7:]]),
        "a slice": pa.concat_tables([whole, whole]).slice(40),
        "read back": read(tmp_path / "rows", "training_log"),
        "foreign metadata": whole.replace_schema_metadata({"pandas": "{}"}),
    }
    for name, data in forms.items():
        write(tmp_path / "again", "training_log", data, dict(reversed(extra.items())))
        assert (tmp_path / "again").read_bytes() == expected, name


def test_another_process_writes_the_same_bytes(tmp_path):
    rows = log(30)
    write(tmp_path / "here", "training_log", rows, {"explained": [0.5, 0.25], "descriptor": "delta"})
    code = (
        "import json, sys; from lora_atlas.tables import write\n"
        "write(sys.argv[1], 'training_log', json.loads(sys.argv[2]),\n"
        "      {'descriptor': 'delta', 'explained': [0.5, 0.25]})"
    )
    run(code, tmp_path / "there", json.dumps(rows), PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


# --- whole or not at all


@pytest.mark.fault("tables and pages", "writing a table fails halfway", "the old table stays, and nothing else")
def test_a_failure_in_mid_write_leaves_the_old_table_and_nothing_else(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(3))
    old = path.read_bytes()

    def replace(content: bytes, share: float) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == path.parent and path.read_bytes() == old
            share = 1 / share

    with pytest.raises(ZeroDivisionError):
        replace(b"half a table", 0)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    replace(b"new", 1)
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_reader_that_has_the_old_table_open_goes_on_reading_it(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(3))
    old = path.read_bytes()
    with path.open("rb") as file:
        write(path, "training_log", log(4))
        assert file.read() == old
    assert read(path, "training_log").num_rows == 4


# Writes under a limit on file sizes, which ends a write after just so many bytes. Python turns that into an OSError,
# as a full disk would; with the signal's default action the kernel ends the process there and then.
LIMITED = """
import os, resource, signal, sys
from lora_atlas import tables
path, action = sys.argv[1:]
rows = [{"lora": f"new/{n}", "step": n, "loss": n / 7, "gradient_norm": n / 3, "seconds": 0.5} for n in range(300)]
tables.write(path + '.size', 'training_log', rows)
size = os.path.getsize(path + '.size')
os.remove(path + '.size')
for limit in [*range(0, size, size // 6), size - 1]:
    child = os.fork()
    if not child:
        if action == "kill":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            tables.write(path, "training_log", rows)
        except OSError:
            os._exit(3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), tables.read(path, "training_log").num_rows)
"""


@pytest.mark.fault("tables and pages", "a full disk, or a kill, after any number of bytes", "the old table stays")
@pytest.mark.parametrize(("action", "status"), [("kill", -25), ("full", 3)])
def test_a_writer_that_ends_after_any_number_of_bytes_leaves_the_old_table(tmp_path, action, status):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(5))
    old = path.read_bytes()
    ends = [tuple(map(int, line.split())) for line in run(LIMITED, path, action).splitlines()]
    assert len(ends) >= 7 and set(ends) == {(status, 5)}
    assert path.read_bytes() == old
    left = [file for file in tmp_path.iterdir() if file != path]
    assert len(left) == (len(ends) if action == "kill" else 0)  # a killed process cannot tidy up
    assert all(file.name.startswith(".t.parquet.") and file.suffix == ".part" for file in left)
    write(path, "training_log", log(9))  # and what it left is in nobody's way
    assert read(path, "training_log").num_rows == 9


@pytest.mark.fault("tables and pages", "SIGKILL between the write and the rename", "the old table stays")
def test_a_writer_killed_before_the_rename_leaves_the_old_table(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(5))
    code = (
        "import os, signal, sys; from lora_atlas import tables\n"
        "if child := os.fork():\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "else:\n"
        "    with tables.replacing(sys.argv[1]) as temporary:\n"
        "        temporary.write_bytes(b'PAR1 and no more')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run(code, path).strip() == "-9"
    assert read(path, "training_log").num_rows == 5


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write(tmp_path / "t.parquet", "training_log", log(1))
        (tmp_path / "plain").write_text("")
        assert os.umask(mask) == mask  # and writing leaves it as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t.parquet").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == mode


def test_folders_on_the_way_are_made_and_names_may_hold_anything(tmp_path):
    for name in ("deep/er/t.parquet", "split=gallery/lora=1.parquet", "with space/ä#?.parquet"):
        write(tmp_path / name, "training_log", log(2))
        found = read(str(tmp_path / name), "training_log")
        assert found.schema == SCHEMAS["training_log"] and found.num_rows == 2  # no column comes from a folder's name


# --- what a reader is told


def pages(path: Path) -> list[range]:
    """The bytes of each column chunk: its pages and their headers."""
    chunks = []
    found = pq.read_metadata(path)
    for group in range(found.num_row_groups):
        for number in range(found.num_columns):
            column = found.row_group(group).column(number)
            first = min(o for o in (column.dictionary_page_offset, column.data_page_offset) if o is not None)
            chunks.append(range(first, first + column.total_compressed_size))
    return chunks


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Write a good table with one byte changed; a table of every kind of column."""
    folder = tmp_path_factory.mktemp("damaged")
    image = {"bytes": bytes(range(64)), "path": "a.png"}
    write(
        folder / "good", "generated", [{"lora": "a/0", "prompt": f"{n}", "seed": n, "image": image} for n in range(5)]
    )
    good = (folder / "good").read_bytes()

    def flip(place: int, mask: int) -> Path:
        (folder / "bad.parquet").write_bytes(good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :])
        return folder / "bad.parquet"

    return folder / "good", flip


@pytest.mark.fault(
    "tables and pages",
    "a flipped bit in the values of any column",
    "refused as damaged, with the command that makes it again",
)
def test_a_flipped_bit_in_the_data_of_any_column_is_noticed(damaged):
    path, flip = damaged
    chunks = pages(path)
    assert len(chunks) == 5
    for chunk in chunks:
        for place in (chunk[-1], chunk[-3]):  # a page's data is what a chunk ends with
            for mask in (1, 0x80):
                with pytest.raises(TableError, match=r"bad\.parquet: damaged"):
                    read(flip(place, mask), "generated")


def test_a_flipped_bit_anywhere_in_the_pages_is_noticed_or_changes_nothing(damaged):
    path, flip = damaged
    good = read(path, "generated")

    def outcome(place: int) -> pa.Table | str:
        try:
            return read(flip(place, 1 << place % 8), "generated")
        except TableError as error:
            return str(error)

    outcomes = {place: outcome(place) for chunk in pages(path) for place in chunk}
    noticed = {place: found for place, found in outcomes.items() if isinstance(found, str)}
    assert all(outcomes[place] == good for place in outcomes.keys() - noticed.keys())
    assert all("bad.parquet: damaged" in found and "snakemake --forcerun" in found for found in noticed.values())
    assert len(noticed) > len(outcomes) / 2


@pytest.mark.fault(
    "tables and pages", "a table cut at every length", "refused as damaged, with the command that makes it again"
)
def test_a_table_cut_short_is_damaged_at_every_length(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(5))
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(TableError, match=r"t\.parquet: damaged, or not a Parquet file .*snakemake --forcerun"):
            read(path, "training_log")
    path.write_bytes(whole[100:])
    with pytest.raises(TableError, match=r"t\.parquet: damaged"):
        read(path, "training_log")


@pytest.mark.fault("tables and pages", "text, a web page or a git-lfs pointer in place of a table", "refused by name")
@pytest.mark.parametrize("content", [b"hello", b"<!doctype html><p>captcha", b"version https://git-lfs.github.com/x"])
def test_what_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(TableError, match=r"t\.parquet: damaged, or not a Parquet file"):
        read(tmp_path / "t.parquet", "plan")


@pytest.mark.fault("tables and pages", "a table that is absent", "refused by name")
def test_an_absent_table_is_named(tmp_path):
    with pytest.raises(TableError, match=r"plan\.parquet: the table 'plan' is absent"):
        read(tmp_path / "plan.parquet", "plan")


@pytest.mark.fault("tables and pages", "a table of another version", "refused with both versions")
def test_another_version_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "VERSION", 7)
    write(tmp_path / "t.parquet", "plan", [PLAN])
    assert read(tmp_path / "t.parquet", "plan").num_rows == 1
    monkeypatch.undo()
    with pytest.raises(
        TableError, match=rf"t\.parquet: expected .*version {tables.VERSION}, found 'plan' version 7; make it"
    ):
        read(tmp_path / "t.parquet", "plan")


def test_another_table_is_refused_with_both_names(tmp_path):
    write(tmp_path / "t.parquet", "training_log", log(1))
    with pytest.raises(
        TableError, match=r"t\.parquet: expected table 'plan' version 1, found 'training_log' version 1"
    ):
        read(tmp_path / "t.parquet", "plan")


def test_a_parquet_file_of_someone_else_is_refused(tmp_path):
    pq.write_table(table("plan", [PLAN]), tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"t\.parquet: expected table 'plan' version 1, found None"):
        read(tmp_path / "t.parquet", "plan")


@pytest.mark.fault("tables and pages", "a column less, more, of another type, or of type null", "refused")
def test_a_table_whose_columns_are_not_those_of_its_name_is_refused(tmp_path):
    whole = table("training_log", log(2))
    header = {"lora_atlas": json.dumps({"table": "training_log", "version": tables.VERSION})}
    for other in (
        whole.drop_columns(["loss"]),
        whole.append_column("note", pa.array(["", ""])),
        whole.set_column(1, "step", pa.array([0.0, 1.0])),
        whole.set_column(2, "loss", pa.nulls(2)),
    ):
        pq.write_table(other.replace_schema_metadata(header), tmp_path / "t.parquet")
        with pytest.raises(TableError, match=r"(?s)t\.parquet: columns are not those of table 'training_log'"):
            read(tmp_path / "t.parquet", "training_log")


@pytest.mark.parametrize(
    ("column", "value"),
    [("seed", "one"), ("seed", 1.5), ("seed", 1.0), ("seed", 2**63), ("seed", True), ("lora", 7), ("lora", "\ud800"),
     ("lora", b"\xff"), ("pictures", "ab"), ("pictures", [3]), ("pictures", 3), ("overlap", "half"), ("genre", ["a"])],
    ids=str,
)  # fmt: skip
def test_a_mistyped_value_is_an_error_that_names_table_and_column(column, value):
    with pytest.raises(TableError, match=rf"table 'plan'.*column '{column}'"):
        table("plan", [PLAN, PLAN | {column: value}])


@pytest.mark.fault("tables and pages", "a flipped bit in any byte of a table", "refused by name, or no row is another")
def test_a_flipped_bit_anywhere_is_a_table_error_or_changes_no_row(tmp_path):
    path = tmp_path / "t.parquet"
    write(path, "training_log", log(5), {"note": "x"})
    good, whole = read(path, "training_log"), path.read_bytes()

    def outcome(place):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            return read(path, "training_log") == good
        except TableError as error:
            return str(path) in str(error) and str(error).isprintable()

    assert all(outcome(place) for place in range(len(whole)))


@pytest.mark.parametrize("header", ["{not", "3", "null"])
def test_a_header_that_is_no_header_is_refused_by_name(tmp_path, header):
    pq.write_table(table("plan", [PLAN]).replace_schema_metadata({"lora_atlas": header}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match=r"t\.parquet: "):
        read(tmp_path / "t.parquet", "plan")


@pytest.mark.fault(
    "tables and pages", "a reader while the table is replaced 200 times", "sees the whole old or the whole new one"
)
def test_a_reader_sees_the_whole_old_table_or_the_whole_new_one(tmp_path):
    path = tmp_path / "t.parquet"
    sizes = (2, 3000)
    write(path, "training_log", log(sizes[0]))
    done = threading.Event()

    def turn() -> None:
        both = [table("training_log", log(size)) for size in sizes]
        for number in range(200):
            write(path, "training_log", both[number % 2])
        done.set()

    writer = threading.Thread(target=turn)
    writer.start()
    seen = []
    try:
        while not done.is_set():
            seen.append(read(path, "training_log").num_rows)
    finally:
        writer.join()
    assert set(seen) <= set(sizes) and seen


def test_a_folder_is_no_table(tmp_path):
    write(tmp_path / "parts" / "a.parquet", "training_log", log(1))
    with pytest.raises(TableError, match="parts: "):
        read(tmp_path / "parts", "training_log")


def test_metadata_cannot_take_the_place_of_the_header(tmp_path):
    write(tmp_path / "t.parquet", "plan", [PLAN], {"lora_atlas": json.loads("1")})
    assert read(tmp_path / "t.parquet", "plan").num_rows == 1


# --- what the pages' checksums do not cover


def with_header(path, change) -> None:
    """The same table, with another header of ours: as a bit that flips in the footer leaves it."""
    found = pq.read_table(path)
    header = found.schema.metadata | {
        b"lora_atlas": json.dumps(change(json.loads(found.schema.metadata[b"lora_atlas"])))
    }
    pq.write_table(found.replace_schema_metadata(header), path, write_page_checksum=True)


def test_the_number_of_rows_and_the_values_are_held_against_what_was_written(tmp_path):
    path = tmp_path / "cost.parquet"
    row = {"stage": "train", "item": "a", "count": 1, "seconds": 1.5, "device": "cpu"}
    tables.write(path, "cost", [row, row | {"item": "b"}])
    assert len(tables.read(path, "cost")) == 2
    with_header(path, lambda header: header | {"rows": 3})
    with pytest.raises(
        TableError, match=r"cost\.parquet: damaged: 2 rows, and 3 were written; .*--forcerun .*cost\.parquet"
    ):
        tables.read(path, "cost")
    with_header(path, lambda header: header | {"rows": 2})
    assert len(tables.read(path, "cost")) == 2
    found = pq.read_table(path)
    changed = found.set_column(3, found.schema.field("seconds"), pa.array([1.5, 2.5]))
    pq.write_table(changed, path, write_page_checksum=True)
    with pytest.raises(TableError, match=r"its values are not those that were written"):
        tables.read(path, "cost")


def test_a_digest_is_of_values_however_they_are_held():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"a": "x", "n": 1, "v": [1.0, 2.0], "s": {"bytes": b"1", "path": None}},
        {"a": None, "n": None, "v": [], "s": {"bytes": None, "path": "p"}},
        {"a": "", "n": 0, "v": None, "s": None},
    ]
    schema = pa.schema([("a", pa.string()), ("n", pa.int64()), ("v", pa.list_(pa.float32())), ("s", kind)])
    whole = pa.Table.from_pylist(rows, schema)
    longer = pa.Table.from_pylist([rows[2], *rows, rows[0]], schema)
    alike = [longer.slice(1, 3), whole.take([0, 1, 2]), pa.concat_tables([whole.slice(0, 1), whole.slice(1)])]
    assert {tables.digest(each) for each in alike} == {tables.digest(whole)}
    others = [whole.take([0, 2, 1]), whole.slice(0, 2), whole.take([0, 1, 1])]
    others += [pa.Table.from_pylist([*rows[:2], rows[2] | {"a": None}], schema)]  # null is not the empty text
    others += [pa.Table.from_pylist([rows[0] | {"n": None}, rows[1] | {"n": 1}, rows[2]], schema)]
    assert len({tables.digest(each) for each in [whole, *others]}) == 6
    assert tables.digest(whole.slice(0, 0)) == tables.digest(pa.Table.from_pylist([], schema))


def test_what_a_damaged_table_calls_its_columns_is_text(tmp_path):
    """A name of a column is a stranger's: it moves no cursor, and is not the whole message."""
    names = tables.SCHEMAS["training_log"].names
    odd = "gr\x1b[2Jadient_norm" + "x" * 5000
    columns = {odd if name == "gradient_norm" else name: [] for name in names}
    found = pa.table(columns).replace_schema_metadata(
        {"lora_atlas": json.dumps({"table": "training_log", "version": tables.VERSION})}
    )
    pq.write_table(found, tmp_path / "bad.parquet")
    with pytest.raises(TableError) as caught:
        tables.read(tmp_path / "bad.parquet", "training_log")
    said = str(caught.value)
    assert "lacks gradient_norm and has gr\\x1b[2Jadient_norm" in said and said.isprintable() and len(said) < 1000
