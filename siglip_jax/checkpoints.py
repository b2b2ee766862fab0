"""Training state on disk: the only importer of Orbax.

A checkpoint holds the state, the iterator's state and what the caller adds as JSON. Saves are asynchronous, complete
or absent (Orbax renames a finished folder into place), and numbered by the step they follow.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from siglip_jax.errors import UserError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates; what it raises is what counts


class Checkpoints:
    """The checkpoints of one run, under `folder`."""

    def __init__(self, folder: epath.PathLike, *, keep: int = 2):
        self.folder = epath.Path(folder)
        self._manager = ocp.CheckpointManager(
            self.folder.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, *, state: Any, iterator: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, so the state may be donated to the next step."""
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), iterator=ocp.args.JsonSave(iterator))
        )

    def restore(self, step: int, *, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, iterator state) at `step`; `like` is a tree of ShapeDtypeStructs with the shardings to restore to.

        Raises:
          UserError: the checkpoint holds other parameters than `like`.
        """
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), iterator=ocp.args.JsonRestore())
            )
        except Exception as error:  # Orbax and TensorStore raise plain Exception, among others
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"{self.folder / str(step)} is damaged or of another model ({reason}); use the config it was trained "
                "with, or remove that folder to continue from the checkpoint before"
            ) from error
        return restored["state"], restored["iterator"]

    def wait(self) -> None:
        """Until the save under way is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


def restore_params(folder: epath.PathLike, *, like: Any) -> tuple[Any, int]:
    """(parameters, step) of the newest checkpoint under `folder`, as float32 host arrays shaped as `like`.

    Raises:
      UserError: no checkpoint there, or one of another model.
    """
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"{folder}: no complete checkpoint; train first, or name a saved model")
        path = checkpoints.folder.resolve() / str(step) / "state"
        try:
            return _read_params(path, like), step
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise plain Exception, among others
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"{path} is damaged ({reason}); remove {path.parent} to use the one before") from error


def _read_params(path: epath.Path, like: Any) -> Any:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        part = "ema" if "ema" in tree else "params"  # the running mean is the trained model, where one was kept
        _check_shapes(path, tree[part], like)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        item = {part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)}
        arguments = ocp.checkpoint_utils.construct_restore_args(item)
        restored = reader.restore(
            path, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        )
    return restored[part]


def _check_shapes(path: epath.Path, stored: Any, like: Any) -> None:
    def shapes(tree):
        return {
            jax.tree_util.keystr(key, simple=True, separator="/"): tuple(leaf.shape)
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    found, expected = shapes(stored), shapes(like)
    wrong = [
        f"{name} {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: not a checkpoint of this model: {'; '.join(wrong[:3])}{more}")
