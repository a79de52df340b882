"""Every kind of file that one stage writes and another reads: a flipped bit or a cut is an error that names the file
and the way out, or no value is another."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_atlas import tables, tensors
from lora_atlas.attribution import study, ways
from lora_atlas.attribution.study import AttributionError
from lora_atlas.diffusion import sensitivity, state
from lora_atlas.diffusion.errors import TrainingError
from lora_atlas.diffusion.kohya import ExportError, export
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora, write_lora
from lora_atlas.mini import corpus
from lora_atlas.mini.corpus import CorpusError
from lora_atlas.weights.gram import GramError, read_gram, read_header, write_gram
from lora_atlas.weights.metric import MetricError, read_metric
from lora_atlas.weights.modules import read_modules, write_modules
from lora_atlas.weights.sketch import Sketch, read_sketch, sketch_files_gram, write_sketch
from lora_atlas.weights.spectrum import spectra

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MODULE = f"unet.{LAYER}"
LOST = ("delete it and r", "delete it to train", "delete the folder", "make it again", "copy it again", "cut short")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def lora(path: Path) -> None:
    updates = {MODULE: Update(MODULE, numbers(2, 320), numbers(320, 2))}
    write_lora(path, updates, {"lora_atlas.version": "1", "lora_atlas.base": "a base"})


def kohya(path: Path) -> None:
    lora(path.with_name("source.safetensors"))
    export(path.with_name("source.safetensors"), path)


def exported(path: Path) -> list[bytes]:
    export(path, path.with_name("exported.safetensors"))
    with safe_open(path.with_name("exported.safetensors"), "np") as file:
        return [file.get_tensor(key).tobytes() for key in sorted(file.keys())]


def rows(path: Path) -> None:
    row = {"lora": "a/00", "artist": "a", "genre": None, "split": "query", "seed": 1, "pictures": ["p"], "overlap": 0.0}
    tables.write(path, "plan", [row])


def metric(path: Path) -> None:
    square = {MODULE: torch.from_numpy(numbers(4, 4))}
    sensitivity.write(path, sensitivity.Sensitivity({MODULE: 0.5}, {MODULE: 0.25}, square, square), {"base": "a base"})


def of_metric(path: Path) -> Any:
    found = read_metric(path)
    return found.weights, found.roots(MODULE)


def of_gram(path: Path) -> Any:
    return read_gram(path, "delta"), read_header(path)["engine"]


def of_sketches(path: Path) -> Any:
    return sketch_files_gram([path])


def painted(path: Path) -> None:
    pictures = np.zeros((2, 3, 3, 3), np.uint8)
    corpus.save(corpus.Corpus(pictures, ("a harbour",) * 2, ("a painting",) * 2), path)


def products(path: Path) -> None:
    header = {"modules": [MODULE], "pictures": ["p", "q"], "loras": ["a/00"]}
    tensors.write(path, {"values": numbers(1, 2, 1), "reference": numbers(1, 3, 1)}, header)


@dataclass(frozen=True)
class Kind:
    """How a file comes about, how a stage reads it, the reader's error, and at most how many bytes are flipped."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    error: type[Exception]
    flips: int = 150
    name: str = "x.safetensors"


KINDS = {
    "a table": Kind(rows, lambda path: tables.read(path, "plan").to_pylist(), tables.TableError),
    "a LoRA": Kind(lora, lambda path: read_lora(path).updates, LoraFileError),
    "a LoRA, for its singular values": Kind(lora, lambda path: spectra([path]), LoraFileError),
    "a LoRA, to be exported": Kind(lora, exported, ExportError),
    "an exported LoRA": Kind(kohya, lambda path: read_lora(path).updates, LoraFileError),
    "inner products": Kind(
        lambda path: write_gram(path, ["a", "b"], {("self_attention", "down"): np.eye(2)}, "delta"), of_gram, GramError
    ),
    "inner products of modules": Kind(
        lambda path: write_modules(path, ["a", "b"], {"delta": {MODULE: np.eye(2)}}, {"delta": {MODULE: 7}}),
        read_modules,
        GramError,
    ),
    "a base's sensitivity": Kind(metric, of_metric, MetricError),
    "a sketch": Kind(
        lambda path: write_sketch(path, Sketch(64, {MODULE: numbers(64)}, {MODULE: 1.0})), read_sketch, LoraFileError
    ),
    "a sketch, for inner products": Kind(
        lambda path: write_sketch(path, Sketch(64, {MODULE: numbers(64)}, {MODULE: 1.0})), of_sketches, LoraFileError
    ),
    "gradients' products": Kind(products, study.read, AttributionError),
    "values of other ways": Kind(
        lambda path: ways.write(path, [ways.Way("samples", "1", ("p",), numbers(1, 1), np.eye(1))], ["a/00"]),
        ways.read,
        AttributionError,
    ),
    "a state of training": Kind(
        lambda path: state.save(path, {"loras": ["a/00"], "factors": torch.from_numpy(numbers(16, 16)), "step": 3}),
        lambda path: state.load(path, ["a/00"], torch.device("cpu")),
        TrainingError,
        60,
        "x.pt",
    ),
    "pictures to pretrain on": Kind(painted, corpus.load, CorpusError),
}


