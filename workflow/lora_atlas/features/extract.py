"""Image features: what pictures, real or generated, look like to a model, and to a control that has no model.

The baselines that weights are compared with (CLIP: Radford et al. 2021; DINO: Caron et al. 2021). Decisions:

- A model is a local folder in its library's own published format, or a name of that library. The library's own
  code loads it and its own preprocessing prepares pictures: features are then those that its users get.
- A model without its weights is an error. Both libraries would go on with random ones in some of these cases.
- Vectors are raw: normalisation belongs to the comparison, not to the feature.
- Float32 on a CPU; float16 autocast on CUDA, float32 in the table.
- Pictures are hashed again when they are used: a flipped bit in a JPEG decodes without a word.
- One process, one library: open_clip and timm take seconds to import, so each is imported where it is used.
"""

import difflib
import hashlib
import importlib.util
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from .. import progress, tables
from ..hub import models as hub
from ..hub.lock import sha256_of
from ..pictures.decode import PictureError, crop_square, decode, to_array
from ..sections import Extractor
from .controls import CONTROLS, oklab

BATCH = 32  # fixed: float sums depend on it, results should not depend on a setting of the machine
CONTROL_SIDE = 64  # pixels
_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)  # of timm


class FeatureError(RuntimeError):
    """A model or a picture cannot be used; the message says what to put where."""


@dataclass(frozen=True)
class Model:
    """`prepare`: a canonical picture → one input, by the model's own preprocessing (`recipe`, in words).
    `encode`: a list of inputs → float32 (n, d)."""

    prepare: Callable[[Image.Image], Any]
    encode: Callable[[list[Any]], np.ndarray]
    recipe: str
    device: str = "cpu"


class Kept(Protocol):
    """What was made before, part by part; a part is made of JSON values, its files are named."""

    def restore(self, part: Any, files: Mapping[str, str | Path]) -> Mapping[str, Any] | None:
        """Put a part's files in their places and return what was told of it; None: it is not there."""

    def keep(self, part: Any, files: Mapping[str, str | Path], told: Mapping[str, Any]) -> None:
        """Keep a part's files."""


def extract(
    extractor: Extractor,
    sources: Mapping[str, Sequence[str | Path]],
    *,
    device: str,
    outputs: Mapping[str, str | Path],
    lock: str | None = None,
    kept: Kept | None = None,
) -> int:
    """Write one table "features" per source; returns the number of pictures.

    Artist by artist vectors are taken from `kept`, if they are there; the model is loaded for the first that are not.

    `extractor`: library, model, pretrained, as in the config. `sources`: for "training" the artists' tables
    "pictures", of which the kept rows count; for every other name tables "generated". `outputs`: the same names →
    path. `device`: cpu, cuda, or auto. Raises FeatureError for a model that cannot be loaded, a source without
    pictures, a picture that is damaged, and a vector that is not finite.
    """
    if set(sources) != set(outputs):
        raise FeatureError(f"sources {sorted(sources)} and outputs {sorted(outputs)} differ")
    encoder = _Encoder(extractor, device, lock, kept)
    total = 0
    for source, paths in sources.items():
        pictures = (_training if source == "training" else _generated)(paths)
        rows = []
        with progress.task(f"{extractor.library} on {source}", sum(map(_count, paths)), unit="pictures") as advance:
            for _, group in groupby(pictures, lambda each: each.artist):
                own = list(group)
                rows += encoder.rows(own)
                advance(len(own))
        if not rows:
            raise FeatureError(f"source {source!r}: no picture in {len(paths)} tables; see the reasons in them")
        metadata = {"extractor": _told(extractor), "preprocessing": encoder.recipe, "source": source}
        tables.write(outputs[source], "features", rows, metadata)
        total += len(rows)
    return total


def _told(extractor: Extractor) -> dict[str, str | None]:
    """The extractor as its configuration has it: of what pins it, only what is said."""
    told = extractor.plain()
    return {key: value for key, value in told.items() if value is not None or key not in ("revision", "sha256")}


