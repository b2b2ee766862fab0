"""What a compiled program holds: bytes per device, and the collectives that XLA made of it."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BITS = re.compile(r"(?:pred|[suf](\d+)|bf(16)|c(\d+))[\w]*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of the compiled text.

    Attributes:
      kind: one of KINDS.
      bytes: of its largest array, on one device.
      in_loop: runs once a trip of some loop.
      asynchronous: begins in one instruction and ends in another.
      overlapped: asynchronous with arithmetic scheduled between the two.
    """

    kind: str
    bytes: int
    in_loop: bool
    asynchronous: bool
    overlapped: bool


def collectives(text: str) -> list[Collective]:
    """The collectives of `compiled.as_text()`, in its order."""
    named = computations(text)
    looped = _inside_loops(named)
    found = []
    for name, lines in named.items():
        operations = [match.groups() for line in lines if (match := OPERATION.match(line))]
        for place, (result, shape, operation, _) in enumerate(operations):
            kind = operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            started = operation != kind
            between = _until_done(operations[place + 1 :], result) if started else []
            found.append(
                Collective(
                    kind=kind,
                    bytes=largest_array(shape),
                    in_loop=name in looped,
                    asynchronous=started,
                    overlapped=any(op in ("fusion", "dot", "convolution", "while") for op in between),
                )
            )
    return found


def memory(compiled: Any) -> dict[str, int]:
    """Bytes per device of a `jax.stages.Compiled`; outputs that share an argument's memory are left out."""
    stats = compiled.memory_analysis()
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
    }


def largest_array(shape: str) -> int:
    """Bytes of the largest array in an HLO shape such as "(bf16[128,768]{1,0}, f32[])"."""
    return max([0, *_sizes(shape)])


def total_bytes(shape: str) -> int:
    """Bytes of all arrays in an HLO shape."""
    return sum(_sizes(shape))


def called(line: str) -> list[str]:
    """The computations that an instruction calls."""
    return [name for group in _CALLED.findall(line) for name in re.findall(r"%([\w.\-]+)", group)]


def _sizes(shape: str) -> list[int]:
    sizes = []
    for *bits, dimensions in _BITS.findall(shape):
        width = int(next((b for b in bits if b), 8))
        sizes.append(math.prod(int(d) for d in dimensions.split(",") if d) * width // 8)
    return sizes


def computations(text: str) -> dict[str, list[str]]:
    """{name: lines} of the computations in the compiled text."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found


def _inside_loops(named: dict[str, list[str]]) -> set[str]:
    """Names of the bodies of loops and of everything they call."""
    calls = {name: {each for line in lines for each in called(line)} for name, lines in named.items()}
    text = (line for lines in named.values() for line in lines)
    waiting = [match[1] for line in text if (match := re.search(r" while\(.*body=%?([\w.\-]+)", line))]
    inside: set[str] = set()
    while waiting:
        if (name := waiting.pop()) not in inside:
            inside.add(name)
            waiting += calls.get(name, ())
    return inside


def _until_done(operations: list[tuple[str, ...]], start: str) -> list[str]:
    """The operations scheduled between a start and its done."""
    between = []
    for _, _, operation, operands in operations:
        if operation.endswith("-done") and re.search(rf"%?{re.escape(start)}[,)]", operands):
            break
        between.append(operation)
    return between
