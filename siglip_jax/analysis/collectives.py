"""Bytes that one device of a compiled program sends in a call, by collective, with the trip counts of its loops.

Read from the compiled text, where the partitioner's own collectives are; `siglip_jax.analysis.flops` counts those of a
jaxpr.
"""

from __future__ import annotations

import collections
import math
import re

from siglip_jax.analysis import hlo
from siglip_jax.errors import UserError

_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r"= [su]\d+\[\]\S* get-tuple-element\(.*index=(\d+)")
_BRACES = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'[^']*',?)+)\}")

# What a device sends of the `size` bytes of the whole array, in a ring of `members`.
SENT = {
    "all-gather": lambda size, members: size * (members - 1) / members,
    "reduce-scatter": lambda size, members: size * (members - 1) / members,
    "all-reduce": lambda size, members: 2 * size * (members - 1) / members,
    "all-to-all": lambda size, members: size * (members - 1) / members,
    "collective-permute": lambda size, members: size,
}


def sent(text: str, *, devices: int) -> dict[str, float]:
    """Bytes a device sends in one call of the program of `compiled.as_text()`, by kind of collective.

    Raises:
      UserError: a collective in a loop whose trip count the text does not tell.
    """
    computations = hlo.computations(text)
    times = _times(computations)
    total: collections.defaultdict[str, float] = collections.defaultdict(float)
    for name, lines in computations.items():
        if _repeats_another(name, lines):
            continue
        for line in lines:
            match = hlo.OPERATION.match(line)
            kind = match[3].removesuffix("-start") if match else ""
            if match is None or kind not in SENT or not times.get(name, 0):
                continue
            if math.isnan(times[name]):
                raise UserError(f"the compiled text has {match[1]} in a loop of unknown length; use lax.scan")
            members = group_size(line, devices)
            size = _whole(kind, match[2], members, started=match[3] != kind)
            if name.startswith("all-reduce-scatter"):  # TPU: an all-reduce of which each keeps a slice
                kind = "reduce-scatter"
            total[kind] += times[name] * SENT[kind](size, members)
    return {kind: total[kind] for kind in sorted(total) if total[kind]}


def group_size(line: str, devices: int) -> int:
    """How many devices take part in one group of a collective; all of them where none are named."""
    if match := _BRACES.search(line):
        return match[1].count(",") + 1
    if match := _IOTA.search(line):
        return int(match[2])
    if match := _MESH.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match[2]))
    return devices


def _whole(kind: str, shape: str, members: int, *, started: bool) -> float:
    """Bytes of the whole array: what an all-gather ends with, what a reduce-scatter begins with."""
    size = float(hlo.total_bytes(shape))
    if started and kind == "collective-permute":
        return size / 2  # (operand, result), and two counters on TPU that do not count
    if started and kind == "all-gather":
        return size * members / (members + 1)  # (operand, result)
    return size * members if kind == "reduce-scatter" else size


def _repeats_another(name: str, lines: list[str]) -> bool:
    """TPU writes a gather that overlaps with products into every fusion until it is done; only its start counts."""
    if any('"AsyncCollectiveStart"' in line for line in lines):
        return False
    return name.startswith("async_collective_fusion") or any("AsyncCollective" in line for line in lines)


def _times(computations: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs in one call; NaN where a loop does not say."""
    callers: collections.defaultdict[str, list[tuple[str, float]]] = collections.defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            loop = _WHILE.search(line)
            for called in hlo.called(line):
                trips = 1.0
                if loop is not None and called == loop[2]:
                    trips = _trips(line, *(computations.get(loop[k], []) for k in (1, 2)))
                callers[called].append((name, trips))
    found: dict[str, float] = {}

    def times(name: str) -> float:
        if name not in found:
            found[name] = sum(times(caller) * trips for caller, trips in callers[name]) if callers[name] else 1.0
        return found[name]

    return {name: times(name) for name in computations}


def _trips(line: str, condition: list[str], body: list[str]) -> float:
    """Of `while i < n`, i from 0: what XLA worked out, or the one constant of the condition by the step of the body."""
    if match := _KNOWN_TRIPS.search(line):
        return float(match[1])
    constants = {int(match[2]) for text in condition if (match := _CONSTANT.search(text))}
    if len(constants) != 1:
        return math.nan
    counters = {int(match[1]) for text in condition if (match := _COUNTER.search(text))}
    return float(math.ceil(constants.pop() / (_step(body, counters.pop()) if len(counters) == 1 else 1)))


def _step(body: list[str], place: int) -> int:
    """What a body adds to element `place` of its tuple; 1 where it does not say. TPU's products that gather or scatter
    as they go have two hops a trip, and step by 2.
    """
    constants = {match[1]: int(match[2]) for text in body if (match := _CONSTANT.search(text))}
    named = {match[1]: match for text in body if (match := hlo.OPERATION.match(text))}
    results = next(
        (re.findall(r"%([\w.\-]+)", text.split(" tuple(")[1]) for text in body if "ROOT" in text and " tuple(" in text),
        [],
    )
    counter = named.get(results[place]) if place < len(results) else None
    if counter is None or counter[3] != "add":
        return 1
    added = [constants[name] for name in re.findall(r"%([\w.\-]+)", counter[4].split(")")[0]) if name in constants]
    return added[0] if len(added) == 1 else 1
