"""Embeddings made by hand."""

import numpy as np

from lora_atlas.tables import KNOWN


def entry(lora: str, split: str, vector, genre: str | None = None, fold: int = 0, **changes) -> dict:
    """A row of an embeddings table; the artist is what stands before the slash."""
    row = {"scenario": KNOWN, "calibration": "none", "fold": fold, "lora": lora, "artist": lora.split("/")[0]}
    return row | {"genre": genre, "split": split, "vector": np.asarray(vector, np.float32)} | changes


def noisy(artists: int, gallery: int, queries: int, noise: float, seed: int = 0, **changes) -> list[dict]:
    """LoRAs around their artists' centres; two artists a genre."""
    rng = np.random.default_rng(seed)
    rows = []
    for artist, centre in enumerate(rng.normal(size=(artists, 4))):
        for number in range(gallery + queries):
            split = "gallery" if number < gallery else "query"
            vector = centre + noise * rng.normal(size=4)
            rows.append(entry(f"artist-{artist:02}/{number:02}", split, vector, f"genre-{artist // 2}", **changes))
    return rows
