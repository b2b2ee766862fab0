"""Short vectors for numba, which has none: the few steps of resizing that its loops do not become by themselves.

LLVM makes of them what the processor has (AVX-512, AVX2, SSE, NEON). Pictures are flat uint8 arrays of 3 bytes a pixel,
and a "place" is an index into one. Four rows are worked on together, a block: pixel after pixel, of each the four rows,
4 bytes each, the last of them meaningless, so that the 16 bytes of a pixel are one vector. Nothing here checks bounds.

What numba keeps on disk of `resize` goes by the time of that file: touch it after a change to this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba.extending
from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba.core import types
from numba.core.types import Type
from numba.core.typing import Context, Signature
from numba.extending import models, register_model

intrinsic: Any = numba.extending.intrinsic
Values = Sequence[ir.Value]
# What an intrinsic returns: its types, and the function that writes its code.
Typed = tuple[Signature, Callable[[Any, Builder, Signature, Values], ir.Value]]
_BYTE, _INT, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_BYTES, _WORDS = ir.VectorType(_BYTE, 16), ir.VectorType(_INT, 4)
_FOUR = ir.VectorType(_FLOAT, 4)
_PLACES = types.UniTuple(types.intp, 4)


class Lanes(Type):
    """16 numbers, a local variable of a compiled function."""

    def __init__(self, element: ir.Type):
        self.vector = ir.VectorType(element, 16)
        super().__init__(name=f"Lanes({element})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes):
        super().__init__(manager, kind, kind.vector)


_INTS, _FLOATS = Lanes(_INT), Lanes(_FLOAT)


# --- sums of products -------------------------------------------------------------------------------------------------


@intrinsic
def spread(typing: Context, value: Type) -> Typed:
    """int32 -> 16 times the same."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        return _spread(builder, args[0], _INTS.vector)

    return _INTS(types.int32), generate


@intrinsic
def add_product(typing: Context, sums: Type, source: Type, place: Type, weight: Type) -> Typed:
    """sums + weight * the 16 bytes from source[place] on."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        levels = _load(builder, _pointer(context, builder, signature.args[1], args[1], args[2]), _BYTES)
        weights = _spread(builder, args[3], _INTS.vector)
        return builder.add(args[0], builder.mul(builder.zext(levels, _INTS.vector), weights))

    return _INTS(sums, source, types.intp, types.int32), generate


@intrinsic
def store_levels(typing: Context, target: Type, place: Type, sums: Type, bits: Type) -> Typed:
    """sums / 2**bits, rounded down, within 0 ... 255 -> the 16 bytes from target[place] on."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        value = builder.ashr(args[2], _spread(builder, args[3], _INTS.vector))
        for comparison, bound in ((">", 0), ("<", 255)):
            bounds = ir.Constant(_INTS.vector, [bound] * 16)
            value = builder.select(builder.icmp_signed(comparison, value, bounds), value, bounds)
        levels = builder.trunc(value, _BYTES)
        _store(builder, levels, _pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(target, types.intp, sums, types.int32), generate


@intrinsic
def pixels(typing: Context, source: Type, places: Type) -> Typed:
    """The pixel at each of 4 places -> floats, row after row, every fourth without meaning. Reads 4 bytes of each."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        words = ir.Constant(_WORDS, ir.Undefined)
        for k, place in enumerate(_unpacked(builder, args[1])):
            first = _pointer(context, builder, signature.args[0], args[0], place)
            word = builder.load(builder.bitcast(first, _INT.as_pointer()), align=1)
            words = builder.insert_element(words, word, _INT(k))
        return builder.uitofp(builder.bitcast(words, _BYTES), _FLOATS.vector)

    return _FLOATS(source, _PLACES), generate


@intrinsic
def floats(typing: Context, source: Type, places: Type) -> Typed:
    """4 floats from each of 4 places on: a pixel each and a number without meaning."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        rows = [
            _load(builder, _pointer(context, builder, signature.args[0], args[0], place), _FOUR)
            for place in _unpacked(builder, args[1])
        ]
        upper, lower = (_shuffle(builder, rows[k], rows[k + 1], range(8)) for k in (0, 2))
        return _shuffle(builder, upper, lower, range(16))

    return _FLOATS(source, _PLACES), generate


