"""Embeddings: every descriptor of a LoRA (descriptors.py), from its weights or from pictures, as one table of one
shape.

Weights arrive as Gram matrices, of all modules together or module by module. Pictures arrive as features: a LoRA is
then the mean of its pictures' unit vectors, and the Gram matrix of those means goes the same way: the same number of
dimensions, the same calibrations, so no descriptor has an advantage of budget; and all go without any basis, too.

Controls of the weights: ``norm``, the logarithm of ‖ΔW‖; ``spectrum``, the singular values of all modules at norm one,
which say how strongly each module was changed and not how; ``set_size``, the number of training pictures; ``content``,
the subjects of the training pictures, where their source knows any. One number is an angle in a quarter circle, from
the smallest of all LoRAs to the largest: cosines and distances then rank by how far two numbers are apart, where the
cosine of the numbers themselves is 1 of any two.

A descriptor by which the gallery's LoRAs cannot be distinguished knows nothing: its vectors are zero, and its scores
are at the chance level.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .. import tables
from ..descriptors import BY_CONTROL, KFAC, PICTURES, PLAIN, Descriptor, compared
from ..loras.names import wanted
from ..sections import Embedding, Extractor
from ..seeds import derive_seed
from ..tables import KNOWN, TOGETHER, UNSEEN, WHOLE, WHOLE_UNSEEN
from ..weights.gram import GramError, read_gram
from ..weights.modules import Asked, ModuleGrams, of_kernel, read_modules
from ..weights.products import combine, normalise
from ..weights.weighting import Product, WeightingError, fixed, product
from .components import AlikeError, embed, halves, together, unseen, whole

# Controls that need no picture: name → rows (N, d) of the singular values (N, modules, r), the plan, and what pictures
# show (picture → subject).
WEIGHT_CONTROLS: dict[str, Callable[[np.ndarray, pa.Table, Mapping[str, str]], np.ndarray]] = {
    "norm": lambda spectra, plan, shown: _angles(np.log(np.sqrt(np.square(spectra).sum((1, 2))).clip(1e-12))),
    "spectrum": lambda spectra, plan, shown: (
        spectra.reshape(len(spectra), -1) / np.sqrt(np.square(spectra).sum((1, 2))).clip(1e-12)[:, None]
    ),
    "set_size": lambda spectra, plan, shown: _angles(
        np.log([len(pictures) for pictures in plan["pictures"].to_pylist()])
    ),
    "content": lambda spectra, plan, shown: _subjects(plan, shown),
}
FEWEST_ARTISTS = 4  # below, half of the artists say nothing of the others


def _angles(x: np.ndarray) -> np.ndarray:
    """One number of each LoRA (N,) as a point (N, 2) of a quarter circle."""
    extent = float(np.ptp(x))
    angle = (x - x.min()) * (np.pi / 2 / extent) if extent > 0 else np.zeros_like(x)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


class DescriptorError(ValueError):
    """A descriptor cannot be computed from the tables; the message names it and what is missing."""


def embed_weights(
    grams: Mapping[str, str | Path],
    modules: str | Path | None,
    base: Mapping[str, float] | None,
    plan: pa.Table,
    asked: Sequence[Descriptor],
    weights: Mapping[str, Any],
    embedding: Embedding,
    *,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of the `asked` descriptors of the weights; `outputs`: name → path.

    `grams`: kernel → Gram file of all modules, for those that take modules as they are; `modules`: a file of single
    modules' matrices, for the others, and `base`: module → w, where gradients weigh them.
    """
    for descriptor, products in weight_products(grams, modules, base, plan, asked, weights):
        _write(outputs[descriptor.name], descriptor.name, products, plan, embedding, seed)


def weight_products(
    grams: Mapping[str, str | Path],
    modules: str | Path | None,
    base: Mapping[str, float] | None,
    plan: pa.Table,
    asked: Sequence[Descriptor],
    weights: Mapping[str, Any],
) -> Iterator[tuple[Descriptor, Product]]:
    """Each descriptor of the weights, and the inner products of the plan's LoRAs by it."""
    loras, artists = plan["lora"].to_pylist(), plan["artist"].to_pylist()
    whole_grams: dict[str, np.ndarray] = {}
    single: ModuleGrams | None = None
    for descriptor in asked:
        kernel, how = str(descriptor.kernel), str(descriptor.modules)
        if how == PLAIN:
            if kernel not in whole_grams:  # a kernel has several scales
                ids, parts = read_gram(grams[kernel])
                _check_ids(grams[kernel], ids, loras)
                whole_grams[kernel] = combine(parts, weights["components"], weights["blocks"])
            yield descriptor, fixed(whole_grams[kernel], str(descriptor.scale))
            continue
        if single is None:
            if modules is None:
                raise DescriptorError(f"{descriptor.name}: needs the Gram matrices of single modules")
            ids, single, _ = read_modules(modules)
            _check_ids(modules, ids, loras)
        try:
            chosen = _chosen(single, KFAC if how == KFAC else kernel, weights)
            yield descriptor, product(how, chosen, base=base, artists=artists)
        except WeightingError as error:
            raise DescriptorError(f"{descriptor.name}: {error}") from error


