"""How many LoRAs fit: memory is a straight line here, sometimes with a device that refuses."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_atlas.diffusion.size import SHARE, grow, remembered, split


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 1000), st.integers(1, 20_000), st.booleans())
def test_the_largest_pack_that_fits_is_found_and_nothing_larger_is_kept(most, each, base, memory, refuses):
    tried = []

    def trial(K: int) -> int:
        tried.append(K)
        if refuses and base + each * K > memory:
            raise torch.OutOfMemoryError("no room")
        return base + each * K

    K = grow(trial, most, memory)
    room = int((SHARE * memory - base) // each)
    assert max(1, min(most, room)) == K or (room == 2 and K == 2) or (room == 3 and K in (2, 3))
    assert len(tried) <= 2 + most.bit_length() + 1


def test_what_was_chosen_is_remembered_for_the_same_work_only(tmp_path):
    file, asked = tmp_path / "pack_sizes.json", []

    def choose() -> int:
        asked.append(1)
        return 7

    assert [remembered(file, {"device": d}, choose) for d in ("a", "a", "b")] == [7, 7, 7]
    assert len(asked) == 2
    file.write_text("{")  # damaged: measured again
    assert remembered(file, {"device": "a"}, choose) == 7
    assert len(json.loads(file.read_text())) == 1


@given(st.integers(1, 60), st.integers(1, 20))
def test_packs_are_even_and_in_order(count, K):
    packs = split([str(i) for i in range(count)], K)
    assert [lora for pack in packs for lora in pack] == [str(i) for i in range(count)]
    assert max(map(len, packs)) <= K
    assert max(map(len, packs)) - min(map(len, packs)) <= 1
