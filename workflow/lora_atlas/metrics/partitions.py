"""Partitions: how LoRAs are grouped, and how well two groupings agree.

ARI: Hubert & Arabie 1985. V-measure: Rosenberg & Hirschberg 2007. AMI: Vinh, Epps & Bailey 2010 (arithmetic mean). All
work on stacks of contingency tables, since chance levels and intervals need hundreds of them.

A LoRA that HDBSCAN calls noise is a group of its own: to throw it out of the score would reward a descriptor for what
it cannot place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import gammaln

SMALLEST = 3  # LoRAs that HDBSCAN takes for a group
MOST_GROUPS = 150  # that are looked for where their number is estimated
STARTS = 10**9  # multiplications of all starts of k-means together
LEAST_RESTARTS = 5  # whatever a start costs


def contingency(labels: np.ndarray, clusters: np.ndarray, classes: int, groups: int) -> np.ndarray:
    """Counts (…, classes, groups) of label rows (…, n) and cluster rows (…, n)."""
    labels, clusters = np.broadcast_arrays(labels, clusters)
    cells = labels * groups + clusters
    stack = cells.reshape(-1, cells.shape[-1]) + np.arange(cells[..., 0].size)[:, None] * classes * groups
    # Weighted, so that counts are floats at once: there are many more cells than LoRAs.
    counts = np.bincount(stack.ravel(), np.ones(stack.size), minlength=cells[..., 0].size * classes * groups)
    return counts.reshape(*labels.shape[:-1], classes, groups)


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
    """Entropies (...) of counts (..., cells), of which few are not zero."""
    rows = counts.reshape(-1, counts.shape[-1])
    cells = np.flatnonzero(rows)
    of, there = cells // rows.shape[1], rows.ravel()[cells]
    p = there / rows.sum(1)[of]
    return -np.bincount(of, p * np.log(p), len(rows)).reshape(counts.shape[:-1])


def _information(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropies of classes and clusters and their mutual information (nats), each of shape (...)."""
    classes, clusters = _entropy(tables.sum(-1)), _entropy(tables.sum(-2))
    joint = _entropy(tables.reshape(*tables.shape[:-2], -1))
    return classes, clusters, (classes + clusters - joint).clip(0)


def v_measure(tables: np.ndarray) -> np.ndarray:
    """V-measure (β = 1) of contingency tables (..., classes, clusters), shape (...)."""
    return _shared(*_information(tables))


def _shared(classes: np.ndarray, clusters: np.ndarray, mutual: np.ndarray) -> np.ndarray:
    mean = (classes + clusters) / 2
    return np.divide(mutual, mean, out=np.ones_like(mean), where=mean > 1e-12)


def adjusted_mutual_information(tables: np.ndarray) -> np.ndarray:
    """AMI of contingency tables (..., classes, clusters) of whole counts, shape (...)."""
    return _adjusted(tables, *_information(tables))


def _adjusted(tables: np.ndarray, classes: np.ndarray, clusters: np.ndarray, mutual: np.ndarray) -> np.ndarray:
    known: dict[tuple[bytes, bytes], float] = {}  # permuted labels all have the same margins
    by_margins = []
    rows = np.sort(tables.sum(-1)).reshape(-1, tables.shape[-2])
    columns = np.sort(tables.sum(-2)).reshape(-1, tables.shape[-1])
    for margins in zip(rows, columns, strict=True):
        key = margins[0].tobytes(), margins[1].tobytes()
        if key not in known:
            known[key] = _expected_information(*margins)
        by_margins.append(known[key])
    expected = np.array(by_margins).reshape(mutual.shape)
    top = (classes + clusters) / 2 - expected
    return np.divide(mutual - expected, top, out=np.ones_like(top), where=np.abs(top) > 1e-12)


def agreements(tables: np.ndarray, adjusted: int | None = None) -> dict[str, np.ndarray]:
    """All METRICS of a stack of contingency tables (n, classes, clusters), shape (n,), of entropies computed once. AMI,
    the dearest, is of the first `adjusted` tables only."""
    information = _information(tables)
    first = [each[:adjusted] for each in information]
    return {
        "ARI": adjusted_rand(tables),
        "AMI": _adjusted(tables[:adjusted], *first) if len(first[0]) else first[0],
        "V-measure": _shared(*information),
    }


def _expected_information(a: np.ndarray, b: np.ndarray) -> float:
    """Expected mutual information of random tables with margins a, b (Vinh et al. 2010, eq. 24a).

    Margins of one size have one term: there are far fewer sizes than groups.
    """
    n = a.sum()
    (a, many), (b, much) = (np.unique(x[x > 0].astype(float), return_counts=True) for x in (a, b))
    A, B = a[:, None, None], b[None, :, None]
    k = np.arange(1, int(min(a.max(), b.max())) + 1, dtype=float)[None, None]
    possible = (k >= np.maximum(1, A + B - n)) & (k <= np.minimum(A, B))
    safe = np.where(possible, k, 1)
    term = safe / n * np.log(n * safe / (A * B))
    rest = [np.where(possible, x, 0) for x in (A - safe, B - safe, n - A - B + safe)]
    log_p = gammaln(A + 1) + gammaln(B + 1) + gammaln(n - A + 1) + gammaln(n - B + 1)
    log_p = log_p - gammaln(n + 1) - gammaln(safe + 1) - sum(gammaln(x + 1) for x in rest)
    each = (term * np.exp(np.where(possible, log_p, -np.inf))).sum(2)
    return float(many @ each @ much)


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ARI": adjusted_rand,
    "AMI": adjusted_mutual_information,
    "V-measure": v_measure,
}


