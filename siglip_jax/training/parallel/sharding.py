"""The mesh ("data", "fsdp", "tensor") and where every array of a step lives on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from siglip_jax.errors import UserError
from siglip_jax.training.param_rules import match_rules

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # rows of a batch are spread over both

ShardingRules = Iterable[tuple[str, P | dict[int, P]]]  # (regex over the whole path, spec, or specs by rank)

# Every parameter of both towers by name, so that a new one is an error until someone decides where it lives. Optimiser
# moments and averages have paths that end the same way. "tensor" takes heads and the hidden width of the MLP, "fsdp"
# the other side of each matrix. Blocks carry a leading depth axis, which is never sharded: the scan walks along it.
# What is replicated (norms, biases, positions) is less than 1 % of a published model.
PARAMETER_RULES: ShardingRules = (
    (r"(.*/)?encoderblock/.*/(query|key|value)/kernel", P(None, "fsdp", "tensor", None)),
    (r"(.*/)?encoderblock/.*/(query|key|value)/bias", P(None, "tensor", None)),
    (r"(.*/)?encoderblock/.*/out/kernel", P(None, "tensor", None, "fsdp")),
    (r"(.*/)?encoderblock/.*/Dense_0/kernel", P(None, "fsdp", "tensor")),
    (r"(.*/)?encoderblock/.*/Dense_0/bias", P(None, "tensor")),
    (r"(.*/)?encoderblock/.*/Dense_1/kernel", P(None, "tensor", "fsdp")),
    (r"(.*/)?encoderblock/(.*/)?(out/bias|Dense_1/bias|LayerNorm_[01]/(scale|bias))", P()),
    (r"(.*/)?MAPHead_0/.*/(query|key|value)/kernel", P("fsdp", "tensor", None)),
    (r"(.*/)?MAPHead_0/.*/(query|key|value)/bias", P("tensor", None)),
    (r"(.*/)?MAPHead_0/.*/out/kernel", P("tensor", None, "fsdp")),
    (r"(.*/)?MAPHead_0/.*/Dense_0/kernel", P("fsdp", "tensor")),
    (r"(.*/)?MAPHead_0/.*/Dense_0/bias", P("tensor")),
    (r"(.*/)?MAPHead_0/.*/Dense_1/kernel", P("tensor", "fsdp")),
    (r"(.*/)?MAPHead_0/(probe|(.*/)?(out/bias|Dense_1/bias|LayerNorm_0/(scale|bias)))", P()),
    # A convolution [h, w, 3, width], or a matrix [values of a patch, width] in NaFlex: the width is last in both.
    (r"(.*/)?img/embedding/kernel", {4: P(None, None, None, "fsdp"), 2: P(None, "fsdp")}),
    (r"(.*/)?img/embedding/bias", P()),
    # An adapter: what is fixed of it, then its MLP.
    (r"(.*/)?img/(mean|scale|weight|strength)", P()),
    (r"(.*/)?img/projection", P("fsdp", None)),
    (r"(.*/)?img/hidden_[0-9]+/kernel", P("fsdp", "tensor")),
    (r"(.*/)?img/hidden_[0-9]+/bias", P("tensor")),
    (r"(.*/)?img/output/kernel", P("tensor", "fsdp")),
    (r"(.*/)?img/output/bias", P()),
    (r"(.*/)?img/linear/kernel", P(None, "fsdp")),
    (r"(.*/)?txt/Embed_0/embedding", P("fsdp", None)),
    (r"(.*/)?txt/head/kernel", P("fsdp", None)),
    (r"(.*/)?txt/head/bias", P()),
    (r"(.*/)?(img|txt)/pos_embedding", P()),
    (r"(.*/)?encoder_norm/(scale|bias)", P()),
    (r"(.*/)?[tb]", P()),
)


def make_mesh(sizes: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of AXES with the given sizes; one of them may be -1 and takes the devices left over.

    TPU chips are laid out so that neighbours on an axis are neighbours in the torus where the sizes allow it.

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
    if getattr(devices[0], "platform", "") == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    # Auto: the compiler places what the step does not constrain (jax.make_mesh would make the axes Explicit).
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def tree_shardings(tree: Any, mesh: Mesh, rules: ShardingRules = PARAMETER_RULES) -> Any:
    """NamedShardings for a tree of arrays or shapes: scalars whole, everything else by the first rule that matches.

    A dimension that an axis does not divide is not sharded by it. A rule's value is a PartitionSpec, or a dict of them
    by rank; an empty one fits any rank.

    Raises:
      ValueError: listing what no rule covers, or an array of another rank than its rule is for.
    """
    ruled = match_rules(rules, tree, default_for_scalars=P())

    def fit(path: tuple[Any, ...], leaf: Any, spec: P | dict[int, P] | None) -> NamedSharding:
        spec = spec.get(leaf.ndim) if isinstance(spec, dict) else spec
        if spec is None or (len(spec) and len(spec) != leaf.ndim):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} {leaf.shape}: its sharding rule, {spec}, is for another rank")
        divided = (
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        )
        return NamedSharding(mesh, P(*divided))

    return jax.tree_util.tree_map_with_path(fit, tree, ruled)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over BATCH_AXES, everything else whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def keep_rows_apart(mesh: Mesh) -> Any:
    """A context for `module.apply`: the output [n, ...] of every module keeps its rows spread over BATCH_AXES.

    "fsdp" shards rows of activations and one side of every matrix. Left alone, the partitioner may well keep the
    matrix where it is and gather the rows instead, which costs memory by the size of the axis.
    """

    def constrain(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.ndim < 2:
            return x
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, P(BATCH_AXES, *[P.UNCONSTRAINED] * (x.ndim - 1)))
        )

    def intercept(
        method: Callable[..., Any], arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        out = method(*arguments, **keywords)
        return jax.tree.map(constrain, out) if context.method_name == "__call__" else out

    return nn.intercept_methods(intercept)


@functools.lru_cache(maxsize=8)
def data_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal, disjoint shares of a batch's rows this process feeds.

    Processes whose devices hold the same rows, as when "tensor" spans two of them, feed the same share.

    Raises:
      UserError: the rows of two processes overlap in part.
    """
    places: dict[int, set[int]] = {}
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    for number, devices in enumerate(rows):
        for device in devices:
            places.setdefault(device.process_index, set()).add(number)
    shares = sorted({tuple(sorted(numbers)) for numbers in places.values()})
    if sum(map(len, shares)) != len(rows) or len({*map(len, shares)}) != 1:
        raise UserError(
            f"config.mesh: {dict(mesh.shape)} over {len(places)} processes gives them rows that overlap in part; "
            "let the tensor axis divide the devices of a process, or the other way round"
        )
    return shares.index(tuple(sorted(places[jax.process_index()]))), len(shares)


def to_devices(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's rows of a global batch, arrays or trees of them -> global ones sharded by `batch_sharding`."""
    sharding = batch_sharding(mesh)

    def place(rows: np.ndarray) -> jax.Array:
        count = data_share(mesh)[1]
        return jax.make_array_from_process_local_data(sharding, rows, (rows.shape[0] * count, *rows.shape[1:]))

    return jax.tree.map(place, dict(batch))


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Arrays on a mesh, of other processes too -> numpy arrays in every process."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.device_get(tree)
