"""Near-duplicates: one painting, twice photographed, must not stand on both sides of a split.

Two pictures are near-duplicates when their perceptual hashes are near (64 bits of the low frequencies of the cosine
transform, Zauner 2010; a sieve that lets far more pass than is alike) and the structure of their middles correlates.
Decisions:

- Structure, not tone: band-passed and brought to one local contrast. Photographs of one fresco differ in colour, light
  and crop, and different prints of one series agree in all of these and in their frames. On real scans the plain
  correlation of grey versions confuses the two, and this one keeps them far apart (benchmarks/RESULTS.md).
- The correlation is the best over shifts of a few percent and over crops of up to an eighth, as they are and mirrored:
  who prepares pictures for training likes to flip them. Turned ones are not compared.
- Of near-duplicates of one artist the largest is used. Nothing is deleted: the plan passes the others over.
- A picture that stands under two artists is used for neither: whose it is cannot be told from here. That holds for
  equal bytes where nothing else is compared too, as for icons: whole families hold another's drawings.
- Likeness is not transitive, duplication is: what is linked through a third picture is one group.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from .. import tables
from .decode import decode

SIEVE = 22  # bits of 64; unrelated pictures differ in 32 ± 4
SIDE = 64  # pixels of what is correlated
SHIFT = 6  # of these pixels, in each direction
MARGIN = 8  # of these pixels: frames, borders and labels are not compared
CROPS = ((1.0, 1.0), (1.06, 1.0), (1.0, 1.06), (1.06, 1.06), (1.12, 1.12))  # (x, y): the centred part 1 / x by 1 / y


@dataclass(frozen=True)
class Likeness:
    """What is compared of one picture: `bits` (64,) bool, those of its mirror image, and `structure` (crops, SIDE,
    SIDE) float32, of norm one."""

    picture: str
    artist: str
    area: int
    bits: np.ndarray
    mirrored: np.ndarray
    structure: np.ndarray


def find(paths: Sequence[str | Path], threshold: float | None) -> list[dict[str, Any]]:
    """Rows of the table "duplicates" for tables "pictures": the kept pictures that are not to be used. Without a
    threshold those alone that are the same under two artists."""
    if threshold is None:
        return same(row for path in paths for row in tables.read(path, "pictures").select(_NAMES).to_pylist())
    return judge([likeness(row) for path in paths for row in _kept(path)], threshold)


_NAMES = ["picture", "artist", "status"]


def same(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table "duplicates" for rows of tables "pictures": kept pictures that several artists have."""
    whose: dict[str, set[str]] = {}
    for row in rows:
        if row["status"] == "kept":
            whose.setdefault(row["picture"], set()).add(row["artist"])
    return [
        {
            "picture": picture, "artist": artist, "other": picture,
            "other_artist": next(other for other in sorted(artists) if other != artist),
            "distance": 0, "correlation": 1.0, "reason": _of_several(artists),
        }
        for artist, picture, artists in sorted(
            (artist, picture, artists) for picture, artists in whose.items() if len(artists) > 1 for artist in artists
        )
    ]  # fmt: skip


def _of_several(artists: Iterable[str]) -> str:
    return f"near-duplicate under {' and '.join(sorted(artists))}: whose it is cannot be told"


def _kept(path: str | Path) -> Iterable[dict[str, Any]]:
    columns = ["picture", "artist", "image", "width", "height", "status"]
    for part in tables.read(path, "pictures").select(columns).to_batches(max_chunksize=16):
        yield from (row for row in part.to_pylist() if row["status"] == "kept")


def likeness(row: dict[str, Any]) -> Likeness:
    """What is compared of one kept row of a table "pictures"."""
    image = decode(row["image"]["bytes"], min_side=1).convert("L")
    found = np.stack([structure(image, *crop) for crop in CROPS])
    hashes = perceptual_hash(image), perceptual_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return Likeness(row["picture"], row["artist"], row["width"] * row["height"], *hashes, found)


