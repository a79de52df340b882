"""Source "iconify": families of icons as npm packages hold them, an artist each; rendered here, without a network.

`folder` is a package of all families (@iconify/json), of one (@iconify-json/NAME), or a folder that holds some of these
(node_modules/@iconify-json). A family's drawings are SVG bodies in one JSON file, with author and licence beside them:
real designers' styles, who draw the same subjects under the same names.

What is left out, unless `pictures.icons` says otherwise: families whose licence forbids commercial use, families of
logos, and flags, which are others' signs; drawings that repeat another (skin tones) always. A family that is left out
is no artist, and named in the error where somebody asks for it; a drawing is a refused row with the reason.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...keys import DIGESTS
from ...labels import printable
from ...sections import Icons, Pictures
from .listing import Source, SourceError, at_most, choose, chosen_order, gathered, row, slug, unknown, wanted

LAYOUT = """`make extras` puts all families into results/extras/iconify; expected one of
    {folder}/json/twemoji.json and {folder}/collections.json    (npm pack @iconify/json, unpacked)
    {folder}/icons.json and {folder}/info.json                  (one family: npm pack @iconify-json/twemoji)
    {folder}/twemoji/icons.json, …                              (several: node_modules/@iconify-json)"""
MAX_FILE = 256 * 2**20  # bytes of a family: the largest is a tenth of that
MAX_BODY = 2**18  # characters of a drawing
MARGIN = 1 / 16  # of the side, around a drawing
SAME = re.compile(r"skin-?tone|(^|-)(light|medium|dark)-skin")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # fluent-emoji's ends of names
_TONED = re.compile(r"-(medium-)?(light|dark)$|-medium$")
FLAG = re.compile(r"^flag(s)?-|-flag$|^flag-?for", re.IGNORECASE)
FOREIGN = {"image", "script", "foreignObject", "text", "style"}  # what would read files or fonts
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "http://www.w3.org/1999/xlink"
_ANIMATED = re.compile(r"<(animate|set)")


@dataclass(frozen=True)
class Family:
    """A family of icons: its name, its file of drawings, and what the package says of it."""

    name: str
    path: Path
    info: Mapping[str, Any]

    @property
    def genre(self) -> str | None:
        category = self.info.get("category")
        return slug(str(category)) if category else None

    @property
    def title(self) -> str:
        return printable(str(self.info.get("name") or self.name))

    @property
    def author(self) -> str:
        return printable(str((self.info.get("author") or {}).get("name", "unknown")))

    @property
    def spdx(self) -> str:
        return str((self.info.get("license") or {}).get("spdx"))

    @property
    def category(self) -> str:
        return str(self.info.get("category"))

    @property
    def palette(self) -> bool:
        """Whether its drawings have colours of their own."""
        return bool(self.info.get("palette"))

    @property
    def licence(self) -> str:
        licence = self.info.get("license") or {}
        return printable(f"{licence.get('spdx') or licence.get('title') or 'unknown'}, {self.author}")

    def left_out(self, icons: Icons) -> str | None:
        """Why the family is no artist; None where it is one."""
        spdx, category = self.spdx, self.category
        if icons.licences is not None and spdx not in icons.licences:
            return f"its licence, {spdx}, is not among pictures.icons.licences"
        if icons.licences is None and "-NC" in spdx:
            return f"its licence, {spdx}, forbids commercial use; name it in pictures.icons.licences"
        if icons.categories is not None:
            return None if category in icons.categories else f"its category, {category}, is not among those asked for"
        if category == "Logos" or (category.startswith("Flags") and not icons.flags):
            return f"its category is {category}; name it in pictures.icons.categories"
        if icons.palette is not None and self.palette != icons.palette:
            return f"it is {'of one colour' if icons.palette else 'coloured'}; see pictures.icons.palette"
        return None


def _icons(pictures: Pictures) -> Icons:
    return Icons(**(pictures.icons or {}))


@cache
def _read_info(path: Path, size: int) -> Mapping[str, Any]:
    """A file of information, once for a size; the size is in the key, so that another file is read again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as JSON ({error}); unpack the package again") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: expected an object; unpack the package again")
    return found


