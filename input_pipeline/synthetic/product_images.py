"""One photograph of a synthetic product: silhouette, colour, pattern and mark, in a random pose, place and light.

The product's own looks (`Look`) are fixed; everything else is drawn from the generator, so that two photographs of one
product share little as raw pixels.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from input_pipeline.synthetic.product_shapes import SHAPES, Points

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (38, 37, 42),
    "white": (243, 242, 237),
    "red": (206, 36, 44),
    "yellow": (247, 212, 48),
    "green": (44, 150, 72),
    "blue": (36, 84, 196),
}
PATTERNS = ("plain", "striped", "dotted")
MARKS = ("disc", "triangle", "square", "diamond", "cross", "ring")
_MATERIALS = {"dark": (52, 49, 50), "metal": (176, 180, 186), "wood": (158, 108, 66), "white": (242, 240, 234)}
_SUPERSAMPLE = 3  # drawn this many times larger, then averaged: smooth edges without an anti-aliasing rasteriser


@dataclass(frozen=True)
class Look:
    """What stays the same in every photograph of a product; cut in [0, 1] as in `product_shapes.py`."""

    type: str
    colour: str
    pattern: str
    mark: str
    cut: float
    pitch: float  # of the pattern, in product widths
    ink: str  # "light" or "dark": the second colour of the pattern


class _Pose:
    """Product coordinates <-> pixels of the supersampled canvas."""

    def __init__(self, rng: np.random.Generator, side: int):
        angle = math.radians(float(rng.normal(0, 7)))
        zoom = float(rng.uniform(0.78, 1.0)) * side
        mirror = float(rng.choice([-1.0, 1.0]))
        cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
        self.matrix = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
        self.offset = side / 2 + rng.uniform(-0.5, 0.5, 2) * (side * 1.05 - zoom)
        self.zoom = zoom

    def pixels(self, points: Points) -> Points:
        return [(float(x), float(y)) for x, y in np.array(points) @ self.matrix.T + self.offset]

    def product(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """x and y in product coordinates of every pixel, each [side, side]."""
        y, x = np.mgrid[:side, :side].astype(np.float32)
        inverse = np.linalg.inv(self.matrix).astype(np.float32)
        x, y = x - np.float32(self.offset[0]), y - np.float32(self.offset[1])
        return inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y


def photograph(look: Look, *, rng: np.random.Generator, size: int) -> Image.Image:
    """An RGB picture of size x size pixels; every call with the same generator state gives the same one."""
    side = size * _SUPERSAMPLE
    base = np.array(COLOURS[look.colour], np.float32)
    pose = _Pose(rng, side)
    canvas = _background(rng, side, base)

    x, y = pose.product(side)
    paints = {name: Image.new("RGB", (side, side), rgb) for name, rgb in _MATERIALS.items()}
    for name, lift in (("shade", -0.28), ("tint", 0.35), ("seam", -0.45)):
        paints[name] = Image.new("RGB", (side, side), _lift(base, lift))
    paints["body"] = Image.fromarray(_cloth(look, base, x, y))

    product, silhouette = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    outline = max(1, round(0.016 * pose.zoom))
    for layer in SHAPES[look.type](look.cut).layers:
        points = pose.pixels(layer.points)
        mask = Image.new("L", (side, side))
        draw = ImageDraw.Draw(mask)
        if layer.width is None:
            draw.polygon(points, fill=255)
        else:
            draw.line(points, fill=255, width=max(1, round(layer.width * pose.zoom)), joint="curve")
        product.paste(paints[layer.material], mask=mask)
        silhouette.paste(255, mask=mask)
        if layer.material == "body":
            ImageDraw.Draw(product).line([*points, points[0]], fill=_lift(base, -0.45), width=outline, joint="curve")
            ImageDraw.Draw(silhouette).line([*points, points[0]], fill=255, width=outline, joint="curve")
    _brand_mark(product, look, pose)

    # Light falls across the product from one side, and throws its shadow to the other.
    towards = float(rng.uniform(0, 2 * math.pi))
    slope = (x * math.cos(towards) + y * math.sin(towards)) * float(rng.uniform(0.15, 0.5))
    lit = np.asarray(product, np.float32) * (1 + slope[..., None])
    product = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    reach = float(rng.uniform(0.02, 0.07)) * side
    shadow = silhouette.reduce(_SUPERSAMPLE).filter(ImageFilter.GaussianBlur(size * float(rng.uniform(0.01, 0.05))))
    depth = float(rng.uniform(0.35, 0.6))
    shadow = shadow.resize((side, side)).point([round(v * depth) for v in range(256)])
    canvas.paste((22, 20, 30), (round(-math.cos(towards) * reach), round(abs(math.sin(towards)) * reach)), mask=shadow)
    canvas.paste(product, mask=silhouette)
    return _camera(rng, canvas.reduce(_SUPERSAMPLE))


def _lift(colour: np.ndarray, by: float) -> tuple[int, int, int]:
    """Towards white for by > 0, towards black for by < 0; black is lifted instead of darkened, to keep its details."""
    if by < 0 and colour.max() < 60:
        by = -by * 0.55
    mixed = colour + (255 - colour) * by if by > 0 else colour * (1 + by)
    r, g, b = (round(float(v)) for v in mixed)
    return r, g, b


def _cloth(look: Look, base: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The body's colour and pattern, fixed to the product: uint8 [side, side, 3]."""
    u, v = x / look.pitch, y / look.pitch
    if look.pattern == "striped":
        ink = ((v % 1) < 0.42).astype(np.float32)
    elif look.pattern == "dotted":
        row = np.floor(v)
        ink = (((u + 0.5 * (row % 2)) % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.33**2).astype(np.float32)
    else:
        ink = np.zeros_like(u)
    if look.colour == "white":
        second: np.ndarray = np.array((88, 96, 112), np.float32)
    elif look.colour == "black" or look.ink == "light":
        second = np.array((250, 247, 240), np.float32)
    else:
        second = base * 0.38
    return (base + ink[..., None] * (second - base)).astype(np.uint8)


def _brand_mark(product: Image.Image, look: Look, pose: _Pose) -> None:
    """A small sign on a patch, the same for all products of a brand."""
    x, y, radius = SHAPES[look.type](look.cut).mark
    light, dark = (250, 249, 244), (40, 38, 44)
    patch, sign = (dark, light) if look.colour in ("white", "yellow", "pink", "orange") else (light, dark)
    draw = ImageDraw.Draw(product)

    def ring(sides: int, scale: float, turn: float) -> Points:
        angles = np.radians(turn + np.arange(sides) * 360 / sides)
        return pose.pixels([(x + radius * scale * math.cos(a), y + radius * scale * math.sin(a)) for a in angles])

    draw.polygon(ring(24, 1.0, 0), fill=patch)
    if look.mark == "cross":
        for ends in (ring(2, 0.7, 0), ring(2, 0.7, 90)):
            draw.line(ends, fill=sign, width=max(1, round(0.4 * radius * pose.zoom)))
        return
    sides, turn, scale = {"triangle": (3, -90, 0.75), "square": (4, 45, 0.7), "diamond": (4, 0, 0.8)}.get(
        look.mark, (24, 0, 0.62)
    )
    draw.polygon(ring(sides, scale, turn), fill=sign)
    if look.mark == "ring":
        draw.polygon(ring(24, 0.3, 0), fill=patch)


def _backdrop_colour(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """A wall's or a floor's colour, never so near the product's that its outline drowns."""
    for _ in range(20):
        rgb = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0, 0.2)), float(rng.uniform(0.45, 1.0)))
        colour = np.array(rgb, np.float32) * 255
        if np.abs(colour - base).sum() > 130:
            break
    return colour


