"""Drift: how much smaller the scores of unseen LoRAs are than those that a basis was fitted on, component by component.

Gallery and query LoRAs are of the same artists, so without drift their scores would spread alike: the ratio of root
mean squares is one. Where a basis has been fitted on the gallery, its scores carry their own noise and the ratio falls
below one (Lee, Zou & Wright 2010); a calibration is to bring it back. Beside it stand the ratio that leaving gallery
LoRAs out measures, and its closed form, which needs eigenvalues alone (embeddings/components.py).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from ..tables import KNOWN, metadata
from . import intervals
from .retrieval import spaces


def drift(embeddings: pa.Table, descriptor: str, *, confidence: float) -> list[dict[str, Any]]:
    """Rows of the table "drift" for one descriptor: every calibration × component, with intervals over artists, made on
    the logarithm of the ratio.

    A component on which the gallery has no spread has no ratio (null).
    """
    described = metadata(embeddings)
    found = []
    for scenario, calibration, space in spaces(embeddings):
        if scenario != KNOWN:
            continue
        names, artists = np.unique(space.columns["artist"].astype(str), return_inverse=True)
        squares = np.square(space.vectors).T  # (k, n)
        sides = [space.columns["split"] == side for side in ("query", "gallery")]
        rows = zip(*(_sums(squares[:, side], artists[side], len(names)) for side in sides), strict=True)
        for i, (query, gallery) in enumerate(rows):
            value = low = high = None
            if gallery.sum() > 0 and sides[0].any():
                per = sides[1].sum() / sides[0].sum()
                value = float(np.sqrt(query.sum() / gallery.sum() * per))
                queries, known = (np.bincount(artists[s], minlength=len(names)) for s in sides)
                low, high = _interval(query, gallery, queries, known, confidence)
            found.append(
                {
                    "descriptor": descriptor,
                    "calibration": calibration,
                    "component": i + 1,
                    "explained": described["explained"][i],
                    "value": value,
                    "low": low,
                    "high": high,
                    "held_out": described["held_out_ratio"][i] if calibration == "none" else None,
                    "predicted": described["held_out_ratio_predicted"][i] if calibration == "none" else None,
                }
            )
    return found


def _sums(squares: np.ndarray, artists: np.ndarray, count: int) -> np.ndarray:
    """Sums (k, artists) of squares (k, n)."""
    return np.stack([np.bincount(artists, row, count) for row in squares])


def _interval(
    query: np.ndarray, gallery: np.ndarray, queries: np.ndarray, known: np.ndarray, confidence: float
) -> tuple[float | None, float | None]:
    """The interval of the ratio, from sums of squares and counts of each artist (artists,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (query.sum() - query) / (queries.sum() - queries)
        rest = (gallery.sum() - gallery) / (known.sum() - known)
        without = np.log(left / rest) / 2
    if len(without) < 2 or not np.isfinite(without).all():
        return None, None
    whole = np.log(query.sum() / queries.sum() / (gallery.sum() / known.sum())) / 2
    low, high = np.exp(intervals.jackknife(whole, without).interval(confidence))
    return float(low), float(high)
