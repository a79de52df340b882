"""Descriptors: every description of a LoRA, from its weights or from pictures, as one embeddings table of one shape.

Weights arrive as Gram matrices. Pictures arrive as features: a LoRA is then the mean of its pictures' unit vectors,
and the Gram matrix of those means goes the same way: the same number of dimensions, the same calibrations, so no
descriptor has an advantage of budget.

Names: ``delta``, ``factors_raw`` (kernel, scale); ``clip_training`` (an upper bound: it knows the training pictures),
``clip_s8_g3`` (pictures generated at 8 steps, guidance 3), ``clip_training_to_s8_g3`` (pictures → LoRA: queries
are training pictures, the gallery is known by generated ones), ``clip_s8_g3_to_training`` (LoRA → pictures),
``mean_colour_training`` (a control).

Controls of the weights: ``norm``, the logarithm of ‖ΔW‖; ``spectrum``, the singular values of all modules at norm one,
which say how strongly each module was changed and not how; ``set_size``, the number of training pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from . import tables
from .seeds import derive_seed
from .tables import KNOWN, TOGETHER, UNSEEN
from .weights.embed import combine, embed, normalise, together, unseen
from .weights.gram import read_gram

# Controls that need no picture: name → rows (N, d) of the singular values (N, modules, r) and the plan.
WEIGHT_CONTROLS: dict[str, Callable[[np.ndarray, pa.Table], np.ndarray]] = {
    "norm": lambda spectra, plan: np.log(np.sqrt(np.square(spectra).sum((1, 2))).clip(1e-12))[:, None],
    "spectrum": lambda spectra, plan: (
        spectra.reshape(len(spectra), -1) / np.sqrt(np.square(spectra).sum((1, 2))).clip(1e-12)[:, None]
    ),
    "set_size": lambda spectra, plan: np.log([len(pictures) for pictures in plan["pictures"].to_pylist()])[:, None],
}

# What a descriptor looks at, in the order in which a comparison shows them.
KINDS = ("weights", "generated pictures", "training pictures", "control")


class DescriptorError(ValueError):
    """A descriptor cannot be computed from the tables; the message names it and what is missing."""


def weight_descriptors(weights: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Descriptor name → (kernel, scale)."""
    return {
        kernel + ("" if scale == "unit" else f"_{scale}"): (kernel, scale)
        for kernel in weights["kernels"]
        for scale in weights["scales"]
    }


def control_descriptors(weights: Mapping[str, Any]) -> list[str]:
    """Names of the controls that are read from weights and from the plan."""
    return list(weights["controls"])


