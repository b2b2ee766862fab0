"""FLOPs of products and bytes between devices, counted over a jaxpr with the trip counts of its loops.

XLA's own `cost_analysis` counts the body of a loop once, so a scanned tower or a tiled loss reports a fraction of what
it does.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.extend import core as jex

from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call does.

    Attributes:
      flops: of dot products and convolutions, 2 a multiply-add, summed over all devices of a `shard_map`. What XLA's
        partitioner repeats on several devices outside a `shard_map` is counted once.
      sent: bytes that one device sends, by collective, for those written out in a `shard_map`; the partitioner's own
        are in the compiled text only (`siglip_jax.analysis.hlo`).
    """

    flops: float
    sent: dict[str, float]


def cost(function: Callable, *arguments: Any) -> Cost:
    """The cost of function(*arguments); arguments may be ShapeDtypeStructs.

    Raises:
      UserError: products inside a `while` whose trip count the jaxpr does not tell.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments)
    flops = 0.0
    sent: collections.defaultdict[str, float] = collections.defaultdict(float)
    for equation, times, sizes in _leaves(jaxpr.jaxpr, 1, None):
        name = equation.primitive.name
        # Inside a shard_map shapes are one device's, outside they are global.
        devices = 1 if sizes is None else math.prod(sizes.values())
        flops += times * devices * FLOPS.get(name, lambda _: 0)(equation)
        if name in SENT and sizes is not None:
            sent[name] += times * SENT[name](equation, sizes)
    return Cost(flops, {name: value for name, value in sent.items() if value})


def dot_flops(function: Callable, *arguments: Any) -> float:
    """FLOPs of the products of function(*arguments), over all devices."""
    return cost(function, *arguments).flops


# --- one operation ----------------------------------------------------------------------------------------------------


def _array(variable: jex.Var | jex.Literal) -> jax.core.ShapedArray:
    """Shape and dtype of what a product or a collective takes or gives: always an array."""
    assert isinstance(variable.aval, jax.core.ShapedArray)
    return variable.aval


def _dot_general(equation: jex.JaxprEqn) -> float:
    (contract, _), _ = equation.params["dimension_numbers"]
    left, out = _array(equation.invars[0]).shape, _array(equation.outvars[0]).shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contract)


def _convolution(equation: jex.JaxprEqn) -> float:
    """Every output value sums over one group's input channels and the window."""
    kernel, out = _array(equation.invars[1]).shape, _array(equation.outvars[0]).shape
    output_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * math.prod(kernel) / output_channels


FLOPS: dict[str, Callable[[jex.JaxprEqn], float]] = {"dot_general": _dot_general, "conv_general_dilated": _convolution}


def _bytes(equation: jex.JaxprEqn) -> float:
    arrays = [_array(variable) for variable in equation.invars]
    return float(sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays))


def _members(equation: jex.JaxprEqn, sizes: Mapping[str, int]) -> int:
    axes = next(equation.params[key] for key in ("axes", "axis_name") if key in equation.params)
    axes = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sizes[axis] for axis in axes)


def _permuted(equation: jex.JaxprEqn, sizes: Mapping[str, int]) -> float:
    return _bytes(equation)


def _gathered(equation: jex.JaxprEqn, sizes: Mapping[str, int]) -> float:
    """Each shard goes to the D - 1 others."""
    return _bytes(equation) * (_members(equation, sizes) - 1)


def _scattered(equation: jex.JaxprEqn, sizes: Mapping[str, int]) -> float:
    """All but the own share is sent, once."""
    members = _members(equation, sizes)
    return _bytes(equation) * (members - 1) / members


def _reduced(equation: jex.JaxprEqn, sizes: Mapping[str, int]) -> float:
    """A reduce-scatter and an all-gather of the shares."""
    return 2 * _scattered(equation, sizes)


# Bandwidth-optimal algorithms on a ring.
SENT: dict[str, Callable[[jex.JaxprEqn, Mapping[str, int]], float]] = {
    "ppermute": _permuted,
    "all_gather": _gathered,
    "all_gather_invariant": _gathered,
    "reduce_scatter": _scattered,
    "all_to_all": _scattered,
    "psum": _reduced,
    "psum_invariant": _reduced,
    "pmax": _reduced,
    "pmin": _reduced,
}


