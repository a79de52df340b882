"""Two bases: studies of the same LoRAs, made from the same pictures on another base, and how alike their weights lie.

What makes two studies comparable is looked up, not said: LoRAs of the same names with the same training pictures.
Where both have replicates, their seeds of the same name are compared, and speak alone (as in FINDINGS.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from .. import tables
from ..descriptors import GENERATED, RAW, WEIGHTS, Descriptor, restored
from ..metrics import relative
from ..metrics.structure import ARTISTS, LORAS, WITHIN
from .evidence import Study, two

OWN = "own seed"  # of studies without replicates
ALIKE = 0.05  # p at which two bases arrange LoRAs alike on a seed


@dataclass(frozen=True)
class Told:
    """A study that has claims: its name, base, folder, and the variants that are its replicates."""

    name: str
    base: str
    folder: Path
    replicates: Sequence[str]

    @classmethod
    def of(cls, path: str | Path, claims: pa.Table) -> "Told":
        told = tables.metadata(claims)
        folder = Path(path).parents[1]
        return cls(
            str(told.get("study", folder.name)), str(told.get("base", "unknown")), folder, told.get("replicates", [])
        )

    def replicate(self, name: str) -> Study:
        return Study(self.folder if name == OWN else self.folder / "variants" / name)


def compare(studies: Sequence[Told], *, permutations: int, confidence: float, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the table "bases" of every two studies on two bases whose LoRAs are made from the same pictures."""
    for left, right in combinations(studies, 2):
        if left.base == right.base:
            continue
        seeds = [name for name in left.replicates if name in right.replicates] or [OWN]
        for replicate in seeds:
            sides = [study.replicate(replicate) for study in (left, right)]
            one, other = (_plan(side) for side in sides)
            if one is None or one != other:
                continue
            told = {"left": left.name, "right": right.name, "replicate": replicate}
            rows = relative.bases(
                _embeddings(sides[0]),
                _embeddings(sides[1]),
                {lora: len(pictures) for lora, pictures in one.items()},
                permutations=permutations,
                confidence=confidence,
                seed=seed,
            )
            yield from (told | row for row in rows)


def _plan(study: Study) -> dict[str, list[str]] | None:
    """LoRA → its pictures; None where the study was not made, or not to its end."""
    path = study.folder / "plan.parquet"
    if not (path.is_file() and study.has("retrieval")):
        return None
    return {row["lora"]: row["pictures"] for row in tables.read(path, "plan").to_pylist()}


def _descriptors(study: Study) -> dict[str, Descriptor]:
    """Those that may be asked: of the weights, and of what LoRAs generate. Training pictures are the same on both
    bases, and so is what is counted of them."""
    described = restored(tables.metadata(study.table("retrieval"))["descriptors"])
    return {
        name: each
        for name, each in described.items()
        if each.kind in (WEIGHTS, GENERATED) and each.scale != RAW and each.series is None
    }


def _embeddings(study: Study) -> dict[str, pa.Table]:
    paths = {name: study.folder / "embeddings" / f"{name}.parquet" for name in _descriptors(study)}
    return {name: tables.read(path, "embeddings") for name, path in paths.items() if path.is_file()}


def section(studies: Sequence[Told], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the page: a table for every two studies that were compared; none where none were."""
    lines: list[str] = []
    of = {study.name: study for study in studies}
    for left, right in dict.fromkeys((row["left"], row["right"]) for row in rows):
        own = [row for row in rows if (row["left"], row["right"]) == (left, right)]
        seeds = list(dict.fromkeys(row["replicate"] for row in own))
        words = {name: each.label for name, each in _descriptors(of[left].replicate(seeds[0])).items()}
        lines += [
            f"## The same LoRAs on two bases: `{left}` and `{right}`",
            "",
            f"LoRAs of the same pictures, trained on `{of[left].base}` and on `{of[right].base}`, over "
            f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}. No module is common to both, so no update of one "
            "can be multiplied with one of the other: what is compared is how each space arranges its LoRAs "
            "(docs/method.md, Two bases). Means over seeds, in brackets the mean of the null and at "
            f"how many seeds p ≤ {ALIKE:.2f}.",
            "",
            "| descriptor | LoRAs, CKA | artists, RSA | LoRAs within artists, CKA | an artist found across bases, mAP "
            "| the same on one base |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for descriptor in dict.fromkeys(row["descriptor"] for row in own):
            cells = [
                _cell([row for row in own if (row["descriptor"], row["level"], row["metric"]) == (descriptor, *asked)])
                for asked in (
                    (LORAS, "CKA"), (ARTISTS, "RSA"), (WITHIN, "CKA"),
                    (LORAS, relative.RETRIEVAL), (LORAS, relative.ALONE),
                )
            ]  # fmt: skip
            lines.append(f"| {words.get(descriptor, descriptor)} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in rows if row["value"] is not None]
    if not known:
        return "–"
    value, null = (sum(row[name] for row in known) / len(known) for name in ("value", "null"))
    return f"{two(value)} ({two(null)}; {sum(row['p'] <= ALIKE for row in known)} of {len(known)})"