def picture_descriptors(extractors: Mapping[str, Any], settings: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Descriptor name → (extractor, source of the gallery, source of the queries)."""
    found = {}
    for name, extractor in extractors.items():
        found[f"{name}_training"] = (name, "training", "training")
        if extractor["library"] == "control":
            continue
        for setting in settings:
            found[f"{name}_{setting}"] = (name, setting, setting)
            found[f"{name}_training_to_{setting}"] = (name, setting, "training")
            found[f"{name}_{setting}_to_training"] = (name, "training", setting)
    return found


def kinds(weights: Mapping[str, Any], extractors: Mapping[str, Any], settings: Sequence[str]) -> dict[str, str]:
    """Descriptor name → what it looks at, one of KINDS.

    Descriptors that compare across sources are left out: they answer another question.
    """
    found = dict.fromkeys(weight_descriptors(weights), "weights")
    for name, (extractor, known, asked) in picture_descriptors(extractors, settings).items():
        if known == asked:
            control = extractors[extractor]["library"] == "control"
            found[name] = "control" if control else f"{'training' if known == 'training' else 'generated'} pictures"
    return found | dict.fromkeys(control_descriptors(weights), "control")


def embed_weights(
    grams: Mapping[str, str | Path],
    plan: pa.Table,
    weights: Mapping[str, Any],
    embedding: Mapping[str, Any],
    *,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of every weight descriptor; `grams`: kernel → Gram file, `outputs`: descriptor → path."""
    for descriptor, K in _weight_products(grams, plan, weights):
        _write(outputs[descriptor], descriptor, K, plan, embedding, seed)


def _weight_products(
    grams: Mapping[str, str | Path], plan: pa.Table, weights: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight descriptor, and the inner products (N, N) of the plan's LoRAs by it."""
    read = {kernel: read_gram(path) for kernel, path in grams.items()}
    for descriptor, (kernel, scale) in weight_descriptors(weights).items():
        ids, parts = read[kernel]
        if ids != plan["lora"].to_pylist():
            raise DescriptorError(f"{grams[kernel]}: its LoRAs are not those of the plan; rerun the Gram stage")
        yield descriptor, normalise(combine(parts, weights["components"], weights["blocks"]), scale)


def embed_controls(
    spectra: np.ndarray,
    plan: pa.Table,
    weights: Mapping[str, Any],
    embedding: Mapping[str, Any],
    *,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of every control of the weights; `spectra`: singular values (N, modules, r) of the plan's
    LoRAs. A control by which all LoRAs are alike, as sets of one size are, has vectors of zero: it knows nothing."""
    for name in control_descriptors(weights):
        X = WEIGHT_CONTROLS[name](spectra, plan)
        _write(outputs[name], name, X @ X.T, plan, embedding, seed, constant=np.ptp(X, axis=0).max() < 1e-12)


def inner_products(
    grams: Mapping[str, str | Path],
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    weights: Mapping[str, Any],
    extractors: Mapping[str, Any],
    settings: Sequence[str],
) -> dict[str, np.ndarray]:
    """Descriptor → inner products (N, N) of the plan's LoRAs, from which all else follows; of those that compare
    within one source. Arguments as of embed_weights and embed_pictures."""
    found = dict(_weight_products(grams, plan, weights))
    for descriptor, (extractor, known, asked) in picture_descriptors(extractors, settings).items():
        if known == asked:
            X = _means(features, plan, extractors, extractor, known)
            found[descriptor] = X @ X.T
    return found


def embed_collection(
    rows: Sequence[Mapping[str, Any]],
    grams: Mapping[tuple[str, str], np.ndarray],
    dimensions: int,
    output: str | Path,
    *,
    components: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
) -> None:
    """Write vectors of a collection as it is (rows of the table "loras", in the order of the Gram matrices).

    There is no gallery and no query: all are of the scenario "together". Those that are all alike lie at one place.
    """
    K = normalise(combine(grams, components, blocks), "unit")
    try:
        vectors = together(K, dimensions)
    except (ValueError, IndexError):
        vectors = np.zeros((len(rows), 1))
    loras = [
        {"lora": row["lora"], "artist": row["artist"] or "", "genre": row["genre"], "split": "gallery"} for row in rows
    ]
    found = _rows(loras, TOGETHER, "none", np.zeros(len(rows), int), vectors)
    tables.write(output, "embeddings", found, {"descriptor": "delta", "dimensions": vectors.shape[1]})


def embed_pictures(
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    extractors: Mapping[str, Any],
    settings: Sequence[str],
    embedding: Mapping[str, Any],
    *,
    seed: int,
    outputs: Mapping[str, str | Path],
) -> None:
    """Write the embeddings of every picture descriptor; `features`: (extractor, source) → features table."""
    gallery = np.array(plan["split"].to_pylist()) == "gallery"
    means = {key: _means(features, plan, extractors, *key) for key in features}
    for descriptor, (extractor, known, asked) in picture_descriptors(extractors, settings).items():
        X = np.where(gallery[:, None], means[extractor, known], means[extractor, asked])
        _write(outputs[descriptor], descriptor, X @ X.T, plan, embedding, seed)


def _means(
    features: Mapping[tuple[str, str], str | Path],
    plan: pa.Table,
    extractors: Mapping[str, Any],
    extractor: str,
    source: str,
) -> np.ndarray:
    unit = extractors[extractor]["library"] != "control"  # a colour has a length of its own
    return lora_means(tables.read(features[extractor, source], "features"), plan, source, unit=unit)


def lora_means(features: pa.Table, plan: pa.Table, source: str, *, unit: bool) -> np.ndarray:
    """Mean vector of each LoRA of the plan (N, d) float64: of its training pictures, or of what it generated.

    `unit`: each picture's vector is brought to norm one first. Raises DescriptorError naming LoRAs without pictures.
    """
    if len({len(vector) for vector in features["vector"].to_pylist()}) != 1:
        raise DescriptorError(f"features of {source!r}: none, or vectors of several lengths; rerun the features stage")
    vectors = np.stack(features["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    places: dict[str, list[int]] = {}
    for row, key in enumerate(features["picture" if source == "training" else "lora"].to_pylist()):
        places.setdefault(key, []).append(row)
    rows, absent = [], []
    for lora in plan.select(["lora", "pictures"]).to_pylist():
        keys = lora["pictures"] if source == "training" else [lora["lora"]]
        rows.append([place for key in keys for place in places.get(key, [])])
        if not rows[-1] or any(key not in places for key in keys):
            absent.append(lora["lora"])
    if absent:
        raise DescriptorError(f"features of {source!r}: pictures are missing of {absent}; rerun the features stage")
    return np.stack([vectors[row].mean(0) for row in rows])


def _write(
    path: str | Path,
    descriptor: str,
    K: np.ndarray,
    plan: pa.Table,
    embedding: Mapping[str, Any],
    seed: int,
    *,
    constant: bool = False,
) -> None:
    if constant:
        _write_constant(path, descriptor, plan, embedding)
        return
    loras = plan.select(["lora", "artist", "genre", "split"]).to_pylist()
    gallery = np.array([lora["split"] == "gallery" for lora in loras])
    fold_seed = derive_seed("folds", seed)  # one division for all descriptors: they are compared pair by pair
    artists = [lora["artist"] for lora in loras]
    try:
        everything = together(K, embedding["dimensions"])
        known = embed(
            K, gallery, embedding["dimensions"], embedding["calibrations"], folds=embedding["folds"], seed=fold_seed
        )
        # Fewer than four artists leave no basis without the artists in question.
        apart = unseen(K, gallery, artists, embedding["dimensions"], seed=fold_seed) if len(set(artists)) >= 4 else None
    except ValueError as error:
        raise DescriptorError(f"{descriptor}: {error}") from error
    nobody = np.zeros(len(loras), int)  # no folds: all vectors are comparable
    rows = _rows(loras, TOGETHER, "none", nobody, everything)
    for calibration, found in known.items():
        rows += _rows(loras, KNOWN, calibration, nobody, found.vectors)
    if apart is not None:
        vectors, part = apart
        rows += _rows(loras, UNSEEN, "none", part, vectors)
    first = next(iter(known.values()))
    metadata = {
        "descriptor": descriptor,
        "dimensions": first.vectors.shape[1],
        "explained": [round(float(v), 12) for v in first.explained],
        "held_out_ratio": [round(float(v), 12) for v in first.ratio],
        "held_out_ratio_predicted": [round(float(v), 12) for v in first.predicted],
    }
    tables.write(path, "embeddings", rows, metadata)


def _write_constant(path: str | Path, descriptor: str, plan: pa.Table, embedding: Mapping[str, Any]) -> None:
    loras = plan.select(["lora", "artist", "genre", "split"]).to_pylist()
    nobody, zeros = np.zeros(len(loras), int), np.zeros((len(loras), 1))
    rows = _rows(loras, TOGETHER, "none", nobody, zeros)
    for calibration in embedding["calibrations"]:
        rows += _rows(loras, KNOWN, calibration, nobody, zeros)
    if len({lora["artist"] for lora in loras}) >= 4:
        rows += _rows(loras, UNSEEN, "none", nobody, zeros)
    nothing = {"explained": [0.0], "held_out_ratio": [1.0], "held_out_ratio_predicted": [1.0]}
    tables.write(path, "embeddings", rows, {"descriptor": descriptor, "dimensions": 1, **nothing})


def _rows(
    loras: Sequence[Mapping[str, Any]], scenario: str, calibration: str, folds: np.ndarray, vectors: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {"scenario": scenario, "calibration": calibration, "fold": int(fold), "vector": vector, **lora}
        for lora, fold, vector in zip(loras, folds, vectors.astype(np.float32), strict=True)
    ]
