"""Spectra: the singular values of ΔW without a ΔW, and the controls that are made of them."""

import numpy as np
import pytest

from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import write_lora
from lora_atlas.weights.spectrum import spectra

NAMES = [f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{x}" for x in "qk"]


@pytest.fixture
def loras(tmp_path):
    """Three LoRAs of ranks 2, 3 and 2, the last without the second module; and their factors."""
    rng = np.random.default_rng(0)
    paths, factors = [], []
    for number, (rank, names) in enumerate([(2, NAMES), (3, NAMES), (2, NAMES[:1])]):
        updates = {
            name: Update(name, *(rng.normal(size=s).astype(np.float32) for s in ((rank, 7), (9, rank))))
            for name in names
        }
        paths.append(tmp_path / f"{number}.safetensors")
        write_lora(paths[-1], updates, {})
        factors.append(updates)
    return paths, factors


def test_they_are_those_of_the_dense_update(loras):
    paths, factors = loras
    modules, found = spectra(paths)
    assert modules == sorted(NAMES) and found.shape == (3, 2, 3)
    for values, updates in zip(found, factors, strict=True):
        for name, of_module in zip(modules, values, strict=True):
            if name not in updates:
                assert (of_module == 0).all()
                continue
            dense = updates[name].B.astype(float) @ updates[name].A.astype(float)
            assert of_module == pytest.approx(np.linalg.svd(dense, compute_uv=False)[:3], abs=1e-9)


def test_they_do_not_see_directions(loras, tmp_path):
    _, (first, *_) = loras
    rng = np.random.default_rng(1)
    turned = {
        name: Update(
            name,
            (u.A @ np.linalg.qr(rng.normal(size=(7, 7)))[0]).astype(np.float32),
            (np.linalg.qr(rng.normal(size=(9, 9)))[0] @ u.B).astype(np.float32),
        )
        for name, u in first.items()
    }
    for name, updates in (("a", first), ("b", turned)):
        write_lora(tmp_path / f"{name}.safetensors", updates, {})
    _, found = spectra([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
