"""What the benches share: architectures, the clock, the largest size that fits, the machine's name, a table."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from siglip_jax.errors import UserError

if TYPE_CHECKING:
    from siglip_jax.models.architecture import Architecture

SMALL = "small"  # 48 px, 192 wide, 3 layers: seconds on a CPU


def architecture_of(preset: str) -> Architecture:
    """Of a preset's name, or SMALL.

    Raises:
      UserError: no such preset, or one whose pictures have no one size.
    """
    from siglip_jax.models.architecture import Architecture, TowerSize
    from siglip_jax.models.presets import PRESETS  # with image libraries, which a bench of the loss does without

    if preset == SMALL:
        tower = TowerSize(width=192, depth=3, mlp_dim=768, heads=3)
        return Architecture(
            image_size=(48, 48), patch_size=12, image=tower, text=tower, vocab_size=1000, text_length=16
        )
    if preset not in PRESETS:
        raise UserError(f"--preset={preset}: expected {SMALL} or a name that siglip-jax models lists")
    architecture = PRESETS[preset].architecture
    if architecture.naflex:
        raise UserError(f"--preset={preset}: pictures of one size are compared; give another preset")
    return architecture


def largest(fits: Callable[[int], bool], *, step: int) -> int:
    """The largest multiple of `step` that fits, to a sixteenth of it; 0 where none does."""
    low, high = 0, 1  # in steps: the largest that fits, the smallest that does not
    while fits(high * step):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle)
    return low * step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """What a run that times itself returns. Nothing else that a run returns is taken for a time.

    Attributes:
      seconds: of the work, by the clock.
      processor: seconds of the processor in them, where they are known.
      passes: how often the work was done in them.
      outside: seconds of the call that are not of the work, such as filling a queue before it.
    """

    seconds: float
    processor: float = math.nan
    passes: float = 1.0
    outside: float = 0.0

    @property
    def each(self) -> float:
        """Seconds of one pass."""
        return self.seconds / self.passes


class ClockError(RuntimeError):
    """Measured times contradict the wall clock. No figure can be made of them."""


def timings(runs: Mapping[str, Callable[[], Any]], *, repetitions: int) -> dict[str, list[Timed]]:
    """Times of each run, all in turn in every repetition, so that what else the machine does falls on all alike.

    A run returns when its work is done. Its call is timed here, unless it returns a `Timed`. Each is called once more
    before, uncounted, to compile and to warm up.

    Raises:
      ClockError: a run's own times are more or less than its calls took.
    """
    for run in runs.values():
        run()
    times: dict[str, list[Timed]] = {name: [] for name in runs}
    walls = dict.fromkeys(runs, 0.0)
    begin = time.perf_counter()
    for _ in range(repetitions):
        for name, run in runs.items():
            before = time.perf_counter()
            own = run()
            wall = time.perf_counter() - before
            walls[name] += wall
            times[name].append(own if isinstance(own, Timed) else Timed(seconds=wall))
    whole = time.perf_counter() - begin
    for name in runs:
        check_wall_clock(name, times[name], wall=walls[name])
    check_wall_clock("all runs", [each for name in runs for each in times[name]], wall=whole)
    return times


def interleaved(runs: Mapping[str, Callable[[], Any]], *, repetitions: int) -> dict[str, list[float]]:
    """Seconds of one pass of each run, from `timings`."""
    return {name: [one.each for one in times] for name, times in timings(runs, repetitions=repetitions).items()}


def check_wall_clock(name: str, times: Sequence[Timed], *, wall: float) -> None:
    """Raises a ClockError where times do not add up to the `wall` seconds that the calls took.

    They may be less by a tenth, and by 20 ms a call, which is what taking a time may cost on a busy machine.
    """
    told = sum(one.seconds + one.outside for one in times)
    least = 0.9 * wall - 0.02 * len(times)
    if not least <= told <= 1.001 * wall + 1e-3:
        raise ClockError(f"{name}: times of {told:.3g} s in all, but the wall clock says {wall:.3g} s; nothing printed")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """(what run() returns, seconds that it took)."""
    before = time.perf_counter()
    out = run()
    return out, time.perf_counter() - before


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