# --- the walk ---------------------------------------------------------------------------------------------------------

# An equation, how often it runs, and the axis sizes of the `shard_map` around it.
Leaf = tuple[jex.JaxprEqn, float, dict[str, int] | None]
Literals = dict[jex.Var, Any]


def _leaves(jaxpr: jex.Jaxpr, times: float, sizes: dict[str, int] | None) -> Iterator[Leaf]:
    """Of every equation that holds no jaxpr."""
    literals: Literals = {}  # variables that are constants of this jaxpr, for the bounds of loops
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            yield from _leaves(params["jaxpr"].jaxpr, times * params["length"], sizes)
        elif name == "while":
            body = list(_leaves(params["body_jaxpr"].jaxpr, times, sizes))
            trips = _trip_count(equation, literals)
            if trips is None and any(e.primitive.name in FLOPS or e.primitive.name in SENT for e, _, _ in body):
                raise UserError("flops: products in a while loop of unknown length; use lax.scan or a fixed fori_loop")
            yield from ((e, t * (trips or 1), s) for e, t, s in body)
        elif name == "cond":
            branches = [list(_leaves(branch.jaxpr, times, sizes)) for branch in params["branches"]]
            yield from max(branches, key=_weight)
        elif name == "shard_map":
            yield from _leaves(_plain(params["jaxpr"]), times, dict(params["mesh"].shape))
        elif inner := _inner(params):
            for each in inner:
                yield from _leaves(each, times, sizes)
        else:
            if name == "convert_element_type" and isinstance(equation.invars[0], jex.Literal):
                literals[equation.outvars[0]] = equation.invars[0].val
            yield equation, times, sizes


def _weight(leaves: Iterable[Leaf]) -> float:
    return sum(times * FLOPS.get(e.primitive.name, lambda _: 0)(e) for e, times, _ in leaves)


def _plain(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


def _inner(params: dict[str, Any]) -> list[jex.Jaxpr]:
    """Of jit, remat, custom_vjp, custom_jvp and the like: one jaxpr each. Rules of differentiation are functions."""
    return [_plain(p) for p in params.values() if isinstance(p, (jex.Jaxpr, jex.ClosedJaxpr))]


def _trip_count(equation: jex.JaxprEqn, literals: Literals) -> int | None:
    """Of `while i < n: i += 1` with constant bounds, which is how a fori_loop of fixed length appears."""
    params = equation.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    constants = equation.invars[: params["cond_nconsts"]]
    start = equation.invars[params["cond_nconsts"] + params["body_nconsts"] :]

    def outside(variable: jex.Var | jex.Literal) -> Any:
        """The value that a variable of the condition begins with."""
        if isinstance(variable, jex.Literal):
            return variable.val
        place = condition.invars.index(variable)
        given = constants[place] if place < len(constants) else start[place - len(constants)]
        return given.val if isinstance(given, jex.Literal) else literals.get(given)

    counter, end = condition.eqns[0].invars
    if isinstance(counter, jex.Literal) or condition.invars.index(counter) < len(constants):
        return None
    place = condition.invars.index(counter) - len(constants)
    counted = body.invars[params["body_nconsts"] + place]
    steps = [e for e in body.eqns if e.outvars[0] is body.outvars[place]]
    one = steps and steps[0].primitive.name == "add" and steps[0].invars[0] is counted
    if not one or not isinstance(steps[0].invars[1], jex.Literal) or steps[0].invars[1].val != 1:
        return None
    if not isinstance(end, jex.Literal) and condition.invars.index(end) >= len(constants):
        limit = condition.invars.index(end) - len(constants)
        if body.outvars[limit] is not body.invars[params["body_nconsts"] + limit]:
            return None  # the bound changes
    first, last = outside(counter), outside(end)
    return None if first is None or last is None else max(0, int(last) - int(first))
