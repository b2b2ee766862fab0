"""Several processes as one run: `jax.distributed` where the environment says so, and never on a laptop.

Three things say so, the first of them that holds: a coordinator named by flags or by SIGLIP_JAX_COORDINATOR,
SIGLIP_JAX_NUM_PROCESSES and SIGLIP_JAX_PROCESS_ID; `srun` with more than one task; a TPU machine. How SLURM and TPU
machines name their coordinator is JAX's own detection (jax.distributed).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from siglip_jax.errors import UserError

VARIABLES = {
    "coordinator": "SIGLIP_JAX_COORDINATOR",
    "num_processes": "SIGLIP_JAX_NUM_PROCESSES",
    "process_id": "SIGLIP_JAX_PROCESS_ID",
}
# What srun gives each task, and sbatch or salloc alone do not.
SLURM_TASK = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def initialize(
    *, coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> str | None:
    """Starts `jax.distributed` if this process is one of several; call it before anything asks for a device.

    Args:
      coordinator: host:port of process 0, the same for all processes. With it:
      num_processes, process_id: how many there are, and which one this is.

    Returns:
      What said so, or None where nothing did and nothing was started.

    Raises:
      UserError: a coordinator without the other two, numbers that do not fit, or a coordinator that does not answer.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    found = detect(os.environ, given=given, tpu=_on_tpu_machine(os.environ))
    if found is None:
        return None
    reason, arguments = found
    import jax

    if jax.distributed.is_initialized():
        return reason
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"{reason}: {first}; every process needs the same coordinator, reachable from all, and an id of its own"
        ) from error
    return reason


def detect(
    environ: Mapping[str, str], *, given: Mapping[str, Any] | None = None, tpu: bool = False
) -> tuple[str, dict[str, Any]] | None:
    """(what says that there are several processes, arguments of jax.distributed.initialize), or None.

    Args:
      given: the three of VARIABLES, from flags; they go before the environment.
      tpu: whether this is a TPU machine.
    """
    named = {
        name: value if (value := (given or {}).get(name)) not in (None, "") else environ.get(variable)
        for name, variable in VARIABLES.items()
    }
    if any(value is not None for value in named.values()):
        return "coordinator", _explicit(named)
    if all(name in environ for name in SLURM_TASK) and int(environ["SLURM_NTASKS"]) > 1:
        return "SLURM", {"cluster_detection_method": "slurm"}
    if tpu:
        return "TPU", {}
    return None


def _explicit(named: Mapping[str, Any]) -> dict[str, Any]:
    said = ", ".join(f"{name}={value}" for name, value in named.items())
    expected = "expected --coordinator=host:port, --num_processes and --process_id together, or the variables " + (
        ", ".join(VARIABLES.values())
    )
    try:
        count, number = int(named["num_processes"]), int(named["process_id"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{said}; {expected}") from error
    host, _, port = str(named["coordinator"] or "").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{said}; {expected}")
    if not 0 <= number < count:
        raise UserError(f"{said}; process_id counts from 0 to num_processes - 1")
    return {
        "coordinator_address": named["coordinator"],
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _on_tpu_machine(environ: Mapping[str, str], *, devices: pathlib.Path = pathlib.Path("/dev")) -> bool:
    """libtpu is installed, chips are there and JAX may use them; a machine known to be the only one is left out."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or "TPU_SKIP_MDS_QUERY" in environ:
        return False
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if workers is not None and "," not in workers:
        return False
    chips = [*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Process 0 runs the body while the others wait, then they run it: for files that all share.

    An error in process 0 lets the others go on as well, so that they meet it too instead of waiting for ever.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        yield
        return
    if jax.process_index() != 0:
        multihost_utils.sync_global_devices(name)
        yield
        return
    try:
        yield
    finally:
        multihost_utils.sync_global_devices(name)


def is_first_process() -> bool:
    """Whether this process writes what one process writes: config.json, the model's description, metrics."""
    import jax

    return jax.process_index() == 0
