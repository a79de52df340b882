"""Copies: what number formats can do to an update, and what they cannot."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lora_atlas.collection.copies import EXACT, ROUNDED, apart, precision, relation
from lora_atlas.loras.files import open_lora
from lora_atlas.weights.sketch import sketch

FORMATS = {torch.float16: 10, torch.bfloat16: 7, torch.float8_e4m3fn: 3}


def factors(make, how: str, seed: int = 0) -> dict[str, torch.Tensor]:
    rng, found = np.random.default_rng(seed), {}
    for module, (out, width) in make.sd1().items():
        for part, shape in (("A", (4, width)), ("B", (out, 4))):
            x = rng.normal(size=shape) if how != "uniform" else rng.uniform(-1, 1, size=shape)
            x = x * np.abs(rng.normal(size=shape)) ** 3 if how == "heavy" else x
            found[f"{module}.lora_{part}.weight"] = torch.from_numpy(x).float()
    return found


def stored(path, tensors: dict[str, torch.Tensor], kind: torch.dtype):
    save_file({key: x.to(kind) for key, x in tensors.items()}, path)
    return open_lora(path)


@pytest.mark.parametrize("how", ["normal", "uniform", "heavy"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_is_within_its_bound_and_near_it(make, tmp_path, how, kind):
    """The bound is what files measure: 3e-4 of float16, 2.5e-3 of bfloat16."""
    tensors = factors(make, how)
    whole = stored(tmp_path / "a.safetensors", tensors, torch.float32)
    rounded = stored(tmp_path / "b.safetensors", tensors, kind)
    distance, factor = apart(sketch(rounded), sketch(whole))
    bound = ROUNDED * 2.0 ** -FORMATS[kind]
    assert 0.75 * bound < distance < bound and factor == pytest.approx(1, abs=distance)
    assert relation(distance, factor, min(precision(whole), precision(rounded))) == "same update"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_s_numbers_tell_how_coarse_it_is(make, tmp_path, kind):
    """Public files of float32 hold what was bfloat16 before (prushto/cs236, pytorch_lora_weights.safetensors)."""
    tensors = factors(make, "normal")
    coarse = {key: x.to(kind) for key, x in tensors.items()}
    assert precision(stored(tmp_path / "a.safetensors", tensors, torch.float32)) == 23
    assert precision(stored(tmp_path / "b.safetensors", coarse, kind)) == FORMATS[kind]
    assert precision(stored(tmp_path / "c.safetensors", coarse, torch.float32)) == FORMATS[kind]
    one_half = {key: coarse[key].float() if ".lora_A." in key else x for key, x in tensors.items()}
    assert precision(stored(tmp_path / "d.safetensors", one_half, torch.float32)) == FORMATS[kind]


def test_distances_are_those_of_dense_updates_however_small(make, tmp_path):
    tensors, rng = factors(make, "normal"), torch.Generator().manual_seed(1)
    whole = stored(tmp_path / "a.safetensors", tensors, torch.float32)
    for size in (1e-1, 1e-2, 1e-3, 1e-4):
        moved = {k: x + size * torch.randn(x.shape, generator=rng) for k, x in tensors.items()}
        square = its = product = 0.0
        for module in make.sd1():
            W, V = (
                x[f"{module}.lora_B.weight"].double() @ x[f"{module}.lora_A.weight"].double() for x in (tensors, moved)
            )
            square, its, product = square + (W * W).sum(), its + (V * V).sum(), product + (W * V).sum()
        true = float(torch.sqrt(2 - 2 * product / torch.sqrt(square * its)))
        found, factor = apart(sketch(whole), sketch(stored(tmp_path / "b.safetensors", moved, torch.float32)))
        assert found == pytest.approx(true, rel=0.05) and factor == pytest.approx(float(product / its), rel=1e-2)


def test_words():
    assert relation(0.0, 1.0, 23) == relation(2.9e-4, 1.0, 10) == relation(2.4e-3, 1.0, 7) == "same update"
    assert relation(2.8e-3, 1.0, 7) == relation(2.8e-3, 1.0, 10) == relation(5e-4, 1.0, 10) == "nearly the same"
    assert relation(2 * EXACT, 1.001, 23) == relation(0.09, 1.05, 10) == "nearly the same"
    assert relation(1e-6, 0.5, 23) == "same update × 0.5" and relation(0.01, -1.0, 10) == "nearly the same × -1"
    assert relation(0.11, 1.0, 10) is None and relation(2.0, math.nan, 10) is None


def test_an_update_of_zero_is_like_no_other(make, tmp_path):
    tensors = factors(make, "normal")
    one = sketch(stored(tmp_path / "a.safetensors", tensors, torch.float32))
    none = sketch(stored(tmp_path / "b.safetensors", {k: 0 * x for k, x in tensors.items()}, torch.float32))
    assert apart(one, none)[0] == apart(none, one)[0] == 2
