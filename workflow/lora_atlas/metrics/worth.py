"""The worth curve: how many generated pictures of a LoRA find its artist as well as the LoRA's weights do.

A LoRA is the mean of the unit vectors of m of its pictures, and is asked about under the headline view, as its weights
are. m of the pictures are the first m of an order, the same order for all LoRAs, drawn several times: the sets of one
draw are nested, so that a curve's points differ by pictures added, and a query's score is its mean over the draws. In a
series ``shared`` all LoRAs have the same prompts and noise, which helps: they generate the same content. In a series
``own`` each has other prompts and noise, as pictures found somewhere have.

Curve and weights meet at m*, on a scale of log₂ m. Scores rise with m but for noise, so a curve is first made monotone
(isotonic regression, weighted alike): without that, the first lucky wiggle would count. Every resampling of artists
(with several studies: of seeds and artists) has its own crossing, of the same resampling of both. Where even all
pictures stay below the weights, the crossing is infinite: intervals hold infinity, written null, and `never` says in
how many resamplings. Prompts are taken as they are: no interval knows of other prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ..embeddings.components import AlikeError
from ..sections import Embedding
from ..seeds import derive_seed
from ..views import View
from . import intervals
from .questions import questions, under

METRICS = ("mAP", "R@1")
SMALL = 1e-12  # differences of means that are rounding


class WorthError(ValueError):
    """Features or queries do not fit together; the message names what differs."""


def counts(most: int) -> list[int]:
    """Numbers of pictures that are asked for: 1, 2, 4, … and all."""
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})


def worth_queries(
    features: Mapping[str, pa.Table],
    plan: pa.Table,
    embedding: Embedding,
    *,
    view: View,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "worth_queries": a query's scores from m pictures of every LoRA, averaged over the draws.

    `features`: descriptor → the table "features" of one sampler setting, whose pictures come in the same order for
    every LoRA. Raises WorthError that names LoRAs with more or fewer pictures than the others.
    """
    loras, artists = (np.array(plan[name].to_pylist(), str) for name in ("lora", "artist"))
    asked = questions(plan, seed)
    found = []
    for descriptor, table in features.items():
        cube = _cube(table, list(loras), descriptor)  # (N, most, d)
        most = cube.shape[1]
        totals = {m: {metric: np.zeros(len(asked.rows)) for metric in METRICS} for m in counts(most)}
        for order in _orders(most, draws, seed):
            sums = np.cumsum(cube[:, order], 1)
            for m, total in totals.items():
                X = sums[:, m - 1] / m
                try:
                    each = under(X @ X.T, asked, view, embedding, seed, METRICS)
                except AlikeError:  # pictures that tell no LoRA of the gallery from another
                    each = asked.from_products(np.zeros((len(X), len(X))), view.distance, METRICS)
                except ValueError as error:
                    raise WorthError(f"{descriptor}, {m} pictures of each LoRA: {error}") from error
                for metric in METRICS:
                    total[metric] += each[metric] / draws
        found += [
            {
                "descriptor": descriptor,
                "pictures": m,
                "metric": metric,
                "lora": lora,
                "artist": artist,
                "value": float(value),
            }
            for m, total in totals.items()
            for metric in METRICS
            for lora, artist, value in zip(loras[asked.rows], artists[asked.rows], total[metric], strict=True)
        ]
    return found


