"""What LyCORIS 4.1.3 saves, against its own forward pass: tests/support/make_lycoris.py made the file of both.

Tolerance: 10⁻⁶ of the norm where its forward pass is float64; its diagonal OFT computes in float32 alone.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_atlas.loras.factors import expanded
from lora_atlas.loras.files import LoraFileError, open_lora, read_lora

MODULE, KOHYA = "mid_block.resnets.0.conv1", "lora_unet_mid_block_resnets_0_conv1"
CASES: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
for _key, _value in load_file(Path(__file__).parents[2] / "support/lycoris.safetensors").items():
    CASES[_key.partition("|")[0]][_key.partition("|")[2]] = _value
ROOT = {"ss_network_args": json.dumps({"algo": "lokr", "rs_lora": "True"})}
RELATIVE = ("DoRA", "IA3", "Diag-OFT")


def made(folder, name, header=None):
    """The file of a case, a diffusers folder of its base, and the truth."""
    parts = dict(CASES[name])
    W, truth = parts.pop("W"), parts.pop("dW")
    save_file({f"{KOHYA}.{part}": x for part, x in parts.items()}, folder / "x.safetensors", header)
    (folder / "base/unet").mkdir(parents=True)
    save_file({f"{MODULE}.weight": W}, folder / "base/unet/diffusion_pytorch_model.safetensors")
    return folder / "x.safetensors", str(folder / "base"), truth


def near(path, base, truth, tolerance=1e-6):
    plain = expanded(read_lora(path, base=base).updates[f"unet.{MODULE}"])
    found = plain.B.astype(np.float64) @ plain.A.astype(np.float64)
    expected = truth.reshape(len(truth), -1)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"T-LoRA", "LoKr, whole, rs_lora 4"}))
def test_an_update_is_what_the_forward_pass_of_lycoris_does(tmp_path, name):
    path, base, truth = made(tmp_path, name)
    near(path, base, truth, 2e-5 if "OFT" in name else 1e-6)
    if any(kind in name for kind in RELATIVE):
        with pytest.raises(LoraFileError, match=r"weights\.base"):
            open_lora(path)
    else:
        near(path, None, truth)


def test_a_root_that_only_the_header_tells(tmp_path):
    """dim 4 with rs_lora writes α = 8, as dim 8 without it does: then the header decides, and without it s is 1."""
    path, _, truth = made(tmp_path, "LoKr, whole, rs_lora 4", ROOT)
    near(path, None, truth)
    save_file(load_file(path), path)
    near(path, None, truth / 2)


@pytest.mark.parametrize(("stored", "dim"), [("<f2", 2), ("<f2", 3), ("<f4", 6), ("<f4", 5), ("<f4", 1000)])
def test_an_alpha_that_no_dim_gives_tells_the_root_in_every_precision(tmp_path, stored, dim):
    path, _, truth = made(tmp_path, "LoKr, whole")
    tensors = load_file(path)
    tensors[f"{KOHYA}.alpha"] = np.array(dim**1.5, stored)
    save_file(tensors, path)
    near(path, None, np.sqrt(dim) * truth)


@pytest.mark.parametrize(
    "alpha", [np.float32(1e10), np.float16(np.inf), np.int64(9999999999), np.float32(7.3), np.float32(0)]
)
def test_an_alpha_of_two_whole_factors_means_nothing(tmp_path, alpha):
    """ai-toolkit's default writes 9999999999, which half precision makes infinite: kohya-ss/sd-scripts#1402."""
    path, _, truth = made(tmp_path, "LoKr, whole")
    for header in (None, ROOT):
        save_file(load_file(path) | {f"{KOHYA}.alpha": np.asarray(alpha)}, path, header)
        near(path, None, truth)
        assert open_lora(path).scale(f"unet.{MODULE}") == 1


def test_an_update_relative_to_a_start_that_is_not_there_is_refused(tmp_path):
    path, base, _ = made(tmp_path, "T-LoRA")
    with pytest.raises(LoraFileError, match="T-LoRA's update is relative to a start that is not in the file"):
        open_lora(path, base=base)


def test_factors_of_a_convolution_may_be_convolutions(tmp_path):
    """OneTrainer's LoHa: w_a (out, r, 1, 1), w_b (r, in, height, width)."""
    path, _, truth = made(tmp_path, "LoHa, DoRA of inputs")
    flat = {key: x for key, x in load_file(path).items() if not key.endswith("dora_scale")}
    save_file(flat, path)
    expected = expanded(read_lora(path).updates[f"unet.{MODULE}"])
    shaped = {
        key: x.reshape(*x.shape, 1, 1) if key.endswith("_a") else x.reshape(4, 8, 3, 3) if key.endswith("_b") else x
        for key, x in flat.items()
    }
    save_file(shaped, path)
    found = expanded(read_lora(path).updates[f"unet.{MODULE}"])
    assert (found.A == expected.A).all() and (found.B == expected.B).all() and truth.shape == (12, 8, 3, 3)