def values(found: Any) -> Any:
    """What was read, so that it can be compared, NaN with NaN too."""
    if isinstance(found, np.ndarray | torch.Tensor):
        found = np.asarray(found)
        return found.dtype.str, found.shape, found.tobytes()
    if isinstance(found, dict):
        return {str(key): values(value) for key, value in found.items()}
    if isinstance(found, list | tuple | set):
        return [values(each) for each in found]
    return values(vars(found)) if hasattr(found, "__dict__") else repr(found)


def refused_or_same(kind: Kind, path: Path, sound: Any) -> bool:
    """Whether the file was refused; what was read is otherwise what it was before the damage."""
    try:
        found = kind.read(path)
    except kind.error as error:
        said = str(error)
        assert str(path) in said and any(words in said for words in LOST) and len(said) < 400, said
        return True
    assert values({**values(found), "path": ""} if isinstance(values(found), dict) else found) == sound
    return False


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    """A kind, a sound file of it, and what is read from that."""
    kind = KINDS[request.param]
    path = tmp_path / kind.name
    kind.write(path)
    found = kind.read(path)
    return kind, path, values({**values(found), "path": ""} if isinstance(values(found), dict) else found)


@pytest.mark.fault(
    "tables and pages",
    "a flipped bit in any file that a stage reads: tables, LoRAs, exported LoRAs, inner products, sensitivities, "
    "sketches, gradients' products, states of training",
    "refused by name, with what makes it again; or no value is another",
)
def test_a_flipped_bit_is_named_or_changes_no_value(made):
    kind, path, sound = made
    whole, refused = path.read_bytes(), 0
    step = max(1, len(whole) // kind.flips)
    places = range(0, len(whole), step)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        refused += refused_or_same(kind, path, sound)
    assert refused > 0.6 * len(places)


@pytest.mark.fault(
    "tables and pages", "the same files, cut at every length", "refused by name, with what makes it again"
)
def test_a_file_that_is_cut_is_named(made):
    kind, path, sound = made
    whole = path.read_bytes()
    for length in {0, 1, 8, 9, *range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert refused_or_same(kind, path, sound), length


def test_equal_content_is_equal_bytes(made):
    kind, path, _ = made
    first = path.read_bytes()
    kind.write(path)
    assert path.read_bytes() == first


def test_a_file_without_a_digest_is_read_as_it_is(tmp_path):
    """As other people's files have none, nor those of earlier versions."""
    lora(tmp_path / "ours.safetensors")
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "theirs.safetensors")
    theirs = read_lora(tmp_path / "theirs.safetensors").updates
    assert values(theirs) == values(read_lora(tmp_path / "ours.safetensors").updates)


def test_what_another_program_saved_under_our_header_says_what_to_take_out(tmp_path):
    lora(tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "np") as file:
        header = file.metadata()
    half = {key: value.astype(np.float16) for key, value in load_file(tmp_path / "ours.safetensors").items()}
    save_file(half, tmp_path / "half.safetensors", header)
    with pytest.raises(LoraFileError, match=r"take lora_atlas\.content_sha256 out of its metadata"):
        read_lora(tmp_path / "half.safetensors")
    del header["lora_atlas.content_sha256"]
    save_file(half, tmp_path / "half.safetensors", header)
    read_lora(tmp_path / "half.safetensors")


def test_a_file_that_changes_while_a_job_runs_is_looked_at_again(tmp_path):
    path = tmp_path / "x.safetensors"
    lora(path)
    file = open_lora(path)
    with file.reading():
        pass
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    with pytest.raises(LoraFileError, match="damaged"), file.reading():
        pass


def test_a_file_that_may_change_within_its_moment_is_looked_at_again(tmp_path, monkeypatch):
    """Times of files move on by ticks, of milliseconds until Linux 6.13: another write may have the same."""
    path = tmp_path / "x.safetensors"
    tensors.write(path, {"x": np.eye(2)}, {})
    monkeypatch.setattr(tensors, "_SOUND", set())
    tensors.check(path)
    assert set() == tensors._SOUND
    monkeypatch.setattr("lora_atlas.atomic.SETTLED", -1.0)
    tensors.check(path)
    assert len(tensors._SOUND) == 1
