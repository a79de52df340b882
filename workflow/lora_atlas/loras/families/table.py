"""The table of modules: which released models have a module of some name and shape, in whatever spelling.

A name is looked up without its dots, since kohya and LyCORIS join the parts by underscores: its digits become "#", and
what they were must be among the numbers that the table has there. So an underscored name is resolved by the one module
that it can be, and no vocabulary is kept. Numbers of blocks are free where only the name is asked: a small model of a
class has fewer, and its names are still those of its class.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache

from .origins import MFLUX, ORIGINS
from .released import TABLE, numbers, unfolded

Numbers = tuple[int, ...]
Ranges = tuple[tuple[tuple[int, int], ...], ...]  # for each number of a name, the ranges that it may be in
Shape = tuple[int, int]
Modules = tuple[tuple[str, Numbers], ...]  # the modules that a layer is, as `parsed`

_FUSED = (("to_qkv", ("to_q", "to_k", "to_v")), ("to_kv", ("to_k", "to_v")),
          ("to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj")))  # fmt: skip
# A class whose names another kind of model has too: names are of it only where one of them shows it.
_SHOWN = {"AceStepTransformer1DModel": "cross_attn"}


_DIGITS, _TOKENS = re.compile(r"\d{1,9}"), re.compile(r"#|\d+")
_BETWEEN = re.compile(r"(?<!\.)\.(?!\.)")  # dots between parts, not those of a range


@lru_cache(maxsize=2**15)
def parsed(name: str) -> tuple[str, Numbers]:
    """A name without its dots and digits, and the numbers that they were."""
    flat = name.replace(".", "_")
    return _DIGITS.sub("#", flat), tuple(map(int, _DIGITS.findall(flat)))


@cache
def _flat(module: str) -> str:
    """As `parsed`, of a module whose numbers are "#" in part."""
    return _TOKENS.sub("#", module.replace(".", "_"))


@cache
def _row(name: str) -> tuple[str, str, Ranges]:
    """Of a name of the table: without dots and digits; with "#" for its numbered parts; and its ranges."""
    ranges: list[tuple[tuple[int, int], ...]] = []
    parts = []
    for part in _BETWEEN.split(name):
        runs = numbers(part) if part[0].isdigit() else None
        if runs is None:
            ranges += [((int(n), int(n)),) for n in _DIGITS.findall(part)]
            parts.append(part)
        else:
            ranges.append(runs)
            parts.append("#")
    module = ".".join(parts)
    return _flat(module), module, tuple(ranges)


@dataclass(frozen=True)
class Entry:
    """One name of a module: the numbers that it may have (None: any), and the modules that it is, "#" for each free
    number. `order`: of its rows, as in ORIGINS."""

    allowed: tuple[frozenset[int] | None, ...]
    modules: tuple[str, ...]
    order: str = ""

    def takes(self, found: Numbers) -> bool:
        return len(found) == len(self.allowed) and all(
            a is None or n in a for a, n in zip(self.allowed, found, strict=True)
        )

    def parsed(self, found: Numbers) -> "Modules":
        """The same, each as `parsed`."""
        return tuple(parsed(module) for module in self.named(found))

    def named(self, found: Numbers) -> tuple[str, ...]:
        """The modules of a name with these numbers."""
        free = [str(n) for a, n in zip(self.allowed, found, strict=True) if a is None or len(a) > 1]
        names = []
        for module in self.modules:
            first, *pieces = module.split("#")
            names.append(first + "".join(n + piece for n, piece in zip(free, pieces, strict=False)))
        return tuple(names)


@dataclass(frozen=True, eq=False)
class Variant:
    """A released size: rows by flat name."""

    family: str
    name: str
    rank: int
    rows: Mapping[str, tuple[tuple[Ranges, tuple[int, ...]], ...]]

    @lru_cache(maxsize=2**16)  # noqa: B019 - variants are the table's, for as long as a process lives
    def shape(self, flat: str, found: Numbers) -> tuple[int, ...] | None:
        """The shape of a module, None where there is none."""
        for ranges, shape in self.rows.get(flat, ()):
            if len(ranges) == len(found):
                for each, n in zip(ranges, found, strict=True):
                    for a, b in each:  # loops, since this is asked some thousand times of a file
                        if a <= n <= b:
                            break
                    else:
                        break
                else:
                    return shape
        return None

    def fits(self, flat: str, found: Numbers, shape: Shape) -> bool:
        """Whether it has this module, with an update of this shape; that of a norm is a matrix of one column."""
        known = self.shape(flat, found)
        return known is not None and (known == shape or (len(known) == 1 and shape == (known[0], 1)))

    def counts(self, flats: Iterable[str]) -> int:
        """How many modules it has under these names."""
        total = 0
        for flat in flats:
            for ranges, _ in self.rows.get(flat, ()):
                product = 1
                for each in ranges:
                    product *= sum(b - a + 1 for a, b in each)
                total += product
        return total

    @cached_property
    def blocks(self) -> Mapping[str, frozenset[int]]:
        """The flat name of each list of blocks → their numbers."""
        found: dict[str, set[int]] = {}
        for flat, rows in self.rows.items():
            stem, numbered, _ = flat.partition("_#")
            for ranges, _ in rows if numbered else ():
                found.setdefault(stem, set()).update(n for a, b in ranges[0] for n in range(a, b + 1))
        return {stem: frozenset(each) for stem, each in found.items()}


@dataclass(eq=False)
class Architecture:
    """A class of diffusers: every name of its modules, and its released sizes. `model`: what files call it."""

    cls: str
    model: str
    variants: list[Variant] = field(default_factory=list)
    dotted: dict[str, list[Ranges]] = field(default_factory=dict)

    @cached_property
    def direct(self) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for module, ranges in self.dotted.items():
            allowed = []
            for at in range(len(ranges[0])):
                runs = [run for each in ranges for run in each[at]]
                values = {n for a, b in runs for n in (a, b)}
                free = any(a < b for a, b in runs) or len(values) > 2
                allowed.append(None if free else frozenset(values))
            name = module
            for a in (a for a, token in zip(allowed, _TOKENS.findall(module), strict=True) if token == "#"):
                name = name.replace("#", "\0" if a is None or len(a) > 1 else str(min(a)), 1)
            # A digit within a word is that digit: it is in the name already, and no number to fill in.
            words = [a if token == "#" else frozenset({int(token)})
                     for a, token in zip(allowed, _TOKENS.findall(module), strict=True)]  # fmt: skip
            found.setdefault(_flat(module), []).append(Entry(tuple(words), (name.replace("\0", "#"),)))
        return found

    @cached_property
    def names(self) -> dict[str, list[Entry]]:
        """All names: those of diffusers first, then those of the authors, of layers that were fused, and of mflux."""
        found = {flat: list(entries) for flat, entries in self.direct.items()}
        for theirs, ours, order in (*self._spelt(), *self._lines(MFLUX.get(self.cls, ""))):
            if not all(_flat(module) in self.direct for module in ours):
                continue
            allowed = tuple(None if token == "#" else frozenset({int(token)}) for token in _TOKENS.findall(theirs))
            entry = Entry(allowed, ours, order)
            entries = found.setdefault(_flat(theirs), [])
            if not any((each.allowed, each.modules) == (entry.allowed, entry.modules) for each in entries):
                entries.append(entry)
        return found

    @cached_property
    def _authors(self) -> list[tuple[str, tuple[str, ...], str, re.Pattern[str]]]:
        """Lines of ORIGINS, and for each a pattern of the modules that it is about."""
        return [
            (theirs, ours, order, re.compile("|".join(re.escape(each).replace(r"\#", r"(\d+)") for each in ours)))
            for theirs, ours, order in self._original()
        ]

    def authors(self, module: str) -> tuple[str, tuple[str, ...], str] | None:
        """What the authors of the model call the layer that a module is, or is part of; all of the modules whose rows
        it has, and their order as in ORIGINS. None where they call it as diffusers does."""
        for theirs, ours, order, pattern in self._authors:
            if match := pattern.fullmatch(module):
                number = next((each for each in match.groups() if each is not None), "")
                return theirs.replace("#", number), tuple(each.replace("#", number) for each in ours), order
        return None

    def _original(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        yield from self._lines(ORIGINS.get(self.cls, ""))

    @cached_property
    def _modules(self) -> list[str]:
        return [entry.modules[0] for entries in self.direct.values() for entry in entries]

    def _lines(self, text: str) -> Iterator[tuple[str, tuple[str, ...], str]]:
        for line in text.splitlines():
            if not line:
                continue
            theirs, _, ours = line.partition(" = ")
            order = re.match(r"[~?%]*", ours)[0]  # type: ignore[index]
            ours = ours.removeprefix(order)
            if theirs.endswith(".*"):
                stem = ours.removesuffix("*")
                for module in self._modules:
                    if module.startswith(stem):
                        yield theirs.removesuffix("*") + module.removeprefix(stem), (module,), order
            elif ours.endswith("]"):
                block, _, leaves = ours.removesuffix("]").partition("[")
                yield theirs, tuple(block + leaf for leaf in leaves.split()), order
            else:
                yield theirs, (ours,), order

    def _spelt(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        yield from self._original()
        known = set(self._modules)
        for module in self._modules:
            block, _, leaf = module.rpartition(".")
            for whole, parts in _FUSED:
                together = tuple(f"{block}.{part}" for part in parts)
                if leaf == parts[0] and known.issuperset(together) and f"{block}.{whole}" not in known:
                    yield f"{block}.{whole}", together, ""

    def entry(self, flat: str, found: Numbers) -> Entry | None:
        """What a name is here; None where no module can be it."""
        return next((entry for entry in self.names.get(flat, ()) if entry.takes(found)), None)

    def rows(self, modules: Modules, shape: Shape, variant: Variant) -> tuple[int, ...] | None:
        """The rows of each of the modules that a layer of this shape is in a released size; None where it is not."""
        counts = []
        for module in modules:
            known = variant.shape(*module)
            if known is None:
                return None
            if len(known) == 1:
                known = (known[0], 1)
            if known[1] != shape[1]:
                return None
            counts.append(known[0])
        return tuple(counts) if sum(counts) == shape[0] else None

    def proportioned(self, modules: Modules, shape: Shape, variant: Variant) -> bool:
        """Whether a layer is as much taller than wide as that of a released size: a small model of it is."""
        known = [variant.shape(*module) for module in modules]
        out = sum(each[0] for each in known if each)
        return all(each and len(each) == 2 and out * shape[1] == shape[0] * each[1] for each in known)


@dataclass(frozen=True, eq=False)
class Table:
    architectures: tuple[Architecture, ...]

    @cached_property
    def named(self) -> Mapping[str, frozenset[int]]:
        """Flat name → the architectures that have it."""
        found: dict[str, set[int]] = {}
        for n, each in enumerate(self.architectures):
            for flat in each.names:
                found.setdefault(flat, set()).add(n)
        return {flat: frozenset(which) for flat, which in found.items()}

    @cached_property
    def variants(self) -> tuple[tuple[Architecture, Variant], ...]:
        return tuple((each, variant) for each in self.architectures for variant in each.variants)


@cache
def table() -> Table:
    """modules.json, read once; it costs some ten milliseconds, and no library beside Python's own."""
    found: dict[str, Architecture] = {}
    ranks: dict[str, int] = {}
    for row in json.loads(TABLE.read_text())["released"]:
        arch = found.setdefault(row["class"], Architecture(row["class"], row["model"]))
        rows: dict[str, list[tuple[Ranges, tuple[int, ...]]]] = {}
        for name, shape in unfolded(row["modules"]):
            flat, module, ranges = _row(name)
            rows.setdefault(flat, []).append((ranges, shape))
            arch.dotted.setdefault(module, []).append(ranges)
        rank = ranks.setdefault(row["family"], len(ranks))
        arch.variants.append(
            Variant(row["family"], row["variant"], rank, {flat: tuple(each) for flat, each in rows.items()})
        )
    return Table(tuple(found.values()))


