"""Queries and neighbours: which known LoRAs is this one near, how near is that, and would chance do as well?

Distances are between whole updates at norm one, √(2 − 2 cos): no basis is fitted, so nothing drifts, and a copy in
another format is at distance zero. Modules count by the collection's consensus where it has one (weighting.py), since
most of an update's norm lies in modules that say little; whether two are the same update is asked of all modules as
they are. (Principal components with a calibration describe style for clustering and for the
study's tables; a query does not need them, and finds its artist as well without.)

The p-value of a neighbour g asks how often an unrelated LoRA is as near to g as the query is: among the known LoRAs of
other artists than g's, the share that is at least as near, counting the query itself (a conformal p-value: Vovk,
Gammerman & Shafer 2005, §2; valid if the query is exchangeable with them). Where artists are not known, all other LoRAs
count, related or not, and p is conservative. It cannot be smaller than 1/(1 + their number).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import printable
from ..loras.container import LoraFileError, digest
from ..loras.families import OTHER, belonging
from ..loras.files import LoraFile, open_lora
from ..loras.folder import find
from ..loras.names import wanted
from ..weights.gram import last_row
from ..weights.products import combine, normalise
from ..weights.sketch import NUMBERS, Sketch, folded, read_sketch, sketch
from .inventory import comparable, parallel
from .known import Known

VOTERS = 5  # nearest LoRAs that vote on artist and genre
NEAREST = 10


def distances(cosine: np.ndarray) -> np.ndarray:
    """Distances between vectors of norm one from their cosines."""
    return np.sqrt((2 - 2 * cosine).clip(0))


def p_values(near: np.ndarray, known: np.ndarray, artists: Sequence[str | None]) -> np.ndarray:
    """p (m, N) of distances `near` (m, N) of queries to known LoRAs, `known` (N, N) being those between them.

    Of a known LoRA itself (m = N and the same order), its own row is `near`, and it does not count among the others.
    """
    names = np.array([f"\0{i}" if artist is None else artist for i, artist in enumerate(artists)])
    unrelated = names[:, None] != names[None, :]  # (h, g)
    p = np.empty_like(near)
    for g in range(len(names)):
        null = np.sort(known[unrelated[:, g], g])
        p[:, g] = (1 + np.searchsorted(null, near[:, g], side="right")) / (1 + len(null))
    return p


def neighbours(known: Known, *, nearest: int = NEAREST, components=None, blocks=None) -> list[dict[str, Any]]:
    """Rows of the table "neighbours": of each known LoRA the nearest others, leaving it out of its own null."""
    cosine = normalise(combine(known.nearness, components, blocks), "unit")
    D = distances(cosine)
    rows = []
    for i, lora in enumerate(known.loras):
        others = np.delete(np.arange(len(known.loras)), i)
        if not len(others):
            continue
        rest = [known.artists[j] for j in others.tolist()]
        p = p_values(D[i, others][None], D[np.ix_(others, others)], rest)[0]
        order = np.argsort(D[i, others], kind="stable")[:nearest]
        rows += [
            {
                "space": known.space, "lora": lora, "rank": rank, "neighbour": known.loras[others[n]],
                "artist": known.artists[others[n]], "genre": known.genres[others[n]],
                "distance": float(D[i, others[n]]), "cosine": float(cosine[i, others[n]]), "p": float(p[n]),
            }
            for rank, n in enumerate(order, 1)
        ]  # fmt: skip
    return rows


def query(
    paths: Sequence[str | Path],
    collections: Sequence[Known],
    *,
    nearest: int = NEAREST,
    components: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    pickles: bool = True,
    base: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table "query" for files, folders of PEFT, or folders of files: the nearest known LoRAs of each.

    A file that cannot be compared is one row with the reason. `components`, `blocks`: a subset, as in `combine`.
    """
    rows = []
    among: dict[str, np.ndarray] = {}
    for name, path in _files(paths):
        row = _blank() | {"query": name, "sha256": None, "space": None, "status": "answered", "reason": None}
        try:
            file = open_lora(path, pickles=pickles, base=base)
            row["sha256"] = digest(file.path)
            known = _collection(file, collections)
            plain, weighted = _products(file, known, components, blocks)
        except LoraFileError as error:
            rows.append(row | {"status": "refused", "reason": str(error)})
            continue
        K, nearness = (combine(grams, components, blocks) for grams in (known.grams, known.nearness))
        if known.space not in among:
            among[known.space] = distances(normalise(nearness, "unit"))
        products, square = weighted
        cosine = products / np.sqrt(np.diag(nearness) * square).clip(1e-300)
        near = distances(cosine)
        p = p_values(near[None], among[known.space], known.artists)[0]
        order = np.argsort(near, kind="stable")
        row |= {"space": known.space}
        row |= vote("artist", known.artists, order) | vote("genre", known.genres, order)
        rows += [
            row | {
                "rank": rank, "lora": known.loras[n], "artist": known.artists[n], "genre": known.genres[n],
                "distance": float(near[n]), "cosine": float(cosine[n]), "p": float(p[n]),
                "relation": parallel(plain[0][n], plain[1], K[n, n]),
            }
            for rank, n in enumerate(order[:nearest], 1)
        ]  # fmt: skip
    return rows