def _orders(most: int, draws: int, seed: int) -> np.ndarray:
    """Orders of the pictures (draws, most), the first of each of them a different picture while there are any."""
    rng = np.random.Generator(np.random.PCG64(derive_seed("worth", "orders", seed, most)))
    orders = np.stack([rng.permutation(most) for _ in range(draws)])
    firsts = np.concatenate([rng.permutation(most) for _ in range(-(-draws // most))])[:draws]
    for order, first in zip(orders, firsts, strict=True):
        at = int(np.flatnonzero(order == first)[0])
        order[0], order[at] = order[at], order[0]
    return orders


def _cube(table: pa.Table, loras: Sequence[str], descriptor: str) -> np.ndarray:
    """Unit vectors (N, pictures, d) of the LoRAs, in the table's order of pictures."""
    of = table["lora"].to_pylist()
    if not set(loras) & set(of):
        raise WorthError(f"{descriptor}: its features are of none of the plan's LoRAs; rerun the features stage")
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    places: dict[str, list[int]] = {}
    for row, lora in enumerate(of):
        places.setdefault(lora, []).append(row)
    sizes = {lora: len(places.get(lora, ())) for lora in loras}
    usual = max(sizes.values())
    odd = {lora: size for lora, size in sizes.items() if size != usual}
    if odd:
        listed = ", ".join(f"{lora} has {size}" for lora, size in odd.items())
        raise WorthError(
            f"{descriptor}: LoRAs have {usual} generated pictures, but {listed}; rerun the generated stage"
        )
    return vectors[np.array([places[lora] for lora in loras])]


def references(queries: pa.Table, descriptors: Sequence[str] | Mapping[str, Any], view: View) -> pa.Table:
    """Of the table "queries" what curves are held against: `descriptors`, known artists, under the view."""
    frame = queries.to_pandas()
    kept = view.rows(frame) & (frame["level"] == "artist") & frame["descriptor"].isin(list(descriptors))
    return queries.filter(pa.array(kept.to_numpy()))


def curves(queries: pa.Table, seconds: Mapping[str, float], *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "worth": means over queries with intervals over artists; `seconds`: of one picture."""
    frame = queries.to_pandas()
    frame["of"] = np.unique(frame["artist"], return_inverse=True)[1]
    found = []
    for (descriptor, m, metric), part in frame.groupby(["descriptor", "pictures", "metric"], sort=False):
        estimate = intervals.mean(part["value"].to_numpy(), part["of"].to_numpy())
        low, high = estimate.interval(confidence)
        each = seconds.get(descriptor)
        row = {"descriptor": descriptor, "pictures": int(m), "metric": metric}
        row |= {"value": estimate.value, "low": low, "high": high}
        found.append(row | {"seconds": None if each is None else each * m})
    return found


def crossings(
    queries: pa.Table,
    reference: pa.Table,
    seconds: Mapping[str, float],
    reference_seconds: Mapping[str, float],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "crossings": of each descriptor of pictures, and of each of weights, where they meet.

    `queries`: the table "worth_queries"; `reference`: of references(). `seconds`: of one picture, by descriptor, and
    `reference_seconds` of reading the weights of one LoRA. A crossing of one means one picture, or less.
    """
    return pooled(
        [(queries, reference)], seconds, reference_seconds, bootstrap=bootstrap, confidence=confidence, seed=seed
    )


def pooled(
    studies: Sequence[tuple[pa.Table, pa.Table]],
    seconds: Mapping[str, float],
    reference_seconds: Mapping[str, float],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """The crossings of several seeds of a study together: (worth_queries, reference) of each; seeds and artists are
    both resampled (intervals.resampled)."""
    curve_cubes, reference_cubes, ms = _cubes(studies)
    found = []
    for (descriptor, metric), cube in curve_cubes.items():  # (counts, seeds, artists)
        m = np.array(ms[descriptor])
        for (name, other), against in reference_cubes.items():
            if other != metric:
                continue
            spread = intervals.resampled(
                np.concatenate([cube, against[None]]), bootstrap, seed
            )  # (counts + 1, bootstrap)
            values = np.nanmean(np.concatenate([cube, against[None]]), (1, 2))
            at = crossing(m, values[:-1], values[-1])
            resampled = np.array([crossing(m, *_split(column)) for column in spread.T])
            low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
            each = seconds.get(descriptor)
            found.append(
                {
                    "descriptor": descriptor,
                    "reference": name,
                    "metric": metric,
                    "value": _finite(at),
                    "low": _finite(low),
                    "high": _finite(high),
                    "most": int(m[-1]),
                    "never": float(np.isinf(resampled).mean()),
                    "reference_value": float(values[-1]),
                    "reference_seconds": reference_seconds.get(name),
                    "seconds": None if each is None or np.isinf(at) else float(each * at),
                }
            )
    return found


def crossing(m: np.ndarray, curve: np.ndarray, reference: float) -> float:
    """Where the monotone curve first reaches the reference, linear in log₂ m; at least m[0], infinite where never."""
    smooth = _isotonic(curve)
    above = np.flatnonzero(smooth >= reference - SMALL)
    if not len(above):
        return np.inf
    i = above[0]
    if i == 0:
        return float(m[0])
    share = min((reference - smooth[i - 1]) / (smooth[i] - smooth[i - 1]), 1.0)
    return float(2 ** (np.log2(m[i - 1]) + share * (np.log2(m[i]) - np.log2(m[i - 1]))))


def _isotonic(values: np.ndarray) -> np.ndarray:
    """The nearest rising sequence in least squares, by pooling neighbours that fall (Barlow et al. 1972)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, k) = blocks[-2:]
            blocks[-2:] = [((a * n + b * k) / (n + k), n + k)]
    return np.concatenate([[value] * n for value, n in blocks])


def _split(column: np.ndarray) -> tuple[np.ndarray, float]:
    return column[:-1], column[-1]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cubes(studies: Sequence[tuple[pa.Table, pa.Table]]):
    """Mean scores by descriptor and metric: curves (counts, seeds, artists), references (seeds, artists); counts."""
    frames = [pd.concat([t[i].to_pandas().assign(study=s) for s, t in enumerate(studies)]) for i in (0, 1)]
    artists = sorted(set(frames[0]["artist"]))
    for study in range(len(studies)):
        asked = [set(frame["lora"][frame["study"] == study]) for frame in frames]
        if asked[0] != asked[1]:
            odd = ", ".join(sorted(asked[0] ^ asked[1])[:4])
            raise WorthError(f"worth_queries and queries asked about different LoRAs ({odd}); rerun the tables")
    ms = {d: sorted(set(part["pictures"])) for d, part in frames[0].groupby("descriptor", sort=False)}
    curve_cubes = {}
    for (descriptor, metric), part in frames[0].groupby(["descriptor", "metric"], sort=False):
        mean = part.groupby(["pictures", "study", "artist"])["value"].mean()
        index = pd.MultiIndex.from_product([ms[descriptor], range(len(studies)), artists])
        curve_cubes[descriptor, metric] = mean.reindex(index).to_numpy().reshape(-1, len(studies), len(artists))
    reference_cubes = {}
    for (descriptor, metric), part in frames[1].groupby(["descriptor", "metric"], sort=False):
        mean = part.groupby(["study", "artist"])["value"].mean()
        index = pd.MultiIndex.from_product([range(len(studies)), artists])
        reference_cubes[descriptor, metric] = mean.reindex(index).to_numpy().reshape(len(studies), len(artists))
    return curve_cubes, reference_cubes, ms
