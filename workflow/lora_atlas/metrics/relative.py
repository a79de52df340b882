"""Two bases: do LoRAs of the same pictures lie alike in the weight spaces of two models that share no module?

No inner product joins an update of a UNet and one of a transformer. What both spaces have are relations: how near a
LoRA is to others. Two questions rest on them.

Arrangement: the matrices of all products and distances of either space, compared as two descriptors of one study are
(`structure`).

Retrieval: a LoRA is described by its mean cosine to the gallery LoRAs of each artist (relative representations,
Moschella et al. 2023, arXiv 2209.15430, eq. 1), less what all LoRAs have in common, and a query of one base is compared
with the gallery of the other by the correlation of these profiles. The artists that stand for the query and for the
LoRA it is compared with are left out of both profiles, so that nobody is found by being near to himself: what is asked
is whether an artist's relations to *others* tell who it is. The null renames the artists of one base at random. The
same retrieval within one base stands beside it: what a profile loses, where both spaces are one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ..seeds import derive_seed
from ..tables import WHOLE
from . import intervals
from .ranking import average_precision
from .structure import LORAS, structure

RETRIEVAL, ALONE = "mAP across bases", "mAP of profiles on one base"
LEAST = 5  # artists: with two left out, a correlation needs three
SMALL = 1e-12


def bases(
    left: Mapping[str, pa.Table],
    right: Mapping[str, pa.Table],
    sizes: Mapping[str, int],
    *,
    permutations: int,
    confidence: float,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Rows of the table "bases" but for the names of the studies: of every descriptor that both studies have.

    `left`, `right`: descriptor → embeddings table of LoRAs of the same names, made from the same pictures; `sizes`:
    LoRA → number of pictures. Retrieval asks with the queries of the right study in the gallery of the left and the
    other way round, and reports their mean. Raises what `structure` does.
    """
    for descriptor in left:
        if descriptor not in right:
            continue
        either = {"left": left[descriptor], "right": right[descriptor]}
        rows = structure(either, sizes, scenario=WHOLE, permutations=permutations, confidence=confidence, seed=seed)
        for row in rows:
            kept = {name: value for name, value in row.items() if name not in ("left", "right")}
            yield {"descriptor": descriptor, **kept}
        yield from _retrieved(
            descriptor, [_Profiles(table) for table in either.values()], permutations, confidence, seed
        )


class _Profiles:
    """LoRAs of one base: artists by name, and cosines (N, artists) to the gallery of each."""

    def __init__(self, table: pa.Table):
        rows = [row for row in table.to_pylist() if row["scenario"] == WHOLE]
        rows.sort(key=lambda row: row["lora"])
        gallery = np.array([row["split"] == "gallery" for row in rows])
        artist = np.array([row["artist"] for row in rows], str)
        self.names = np.unique(artist[gallery])
        known = np.isin(artist, self.names)
        self.artists = np.searchsorted(self.names, artist[known])
        self.gallery = gallery[known]
        X = np.array([row["vector"] for row in rows], np.float64)[known]
        X /= np.linalg.norm(X, axis=1, keepdims=True).clip(SMALL)
        member = (self.artists[:, None] == np.arange(len(self.names))) & self.gallery[:, None]
        cosines = X @ (X[self.gallery].T @ member[self.gallery] / member.sum(0))
        # What is near to everybody says nothing: each column less its mean over the artists that it is not of.
        means = np.stack([cosines[self.artists == a].mean(0) for a in range(len(self.names))])
        np.fill_diagonal(means, np.nan)
        self.cosines = cosines - np.nanmean(means, 0)


def _retrieved(
    descriptor: str, sides: list[_Profiles], permutations: int, confidence: float, seed: int
) -> Iterator[dict[str, Any]]:
    names = sides[0].names
    asked = all(len(np.unique(side.artists[~side.gallery])) == len(names) for side in sides)
    if len(names) < LEAST or not np.array_equal(names, sides[1].names) or not asked:
        return
    same = np.arange(len(names))
    rng = np.random.Generator(np.random.PCG64(derive_seed("bases", "artists", seed)))
    orders = [rng.permutation(len(names)) for _ in range(permutations)]
    for metric, pairs in ((RETRIEVAL, ((0, 1), (1, 0))), (ALONE, ((0, 0), (1, 1)))):
        found = [_precision(sides[gallery], sides[query], same) for gallery, query in pairs]
        of_artists = np.mean(found, 0)
        null = np.array([
            np.mean([_precision(sides[gallery], sides[query], order).mean() for gallery, query in pairs])
            for order in orders
        ])  # fmt: skip
        low, high = intervals.mean(of_artists, same).interval(confidence)
        value = float(of_artists.mean())
        yield {
            "descriptor": descriptor, "level": LORAS, "metric": metric, "value": value, "low": low, "high": high,
            "null": float(null.mean()), "null_high": float(np.quantile(null, confidence)),
            "p": float((1 + (null >= value - SMALL).sum()) / (1 + len(null))),
        }  # fmt: skip


def _precision(gallery: _Profiles, query: _Profiles, order: np.ndarray) -> np.ndarray:
    """Mean average precision (artists,) of the queries of one side in the gallery of the other, where the other's
    artist `order[a]` is called a."""
    renamed = np.argsort(order)
    of_gallery = renamed[gallery.artists[gallery.gallery]]
    G, Q = gallery.cosines[gallery.gallery][:, order], query.cosines[~query.gallery]
    of_queries = query.artists[~query.gallery]
    similar = _correlations(Q, G, of_queries, of_gallery)
    # Ties do not occur between correlations of real profiles; where vectors are all alike, nobody is preferred.
    scatter = np.random.Generator(np.random.PCG64(0)).random(similar.shape)
    ranked = np.lexsort((scatter, -np.round(similar, 12)), axis=1)
    hits = np.take_along_axis(of_queries[:, None] == of_gallery[None], ranked, 1)
    precision = average_precision(hits.astype(float))
    return np.bincount(of_queries, precision) / np.bincount(of_queries)


def _correlations(Q: np.ndarray, G: np.ndarray, of_queries: np.ndarray, of_gallery: np.ndarray) -> np.ndarray:
    """Pearson's correlation (q, g) of profiles (q, A) and (g, A), without the places of the artists of either; zero
    where one of them does not vary over the others."""
    both = of_queries[:, None] == of_gallery[None]
    count = Q.shape[1] - 2.0 + both

    def left(products: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
        return products - own - np.where(both, 0.0, others)

    q, g = np.arange(len(Q)), np.arange(len(G))
    qa, gc = Q[q, of_queries][:, None], G[g, of_gallery][None]  # at the own artist
    qc, ga = Q[:, of_gallery], G[:, of_queries].T  # at the artist of the other
    sums_q, sums_g = left(Q.sum(1)[:, None], qa, qc), left(G.sum(1)[None], ga, gc)
    products = left(Q @ G.T, qa * ga, qc * gc) - sums_q * sums_g / count
    spread_q = left(np.square(Q).sum(1)[:, None], qa**2, qc**2) - sums_q**2 / count
    spread_g = left(np.square(G).sum(1)[None], ga**2, gc**2) - sums_g**2 / count
    least = SMALL * max(np.square(Q).max(initial=0), np.square(G).max(initial=0), SMALL)
    varied = (spread_q > least) & (spread_g > least)
    return np.where(varied, products / np.sqrt(np.where(varied, spread_q * spread_g, 1.0)), 0.0)
