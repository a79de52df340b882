"""Clustering: does a descriptor, told nothing, fall into artists and into genres?

Clusters are found once, on all LoRAs together (no LoRA is unseen, so there is no drift to correct), with the true
number of groups. Intervals are over artists, not LoRAs: LoRAs of one artist are no independent witnesses. Means over
LoRAs (silhouette, 1-NN) have a percentile bootstrap. Scores of pairs (ARI, AMI, V-measure) have a delete-one-artist
jackknife with a t quantile (Efron & Stein 1981): a bootstrap draws an artist twice, the copies of a LoRA always fall
together, and every resampling is lifted above the score that it should surround.

Chance is the mean over random permutations: of the LoRAs' artists, and of the artists' genres, since a genre belongs to
an artist. For the same reason an artist's own LoRAs are no neighbours at genre level.

ARI: Hubert & Arabie 1985. V-measure: Rosenberg & Hirschberg 2007. AMI: Vinh, Epps & Bailey 2010 (arithmetic mean).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import gammaln

from ..seeds import derive_seed
from ..tables import TOGETHER

AMI_PERMUTATIONS = 100  # the expected mutual information is a sum over cells and counts: a hundred suffice


def adjusted_rand(tables: np.ndarray) -> np.ndarray:
    """ARI of contingency tables (..., classes, clusters) of counts, shape (...)."""

    def pairs(n: np.ndarray) -> np.ndarray:
        return n * (n - 1) / 2

    together = pairs(tables).sum((-2, -1))
    classes, clusters = pairs(tables.sum(-1)).sum(-1), pairs(tables.sum(-2)).sum(-1)
    expected = classes * clusters / pairs(tables.sum((-2, -1))).clip(1e-300)
    top = (classes + clusters) / 2 - expected
    return np.divide(together - expected, top, out=np.ones_like(top), where=np.abs(top) > 1e-12)


def _entropy(counts: np.ndarray) -> np.ndarray:
    p = counts / counts.sum(-1, keepdims=True)
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def _information(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropies of classes and clusters and their mutual information (nats), each of shape (...)."""
    classes, clusters = _entropy(tables.sum(-1)), _entropy(tables.sum(-2))
    joint = _entropy(tables.reshape(*tables.shape[:-2], -1))
    return classes, clusters, (classes + clusters - joint).clip(0)


def v_measure(tables: np.ndarray) -> np.ndarray:
    """V-measure (β = 1) of contingency tables (..., classes, clusters), shape (...)."""
    classes, clusters, mutual = _information(tables)
    mean = (classes + clusters) / 2
    return np.divide(mutual, mean, out=np.ones_like(mean), where=mean > 1e-12)


def adjusted_mutual_information(tables: np.ndarray) -> np.ndarray:
    """AMI of contingency tables (..., classes, clusters) of whole counts, shape (...)."""
    classes, clusters, mutual = _information(tables)
    flat = tables.reshape(-1, *tables.shape[-2:])
    expected = np.array([_expected_information(t.sum(1), t.sum(0)) for t in flat]).reshape(mutual.shape)
    top = (classes + clusters) / 2 - expected
    return np.divide(mutual - expected, top, out=np.ones_like(top), where=np.abs(top) > 1e-12)


def _expected_information(a: np.ndarray, b: np.ndarray) -> float:
    """Expected mutual information of random tables with margins a, b (Vinh et al. 2010, eq. 24a)."""
    a, b = a[a > 0].astype(float), b[b > 0].astype(float)
    n = a.sum()
    A, B = a[:, None, None], b[None, :, None]
    k = np.arange(1, int(min(a.max(), b.max())) + 1, dtype=float)[None, None]
    possible = (k >= np.maximum(1, A + B - n)) & (k <= np.minimum(A, B))
    safe = np.where(possible, k, 1)
    term = safe / n * np.log(n * safe / (A * B))
    rest = [np.where(possible, x, 0) for x in (A - safe, B - safe, n - A - B + safe)]
    log_p = gammaln(A + 1) + gammaln(B + 1) + gammaln(n - A + 1) + gammaln(n - B + 1)
    log_p = log_p - gammaln(n + 1) - gammaln(safe + 1) - sum(gammaln(x + 1) for x in rest)
    return float((term * np.exp(np.where(possible, log_p, -np.inf))).sum())


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ARI": adjusted_rand,
    "AMI": adjusted_mutual_information,
    "V-measure": v_measure,
}


