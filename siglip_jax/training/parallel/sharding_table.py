"""The table of parameters on a mesh: where each lives and what it takes of a device."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh

from siglip_jax.training.parallel.sharding import tree_shardings
from siglip_jax.training.param_rules import path_name


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes of a device's shards of a tree of arrays or shapes."""
    leaves, placed = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, placed, strict=True)
    )


def sharding_table(state: Any, mesh: Mesh) -> str:
    """A line for each parameter of a training state: path, shape, PartitionSpec, bytes per device; then totals.

    Raises:
      ValueError: a parameter that no rule covers.
    """
    shardings = tree_shardings(state, mesh)
    rows = [("parameter", "shape", "sharding", "bytes per device")]
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state["params"]), jax.tree.leaves(shardings["params"]), strict=True
    ):
        spec = ", ".join("-" if axis is None else str(axis) for axis in sharding.spec)
        shape = "x".join(map(str, leaf.shape))
        rows.append((path_name(path), shape, spec or "replicated", f"{bytes_per_device(leaf, sharding):,}"))
    for name, part in (("parameters", "params"), ("optimiser", "opt_state")):
        here = bytes_per_device(state[part], shardings[part])
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state[part]))
        rows.append((f"{name}, total", f"{whole:,} bytes", f"1/{whole / max(here, 1):.4g} of it", f"{here:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows)
