"""Features through the libraries' own loading code, from tiny random models saved in their own folder formats."""

import importlib
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atlas import tables
from lora_atlas.features.extract import BATCH, CONTROLS, EXTRACTORS, FeatureError, extract, known_names, load, oklab
from lora_atlas.hub import models as hub
from lora_atlas.pictures.decode import decode, encode_png
from lora_atlas.sections import Extractor

ROOT = Path(__file__).parents[3]
ART = ROOT / "../shared/data/art"
SIDE = 32
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
CONTROL = Extractor("control", "mean_colour")


def array(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_pictures(path: Path, artist: str, seeds: list[int], refused: int = 1, **changes) -> list[bytes]:
    data = [encode_png(array(seed)) for seed in seeds]
    empty = {
        "artist": artist,
        "genre": None,
        "width": None,
        "height": None,
        "source": "folder",
        "licence": None,
        "subject": None,
    }
    rows = [
        empty
        | {"picture": sha256(d).hexdigest(), "image": {"bytes": d, "path": "x"}, "status": "kept", "reason": None}
        | changes
        for d in data
    ]
    bad = {"picture": "0" * 64, "image": None, "status": "refused", "reason": "empty"}
    tables.write(path, "pictures", [empty | bad] * refused + rows)
    return data


def write_generated(path: Path, loras: list[str], seeds: list[int]) -> list[bytes]:
    data = [encode_png(array(seed)) for seed in seeds]
    rows = [
        {"lora": lora, "prompt": "a painting", "seed": 0, "image": {"bytes": d, "path": None}}
        for lora, d in zip(loras, data, strict=True)
    ]
    tables.write(path, "generated", rows)
    return data


def vectors(path: Path) -> np.ndarray:
    return np.array(tables.read(path, "features").column("vector").to_pylist(), dtype=np.float32)


def save_clip(folder: Path, **changes) -> dict:
    """A random CLIP in the folder format of open_clip; returns its tensors."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"} | changes
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    model = open_clip.CLIP(**config).half()
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    return Extractor("open_clip", str(folder))


def save_dino(folder: Path) -> dict:
    """A random ViT in the folder format of timm."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    arguments = {"img_size": SIDE, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": 24,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return Extractor("timm", str(folder))


SAVE = {"open_clip": save_clip, "timm": save_dino}


@pytest.fixture(scope="module", params=["open_clip", "timm"])
def extractor(request, tmp_path_factory):
    return SAVE[request.param](tmp_path_factory.mktemp(request.param) / "model")


# --- models through their libraries


def test_a_local_model_gives_one_raw_vector_a_picture(extractor, tmp_path):
    data = write_pictures(tmp_path / "monet.parquet", "monet", [0, 1, 2])
    made = write_generated(tmp_path / "made.parquet", ["monet/00", "repin/01"], [0, 7])
    outputs = {"training": tmp_path / "out" / "training.parquet", "s8_g1": tmp_path / "out" / "s8_g1.parquet"}
    sources = {"training": [tmp_path / "monet.parquet"], "s8_g1": [tmp_path / "made.parquet"]}
    assert extract(extractor, sources, device="cpu", outputs=outputs) == 5

    real, generated = (tables.read(path, "features") for path in outputs.values())
    assert real.column("picture").to_pylist() == [sha256(d).hexdigest() for d in data]
    assert real.column("artist").to_pylist() == ["monet"] * 3 and real.column("lora").null_count == 3
    assert generated.column("picture").to_pylist() == [sha256(d).hexdigest() for d in made]
    assert generated.column("lora").to_pylist() == ["monet/00", "repin/01"]
    assert generated.column("artist").to_pylist() == ["monet", "repin"]
    assert tables.metadata(real)["extractor"] == {
        "library": extractor.library,
        "model": extractor.model,
        "pretrained": None,
    }

    found = vectors(outputs["training"])
    assert found.shape == (3, 24) and np.isfinite(found).all()
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() > 0.01  # raw
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(vectors(outputs["s8_g1"])[0], found[0], rtol=1e-4, atol=1e-5)  # one picture, two sources


def test_weights_and_preprocessing_are_the_models_own(extractor, tmp_path):
    """The vector, computed again from the saved tensors and the saved mean and deviation."""
    import open_clip
    import timm
    import torch
    from safetensors.torch import load_file

    folder = Path(extractor.model)
    square = array(3, SIDE, SIDE)  # of the model's size: nothing to resize or to crop
    x = (torch.from_numpy(square).permute(2, 0, 1).float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    if extractor.library == "open_clip":
        network = open_clip.CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
        network.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
        forward = network.eval().encode_image
    else:
        config = json.loads((folder / "config.json").read_text())
        forward = timm.create_model(config["architecture"], num_classes=0, **config["model_args"]).eval()
        forward.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        expected = forward(x[None])[0].numpy()
    model = load(extractor, "cpu")
    (found,) = model.encode([model.prepare(Image.fromarray(square))])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert found.dtype == np.float32 and "0.4" in model.recipe


def test_same_tables_same_bytes(extractor, tmp_path):
    write_pictures(tmp_path / "monet.parquet", "monet", list(range(BATCH + 3)))
    for name in ("one", "two"):
        paths = {"training": [tmp_path / "monet.parquet"]}
        extract(extractor, paths, device="cpu", outputs={"training": tmp_path / f"{name}.parquet"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert len(np.unique(vectors(tmp_path / "one.parquet"), axis=0)) == BATCH + 3


def test_a_folder_without_its_files_says_which(extractor, tmp_path):
    library = extractor.library
    config, weights = {
        "open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
        "timm": ("config.json", "model.safetensors"),
    }[library]
    copy = tmp_path / "model"
    copy.mkdir()
    broken = extractor | {"model": str(copy)}
    with pytest.raises(FeatureError, match=f"{config} and {weights} absent"):
        load(broken, "cpu")
    (copy / config).write_bytes((Path(extractor.model) / config).read_bytes())
    (copy / "pytorch_model.bin").write_bytes(b"a pickle is no substitute")
    with pytest.raises(FeatureError, match=f"{copy}: {weights} absent"):
        load(broken, "cpu")
    (copy / weights).write_bytes((Path(extractor.model) / weights).read_bytes()[:-50])
    with pytest.raises(FeatureError, match=f"{library} cannot load '{copy}': SafetensorError"):
        load(broken, "cpu")


def test_a_name_that_is_no_model_says_what_to_put_where(extractor):
    near = {"open_clip": "ViT-B-31", "timm": "vit_tiny_patch16_22"}[extractor.library]
    suggestion = {"open_clip": "ViT-B-32", "timm": "vit_tiny_patch16_224"}[extractor.library]
    with pytest.raises(FeatureError, match=suggestion):
        load(extractor | {"model": near}, "cpu")
    with pytest.raises(FeatureError, match=r"model\.safetensors into the folder workflow/no/such/folder"):
        load(extractor | {"model": "workflow/no/such/folder"}, "cpu")


def test_open_clip_by_name_never_runs_on_random_weights(tmp_path):
    with pytest.raises(FeatureError, match="needs `pretrained`: one of openai"):
        load(Extractor("open_clip", "RN50"), "cpu")
    with pytest.raises(FeatureError, match="cannot load 'RN50' with pretrained 'no_such_tag'"):
        load(Extractor("open_clip", "RN50", "no_such_tag"), "cpu")


def test_timm_by_name_with_a_file_or_a_wrong_tag(tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    name = "test_vit"
    torch.manual_seed(1)
    model = timm.create_model(name, pretrained=False)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load(Extractor("timm", name, str(tmp_path / "weights.safetensors")), "cpu")
    image = Image.fromarray(array(0, 160, 160))
    (found,) = loaded.encode([loaded.prepare(image)])
    model.reset_classifier(0)
    with torch.no_grad():
        expected = model.eval()(loaded.prepare(image)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(FeatureError, match="with pretrained 'no_such_tag'"):
        load(Extractor("timm", name, "no_such_tag"), "cpu")


# --- controls


def test_oklab_of_known_colours():
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
    # Ottosson's own table, three digits.
    known = [[1, 0, 0], [0, 0, 0], [0.628, 0.225, 0.126], [0.866, -0.234, 0.179], [0.452, -0.032, -0.312]]
    np.testing.assert_allclose(oklab(colours), known, atol=1e-3)


def test_mean_colour_sees_colour_and_neither_place_nor_size():
    model = load(CONTROL, "cpu")

    def vector(pixels):
        return model.encode([model.prepare(Image.fromarray(pixels))])[0]

    red = np.full((64, 64, 3), [200, 30, 30], dtype=np.uint8)
    np.testing.assert_allclose(vector(red), oklab(red[0, 0]), atol=1e-6)
    np.testing.assert_allclose(vector(np.full((90, 200, 3), [200, 30, 30], dtype=np.uint8)), vector(red), atol=1e-6)
    pixels = array(0, 64, 64)
    np.testing.assert_allclose(vector(pixels[::-1].copy()), vector(pixels), atol=1e-6)
    framed = np.zeros((64, 128, 3), dtype=np.uint8)
    framed[:, 32:96] = pixels
    np.testing.assert_allclose(vector(framed), vector(pixels), atol=1e-6)  # only the centred square counts


def test_colour_moments_begin_with_the_mean_and_tell_contrast():
    pixels = oklab(array(0, 64, 64)).reshape(-1, 3)
    moments = CONTROLS["colour_moments"](pixels)
    np.testing.assert_allclose(moments[:3], CONTROLS["mean_colour"](pixels))
    flat = np.tile(pixels.mean(0), (100, 1))
    assert moments[3:6].min() > 0.01 and np.abs(CONTROLS["colour_moments"](flat)[3:]).max() < 1e-5


def test_a_control_needs_no_heavy_library(tmp_path):
    write_pictures(tmp_path / "monet.parquet", "monet", [0, 1])
    code = (
        "import sys; from lora_atlas.features.extract import extract; from lora_atlas.sections import Extractor\n"
        f"n = extract({CONTROL!r}, {{'training': [{str(tmp_path / 'monet.parquet')!r}]}}, device='cpu', "
        f"outputs={{'training': {str(tmp_path / 'out.parquet')!r}}})\n"
        "print(n, [m for m in ('torch', 'timm', 'open_clip', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "2 []", done.stderr
    assert vectors(tmp_path / "out.parquet").shape == (2, 3)


# --- what goes wrong


def test_unknown_libraries_and_controls_name_the_known():
    with pytest.raises(FeatureError, match="'clip': there are open_clip, timm, csd, vgg_gram, control"):
        load(CONTROL | {"library": "clip"}, "cpu")
    with pytest.raises(FeatureError, match="'mean_color': there are mean_colour"):
        load(CONTROL | {"model": "mean_color"}, "cpu")
    assert set(EXTRACTORS) == {"open_clip", "timm", "csd", "vgg_gram", "control"}


@pytest.mark.fault(
    "caches", "a lock file that pins another commit of a model than the one that vectors are kept of", "made again"
)
@pytest.mark.parametrize(("said", "pinned"), [(None, "a" * 40), ("main", "a" * 40), ("b" * 40, None)])
def test_what_the_lock_alone_pins_is_a_part_of_what_vectors_are_kept_under(tmp_path, monkeypatch, said, pinned):
    asked = []

    class Kept:
        def restore(self, part, files):
            asked.append(part)
            raise RuntimeError("far enough")

    monkeypatch.setattr(hub, "commit", lambda *_: "a" * 40)
    write_pictures(tmp_path / "monet.parquet", "monet", [0])
    model = Extractor("timm", "hf-hub:timm/vit") | {"revision": said}
    given, out = {"training": [tmp_path / "monet.parquet"]}, {"training": tmp_path / "o"}
    with pytest.raises(RuntimeError, match="far enough"):
        extract(model, given, device="cpu", outputs=out, lock="study.lock.yaml", kept=Kept())
    assert asked[0].get("commit") == pinned


def test_a_picture_that_changed_after_it_was_collected_is_noticed(tmp_path):
    data = bytearray(encode_png(array(0)))
    data[len(data) // 2] ^= 1
    write_pictures(tmp_path / "monet.parquet", "monet", [0], image={"bytes": bytes(data), "path": "x"})
    with pytest.raises(FeatureError, match="changed after it was collected"):
        extract(CONTROL, {"training": [tmp_path / "monet.parquet"]}, device="cpu", outputs={"training": tmp_path / "o"})
    assert not (tmp_path / "o").exists()


@pytest.mark.fault("tables and pages", "a generated picture that is cut in its table", "an error that names the table")
def test_a_generated_picture_that_is_damaged_names_its_table(tmp_path):
    half = encode_png(array(0))[:900]
    row = {"lora": "monet/00", "prompt": "a painting", "seed": 0, "image": {"bytes": half, "path": None}}
    tables.write(tmp_path / "made.parquet", "generated", [row])
    with pytest.raises(FeatureError, match=r"made\.parquet: picture .* truncated or damaged"):
        extract(CONTROL, {"s8": [tmp_path / "made.parquet"]}, device="cpu", outputs={"s8": tmp_path / "o"})


def test_a_source_without_pictures_is_an_error(tmp_path):
    write_pictures(tmp_path / "monet.parquet", "monet", [], refused=2)
    with pytest.raises(FeatureError, match="source 'training': no picture in 1 tables"):
        extract(CONTROL, {"training": [tmp_path / "monet.parquet"]}, device="cpu", outputs={"training": tmp_path / "o"})
    with pytest.raises(FeatureError, match="outputs"):
        extract(CONTROL, {"training": []}, device="cpu", outputs={"other": tmp_path / "o"})


@pytest.mark.fault("tables and pages", "an extractor that gives NaN", "an error; no table of NaN")
def test_a_vector_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    write_pictures(tmp_path / "monet.parquet", "monet", [0])
    monkeypatch.setitem(CONTROLS, "mean_colour", lambda pixels: pixels.mean(0) * np.nan)
    with pytest.raises(FeatureError, match="of monet: the vector is not finite"):
        extract(CONTROL, {"training": [tmp_path / "monet.parquet"]}, device="cpu", outputs={"training": tmp_path / "o"})


# --- real pictures


@pytest.mark.skipif(not ART.is_dir(), reason=f"no real pictures at {ART}")
def test_mean_colour_of_real_painters_is_above_chance():
    model = load(CONTROL, "cpu")
    files = [path for folder in sorted(ART.iterdir()) if folder.is_dir() for path in sorted(folder.glob("*.jpg"))[:12]]
    painters = np.array([path.parent.name for path in files])
    found = model.encode([model.prepare(decode(path.read_bytes(), min_side=64)) for path in files])
    distance = np.linalg.norm(found[:, None] - found[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    right = (painters[distance.argmin(1)] == painters).mean()
    assert len(set(painters)) == 6 and right > 0.3  # chance is 11 / 71


def test_a_tag_has_the_activation_of_its_own_configuration(monkeypatch):
    """open_clip's table of tags: QuickGELU for openai's ViT-B-32, GELU for laion2b's; the architecture says GELU."""
    import open_clip

    asked = []

    def create(name, pretrained, **options):
        asked.append((pretrained, options.get("force_quick_gelu", False)))
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    for tag in ("openai", "metaclip_400m", "laion2b_s34b_b79k"):
        with pytest.raises(FeatureError, match="no network"):
            load(Extractor("open_clip", "ViT-B-32", tag), "cpu")
    assert asked == [("openai", True), ("metaclip_400m", True), ("laion2b_s34b_b79k", False)]


def test_weights_without_their_configuration_are_refused_with_what_to_write(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    with pytest.raises(FeatureError, match=r"neither activation .*Name the tag of ViT-B-32.*open_clip_config\.json"):
        load(Extractor("open_clip", "ViT-B-32", str(file)), "cpu")


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_names_are_those_of_the_library(library):
    assert set(importlib.import_module(library).list_models()) == known_names(library)