def load(extractor: Extractor, device: str, lock: str | None = None) -> Model:
    """The extractor's model, ready on `device`; raises FeatureError.

    A model of the hub that has a revision, or that the lock file knows, is taken from its pinned snapshot.
    """
    library, model = extractor.library, extractor.model
    if library not in EXTRACTORS:
        raise FeatureError(f"extractor library {library!r}: there are {', '.join(EXTRACTORS)}")
    if library in hub.FILES and model.startswith("hf-hub:") and (extractor.revision or lock):
        try:
            model = hub.folder(model.removeprefix("hf-hub:"), extractor.revision, library, lock=lock)
        except hub.HubError as error:
            raise FeatureError(f"{library}: {error}") from error
    if extractor.sha256:
        _check_hash(library, model, extractor)
    return EXTRACTORS[library](model, extractor.pretrained, device)


def _check_hash(library: str, model: str, extractor: Extractor) -> None:
    """The file of weights has the sha256 that the config names; a model by name alone has no file to look at."""
    places = [Path(model, name) for name in hub.FILES.get(library, ())] + [Path(extractor.pretrained or model)]
    files = [place for place in places if place.is_file() and place.suffix != ".json"]
    if not files:
        raise FeatureError(
            f"{library} {model!r}: no file whose sha256 could be checked; name a folder, a file or hf-hub:"
        )
    digest = sha256_of(files[0])
    if digest != extractor.sha256:
        raise FeatureError(f"{files[0]}: expected sha256 {extractor.sha256}, found {digest}")


# --- pictures in, vectors out


@dataclass(frozen=True)
class _Picture:
    picture: str
    artist: str
    lora: str | None
    data: bytes
    path: str | Path


def _pinned(extractor: Extractor, lock: str | None) -> dict[str, str]:
    """The commit of a model that the lock file alone pins: what the configuration says of it is then no name of it."""
    if extractor.library not in hub.FILES or not extractor.model.startswith("hf-hub:") or not lock:
        return {}
    if extractor.revision and hub.COMMIT.fullmatch(extractor.revision):
        return {}
    try:
        return {"commit": hub.commit(extractor.model.removeprefix("hf-hub:"), extractor.revision, lock)}
    except hub.HubError as error:
        raise FeatureError(f"{extractor.library}: {error}") from error


class _Encoder:
    """Vectors of one artist's pictures at a time, from what is kept or from the model."""

    def __init__(self, extractor: Extractor, device: str, lock: str | None, kept: Kept | None):
        self.kept, self.device, self.recipe = kept, device, ""
        self.pinned = _pinned(extractor, lock)
        self._model: Model | None = None
        self._load = lambda: load(extractor, device, lock)

    def rows(self, pictures: Sequence[_Picture]) -> list[dict[str, Any]]:
        if self.kept is None:
            return self._encode(pictures)
        part = {"pictures": [[each.picture, each.artist, each.lora] for each in pictures], **self.pinned}
        with tempfile.TemporaryDirectory() as folder:
            files = {"features.parquet": Path(folder, "features.parquet")}
            told = self.kept.restore(part, files)
            if told is not None:
                self.recipe = told["preprocessing"]
                return tables.read(files["features.parquet"], "features").to_pylist()
            start = time.perf_counter()
            rows = self._encode(pictures)
            told = {"preprocessing": self.recipe, "device": self.device, "count": len(rows)}
            tables.write(files["features.parquet"], "features", rows)
            self.kept.keep(part, files, {**told, "seconds": time.perf_counter() - start})
        return rows

    def _encode(self, pictures: Sequence[_Picture]) -> list[dict[str, Any]]:
        if self._model is None:
            self._model = self._load()
            self.recipe, self.device = self._model.recipe, self._model.device
        return list(_encoded(self._model, pictures))


def _count(path: str | Path) -> int:
    """Rows of a table, refused pictures among them; 0 where they cannot be told: reading it says why."""
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError):
        return 0


