"""What the mini base of icons is pretrained on: drawings of icon families that no study uses, captioned by their names.

The embedded studies' base knows procedural pictures and nothing else. This one has seen what icons look like, drawn by
some hundred other designers; the families of designers.yaml and designers-50.yaml are not among them, and of theirs it
knows subjects, not styles. Captions say what a drawing is of, by the commonest words of the names ("an icon of a cat
face"), and never whose it is. Only families whose licence asks for no more than to be named are used, and all of them
are named on its card.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ..pictures.decode import to_array
from ..pictures.sources.iconify import Family, drawings, families, rendered
from ..pictures.sources.listing import chosen_order, slug
from ..sections import Icons
from ..tables import replacing
from .corpus import Corpus

LICENCES = ("MIT", "Apache-2.0", "CC0-1.0", "ISC", "CC-BY-4.0", "CC-BY-3.0")
BRANDS = ("Logos", "Programming")  # categories
BRAND = re.compile(r"wordmark|logo|brand|devicon")  # of a drawing
NOUN = "icon"
WORDS = 400  # of names, the commonest; rarer ones are left out of captions
LONGEST = 3  # words of a caption
COLOURED = 4  # drawings of a coloured family for each of a family of one colour: there are fewer of them
# Words of names that say how an icon is drawn, or which of several it is: style is not for captions.
_MANNER = """
outline outlined filled fill solid bold light thin regular sharp sharper rounded round linear line duotone twotone tone
two broken color colour mini micro small large alt off the and with rtl ltr black white dark medium new baseline square
circle stroke
"""
MANNER = frozenset(_MANNER.split())


@dataclass(frozen=True)
class Used:
    """A family that was learnt from, and how many of its drawings."""

    name: str
    title: str
    author: str
    licence: str
    drawings: int


def studied(folder: str | Path) -> set[str]:
    """The families that the studies of a folder use: whatever they and their variants name as artists of icons."""
    found: set[str] = set()
    for path in Path(folder).glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if (config.get("pictures") or {}).get("source") != "iconify":
            continue
        for each in (config, *(config.get("variants") or {}).values()):
            found |= {slug(name) for name in (each.get("pictures") or {}).get("artists") or ()}
    return found


def learnt_from(family: Family, name: str, avoid: Collection[str]) -> bool:
    """Whether a family is for pretraining: of a free licence, no collection of brands, and neither one of `avoid` nor
    one of its sisters, which bear its name with another ending (emojione-monotone)."""
    sister = any(name == other or name.startswith(f"{other}-") for other in avoid)
    brands = family.category in BRANDS or "brands" in name
    return not sister and not brands and family.left_out(Icons(licences=LICENCES)) is None


def words(name: str) -> list[str]:
    """The words of a drawing's name that may say what it is of."""
    found = [word for word in re.split(r"[^a-z]+", name.lower()) if len(word) > 2 and word not in MANNER]
    return list(dict.fromkeys(found))


def make(folder: str | Path, avoid: Collection[str], *, count: int, size: int, seed: int, workers: int):
    """`count` drawings of `size` pixels, in equal parts a family but for coloured ones: (Corpus, families used).

    Raises SourceError where the folder holds no families.
    """
    there = {name: family for name, family in families(str(folder)).items() if learnt_from(family, name, avoid)}
    chosen = _shared_out(there, count, seed)
    known = _vocabulary(words(name) for names in chosen.values() for name in names)
    tasks = [(str(family.path), tuple(chosen[name]), size) for name, family in there.items()]
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(_draw, tasks))
    pictures, contents, used = [], [], []
    for (name, family), found in zip(there.items(), drawn, strict=True):
        for drawing, pixels in found:
            pictures.append(pixels)
            contents.append(" ".join([w for w in words(drawing) if w in known][:LONGEST]))
        used.append(Used(name, family.title, family.author, family.spdx, len(found)))
    corpus = Corpus(np.stack(pictures), tuple(contents), tuple(contents), NOUN)
    return corpus, [each for each in used if each.drawings]


def _shared_out(there: dict[str, Family], count: int, seed: int) -> dict[str, list[str]]:
    """Family → its drawings in a seeded order, as many as its share; what small families leave goes to the others."""
    names = {}
    for name, family in there.items():
        names[name] = chosen_order([each for each in drawings(family) if not BRAND.search(each)], name, seed)
    weights = {name: COLOURED if family.palette else 1 for name, family in there.items()}
    taken = dict.fromkeys(names, 0)
    left = count
    while left > 0 and (open_ := [name for name in names if taken[name] < len(names[name])]):
        share = left / sum(weights[name] for name in open_)
        for name in open_:
            more = min(max(1, int(share * weights[name])), len(names[name]) - taken[name], left)
            taken[name] += more
            left -= more
    return {name: names[name][: taken[name]] for name in names}


def _vocabulary(named: Iterable[Sequence[str]]) -> set[str]:
    counts = Counter(word for each in named for word in each)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return set(ordered[:WORDS])


def _draw(task: tuple[str, tuple[str, ...], int]) -> list[tuple[str, np.ndarray]]:
    """Drawings of a family that can be drawn, pixels uint8 (size, size, 3)."""
    path, names, size = task
    found = []
    for name, png in rendered(Path(path), names, Icons(size=size)):
        with Image.open(io.BytesIO(png)) as image:
            found.append((name, to_array(image.convert("RGB"))))
    return found


def save_used(used: Sequence[Used], path: str | Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([vars(each) for each in used], indent=1) + "\n")