# --- groupings of vectors (n, k), told the number of groups: (n,) numbers from 0


@dataclass(frozen=True)
class Points:
    """Vectors `X` (n, k), with what groupings of them share: every distance is computed once."""

    X: np.ndarray

    @cached_property
    def distances(self) -> np.ndarray:
        """(n, n)."""
        from scipy.spatial.distance import pdist, squareform

        return squareform(pdist(self.X))

    @cached_property
    def squares(self) -> np.ndarray:
        return np.square(self.distances)

    @cached_property
    def tree(self) -> np.ndarray:
        """Ward's, as of scipy.cluster.hierarchy."""
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        return linkage(squareform(self.distances, checks=False), "ward")

    def cut(self, groups: int) -> np.ndarray:
        """Ward's partition into so many groups."""
        from scipy.cluster.hierarchy import fcluster

        return fcluster(self.tree, groups, "maxclust") - 1

    def spread_out(self, centred: np.ndarray, groups: int, random_state: Any) -> np.ndarray:
        """Greedy k-means++ (Arthur & Vassilvitskii 2007) from distances that are known: the first centres of k-means,
        of `centred` vectors of the same points. Trials and random numbers are those of scikit-learn, which computes
        the distances again for every centre."""
        n = len(self.X)
        chosen = [random_state.choice(n, p=np.full(n, 1 / n))]
        nearest = self.squares[chosen[0]]
        for _ in range(groups - 1):
            drawn = random_state.uniform(size=2 + int(np.log(groups))) * nearest.sum()
            tried = np.searchsorted(np.cumsum(nearest), drawn).clip(max=n - 1)
            left = np.minimum(nearest, self.squares[tried])
            best = left.sum(1).argmin()
            chosen.append(tried[best])
            nearest = left[best]
        return centred[chosen]


def _k_means(points: Points, groups: int, restarts: int, seed: int) -> np.ndarray:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Of vectors as wide as a collection is large, fewer restarts: a start costs n × groups × width.
    restarts = max(min(restarts, STARTS // (points.X.size * groups)), min(restarts, LEAST_RESTARTS))
    with warnings.catch_warnings():
        # A control may have fewer different points than there are groups; it then has fewer clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(groups, init=points.spread_out, n_init=restarts, random_state=seed % 2**32)
        return found.fit_predict(points.X)


def _ward(points: Points, groups: int, restarts: int, seed: int) -> np.ndarray:
    return points.cut(groups)


ALGORITHMS: dict[str, Callable[[Points, int, int, int], np.ndarray]] = {"k-means": _k_means, "Ward": _ward}


def hdbscan(X: np.ndarray) -> np.ndarray:
    """Groups that HDBSCAN finds by itself (n,), each noise point one of its own (Campello, Moulavi & Sander 2013)."""
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=SMALLEST, copy=True).fit_predict(X)
    noise = found < 0
    found[noise] = found.max() + 1 + np.arange(noise.sum())
    return np.unique(found, return_inverse=True)[1]


def estimated_groups(points: Points) -> int:
    """The number of groups, 2 to MOST_GROUPS and at most n/2, whose Ward partition has the widest mean silhouette
    (Rousseeuw 1987)."""
    most = max(min(len(points.X) // 2, MOST_GROUPS), 2)
    # Fewer groups are made of whole ones of more: their distances are added up, and not those of all points again.
    finest = points.cut(most)
    near, one = _added(points.distances, finest), np.unique(finest, return_index=True)[1]
    widths = []
    for k in range(2, most + 1):
        labels = points.cut(k)
        widths.append(_widths(_added(near, labels[one]), labels).mean())
    return 2 + int(np.argmax(widths))


def silhouette(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouette width of each row (n,) from distances (n, n), which are symmetric; 0 in groups of one, as in
    scikit-learn."""
    return _widths(_added(distances, labels), labels)


def _added(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Sums (groups, n) of the rows (m, n) of each group of `labels` (m,)."""
    sizes = np.bincount(labels)
    found = np.zeros((len(sizes), rows.shape[1]))
    order, first = np.argsort(labels, kind="stable"), (np.cumsum(sizes) - sizes)[sizes > 0]
    found[sizes > 0] = np.add.reduceat(rows[order], first)  # rows of a group lie together
    return found


def _widths(near: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouettes (n,) from summed distances to each group (groups, n)."""
    sizes = np.bincount(labels)
    if (sizes > 0).sum() < 2:
        return np.zeros(len(labels))
    near = near.T
    own = near[np.arange(len(labels)), labels] / (sizes[labels] - 1).clip(1)
    mean = near / sizes.clip(1)
    mean[np.arange(len(labels)), labels] = np.inf
    mean[:, sizes == 0] = np.inf
    other = mean.min(1)
    largest = np.maximum(own, other)
    width = np.divide(other - own, largest, out=np.zeros(len(labels)), where=largest > 0)
    return np.where(sizes[labels] > 1, width, 0.0)