def _training(paths: Sequence[str | Path]) -> Iterator[_Picture]:
    for path in paths:
        for row in _rows(path, "pictures", ["picture", "artist", "image", "status"]):
            if row["status"] != "kept":
                continue
            data = row["image"]["bytes"]
            if hashlib.sha256(data).hexdigest() != row["picture"]:
                raise FeatureError(
                    f"{path}: picture {row['picture'][:12]} changed after it was collected; collect them again"
                )
            yield _Picture(row["picture"], row["artist"], None, data, path)


def _generated(paths: Sequence[str | Path]) -> Iterator[_Picture]:
    for path in paths:
        for row in _rows(path, "generated", ["lora", "image"]):
            data, lora = row["image"]["bytes"], row["lora"]
            picture = hashlib.sha256(data).hexdigest()
            yield _Picture(picture, lora.split("/")[0], lora, data, path)


def _rows(path: str | Path, name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    # Row by row: one decoded table of pictures is enough in memory.
    for part in tables.read(path, name).select(columns).to_batches(max_chunksize=BATCH):
        yield from part.to_pylist()


def _decoded(data: bytes, path: str | Path, picture: str) -> Image.Image:
    try:
        return decode(data, min_side=1)
    except PictureError as error:
        raise FeatureError(f"{path}: picture {picture[:12]}: {error}; delete the table and rerun its stage") from error


def _encoded(model: Model, pictures: Sequence[_Picture]) -> Iterator[dict[str, Any]]:
    for begin in range(0, len(pictures), BATCH):
        batch = pictures[begin : begin + BATCH]
        images = [_decoded(each.data, each.path, each.picture) for each in batch]
        vectors = model.encode([model.prepare(image) for image in images])
        for each, vector in zip(batch, vectors, strict=True):
            if not np.isfinite(vector).all():
                raise FeatureError(f"picture {each.picture[:12]} of {each.artist}: the vector is not finite")
            yield {"picture": each.picture, "artist": each.artist, "lora": each.lora, "vector": vector}


# --- open_clip and timm


def _open_clip(model: str, pretrained: str | None, device: str) -> Model:
    import open_clip
    import torch

    config, weights = "open_clip_config.json", "open_clip_model.safetensors"
    if Path(model).is_dir():
        _check_folder(model, config, weights)
        name, pretrained = f"local-dir:{model}", None
    else:
        name = model
        if not model.startswith("hf-hub:"):
            _check_name("open_clip", model, open_clip.list_models(), config, weights)
            if not pretrained:
                tags = open_clip.list_pretrained_tags_by_model(model)
                raise FeatureError(f"open_clip model {model!r} needs `pretrained`: one of {', '.join(tags)}")
            if Path(pretrained).is_file():
                raise FeatureError(f"extractor {model!r}: {bare_weights(model, pretrained)}")
    # What a tag was trained with: the architecture of its name has GELU, and goes on with a warning.
    published = {} if pretrained is None else open_clip.get_pretrained_cfg(model, pretrained)
    quick = {"force_quick_gelu": True} if published.get("quick_gelu") else {}
    with _loading("open_clip", model, pretrained):
        network, preprocess = open_clip.create_model_from_pretrained(
            name, pretrained, precision="fp32", device="cpu", **quick
        )
    return _torch_model(torch, network, network.encode_image, preprocess, device)


def _timm(model: str, pretrained: str | None, device: str) -> Model:
    import timm
    import torch

    name, overlay = model, None
    if Path(model).is_dir():
        _check_folder(model, "config.json", "model.safetensors")
        name = f"local-dir:{model}"
    else:
        if not model.startswith("hf-hub:"):
            known = timm.list_models() if not timm.is_model(model) else [model.split(".")[0]]
            _check_name("timm", model.split(".")[0], known, "config.json", "model.safetensors")
        if pretrained and Path(pretrained).is_file():
            overlay = {"file": pretrained}
        elif pretrained:
            name = f"{model}.{pretrained}"
    with _loading("timm", model, pretrained):
        network = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        preprocess = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network), is_training=False)
    return _torch_model(torch, network, network, preprocess, device)


def _csd(model: str, pretrained: str | None, device: str) -> Model:
    return _style("csd", model, pretrained, device)