def kin(model: str | None, arch: Architecture) -> bool:
    """Whether a file's word for a model may mean this one: a second transformer is one of the same class."""
    return model is None or arch.model == re.sub(r"^transformer_(2|ref)$", "transformer", model)


@dataclass(frozen=True)
class Named:
    """A name of a file without its prefix: what it is called, its model where it says so, and its shape if known."""

    model: str | None
    name: str
    shape: Shape | None

    @cached_property
    def parsed(self) -> tuple[str, Numbers]:
        return parsed(self.name)


def spoken(names: Sequence[Named], claim: str | None = None) -> tuple[Architecture, Variant | None] | None:
    """The architecture whose names these are, and the released size whose shapes they have; None where no name is of
    any. Of several the one that has most of them, then at their shapes, then in their proportions, then the one that
    the header claims."""
    said = table()
    flats = Counter(each.parsed[0] for each in names)
    votes: Counter[int] = Counter()
    for flat, count in flats.items():
        for n in said.named.get(flat, ()):
            votes[n] += count
    if not votes:
        return None
    best = max(votes.values())
    found = []
    candidates = sorted(n for n, count in votes.items() if count == best)
    for n in candidates:
        arch = said.architectures[n]
        entries = [(each, arch.entry(*each.parsed)) for each in names if kin(each.model, arch)]
        known = [(each, entry) for each, entry in entries if entry is not None]
        if not known:
            continue
        shaped = [(entry, entry.parsed(each.parsed[1]), each.shape) for each, entry in known if each.shape is not None]
        fits = {
            variant: sum(arch.rows(modules, shape, variant) is not None for _, modules, shape in shaped)
            for variant in arch.variants
        }
        variant = max(arch.variants, key=lambda v: fits[v])
        shown = _SHOWN.get(arch.cls)
        if shown and not fits[variant] and not any(shown in each.name for each, _ in known):
            continue
        alike = likely = 0
        if len(candidates) > 1:  # else there is nothing to choose
            alike = max(
                sum(arch.proportioned(modules, shape, variant) for _, modules, shape in shaped)
                for variant in arch.variants
            )
            likely = sum(_likely(entry, shape) for entry, _, shape in shaped)
        claimed = claim is not None and any(v.family == claim for v in arch.variants)
        found.append(
            ((len(known), fits[variant], likely, alike, claimed, -n), arch, variant if fits[variant] else None)
        )
    if not found:
        return None
    return max(found, key=lambda each: each[0])[1:]


def _likely(entry: Entry, shape: Shape) -> bool:
    """Whether a layer of this shape could be these modules in a model of any size."""
    if len(entry.modules) == 1:
        return True
    if entry.order == "%":
        return shape[0] > shape[1] and shape[0] != 3 * shape[1]
    return shape[0] > 3 * shape[1] if len(entry.modules) == 4 else shape[0] % len(entry.modules) == 0
