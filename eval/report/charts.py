"""Where things lie in the report's charts; the template draws them. Percent for bars in tables, units for SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

LADDER_BOX = (860, 360)
_PRECISIONS = ("float32", "int8")
_LADDER_PLOT = (64, 836, 16, 300)  # left, right, top, bottom
_CURVES_BOX, _CURVES_PLOT = (860, 340), (64, 836, 16, 284)


def nice_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / about))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= about), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def bars(estimates: Sequence[dict[str, Any] | None], *, zero: bool = True) -> tuple[list[Any], list[dict[str, Any]]]:
    """Intervals on one common axis, 0 to 100.

    Args:
      estimates: {"mean", "low", "high"} and, of simultaneous intervals, "low_all", "high_all"; None, or values that are
        None, where nothing was measured.
      zero: whether 0 is on the axis even where no interval reaches it.

    Returns:
      ([places by the same names and "zero", or None], [{"at", "value"}] ticks).
    """
    drawn = [e for e in estimates if e and all(e[key] is not None for key in ("low", "mean", "high"))]
    ends = [e[key] for e in drawn for key in ("low", "high", "low_all", "high_all") if e.get(key) is not None]
    low, high = min([0.0] * zero + ends, default=0.0), max([0.0] * zero + ends, default=0.0)
    span = (high - low) or 1.0
    margin = (4, 92) if low < 0 or not zero else (0, 96)

    def place(value: float) -> float:
        return round(margin[0] + margin[1] * (value - low) / span, 2)

    places: list[dict[str, Any] | None] = []
    for e in estimates:
        if e is None or not any(e is one for one in drawn):
            places.append(None)
            continue
        spot: dict[str, Any] = {key: place(e[key]) for key in _ENDS if e.get(key) is not None}
        places.append(spot | {"zero": place(0.0) if low <= 0 <= high else None})
    return places, [{"at": place(value), "value": value} for value in nice_ticks(low, high, about=4)]


_ENDS = ("low", "mean", "high", "low_all", "high_all")


def ladder(found: dict[str, Any]) -> dict[str, Any] | None:
    """SVG geometry of a ladder in a box of LADDER_BOX: bytes per item on a log axis, the paired loss with intervals."""
    full = {"mean": 0.0, "low": 0.0, "high": 0.0}
    rungs = [rung | {"lost": full if rung["difference"] is None else rung["difference"]} for rung in found["rungs"]]
    rungs = [rung for rung in rungs if all(rung["lost"][key] is not None for key in full)]
    if len(rungs) < 2:
        return None
    left, right, top, bottom = _LADDER_PLOT
    sizes = [math.log2(rung["bytes"]) for rung in rungs]
    smallest, largest = min(sizes), max(sizes)
    lowest, highest = min(rung["lost"]["low"] for rung in rungs), max(rung["lost"]["high"] for rung in rungs)
    pad = 0.08 * ((highest - lowest) or 0.01)
    low, high = lowest - pad, highest + pad

    def x(size: float) -> float:
        share = (math.log2(size) - smallest) / ((largest - smallest) or 1)
        return round(left + (right - left) * (0.03 + 0.94 * share), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    lines = []
    for number, (kind, precision) in enumerate(
        (k, p) for k in ("truncation", "PCA", "full width") for p in _PRECISIONS
    ):
        line = [rung for rung in rungs if (rung["method"], rung["precision"]) == (kind, precision)]
        if not line:
            continue
        shift = (-6, -2, 2, 6, 0, 0)[number]  # side by side, where several have one size
        points = [
            {
                "x": round(x(rung["bytes"]) + shift, 1),
                **{name: y(rung["lost"][key]) for name, key in (("y", "mean"), ("low", "low"), ("high", "high"))},
                "title": f"{kind} {rung['width']}, {precision}: {rung['bytes']} bytes, {_signed(rung['lost']['mean'])}",
            }
            for rung in sorted(line, key=lambda rung: rung["bytes"])
        ]
        lines.append(
            {
                "kind": {"truncation": "truncation", "PCA": "pca", "full width": "full"}[kind],
                "int8": precision == "int8",
                "label": f"{kind}, {precision}",
                "path": "M" + "L".join(f"{p['x']} {p['y']}" for p in points),
                "points": points,
            }
        )
    marks: list[int] = []
    for size in sorted({rung["bytes"] for rung in rungs}):
        if not marks or x(size) - x(marks[-1]) > 30:
            marks.append(size)
    return {
        "width": LADDER_BOX[0],
        "height": LADDER_BOX[1],
        "left": left,
        "right": right,
        "bottom": bottom,
        "full": y(0.0),
        "lines": lines,
        "ticks_x": [{"at": x(mark), "label": f"{mark:,}"} for mark in marks],
        "ticks_y": [
            {"at": y(value), "label": f"{value or 0:.3g}".replace("-", "−")} for value in nice_ticks(low, high)
        ],
    }


def curves(lines: dict[str, list[dict[str, Any]]], *, marked: float) -> dict[str, Any]:
    """SVG geometry of estimates along an axis: {"x", "mean", "low", "high"} of each line, whiskers, and the zero level.

    Args:
      lines: {label: points}, left out where a point was not measured (None); at most two labels have colours.
      marked: the x that a vertical line is drawn at.
    """
    drawn = {name: [p for p in points if None not in p.values()] for name, points in lines.items()}
    every = [point for points in drawn.values() for point in points]
    left, right, top, bottom = _CURVES_PLOT
    lowest, highest = min((p["low"] for p in every), default=0.0), max((p["high"] for p in every), default=0.0)
    pad = 0.08 * ((max(highest, 0.0) - min(lowest, 0.0)) or 0.01)
    low, high = min(lowest, 0.0) - pad, max(highest, 0.0) + pad
    first, last = min((p["x"] for p in every), default=0.0), max((p["x"] for p in every), default=1.0)

    def x(value: float) -> float:
        return round(left + (right - left) * (0.03 + 0.94 * (value - first) / ((last - first) or 1.0)), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / (high - low), 1)

    return {
        "width": _CURVES_BOX[0],
        "height": _CURVES_BOX[1],
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "zero": y(0.0),
        "marked": x(marked),
        "lines": [
            {
                "label": name,
                "path": "M" + "L".join(f"{x(p['x'])} {y(p['mean'])}" for p in points),
                "points": [
                    {
                        "x": x(p["x"]) + shift,  # side by side, where whiskers of two lines would cover each other
                        **{key: y(p[place]) for key, place in (("y", "mean"), ("low", "low"), ("high", "high"))},
                        "title": f"{name}, {p['x']:g}: {_signed(p['mean'])} "
                        f"[{_signed(p['low'])}, {_signed(p['high'])}]",
                    }
                    for p in points
                ],
            }
            for (name, points), shift in zip(drawn.items(), _shifts(len(drawn)), strict=True)
            if points
        ],
        "ticks_x": [{"at": x(value), "label": f"{value:g}"} for value in sorted({p["x"] for p in every})],
        "ticks_y": [
            {"at": y(value), "label": f"{value or 0:.3g}".replace("-", "−")} for value in nice_ticks(low, high)
        ],
    }


def _signed(value: float) -> str:
    """Four places; what rounds to zero has no sign."""
    text = f"{value:+.4f}"
    return text if text.strip("+-0.") else text[1:]


def _shifts(lines: int) -> list[float]:
    return [4.0 * (number - (lines - 1) / 2) for number in range(lines)]


def loss_curve(curve: list[dict[str, Any]]) -> dict[str, Any] | None:
    """SVG paths in a 720 x 240 box: every point as it was, and a running mean over a twentieth of the steps."""
    points = [(p["step"], p["loss"]) for p in curve if p["loss"] is not None]
    if len(points) < 2:
        return None
    steps, losses = zip(*points, strict=True)
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    window = 2 * (len(points) // 40) + 1
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    # Centred, and narrower at the two ends: a trailing mean would lag behind a falling curve.
    reach = [min(window // 2, i, len(points) - 1 - i) for i in range(len(points))]
    means = [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]

    def x(step: float) -> float:
        return round(52 + 656 * (step - steps[0]) / ((steps[-1] - steps[0]) or 1), 1)

    def y(loss: float) -> float:
        return round(12 + 192 * (high - loss) / span, 1)

    def line(values: Iterable[float]) -> str:
        return "M" + "L".join(f"{x(s)} {y(v)}" for s, v in zip(steps, values, strict=True))

    marks_x = sorted({steps[0], steps[-1], *(round(steps[0] + (steps[-1] - steps[0]) * i / 4) for i in (1, 2, 3))})
    return {
        "raw": line(losses),
        "mean": line(means),
        "window": window,
        "last": losses[-1],
        "first": losses[0],
        "ticks_y": [{"at": y(v), "label": f"{v:.3g}"} for v in nice_ticks(low, high)],
        "ticks_x": [{"at": x(v), "label": f"{v:,}"} for v in marks_x],
    }
