"""The mesh ("data", "fsdp", "tensor") and where every array of a step lives on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from siglip_jax.errors import UserError
from siglip_jax.training.rules import match_rules

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # rows of a batch are spread over both

# Layers carry a leading depth axis, which is never sharded. Attention splits heads over "tensor", the MLP its hidden
# width; "fsdp" takes the other side of each matrix. Matches optimiser moments too, whose paths end the same way.
PARAMETER_RULES = (
    (r"(.*/)?encoderblock/.*/(query|key|value)/kernel", PartitionSpec(None, "fsdp", "tensor", None)),
    (r"(.*/)?encoderblock/.*/(query|key|value)/bias", PartitionSpec(None, "tensor", None)),
    (r"(.*/)?encoderblock/.*/out/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"(.*/)?encoderblock/.*/Dense_0/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"(.*/)?encoderblock/.*/Dense_0/bias", PartitionSpec(None, "tensor")),
    (r"(.*/)?encoderblock/.*/Dense_1/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"(.*/)?Embed_0/embedding", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),
)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of AXES with the given sizes; one of them may be -1 and takes the devices left over.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = len(devices) // max(1, math.prod(size for size in shape if size != -1))
    if min(shape) < 1 or math.prod(shape) != len(devices):
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise UserError(f"config.mesh: {asked} does not fit {len(devices)} devices; one size may be -1 to fill")
    # Auto: the compiler places what the step does not constrain (jax.make_mesh would make the axes Explicit).
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def tree_shardings(tree: Any, mesh: Mesh, rules=PARAMETER_RULES) -> Any:
    """NamedShardings for a tree of arrays or shapes. A dimension that an axis does not divide is not sharded by it."""

    def fit(leaf, spec: PartitionSpec) -> NamedSharding:
        entries = tuple(spec)[: leaf.ndim] if len(spec) <= leaf.ndim else ()
        divided = (
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(entries, leaf.shape, strict=False)
        )
        return NamedSharding(mesh, PartitionSpec(*divided))

    return jax.tree.map(fit, tree, match_rules(rules, tree))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over BATCH_AXES, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def to_devices(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a global batch, arrays or `Patches` -> global ones sharded by `batch_sharding`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), dict(batch))
