"""Small studies whose page is written from tables of the true schema, and what such a page holds."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_atlas import tables
from lora_atlas.atlas import trained
from lora_atlas.descriptors import CONTROL, GENERATED, TRAINING, WEIGHTS, Descriptor, kinds, stored
from lora_atlas.metrics import retrieval
from lora_atlas.sections import Pictures
from lora_atlas.tables import WHOLE
from lora_atlas.views import View

VIEW = View("whole", "none", "cosine")
DESCRIBED = [
    Descriptor(WEIGHTS, "delta", "plain", "unit"),
    Descriptor(WEIGHTS, "factors", "plain", "unit"),
    Descriptor(TRAINING, extractor="clip", gallery="training", query="training"),
    Descriptor(
        GENERATED, extractor="clip", gallery="s8_g3", query="s8_g3", setting="8 steps, guidance 3", passes=8, pictures=2
    ),
    Descriptor(CONTROL, control="norm"),
]
NO_TITLES = Pictures(
    "synthetic", None, None, 2, 1, False, None, None, None, None, None, None, None, None, "", False
)  # fmt: skip


def painted(seed: int, side: int = 64) -> bytes:
    """A picture as bytes of a PNG."""
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def study(folder: Path, artists: dict[str, str | None], each: int = 4, *, name: str = "mine", title: str = "") -> Path:
    """Write the page of a study of these artists (name → genre), each with so many LoRAs of which the last is a query;
    its tables lie in the folder beside it."""
    rng = np.random.default_rng(0)
    plan, pictures, generated = [], {}, []
    for a, (artist, genre) in enumerate(artists.items()):
        common = {"artist": artist, "genre": genre, "licence": None, "subject": None, "reason": None, "status": "kept"}
        common |= {"width": 64, "height": 64}
        pictures[a] = [
            common
            | {"picture": f"{a:032}{n:032}", "source": title, "image": {"bytes": painted(100 * a + n), "path": title}}
            for n in range(6)
        ]
        for n in range(each):
            lora = f"{artist}/{n:02}"
            plan.append(
                {"lora": lora, "artist": artist, "genre": genre, "split": "query" if n == each - 1 else "gallery",
                 "seed": 0, "pictures": [row["picture"] for row in pictures[a][n % 3 : n % 3 + 3]], "overlap": 0.0}
            )  # fmt: skip
            generated += [
                {"lora": lora, "prompt": title or "a boat", "seed": i,
                 "image": {"bytes": painted(9000 + 10 * len(plan) + i), "path": None}}
                for i in range(2)
            ]  # fmt: skip
    tables.write(folder / "plan.parquet", "plan", plan)
    tables.write(folder / "generated.parquet", "generated", generated)
    for a, rows in pictures.items():
        tables.write(folder / f"pictures_{a}.parquet", "pictures", rows)
    found: dict[str, list[dict[str, Any]]] = {"retrieval": [], "queries": [], "clustering": []}
    for number, described in enumerate(DESCRIBED):
        rows = []
        for a in range(len(artists)):
            centre = rng.normal(size=12)
            for row in plan[a * each : (a + 1) * each]:
                vector = (centre + (0.3 + 0.4 * number) * rng.normal(size=12)).astype(np.float32)
                rows.append(
                    {key: row[key] for key in ("lora", "artist", "genre", "split")}
                    | {"scenario": WHOLE, "calibration": "none", "fold": 0, "vector": vector}
                )
        tables.write(folder / f"{described.name}.parquet", "embeddings", rows)
        asked = list(retrieval.ask(tables.table("embeddings", rows), described.name, seed=0))
        found["retrieval"] += retrieval.rows(asked, described.name, confidence=0.95)
        found["queries"] += retrieval.queries(asked, described.name)
        found["clustering"].append(
            {"scenario": WHOLE, "descriptor": described.name, "level": "artist", "algorithm": "Ward", "metric": "ARI",
             "value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.0}
        )  # fmt: skip
    told = {"kinds": kinds(DESCRIBED), "view": VIEW.stored(), "descriptors": stored(DESCRIBED)}
    for table, rows in found.items():
        tables.write(folder / f"{table}.parquet", table, rows, told)
    cost = {"stage": "train", "item": "a", "count": len(plan), "seconds": 60.0, "device": "cpu"}
    tables.write(folder / "cost.parquet", "cost", [cost])
    trained.write(
        folder / "atlas.html",
        trained.Told(name, {"base": "tiny", "rank": "4"}, {"FINDINGS.md": "what held"}, "8 steps, guidance 3"),
        {table: folder / f"{table}.parquet" for table in ("plan", "cost", *found)},
        pictures=[folder / f"pictures_{a}.parquet" for a in pictures],
        generated=[folder / "generated.parquet"],
        embeddings={each.name: folder / f"{each.name}.parquet" for each in DESCRIBED},
        section=NO_TITLES,
        seed=0,
    )
    return folder / "atlas.html"


def held(page: Path | str) -> dict[str, Any]:
    """The data that a page holds."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def row(lora: str, copy_of: str | None = None, relation: str | None = None, space: str = "sd1") -> dict:
    artist = lora.split("/")[0] if "/" in lora else None
    return {
        "lora": lora, "artist": artist, "genre": None, "format": "kohya", "norm": 1.0, "kinds": ["LoRA"], "ranks": [4],
        "copy_of": copy_of, "relation": relation, "space": space, "family": "SD1.x",
    }  # fmt: skip


class Collection:
    """What `neighbours` asks of one."""

    def __init__(self, rows: list[dict], X: np.ndarray):
        self.space, self.loras, self.nearness = "sd1", [r["lora"] for r in rows], {("all", "all"): X @ X.T}
        self.artists, self.genres = [r["artist"] for r in rows], [r["genre"] for r in rows]