def families(folder: str | None) -> dict[str, Family]:
    """Slug → family, sorted; raises SourceError where the folder is none of these packages."""
    if folder is None:
        raise SourceError("folder: not set; pictures.source is iconify. " + LAYOUT.format(folder="folder"))
    root, found = Path(folder), []
    if (root / "collections.json").is_file() and (root / "json").is_dir():
        path = root / "collections.json"
        known = _read_info(path, path.stat().st_size)
        found = [Family(name, root / "json" / f"{name}.json", info) for name, info in known.items()]
        found = [family for family in found if family.path.is_file() and isinstance(family.info, dict)]
    else:
        for package in (root, *sorted(path for path in root.iterdir() if path.is_dir())) if root.is_dir() else ():
            info = package / "info.json"
            if (package / "icons.json").is_file() and info.is_file():
                told = _read_info(info, info.stat().st_size)
                name = str(told.get("prefix") or package.resolve().name)
                found.append(Family(name, package / "icons.json", told))
    if not found:
        raise SourceError(f"{folder}: no family of icons in it; " + LAYOUT.format(folder=folder))
    return {slug(family.name): family for family in sorted(found, key=lambda family: family.name)}


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    there, icons = families(folder), _icons(pictures)
    why = {name: family.left_out(icons) for name, family in there.items()}
    for name in wanted(pictures) or {}:
        if why.get(name):
            raise SourceError(f"pictures.artists: {name} is left out: {why[name]}")
    return choose({name: family.genre for name, family in there.items() if why[name] is None}, pictures)


def _count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    there = families(folder)
    totals = {name: int(there[name].info.get("total") or 0) for name in _artists(pictures, folder)}
    return at_most(totals, pictures.per_artist)


def _digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    there, digests = families(folder), {}
    for name in _artists(pictures, folder):
        family = there[name]
        said = [family.name, DIGESTS.file(family.path), family.info.get("version"), family.licence]
        digests[name] = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    return digests


def subject(name: str, ends: Iterable[str] = ()) -> str:
    """What a drawing is of, by its name: cat-face, cat_face and CatFace are one, and so is cat-outline where the family
    says that its names have such ends (`suffixes` of its file)."""
    bare = next((name.removesuffix(f"-{end}") for end in sorted(ends, key=len)[::-1] if name.endswith(f"-{end}")), name)
    return re.sub(r"[^a-z0-9]+", "", bare.lower()) or re.sub(r"[^a-z0-9]+", "", name.lower())


def _toned(names: Collection[str]) -> set[str]:
    """Names of drawings that repeat another in another skin tone: by a word in them, or where nothing but the five ends
    of names tells."""
    known = set(names)
    people = {name for name in known if all(f"{name}-{tone}" in known for tone in TONES)}
    found = set(filter(SAME.search, known))
    for name in known:
        bare = name
        while bare not in people and (shorter := _TONED.sub("", bare)) != bare:
            bare = shorter
        if bare != name and bare in people:
            found.add(name)
    return found


