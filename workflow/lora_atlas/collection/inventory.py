"""The inventory of a folder of LoRA files: what each is, whether it can be used, and which are copies of which.

One pass reads every file once, for its hash, its norms and its sketch; the sketches are kept by content, so the next
pass reads only what is new. A file that cannot be used is a row with the reason, and costs no other file anything.

A space is a set of files that can be compared: of one base family, and of equal shapes wherever two have a module in
common. Families never share a space.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..labels import printable
from ..loras.container import LoraFileError, configuration, digest
from ..loras.families import Belonging, belonging, claimed
from ..loras.files import LoraFile, open_lora
from ..loras.folder import Found
from ..loras.names import component
from ..loras.reasons import brief, in_a_row
from ..weights.sketch import NUMBERS, Hashes, Sketch, folded, read_sketch, sketch_path, sketches, write_sketch
from .copies import NEARLY, apart, precision, relation

FOLD = 64  # numbers a module by which copies are looked for, before they are confirmed on whole sketches
LOOKED_AT = 6  # of the nearest by those, among which the nearest is found
NAMED = 3  # LoRAs that are named of a group on the terminal
LINES = 24  # on the terminal, of copies and of refusals
LONGEST = 400  # characters of a reason there: what is wrong, and at its end what is to be done


@dataclass
class _Space:
    """Files that can be compared: the shapes of all modules that they have, and the released models that all of them
    fit; none where they have sizes of their own."""

    name: str
    belongs: Belonging
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


def inventory(
    candidates: Sequence[Found],
    cache: str | Path,
    *,
    numbers: int = NUMBERS,
    pickles: bool = True,
    base: str | None = None,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table "loras", in the order of the candidates; sketches are kept in the folder `cache`.

    Paths in them begin below `folder`, so that a table that is handed on does not say where somebody keeps files.
    """
    rows = [_row(candidate, folder) for candidate in candidates]
    files: dict[int, LoraFile] = {}
    first: dict[str, int] = {}
    for i, candidate in enumerate(candidates):
        row = rows[i]
        try:
            file = open_lora(candidate.path, pickles=pickles, base=base)
            row |= {"sha256": digest(file.path), "bytes": file.path.stat().st_size}
        except LoraFileError as error:
            _refuse(row, in_a_row(str(error), candidate.path, base), candidate.path)
            continue
        _describe(row, file)
        files[i] = file
        twin = first.setdefault(row["sha256"], i)
        if twin != i:
            row |= {"copy_of": rows[twin]["lora"], "relation": "same bytes"}
    known = _sketched(files, rows, Path(cache), numbers)
    for i, found in known.items():
        if isinstance(found, LoraFileError):
            _refuse(rows[i], in_a_row(str(found), candidates[i].path, base))
            continue
        _measure(rows[i], found)
        if not rows[i]["norm"]:
            _refuse(rows[i], "every update is zero: an adapter that was never trained, or whose second factor was not")
    usable = [i for i in known if rows[i]["status"] == "imported"]
    _place(rows, files, usable)
    _copies(rows, files, {i: sketch_path(cache, rows[i]["sha256"], numbers) for i in usable}, known)
    return rows


def _row(candidate: Found, folder: str | Path | None) -> dict[str, Any]:
    try:
        size = candidate.path.stat().st_size if candidate.path.is_file() else None
    except OSError:
        size = None
    path = candidate.path if folder is None else candidate.path.relative_to(folder)
    return {
        "lora": candidate.lora, "file": printable(str(path)), "artist": candidate.artist,
        "genre": candidate.genre, "sha256": None, "bytes": size, "format": None, "kinds": [], "family": None,
        "header_family": None, "space": None, "modules": 0, "parameters": 0, "ranks": [], "components": [],
        "norm": None, "zero_share": None, "tokens": 0, "copy_of": None, "relation": None, "remark": None,
        "status": "imported", "reason": None,
    }  # fmt: skip


def _refuse(row: dict[str, Any], reason: str, path: Path | None = None) -> None:
    if row["sha256"] is None and path is not None and path.is_file():
        with suppress(LoraFileError):  # the very reason, at times
            row["sha256"] = digest(path)
    row |= {"status": "refused", "reason": reason, "space": None}


