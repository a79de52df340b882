"""Batches are halved where a device's memory runs out, and what comes out is what came out before."""

import pytest
import torch

from lora_atlas.diffusion import base as bases
from lora_atlas.diffusion import room
from lora_atlas.diffusion.errors import BaseModelError
from lora_atlas.diffusion.room import in_parts, largest
from lora_atlas.sections import Base

ROOM, CPU = 3, torch.device("cpu")


def short(n: int) -> int:
    if n > ROOM:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return n


def test_parts_are_halved_and_stay_so_in_their_order(capsys):
    seen = []

    def run(part: slice) -> list[int]:
        seen.append(part.stop - part.start)
        short(part.stop - part.start)
        return list(range(part.start, part.stop))

    found = in_parts(run, 10, 16, "things")
    assert [n for part in found for n in part] == list(range(10))
    assert seen == [10, 5, 3, 3, 3, 1]
    said = capsys.readouterr().out
    assert "out of memory: things, going on with 5 at a time" in said and "with 3 at a time" in said
    assert in_parts(run, 0, 16, "things") == []


def test_where_there_is_no_room_for_one_it_is_said():
    def never(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BaseModelError, match="out of memory: things, one at a time; take a device with more memory"):
        in_parts(never, 5, 4, "things")
    with pytest.raises(BaseModelError, match="one at a time"):
        largest(lambda n: short(n + ROOM), 4, "things", CPU)


def test_the_largest_that_fits_is_found():
    assert largest(lambda n: short(n) and None, 16, "things", CPU) == 2
    assert largest(lambda n: short(n) and None, 3, "things", CPU) == 3


def test_a_trial_leaves_some_memory_over(monkeypatch):
    """What comes after a trial takes a little more: where the device was all but full, half as many are taken."""
    taken = iter([True, True, False])
    monkeypatch.setattr(room, "full", lambda device: next(taken))
    assert largest(lambda n: None, 16, "things", CPU) == 4
    monkeypatch.setattr(room, "full", lambda device: True)
    assert largest(lambda n: None, 16, "things", CPU) == 1


@pytest.mark.fault(
    "training", "a GPU whose memory does not hold a batch of pictures, to be encoded", "halved; the same latents"
)
def test_latents_come_out_the_same_where_fewer_fit(tiny_base, monkeypatch):
    pipeline = bases.load(Base(tiny_base), device="cpu")
    pictures = torch.rand(7, 3, 32, 32, generator=torch.manual_seed(0)) * 2 - 1
    whole = bases.encode_pictures(pipeline, pictures, 3)
    encode = pipeline.vae.encode

    def scarce(x, *args, **kwargs):
        short(len(x))
        return encode(x, *args, **kwargs)

    monkeypatch.setattr(pipeline.vae, "encode", scarce)
    assert torch.allclose(bases.encode_pictures(pipeline, pictures), whole, atol=1e-6)
