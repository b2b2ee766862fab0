"""siglip-jax compile: the training step of a config, compiled for a TPU slice on any machine; no TPU, no weights.

siglip-jax compile --config=configs/siglip2_b16_256.py --topology=v5e:16x16
siglip-jax compile --config=configs/siglip2_b16_256.py --config.model.remat=none

Prints memory per chip, FLOPs, bytes between chips, the bound on MFU that follows, and whether it fits. Needs libtpu
(pip install siglip-jax[tpu]); the topology is that of the config where none is given.
"""

from __future__ import annotations

import importlib.util
import os

from absl import flags

from siglip_jax.analysis.hardware import parse_topology
from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="siglip2_b16_256.py")
    flags.DEFINE_string(
        "topology", "", "Chip and shape, as in v5e:16x16; that of the config when absent.", flag_values=values
    )
    flags.DEFINE_boolean("table", False, "Also print every parameter with its sharding.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    config = values.config
    topology = values.topology or config.topology
    if not topology:
        raise UserError("this config names no TPU slice; give one, as in --topology=v5e:2x4")
    chip, chips = parse_topology(topology)
    devices = tpu_devices(topology)
    from siglip_jax.training import aot
    from siglip_jax.training.parallel.sharding_table import sharding_table

    step = aot.build_step(config, devices=devices)
    if values.table:
        print(sharding_table(step.state, step.mesh))
    each = len(devices) // chips
    print(f"compiling the step for {topology}, mesh {dict(step.mesh.shape)}, batch {config.batch_size}", flush=True)
    report, _ = aot.compile_step(config, step, capacity=chip.hbm / each)
    print(aot.describe(report, chip=chip, devices_per_chip=each))
    print(aot.verdict(report, devices_per_chip=each))


def tpu_devices(topology: str) -> list:
    """The devices of a slice that is not there.

    Raises:
      UserError: no libtpu, or a shape that the chip does not come in.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPU needs libtpu, which is not installed; pip install siglip-jax[tpu]")
    # No metadata server is asked, and no chip: this may well be a laptop. So no lock is needed either, by which libtpu
    # keeps a second process off the chips: several may compile at once, and beside a run.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-256", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", **quiet}.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # jaxlib raises plain RuntimeErrors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--topology={topology}: libtpu knows no such slice ({reason})") from error