def _describe(row: dict[str, Any], file: LoraFile) -> None:
    """What the header tells."""
    specs = file.layout.specs
    shapes = {module: spec.shape for module, spec in specs.items()}
    found = belonging(shapes, file.container.metadata)
    keys = {key for spec in specs.values() for part, key in spec.keys.items() if part != "alpha"}
    remarks = [*([found.remark] if found.remark else []), *file.layout.remarks]
    unsaid = configuration(file.path) is None and {"LoRA", "LoHa", "LoKr"} & {spec.kind for spec in specs.values()}
    if file.layout.naming == "peft" and unsaid and all(spec.scale is None for spec in specs.values()):
        remarks.append("its scale α/r is taken to be 1: there is no adapter_config.json beside it")
    if file.layout.tokens:
        remarks.append(f"holds {len(file.layout.tokens)} learnt tokens besides, which are left out")
    row |= {
        "format": file.layout.naming,
        "kinds": sorted({spec.kind for spec in specs.values()}),
        "family": found.family,
        "header_family": claimed(file.container.metadata),
        "modules": len(specs),
        "parameters": sum(int(np.prod(file.container.entries[key].shape)) for key in keys),
        "ranks": sorted({spec.rank for spec in specs.values()}),
        "tokens": len(file.layout.tokens),
        "remark": "; ".join(remarks) or None,
    }


def _measure(row: dict[str, Any], found: Sketch) -> None:
    squares: dict[str, float] = {}
    for module, norm in found.norms.items():
        squares[component(module)] = squares.get(component(module), 0.0) + norm**2
    row |= {
        "components": [{"component": name, "norm": float(np.sqrt(squares[name]))} for name in sorted(squares)],
        "norm": float(np.sqrt(sum(squares.values()))),
        "zero_share": float(np.mean([norm == 0 for norm in found.norms.values()])),
    }


def _sketched(
    files: Mapping[int, LoraFile], rows: Sequence[Mapping[str, Any]], cache: Path, numbers: int
) -> dict[int, Sketch | LoraFileError]:
    """Sketches folded to FOLD numbers a module, whole ones being kept on disk; an error for a file that has none."""
    found: dict[int, Sketch | LoraFileError] = {}
    for i in files:
        path = sketch_path(cache, rows[i]["sha256"], numbers)
        if path.is_file():
            try:
                kept = read_sketch(path)
                # Of another version of this library, which called its modules otherwise: made again.
                if kept.norms.keys() == files[i].layout.specs.keys():
                    found[i] = folded(kept, FOLD)
            except LoraFileError as error:
                print(f"{error}; made again", flush=True)
    waiting: dict[str, list[int]] = {}  # files of the same bytes are read once
    for i in files:
        if i not in found:
            waiting.setdefault(rows[i]["sha256"], []).append(i)
    made = sketches([files[same[0]] for same in waiting.values()], numbers=numbers, hashes=Hashes())
    for (sha256, same), result in zip(waiting.items(), made, strict=True):
        if isinstance(result, Sketch):
            write_sketch(sketch_path(cache, sha256, numbers), result)
            result = folded(result, FOLD)
        found |= dict.fromkeys(same, result)
    return {i: found[i] for i in files}


def _place(rows: Sequence[dict[str, Any]], files: Mapping[int, LoraFile], usable: Iterable[int]) -> None:
    """Give every file the first space of its family in which no module has another shape."""
    spaces: list[_Space] = []
    for i in usable:
        shapes = {module: spec.shape for module, spec in files[i].layout.specs.items()}
        belongs = belonging(shapes, files[i].container.metadata)
        space = next((s for s in spaces if comparable(shapes, belongs, s.shapes, s.belongs)), None)
        if space is None:
            number = 1 + sum(s.belongs.family == belongs.family for s in spaces)
            stem = stem_of(belongs.family)
            name = stem if number == 1 and belongs.family != "other" else f"{stem}-{number}"
            space = _Space(name, belongs)
            spaces.append(space)
        space.belongs = space.belongs.among(belongs)
        space.shapes |= shapes
        rows[i]["space"] = space.name
    for space in spaces:
        _uncommon(space, rows, files, [i for i in usable if rows[i]["space"] == space.name])


def _uncommon(
    space: _Space, rows: Sequence[dict[str, Any]], files: Mapping[int, LoraFile], members: Sequence[int]
) -> None:
    """Remark on files that change other modules than most of their space do."""
    held = Counter(module for i in members for module in files[i].layout.specs)
    usual = {module for module, count in held.items() if 2 * count > len(members)}
    for i in members:
        own = set(files[i].layout.specs)
        lacks, adds = len(usual - own), len(own - usual)
        said = []
        if lacks:
            said.append(f"lacks {lacks} of the {len(usual)} modules that most LoRAs of its space change")
        if adds:
            said.append(f"changes {adds} modules that most LoRAs of its space leave alone")
        if said:
            said = [f"{' and '.join(said)}; a module that is absent counts as zero"]
            rows[i]["remark"] = "; ".join(filter(None, (rows[i]["remark"], *said)))