def _vgg_gram(model: str, pretrained: str | None, device: str) -> Model:
    return _style("vgg_gram", model, pretrained, device)


def _style(library: str, model: str, pretrained: str | None, device: str) -> Model:
    import torch

    from . import style

    names = hub.FILES[library]
    files = [Path(pretrained)] if pretrained else [Path(model), *(Path(model, name) for name in names)]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        raise FeatureError(
            f"{library}: {pretrained or model!r} is neither a file of weights nor a folder with {' or '.join(names)};"
            " of a hub write 'hf-hub:owner/name' and a revision"
        )
    with _loading(library, model, pretrained):
        network, preprocess = getattr(style, library)(weights)
    return _torch_model(torch, network, network, preprocess, device)


def _torch_model(torch: Any, network: Any, forward: Callable, preprocess: Callable, device: str) -> Model:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cuda = device.startswith("cuda")
    network.to(device).eval().requires_grad_(False)

    def encode(inputs: list[Any]) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=on_cuda):
            return forward(torch.stack(inputs).to(device)).float().cpu().numpy()

    return Model(preprocess, encode, " ".join(str(preprocess).split()), device)


def bare_weights(model: str, pretrained: str) -> str:
    """Why open_clip's architectures are not read from a file of weights alone, and what to write instead."""
    return (
        f"pretrained: {pretrained} says neither activation (GELU or QuickGELU) nor preprocessing (mean, resize), and "
        f"open_clip would guess both. Name the tag of {model} that it is; or put it as open_clip_model.safetensors "
        "beside its open_clip_config.json (model_cfg, preprocess_cfg) into a folder, and name that as `model`"
    )


def known_names(library: str) -> set[str]:
    """Architectures that open_clip or timm knows, read from the files of the package: to import it takes seconds."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return set()
    package = Path(spec.submodule_search_locations[0])
    if library == "open_clip":
        return {file.stem for file in (package / "model_configs").glob("*.json")}
    files = (package / "models").glob("*.py")
    return {name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))}


@contextmanager
def _loading(library: str, model: str, pretrained: str | None) -> Iterator[None]:
    """Whatever a library raises while it loads becomes one FeatureError that names the model."""
    try:
        yield
    except Exception as error:
        what = f"{model!r}" + (f" with pretrained {pretrained!r}" if pretrained else "")
        reason = " ".join(str(error).split())[:500]
        raise FeatureError(f"{library} cannot load {what}: {type(error).__name__}: {reason}") from error


def _check_folder(folder: str, config: str, weights: str) -> None:
    # Both libraries would also take a pickle, or go on without weights.
    missing = [name for name in (config, weights) if not (Path(folder) / name).is_file()]
    if missing:
        raise FeatureError(f"{folder}: {' and '.join(missing)} absent; the folder must hold {config} and {weights}")


def _check_name(library: str, model: str, known: Sequence[str], config: str, weights: str) -> None:
    if model in known:
        return
    near = difflib.get_close_matches(model, known, n=3)
    raise FeatureError(
        f"{model!r} is neither a folder nor a model of {library}"
        + (f" (near: {', '.join(near)})" if near else "")
        + f"; put {config} and {weights} into the folder {model}, or name a model of {library}"
    )


# --- controls


def _control(model: str, pretrained: str | None, device: str) -> Model:
    if model not in CONTROLS:
        raise FeatureError(f"control {model!r}: there are {', '.join(CONTROLS)}")
    measure = CONTROLS[model]
    return Model(
        prepare=lambda image: oklab(to_array(crop_square(image, CONTROL_SIDE))).reshape(-1, 3),
        encode=lambda inputs: np.stack([measure(pixels) for pixels in inputs]).astype(np.float32),
        recipe=f"centred square, {CONTROL_SIDE} pixels, Oklab",
    )


EXTRACTORS: dict[str, Callable[[str, str | None, str], Model]] = {
    "open_clip": _open_clip,
    "timm": _timm,
    "csd": _csd,
    "vgg_gram": _vgg_gram,
    "control": _control,
}
