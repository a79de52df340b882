"""Partitions: how LoRAs are grouped, and how well two groupings agree.

ARI: Hubert & Arabie 1985. V-measure: Rosenberg & Hirschberg 2007. AMI: Vinh, Epps & Bailey 2010 (arithmetic mean). All
work on many pairs of groupings at once, since chance levels and intervals need hundreds of them.

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


@dataclass(frozen=True)
class Crossed:
    """m pairs of groupings, class by cluster: the sizes of classes (m, classes) and of clusters (m, clusters), and of
    every cell of their contingency tables that is not empty its pair `of` (c,), from the first to the last, and its
    `count` (c,). Cells are many more than LoRAs, and hardly one holds any."""

    classes: np.ndarray
    clusters: np.ndarray
    of: np.ndarray
    count: np.ndarray

    @classmethod
    def of_tables(cls, tables: np.ndarray) -> "Crossed":
        """Of a stack of contingency tables (m, classes, clusters) of counts."""
        cells = tables.reshape(len(tables), -1)
        of, cell = np.nonzero(cells)
        return cls(tables.sum(2), tables.sum(1), of, cells[of, cell])

    @classmethod
    def of_labels(
        cls, labels: np.ndarray, clusters: np.ndarray, classes: int, groups: int, kept: np.ndarray | None = None
    ) -> "Crossed":
        """Of rows of labels and of clusters (m, n) or (n,), numbers from 0; of those LoRAs that are `kept` (m, n)."""
        kept = np.ones((1, 1), bool) if kept is None else kept
        labels, clusters, kept = np.broadcast_arrays(labels, clusters, kept)
        shape, weights = kept.shape, kept.ravel().astype(float)
        cells = np.where(kept, labels * groups + clusters, classes * groups)  # the last: left out
        ranked = np.sort(cells, 1)
        first = np.concatenate([np.ones((shape[0], 1), bool), ranked[:, 1:] != ranked[:, :-1]], 1)
        of, at = np.nonzero(first)
        count = np.diff(np.append(of * shape[1] + at, ranked.size)).astype(float)
        there = ranked[of, at] < classes * groups

        def sizes(numbers: np.ndarray, many: int) -> np.ndarray:
            rows = numbers + np.arange(shape[0])[:, None] * many
            return np.bincount(rows.ravel(), weights, shape[0] * many).reshape(shape[0], many)

        return cls(sizes(labels, classes), sizes(clusters, groups), of[there], count[there])

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def items(self) -> np.ndarray:
        """LoRAs of each pair (m,)."""
        return self.classes.sum(1)

    def _added(self, each: np.ndarray) -> np.ndarray:
        return np.bincount(self.of, each, len(self))

    @cached_property
    def information(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entropies of classes and of clusters, and their mutual information (nats), each (m,)."""
        classes, clusters = _entropy(self.classes), _entropy(self.clusters)
        p = self.count / self.items[self.of]
        return classes, clusters, (classes + clusters + self._added(p * np.log(p))).clip(0)

    def adjusted_rand(self) -> np.ndarray:
        together = self._added(_pairs(self.count))
        classes, clusters = _pairs(self.classes).sum(1), _pairs(self.clusters).sum(1)
        expected = classes * clusters / _pairs(self.items).clip(1e-300)
        return _share(together - expected, (classes + clusters) / 2 - expected)

    def v_measure(self) -> np.ndarray:
        classes, clusters, mutual = self.information
        return _share(mutual, (classes + clusters) / 2)

    def adjusted_mutual_information(self, first: int | None = None) -> np.ndarray:
        """Of the `first` pairs only, if that is said: it is the dearest of all."""
        classes, clusters, mutual = (each[:first] for each in self.information)
        known: dict[tuple[bytes, bytes], float] = {}  # permuted labels all have the same margins
        expected = np.empty_like(mutual)
        for i, margins in enumerate(zip(np.sort(self.classes)[:first], np.sort(self.clusters)[:first], strict=True)):
            key = margins[0].tobytes(), margins[1].tobytes()
            if key not in known:
                known[key] = _expected_information(*margins)
            expected[i] = known[key]
        return _share(mutual - expected, (classes + clusters) / 2 - expected)

    def agreements(self, adjusted: int | None = None) -> dict[str, np.ndarray]:
        """All METRICS, (m,), AMI of the first `adjusted` pairs only."""
        return {
            "ARI": self.adjusted_rand(),
            "AMI": self.adjusted_mutual_information(adjusted),
            "V-measure": self.v_measure(),
        }


def _share(value: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Of the most that there can be (m,); one where there can be nothing."""
    return np.divide(value, most, out=np.ones_like(most), where=np.abs(most) > 1e-12)


def _pairs(n: np.ndarray) -> np.ndarray:
    return n * (n - 1) / 2


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropies (m,) of counts (m, cells), of which few are not zero."""
    cells = np.flatnonzero(counts)
    of, there = cells // counts.shape[1], counts.ravel()[cells]
    p = there / counts.sum(1)[of]
    return -np.bincount(of, p * np.log(p), len(counts))


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


METRICS: dict[str, Callable[[Crossed], np.ndarray]] = {
    "ARI": Crossed.adjusted_rand,
    "AMI": Crossed.adjusted_mutual_information,
    "V-measure": Crossed.v_measure,
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
