"""Resizing written in ONNX's operations, for a graph that takes decoded pictures; the writer comes as `graph`.

Pictures are float32 [n, 3, H, W] of whole numbers 0 to 255, all of one size, as those that come out, [n, 3, h, w].
Sizes are read from the input's shape while the graph runs. Weights are ratios of whole numbers, so no operation needs
64-bit floats, which TensorRT has not. What is added is float32 in a graph of float16 too.
"""

from __future__ import annotations

from typing import Any

_WHITE, _GREY = 255.0, 128.0
_BELOW = 2.0**-12  # of a level: float32 gives 254.99998 for white between white


def resize(graph: Any, images: str, size: tuple[int, int], *, kernel: str) -> str:
    """Antialiased, "bilinear" or "bicubic", in the order of `resize.resample`."""
    return _resized(graph, images, (graph.constant(size[0]), graph.constant(size[1])), size, kernel=kernel)


def resize_no_antialias(graph: Any, images: str, size: tuple[int, int]) -> str:
    """Bilinear between the four nearest pixels, truncated once, at the end."""
    height, width = _sides(graph, images)
    rows = _matrix(graph, height, graph.constant(size[0]), size[0], antialias=False)
    columns = _matrix(graph, width, graph.constant(size[1]), size[1], antialias=False)
    both = graph.add("MatMul", graph.add("MatMul", rows, images), graph.add("Transpose", columns, perm=[1, 0]))
    return graph.add("Floor", graph.add("Add", both, _number(graph, _BELOW)))


def pad(graph: Any, images: str, size: tuple[int, int], *, fill: str) -> str:
    """As `images.pad_image`: a matrix that gives no row for the ground is the picture in the middle of zeros."""
    old_height, old_width = _sides(graph, images)
    by_height = graph.add("Mul", old_height, graph.constant(size[1]))
    by_width = graph.add("Mul", old_width, graph.constant(size[0]))

    def half_up(product: str, new: int, other: str) -> str:
        twice = graph.add("Mul", other, graph.constant(2))
        whole = graph.add("Div", graph.add("Add", graph.add("Mul", product, graph.constant(2)), other), twice)
        return graph.add("Min", graph.add("Max", whole, graph.constant(1)), graph.constant(new))

    # Of the side that decides, this is the side itself: both lines hold for both.
    height = half_up(by_height, size[0], old_width)
    width = half_up(by_width, size[1], old_height)
    inner = (height, width)
    starts = [_halved(graph, new, side) for new, side in zip(size, inner, strict=True)]
    out = _resized(graph, images, inner, size, kernel="bilinear", starts=starts)
    inside = [_inside(graph, new, side, start) for new, side, start in zip(size, inner, starts, strict=True)]
    rows = graph.add("Unsqueeze", inside[0], graph.constant([1]))
    outside = graph.add("Sub", _number(graph, 1.0), graph.add("Mul", rows, inside[1]))
    if fill != "edge":
        ground = _number(graph, {"white": _WHITE, "grey": _GREY}[fill])
    else:
        below = graph.add("Less", height, graph.constant(size[0]))
        means = [_edge_mean(graph, out, starts[axis], inner[axis], size[1 - axis], axis=axis + 2) for axis in (0, 1)]
        ground = graph.add("Unsqueeze", graph.add("Where", below, *means), graph.constant([2, 3]))
    return graph.add("Add", out, graph.add("Mul", outside, ground))


def _resized(
    graph: Any,
    images: str,
    inner: tuple[str, str],
    size: tuple[int, int],
    *,
    kernel: str,
    starts: list[str] | None = None,
) -> str:
    """To `inner`, which begins at `starts` of `size`; zero around."""
    old = _sides(graph, images)
    rows, columns = (
        _matrix(graph, old[axis], inner[axis], size[axis], kernel=kernel, start=starts[axis] if starts else "")
        for axis in (0, 1)
    )
    columns = graph.add("Transpose", columns, perm=[1, 0])

    def levels(x: str) -> str:
        whole = graph.add("Floor", graph.add("Add", x, _number(graph, 0.5)))
        return graph.add("Clip", whole, _number(graph, 0.0), _number(graph, 255.0))

    def height_first() -> str:
        return levels(graph.add("MatMul", levels(graph.add("MatMul", rows, images)), columns))

    def width_first() -> str:
        return levels(graph.add("MatMul", rows, levels(graph.add("MatMul", images, columns))))

    shrinks = [graph.add("Sub", old[axis], inner[axis]) for axis in (0, 1)]
    more = graph.add("Greater", shrinks[0], graph.add("Mul", shrinks[1], graph.constant(2)))
    condition = graph.add("And", graph.add("Greater", shrinks[0], graph.constant(0)), more)
    return graph.choose(condition, height_first, width_first)


