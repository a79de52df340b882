"""CSD and VGG-Gram on small models with random weights, in the layouts of the published files."""

import argparse
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lora_atlas.features.extract import FeatureError, load
from lora_atlas.features.style import SKETCH, csd, read, vgg_gram
from lora_atlas.sections import Extractor


def picture(seed: int = 0, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def csd_tensors() -> dict[str, torch.Tensor]:
    """A CSD of two layers, by open_clip's own transformer, under the published names."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    trunk = VisionTransformer(
        image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_ratio=4.0, output_dim=24, act_layer=QuickGELU
    )
    tensors = {f"module.backbone.{k}": v.detach().clone() for k, v in trunk.state_dict().items() if k != "proj"}
    return tensors | {
        "module.last_layer_style": torch.randn(128, 24),
        "module.last_layer_content": torch.randn(128, 24),
    }


def test_csd_is_the_trunk_and_its_style_head(tmp_path):
    from open_clip.transformer import QuickGELU, VisionTransformer

    tensors = csd_tensors()
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    model = load(Extractor("csd", str(tmp_path)), "cpu")
    x = model.prepare(picture(side=32))
    (found,) = model.encode([x])
    trunk = VisionTransformer(
        image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_ratio=4.0, output_dim=128, act_layer=QuickGELU
    )
    trunk.proj = None
    kept = {k.removeprefix("module.backbone."): v for k, v in tensors.items() if "backbone" in k}
    trunk.load_state_dict(kept)
    with torch.no_grad():
        expected = trunk.eval()(x[None]) @ tensors["module.last_layer_style"]
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-4, atol=1e-4)
    assert found.shape == (24,) and "0.48145466" in model.recipe and "BICUBIC" in model.recipe.upper()


def test_the_published_pickle_is_read_without_running_it(tmp_path):
    settings = argparse.Namespace(arch="vit_large", lr=0.1)
    best = np.float64(0.5)
    checkpoint = {"model_state_dict": csd_tensors(), "args": settings, "epoch": 3, "best": best, "optimizer": {}}
    torch.save(checkpoint, tmp_path / "pytorch_model.bin")
    network, _ = csd(tmp_path / "pytorch_model.bin")
    assert network.proj.shape == (128, 24)
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(ran)!r}, 'w')",))

    torch.save(checkpoint | {"args": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(FeatureError, match="UnpicklingError"):
        load(Extractor("csd", str(tmp_path / "evil.bin")), "cpu")
    assert not ran.exists()


def vgg_tensors(widths=((8,), (12, 12), (16,))) -> dict[str, torch.Tensor]:
    """Convolutions of a VGG, numbered as torchvision and timm number them: ReLUs and poolings count."""
    torch.manual_seed(0)
    found, number, inner = {}, 0, 3
    for scale in widths:
        for out in scale:
            found[f"features.{number}.weight"] = torch.randn(out, inner, 3, 3) / (3 * inner**0.5)
            found[f"features.{number}.bias"] = torch.randn(out) / 4
            number, inner = number + 2, out
        number += 1
    return found


def test_the_sketch_keeps_the_inner_products_of_gram_matrices(tmp_path):
    tensors = vgg_tensors()
    save_file(tensors | {"classifier.0.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    network, prepare = vgg_gram(tmp_path / "model.safetensors", side=48)
    inputs = torch.stack([prepare(picture(n)) for n in range(6)])
    with torch.no_grad():
        found = network.eval()(inputs)
    assert found.shape == (6, 3 * SKETCH)
    x, exact = inputs, []
    number = 0
    for scale in ((8,), (12, 12), (16,)):
        for place, _ in enumerate(scale):
            w, b = tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"]
            x = torch.relu(torch.nn.functional.conv2d(x, w, b, padding=1))
            if place == 0:
                f = x.flatten(2)
                exact.append(f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2]))
            number += 2
        x = torch.nn.functional.max_pool2d(x, 2)
        number += 1
    for scale, gram in enumerate(exact):
        sketch = found[:, scale * SKETCH : (scale + 1) * SKETCH].numpy()
        wanted = gram.flatten(1).numpy()
        error = np.abs(sketch @ sketch.T - wanted @ wanted.T) / (wanted**2).sum(1).mean()
        assert error.max() < 0.2


def test_a_sketch_is_the_same_every_time(tmp_path):
    save_file(vgg_tensors(), tmp_path / "model.safetensors")
    extractor = Extractor("vgg_gram", str(tmp_path))
    one, two = (load(extractor, "cpu") for _ in range(2))
    np.testing.assert_array_equal(one.encode([one.prepare(picture())]), two.encode([two.prepare(picture())]))


@pytest.mark.parametrize(
    ("library", "tensors", "words"),
    [
        ("csd", {"x": torch.zeros(1)}, "no CSD: expected last_layer_style"),
        ("vgg_gram", {"features.0.weight": torch.zeros(4)}, "no plain VGG"),
        ("vgg_gram", {"features.0.weight": torch.zeros(4, 3, 3, 3)}, "missing"),
    ],
)
def test_other_weights_are_named(tmp_path, library, tensors, words):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FeatureError, match=words):
        load(Extractor(library, str(tmp_path)), "cpu")


def test_absent_weights_say_what_to_put_where(tmp_path):
    for library in ("csd", "vgg_gram"):
        with pytest.raises(FeatureError, match=r"neither a file of weights nor a folder with model\.safetensors"):
            load(Extractor(library, str(tmp_path)), "cpu")


def test_a_hash_of_the_config_is_checked_before_anything_loads(tmp_path):
    from lora_atlas.hub.lock import sha256_of

    save_file(vgg_tensors(), tmp_path / "vgg.safetensors")
    extractor = Extractor("vgg_gram", "vgg19", str(tmp_path / "vgg.safetensors"))
    load(extractor | {"sha256": sha256_of(tmp_path / "vgg.safetensors")}, "cpu")
    with pytest.raises(FeatureError, match="expected sha256 0000"):
        load(extractor | {"sha256": "0" * 64}, "cpu")
    with pytest.raises(FeatureError, match="no file whose sha256"):
        load(Extractor("open_clip", "RN50", "openai", sha256="0" * 64), "cpu")


def test_half_precision_files_are_read_as_floats(tmp_path):
    save_file({k: v.half() for k, v in vgg_tensors().items()}, tmp_path / "model.safetensors")
    network, _ = vgg_gram(tmp_path / "model.safetensors")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert isinstance(read(tmp_path / "model.safetensors"), dict) and not isinstance(network, types.SimpleNamespace)
