"""Drift: how much smaller the scores of unseen LoRAs are than those that a basis was fitted on, component by component.

Gallery and query LoRAs are of the same artists, so without drift their scores would spread alike: the ratio of root
mean squares is one. Where a basis has been fitted on the gallery, its scores carry their own noise and the ratio falls
below one (Lee, Zou & Wright 2010); a calibration is to bring it back. Beside it stand the ratio that leaving gallery
LoRAs out measures, and its closed form, which needs eigenvalues alone (weights/embed.py).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from ..tables import KNOWN, metadata
from . import intervals
from .retrieval import spaces


def drift(embeddings: pa.Table, descriptor: str, *, bootstrap: int, level: float, seed: int) -> list[dict[str, Any]]:
    """Rows of the table "drift" for one descriptor: every calibration × component, with intervals over artists.

    A component on which the gallery has no spread has no ratio (null).
    """
    described = metadata(embeddings)
    found = []
    for scenario, calibration, space in spaces(embeddings):
        if scenario != KNOWN:
            continue
        names, artists = np.unique(space.columns["artist"].astype(str), return_inverse=True)
        weights = intervals.draws(len(names), bootstrap, seed)
        squares = np.square(space.vectors).T  # (k, n)
        sides = [space.columns["split"] == side for side in ("query", "gallery")]
        values = [squares[:, side].mean(1) for side in sides]
        spread = [intervals.resampled(squares[:, side], artists[side], weights) for side in sides]
        for i in range(len(squares)):
            value = low = high = None
            if values[1][i] > 0 and len(squares[i, sides[0]]):
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratios = np.sqrt(spread[0][i] / spread[1][i])
                value, low, high = intervals.percentiles(np.sqrt(values[0][i] / values[1][i]), ratios, level)
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