@intrinsic
def spread_rows(typing: Context, values: Type) -> Typed:
    """4 floats -> each of them for the 4 numbers of its row."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        four = ir.Constant(_FOUR, ir.Undefined)
        for k, value in enumerate(_unpacked(builder, args[0])):
            four = builder.insert_element(four, value, _INT(k))
        return _shuffle(builder, four, four, [k // 4 for k in range(16)])

    return _FLOATS(types.UniTuple(types.float32, 4)), generate


@intrinsic
def blend(typing: Context, a: Type, s: Type, b: Type, t: Type) -> Typed:
    """a * s + b * t of floats, rounded three times; s and t may be one number each."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        def product(k: int) -> ir.Value:
            weight = args[k + 1]
            if signature.args[k + 1] == types.float32:
                weight = _spread(builder, weight, _FLOATS.vector)
            return builder.fmul(args[k], weight)

        return builder.fadd(product(0), product(2))

    return _FLOATS(_FLOATS, s, _FLOATS, t), generate


@intrinsic
def store_truncated(typing: Context, target: Type, place: Type, values: Type) -> Typed:
    """Floats within 0 ... 255, truncated -> the 16 bytes from target[place] on."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        levels = builder.trunc(builder.fptosi(args[2], _INTS.vector), _BYTES)
        _store(builder, levels, _pointer(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(target, types.intp, values), generate


# --- between rows and blocks ------------------------------------------------------------------------------------------


@intrinsic
def into_block(typing: Context, block: Type, place: Type, source: Type, places: Type) -> Typed:
    """4 pixels of each of 4 rows -> the 64 bytes of a block from `place` on. Reads 16 bytes of each row."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        rows = []
        for start in _unpacked(builder, args[3]):
            row = _load(builder, _pointer(context, builder, signature.args[2], args[2], start), _BYTES)
            padded = _shuffle(builder, row, row, [3 * pixel + k for pixel in range(4) for k in range(4)])
            rows.append(builder.bitcast(padded, _WORDS))
        first = _pointer(context, builder, signature.args[0], args[0], args[1])
        for k, pixel in enumerate(_transposed(builder, rows)):
            _store(builder, pixel, _after(builder, first, 16 * k))
        return context.get_dummy_value()

    return types.void(block, types.intp, source, _PLACES), generate


@intrinsic
def out_of_block(typing: Context, target: Type, places: Type, block: Type, place: Type) -> Typed:
    """The 64 bytes of a block from `place` on -> 4 pixels of each of 4 rows, and nothing beyond them."""

    def generate(context: Any, builder: Builder, signature: Signature, args: Values) -> ir.Value:
        first = _pointer(context, builder, signature.args[2], args[2], args[3])
        pixels = [_load(builder, _after(builder, first, 16 * k), _WORDS) for k in range(4)]
        for start, row in zip(_unpacked(builder, args[1]), _transposed(builder, pixels), strict=True):
            padded = builder.bitcast(row, _BYTES)
            to = _pointer(context, builder, signature.args[0], args[0], start)
            kept = [4 * pixel + k for pixel in range(4) for k in range(3)]
            _store(builder, _shuffle(builder, padded, padded, kept[:8]), to)
            _store(builder, _shuffle(builder, padded, padded, kept[8:]), _after(builder, to, 8))
        return context.get_dummy_value()

    return types.void(target, _PLACES, block, types.intp), generate


# --- in LLVM's terms --------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Builder, kind: Any, array: Any, place: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [place])


def _after(builder: Builder, pointer: Any, count: int) -> Any:
    return builder.gep(pointer, [ir.Constant(ir.IntType(64), count)])


def _load(builder: Builder, pointer: Any, vector: ir.VectorType) -> Any:
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)


def _store(builder: Builder, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=1)


def _unpacked(builder: Builder, places: Any) -> list[Any]:
    return [builder.extract_value(places, k) for k in range(_PLACES.count)]


def _shuffle(builder: Builder, a: Any, b: Any, order: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(order)), list(order)))


def _spread(builder: Builder, value: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _INT(0))
    return _shuffle(builder, one, one, [0] * vector.count)


def _transposed(builder: Builder, rows: Sequence[Any]) -> list[Any]:
    """Four vectors of four words -> their columns."""
    columns = []
    for order in ([0, 4, 1, 5], [2, 6, 3, 7]):
        upper, lower = (_shuffle(builder, rows[k], rows[k + 1], order) for k in (0, 2))
        columns += [_shuffle(builder, upper, lower, half) for half in ([0, 1, 4, 5], [2, 3, 6, 7])]
    return columns
