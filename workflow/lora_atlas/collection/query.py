"""Queries and neighbours: which known LoRAs is this one near, how near is that, and would chance do as well?

Distances are between whole updates at norm one, √(2 − 2 cos): no basis is fitted, so nothing drifts, and a copy in
another format is at distance zero. Modules count by the collection's consensus where it has one (weighting.py), since
most of an update's norm lies in modules that say little; whether two are the same update is asked of all modules as
they are. (Principal components with a calibration describe style for clustering and for the
study's tables; a query does not need them, and finds its artist as well without.)

The p-value of a neighbour asks how often an unrelated LoRA has one that is as near, by having been looked for among
all of them (chance.py). Neighbours that are no nearer than chance have no vote on artist and genre, and the others one
by how much nearer they are.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import printable
from ..loras.container import LoraFileError, digest
from ..loras.families import OTHER, belonging
from ..loras.files import LoraFile, open_lora
from ..loras.folder import find
from ..loras.names import wanted
from ..loras.reasons import in_a_row
from ..weights.gram import GramError, last_row
from ..weights.products import combine, normalise
from ..weights.sketch import NUMBERS, Sketch, folded, sketch
from .chance import Chance
from .copies import NEARLY, apart, precision, relation
from .inventory import comparable
from .known import Known

VOTERS = 5  # nearest LoRAs that vote on artist and genre
NEAREST = 10
FURTHEST = 50  # times as many others are looked at, where most are copies


def distances(cosine: np.ndarray) -> np.ndarray:
    """Distances between vectors of norm one from their cosines."""
    return np.sqrt((2 - 2 * cosine).clip(0))


def neighbours(known: Known, *, nearest: int = NEAREST, components=None, blocks=None) -> list[dict[str, Any]]:
    """Rows of the table "neighbours": of each known LoRA the nearest others, leaving it out of what it is held against.
    Copies, of it or of a neighbour, stand among them and take no other's place."""
    try:
        cosine = normalise(combine(known.nearness, components, blocks), "unit")
    except ValueError as error:
        raise GramError(f"LoRAs of {known.space}: {error}; a folder of several bases has no part in common") from error
    D = distances(cosine)
    chance = Chance(cosine, known.artists)
    rows = []
    for i, lora in enumerate(known.loras):
        others = np.delete(np.arange(len(known.loras)), i)
        order = others[np.argsort(D[i, others], kind="stable")]
        place = _places(D, i, order, nearest)
        order = order[place]
        p = chance.p(cosine[i, order], i)
        rows += [
            {
                "space": known.space, "lora": lora, "rank": rank, "neighbour": known.loras[n],
                "artist": known.artists[n], "genre": known.genres[n], "distance": float(D[i, n]),
                "cosine": float(cosine[i, n]), "p": float(each),
            }
            for rank, n, each in zip((place + 1).tolist(), order.tolist(), p, strict=True)
        ]  # fmt: skip
    return rows


