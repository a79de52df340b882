"""The page of a trained study: every LoRA by every descriptor, what it learnt from, what it paints, and what is near.

Neighbours are what the study's retrieval is made of: the gallery's LoRAs, in the headline view, by each descriptor.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from .. import tables
from ..descriptors import ACROSS, KINDS, Descriptor, restored
from ..metrics.ranking import DISTANCES
from ..sections import Pictures
from ..views import View
from ..weights.gram import read_gram
from ..weights.products import combine
from . import says
from .page import write as write_page
from .places import COLOURS, maps, numbered, whole_numbers
from .thumbnails import Thumbnails

NEAREST = 8
TRAINING, GENERATED = 10, 6  # pictures of a LoRA that are shown
BUDGET, LEAST = 20_000, 1_250_000  # bytes of pictures a LoRA, and of a small study


@dataclass(frozen=True)
class Told:
    """What a study says of itself: its name, how its LoRAs were trained, in words, and pages beside this one."""

    study: str
    facts: Mapping[str, str]
    links: Mapping[str, str]
    setting: str | None


def write(
    path: str | Path,
    told: Told,
    files: Mapping[str, str | Path],
    *,
    pictures: Sequence[str | Path],
    generated: Sequence[str | Path],
    embeddings: Mapping[str, str | Path],
    section: Pictures,
    seed: int,
) -> None:
    """Write the page of a study from its tables.

    `files`: name → path of the tables "plan", "retrieval", "queries", "clustering", "structure", "ablation", "drift",
    "cost", of "worth" and "crossings" where there are any, and of "delta", the inner products of the updates.
    `embeddings`: descriptor → path, of all descriptors; `generated`: tables of one sampler setting.
    """
    read = {name: tables.read(file, name) for name, file in files.items() if name != "delta"}
    plan = read["plan"].to_pylist()
    norms = norms_of(files["delta"], [row["lora"] for row in plan]) if "delta" in files else None
    about = tables.metadata(read["retrieval"])
    described, view = restored(about["descriptors"]), View(**about["view"])
    shown = Thumbnails(max(BUDGET * len(plan), LEAST))
    names = _titles(section)
    data = {
        "kind": "trained",
        "study": told.study,
        "lead": _lead(plan),
        "facts": list(told.facts.items()),
        "links": list(told.links.items()),
        "setting": told.setting,
        **_loras(plan, norms, _painted(generated, shown), _pictured(pictures, plan, shown, names)),
        **_maps(plan, {name: tables.read(file, "embeddings") for name, file in embeddings.items()}, described, view,
                read, seed),
    }  # fmt: skip
    write_page(path, data | {"pictures": shown.uris()}, says.findings(read, described, view))


def _lead(plan: Sequence[Mapping[str, Any]]) -> str:
    artists, genres = {row["artist"] for row in plan}, {row["genre"] for row in plan} - {None}
    words = f"{len(plan)} LoRAs of {len(artists)} artists"
    return words + (f" in {len(genres)} genres" if len(genres) > 1 else "")


def norms_of(path: str | Path, loras: Sequence[str]) -> dict[str, float]:
    """LoRA → norm of its update, of inner products of the updates."""
    ids, grams = read_gram(path, "delta")
    norms = np.sqrt(np.diag(combine(grams, None, None)).clip(0))
    return {lora: float(norm) for lora, norm in zip(ids, norms, strict=True) if lora in set(loras)}


def _titles(section: Pictures) -> Mapping[str, str]:
    from ..pictures.sources import titles

    return titles(section)


# --- LoRAs


def _pictured(
    paths: Iterable[str | Path], plan: Sequence[Mapping[str, Any]], shown: Thumbnails, titles: Mapping[str, str]
) -> dict[str, tuple[int | None, str]]:
    """Picture → its number and its title, of the first pictures that each LoRA is trained on."""
    wanted = {picture for row in plan for picture in row["pictures"][:TRAINING]}
    found: dict[str, tuple[int | None, str]] = {}
    for path in paths:
        for batch in tables.read(path, "pictures").to_batches(max_chunksize=32):
            for row in batch.to_pylist():
                if row["picture"] in wanted and row["image"]:
                    label = row["image"]["path"] or row["source"].partition(": ")[2] or row["subject"] or ""
                    title = titles.get(row["source"]) or titles.get(label) or label
                    found[row["picture"]] = (shown.add(row["picture"], row["image"]["bytes"]), title)
    return found


def _painted(paths: Iterable[str | Path], shown: Thumbnails) -> dict[str, list[tuple[int, str]]]:
    """LoRA → numbers and prompts of the first pictures that it generated."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in paths:
        for batch in tables.read(path, "generated").to_batches(max_chunksize=32):
            for row in batch.to_pylist():
                own = found.setdefault(row["lora"], [])
                if len(own) < GENERATED:
                    number = shown.add(f"{row['lora']}#{len(own)}", row["image"]["bytes"])
                    own += [(number, row["prompt"])] if number is not None else []
    return found


