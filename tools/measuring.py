"""What the benches share: interleaved timing, the machine's name, a table."""

from __future__ import annotations

import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def interleaved(runs: Mapping[str, Callable[[], Any]], *, repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run, all in turn in every repetition, so that what else the machine does falls on all alike.

    A run returns when its work is done; one that returns a float has timed itself. Each is called once more before,
    uncounted, to compile and to warm up.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            before = time.perf_counter()
            own = run()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - before)
    return seconds


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of one repetition each."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


def machine() -> str:
    """Such as "2 cores of an Intel(R) Xeon(R) Processor" or "1 NVIDIA H200"."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} {device.device_kind}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{cores} cores of {model}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, figures to the right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
