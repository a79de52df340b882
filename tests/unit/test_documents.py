"""Pages that are made from the schemas: they are as committed, and nothing is left without words."""

import re
from collections import Counter
from pathlib import Path

import faults
import pytest
import yaml

from lora_atlas import documents, tables

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "page"), [
        ("tables", documents.tables_page), ("config", documents.config_page), ("formats", documents.formats_page),
        ("reliability", faults.page),
    ],
)  # fmt: skip
def test_the_committed_page_is_what_the_schemas_say(name, page):
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == page(), "run `make docs` and commit what it changes"


def test_every_table_and_column_is_described_and_nothing_else_is():
    columns = {field: name for name, schema in tables.SCHEMAS.items() for field in schema.names}
    for column in documents.COLUMNS:
        table, _, field = column.rpartition(".")
        assert field in (tables.SCHEMAS[table].names if table else columns), column
    assert all(about.startswith("one row ") for about in tables.ABOUT.values())


def test_every_key_of_the_configuration_is_listed_with_its_default():
    """By a walk of one's own over config.yaml."""
    page = documents.config_page()
    config = yaml.safe_load((DOCS.parent / "config.yaml").read_text())
    for section, value in config.items():
        if section == "extractors" or not isinstance(value, dict) or not value:
            assert f"| `{section}` |" in page, section
            continue
        for key, inner in value.items():
            assert f"| `{section}.{key}" in page, f"{section}.{key}"
            if isinstance(inner, (int, bool)):
                assert f"| `{section}.{key}` | `{str(inner).lower()}` |" in page


def test_a_comment_that_goes_on_below_its_key_is_read_whole():
    page = documents.config_page()
    assert "huggingface: a dataset · artbench: its CSV and folder · commons: categories of Wikimedia Commons · " in page
    assert "learnt: fitted to the labels of other artists, an upper bound (delta alone) |" in page


# --- faults, from the markers of the tests


def test_every_marker_is_a_row_of_its_own():
    """By a count in the text of the tests: a marker in another file or on another thing than a test is no row."""
    files = (DOCS.parent / "tests").rglob("*.py")
    written = sum(len(re.findall(r"^ *@pytest\.mark\.fault\(", file.read_text(), re.MULTILINE)) for file in files)
    rows = faults.marked()
    assert len(rows) == written >= 60
    assert not [fault for fault, times in Counter(row.fault for row in rows).items() if times > 1]
    assert {row.area for row in rows} == set(faults.AREAS)


def test_what_the_page_says_of_a_real_slurm_is_in_its_script():
    script = (DOCS.parent / "tests/slurm/run.sh").read_text()
    assert 'kill -9 "$(cat "$work/slurm/slurmd-$node.pid")"' in script and 'kill -9 "$driver"' in script
    assert 'cmp "$file"' in script and len(faults.ON_SLURM) == 2


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('@pytest.mark.fault("weather", "a", "b")', "line 2: expected fault"),
        ('@pytest.mark.fault("caches", "a")', "line 2: expected fault"),
        ('@pytest.mark.fault("caches", "a", "b")\ndef helps(): ...\n\n\n@pytest.fixture', "line 2: helps is no test"),
    ],
)
def test_a_marker_in_another_form_is_named(tmp_path, marker, words):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text(f"import pytest\n{marker}\ndef test_x(): ...\n")
    with pytest.raises(ValueError, match=rf"tests/test_x\.py, {re.escape(words)}"):
        faults.marked(tmp_path)
