"""Retrieval: does a query LoRA find the gallery LoRAs of its artist, or of its genre?

Every query ranks the whole gallery of its fold by distance; every query counts, also one without a hit. Ties are
broken at random, and a score is averaged over several such orders, so a descriptor that cannot tell two LoRAs apart
gains nothing from their order in a table. Chance is the exact expectation under a random ranking.
Intervals are percentile bootstraps over artists.

mAP: mean average precision over the full ranking. mAP@R: precision averaged over the first R places, R the number of
relevant items (Musgrave, Belongie & Lim 2020). R@k: share of queries with a relevant item among the first k. MRR:
mean reciprocal rank. nDCG: binary gains, over the full ranking.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from ..seeds import derive_seed
from ..tables import TOGETHER

TIE = 1e-9  # of the scale of a distance (cosine: one; L2: the vectors' length): nearer than that is equal


def average_precision(hits: np.ndarray) -> np.ndarray:
    """AP of rankings (q, n) of 0/1 relevance, best first; shape (q,)."""
    precision = np.cumsum(hits, 1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def average_precision_at_r(hits: np.ndarray) -> np.ndarray:
    """MAP@R of each ranking (q, n); shape (q,)."""
    R = hits.sum(1)
    places = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits, 1) / places
    return (precision * hits * (places <= R[:, None])).sum(1) / R


def reciprocal_rank(hits: np.ndarray) -> np.ndarray:
    return 1 / (hits.argmax(1) + 1)


def ndcg(hits: np.ndarray) -> np.ndarray:
    """Normalised discounted cumulative gain, binary (Järvelin & Kekäläinen 2002)."""
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    best = np.concatenate([[0], np.cumsum(discount)])[hits.sum(1).astype(int)]
    return hits @ discount / best


def _hit_at(k: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda hits: (hits[:, :k].sum(1) > 0).astype(float)


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mAP": average_precision,
    "mAP@R": average_precision_at_r,
    "R@1": _hit_at(1),
    "R@5": _hit_at(5),
    "R@10": _hit_at(10),
    "MRR": reciprocal_rank,
    "nDCG": ndcg,
}


@cache
def chance(metric: str, relevant: int, n: int) -> float:
    """Expectation of a metric over all rankings of n items of which `relevant` are relevant."""
    R, places = relevant, np.arange(1, n + 1)
    if metric == "mAP":
        # P(place i is a hit) = R/n; given that, i - 1 earlier places hold (i - 1)(R - 1)/(n - 1) hits on average.
        earlier = (places - 1) * (R - 1) / max(n - 1, 1)
        return float(((1 + earlier) / places).sum() / n)
    if metric == "mAP@R":
        first = places[:R]
        return float(((1 + (first - 1) * (R - 1) / max(n - 1, 1)) / first).sum() / n)
    if metric == "nDCG":
        discount = 1 / np.log2(places + 1)
        return float(R / n * discount.sum() / discount[:R].sum())
    # P(no hit among the first i) = C(n - R, i) / C(n, i), by a running product.
    remain = np.clip((n - R - places + 1) / (n - places + 1), 0, 1)
    none = np.cumprod(remain)
    if metric == "MRR":
        return float(((np.concatenate([[1], none[:-1]]) - none) / places).sum())
    return float(1 - none[min(int(metric.removeprefix("R@")), n) - 1])


def _l2(Q: np.ndarray, G: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(Q[:, None] - G[None]).sum(-1))


def _cosine(Q: np.ndarray, G: np.ndarray) -> np.ndarray:
    def unit(X: np.ndarray) -> np.ndarray:
        return X / np.linalg.norm(X, axis=1, keepdims=True).clip(1e-300)

    return 1 - unit(Q) @ unit(G).T


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"L2": _l2, "cosine": _cosine}
ORDERS = 8  # random orders of ties that a score is averaged over, where there are ties


def retrieval(
    embeddings: pa.Table, descriptor: str, *, bootstrap: int, level: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table "retrieval" for one descriptor: every scenario, calibration, distance, level and metric.

    Queries are rows of split "query", the gallery is split "gallery" of the same fold. A query of which the gallery
    holds nothing relevant cannot be asked and is left out; `queries` says how many were asked. At genre level the
    artist's own LoRAs are left out of the gallery: what is asked is whether other painters of the genre are near.
    """
    rows = embeddings.to_pylist()
    if not rows:
        raise ValueError(f"{descriptor}: no embeddings")
    artists = {artist: i for i, artist in enumerate(sorted({row["artist"] for row in rows}))}
    rng = np.random.Generator(np.random.PCG64(derive_seed("retrieval", "bootstrap", seed)))
    draws = rng.multinomial(len(artists), np.full(len(artists), 1 / len(artists)), size=bootstrap).astype(float)
    found = []
    for scenario, calibration in dict.fromkeys((row["scenario"], row["calibration"]) for row in rows):
        if scenario == TOGETHER:  # a basis that was fitted on the queries answers no question of retrieval
            continue
        chosen = [row for row in rows if (row["scenario"], row["calibration"]) == (scenario, calibration)]
        for name in ("artist", "genre"):
            if any(row[name] is None for row in chosen):
                continue
            for distance in DISTANCES:
                scores = _scores(chosen, name, distance, artists, seed)
                for metric, (values, expected, who) in scores.items():
                    found.append(
                        {
                            "scenario": scenario,
                            "descriptor": descriptor,
                            "calibration": calibration,
                            "distance": distance,
                            "level": name,
                            "metric": metric,
                            **_interval(values, who, draws, level),
                            "chance": float(np.mean(expected)) if len(values) else None,
                            "queries": len(values),
                        }
                    )
    return found