def _loras(
    plan: Sequence[Mapping[str, Any]],
    norms: Mapping[str, float] | None,
    painted: Mapping[str, list[tuple[int, str]]],
    pictured: Mapping[str, tuple[int | None, str]],
) -> dict[str, Any]:
    """Artists in the order of their genres, and LoRAs in that of the plan."""
    pairs = sorted({(row["genre"] or "", row["artist"]) for row in plan})
    genres = list(dict.fromkeys(genre for genre, _ in pairs))
    artist = numbered([name for _, name in pairs])
    loras = []
    for row in plan:
        seen = [pictured[p] for p in row["pictures"][:TRAINING] if p in pictured]
        facts = [["trained on", f"{len(row['pictures'])} pictures"], ["in the", row["split"]]]
        if norms is not None and row["lora"] in norms:
            facts.append(["norm of ΔW", f"{norms[row['lora']]:.3g}"])
        own = painted.get(row["lora"], [])
        loras.append(
            {
                "name": row["lora"],
                "artist": artist[row["artist"]],
                "split": row["split"],
                "facts": facts,
                "training": [[number, title] for number, title in seen if number is not None],
                "more": len(row["pictures"]) - len(seen),
                "generated": [[number, prompt] for number, prompt in own],
                "words": " ".join(dict.fromkeys(title for _, title in seen if title)),
            }
        )
    return {
        "genres": genres if len(genres) > 1 else [],
        "artists": [
            {
                "name": name,
                "genre": genre or None,
                "colour": i,
                "shape": genres.index(genre) if len(genres) > 1 else i // COLOURS,
            }
            for i, (genre, name) in enumerate(pairs)
        ],
        "loras": loras,
    }


# --- maps


def _maps(
    plan: Sequence[Mapping[str, Any]],
    embeddings: Mapping[str, pa.Table],
    described: Mapping[str, Descriptor],
    view: View,
    read: Mapping[str, pa.Table],
    seed: int,
) -> dict[str, Any]:
    loras = [row["lora"] for row in plan]
    names = [name for name in described if name in embeddings]
    vectors = {name: vectors_of(embeddings[name], loras, view.together, "none") for name in names}
    places = maps(vectors, names[0], seed)
    gallery = np.flatnonzero([row["split"] == "gallery" for row in plan])
    scores, told = _scores(read, view), _levels(read, view)
    found = []
    for name in names:
        x, y = whole_numbers(places[name])
        near, distance = neighbours(vectors_of(embeddings[name], loras, *view.known), gallery, view.distance)
        found.append(
            {
                "name": name,
                "label": described[name].label,
                "says": told.get(name, ""),
                "alike": bool(np.ptp(vectors[name], axis=0).max(initial=0.0) < 1e-9),
                "x": x,
                "y": y,
                "near": near.tolist(),
                "distance": [[float(f"{d:.4g}") for d in row] for row in distance.tolist()],
                "scores": [scores.get((name, lora)) for lora in loras],
            }
        )
    groups: dict[str, list[int]] = {kind: [] for kind in (*KINDS, ACROSS)}
    for i, name in enumerate(names):
        groups[described[name].kind].append(i)
    return {
        "maps": found,
        "groups": [[kind, members] for kind, members in groups.items() if members],
        "measure": {"L2": "distance", "cosine": "cosine distance", "CSLS": "CSLS distance"}[view.distance],
    }


def vectors_of(embeddings: pa.Table, loras: Sequence[str], scenario: str, calibration: str) -> np.ndarray:
    """Vectors (n, d) of the LoRAs, in their order, of one scenario and calibration."""
    wanted = {"scenario": scenario, "calibration": calibration}
    rows = [row for row in embeddings.to_pylist() if all(row[key] == value for key, value in wanted.items())]
    vector = {row["lora"]: row["vector"] for row in rows}
    return np.array([vector[lora] for lora in loras], float)


def neighbours(X: np.ndarray, gallery: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the gallery of each LoRA of X (n, d), itself left out, and their distances (n, NEAREST or fewer).

    As retrieval ranks them: queries against the gallery. A gallery LoRA is held against the rest of the gallery.
    """
    D = np.zeros((len(X), len(gallery)))
    query = np.setdiff1d(np.arange(len(X)), gallery)
    for rows in (query, gallery):
        if len(rows):
            D[rows] = DISTANCES[distance](X[rows], X[gallery])
    D[gallery, np.arange(len(gallery))] = np.inf
    order = np.argsort(D, 1, kind="stable")[:, : min(NEAREST, len(gallery) - 1)]
    return gallery[order], np.take_along_axis(D, order, 1)


def _scores(read: Mapping[str, pa.Table], view: View) -> dict[tuple[str, str], list[float]]:
    """Descriptor and query LoRA → average precision and its chance, of the artist's LoRAs in the gallery."""
    frame = _of_headline(read["queries"].to_pandas(), view)
    rows = zip(frame["descriptor"], frame["lora"], frame["value"], frame["chance"], strict=True)
    return {(descriptor, lora): [round(value, 3), round(chance, 3)] for descriptor, lora, value, chance in rows}


def _of_headline(frame: pd.DataFrame, view: View) -> pd.DataFrame:
    return frame[view.rows(frame) & (frame["level"] == "artist") & (frame["metric"] == "mAP")]


def _levels(read: Mapping[str, pa.Table], view: View) -> dict[str, str]:
    """Descriptor → how well it tells artists, in words."""
    frame = _of_headline(read["retrieval"].to_pandas(), view)
    found = {}
    for row in frame.itertuples():
        if pd.notna(row.value):
            found[row.descriptor] = (
                f"mAP of artists {row.value:.2f} ({row.low:.2f}–{row.high:.2f}); chance {row.chance:.2f}"
            )
    return found