def _files(paths: Sequence[str | Path]) -> list[tuple[str, Path]]:
    found = []
    for path in map(Path, paths):
        if path.is_dir() and not (path / "adapter_config.json").is_file():
            found += [(candidate.lora, candidate.path) for candidate in find(path)]
        else:
            found.append((printable(path.stem), path))
    return found


def _blank() -> dict[str, Any]:
    names = ("rank", "lora", "artist", "genre", "distance", "cosine", "p", "relation")
    return dict.fromkeys((*names, "artist_vote", "artist_share", "genre_vote", "genre_share"))


def _collection(file: LoraFile, collections: Sequence[Known]) -> Known:
    """The collection that a file can be compared with; raises LoraFileError that says what it is and what there is."""
    shapes = {module: spec.shape for module, spec in file.layout.specs.items()}
    belongs = belonging(shapes, file.container.metadata)
    there = {known.space: known.belongs.family for known in collections}
    for known in collections:
        if shapes.keys() & known.shapes.keys() and comparable(shapes, belongs, known.shapes, known.belongs):
            return known
    what = belongs.family if belongs.family != OTHER else f"a base that cannot be told ({belongs.remark})"
    spaces = ", ".join(f"{space} ({kind})" for space, kind in there.items()) or "none"
    why = "LoRAs of different bases cannot be compared"
    if belongs.family in there.values():
        why = "they have no modules in common, or modules of other shapes"
    raise LoraFileError(f"{file.path}: a LoRA of {what}, and the known LoRAs are of: {spaces}; {why}")


Row = tuple[np.ndarray, float]  # inner products of a file with the known ones (N,), and its square


def _products(
    file: LoraFile, known: Known, components: Sequence[str] | None, blocks: Sequence[str] | None
) -> tuple[Row, Row]:
    """The row of a file among the known ones with modules as they are, and with modules weighted; LoraFileError for an
    update of zero."""
    if known.sketches is None:
        rows = last_row([*known.files, file], "delta")
    else:
        rows = _sketched_row(sketch(file, numbers=known.numbers or NUMBERS), known)
    names = [m for m in rows if wanted(m, components, blocks)]
    weights = known.modules if known.modules is not None else dict.fromkeys(names, 1.0)
    nothing = np.zeros(len(known.loras) + 1)
    plain = sum((rows[m] for m in names), nothing)
    # What no known LoRA trains has no weight, and says nothing of how near they are.
    weighted = sum((weights.get(m, 0.0) * rows[m] for m in names), nothing)
    if not plain[-1] > 0:
        raise LoraFileError(
            f"{file.path}: its update is zero (in the components and blocks asked for): nothing to compare"
        )
    if not weighted[-1] > 0:
        raise LoraFileError(
            f"{file.path}: it trains only modules that have no weight among the known LoRAs ({known.space}); compare "
            "it with weights.modules: [plain]"
        )
    return (plain[:-1], float(plain[-1])), (weighted[:-1], float(weighted[-1]))


def _sketched_row(mine: Sketch, known: Known) -> dict[str, np.ndarray]:
    """Module → inner products (N + 1,) of a sketch with those of the known ones, and with itself."""
    rows = {m: np.zeros(len(known.loras) + 1) for m in mine.parts}
    for n, path in enumerate(known.sketches or ()):
        other = read_sketch(path)
        D = min(mine.D, other.D)
        a, b = folded(mine, D).parts, folded(other, D).parts
        for m in a:
            if m in b:
                rows[m][n] = float(np.vdot(a[m], b[m]))
    for m, part in mine.parts.items():
        rows[m][-1] = float(np.vdot(part, part))
    return rows


def vote(name: str, labels: Sequence[str | None], order: np.ndarray) -> dict[str, Any]:
    """The label that most of the nearest have, the nearest first among equals, and its share."""
    voters = [labels[n] for n in order[:VOTERS] if labels[n] is not None]
    if not voters:
        return {f"{name}_vote": None, f"{name}_share": None}
    winner, votes = Counter(voters).most_common(1)[0]
    return {f"{name}_vote": winner, f"{name}_share": votes / len(voters)}


def told(rows: Sequence[dict[str, Any]], nearest: int = 5) -> str:
    """The answers in a few lines each."""
    lines = []
    for name in dict.fromkeys(row["query"] for row in rows):
        found = [row for row in rows if row["query"] == name]
        first = found[0]
        if first["status"] == "refused":
            lines.append(f"{name}: refused, {first['reason']}")
            continue
        voted = [f"{kind} {first[f'{kind}_vote']} ({first[f'{kind}_share']:.0%} of the nearest {VOTERS})"
                 for kind in ("artist", "genre") if first[f"{kind}_vote"]]  # fmt: skip
        lines.append(f"{name}, among {first['space']}" + (f": {', '.join(voted)}" if voted else ""))
        for row in found[:nearest]:
            copy = f"  {row['relation']}" if row["relation"] else ""
            lines.append(f"  {row['rank']:2d}. {row['lora']}  distance {row['distance']:.3f}  p {row['p']:.3f}{copy}")
    return "\n".join(lines)
