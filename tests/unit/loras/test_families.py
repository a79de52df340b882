"""The base of a LoRA from the shapes of what it changes, whatever its header says."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_atlas.collection.inventory import Found, inventory
from lora_atlas.loras.families import claimed, family
from lora_atlas.loras.files import open_lora

UNET = "unet.{}.attentions.0.transformer_blocks.{}.{}"


def attention(block: str, width: int, text: int, layers: int = 1) -> dict[str, tuple[int, int]]:
    found = {}
    for layer in range(layers):
        for leaf in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"):
            found[UNET.format(block, layer, leaf)] = (width, width)
        for leaf in ("attn2.to_k", "attn2.to_v"):
            found[UNET.format(block, layer, leaf)] = (width, text)
    return found


def feed_forward(block: str, width: int, layers: int = 1) -> dict[str, tuple[int, int]]:
    found = {UNET.format(block, n, "ff.net.0.proj"): (8 * width, width) for n in range(layers)}
    return found | {UNET.format(block, n, "ff.net.2"): (width, 4 * width) for n in range(layers)}


def text(model: str, width: int, layers: int = 1) -> dict[str, tuple[int, int]]:
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return {
        f"{model}.text_model.encoder.layers.{n}.self_attn.{leaf}": (width, width)
        for n in range(layers)
        for leaf in names
    }


def sd(width_of_text: int) -> dict[str, tuple[int, int]]:
    return attention("down_blocks.0", 320, width_of_text) | attention("mid_block", 1280, width_of_text)


def transformer(width: int, single: bool) -> dict[str, tuple[int, int]]:
    found = {f"transformer.transformer_blocks.0.attn.to_{leaf}": (width, width) for leaf in ("q", "k", "v", "out.0")}
    found["transformer.transformer_blocks.0.ff.net.0.proj"] = (4 * width, width)
    if single:
        found["transformer.single_transformer_blocks.0.attn.to_q"] = (width, width)
        found["transformer.single_transformer_blocks.0.proj_out"] = (width, 5 * width)
    return found


XL = attention("down_blocks.1", 640, 2048, 2) | attention("mid_block", 1280, 2048, 10)
FULL = {
    "SD1.x": sd(768) | text("text_encoder", 768),
    "SD2.x": sd(1024) | text("text_encoder", 1024),
    "SDXL": XL | text("text_encoder", 768) | text("text_encoder_2", 1280),
    "SD3": transformer(1536, False) | text("text_encoder", 768) | text("text_encoder_2", 1280),
    "FLUX": transformer(3072, True) | text("text_encoder", 768),
}


@pytest.mark.parametrize("name", FULL)
def test_a_family_is_known_by_its_shapes(make, tmp_path, name):
    path = make.lora(tmp_path / "x.safetensors", FULL[name], 0, rank=1)
    shapes = {module: spec.shape for module, spec in open_lora(path).layout.specs.items()}
    assert shapes == FULL[name] and family(shapes) == (name, None)


@pytest.mark.parametrize("name", FULL)
def test_the_denoising_model_alone_is_enough(name):
    assert family({m: s for m, s in FULL[name].items() if not m.startswith("text_encoder")})[0] == name


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (feed_forward("down_blocks.1", 640, 2) | feed_forward("mid_block", 1280, 10), "SDXL"),
        ({m: s for m, s in sd(768).items() if ".attn2." in m}, "SD1.x"),
        ({m: s for m, s in sd(1024).items() if ".attn2." in m}, "SD2.x"),
        ({m: s for m, s in XL.items() if ".attn1." in m}, "SDXL"),
        (transformer(2432, False), "SD3"),  # SD3.5 large
        (text("text_encoder", 1024), "SD2.x"),
        # The header and the text encoder cannot decide against the UNet, but between two that its shapes allow.
        (feed_forward("down_blocks.0", 320) | text("text_encoder", 768), "SD1.x"),
        (feed_forward("down_blocks.0", 320) | text("text_encoder", 1024), "SD2.x"),
    ],
)
def test_some_parts_alone_are_enough(shapes, name):
    assert family(shapes) == (name, None)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (text("text_encoder", 768), "a text encoder alone, one that SD1.x, SDXL, SD3, FLUX have in common"),
        (text("text_encoder", 768) | text("text_encoder_2", 1280), "SDXL, SD3 have in common"),
        (feed_forward("down_blocks.0", 320), "it changes modules that SD1.x, SD2.x have in common"),
        ({m: s for m, s in sd(768).items() if ".attn1." in m}, "SD1.x, SD2.x have in common"),
        (attention("down_blocks.0", 320, 512), "its shapes are those of no family"),
        (text("text_encoder", 512), "its shapes are those of no family"),
        (transformer(1024, False), "its shapes are those of no family"),
        (sd(768) | transformer(3072, True), "its shapes are those of no family"),
        (sd(768) | {UNET.format("mid_block", 3, "attn2.to_q"): (1280, 1280)}, "no family"),
        ({"unet.conv_in": (320, 36)}, "it changes modules that SD1.x, SD2.x, SDXL have in common"),
        ({"unet.conv_in": (320, 45)}, "no family"),
    ],
)
def test_what_no_family_or_several_could_be_is_other_with_a_remark(shapes, said):
    name, remark = family(shapes)
    assert name == "other" and said in remark


def test_headers_lie_and_are_a_column_of_their_own(make, tmp_path):
    path = make.lora(tmp_path / "x.safetensors", transformer(3072, True), 0, rank=1)
    make.store(
        path, load_file(path), {"ss_base_model_version": "sd_1.5", "modelspec.architecture": "stable-diffusion-v1"}
    )
    (row,) = inventory([Found("x", path)], tmp_path / "cache", numbers=4096)
    assert (row["family"], row["header_family"], row["status"]) == ("FLUX", "SD1.x", "imported")
    assert row["space"] == "flux"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("sd_v1", "SD1.x"), ("sd_1.5", "SD1.x"), ("stable-diffusion-v1/lora", "SD1.x"), ("sd_v2_768_v", "SD2.x"),
        ("sdxl_base_v1-0", "SDXL"), ("stable-diffusion-xl-v1-base/lora", "SDXL"), ("flux1", "FLUX"),
        ("flux-1-dev", "FLUX"), ("sd3_m", "SD3"), ("stable-diffusion-v3-medium/lora", "SD3"), ("", None),
        ("wan2.1", "Wan"), ("wander", None), ("\x1b<script>", None),
    ],
)  # fmt: skip
def test_what_a_header_claims(said, name):
    assert claimed({"ss_base_model_version": said}) == claimed({"modelspec.architecture": said.upper()}) == name
    assert claimed({"ss_tag_frequency": said, "title": said}) is None


def test_the_family_does_not_depend_on_the_order_of_modules():
    rng = np.random.default_rng(0)
    for name, shapes in FULL.items():
        order = rng.permutation(len(shapes))
        items = list(shapes.items())
        assert family(dict(items[i] for i in order)) == family(shapes) and family(shapes)[0] == name


def test_real_files_are_of_the_families_that_they_were_made_for(real):
    found = {path.name: family({m: s.shape for m, s in open_lora(path, pickles=True).layout.specs.items()})[0]
             for path in sorted(real.glob("*")) if path.suffix != ".tsv"}  # fmt: skip
    assert found["catundchat__stable-diffusion-v1.5-lora__pytorch_lora_weights.safetensors"] == "SD1.x"
    assert found["cloneofsimo__lora__contents_lora_disney.pt"] == "SD2.x"
    assert len(found) == 12
