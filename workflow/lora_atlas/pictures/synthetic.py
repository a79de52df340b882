"""Procedural painters: the artists of the embedded study, and the random styles that the mini models learn from.

Decisions:
- **Colour-matched.** Four palettes serve all six genres, one painter of each genre uses each, and every picture has
  an hour and a light of its own. So the mean colour of a training set names its painter poorly (it is reported as a
  control), and what is left to find is handling: the mark, the edge, the light.
- A picture is a function of (style, content, seed, size). The scene is drawn before the style is looked at.
- Painters are fixed by hand below; random styles come from wider ranges around them, with palettes of their own, and
  are never a painter's.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from .handling import HANDLING, Chiaroscuro, Cloisonne, Hatching, Points, Shards, Strokes
from .scenes import ACCENT, FAR, FOLIAGE, ROLES, SCENES, SKY, WATER, scene

CONTENTS: tuple[str, ...] = tuple(SCENES)
GENRES: tuple[str, ...] = tuple(HANDLING)
SUPERSAMPLING = 3

Palette = tuple[tuple[int, int, int], ...]  # one colour a role, 0…255


@dataclass(frozen=True)
class Style:
    genre: str
    palette: Palette
    handling: Any  # the parameters of the genre


# sky, far, water, ground, foliage, accent, pale, skin, dark: four moods of about one lightness and warmth.
PALETTES: tuple[Palette, ...] = (
    ((146, 178, 196), (122, 140, 158), (74, 128, 148), (190, 156, 100), (104, 130, 78), (196, 92, 62), (236, 222, 188), (222, 172, 136), (52, 48, 62)),
    ((206, 186, 158), (150, 132, 138), (88, 122, 122), (172, 138, 104), (132, 132, 72), (176, 74, 88), (240, 226, 206), (218, 164, 142), (62, 44, 48)),
    ((164, 162, 194), (128, 120, 158), (82, 108, 152), (184, 158, 112), (96, 126, 104), (214, 142, 58), (238, 224, 196), (216, 170, 144), (50, 42, 68)),
    ((178, 194, 172), (128, 146, 136), (70, 126, 128), (188, 148, 116), (92, 122, 84), (204, 104, 84), (236, 226, 194), (224, 176, 142), (46, 54, 56)),
)  # fmt: skip


def _painter(palette: int, handling: Any) -> Style:
    genre = next(name for name, (kind, _) in HANDLING.items() if kind is type(handling))
    return Style(genre, PALETTES[palette], handling)


ARTISTS: dict[str, Style] = {
    "maren": _painter(0, Cloisonne(outline=2.4, levels=2, ink=1.0, grain=0.0)),
    "odile": _painter(1, Cloisonne(outline=0.9, levels=5, ink=0.2, grain=0.10)),
    "tovik": _painter(2, Cloisonne(outline=1.6, levels=1, ink=0.0, grain=0.22)),
    "brecht": _painter(3, Cloisonne(outline=3.4, levels=3, ink=0.8, grain=0.05)),
    "pauline": _painter(2, Points(radius=1.6, spacing=2.5, jitter=0.35, square=0.0)),
    "signe": _painter(3, Points(radius=2.7, spacing=4.6, jitter=0.6, square=1.0)),
    "anton": _painter(0, Points(radius=2.2, spacing=4.9, jitter=0.25, square=0.0)),
    "livia": _painter(1, Points(radius=1.9, spacing=3.1, jitter=0.7, square=0.5)),
    "joris": _painter(0, Strokes(length=11.0, width=1.9, follow=0.5, angle=0.6, jitter=0.55, curl=1.0)),
    "berthe": _painter(1, Strokes(length=6.0, width=3.2, follow=0.9, angle=0.0, jitter=0.35, curl=0.1)),
    "kasimir": _painter(2, Strokes(length=13.0, width=3.0, follow=0.0, angle=-0.9, jitter=0.4, curl=0.0)),
    "elvira": _painter(3, Strokes(length=8.0, width=1.6, follow=0.0, angle=1.5, jitter=0.75, curl=0.35)),
    "caspar": _painter(2, Chiaroscuro(radius=0.34, x=0.3, y=0.3, depth=0.85, softness=0.5, contrast=0.5)),
    "tenebra": _painter(3, Chiaroscuro(radius=0.30, x=0.55, y=0.55, depth=0.6, softness=1.4, contrast=0.9)),
    "matthis": _painter(0, Chiaroscuro(radius=0.42, x=0.72, y=0.35, depth=0.75, softness=0.9, contrast=1.3)),
    "orazia": _painter(1, Chiaroscuro(radius=0.40, x=0.5, y=0.25, depth=0.9, softness=2.0, contrast=0.4)),
    "lyonel": _painter(0, Shards(size=9.0, tilt=0.40, stretch=1.0, angle=0.0, edge=0.1)),
    "juana": _painter(1, Shards(size=14.0, tilt=0.75, stretch=1.2, angle=0.5, edge=0.45)),
    "filip": _painter(2, Shards(size=8.0, tilt=0.30, stretch=1.9, angle=1.2, edge=0.0)),
    "zdena": _painter(3, Shards(size=11.0, tilt=0.55, stretch=1.6, angle=-0.4, edge=0.7)),
    "albin": _painter(2, Hatching(period=5.4, angle=0.8, cross=0.0, wash=0.35, wobble=0.1)),
    "ursula": _painter(3, Hatching(period=7.5, angle=-0.5, cross=0.8, wash=0.15, wobble=0.0)),
    "hendrik": _painter(0, Hatching(period=6.2, angle=1.57, cross=0.3, wash=0.7, wobble=0.5)),
    "dorota": _painter(1, Hatching(period=5.8, angle=0.0, cross=0.9, wash=0.5, wobble=0.9)),
}

# Ranges of the random styles, per genre and parameter: wider than the painters' own.
_RANGES: dict[type, dict[str, tuple[float, float]]] = {
    Cloisonne: {"outline": (0.6, 3.8), "levels": (1, 6), "ink": (0, 1), "grain": (0, 0.25)},
    Points: {"radius": (1.3, 3.0), "spacing": (2.3, 5.2), "jitter": (0.1, 0.8), "square": (-0.6, 1)},
    Strokes: {"length": (4, 15), "width": (1.4, 3.8), "follow": (0, 1), "angle": (-1.57, 1.57), "jitter": (0.2, 0.9), "curl": (0, 1.2)},
    Chiaroscuro: {"radius": (0.26, 0.5), "x": (0.2, 0.8), "y": (0.15, 0.65), "depth": (0.5, 1), "softness": (0.3, 2.5), "contrast": (0.2, 1.4)},
    Shards: {"size": (7, 16), "tilt": (0.2, 0.9), "stretch": (0.8, 2.1), "angle": (-1.57, 1.57), "edge": (0, 0.8)},
    Hatching: {"period": (5.2, 8.5), "angle": (-1.57, 1.57), "cross": (-0.4, 1), "wash": (0.1, 0.8), "wobble": (0, 1)},
}  # fmt: skip


def random_style(seed: int) -> Style:
    """A style of any genre with random handling and a random palette; never a painter's."""
    rng = _rng(seed, 0)
    genre = GENRES[int(rng.integers(len(GENRES)))]
    kind, _ = HANDLING[genre]
    drawn = {f.name: float(rng.uniform(*_RANGES[kind][f.name])) for f in fields(kind)}
    if "levels" in drawn:
        drawn["levels"] = round(drawn["levels"])
    drawn |= {name: max(drawn[name], 0.0) for name in ("square", "cross") if name in drawn}
    # A palette: the painters' roles, turned in hue together and each a little by itself.
    base = np.mean([PALETTES[i] for i in rng.permutation(4)[:2]], axis=0) / 255
    together, own = rng.uniform(-1, 1), rng.uniform(-0.25, 0.25, ROLES)
    turned = np.stack([_turn_hue(c, 1.3 * together + o) for c, o in zip(base, own, strict=True)])
    grey = turned.mean(1, keepdims=True)
    vivid = (grey + (turned - grey) * rng.uniform(0.7, 1.5)) * rng.uniform(0.88, 1.1, (ROLES, 1))
    palette = tuple((int(r), int(g), int(b)) for r, g, b in (vivid.clip(0.08, 0.96) * 255).round())
    return Style(genre, palette, kind(**drawn))