def _scores(
    rows: list[dict[str, Any]], level: str, distance: str, artists: dict[str, int], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Metric → (score of each query, its chance, its artist's number)."""
    collected: dict[str, list[tuple[float, float, int]]] = {metric: [] for metric in METRICS}
    for fold in sorted({row["fold"] for row in rows}):
        queries = [row for row in rows if row["fold"] == fold and row["split"] == "query"]
        gallery = [row for row in rows if row["fold"] == fold and row["split"] == "gallery"]
        if not queries or not gallery:
            continue
        Q, G = (np.array([row["vector"] for row in part], np.float64) for part in (queries, gallery))
        D = DISTANCES[distance](Q, G)
        scale = 1.0 if distance == "cosine" else float(np.linalg.norm(np.concatenate([Q, G]), axis=1).max())
        for query, d in zip(queries, D, strict=True):
            kept = np.array([level == "artist" or g["artist"] != query["artist"] for g in gallery])
            relevant = np.array([g[level] == query[level] for g in gallery])[kept]
            if not relevant.any():
                continue
            hits = _rankings(d[kept], relevant, scale, derive_seed("retrieval", "ties", seed, query["lora"]))
            R, n = int(relevant.sum()), len(relevant)
            for metric, function in METRICS.items():
                value = float(function(hits).mean())
                collected[metric].append((value, chance(metric, R, n), artists[query["artist"]]))
    return {
        metric: tuple(np.array(column) for column in zip(*entries, strict=True)) if entries else (np.zeros(0),) * 3
        for metric, entries in collected.items()
    }


def _rankings(d: np.ndarray, relevant: np.ndarray, scale: float, seed: int) -> np.ndarray:
    """Relevance by rank, one row, or several orders of the ties where there are ties."""
    order = np.argsort(d, kind="stable")
    gap = TIE * scale
    group = np.concatenate([[0], np.cumsum(np.diff(d[order]) > gap)])
    if group[-1] == len(d) - 1:
        return relevant[order][None].astype(float)
    rng = np.random.Generator(np.random.PCG64(seed))
    orders = [order[np.lexsort((rng.random(len(d)), group))] for _ in range(ORDERS)]
    return relevant[np.stack(orders)].astype(float)


def _interval(values: np.ndarray, who: np.ndarray, draws: np.ndarray, level: float) -> dict[str, float | None]:
    if not len(values):
        return {"value": None, "low": None, "high": None}
    who = who.astype(int)
    sums = np.bincount(who, values, draws.shape[1])
    counts = np.bincount(who, minlength=draws.shape[1])
    asked = draws @ counts
    spread = (draws @ sums)[asked > 0] / asked[asked > 0]
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}
