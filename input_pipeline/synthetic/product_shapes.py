"""Silhouettes of the synthetic catalogue: what each product type looks like, as vector layers.

Coordinates are the product's own: the origin in its middle, x to the right, y down, all within about [-0.5, 0.5].
A layer names a material, not a colour: `product_images.py` paints it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Layer:
    """One filled outline (`width` None) or one stroke of the given width, in product coordinates.

    material: "body" (the product's colour and pattern), "shade" and "tint" (the colour, darker and lighter), "seam" (a
    dark line of the colour), "dark", "metal", "wood", "white".
    """

    material: str
    points: Points
    width: float | None = None


@dataclass(frozen=True)
class Shape:
    """Layers from back to front, and where the brand mark sits: x, y, radius."""

    layers: list[Layer]
    mark: tuple[float, float, float]


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> Points:
    """Points of an ellipse's arc, degrees clockwise from the right as y grows downwards."""
    angles = np.radians(np.linspace(start, stop, 33))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _box(left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> Points:
    if not radius:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    corners = [(right - radius, top + radius, -90), (right - radius, bottom - radius, 0)]
    corners += [(left + radius, bottom - radius, 90), (left + radius, top + radius, 180)]
    return [p for x, y, a in corners for p in _ellipse(x, y, radius, radius, a, a + 90)[::4]]


def _curve(points: Points, steps: int = 6) -> Points:
    """An open Catmull-Rom curve through the points."""
    p = np.array([points[0], *points, points[-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        spans.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return [(float(x), float(y)) for x, y in np.concatenate([*spans, p[-1:]])]


def _flip(points: Points) -> Points:
    return [(-x, y) for x, y in points]


def _both(material: str, points: Points, width: float | None = None) -> list[Layer]:
    return [Layer(material, points, width), Layer(material, _flip(points), width)]


# Every shape takes a cut in [0, 1]: the one measure in which products of a type differ (sleeve, heel, height ...).


def _shirt(cut: float) -> Shape:
    long = [(-0.24, -0.36), (-0.36, -0.28), (-0.49, 0.22), (-0.36, 0.27), (-0.21, -0.06)]
    short = [(-0.24, -0.36), (-0.36, -0.30), (-0.50, -0.10), (-0.37, -0.01), (-0.21, -0.12)]
    torso = [(-0.13, -0.41), (-0.25, -0.36), (-0.215, -0.10), (-0.24, 0.43), (0.24, 0.43), (0.215, -0.10)]
    torso += [(0.25, -0.36), (0.13, -0.41), (0.0, -0.36)]
    buttons = [Layer("white", _ellipse(0, y, 0.02, 0.02)) for y in (-0.15, 0.0, 0.15, 0.30)]
    return Shape(
        [
            *_both("body", long if cut > 0.4 else short),
            Layer("body", torso),
            Layer("shade", _ellipse(0, -0.395, 0.11, 0.045)),
            Layer("shade", _box(-0.035, -0.32, 0.035, 0.43)),
            *buttons,
            *_both("tint", [(-0.14, -0.43), (0.0, -0.33), (-0.09, -0.21), (-0.17, -0.37)]),
        ],
        (-0.13, -0.10, 0.055),
    )


def _trousers(cut: float) -> Shape:
    hem = 0.20 + 0.12 * cut
    legs = [(-0.20, -0.40), (0.20, -0.40), (0.24, 0.0), (hem, 0.48), (hem - 0.19, 0.48), (0.0, -0.06)]
    legs += [(0.19 - hem, 0.48), (-hem, 0.48), (-0.24, 0.0)]
    return Shape(
        [
            Layer("body", legs),
            Layer("shade", _box(-0.205, -0.48, 0.205, -0.395)),
            Layer("seam", [(0, -0.40), (0, -0.07)], 0.016),
            *_both("seam", _curve([(-0.205, -0.25), (-0.13, -0.29), (-0.10, -0.39)]), 0.016),
            *_both("seam", [(-0.17, -0.2), (0.10 - hem, 0.47)], 0.010),
            Layer("metal", _ellipse(0, -0.437, 0.025, 0.025)),
        ],
        (0.11, -0.16, 0.05),
    )


def _sneakers(cut: float) -> Shape:
    top = -0.10 - 0.16 * cut
    upper = _curve([(-0.44, 0.20), (-0.45, 0.05), (-0.42, top - 0.02), (-0.36, top), (-0.20, top + 0.05)])
    upper += _curve([(-0.13, top - 0.07), (-0.05, top - 0.02), (0.10, -0.02), (0.30, 0.06), (0.45, 0.12), (0.48, 0.20)])
    slope = [(x, top + 0.02 + (x + 0.10) * (0.02 - top) / 0.32) for x in (-0.10, -0.02, 0.06, 0.14)]
    laces = [Layer("white", [(x - 0.04, y + 0.09), (x + 0.05, y + 0.0)], 0.032) for x, y in slope]
    return Shape(
        [
            Layer("body", upper),
            Layer("shade", _curve([(0.24, 0.20), (0.25, 0.10), (0.33, 0.06), (0.45, 0.12), (0.48, 0.20)])),
            Layer("shade", [(-0.45, 0.20), (-0.45, 0.02), (-0.34, 0.04), (-0.30, 0.20)]),
            Layer("dark", _ellipse(-0.28, top + 0.025, 0.11, 0.025)),
            *laces,
            Layer(
                "white", _curve([(-0.47, 0.17), (0.0, 0.18), (0.48, 0.17), (0.50, 0.24), (0.44, 0.29), (-0.45, 0.29)])
            ),
            Layer("dark", [(-0.45, 0.28), (0.44, 0.28)], 0.03),
        ],
        (-0.14, 0.07, 0.055),
    )


def _handbag(cut: float) -> Shape:
    top = -0.02 - 0.08 * cut
    bag = _curve([(-0.34, top), (0.34, top), (0.42, 0.36), (0.37, 0.42), (-0.37, 0.42), (-0.42, 0.36), (-0.34, top)])
    flap = _curve([(-0.35, top), (-0.34, top + 0.10), (0.0, top + 0.25), (0.34, top + 0.10), (0.35, top)])
    return Shape(
        [
            Layer("shade", _ellipse(0, top + 0.02, 0.21, 0.36 - 0.06 * cut, 180, 360), 0.055),
            Layer("body", bag),
            Layer("shade", flap),
            *_both("metal", _ellipse(-0.21, top + 0.02, 0.035, 0.035)),
            Layer("metal", _box(-0.045, top + 0.19, 0.045, top + 0.29, 0.02)),
        ],
        (0.22, 0.29, 0.055),
    )


def _watch(cut: float) -> Shape:
    strap = [(-0.12, -0.50), (0.12, -0.50), (0.165, -0.16), (-0.165, -0.16)]
    radius = 0.23 + 0.03 * cut
    ticks = [(math.cos(a), math.sin(a)) for a in np.radians(np.arange(0, 360, 30))]
    far, near = radius - 0.055, radius - 0.09
    return Shape(
        [
            Layer("body", strap),
            Layer("body", [(x, -y) for x, y in strap]),
            Layer("metal", _box(radius - 0.01, -0.035, radius + 0.055, 0.035, 0.015)),
            Layer("metal", _ellipse(0, 0, radius, radius)),
            Layer("white", _ellipse(0, 0, radius - 0.04, radius - 0.04)),
            *[Layer("dark", [(x * near, y * near), (x * far, y * far)], 0.014) for x, y in ticks],
            Layer("dark", [(0, 0.0), (0.075, 0.045)], 0.028),
            Layer("dark", [(0, 0.0), (0.03, -0.13)], 0.022),
            Layer("shade", _ellipse(0, 0, 0.025, 0.025)),
        ],
        (0.0, 0.36, 0.05),
    )


def _mug(cut: float) -> Shape:
    left, right, bottom = -0.36, 0.18, 0.26 + 0.14 * cut
    cup = [(left, -0.32), (right, -0.32), *_curve([(right - 0.02, bottom - 0.06), (right - 0.07, bottom)])]
    cup += _curve([(left + 0.07, bottom), (left + 0.02, bottom - 0.06)])
    middle = (left + right) / 2
    return Shape(
        [
            Layer("shade", _ellipse(right, -0.02, 0.20, 0.19, -100, 100), 0.075),
            Layer("body", cup),
            Layer("tint", _ellipse(middle, -0.32, 0.27, 0.075)),
            Layer("dark", _ellipse(middle, -0.315, 0.225, 0.05)),
        ],
        (middle, 0.05, 0.075),
    )


def _chair(cut: float) -> Shape:
    top = -0.42 - 0.08 * cut
    return Shape(
        [
            *_both("wood", [(-0.17, 0.10), (-0.19, 0.36)], 0.045),
            *_both("wood", [(-0.25, top + 0.05), (-0.25, 0.06)], 0.05),
            Layer("body", _box(-0.24, top, 0.24, -0.08, 0.07)),
            *_both("wood", [(-0.29, 0.10), (-0.33, 0.49)], 0.055),
            Layer("wood", [(-0.31, 0.30), (0.31, 0.30)], 0.03),
            Layer("body", [(-0.25, 0.0), (0.25, 0.0), (0.36, 0.12), (-0.36, 0.12)]),
            Layer("shade", _box(-0.365, 0.115, 0.365, 0.175, 0.02)),
        ],
        (0.0, top + 0.16, 0.055),
    )


def _umbrella(cut: float) -> Shape:
    rim = 0.02
    scallops: Points = []
    for i in range(4):
        scallops += _ellipse(0.48 - 0.12 - 0.24 * i, rim, 0.12, 0.06, 360, 180)
    canopy = [*_ellipse(0, rim, 0.48, 0.40 + 0.08 * cut, 180, 360), *scallops]
    apex = rim - 0.40 - 0.08 * cut
    hook = [(0.0, 0.40), *_ellipse(0.075, 0.40, 0.075, 0.075, 180, 0)]
    return Shape(
        [
            Layer("metal", [(0, apex - 0.05), (0, 0.40)], 0.032),
            Layer("wood", hook, 0.05),
            Layer("body", canopy),
            Layer("seam", [(0, apex), (0, rim - 0.03)], 0.016),
            *_both("seam", _curve([(0, apex), (-0.16, -0.20), (-0.24, rim)]), 0.016),
        ],
        (0.10, -0.13, 0.055),
    )


SHAPES: dict[str, Callable[[float], Shape]] = {
    "shirt": _shirt,
    "trousers": _trousers,
    "sneakers": _sneakers,
    "handbag": _handbag,
    "watch": _watch,
    "mug": _mug,
    "chair": _chair,
    "umbrella": _umbrella,
}
