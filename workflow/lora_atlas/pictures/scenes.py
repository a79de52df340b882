"""Scenes: what a procedural painter looks at, before any hand has touched it.

A scene is a map of regions, each with a role in the palette (sky, water, accent…), a map of light, and a field of
directions along which a brush would go. It is drawn at several times the size of the picture and knows nothing of
style, so that two painters can look at one scene.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SKY, FAR, WATER, GROUND, FOLIAGE, ACCENT, PALE, SKIN, DARK = range(9)
ROLES = 9


@dataclass(frozen=True)
class Scene:
    """`region` uint8 (W, W) roles; `light` float32 (W, W) about 0; `angle` float32 (W, W) radians."""

    region: np.ndarray
    light: np.ndarray
    angle: np.ndarray


class _Sketch:
    """A scene in the making; coordinates are fractions of the side, y downwards."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.side, self.rng = side, rng
        self.y, self.x = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
        self.region = Image.new("L", (side, side), SKY)
        self.light = np.zeros((side, side), np.float32)
        self.angle = np.zeros((side, side), np.float32)
        self.sun = float(rng.uniform(-1, 1))  # where the light comes from, left to right

    def u(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def shape(self, role: int, draw: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
        """Draw into the region map; returns the mask of what was drawn."""
        stencil = Image.new("1", self.region.size)
        draw(ImageDraw.Draw(stencil))
        self.region.paste(role, mask=stencil)
        return np.asarray(stencil)

    def polygon(self, role: int, points: list[tuple[float, float]]) -> np.ndarray:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        return self.shape(role, lambda pen: pen.polygon(scaled, fill=1))

    def ellipse(self, role: int, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        box = [(x - rx) * self.side, (y - ry) * self.side, (x + rx) * self.side, (y + ry) * self.side]
        return self.shape(role, lambda pen: pen.ellipse(box, fill=1))

    def shade(self, mask: np.ndarray, light: np.ndarray | float, angle: np.ndarray | float) -> None:
        self.light[mask] = light[mask] if isinstance(light, np.ndarray) else light
        self.angle[mask] = angle[mask] if isinstance(angle, np.ndarray) else angle

    def ball(self, x: float, y: float, rx: float, ry: float) -> tuple[np.ndarray, np.ndarray]:
        """Light and direction on a rounded body, lit from the sun's side."""
        dx, dy = (self.x - x) / rx, (self.y - y) / ry
        return (0.9 * (self.sun * dx - 0.6 * dy)).clip(-1, 1), np.arctan2(dy, dx) + np.pi / 2

    def ridge(self, role: int, base: float, height: float, roughness: float, light: float) -> None:
        """A horizon of hills down to the lower edge."""
        x = np.linspace(0, 1, 25)
        waves = sum(np.sin(x * self.u(2, 5) * k + self.u(0, 7)) / k for k in (1, 2, 4))
        top = base - height * (waves * 0.5 + roughness * self.rng.normal(0, 0.2, len(x)))
        mask = self.polygon(role, [*zip(x, top, strict=True), (1.0, 1.01), (0.0, 1.01)])
        slope = np.interp(self.x[0], x, np.arctan(np.gradient(top, x)))
        self.shade(mask, light + 0.5 * (base - self.y) + 0.25 * self.sun * slope, np.broadcast_to(slope, mask.shape))

    def done(self) -> Scene:
        return Scene(np.asarray(self.region), self.light.astype(np.float32), self.angle.astype(np.float32))


def _sky(s: _Sketch, horizon: float, clouds: int) -> None:
    s.light[:] = 0.5 * (s.y / max(horizon, 0.2)) - 0.2
    s.angle[:] = 0.25 * np.sin(s.x * 6 + s.sun * 3)
    if s.u(0, 1) < 0.6:
        r = s.u(0.05, 0.1)
        sun = s.ellipse(PALE, 0.5 + 0.38 * s.sun, s.u(0.12, 0.28), r, r)
        s.shade(sun, 0.5, s.y * 9)
    for _ in range(clouds):
        x, y, r = s.u(0, 1), s.u(0.05, horizon * 0.6), s.u(0.05, 0.09)
        for k in range(3):
            puff = s.ellipse(PALE, x + (k - 1) * r * 1.1, y + s.u(-0.02, 0.02), r * 1.3, r * 0.55)
            s.shade(puff, 0.15, 0.0)


def landscape(s: _Sketch) -> None:
    horizon = s.u(0.4, 0.58)
    _sky(s, horizon, int(s.rng.integers(0, 3)))
    s.ridge(FAR, horizon, s.u(0.08, 0.2), 0.5, -0.1)
    s.ridge(GROUND, horizon + s.u(0.1, 0.18), 0.05, 0.1, 0.1)
    if s.u(0, 1) < 0.6:  # a road or brook that narrows towards the horizon
        x, bend = s.u(0.3, 0.7), s.u(-0.25, 0.25)
        y0 = horizon + 0.17
        path = s.polygon(
            PALE if s.u(0, 1) < 0.5 else WATER,
            [(x, y0), (x + 0.03, y0), (x + bend + 0.2, 1.01), (x + bend - 0.12, 1.01)],
        )
        s.shade(path, 0.15, np.pi / 2 - bend)
    for _ in range(int(s.rng.integers(1, 5))):
        x, foot, r = s.u(0.05, 0.95), s.u(horizon + 0.15, 0.9), s.u(0.07, 0.15)
        r *= 0.6 + foot * 0.6
        trunk = s.polygon(DARK, [(x - r * 0.14, foot), (x + r * 0.14, foot), (x + r * 0.08, foot - r * 1.5), (x - r * 0.08, foot - r * 1.5)])  # fmt: skip
        s.shade(trunk, -0.2, np.pi / 2)
        tall = s.u(0.9, 1.9)
        crown = s.ellipse(FOLIAGE, x, foot - r * (0.9 + tall * 0.8), r * 0.8, r * tall)
        s.shade(crown, *s.ball(x, foot - r * (0.9 + tall * 0.8), r * 0.8, r * tall))


def harbour(s: _Sketch) -> None:
    horizon = s.u(0.38, 0.55)
    _sky(s, horizon, int(s.rng.integers(0, 3)))
    if s.u(0, 1) < 0.7:
        s.ridge(FAR, horizon - 0.01, s.u(0.04, 0.1), 0.4, 0.0)
    sea = s.polygon(WATER, [(0, horizon), (1, horizon), (1, 1.01), (0, 1.01)])
    glitter = 0.35 * np.sin(s.y * 70 / (s.y + 0.3)) * np.exp(-(((s.x - 0.5 - 0.38 * s.sun) / 0.3) ** 2))
    s.shade(sea, glitter + 0.3 * (0.7 - s.y), 0.12 * np.sin(s.x * 9 + s.y * 20))
    if s.u(0, 1) < 0.5:  # a jetty
        left = s.u(0, 1) < 0.5
        y, tip = s.u(0.75, 0.9), s.u(0.35, 0.6)
        xs = (0, tip) if left else (1 - tip, 1)
        s.shade(s.polygon(GROUND, [(xs[0], y), (xs[1], y), (xs[1], y + 0.05), (xs[0], y + 0.05)]), 0.1, 0.0)
        for k in range(4):
            x = xs[0] + (xs[1] - xs[0]) * (k + 0.5) / 4
            s.shade(s.polygon(DARK, [(x, y), (x + 0.02, y), (x + 0.02, y + 0.13), (x, y + 0.13)]), -0.3, np.pi / 2)
    for y in sorted(s.u(horizon + 0.05, 0.85) for _ in range(int(s.rng.integers(1, 4)))):
        x, r = s.u(0.15, 0.85), 0.1 + 0.16 * (y - horizon) / 0.4
        hull = s.polygon(DARK if s.u(0, 1) < 0.5 else ACCENT, [(x - r, y), (x + r, y), (x + r * 0.6, y + r * 0.38), (x - r * 0.65, y + r * 0.38)])  # fmt: skip
        s.shade(hull, -0.1, 0.0)
        lean = s.u(-0.1, 0.1)
        sail = s.polygon(PALE if s.u(0, 1) < 0.6 else ACCENT, [(x, y - r * 0.1), (x + lean, y - r * s.u(1.5, 2.1)), (x + r * 0.85, y - r * 0.15)])  # fmt: skip
        s.shade(sail, 0.3 * s.sun + 0.1, np.pi / 2 + lean)
        jib = s.polygon(PALE, [(x - r * 0.06, y - r * 0.1), (x + lean, y - r * 1.4), (x - r * 0.6, y - r * 0.15)])
        s.shade(jib, -0.15 * s.sun, np.pi / 2 - lean)


def portrait(s: _Sketch) -> None:
    s.region.paste(FAR if s.u(0, 1) < 0.5 else SKY, (0, 0, s.side, s.side))
    s.light[:] = 0.35 * (s.sun * (s.x - 0.5) - (s.y - 0.4))
    s.angle[:] = np.pi / 3 * s.sun + s.y
    x, y, rx = 0.5 + s.u(-0.08, 0.08), s.u(0.36, 0.44), s.u(0.14, 0.18)
    ry, wide = rx * s.u(1.2, 1.4), s.u(0.34, 0.46)
    coat = ACCENT if s.u(0, 1) < 0.6 else WATER
    shoulder = y + ry * 1.25
    body = s.polygon(coat, [(x - wide, 1.01), (x - wide * 0.8, shoulder + 0.14), (x - rx * 0.5, shoulder), (x + rx * 0.5, shoulder), (x + wide * 0.8, shoulder + 0.14), (x + wide, 1.01)])  # fmt: skip
    s.shade(body, 0.5 * s.sun * (s.x - x) / wide - 0.1, np.pi / 2 + 0.8 * (s.x - x))
    hair_length = s.u(0.2, 1.1)
    hair = s.ellipse(DARK, x, y - ry * 0.12, rx * 1.22, ry * 1.15)
    hair = hair | s.polygon(DARK, [(x - rx * 1.2, y), (x + rx * 1.2, y), (x + rx * 1.1, y + ry * hair_length), (x - rx * 1.1, y + ry * hair_length)])  # fmt: skip
    s.shade(hair, 0.2 * s.sun * (s.x - x) / rx, np.pi / 2 + 2 * (s.x - x))
    neck = s.polygon(SKIN, [(x - rx * 0.42, y + ry * 0.6), (x + rx * 0.42, y + ry * 0.6), (x + rx * 0.5, shoulder + 0.05), (x - rx * 0.5, shoulder + 0.05)])  # fmt: skip
    s.shade(neck, -0.35, np.pi / 2)
    face = s.ellipse(SKIN, x, y + ry * 0.06, rx, ry)
    s.shade(face, *s.ball(x, y, rx * 1.1, ry * 1.2))
    turn = rx * s.u(-0.15, 0.15)
    for side in (-1, 1):
        eye = s.ellipse(DARK, x + turn + side * rx * 0.4, y - ry * 0.05, rx * 0.17, ry * 0.09)
        s.shade(eye, -0.3, 0.0)
    mouth = s.ellipse(ACCENT, x + turn, y + ry * 0.6, rx * 0.28, ry * 0.07)
    s.shade(mouth, -0.1, 0.0)
    nose = s.polygon(SKIN, [(x + turn, y), (x + turn + rx * 0.16, y + ry * 0.32), (x + turn - rx * 0.08, y + ry * 0.32)])  # fmt: skip
    s.shade(nose, -0.45 * np.sign(s.sun), np.pi / 2)
    if s.u(0, 1) < 0.4:
        role, brim = (PALE, ACCENT)[s.u(0, 1) < 0.5], y - ry * 0.55
        top = s.ellipse(role, x, brim - ry * 0.2, rx * 1.05, ry * 0.55) | s.ellipse(role, x, brim, rx * 1.9, ry * 0.16)
        s.shade(top, 0.4 * s.sun * (s.x - x) / rx, 0.2)


def still_life(s: _Sketch) -> None:
    edge = s.u(0.5, 0.66)
    s.region.paste(FAR if s.u(0, 1) < 0.6 else SKY, (0, 0, s.side, s.side))
    s.light[:] = 0.4 * s.sun * (s.x - 0.5) - 0.1
    s.angle[:] = 0.9 * s.sun + 0.4 * s.x
    table = s.polygon(GROUND if s.u(0, 1) < 0.6 else PALE, [(0, edge), (1, edge + s.u(-0.04, 0.04)), (1, 1.01), (0, 1.01)])  # fmt: skip
    s.shade(table, 0.25 * (0.9 - s.y) + 0.2 * s.sun * (s.x - 0.5), 0.05)
    if s.u(0, 1) < 0.75:
        x, w, top = s.u(0.18, 0.82), s.u(0.06, 0.09), edge - s.u(0.22, 0.32)
        role, foot = (WATER, FOLIAGE, DARK)[int(s.rng.integers(3))], edge + 0.12
        bottle = s.polygon(role, [(x - w, foot), (x + w, foot), (x + w, top + 0.16), (x + w * 0.4, top + 0.08), (x + w * 0.4, top), (x - w * 0.4, top), (x - w * 0.4, top + 0.08), (x - w, top + 0.16)])  # fmt: skip
        s.shade(bottle, 0.7 * s.sun * (s.x - x) / w, np.pi / 2)
    bowl = s.u(0, 1) < 0.65
    x, y, w = s.u(0.36, 0.64), edge + s.u(0.1, 0.16), s.u(0.2, 0.27)
    fruits = [(x + s.u(-0.6, 0.6) * w, y - s.u(0.02, 0.09)) for _ in range(4)] if bowl else []
    fruits += [(s.u(0.12, 0.88), edge + s.u(0.12, 0.3)) for _ in range(int(s.rng.integers(2, 5)))]
    for number, (fx, fy) in enumerate(sorted(fruits, key=lambda p: p[1])):
        r = s.u(0.065, 0.095)
        if not bowl or fy > y:
            shadow = s.ellipse(DARK, fx - s.sun * r * 0.7, fy + r * 0.8, r * 1.1, r * 0.32)
            s.shade(shadow, -0.2, 0.0)
        fruit = s.ellipse((ACCENT, FOLIAGE, PALE, ACCENT)[(number + int(s.rng.integers(2))) % 4], fx, fy, r, r * 0.95)
        s.shade(fruit, *s.ball(fx, fy, r, r))
        if bowl and fy <= y:
            dish = s.polygon(SKIN, [(x - w, y), (x + w, y), (x + w * 0.55, y + 0.14), (x - w * 0.55, y + 0.14)])
            s.shade(dish, 0.5 * s.sun * (s.x - x) / w - 0.1, 0.1)


def town(s: _Sketch) -> None:
    street = s.u(0.72, 0.84)
    _sky(s, street, int(s.rng.integers(0, 2)))
    if s.u(0, 1) < 0.5:
        s.ridge(FAR, s.u(0.35, 0.5), 0.1, 0.3, 0.0)
    ground = s.polygon(GROUND if s.u(0, 1) < 0.6 else WATER, [(0, street - 0.01), (1, street - 0.01), (1, 1.01), (0, 1.01)])  # fmt: skip
    s.shade(ground, 0.3 * (0.95 - s.y), 0.08 * np.sin(s.x * 8))
    x, number = s.u(-0.15, 0.0), int(s.rng.integers(4))
    while x < 1:
        w, h = s.u(0.2, 0.32), s.u(0.24, 0.46)
        wall = (PALE, SKIN, FAR, PALE)[number % 4]
        top = street - h
        house = s.polygon(wall, [(x, street), (x + w, street), (x + w, top), (x, top)])
        s.shade(house, 0.25 * s.sun * (1 if number % 2 else -1), np.pi / 2)
        peak, lean = top - s.u(0.1, 0.2), s.u(0.3, 0.7)
        roof = s.polygon(ACCENT if s.u(0, 1) < 0.75 else DARK, [(x - 0.02, top), (x + w + 0.02, top), (x + w * lean, peak)])  # fmt: skip
        s.shade(roof, -0.2 + 0.3 * s.sun * (s.x - x - w * lean) / w, np.pi / 4)
        if s.u(0, 1) < 0.92:
            for row in range(int(h / 0.16)):
                for column in range(2):
                    wx, wy = x + w * (0.2 + 0.4 * column), top + 0.05 + 0.15 * row
                    pane = s.polygon(DARK if s.u(0, 1) < 0.8 else WATER, [(wx, wy), (wx + w * 0.2, wy), (wx + w * 0.2, wy + 0.08), (wx, wy + 0.08)])  # fmt: skip
                    s.shade(pane, -0.1, np.pi / 2)
        x, number = x + w, number + 1
    if s.u(0, 1) < 0.4:
        tx, r = s.u(0.1, 0.9), s.u(0.07, 0.11)
        s.shade(s.polygon(DARK, [(tx - 0.012, street + 0.06), (tx + 0.012, street + 0.06), (tx + 0.01, street - 0.1), (tx - 0.01, street - 0.1)]), -0.2, np.pi / 2)  # fmt: skip
        s.shade(s.ellipse(FOLIAGE, tx, street - 0.15, r, r * 1.3), *s.ball(tx, street - 0.15, r, r * 1.3))


SCENES: dict[str, Callable[[_Sketch], None]] = {
    "landscape": landscape,
    "harbour": harbour,
    "portrait": portrait,
    "still life": still_life,
    "town": town,
}


def scene(content: str, side: int, rng: np.random.Generator) -> Scene:
    """One random scene of a content, `side` pixels square; raises KeyError for an unknown content."""
    sketch = _Sketch(side, rng)
    SCENES[content](sketch)
    return sketch.done()
