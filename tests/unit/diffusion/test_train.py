"""Training on a tiny base: independence, determinism, bad weather, and files that load elsewhere."""

import re
from pathlib import Path

import private
import pyarrow as pa
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from lora_atlas import tables
from lora_atlas.diffusion import pack
from lora_atlas.diffusion import train as trainer
from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers import UNet, kind_of
from lora_atlas.diffusion.errors import BaseModelError, TrainingError
from lora_atlas.diffusion.train import Resources
from lora_atlas.sections import Base

THREE = ["ada/00", "ada/01", "ada/02"]


def _vector(path) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return torch.cat([file.get_tensor(key).flatten() for key in sorted(file.keys())])


def _close(one, same, other, share=1e-4) -> None:
    """`same` lies within a share of the way to `other`, a LoRA of other pictures."""
    assert (one - same).norm() < share * (one - other).norm()


@pytest.mark.slow
def test_an_adapter_is_the_same_alone_in_company_and_in_another_order(tmp_path, any_base, material, make):
    """Products of another shape round differently; over 200 steps that was 2e-6 of the way to a neighbour."""
    alone = make(tmp_path / "alone", any_base, material, ["ada/01"], steps=200)
    company = make(tmp_path / "pack", any_base, material, THREE, steps=200)
    turned = make(tmp_path / "turned", any_base, material, ["ada/02", "ada/01", "ada/00"], steps=200)
    one, other = _vector(alone["ada/01"]), _vector(company["ada/00"])
    _close(one, _vector(company["ada/01"]), other)
    _close(one, _vector(turned["ada/01"]), other)


@pytest.mark.slow
@pytest.mark.parametrize("changes", ["targets", "buckets", "cosine"])
def test_independence_holds_for_every_kind_of_training(tmp_path, any_base, wide_and_tall, make, changes):
    kind = kind_of(DiffusionPipeline.load_config(any_base))
    loss = "min_snr" if kind is UNet else "epsilon"  # a flow has no signal-to-noise ratio to weigh
    changed = {
        "targets": {"targets": list(kind.targets)},
        "buckets": {"aspect_ratio_buckets": True},
        "cosine": {"lr_schedule": "cosine", "loss": loss},
    }[changes]
    alone = make(tmp_path / "alone", any_base, wide_and_tall, ["ada/01"], steps=40, **changed)
    company = make(tmp_path / "pack", any_base, wide_and_tall, THREE, steps=40, **changed)
    _close(_vector(alone["ada/01"]), _vector(company["ada/01"]), _vector(company["ada/00"]))


def test_packs_within_a_job_do_not_change_the_loras(tmp_path, any_base, material, make):
    one = make(tmp_path / "one", any_base, material, THREE)
    two = make(tmp_path / "two", any_base, material, THREE, resources=Resources("cpu", loras_per_pack=2))
    for lora in THREE:
        _close(_vector(one[lora]), _vector(two[lora]), _vector(one[THREE[THREE.index(lora) - 1]]))
    log = tables.read(tmp_path / "two" / "log.parquet", "training_log").to_pylist()
    assert [(row["step"], row["lora"]) for row in log] == [(step, lora) for step in (10, 12) for lora in THREE]


@pytest.mark.fault("training", "nondeterminism", "the same recipe twice gives the same bytes")
def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path, any_base, material, make):
    first = make(tmp_path / "a", any_base, material, ["ada/00", "ada/01"])
    second = make(tmp_path / "b", any_base, material, ["ada/00", "ada/01"])
    assert all(first[lora].read_bytes() == second[lora].read_bytes() for lora in first)
    assert not (tmp_path / "a" / "state").exists()


def test_shared_noise_is_shared_and_own_noise_is_own(tmp_path, any_base, material, make):
    """With the same pictures, the same A and shared noise, only the order of pictures tells two LoRAs apart."""
    plan, pictures = material
    same = pa.Table.from_pylist(
        [{**row, "pictures": plan["pictures"][0].as_py()[:1]} for row in plan.to_pylist()], plan.schema
    )
    for noise, equal in (("shared", True), ("own", False)):
        made = make(tmp_path / noise, any_base, (same, pictures), THREE[:2], init="shared", noise=noise)
        assert (made["ada/00"].read_bytes() == made["ada/01"].read_bytes()) == equal