def stem_of(family: str) -> str:
    """A family as the name of a folder: "sd1" of SD1.x, "flux2" of FLUX.2; no number stands apart, since the second
    space of a family has one."""
    return re.sub(r"[^\w-]|-(?=\d)", "", family.lower().replace(".x", ""))


def comparable(
    shapes: Mapping[str, tuple[int, int]], belongs: Belonging, known: Mapping[str, tuple[int, int]], there: Belonging
) -> bool:
    """Whether a file of these shapes can be compared with files of the `known` ones: of one family, of a released model
    that all of them fit, or of sizes of their own that they are seen to share."""
    if belongs.family != there.family or bool(belongs.variants) != bool(there.variants):
        return False
    if belongs.variants and not belongs.variants & there.variants:
        return False
    common = shapes.keys() & known.keys()
    return all(shapes[module] == known[module] for module in common) and (bool(common) or bool(belongs.variants))


def _copies(
    rows: Sequence[dict[str, Any]], files: Mapping[int, LoraFile], paths: Mapping[int, Path], small: Mapping[int, Any]
) -> None:
    """Name the nearest earlier file of which one is a copy: the same update or nearly, rescaled or not, in whatever
    format."""
    bits: dict[int, int] = {}
    for space in sorted({rows[i]["space"] for i in paths}):
        members = [i for i in paths if rows[i]["space"] == space]
        X = _unit_rows([small[i] for i in members])
        for n, i in enumerate(members):
            if rows[i]["copy_of"] is not None:
                continue
            cosine = np.abs(X[:n] @ X[n])
            # A folded sketch tells distances to a fifth.
            near = [m for m in np.argsort(-cosine, kind="stable")[:LOOKED_AT].tolist() if cosine[m] > 1 - NEARLY**2]
            if not near:
                continue
            mine = read_sketch(paths[i])
            found = {members[m]: apart(mine, read_sketch(paths[members[m]])) for m in sorted(near)}
            nearest = min(found, key=lambda j: found[j][0])
            for j in (i, nearest):
                if j not in bits:
                    bits[j] = precision(files[j])
            words = relation(*found[nearest], min(bits[i], bits[nearest]))
            if words is not None:
                rows[i] |= {"copy_of": rows[nearest]["lora"], "relation": words}


def _unit_rows(found: Sequence[Sketch]) -> np.ndarray:
    """Folded sketches as rows of norm one (n, modules × FOLD)."""
    modules = sorted(set().union(*(s.parts for s in found)))
    place = {module: n for n, module in enumerate(modules)}
    D = min((s.D for s in found), default=FOLD)
    X = np.zeros((len(found), len(modules), D), np.float32)
    for row, s in zip(X, found, strict=True):
        for module, part in folded(s, D).parts.items():
            row[place[module]] = part
    flat = X.reshape(len(found), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-30)


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """The inventory in a few lines: how many of which family, which are copies, which are refused and why."""
    usable = [row for row in rows if row["status"] == "imported"]
    counts = Counter((row["space"], row["family"]) for row in usable)
    lines = [f"{len(rows)} LoRA files: {len(usable)} imported, {len(rows) - len(usable)} refused"]
    lines += [f"  {space}: {count} of {family}" for (space, family), count in sorted(counts.items())]
    copies: dict[tuple[str, str], list[str]] = {}
    for row in usable:
        if row["copy_of"]:
            copies.setdefault((row["copy_of"], row["relation"]), []).append(row["lora"])
    lines += _cut([f"  {_listed(names)}: {words} as {lora}" for (lora, words), names in copies.items()], "of copies")
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "refused":
            reasons.setdefault(_general(row["reason"]), []).append(row)
    lines += _cut([_refused(group) for group in sorted(reasons.values(), key=len, reverse=True)], "of refusals")
    return "\n".join(lines)


def _refused(group: Sequence[Mapping[str, Any]]) -> str:
    reason, names = brief(group[0]["reason"], LONGEST), _listed([row["lora"] for row in group])
    if len(group) == 1:
        return f"  refused {names}: {reason}"
    same = "" if len({row["reason"] for row in group}) == 1 else f"; {group[0]['lora']}"
    return f"  refused {len(group)}, {names}{same}: {reason}"


def _general(reason: str) -> str:
    """A reason without what differs from file to file: names of keys and files, and numbers."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\S*[\d_/\\]\S*|[^\s.]+\.[^\s.]\S*", "…", reason)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:NAMED])} and {more} more"


def _cut(lines: Sequence[str], what: str) -> list[str]:
    left = len(lines) - LINES
    return (
        list(lines) if left <= 1 else [*lines[:LINES], f"  … and {left} more lines {what}: all are in the table loras"]
    )
