"""Kinds of updates: each part belongs to one kind, each kind is a whole record, and a new one is found by its parts."""

from dataclasses import replace

import pytest

from lora_atlas.loras import kinds
from lora_atlas.loras.kinds import KINDS, NAMED, SPELLINGS, kind_of, problem
from lora_atlas.loras.kinds.full import FULL


def test_each_part_is_spelt_by_one_kind():
    parts = [part for kind in KINDS for part in kind.spellings]
    assert len(parts) == len(set(parts)) == len(SPELLINGS)
    assert {name for name, kind in NAMED.items() if kind.name != name} == set()


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"A", "B"}, "LoRA"),
        ({"A", "B", "alpha"}, "LoRA"),
        ({"A", "B", "mid"}, "Tucker"),
        ({"w1_a", "w1_b", "w2_a", "w2_b"}, "LoHa"),
        ({"t1"}, "LoHa"),
        ({"kw1", "kw2_a", "kw2_b", "alpha"}, "LoKr"),
        ({"diff"}, "full"),
        ({"A", "B", "magnitude"}, "DoRA"),
        ({"w1_a", "magnitude"}, "DoRA"),  # and then refused: a magnitude of what is no LoRA
        ({"alpha"}, "LoRA"),  # and then refused: half a pair
        (set(), "LoRA"),
    ],
)
def test_the_parts_tell_the_kind(parts, name):
    assert kind_of(parts).name == name


def test_a_kind_that_is_added_has_the_parts_that_are_its(monkeypatch):
    """A scale for each row, as an update of its own: one record in one list."""
    rows = replace(
        FULL, name="rows", spellings={"row": r"row_scale"}, is_of=lambda parts: parts == {"row"},
        incomplete=lambda keys: None, mismatch=lambda s: None, shape=lambda s: (s["row"][0], s["row"][0]),
        rank=lambda s: s["row"][0],
    )  # fmt: skip
    monkeypatch.setattr(kinds, "KINDS", (rows, *KINDS))
    assert kind_of({"row"}) is rows and kind_of({"diff"}) is FULL
    assert problem(rows, {"row": "a.row_scale"}, {"row": (8,)}) is None
    assert problem(rows, {"row": "a.row_scale"}, {"row": (0,)}) == "of size zero: row [0]"