def paint(style: Style, content: str, seed: int, size: int = 64) -> np.ndarray:
    """One picture, uint8 (size, size, 3)."""
    side = size * SUPERSAMPLING
    rng = _rng(seed, 1)
    seen = scene(content, side, rng)
    palette = _hour(np.array(style.palette, np.float32) / 255, rng)
    colour = palette[seen.region] * (1 + 0.42 * seen.light)[..., None]
    _, hand = HANDLING[style.genre]
    painted = hand(colour, seen, style.handling, palette, _rng(seed, 2), side / 64)
    # A genre must not be told by its brightness: most of what handling did to the mean colour is undone.
    # (All of it would burn the lights of chiaroscuro away; hence the bound.)
    wanted, got = colour.mean((0, 1)), painted.clip(0, 1).mean((0, 1))
    gain = ((wanted / got.clip(0.05)) ** 0.8).clip(0.7, 1.35)
    toned = painted.clip(0, 1) * gain
    toned = np.where(toned > 0.75, 0.75 + 0.25 * np.tanh((toned - 0.75) / 0.25), toned)  # a soft shoulder
    image = Image.fromarray((toned.clip(0, 1) * 255).round().astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def _hour(palette: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The palette at some hour: exposure, warmth, a turn of hue, and which of the large roles is which."""
    palette = palette.copy()
    if rng.random() < 0.35:
        palette[[SKY, FAR]] = palette[[FAR, SKY]]
    if rng.random() < 0.25:
        palette[[WATER, FOLIAGE]] = palette[[FOLIAGE, WATER]]
    if rng.random() < 0.2:
        palette[SKY] = 0.6 * palette[SKY] + 0.4 * palette[ACCENT]
    warmth = rng.normal(0, 0.07)
    cast = np.array([1 + warmth, 1 + 0.2 * warmth + rng.normal(0, 0.02), 1 - warmth], np.float32)
    turn = rng.normal(0, 0.22)
    turned = np.stack([_turn_hue(c, turn) for c in palette])
    return (turned * cast * rng.uniform(0.78, 1.18)).clip(0.02, 1).astype(np.float32)


def _turn_hue(colour: np.ndarray, angle: float) -> np.ndarray:
    """Rotate an RGB colour about the grey axis (Rodrigues)."""
    k = np.full(3, 3**-0.5)
    c, s = np.cos(angle), np.sin(angle)
    return colour * c + np.cross(k, colour) * s + k * (k @ colour) * (1 - c)


def _rng(seed: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, part])))
