"""Foreign text in tables and on terminals."""

import os

from hypothesis import given
from hypothesis import strategies as st

from lora_atlas.labels import printable


def test_what_can_be_printed_stays():
    assert printable("Käthe 木版画 (v2)") == "Käthe 木版画 (v2)"


def test_control_characters_and_bytes_that_are_no_utf8_are_written_as_escapes():
    assert printable("a\x1b[31m\nb\u202e") == r"a\x1b[31m\nb\u202e"
    assert printable(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
    assert printable("\ud800") == r"\ud800"  # half of a pair, as JSON can hold


@given(st.text(st.characters(codec=None)))
def test_it_is_always_valid_and_printable_and_changes_no_more(text):
    found = printable(text)
    found.encode()
    assert found.isprintable() and printable(found) == found
