"""The process of one part: python -m tools.bench.gpu_parts.run_part MODULE FILE SECONDS FOLDER [tiny].

FILE is written anew after every row, so that what is measured stays measured, however the process ends.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "triton", "transformers")


def environment() -> dict[str, Any]:
    """The device and the versions that the figures are of."""
    import jax

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "device": f"{jax.device_count()} {device.device_kind}",
        "platform": device.platform,
        "memory_gib": memory and round(memory / 2**30, 1),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def main(module_name: str, file: str, seconds: str, folder: str, *options: str) -> None:
    deadline = time.monotonic() + float(seconds)
    part = importlib.import_module(module_name)
    from tools.bench.gpu_parts.budget import PartBudget

    found: dict[str, Any] = {"environment": environment(), "rows": []}
    path = pathlib.Path(file)

    def write() -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    write()
    for row in part.rows(PartBudget(tiny="tiny" in options, folder=pathlib.Path(folder), deadline=deadline)):
        found["rows"].append(row)
        print(row, flush=True)
        write()


if __name__ == "__main__":
    main(*sys.argv[1:])
