"""The training step of SigLIP 2 B/16-256 in bfloat16: a ladder of batches, and the largest exact batch that fits."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from tools.bench.gpu_parts.budget import PartBudget, Row, device_memory, largest_by_line, median_seconds, mfu, reason

TITLE = "Training step, SigLIP 2 B/16-256, one device"
TINY_MEMORY = 2**28  # bytes, of a rehearsal's device
SECONDS_TO_COMPILE = 25.0


def values_of(budget: PartBudget, *, remat: str = "none") -> Any:
    """What `bench step` takes for its flags."""
    preset = budget.choose("google/siglip2-base-patch16-256", "small")
    return types.SimpleNamespace(preset=preset, dtype=budget.choose("bfloat16", "float32"), remat=remat)


def rows(budget: PartBudget) -> Iterator[Row]:
    """What matters most first; the larger batches of the ladder, and full rematerialisation, where time is left."""
    from tools.bench import step as bench

    capacity = device_memory() or TINY_MEMORY
    values = values_of(budget)
    model = bench.start_model(values)
    points = []
    for batch in budget.choose((128, 256), (8, 16)):
        row = of_batch(values, model, batch, capacity=capacity)
        yield row
        if "error" not in row:
            points.append((batch, row["GiB"] * 2**30))
    yield from largest(values, points, capacity=capacity)
    micro, batch = budget.choose((128, 2048), (8, 32))
    yield of_batch(values, model, batch, microbatch=micro, capacity=capacity)
    for batch in budget.choose((512, 1024, 64), ()):
        if budget.left > SECONDS_TO_COMPILE:
            yield of_batch(values, model, batch, capacity=capacity)
    if budget.left > 3 * SECONDS_TO_COMPILE and not budget.tiny:
        full = values_of(budget, remat="full")
        needed = [(size, compiled(full, size, capacity=capacity)[1].needed) for size in (512, 1024)]
        yield from largest(full, needed, capacity=capacity)


def compiled(values: Any, batch: int, *, microbatch: int = 0, capacity: float) -> Any:
    from tools.bench import step as bench

    return bench.compiled_step(values, batch=batch, microbatch=microbatch, capacity=capacity)


def model_flops(values: Any, batch: int) -> float:
    """Of one step, without recomputation."""
    import jax

    from siglip_jax.analysis.flops import dot_flops
    from siglip_jax.training import aot
    from tools.bench import step as bench

    step = aot.build_step(bench.config_of(values, batch=batch, microbatch=0), devices=jax.devices()[:1])
    return dot_flops(step.function, step.state, step.batch)


def of_batch(values: Any, model: Any, batch: int, *, microbatch: int = 0, capacity: float) -> Row:
    from tools.bench import step as bench

    row: Row = {"what": "siglip-jax" + (f", micro-batches of {microbatch}" if microbatch else ""), "rows": batch}
    try:
        step, report, program = compiled(values, batch, microbatch=microbatch, capacity=capacity)
        if not report.fits:
            return row | {"error": f"{report.needed / 2**30:.1f} GiB do not fit"}
        run = bench.run_of(values, step, program, model, bench.random_batch(model.architecture, batch))
        loss = run()  # of the start: the same weights and batch as PyTorch's
        seconds = median_seconds(run)
    except Exception as error:
        return row | {"error": reason(error)}
    flops = report.model_flops
    return row | {
        "ms": seconds * 1e3,
        "images/s": batch / seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "MFU %": mfu(flops, seconds),
        "GiB": report.needed / 2**30,
        "loss": loss,
    }


def largest(values: Any, points: list[tuple[int, float]], *, capacity: float) -> Iterator[Row]:
    """By a straight line through two compiled sizes, then compiled: nothing is run."""
    if len(points) < 2:
        return
    batch = largest_by_line(points, capacity=0.98 * capacity)
    row: Row = {"what": f"siglip-jax, largest exact batch, remat {values.remat}", "rows": batch}
    try:
        report = compiled(values, batch, capacity=capacity)[1]
    except Exception as error:
        yield row | {"error": reason(error)}
    else:
        yield row | {"GiB": report.needed / 2**30} | ({} if report.fits else {"error": "the line misled: too large"})