def _k_means(X: np.ndarray, groups: int, restarts: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(groups, n_init=restarts, random_state=seed % 2**32).fit_predict(X)


def _ward(X: np.ndarray, groups: int, restarts: int, seed: int) -> np.ndarray:
    from scipy.cluster.hierarchy import fcluster, linkage

    return fcluster(linkage(X, "ward"), groups, "maxclust") - 1


ALGORITHMS: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {"k-means": _k_means, "Ward": _ward}


def clustering(
    embeddings: pa.Table,
    descriptor: str,
    *,
    bootstrap: int,
    level: float,
    restarts: int,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the table "clustering" for one descriptor's embeddings table.

    Levels: artist, and genre where every LoRA has one and there are several. Algorithm "labels" holds what needs no
    clusters: the silhouette of the true groups, and leave-one-out nearest-neighbour accuracy ("1-NN").
    Raises ValueError where the table has no rows of the scenario.
    """
    rows = [row for row in embeddings.to_pylist() if row["scenario"] == TOGETHER]
    if not rows:
        raise ValueError(f"{descriptor}: no embeddings of scenario {TOGETHER!r}")
    X = np.array([row["vector"] for row in rows], np.float64)
    artists = np.unique([row["artist"] for row in rows], return_inverse=True)[1]
    draws = _draws(artists.max() + 1, bootstrap, derive_seed("clustering", "bootstrap", seed))
    found = []
    for name in ("artist", "genre"):
        values = [row[name] for row in rows]
        if None in values or not 1 < len(set(values)) < len(rows):
            continue
        labels = np.unique(values, return_inverse=True)[1]
        rng = np.random.Generator(np.random.PCG64(derive_seed("clustering", "permutations", seed, name)))
        if name == "genre":  # genres belong to artists: it is artists that are dealt other genres
            of_artist = labels[np.unique(artists, return_index=True)[1]]
            shuffled = np.stack([rng.permutation(of_artist)[artists] for _ in range(permutations)])
        else:
            shuffled = np.stack([rng.permutation(labels) for _ in range(permutations)])
        for algorithm, cluster in ALGORITHMS.items():
            clusters = cluster(X, labels.max() + 1, restarts, derive_seed("clustering", algorithm, seed))
            chance = _contingency(shuffled, np.broadcast_to(clusters, shuffled.shape))
            # (artists, classes, clusters): an artist drawn twice counts twice.
            parts = np.stack(
                [
                    _contingency(labels[artists == a], clusters[artists == a], labels, clusters)
                    for a in range(artists.max() + 1)
                ]
            )
            for metric, function in METRICS.items():
                under = chance[:AMI_PERMUTATIONS] if metric == "AMI" else chance
                found.append(
                    _row(
                        descriptor,
                        name,
                        algorithm,
                        metric,
                        *_jackknife(function, parts, level),
                        function(under).mean(),
                    )
                )
            widths = _silhouette(X, clusters)
            found.append(_row(descriptor, name, algorithm, "silhouette", *_mean(widths, artists, draws, level), None))
        found.append(
            _row(descriptor, name, "labels", "silhouette", *_mean(_silhouette(X, labels), artists, draws, level),
                 np.mean([_silhouette(X, s).mean() for s in shuffled[:20]]))
        )  # fmt: skip
        nearest = _nearest(X, artists if name == "genre" else np.arange(len(X)))  # (n, n), rows sum to one
        hit = (nearest * (labels == labels[:, None])).sum(1)
        luck = np.mean([(nearest * (s == s[:, None])).sum(1).mean() for s in shuffled])
        found.append(_row(descriptor, name, "labels", "1-NN", *_mean(hit, artists, draws, level), luck))
    return found


def _draws(artists: int, bootstrap: int, seed: int) -> np.ndarray:
    """How often each artist is in each resampling (bootstrap, artists)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.multinomial(artists, np.full(artists, 1 / artists), size=bootstrap).astype(float)


def _contingency(labels: np.ndarray, clusters: np.ndarray, of: np.ndarray | None = None, by: np.ndarray | None = None):
    """Counts (..., classes, clusters) of label rows (..., n); `of`, `by`: arrays that fix the number of each."""
    classes = (labels if of is None else of).max() + 1
    groups = (clusters if by is None else by).max() + 1
    flat, other = np.atleast_2d(labels), np.atleast_2d(clusters)
    counts = np.stack(
        [np.bincount(r * groups + c, minlength=classes * groups) for r, c in zip(flat, other, strict=True)]
    )
    return counts.reshape(*labels.shape[:-1], classes, groups).astype(float)


def _silhouette(X: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouette width of each row (n,) (Rousseeuw 1987); 0 in groups of one, as in scikit-learn."""
    from scipy.spatial.distance import cdist

    sizes = np.bincount(labels)
    if (sizes > 0).sum() < 2:
        return np.zeros(len(X))
    near = cdist(X, X) @ np.eye(len(sizes))[labels]  # summed distances to each group
    own = near[np.arange(len(X)), labels] / (sizes[labels] - 1).clip(1)
    mean = near / sizes.clip(1)
    mean[np.arange(len(X)), labels] = np.inf
    mean[:, sizes == 0] = np.inf
    other = mean.min(1)
    width = np.divide(other - own, np.maximum(own, other), out=np.zeros(len(X)), where=np.maximum(own, other) > 0)
    return np.where(sizes[labels] > 1, width, 0.0)


def _nearest(X: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Each row's nearest rows (n, n), ties sharing one; rows with the same number in `out` are no neighbours."""
    from scipy.spatial.distance import cdist

    distance = cdist(X, X)
    distance[out == out[:, None]] = np.inf
    best = distance == distance.min(1, keepdims=True)
    return best / best.sum(1, keepdims=True)


def _jackknife(
    function: Callable[[np.ndarray], np.ndarray], parts: np.ndarray, level: float
) -> tuple[float, float, float]:
    """A score of the artists' contingency tables (artists, classes, clusters), and its delete-one-artist interval.

    A bootstrap would draw artists twice: copies of a LoRA are always together, and lift every resampling above chance.
    """
    from scipy.stats import t

    value, n = function(parts.sum(0)[None])[0], len(parts)
    without = function(parts.sum(0) - parts)
    width = t.ppf((1 + level) / 2, n - 1) * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return value, value - width, min(value + width, 1.0)


def _mean(values: np.ndarray, artists: np.ndarray, draws: np.ndarray, level: float) -> tuple[float, float, float]:
    """The mean over LoRAs, and that of every resampling of artists."""
    sums, sizes = np.bincount(artists, values), np.bincount(artists)
    low, high = np.quantile((draws @ sums) / (draws @ sizes), [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), low, high


def _row(
    descriptor: str, level_name: str, algorithm: str, metric: str, value: float, low: float, high: float,
    chance: float | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "descriptor": descriptor,
        "level": level_name,
        "algorithm": algorithm,
        "metric": metric,
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "chance": None if chance is None else float(chance),
    }
