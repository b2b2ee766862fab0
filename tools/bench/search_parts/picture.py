"""Recall against queries a second, as an SVG picture without a library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 860, 460
FONT = 'font-family="sans-serif" font-size="13"'
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 660, 30, 410
COLOURS = ("#0b6e4f", "#2a9d8f", "#1d3f8a", "#6a8edb", "#e76f51", "#c1121f", "#8f4f9f", "#b08900", "#555555")
LEAST = 0.8  # recall at the left

Curves = Mapping[str, Sequence[tuple[float, float]]]  # name -> (recall, queries a second)


def draw(curves: Curves, *, title: str, target: float) -> str:
    """A point for each setting, and for each name a line through those that none of its others beats in both recall and
    speed. Recall below 0.8 is left out. Speed goes by a logarithmic axis.
    """
    kept = {name: sorted(p for p in points if p[0] >= LEAST and p[1] > 0) for name, points in curves.items()}
    kept = {name: points for name, points in kept.items() if points}
    speeds = [speed for points in kept.values() for _, speed in points] or [1.0]
    low, high = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)) + 1e-9)
    high = max(high, low + 1)

    def x(recall: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (recall - LEAST) / (1 - LEAST), 1)

    def y(speed: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (math.log10(speed) - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-size="15">{html.escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{at}" y2="{at}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4}" text-anchor="end">{10**power:,}</text>')
    for step in range(5):
        recall = LEAST + step * (1 - LEAST) / 4
        parts.append(f'<text x="{x(recall)}" y="{_BOTTOM + 20}" text-anchor="middle">{recall:.2f}</text>')
    at = x(target)
    parts.append(f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{_BOTTOM}" stroke="#999999" stroke-dasharray="4 4"/>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 42}" text-anchor="middle">recall@10</text>')
    for place, (name, points) in enumerate(kept.items()):
        colour = COLOURS[place % len(COLOURS)]
        line = " ".join(f"{x(recall)},{y(speed)}" for recall, speed in best_of(points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(r)}" cy="{y(s)}" r="3.5" fill="{colour}"/>' for r, s in points]
        at = _TOP + 10 + 22 * place
        parts.append(f'<rect x="{_RIGHT + 20}" y="{at - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{_RIGHT + 38}" y="{at + 2}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def best_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both numbers, by the first one."""
    found: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found[::-1]
