"""Handling: how a painter turns a coloured scene into a picture. One frozen set of parameters and one function a genre.

Every function takes (colour float32 (W, W, 3) in 0…1, scene, parameters, palette (roles, 3), rng, scale) and returns
a picture of the same shape; `scale` is pixels of the canvas per 1/64 of the side, so that parameters are in pixels of
a 64-pixel picture whatever the size. Marks stay coarser than the autoencoders' 4× reduction wherever they carry style.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .scenes import DARK, PALE, Scene


@dataclass(frozen=True)
class Cloisonne:
    """Flat areas in dark outlines (Bernard, Denis)."""

    outline: float  # width
    levels: int  # tones per area
    ink: float  # 0: outline in the area's own shade, 1: the palette's dark
    grain: float  # weave of the ground


@dataclass(frozen=True)
class Points:
    """Dots of broken colour (Seurat, Signac)."""

    radius: float
    spacing: float
    jitter: float  # of colour
    square: float  # 0 round dots, 1 the long tesserae of the later manner


@dataclass(frozen=True)
class Strokes:
    """Visible brush strokes (van Gogh, Morisot)."""

    length: float
    width: float
    follow: float  # 1: along the forms, 0: along one angle
    angle: float
    jitter: float
    curl: float  # swirling of the direction


@dataclass(frozen=True)
class Chiaroscuro:
    """A lamp in the dark (Caravaggio, La Tour)."""

    radius: float  # of the lit disc, as a share of the side
    x: float
    y: float
    depth: float  # how dark the dark is
    softness: float  # of edges, px
    contrast: float


@dataclass(frozen=True)
class Shards:
    """Facets, each lit as a plane of its own (Feininger, Gris)."""

    size: float
    tilt: float  # of the light within a facet
    stretch: float  # anisotropy
    angle: float
    edge: float  # darkness of the seams


@dataclass(frozen=True)
class Hatching:
    """Lines whose width is the tone, on a tinted ground (Dürer, Altdorfer)."""

    period: float  # ≥ 5 px
    angle: float
    cross: float  # second set of lines: share of tone
    wash: float  # how much colour lies under the lines
    wobble: float


def cloisonne(colour, scene: Scene, p: Cloisonne, palette, rng, scale):
    from scipy import ndimage  # here: every start of Snakemake asks for the painters' names, which need none of it

    levels = np.round((scene.light * 0.5 + 0.5) * p.levels) / p.levels * 2 - 1
    flat = colour * (1 + 0.30 * (levels - scene.light))[..., None]
    region = scene.region.astype(np.int16)
    edge = np.zeros(region.shape, bool)
    edge[:, 1:] |= region[:, 1:] != region[:, :-1]
    edge[1:] |= region[1:] != region[:-1]
    distance = ndimage.distance_transform_edt(~edge)
    line = np.clip(p.outline * scale / 2 + 0.5 - distance, 0, 1)[..., None]
    ink = p.ink * palette[DARK] * 0.5 + (1 - p.ink) * flat * 0.35
    weave = p.grain * _noise(rng, colour.shape[0], 2.2 * scale)
    return (flat * (1 + weave[..., None])) * (1 - line) + ink * line


def points(colour, scene: Scene, p: Points, palette, rng, scale):
    side, step = colour.shape[0], p.spacing * scale
    ground = 0.55 * palette[PALE] + 0.45 * colour.mean((0, 1))
    n = int(np.ceil(side / step)) + 1
    rows = np.repeat(np.arange(n), n)
    centres = np.stack([rows, np.tile(np.arange(n), n) + 0.5 * (rows % 2)], 1) * step
    centres = centres + rng.normal(0, 0.2 * step, centres.shape)
    rng.shuffle(centres)
    at = np.clip(centres, 0, side - 1).astype(int)
    tint = colour[at[:, 0], at[:, 1]]
    # Broken colour: dots stray in hue, and some take the complement of their neighbours.
    tint = tint + p.jitter * rng.normal(0, 0.22, tint.shape)
    other = rng.random(len(tint)) < 0.16
    tint[other] = 0.55 * tint[other] + 0.45 * (tint[other].mean(1, keepdims=True) * 2 - tint[other])
    radius = p.radius * scale * rng.uniform(0.8, 1.15, len(at))
    angle = scene.angle[at[:, 0], at[:, 1]]
    canvas = _canvas(ground, side)
    pen = ImageDraw.Draw(canvas)
    for (y, x), r, c, a in zip(centres.tolist(), radius.tolist(), _bytes(tint), angle.tolist(), strict=True):
        if p.square > 0:
            dx, dy = np.cos(a) * r, np.sin(a) * r
            long, wide = 1 + 0.6 * p.square, 0.75
            ax, ay, bx, by = dx * long, dy * long, -dy * wide, dx * wide
            pen.polygon([(x - ax - bx, y - ay - by), (x + ax - bx, y + ay - by), (x + ax + bx, y + ay + by), (x - ax + bx, y - ay + by)], fill=c)  # fmt: skip
        else:
            pen.ellipse([x - r, y - r, x + r, y + r], fill=c)
    return np.asarray(canvas, np.float32) / 255


def strokes(colour, scene: Scene, p: Strokes, palette, rng, scale):
    side = colour.shape[0]
    area = max(p.length * p.width, 4.0)
    canvas = _canvas(colour.mean((0, 1)) * 0.85, side)
    canvas = Image.blend(canvas, Image.fromarray((colour.clip(0, 1) * 255).astype(np.uint8)), 0.6)
    pen = ImageDraw.Draw(canvas)
    count = int(min(2.6 * 64 * 64 / area, 1400))
    centres = rng.uniform(0, side, (count, 2))
    at = centres.astype(int)
    tint = colour[at[:, 0], at[:, 1]] * (1 + p.jitter * rng.normal(0, 0.28, (count, 1)))
    tint = tint + p.jitter * rng.normal(0, 0.08, tint.shape)
    swirl = p.curl * 2.4 * _noise(rng, side, 13 * scale)[at[:, 0], at[:, 1]]
    form = scene.angle[at[:, 0], at[:, 1]]
    angle = p.follow * form + (1 - p.follow) * p.angle + swirl + rng.normal(0, 0.12, count)
    half = 0.5 * p.length * scale * rng.uniform(0.7, 1.3, count)
    dx, dy = np.cos(angle) * half, np.sin(angle) * half
    width = max(1, round(p.width * scale))
    ends = np.stack([centres[:, 1] - dx, centres[:, 0] - dy, centres[:, 1] + dx, centres[:, 0] + dy], 1)
    for line, c in zip(ends.tolist(), _bytes(tint), strict=True):
        pen.line(line, fill=c, width=width)
    return np.asarray(canvas, np.float32) / 255


def chiaroscuro(colour, scene: Scene, p: Chiaroscuro, palette, rng, scale):
    from scipy import ndimage

    side = colour.shape[0]
    y, x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
    distance = np.hypot(x - p.x, (y - p.y) * 1.1)
    lamp = 1 / (1 + np.exp((distance - p.radius) * 11))
    soft = ndimage.gaussian_filter(colour, (p.softness * scale, p.softness * scale, 0))
    form = ndimage.gaussian_filter(scene.light, p.softness * scale * 0.7)
    lit = soft * (1 + p.contrast * form)[..., None] * (0.30 + 0.95 * lamp)[..., None]
    warm = np.array([1.06, 1.0, 0.9], np.float32)
    dark = palette[DARK] * 0.35 * (1 - p.depth) + soft * 0.30 * (1 - p.depth) + 0.02
    mix = (lamp ** (0.4 + 0.6 * p.depth))[..., None]
    return lit * warm * mix + dark * (1 - mix)


def shards(colour, scene: Scene, p: Shards, palette, rng, scale):
    side = colour.shape[0]
    step = p.size * scale
    n = int(np.ceil(side / step)) + 2
    grid = (np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2) - 0.5) * step
    seeds = grid + rng.uniform(-0.5, 0.5, grid.shape) * step
    # Work at a third of the canvas: facets have straight edges, and the distance to every seed is dear.
    cos, sin = np.cos(p.angle), np.sin(p.angle)
    turn = np.array([[cos * p.stretch, sin * p.stretch], [-sin / p.stretch, cos / p.stretch]])
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    places = np.stack([x.ravel(), y.ravel()], 1) @ turn.T
    centre = np.array([side / 2, side / 2])
    places -= centre @ turn.T
    spread = (seeds - side / 2) * max(p.stretch, 1 / p.stretch) ** 0.5
    tree = _tree(spread)
    distance, near = tree.query(places, k=2, workers=1)
    cell = near[:, 0]
    count = np.bincount(cell, minlength=len(seeds)).clip(1)
    mean = np.stack([np.bincount(cell, colour[..., i].ravel(), len(seeds)) / count for i in range(3)], 1)
    lean = rng.uniform(0, 2 * np.pi, len(seeds))
    offset = places - spread[cell]
    plane = (np.cos(lean[cell]) * offset[:, 0] + np.sin(lean[cell]) * offset[:, 1]) / step
    shade = 1 + p.tilt * plane + 0.16 * p.tilt * rng.normal(0, 1, len(seeds))[cell]
    facet = 0.62 * mean[cell] + 0.38 * colour.reshape(-1, 3)
    seam = np.clip(1 - (distance[:, 1] - distance[:, 0]) / (1.3 * scale), 0, 1)
    out = facet * shade[:, None] * (1 - p.edge * seam[:, None])
    return out.reshape(colour.shape).astype(np.float32)


def hatching(colour, scene: Scene, p: Hatching, palette, rng, scale):
    side = colour.shape[0]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / scale
    y = y + p.wobble * 3 * _noise(rng, side, 9 * scale)
    tone = colour @ np.array([0.3, 0.55, 0.15], np.float32)
    tone = np.clip((tone - 0.08) / 0.75, 0, 1)
    paper = 0.55 * palette[PALE] + 0.45 * colour.mean((0, 1)) + 0.08
    ground = (1 - p.wash) * paper + p.wash * (colour * 0.75 + 0.25)
    ink = 0.6 * palette[DARK] + 0.12 * colour.mean((0, 1))

    def lines(angle: float, cover: np.ndarray) -> np.ndarray:
        phase = (x * np.sin(angle) + y * np.cos(angle)) / p.period
        away = np.abs(phase - np.floor(phase) - 0.5) * 2  # 0 on the line, 1 between lines
        return np.clip((cover - away) * p.period * 0.5 * scale / 2 + 0.5, 0, 1)

    first = lines(p.angle, 0.95 * (1 - tone))
    second = lines(p.angle + 1.2, p.cross * np.clip(1.2 - 1.9 * tone, 0, 1))
    mark = np.maximum(first, second)[..., None]
    return ground * (1 - mark) + ink * mark


HANDLING: dict[str, tuple[type, Callable]] = {
    "cloisonne": (Cloisonne, cloisonne),
    "points": (Points, points),
    "strokes": (Strokes, strokes),
    "chiaroscuro": (Chiaroscuro, chiaroscuro),
    "shards": (Shards, shards),
    "hatching": (Hatching, hatching),
}


def _noise(rng: np.random.Generator, side: int, wavelength: float) -> np.ndarray:
    """Smooth noise (side, side) of about unit amplitude."""
    n = int(np.ceil(side / wavelength)) + 2
    small = Image.fromarray(rng.normal(0, 0.6, (n, n)).astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def _canvas(colour: np.ndarray, side: int) -> Image.Image:
    return Image.new("RGB", (side, side), tuple(int(v) for v in (colour.clip(0, 1) * 255)))


def _bytes(colours: np.ndarray) -> list[tuple[int, int, int]]:
    return list(map(tuple, (colours.clip(0, 1) * 255).astype(np.uint8).tolist()))


def _tree(seeds: np.ndarray):
    from scipy.spatial import cKDTree  # here, since only shards need it and it costs a quarter second

    return cKDTree(seeds)
