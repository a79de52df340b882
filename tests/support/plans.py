"""Plans and configurations that tests of several rooms ask with."""

from pathlib import Path

import pyarrow as pa
import yaml

from lora_atlas import tables
from lora_atlas.config import check
from lora_atlas.schema import read as read_schema

ROOT = Path(__file__).parents[2]
SCHEMA = read_schema()


def plan(artists: int = 6, gallery: int = 4, queries: int = 2) -> pa.Table:
    """A plan of so many artists, each with LoRAs of the gallery and of queries, without genres or pictures."""
    rows = [
        {
            "lora": f"artist-{artist}/{number:02}",
            "artist": f"artist-{artist}",
            "genre": None,
            "split": "gallery" if number < gallery else "query",
            "seed": 0,
            "pictures": [],
            "overlap": 0.0,
        }
        for artist in range(artists)
        for number in range(gallery + queries)
    ]
    return tables.table("plan", rows)


def embedded_study(monkeypatch) -> dict:
    """config.yaml, checked, with the repository as the working directory."""
    monkeypatch.chdir(ROOT)
    return check(yaml.safe_load((ROOT / "config.yaml").read_text()), SCHEMA, ROOT)