def _matrix(
    graph: Any, old: str, new: str, rows: int, *, kernel: str = "bilinear", antialias: bool = True, start: str = ""
) -> str:
    """float32 [rows, old]: PIL's resampling of one axis from `old` to `new` samples, the first of them at `start`.

    In units of 1 / (2 new) of a pixel all centres are whole numbers. PIL's first and last pixel of a sample are those
    whose weight is not zero, so they need no words here.
    """
    samples = graph.constant([[2 * row + 1] for row in range(rows)])
    if start:
        samples = graph.add("Sub", samples, graph.add("Mul", start, graph.constant(2)))
    source = graph.add("Range", graph.constant(0), old, graph.constant(1))
    source = graph.add("Add", graph.add("Mul", source, graph.constant(2)), graph.constant(1))
    apart = graph.add("Abs", graph.add("Sub", graph.add("Mul", source, new), graph.add("Mul", samples, old)))
    unit = graph.add("Mul", graph.add("Max", old, new) if antialias else new, graph.constant(2))
    distance = graph.add("Div", _floats(graph, apart), _floats(graph, unit))
    weight = _cubic(graph, distance) if kernel == "bicubic" else _triangle(graph, distance)
    total = graph.add("ReduceSum", weight, graph.constant([1]), keepdims=1)
    whole = graph.add("Div", weight, total)
    if not start:
        return whole
    # Rows of the ground have weights of no meaning, or none at all.
    inside = graph.add("Unsqueeze", _inside(graph, rows, new, start, dtype=""), graph.constant([1]))
    return graph.add("Where", inside, whole, _number(graph, 0.0))


def _triangle(graph: Any, distance: str) -> str:
    return graph.add("Max", graph.add("Sub", _number(graph, 1.0), distance), _number(graph, 0.0))


def _cubic(graph: Any, distance: str) -> str:
    """Keys' with a = -0.5."""

    def polynomial(*factors: float) -> str:
        value = _number(graph, factors[0])
        for factor in factors[1:]:
            value = graph.add("Add", graph.add("Mul", value, distance), _number(graph, factor))
        return value

    near, far = polynomial(1.5, -2.5, 0.0, 1.0), polynomial(-0.5, 2.5, -4.0, 2.0)
    outer = graph.add("Where", graph.add("Less", distance, _number(graph, 2.0)), far, _number(graph, 0.0))
    return graph.add("Where", graph.add("Less", distance, _number(graph, 1.0)), near, outer)


def _inside(graph: Any, count: int, inner: str, start: str, *, dtype: str = "float32") -> str:
    """[count]: which of the samples are of the picture, not of the ground: 1 and 0, or without a type booleans."""
    places = graph.add("Sub", graph.constant(list(range(count))), start)
    both = graph.add("And", graph.add("Less", places, inner), graph.add("Greater", places, graph.constant(-1)))
    return _floats(graph, both) if dtype else both


def _edge_mean(graph: Any, images: str, start: str, inner: str, count: int, *, axis: int) -> str:
    """float32 [n, 3]: the mean, rounded half up, of the first and last row or column that is not ground."""
    last = graph.add("Sub", graph.add("Add", start, inner), graph.constant(1))
    edges = [graph.add("Gather", images, place, axis=axis) for place in (start, last)]
    total = graph.add("ReduceSum", graph.add("Add", *edges), graph.constant([2]), keepdims=0)
    # The mean is total / (2 count), so this is (2 total + 2 count) // (4 count).
    rounded = graph.add("Div", graph.add("Add", total, _number(graph, count)), _number(graph, 2 * count))
    return graph.add("Floor", rounded)


def _sides(graph: Any, images: str) -> tuple[str, str]:
    """(height, width) of [n, 3, H, W], whole numbers."""
    shape = graph.add("Shape", images)
    return graph.add("Gather", shape, graph.constant(2)), graph.add("Gather", shape, graph.constant(3))


def _halved(graph: Any, size: int, inner: str) -> str:
    return graph.add("Div", graph.add("Sub", graph.constant(size), inner), graph.constant(2))


def _floats(graph: Any, x: str) -> str:
    return graph.add("Cast", x, to=1)


def _number(graph: Any, value: float) -> str:
    return graph.constant(float(value), "float32")
