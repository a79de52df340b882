"""Export to kohya's names: what comes back is the same LoRA, and the bytes depend on nothing but the input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.kohya import ExportError, export
from lora_atlas.sections import Base

LIBRARY = Path(__file__).parents[3] / "workflow"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_bases, material, make):
    """Kind → file, with every kind of target."""
    targets = ["attention", "feed_forward", "projection", "convolution"]
    return {
        kind: make(tmp_path_factory.mktemp(kind), tiny_bases[kind], material, ["ada/00"], targets=targets)["ada/00"]
        for kind in ("sd", "sdxl")
    }


def _fused(folder, path) -> dict[str, torch.Tensor]:
    pipeline = load(Base(folder), device="cpu")
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return {name: p.detach().clone() for name, p in pipeline.unet.named_parameters()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_diffusers_reads_the_same_lora_from_kohyas_names(tmp_path, tiny_bases, trained, kind):
    path = tmp_path / "kohya.safetensors"
    export(trained[kind], path)
    with safe_open(path, "pt") as file:
        keys = sorted(file.keys())
        alphas = {key: file.get_tensor(key).item() for key in keys if key.endswith(".alpha")}
        assert file.metadata()["ss_network_dim"] == "2"
    assert all(key.startswith("lora_unet_") for key in keys)
    assert set(alphas.values()) == {2.0}
    ours, theirs = _fused(tiny_bases[kind], trained[kind]), _fused(tiny_bases[kind], path)
    plain = dict(load(Base(tiny_bases[kind]), device="cpu").unet.named_parameters())
    changed = [name for name in plain if not torch.equal(plain[name], ours[name])]
    assert len(changed) == len(alphas)
    for name in plain:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_foreign_or_damaged_file_is_named(tmp_path, trained):
    export(trained["sd"], tmp_path / "kohya.safetensors")
    with pytest.raises(ExportError, match=r"kohya\.safetensors: expected keys MODULE"):
        export(tmp_path / "kohya.safetensors", tmp_path / "again.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(trained["sd"].read_bytes()[:300])
    with pytest.raises(ExportError, match=r"cut\.safetensors: cannot be read"):
        export(tmp_path / "cut.safetensors", tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


SCRIPT = """
import sys
import numpy as np
from lora_atlas.diffusion.kohya import export
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import write_lora

rng = np.random.default_rng(0)
names = {f"unet.down_blocks.0.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}  # a set, on purpose
numbers = {n: (rng.random((2, 3), np.float32), rng.random((4, 2), np.float32)) for n in sorted(names)}
write_lora(sys.argv[1], {n: Update(n, *numbers[n]) for n in names}, {f"key{i}": str(i) for i in range(20)})
export(sys.argv[1], sys.argv[2])
"""


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    found = set()
    for seed in ("0", "12345"):
        files = [tmp_path / f"{seed}{kind}.safetensors" for kind in "ab"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(LIBRARY)}
        subprocess.run([sys.executable, "-c", SCRIPT, *map(str, files)], env=environment, check=True)
        found.add(tuple(file.read_bytes() for file in files))
    assert len(found) == 1