def _check_ids(path: str | Path, ids: Sequence[str], loras: Sequence[str]) -> None:
    if list(ids) != list(loras):
        raise DescriptorError(f"{path}: its LoRAs are not those of the plan; rerun the Gram stage")


def _chosen(single: ModuleGrams, kernel: str, weights: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """Module → Gram matrix of a kernel, in the components and blocks asked for."""
    try:
        every = of_kernel(single, kernel)
    except GramError as error:
        raise DescriptorError(str(error)) from error
    found = tuple(name for name in every if wanted(name, weights["components"], weights["blocks"]))
    if not found:
        raise DescriptorError(f"no module is in components {weights['components']} and blocks {weights['blocks']}")
    return Asked(found, every.__getitem__)


def embed_controls(
    spectra: np.ndarray,
    plan: pa.Table,
    controls: Sequence[str],
    embedding: Embedding,
    *,
    shown: Mapping[str, str] | None = None,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of controls of the weights; `spectra`: singular values (N, modules, r) of the plan's
    LoRAs, `shown`: picture → subject."""
    for name in controls:
        X = WEIGHT_CONTROLS[name](spectra, plan, shown or {})
        _write(outputs[name], name, fixed(X @ X.T), plan, embedding, seed)


def _subjects(plan: pa.Table, shown: Mapping[str, str]) -> np.ndarray:
    """How often each subject is among a LoRA's training pictures, rows at norm one; zero where no subject is known."""
    sets = [[shown[p] for p in pictures if p in shown] for pictures in plan["pictures"].to_pylist()]
    place = {subject: i for i, subject in enumerate(sorted({subject for each in sets for subject in each}))}
    X = np.zeros((len(sets), max(len(place), 1)))
    for row, each in zip(X, sets, strict=True):
        np.add.at(row, [place[subject] for subject in each], 1.0)
    return X / np.linalg.norm(X, axis=1, keepdims=True).clip(1e-12)


def inner_products(
    grams: Mapping[str, str | Path],
    modules: str | Path | None,
    base: Mapping[str, float] | None,
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    asked: Sequence[Descriptor],
    *,
    weights: Mapping[str, Any],
    extractors: Mapping[str, Extractor],
) -> dict[str, np.ndarray]:
    """Descriptor → inner products (N, N) of the plan's LoRAs, from which all else follows; of the `asked` that compare
    within one source. Arguments as of embed_weights and embed_pictures."""
    gallery = np.flatnonzero(np.array(plan["split"].to_pylist()) == "gallery")
    found = {}
    of_weights = [descriptor for descriptor in asked if descriptor.kernel]
    for descriptor, products in weight_products(grams, modules, base, plan, of_weights, weights):
        found[descriptor.name] = products.scaled(gallery)
    for descriptor in compared(list(asked)):
        if descriptor.extractor:
            X = _means(features, plan, extractors, descriptor.extractor, str(descriptor.source))
            found[descriptor.name] = X @ X.T
    return found


def embed_collection(
    rows: Sequence[Mapping[str, Any]],
    grams: Mapping[tuple[str, str], np.ndarray],
    output: str | Path,
    *,
    components: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
) -> None:
    """Write vectors of a collection as it is (rows of the table "loras", in the order of the Gram matrices).

    There is no gallery and no query, and no basis: all are of the scenario "whole".
    """
    K = normalise(combine(grams, components, blocks), "unit")
    vectors = whole(K)
    loras = [
        {"lora": row["lora"], "artist": row["artist"] or "", "genre": row["genre"], "split": "gallery"} for row in rows
    ]
    found = _rows(loras, WHOLE, "none", np.zeros(len(rows), int), vectors)
    tables.write(output, "embeddings", found, {"descriptor": "delta", "dimensions": vectors.shape[1]})


def embed_pictures(
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    asked: Sequence[Descriptor],
    extractors: Mapping[str, Extractor],
    embedding: Embedding,
    *,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of the `asked` descriptors of pictures; `features`: (extractor, source) → features table."""
    gallery = np.array(plan["split"].to_pylist()) == "gallery"
    means = {key: _means(features, plan, extractors, *key) for key in features}
    for descriptor in asked:
        sides = (str(descriptor.gallery), str(descriptor.query))
        of_gallery, of_queries = (means[str(descriptor.extractor), side] for side in sides)
        X = np.where(gallery[:, None], of_gallery, of_queries)
        _write(outputs[descriptor.name], descriptor.name, fixed(X @ X.T), plan, embedding, seed)


def _means(
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    extractors: Mapping[str, Extractor],
    extractor: str,
    source: str,
) -> np.ndarray:
    unit = extractors[extractor].library != BY_CONTROL  # a colour has a length of its own
    return lora_means(tables.read(features[extractor, source], "features"), plan, source, unit=unit)


def lora_means(features: pa.Table, plan: pa.Table, source: str, *, unit: bool) -> np.ndarray:
    """Mean vector of each LoRA of the plan (N, d) float64: of its training pictures, or of what it generated.

    `unit`: each picture's vector is unit-normalised first. Raises DescriptorError naming LoRAs without pictures.
    """
    if len({len(vector) for vector in features["vector"].to_pylist()}) != 1:
        raise DescriptorError(f"features of {source!r}: none, or vectors of several lengths; rerun the features stage")
    vectors = np.stack(features["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    places: dict[str, list[int]] = {}
    for row, key in enumerate(features["picture" if source == PICTURES else "lora"].to_pylist()):
        places.setdefault(key, []).append(row)
    rows, absent = [], []
    for lora in plan.select(["lora", "pictures"]).to_pylist():
        keys = lora["pictures"] if source == PICTURES else [lora["lora"]]
        rows.append([place for key in keys for place in places.get(key, [])])
        if not rows[-1] or any(key not in places for key in keys):
            absent.append(lora["lora"])
    if absent:
        raise DescriptorError(f"features of {source!r}: pictures are missing of {absent}; rerun the features stage")
    return np.stack([vectors[row].mean(0) for row in rows])


def _write(
    path: str | Path,
    descriptor: str,
    products: Product,
    plan: pa.Table,
    embedding: Embedding,
    seed: int,
) -> None:
    loras = plan.select(["lora", "artist", "genre", "split"]).to_pylist()
    try:
        rows, told = _spaces(products, loras, embedding, derive_seed("folds", seed))
    except AlikeError:
        rows, told = _spaces(None, loras, embedding, 0)
    except ValueError as error:
        raise DescriptorError(f"{descriptor}: {error}") from error
    tables.write(path, "embeddings", rows, {"descriptor": descriptor, **told})


def _spaces(
    products: Product | None, loras: Sequence[Mapping[str, Any]], embedding: Embedding, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of every scenario, and what is known of the components. `seed`: one division for all descriptors, since
    they are compared pair by pair. Without `products`: vectors of zero, of a descriptor that knows nothing."""
    gallery = np.array([lora["split"] == "gallery" for lora in loras])
    artists = [lora["artist"] for lora in loras]
    nobody = np.zeros(len(loras), int)  # no folds: all vectors are comparable
    part = halves(artists, seed=seed) if len(set(artists)) >= FEWEST_ARTISTS else None
    calibrations = embedding.calibrations
    zeros = np.zeros((len(loras), 1))
    if products is None:
        everything, directly, halved, apart = zeros, zeros, zeros, zeros
        known = dict.fromkeys(calibrations, zeros)
        told = {"dimensions": 1, "explained": [0.0], "held_out_ratio": [1.0], "held_out_ratio_predicted": [1.0]}
    else:
        K = products.scaled(np.flatnonzero(gallery))
        everything, directly = together(K, embedding.dimensions), whole(K)
        found = embed(K, gallery, embedding.dimensions, calibrations, folds=embedding.folds, seed=seed)
        known = {calibration: each.vectors for calibration, each in found.items()}
        first = next(iter(found.values()))
        told = {
            "dimensions": first.vectors.shape[1],
            "explained": [round(float(v), 12) for v in first.explained],
            "held_out_ratio": [round(float(v), 12) for v in first.ratio],
            "held_out_ratio_predicted": [round(float(v), 12) for v in first.predicted],
        }
        if part is not None:
            halved = unseen(products.scaled, gallery, part, None)
            try:
                apart = unseen(products.scaled, gallery, part, embedding.dimensions)
            except AlikeError:  # a basis of LoRAs that are all alike has no direction for the others
                apart = zeros
    rows = _rows(loras, TOGETHER, "none", nobody, everything)
    for calibration, vectors in known.items():
        rows += _rows(loras, KNOWN, calibration, nobody, vectors)
    rows += _rows(loras, WHOLE, "none", nobody, directly)
    # Fewer than four artists leave nothing to learn of without the artists in question.
    if part is not None:
        rows += _rows(loras, UNSEEN, "none", part, apart)
        rows += _rows(loras, WHOLE_UNSEEN, "none", part, halved)
    return rows, told


def _rows(
    loras: Sequence[Mapping[str, Any]], scenario: str, calibration: str, folds: np.ndarray, vectors: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {"scenario": scenario, "calibration": calibration, "fold": int(fold), "vector": vector, **lora}
        for lora, fold, vector in zip(loras, folds, vectors.astype(np.float32), strict=True)
    ]
