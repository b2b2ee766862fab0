"""The same step by transformers' SiglipModel in PyTorch: autocast, SDPA, torch.compile, fused AdamW.

JAX makes the weights alone, on the CPU, so that the GPU is all PyTorch's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from tools.bench.gpu_parts.budget import PartBudget, Row, largest_by_line, median_seconds, mfu, reason
from tools.bench.gpu_parts.step import model_flops, values_of

TITLE = "The same step in PyTorch: transformers' SiglipModel under torch.compile"
SECONDS_TO_COMPILE = 75.0


def rows(budget: PartBudget) -> Iterator[Row]:
    from tools.bench import measuring, peer_transformers
    from tools.bench import step as bench

    values = values_of(budget)
    if why := peer_transformers.missing(measuring.architecture_of(values.preset)):
        yield {"what": "transformers", "error": why}
        return
    import torch

    model = bench.start_model(values)
    peer = peer_transformers.TransformersStep(model, dtype=values.dtype, checkpointed=False)
    points: list[tuple[int, float]] = []
    for batch in budget.choose((128, 256), (8, 16)):
        if points and budget.left < SECONDS_TO_COMPILE and not budget.tiny:
            yield {"what": peer.title, "rows": batch, "error": "no time left to compile"}
            break
        data = bench.random_batch(model.architecture, batch)
        try:
            loss = peer.run(data)
            seconds = median_seconds(functools.partial(peer.run, data))
        except Exception as error:
            yield {"what": peer.title, "rows": batch, "error": reason(error)}
            break
        row = {"what": peer.title, "rows": batch, "ms": seconds * 1e3, "images/s": batch / seconds}
        flops = model_flops(values, batch)
        kind = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        row |= {"TFLOP/s": flops / seconds / 1e12, "MFU %": mfu(flops, seconds, kind=kind), "loss": loss}
        if torch.cuda.is_available():
            size = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            points.append((batch, float(size)))
            row["GiB"] = size / 2**30
        yield row
    if len(points) > 1:
        total = torch.cuda.get_device_properties(0).total_memory
        batch = largest_by_line(points, capacity=0.92 * total)
        yield {"what": f"{peer.title}, largest exact batch by a straight line, not run", "rows": batch}
