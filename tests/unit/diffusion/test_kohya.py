"""Export to kohya's names: what comes back is the same LoRA, and the bytes depend on nothing but the input."""

import os
import subprocess
import sys
from pathlib import Path

import flows
import numpy as np
import pytest
import torch
from safetensors import safe_open

from lora_atlas.diffusion.base import load
from lora_atlas.diffusion.denoisers import denoiser_of
from lora_atlas.diffusion.kohya import ExportError, export
from lora_atlas.loras.factors import Update
from lora_atlas.loras.files import read_lora, write_lora
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


def _of(kind: str, path: Path, targets: list[str] | None = None) -> dict[str, Update]:
    """A LoRA of a tiny transformer, of random numbers, written to `path`."""
    denoiser, rng, updates = denoiser_of(flows.tiny(kind)), np.random.default_rng(0), {}
    for name in denoiser.layers(targets or list(denoiser.targets)):
        out, width = denoiser.module.get_submodule(name).weight.shape
        A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((2, width), (out, 2)))
        updates[f"transformer.{name}"] = Update(f"transformer.{name}", A, B)
    write_lora(path, updates, dict(denoiser.header))
    return updates


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # of diffusers, on a class of its own
@pytest.mark.parametrize("targets", [None, ["feed_forward", "context"]], ids=["every", "some"])
@pytest.mark.parametrize("kind", list(flows.KINDS))
def test_a_transformers_layers_have_the_names_of_its_authors_and_are_the_same_lora(tmp_path, kind, targets):
    """Fused where they are; what a fused layer has beside is not changed: its rows are zero."""
    ours = _of(kind, tmp_path / "ours.safetensors", targets)
    export(tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors")
    found = read_lora(tmp_path / "kohya.safetensors").updates
    assert set(ours) <= set(found)
    for name, update in found.items():
        expected = ours[name].B @ ours[name].A if name in ours else 0
        assert np.abs(update.B @ update.A - expected).max() < 1e-5, name
    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        keys = sorted(file.keys())
    assert all(key.startswith("lora_unet_") for key in keys)
    known = {  # as sd-scripts and musubi-tuner name them
        "sd3": "lora_unet_joint_blocks_0_x_block_mlp_fc1", "flux": "lora_unet_double_blocks_0_img_mlp_0",
        "flux2": "lora_unet_double_blocks_0_img_mlp_0", "klein": "lora_unet_double_blocks_0_img_mlp_0",
        "qwen": "lora_unet_transformer_blocks_0_img_mlp_net_0_proj", "z": "lora_unet_layers_0_feed_forward_w1",
    }  # fmt: skip
    assert f"{known[kind]}.lora_down.weight" in keys


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
def test_diffusers_reads_the_same_lora_of_flux_from_its_authors_names(tmp_path):
    # Not the blocks of one stream: its converter knows them at the released size alone.
    _of("flux", tmp_path / "ours.safetensors", ["attention", "feed_forward", "context"])
    export(tmp_path / "ours.safetensors", tmp_path / "kohya.safetensors")
    found = []
    for name in ("ours", "kohya"):
        pipeline = flows.tiny("flux")
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors")
        pipeline.fuse_lora(components=["transformer"])
        pipeline.unload_lora_weights()
        found.append({name: p.detach().clone() for name, p in pipeline.transformer.named_parameters()})
    plain = dict(flows.tiny("flux").transformer.named_parameters())
    assert sum(not torch.equal(plain[name], p) for name, p in found[0].items()) > 10
    for name, p in found[0].items():
        torch.testing.assert_close(found[1][name], p, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
def test_a_part_of_a_fused_layer_of_unknown_size_is_refused(tmp_path):
    ours = _of("flux", tmp_path / "ours.safetensors", ["single"])
    some = {name: update for name, update in ours.items() if not name.endswith("proj_mlp")}
    write_lora(tmp_path / "some.safetensors", some, {"modelspec.architecture": "flux-1/lora"})
    with pytest.raises(
        ExportError, match=r"some\.safetensors: kohya's name single_blocks\.0\.linear1 .*proj_mlp is not"
    ):
        export(tmp_path / "some.safetensors", tmp_path / "kohya.safetensors")


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