def _collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    there, icons = families(folder), _icons(pictures)
    if artist not in there:
        raise SourceError(unknown(artist, list(there)))
    family = there[artist]
    if family.path.stat().st_size > MAX_FILE:
        raise SourceError(f"{family.path}: {family.path.stat().st_size:,} bytes; more than a family of icons has")
    data = _read_family(family.path)
    drawings = _drawings(data)
    flags = {str(name) for name in data.get("categories", {}).get("Flags", ())}
    toned, ends = _toned(drawings), [str(end) for end in data.get("suffixes") or {} if end]

    def read(name: str) -> dict[str, Any]:
        label = printable(f"{family.name}/{name}.svg")
        blank = row(None, label, artist, genre, "iconify", family.licence) | {"subject": subject(name, ends)}
        if name in toned:
            return blank | {"reason": "another drawing of the family in another skin tone"}
        if not icons.flags and (name in flags or FLAG.search(name)):
            return blank | {"reason": "a flag; pictures.icons.flags: true keeps them"}
        try:
            png = _drawn(drawings[name], data, icons)
        except ValueError as error:
            return blank | {"reason": str(error)}
        return row(png, label, artist, genre, "iconify", family.licence) | {"subject": subject(name, ends)}

    # Drawings have the size that was asked for, which is never too small.
    pictures = pictures | {"min_side": min(pictures.min_side, icons.size // 4)}
    return gathered(chosen_order(drawings, artist, seed), read, pictures, str(family.path))


def _read_family(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data["icons"], dict):
            raise TypeError("icons is no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: not a family of icons ({error}); unpack the package again") from error
    return dict(data)


def _drawings(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name → drawing, of all that are shown."""
    return {name: each for name, each in data["icons"].items() if isinstance(each, dict) and not each.get("hidden")}


def drawings(family: Family) -> list[str]:
    """The names of a family's drawings, without those that repeat one in another skin tone, and without flags."""
    names = _drawings(_read_family(family.path))
    toned = _toned(names)
    return [name for name in names if name not in toned and not FLAG.search(name)]


def rendered(path: Path, names: Iterable[str], icons: Icons) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of those of a family's drawings that can be drawn."""
    data = _read_family(path)
    for name in names:
        with contextlib.suppress(ValueError):
            yield name, _drawn(data["icons"][name], data, icons)


def _drawn(drawing: Mapping[str, Any], family: Mapping[str, Any], icons: Icons) -> bytes:
    """A drawing of a family as PNG; raises ValueError as `render` does."""
    return render(str(drawing.get("body", "")), _box(drawing, family), icons)


def _box(drawing: Mapping[str, Any], family: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """left, top, width, height of a drawing: its own, or its family's, or what the format says (16)."""
    ends = [drawing.get(key, family.get(key, default)) for key, default in _BOX]
    if not all(isinstance(end, int | float) for end in ends) or not min(ends[2:]) > 0:
        raise ValueError(f"broken: its box is {ends}")
    left, top, width, height = (float(end) for end in ends)
    return left, top, width, height


_BOX = (("left", 0), ("top", 0), ("width", 16), ("height", 16))


def render(body: str, box: tuple[float, float, float, float], icons: Icons) -> bytes:
    """A drawing as PNG (size, size): centred on the ground; where it has no colour of its own, in the ink. Of one that
    draws itself (SMIL), what it ends as.

    Raises ValueError for a body that is broken, reads anything outside itself, or draws nothing.
    """
    import numpy as np
    import vl_convert
    from PIL import Image

    from ..decode import encode_png

    root = _check(body)
    if _ANIMATED.search(body):
        body = _finished(root)
        _check(body)  # once more: it may have come to refer to something outside itself
    inner = icons.size * (1 - 2 * MARGIN)
    at = icons.size * MARGIN
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{_XLINK}" width="{icons.size}" '
        f'height="{icons.size}"><rect width="100%" height="100%" fill="{icons.ground}"/><svg x="{at}" y="{at}" '
        f'width="{inner}" height="{inner}" viewBox="{" ".join(f"{end:g}" for end in box)}" color="{icons.ink}">'
        f"{body}</svg></svg>"
    )
    try:
        png = vl_convert.svg_to_png(svg, scale=1.0, ppi=72.0)
    except ValueError as error:
        raise ValueError(f"broken: it cannot be drawn ({str(error)[:80]})") from error
    image = Image.open(io.BytesIO(png)).convert("L" if icons.grey else "RGB").convert("RGB")
    pixels = np.asarray(image)
    if (pixels == pixels[0, 0]).all():
        raise ValueError("broken: it draws nothing")
    return encode_png(pixels)


def _finished(root: ElementTree.Element) -> str:
    """The body as its animations leave it, where they end and leave it changed (`fill="freeze"`, SVG 1.1, 19.2.10);
    what never ends stands as it is before it begins.

    A renderer of still pictures shows the first moment: of a line that draws itself, nothing.
    """
    named = {element.get("id"): element for element in root.iter() if element.get("id")}
    for parent in list(root.iter()):
        for animation in list(parent):
            tag, name = str(animation.tag).removeprefix(_SVG), animation.get("attributeName")
            values = (animation.get("values") or "").strip().rstrip(";").rpartition(";")[2].strip()
            last = values or animation.get("to")
            endless = "indefinite" in (animation.get("repeatCount"), animation.get("repeatDur"))
            if not last or not name or endless or animation.get("fill") != "freeze":
                continue
            link = animation.get("href") or animation.get(f"{{{_XLINK}}}href")
            element = parent if link is None else named.get(link.removeprefix("#"))
            if element is None:
                continue
            if tag in {"animate", "set"}:
                element.set(name, last)
                if style := element.get("style"):  # which goes before the attribute
                    kept = (part for part in style.split(";") if part.partition(":")[0].strip() != name)
                    element.set("style", ";".join(kept))
            elif tag == "animateTransform":
                before = element.get(name, "") if animation.get("additive") == "sum" else ""
                element.set(name, f"{before} {animation.get('type', 'translate')}({last})".strip())
    for element in root.iter():
        element.tag = str(element.tag).removeprefix(_SVG)
    root.tag = "g"
    return ElementTree.tostring(root, encoding="unicode")


def _check(body: str) -> ElementTree.Element:
    """The body, parsed; raises ValueError as `render` does."""
    if len(body) > MAX_BODY:
        raise ValueError(f"too large: {len(body):,} characters")
    try:
        root = ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{_XLINK}">{body}</svg>')
    except ElementTree.ParseError as error:
        raise ValueError(f"broken: no XML ({error})") from error
    for element in root.iter():
        tag = str(element.tag).removeprefix(_SVG)
        if tag in FOREIGN:
            raise ValueError(f"it has a <{tag}>, which is not drawn here")
        for key, value in element.attrib.items():
            if key.rsplit("}", 1)[-1] == "href" and not value.startswith("#"):
                raise ValueError("it refers to something outside itself")
            if "url(" in value and "url(#" not in value.replace('"', "").replace("'", "").replace(" ", ""):
                raise ValueError("it refers to something outside itself")
    return root


SOURCE = Source(
    _artists,
    _count,
    _digests,
    _collect,
    about="drawings of icon families by their designers, rendered from packages of iconify",
    subjects=True,
)
