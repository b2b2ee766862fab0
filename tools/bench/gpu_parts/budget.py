"""What a part is given, time and a folder; and how its figures are made."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from tools.bench import measuring

# {"what": text, column: number or text, ...}, with "error" where it failed, "table" for a table of its own.
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartBudget:
    """Of one part.

    Attributes:
      tiny: sizes for a rehearsal on a CPU.
      folder: for files that parts share.
      deadline: `time.monotonic()` at which the process is ended.
    """

    tiny: bool
    folder: pathlib.Path
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    def choose(self, full: Any, tiny: Any) -> Any:
        return tiny if self.tiny else full


def reason(error: Exception) -> str:
    """The error in a line: what kind, and the beginning of what it says."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200]


def median_seconds(run: Callable[[], Any], *, repetitions: int = 5) -> float:
    return statistics.median(measuring.interleaved({"run": run}, repetitions=repetitions)["run"])


def device_memory() -> float | None:
    """Bytes that JAX may take of the device, None where it does not tell."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def mfu(flops: float, seconds: float, *, kind: str = "") -> float | str:
    """Of the data sheet's bfloat16 peak of JAX's device, or of `kind`, in percent; "-" for one without an entry."""
    import jax

    from siglip_jax.analysis.mfu import peak_flops

    peak = peak_flops(kind or jax.devices()[0].device_kind)
    return "-" if peak is None else 100 * flops / seconds / peak


def largest_by_line(points: list[tuple[int, float]], *, capacity: float, step: int = 8) -> int:
    """The batch at which memory, a line through the last two (batch, bytes), reaches `capacity`; 0 for none."""
    (low, low_bytes), (high, high_bytes) = points[-2:]
    slope = (high_bytes - low_bytes) / (high - low)
    if slope <= 0:
        return 0
    return max(0, int((high + (capacity - high_bytes) / slope) // step * step))