# --- bad weather


@pytest.mark.fault(
    "training",
    "out of memory in the middle of a step",
    "smaller batches with the same sums; the result is the same but for rounding",
)
def test_out_of_memory_halves_the_batch_and_keeps_the_result(tmp_path, any_base, material, make, monkeypatch, capsys):
    whole = make(tmp_path / "whole", any_base, material, THREE)
    through = pack._batch

    def short(step, draws, part, errors):
        through(step, draws, part, errors)
        # After the backward pass: its gradients must not stay.
        if len(part.adapters) * (part.pictures.stop - part.pictures.start) > 1:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(pack, "_batch", short)
    halved = make(tmp_path / "halved", any_base, material, THREE)
    out = capsys.readouterr().out
    assert "out of memory at step 1: going on with 2 LoRAs × 2 pictures" in out
    assert "going on with 1 LoRAs × 1 pictures in a batch, gradients added up to the same 2 pictures" in out
    for lora in THREE:
        _close(_vector(whole[lora]), _vector(halved[lora]), _vector(whole[THREE[THREE.index(lora) - 1]]))


@pytest.mark.parametrize(("room", "packs"), [(1, 3), (2, 2), (3, 1)])
def test_packs_are_as_large_as_memory_allows_and_the_size_is_remembered(
    tmp_path, any_base, material, make, monkeypatch, capsys, room, packs
):
    """A device on which `room` adapters fit: one more is out of memory."""
    whole = make(tmp_path / "whole", any_base, material, THREE)
    tried, step = [], trainer.trial_step

    def trial(material, K, training):
        tried.append(K)
        step(material, K, training)
        if room < K:
            raise torch.OutOfMemoryError("no room")

    device = trainer.Memory("a small device", 1000, lambda: None, lambda: 800)
    monkeypatch.setattr(trainer, "memory_of", lambda _: device)
    monkeypatch.setattr(trainer, "trial_step", trial)
    runs, through = [], trainer.run
    monkeypatch.setattr(trainer, "run", lambda *arguments: runs.append(1) or through(*arguments))
    made = make(tmp_path / "a", any_base, material, THREE)
    assert len(runs) == packs
    assert f"{room} LoRAs in a pack on a small device" in capsys.readouterr().out
    assert max(tried) == min(room + 1, 3)
    for lora in THREE:
        _close(_vector(whole[lora]), _vector(made[lora]), _vector(whole[THREE[THREE.index(lora) - 1]]))
    tried.clear()
    make(tmp_path / "a", any_base, material, THREE)
    assert not tried