def _places(D: np.ndarray, i: int, order: np.ndarray, nearest: int) -> np.ndarray:
    """Which of the others in their `order` are listed for the i-th: the nearest that are no copies of each other, and
    between them as many copies."""
    heads: list[int] = []
    found = []
    copies = 0
    for place, n in enumerate(order[: FURTHEST * nearest].tolist()):
        if D[i, n] <= NEARLY or (D[n, heads] <= NEARLY).any():
            copies += 1
            if copies > nearest:
                continue
        else:
            heads.append(n)
        found.append(place)
        if len(heads) == nearest:
            break
    return np.array(found, int)


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
    among: dict[str, Chance] = {}
    for name, path in _files(paths):
        row = _blank() | {"query": name, "sha256": None, "space": None, "status": "answered", "reason": None}
        try:
            file = open_lora(path, pickles=pickles, base=base)
            row["sha256"] = digest(file.path)
            known = _collection(file, collections)
            asked = _Asked(file, known, components, blocks)
            plain, cosine = _cosines(asked)
        except LoraFileError as error:
            rows.append(row | {"status": "refused", "reason": in_a_row(str(error), path, base)})
            continue
        if known.space not in among:
            among[known.space] = Chance(normalise(combine(known.nearness, components, blocks), "unit"), known.artists)
        chance = among[known.space]
        near = distances(cosine)
        order = np.argsort(near, kind="stable")
        # A file that lies among the known ones is no neighbour of itself.
        here = file.path.resolve()
        itself = [n for n, place in enumerate(known.places) if place == here]
        lora = itself[0] if itself else None
        order = order[~np.isin(order, itself)]
        if not len(order):
            why = f"the one LoRA of {known.space} that is known; there is nothing to compare it with"
            rows.append(row | {"status": "refused", "reason": why})
            continue
        p, evidence = chance.p(cosine, lora), np.zeros(len(cosine))
        evidence[order[:VOTERS]] = chance.evidence(cosine[order[:VOTERS]], lora)
        row |= {"space": known.space, "chance": chance.limit(lora)}
        row |= vote("artist", known.artists, evidence) | vote("genre", known.genres, evidence)
        alike = 1 - np.abs(plain) < NEARLY**2
        rows += [
            row | {
                "rank": rank, "lora": known.loras[n], "artist": known.artists[n], "genre": known.genres[n],
                "distance": float(near[n]), "cosine": float(cosine[n]), "p": float(p[n]),
                "relation": asked.relation(n) if alike[n] else None,
            }
            # What is the same update, and its opposite, is told however many there are, and however far it is.
            for rank, n in enumerate(order.tolist(), 1) if rank <= nearest or alike[n]
        ]  # fmt: skip
    return rows


class _Asked:
    """A file that is held against known ones, in the components and blocks that are asked for."""

    def __init__(
        self, file: LoraFile, known: Known, components: Sequence[str] | None, blocks: Sequence[str] | None
    ) -> None:
        self.file, self.known = file, known
        self.parts = (components, blocks)

    def wanted(self, module: str) -> bool:
        return wanted(module, *self.parts)

    @cached_property
    def sketch(self) -> Sketch:
        return sketch(self.file, numbers=self.known.numbers or NUMBERS)

    @cached_property
    def _precision(self) -> int:
        return precision(self.file)

    def relation(self, n: int) -> str | None:
        """Whether it is the n-th known LoRA, or nearly; of all that both change."""
        return relation(
            *apart(self._part(self.sketch), self._part(self.known.sketch(n))),
            min(self._precision, precision(self.known.files[n])),
        )

    def _part(self, found: Sketch) -> Sketch:
        return Sketch(found.D, {module: x for module, x in found.parts.items() if self.wanted(module)}, found.norms)


def _files(paths: Sequence[str | Path]) -> list[tuple[str, Path]]:
    found = []
    for path in map(Path, paths):
        if path.is_dir() and not (path / "adapter_config.json").is_file():
            found += [(candidate.lora, candidate.path) for candidate in find(path)]
        else:
            found.append((printable(path.stem), path))
    return found


def _blank() -> dict[str, Any]:
    names = ("rank", "lora", "artist", "genre", "distance", "cosine", "p", "chance", "relation")
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


Pair = np.ndarray  # two sums over modules: as they are, and weighted