def _background(rng: np.random.Generator, side: int, base: np.ndarray) -> Image.Image:
    first, second = _backdrop_colour(rng, base), _backdrop_colour(rng, base)
    kind = str(rng.choice(["plain", "gradient", "room", "planks", "cloud"]))
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    if kind == "plain":
        mix = np.zeros_like(x)
    elif kind == "gradient":
        angle = float(rng.uniform(0, 2 * math.pi))
        mix = np.clip(0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle), 0, 1)
    elif kind == "room":
        mix = (y > float(rng.uniform(0.5, 0.85)) + (x - 0.5) * float(rng.normal(0, 0.1))).astype(np.float32)
    elif kind == "planks":
        angle, count = float(rng.choice([0.0, math.pi / 2, 0.6])), float(rng.uniform(3, 7))
        along = (x * math.cos(angle) + y * math.sin(angle)) * count
        grain = rng.random(32).astype(np.float32)[np.floor(along).astype(int) % 32]
        mix = 0.25 * grain + 0.45 * ((along % 1) < 0.06)
    else:
        grid = Image.fromarray((rng.random((5, 5)) * 255).astype(np.uint8))
        mix = np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255 * 0.8
    canvas = Image.fromarray((first + mix[..., None] * (second - first)).astype(np.uint8))

    # Things that happen to lie about: blurred, so that they read as background.
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.choice([0, 0, 0, 1, 2, 3]))):
        colour = tuple(int(v) for v in _backdrop_colour(rng, base))
        cx, cy = (float(v) * side for v in rng.random(2))
        reach = float(rng.uniform(0.06, 0.22)) * side
        if rng.random() < 0.5:
            draw.ellipse((cx - reach, cy - reach, cx + reach, cy + reach), fill=colour)
        else:
            tilt = float(rng.uniform(0, math.pi))
            corners = [(cx + reach * math.cos(tilt + a), cy + reach * math.sin(tilt + a)) for a in (0, 1.2, 3.14, 4.34)]
            draw.polygon(corners, fill=colour)
    soft = canvas.reduce(_SUPERSAMPLE).filter(ImageFilter.GaussianBlur(side * float(rng.uniform(0.001, 0.006))))
    return soft.resize((side, side))


def _camera(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Exposure, white balance, vignette, noise and a little blur."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.8)) * picture.width / 64))
    side = picture.width
    y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    light = float(rng.uniform(0.82, 1.16)) * (1 - float(rng.uniform(0, 0.6)) * (x * x + y * y))
    balance = 1 + rng.normal(0, 0.04, 3).astype(np.float32)
    noise = rng.standard_normal((side, side, 3), np.float32) * float(rng.uniform(1, 6))
    return Image.fromarray(np.clip(np.asarray(picture) * light[..., None] * balance + noise, 0, 255).astype(np.uint8))