def structure(image: Image.Image, x: float = 1.0, y: float = 1.0) -> np.ndarray:
    """Edges and forms of the middle of a grey picture, (SIDE, SIDE) float32 of norm one; zero where there are none."""
    width, height = image.size
    dx, dy = (width - width / x) / 2, (height - height / y) / 2
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, box=(dx, dy, width - dx, height - dy))
    grey = np.asarray(small, dtype=np.float32)
    band = gaussian_filter(grey, 1) - gaussian_filter(grey, 5)
    band /= np.sqrt(gaussian_filter(band * band, 8)) + 2  # two grey levels: noise of a plain sky is not form
    window = np.zeros((SIDE, SIDE), dtype=np.float32)
    window[MARGIN:-MARGIN, MARGIN:-MARGIN] = 1
    window = gaussian_filter(window, 2)
    band = (band - (band * window).sum() / window.sum()) * window
    norm = float(np.linalg.norm(band))
    return band / norm if norm > 1e-3 else np.zeros_like(band)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """64 bits (bool) of a grey picture: which of its 8 × 8 lowest frequencies lie above their median."""
    small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    low = dctn(small, norm="ortho")[:8, :8].ravel()
    low[0] = np.median(low[1:])  # brightness says nothing
    return low > np.median(low[1:])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The best correlation of two stacks of structures (crops, SIDE, SIDE) over shifts of up to SHIFT pixels.

    The whole of one is held against every crop of the other, and the other way round.
    """
    A, B = np.fft.rfft2(a), np.fft.rfft2(b)
    pairs = np.concatenate([A[:1] * np.conj(B), A[1:] * np.conj(B[:1])])
    shifted = np.fft.irfft2(pairs, s=(SIDE, SIDE))
    near = np.r_[0 : SHIFT + 1, SIDE - SHIFT : SIDE]
    return float(np.clip(shifted[:, near][:, :, near].max(), 0, 1))


def judge(found: Sequence[Likeness], threshold: float) -> list[dict[str, Any]]:
    """Rows of the table "duplicates", sorted; the same for the same pictures in any order."""
    found = sorted(found, key=lambda each: (each.picture, each.artist))
    links: dict[tuple[int, int], tuple[int, float]] = {}
    bits = np.array([each.bits for each in found], dtype=np.int16).reshape(len(found), 64)
    for i, one in enumerate(found):
        for mirrored, asked in ((False, one.bits), (True, one.mirrored)):
            distances = np.abs(bits[i + 1 :] - asked).sum(1)
            for j in (np.flatnonzero(distances <= SIEVE) + i + 1).tolist():
                twin = found[j]
                held = twin.structure[..., ::-1] if mirrored else twin.structure
                alike = 1.0 if one.picture == twin.picture else correlation(one.structure, held)
                if alike > max(threshold, links.get((i, j), (0, 0.0))[1]):
                    links[i, j] = int(distances[j - i - 1]), alike
    rows = []
    for group in _groups(len(found), links):
        artists = {found[i].artist for i in group}
        best = max(group, key=lambda i: (found[i].area, found[i].picture))
        for i in group:
            if len(artists) == 1 and i == best:
                continue
            near = [(link, pair[0] + pair[1] - i) for pair, link in links.items() if i in pair]
            (distance, alike), other = max(near, key=lambda each: (each[0][1], -each[1]))
            if len(artists) == 1:
                other = best
                distance, alike = links.get((min(i, best), max(i, best)), (distance, alike))
                reason = f"near-duplicate of {found[best].picture[:12]}, which is larger or equal"
            else:
                reason = _of_several(artists)
            rows.append(
                {
                    "picture": found[i].picture,
                    "artist": found[i].artist,
                    "other": found[other].picture,
                    "other_artist": found[other].artist,
                    "distance": distance,
                    "correlation": round(alike, 6),
                    "reason": reason,
                }
            )
    return sorted(rows, key=lambda row: (row["artist"], row["picture"]))


def _groups(count: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected components of more than one."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    pairs = np.array(list(links), dtype=int).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1] if count else np.zeros(0, int)
    order = np.argsort(labels, kind="stable")
    cuts = [0, *(np.flatnonzero(np.diff(labels[order])) + 1).tolist(), count]
    return [order[a:b].tolist() for a, b in pairwise(cuts) if b - a > 1]
