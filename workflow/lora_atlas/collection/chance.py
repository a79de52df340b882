"""How near is nearer than chance, where the nearest of all was looked for?

The nearest of N unrelated LoRAs is near by having been chosen. So a cosine is held against what the collection's own
LoRAs reach that way: U_h, the largest cosine of each LoRA h to any that it is not related to. This is the single step
of Westfall & Young (1993, §2.3), with the collection in place of permutations:

    p = (2 + number of h with U_h ≥ cosine) / (1 + number of h)

Of a LoRA that is one of the collection, U_h are those without it and its family: the same as if it were asked about
from outside, and no pair is held against itself.

2, since a cosine belongs to two LoRAs: of n(n+1)/2 unrelated pairs of n + 1 LoRAs, the largest is one of the n pairs
of the new one with probability 2/(n+1).

Related are LoRAs of one family: those that copies and checkpoints link, nearer to one than to what is far in the
collection; each family counts as one LoRA. Related are, too, LoRAs of one artist, if these are nearer to each other
than nine of ten other pairs: many folders have a name that says nothing. All others count as unrelated, and where some
of them are related p is larger than it need be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LEVEL = 0.05  # p up to which a neighbour is nearer than chance
FEWEST = 4  # families: of fewer nobody knows what chance would do
MANY = 20  # families of which p tells; of fewer p cannot be small
ROUNDING = 1e-9  # of cosines: what is nearer than this is equally near
FAR = 0.1  # the share of all pairs that are far
OTHERS = 0.9  # the share of other pairs that an artist's are nearer than


@dataclass(frozen=True)
class Chance:
    """What chance does among N LoRAs of these cosines (N, N), with their artists where these are known."""

    cosine: np.ndarray
    artists: Sequence[str | None]

    @cached_property
    def cut(self) -> float:
        """The cosine above which two LoRAs are of one family: half way from what is far to one."""
        off = _off_diagonal(self.cosine)
        return 0.5 + 0.5 * float(np.quantile(off, FAR)) if len(off) else 0.5

    @cached_property
    def families(self) -> np.ndarray:
        """The family of each LoRA (N,), numbered from 0."""
        from scipy.sparse.csgraph import connected_components

        found: np.ndarray = connected_components(self.cosine >= self.cut, directed=False)[1]
        return found

    @cached_property
    def _reached(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U (N,), the family by which each LoRA reaches it, and what it reaches without that family."""
        unrelated = (self.families[:, None] != self.families) & ~self._same_artist()
        near = np.where(unrelated, self.cosine, -np.inf)
        if not len(near):
            return np.empty(0), np.empty(0, int), np.empty(0)
        best, by = near.max(1), self.families[near.argmax(1)]
        near[by[:, None] == self.families] = -np.inf
        return best, by, near.max(1)

    def _null(self, lora: int | None) -> tuple[np.ndarray, np.ndarray]:
        """U (N,) and weights: those of a family's LoRAs are one together; of those that nothing is unrelated to, and of
        the family of `lora`, none."""
        best, by, second = self._reached
        own = np.full(len(best), False)
        if lora is not None:
            best = np.where(by == self.families[lora], second, best)
            own = self.families == self.families[lora]
        sizes = np.bincount(self.families)[self.families]
        return best, np.where(np.isfinite(best) & ~own, 1 / sizes, 0.0)

    def _same_artist(self) -> np.ndarray:
        """(N, N), of artists whose LoRAs are nearer each other than others are."""
        names = np.array([f"\0{i}" if artist is None else artist for i, artist in enumerate(self.artists)])
        same = names[:, None] == names
        others = self.cosine[~same]
        if not len(others):
            return np.zeros_like(same)
        limit = np.quantile(others, OTHERS)
        for name in np.unique(names):
            own = np.flatnonzero(names == name)
            pairs = _off_diagonal(self.cosine[np.ix_(own, own)])
            if not len(pairs) or np.median(pairs) <= limit:
                same[np.ix_(own, own)] = False
        return same

    def count(self, lora: int | None = None) -> float:
        """How many unrelated families there are to learn of; `lora`: without its own."""
        return float(self._null(lora)[1].sum())

    def p(self, cosine: np.ndarray, lora: int | None = None) -> np.ndarray:
        """p (m,) of cosines (m,) of a LoRA that is looked for among these; `lora`: of one of them."""
        best, weights = self._null(lora)
        order = np.argsort(best)
        above = np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
        reached = above[np.searchsorted(best[order], np.asarray(cosine) - ROUNDING, side="left")]
        found: np.ndarray = np.minimum((2 + reached) / (1 + weights.sum()), 1.0)
        return found

    def limit(self, lora: int | None = None) -> float | None:
        """The cosine up to which a LoRA's nearest is no nearer than chance, of a new one or of one of them: p is above
        LEVEL, or above the smallest that there is. Of fewer than MANY families: twice what any two unrelated ones
        reach, and of fewer than six more, which noise does for 10 of 100 new LoRAs at four families and hardly ever at
        twelve. Of fewer than FEWEST None."""
        best, weights = self._null(lora)
        n = float(weights.sum())
        if n < FEWEST:
            return None
        largest = float(best[weights > 0].max())
        if n < MANY:
            return min(max(max(2.0, 12 / n) * largest, 0.0), max(self.cut, largest))
        order = np.argsort(-best, kind="stable")
        beyond = np.cumsum(weights[order]) > max(LEVEL * (n + 1) - 2, 0.0) + 1e-9
        return float(best[order][np.argmax(beyond)])

    def evidence(self, cosine: np.ndarray, lora: int | None = None) -> np.ndarray:
        """How much nearer than chance (m,) each cosine (m,) of a LoRA is; nothing where it is not.

        Where nobody knows what chance would do, what would make them one family counts.
        """
        known = self.limit(lora)
        limit = self.cut if known is None else min(known, self.cut)
        return np.where(cosine > limit + ROUNDING, cosine - limit, 0.0)


def _off_diagonal(K: np.ndarray) -> np.ndarray:
    return K[~np.eye(len(K), dtype=bool)]