@pytest.mark.fault("training", "out of memory with a single picture", "an error that says what to set")
def test_one_picture_that_does_not_fit_is_said(tmp_path, any_base, material, make, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(pack, "_batch", never)
    with pytest.raises(TrainingError, match=r"out of memory at step 1 with one picture.*gradient_checkpointing"):
        make(tmp_path, any_base, material, THREE)


@pytest.mark.fault(
    "training",
    "NaN in one adapter's loss",
    "that adapter stops, step and picture named; the others are finished and kept",
)
def test_not_a_number_stops_one_adapter_alone(tmp_path, any_base, material, make, monkeypatch, capsys):
    """At step 4 the first picture of ada/01 turns into NaN: step and picture are named, and the others are whole."""
    whole = make(tmp_path / "whole", any_base, material, THREE, steps=25)
    through, calls, named = pack.draw, [], []

    def poisoned(stream, order, step, pictures, *rest):
        d = through(stream, order, step, pictures, *rest)
        if order == 101:
            calls.append(step)
            if step == 4:
                d.epsilon[0] = float("nan")
                named.append(d.pictures[0][1])
        return d

    monkeypatch.setattr(pack, "draw", poisoned)
    with pytest.raises(TrainingError) as caught:
        make(tmp_path / "bad", any_base, material, THREE, steps=25)
    message = str(caught.value)
    assert "1 of 3 LoRAs failed: ada/01: not finite at step 5, picture " + named[0] in message
    assert max(calls) < 10  # and it was left out from the next line of the log on
    assert not list((tmp_path / "bad").glob("*.safetensors"))
    finished = tmp_path / "bad" / "state" / "finished" / "ada"
    assert str(finished.parent) in message
    assert sorted(path.name for path in finished.iterdir()) == ["00.safetensors", "02.safetensors"]
    for lora in ("ada/00", "ada/02"):
        _close(_vector(whole[lora]), _vector(finished / f"{lora[-2:]}.safetensors"), _vector(whole["ada/01"]))
    # A retry neither trains for nothing nor forgets.
    calls.clear()
    with pytest.raises(TrainingError, match="ada/01: not finite at step 5"):
        make(tmp_path / "bad", any_base, material, THREE, steps=25)
    assert not calls


@pytest.mark.fault(
    "training", "a learning rate at which gradients overflow", "the adapter is named; nothing is written"
)
def test_a_gradient_that_is_not_finite_is_named_too(tmp_path, any_base, material, make):
    with pytest.raises(TrainingError, match=r"1 of 1 LoRAs failed: ada/00: not finite at step \d+"):
        make(tmp_path, any_base, material, ["ada/00"], learning_rate=1e30, warmup=0)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.fault("training", "pictures in the table that are cut", "all named before the first step")
def test_pictures_that_cannot_be_decoded_are_all_named_before_the_first_step(
    tmp_path, any_base, material, make, monkeypatch
):
    plan, pictures = material
    rows = pictures.to_pylist()
    for i in (1, 4):
        rows[i]["image"]["bytes"] = rows[i]["image"]["bytes"][:60]
    monkeypatch.setattr(pack, "_batch", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(TrainingError) as caught:
        make(tmp_path, any_base, (plan, tables.table("pictures", rows)), THREE)
    for i in (1, 4):
        assert f"{rows[i]['picture']} of ada: truncated or damaged" in str(caught.value)
    assert rows[0]["picture"] not in str(caught.value)


def test_a_picture_that_the_table_lacks_is_named(tmp_path, any_base, material, make):
    plan, pictures = material
    with pytest.raises(TrainingError, match=plan["pictures"][0].as_py()[0]):
        make(tmp_path, any_base, (plan, pictures.slice(2)), ["ada/00"])


@pytest.mark.fault(
    "training", "no base in the folder, or one of the hub that is not there", "an error that says what to put where"
)
@pytest.mark.parametrize("model", ["nowhere/at/all", "./absent", "someone/model"])
def test_a_missing_base_says_what_to_put_where(model):
    with pytest.raises(BaseModelError, match=r"base\.model.*model_index\.json"):
        load(Base(model), device="cpu")


# --- what is written


def test_the_header_names_neither_artist_nor_caption(tmp_path, any_base, material, make):
    shared = make(tmp_path / "s", any_base, material, ["ada/00", "ada/01"], init="shared", steps=1)
    own = make(tmp_path / "o", any_base, material, ["ada/00", "ada/01"], steps=1)

    def header(path):
        with safe_open(path, "np") as file:
            return file.metadata()

    text = re.sub("[0-9a-f]{64}", "", str(header(shared["ada/00"])))  # a digest may hold any short word
    assert "ada" not in text.replace("metadata", "")
    assert "painting" not in text
    assert not [word for word in private.words(tmp_path, Path(any_base).parent) if word in text]
    assert header(shared["ada/00"])["lora_atlas.initial_A"] == header(shared["ada/01"])["lora_atlas.initial_A"]
    assert header(own["ada/00"])["lora_atlas.initial_A"] != header(own["ada/01"])["lora_atlas.initial_A"]


# torch says so of Python 3.13.0 alone.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("resources", [Resources("cpu", gradient_checkpointing=True), Resources("cpu", compile=True)])
def test_checkpointing_and_compiling_change_nothing_but_rounding(
    tmp_path, any_base, material, make, resources, monkeypatch
):
    # Without a C++ compiler at hand: the graph is captured all the same, and run by PyTorch itself.
    compiled = []

    def capture(self):
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    plain = make(tmp_path / "plain", any_base, material, THREE)
    other = make(tmp_path / "other", any_base, material, THREE, resources=resources)
    assert bool(compiled) == resources.compile
    for lora in THREE:
        _close(_vector(plain[lora]), _vector(other[lora]), _vector(plain[THREE[THREE.index(lora) - 1]]))