def _cosines(asked: _Asked) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (N,) of a file with the known ones, of modules as they are and of modules weighted; LoraFileError for an
    update of zero."""
    known = asked.known
    products, own, squares = _of_files(asked) if known.sketches is None else _of_sketches(asked)
    if not (own[0] > 0).all():
        raise LoraFileError(
            f"{asked.file.path}: its update is zero (in the components and blocks asked for): nothing to compare"
        )
    if not (own[1] > 0).all():
        raise LoraFileError(
            f"{asked.file.path}: it trains only modules that have no weight among the known LoRAs ({known.space}); "
            "compare it with weights.modules: [plain]"
        )
    plain, weighted = products / np.sqrt(own * squares).clip(1e-300)
    return plain, weighted


def _summed(asked: _Asked, each: Mapping[str, Any]) -> Pair:
    """Two sums of what there is of modules (a number, or several), of those that are asked for: what no known LoRA
    trains has no weight, and says nothing of how near they are."""
    weights = asked.known.modules
    plain, weighted = 0.0, 0.0
    for module, x in each.items():
        if asked.wanted(module):
            plain = plain + x
            weighted = weighted + (1.0 if weights is None else weights.get(module, 0.0)) * x
    return np.array([plain, weighted])


def _of_files(asked: _Asked) -> tuple[Pair, Pair, Pair]:
    """Inner products (2, N) of a file with the known ones, its square (2, 1), and theirs (2, N)."""
    rows = _summed(asked, last_row([*asked.known.files, asked.file], "delta"))
    rows = np.broadcast_to(rows.reshape(2, -1), (2, len(asked.known.loras) + 1))
    grams = (combine(each, *asked.parts) for each in (asked.known.grams, asked.known.nearness))
    return rows[:, :-1], rows[:, -1:], np.stack([np.diag(K) for K in grams])


def _of_sketches(asked: _Asked) -> tuple[Pair, Pair, Pair]:
    """The same of sketches, all (2, N): each pair at the smaller of their D. An estimate of a square belongs to its D;
    a copy is parallel at any, and at distance zero only by squares of the same."""
    known, mine = asked.known, asked.sketch
    at: dict[int, tuple[Mapping[str, np.ndarray], Pair]] = {}
    products, own, squares = (np.zeros((2, len(known.loras))) for _ in range(3))
    for n in range(len(known.loras)):
        other = known.sketch(n)
        D = min(mine.D, other.D)
        if D not in at:
            parts = folded(mine, D).parts
            at[D] = parts, _summed(asked, {m: float(np.vdot(x, x)) for m, x in parts.items()})
        (a, own[:, n]), b = at[D], folded(other, D).parts
        products[:, n] = _summed(asked, {m: float(np.vdot(x, b[m])) for m, x in a.items() if m in b})
        squares[:, n] = _summed(asked, {m: float(np.vdot(x, x)) for m, x in b.items()})
    return products, own, squares


def vote(name: str, labels: Sequence[str | None], evidence: np.ndarray) -> dict[str, Any]:
    """The label that most of the evidence (N,) is for, the first among equals, and its share; none without any."""
    votes: dict[str, float] = {}
    for label, weight in zip(labels, evidence.tolist(), strict=True):
        if label is not None and weight > 0:
            votes[label] = votes.get(label, 0.0) + weight
    if not votes:
        return {f"{name}_vote": None, f"{name}_share": None}
    winner = max(votes, key=lambda label: votes[label])
    return {f"{name}_vote": winner, f"{name}_share": votes[winner] / sum(votes.values())}


def told(rows: Sequence[dict[str, Any]], nearest: int = 5) -> str:
    """The answers in a few lines each."""
    lines = []
    for name in dict.fromkeys(row["query"] for row in rows):
        found = [row for row in rows if row["query"] == name]
        first = found[0]
        if first["status"] == "refused":
            lines.append(f"{name}: refused, {first['reason']}")
            continue
        lines.append(f"{name}, among {first['space']}{_said(first)}")
        shown = [row for row in found if row["rank"] <= nearest or row["relation"]]
        for row in shown[: 2 * nearest]:
            # Of few LoRAs p is never small, not even of a copy.
            how = row["relation"] or f"p {row['p']:.3f}"
            lines.append(f"  {row['rank']:2d}. {row['lora']}  distance {row['distance']:.3f}  {how}")
    return "\n".join(lines)


def voted(first: Mapping[str, Any]) -> str:
    """Artist and genre that the neighbours vote for, by the row of the nearest; empty where they vote for none."""
    return ", ".join(
        f"{kind} {first[f'{kind}_vote']} ({first[f'{kind}_share']:.0%} of the evidence)"
        for kind in ("artist", "genre")
        if first[f"{kind}_vote"]
    )


def _said(first: Mapping[str, Any]) -> str:
    """What the neighbours say of artist and genre, by the row of the nearest."""
    if first["relation"]:
        return f": known, {first['relation']} as {first['lora']}"
    if votes := voted(first):
        return f": {votes}"
    if first["chance"] is None:
        return ": so few LoRAs do not tell what is nearer than chance"
    nearer = first["cosine"] > first["chance"]
    return (
        "" if nearer else f": none is nearer than chance (cosine {first['cosine']:.3f}, chance {first['chance']:.3f})"
    )
