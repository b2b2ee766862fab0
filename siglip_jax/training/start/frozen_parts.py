"""Which parts of the towers a run need compute only once for an item, since nothing in them learns: found from the tree
of what is frozen, and run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers, parameter_shapes
from siglip_jax.training.encode import Batch
from siglip_jax.training.optimizer.freezing import frozen_parameters
from siglip_jax.training.parallel.sharding import batch_sharding, keep_rows_apart, to_devices
from siglip_jax.training.param_rules import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """A tower that is frozen, but for its last module or wholly.

    Attributes:
      key: of a batch: what `TwoTowers.store` makes and `TwoTowers.encode_batch` goes on from.
      source: "image" or "text", what the part reads.
      tower: its name in the parameter tree.
      head: the module of the tower that follows and may learn; "" for none.
    """

    key: str
    source: str
    tower: str
    head: str = ""

    @property
    def words(self) -> str:
        return f"{self.source} tower" + (" up to its head" if self.head else "")

    def parameters(self, params: Params) -> Params:
        """Those of the part alone, of a tree shaped as the parameters."""
        return {name: leaf for name, leaf in params[self.tower].items() if name != self.head}

    def is_frozen(self, frozen: Params) -> bool:
        return self.head in ("", *frozen[self.tower]) and all(jax.tree.leaves(self.parameters(frozen)))


# Of each tower the first that is frozen: the more of it, the better.
PARTS = (
    FrozenPart(key="image_embedding", source="image", tower="img"),
    FrozenPart(key="image_tokens", source="image", tower="img", head="MAPHead_0"),
    FrozenPart(key="text_embedding", source="text", tower="txt"),
    FrozenPart(key="text_pooled", source="text", tower="txt", head="head"),
)


def frozen_parts(
    config: ml_collections.ConfigDict, params: Params, *, architecture: Architecture
) -> tuple[FrozenPart, ...]:
    """At most one of each tower; none of a tower whose input is no picture or title but vectors."""
    frozen = frozen_parameters(config, params)
    sizes = {"img": architecture.image, "txt": architecture.text}
    found: dict[str, FrozenPart] = {}
    for part in PARTS:
        if part.tower not in found and isinstance(sizes[part.tower], TowerSize) and part.is_frozen(frozen):
            found[part.tower] = part
    return tuple(found.values())


def stored_shapes(module: TwoTowers, batch: Batch, *, keys: Collection[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """What `TwoTowers.store` makes of a batch, from the ShapeDtypeStructs that `spec.batch_shapes` gives."""

    def store(params: Params, batch: Batch) -> Any:
        return module.apply({"params": params}, batch, tuple(keys), method="store")

    image = jax.tree.map(lambda x: x.update(dtype=np.float32) if x.dtype == np.uint8 else x, batch["image"])
    return jax.eval_shape(store, parameter_shapes(module.architecture), {"image": image, "text": batch["text"]})


def make_storer(
    module: nn.Module, *, keys: Collection[str], to_float: Callable[[Any], Any], mesh: Mesh
) -> Callable[[Params, Batch], dict[str, np.ndarray]]:
    """(params on the mesh, this process's rows of "image" or "text" or both) -> {key: this process's rows}.

    Compiled once for a size of batch. All processes call it alike.
    """

    def store(params: Params, batch: Batch) -> Any:
        if "image" in batch:
            batch = {**batch, "image": to_float(batch["image"])}
        with keep_rows_apart(mesh):
            return module.apply({"params": params}, batch, tuple(keys), method="store")

    jitted = jax.jit(store, out_shardings=batch_sharding(mesh))

    def stored(params: Params, batch: Batch) -> dict[str, np.ndarray]:
        return jax.tree.map(_local_rows, jitted(params, to_devices(batch, mesh)))

    return stored


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows that this process's devices hold, in the order in which `to_devices` was given them."""
    by_start = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(by_start[start]) for start in sorted(by_start)])


def parameters_digest(params: Params, parts: Collection[FrozenPart]) -> str:
    """sha256 of the parameters that the parts compute with: names, types and values."""
    digest = hashlib.sha256()
    for part in parts:
        for path, leaf in jax.tree_util.tree_leaves_with_path(part.parameters(params)):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{part.tower}{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_same_frozen(config: ml_collections.ConfigDict, *, restored: Params, start: Params) -> None:
    """Raises a UserError where the frozen parameters of a restored run are not those of its start.

    Outputs that were stored come from the start's, so such a run would go on with another tower than it began with.
    """

    def equal(ours: jax.Array, theirs: Any, stays: bool) -> bool:
        same = jax.jit(lambda x, y: (x == y).all())
        return not stays or bool(same(ours, jax.device_put(np.asarray(theirs), ours.sharding)))

    found = jax.tree.leaves(jax.tree.map(equal, restored, start, frozen_parameters(config, start)))
    if not all(found):
        raise UserError(
            f"{found.count(False)} frozen parameters of the run are not those of its start, config.init="
            f"{config.init!r}, which has changed since; put it back, or go on with --config.data.cache_frozen=off"
        )
