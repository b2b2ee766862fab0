"""Training state on disk: the only importer of Orbax.

A checkpoint holds the state, the iterator's state, the metrics of its step and what the caller says of the run
(config, preprocessing), so that it can be understood by itself. Saves are asynchronous, complete or absent (Orbax
renames a finished folder into place), and numbered by the step they follow. The newest and the best are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from siglip_jax.errors import UserError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates; what it raises is what counts

DAMAGED = "damaged"  # folder beside the checkpoints: those that could not be read, moved out of the way


class Checkpoints:
    """The checkpoints of one run, under `folder`.

    Args:
      keep: how many of the newest stay.
      best_metric: the name of a metric whose best checkpoint stays as well; higher is better, but for names that end
        in "loss". "" for none.
      read_only: changes nothing in `folder`, which another process may be writing to.
      attributes: JSON-able facts of the run, stored in each checkpoint.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep: int = 2,
        best_metric: str = "",
        read_only: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ):
        self.folder = epath.Path(folder)
        self.save_seconds = 0.0  # of the slowest save so far, from its call to its last file
        self._best_metric = best_metric
        self._attributes = dict(attributes or {})
        self._save_began = 0.0
        self._metrics: dict[int, dict[str, float]] = {}
        self._manager = ocp.CheckpointManager(
            self.folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Keep(self, keep),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,  # what a killed save leaves
                # Orbax would read each checkpoint's own notes here, and a damaged one would stop the program.
                lightweight_initialize=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._save_ended),
            ),
        )
        for step in self._manager.all_steps():
            self._metrics[step] = self._read_metrics(step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps done at each complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Steps done at the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The checkpoint with the best `best_metric`; None where none has it. Of equals the newest."""
        scored = [(self.score(step), step) for step in self.steps()]
        return max((pair for pair in scored if pair[0] > -math.inf), default=(0, None))[1]

    def score(self, step: int) -> float:
        """`best_metric` of a checkpoint, the sign such that higher is better; -inf where it is absent or NaN."""
        value = self._metrics.get(step, {}).get(self._best_metric, math.nan)
        if not self._best_metric or math.isnan(value):
            return -math.inf
        return -value if self._best_metric.endswith("loss") else value

    def metrics(self, step: int) -> dict[str, float]:
        """What `save` was given."""
        return self._metrics[step]

    def attributes(self, step: int) -> dict[str, Any]:
        """What the run said of itself when it saved this step; empty where that cannot be read."""
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"])
        except Exception:  # damaged; Orbax raises many types
            return {}

    def save(
        self, step: int, *, state: Any, iterator: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving; the arrays are copied before this returns, so the state may be donated to the next step."""
        self.wait()  # so that the clock below is this save's
        self._save_began = time.monotonic()
        self._metrics[step] = {name: float(value) for name, value in (metrics or {}).items()}
        # JSON has no NaN; a metric that is one cannot be the best anyway.
        finite = {name: value for name, value in self._metrics[step].items() if math.isfinite(value)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=ocp.args.JsonSave(dict(iterator)),
                metrics_of_step=ocp.args.JsonSave(finite),
                run=ocp.args.JsonSave(self._attributes),
            ),
            force=True,
        )

    def restore_newest(self, *, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, iterator state) of the newest checkpoint that can be read; None without one.

        One that cannot be read is named on stderr and moved to the folder DAMAGED, once an older one was read.

        Args:
          like: a tree of ShapeDtypeStructs with the shardings to restore to, whichever the state was saved from.

        Raises:
          UserError: there are checkpoints, and none can be read.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state, iterator = self.restore(step, like=like)
                failure = ""
            except UserError as error:
                failure = str(error)
            if not _everywhere(not failure):  # a process reads its own shards only
                failures[step] = failure or f"{self.folder / str(step)} cannot be read by another process"
                continue
            for failed, reason in failures.items():
                if jax.process_index() == 0:
                    print(f"warning: {reason}; continuing from step {step}", file=sys.stderr, flush=True)
                    self._set_aside(failed)
                _everywhere(True)  # moved before anyone looks
                self._manager.reload()
            return step, state, iterator
        if failures:
            steps = ", ".join(map(str, sorted(failures)))
            raise UserError(
                f"{self.folder}: none of the checkpoints {steps} can be read; {failures[max(failures)]}; "
                "use the config and the version they were made with, or start again in a new --workdir"
            )
        return None

    def restore(self, step: int, *, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, iterator state) at `step`; `like` as in `restore_newest`.

        Raises:
          UserError: the checkpoint is damaged or holds other parameters than `like`.
        """
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like), iterator=ocp.args.JsonRestore())
            with _reads_end():
                restored = self._manager.restore(step, args=args)
            state, iterator = restored["state"], restored["iterator"]
            if not isinstance(iterator, dict):
                raise ValueError("no state of the iterator")
        except Exception as error:  # Orbax and TensorStore raise plain Exception, among others
            raise UserError(f"{self.folder / str(step)} is damaged or of another model ({_reason(error)})") from error
        return state, iterator

    def wait(self) -> None:
        """Until the save under way is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _save_ended(self) -> None:
        self.save_seconds = max(self.save_seconds, time.monotonic() - self._save_began)

    def _set_aside(self, step: int) -> None:
        target = self.folder / DAMAGED / str(step)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.rmtree()
        (self.folder / str(step)).rename(target)

    def _read_metrics(self, step: int) -> dict[str, float]:
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(metrics_of_step=ocp.args.JsonRestore()))
            return {name: float(value) for name, value in restored["metrics_of_step"].items()}
        except Exception:  # damaged, or of a version that stored none; `restore` will say so where it matters
            return {}


class _Keep:
    """Orbax's preservation policy: the newest `keep`, and the best."""

    def __init__(self, checkpoints: Checkpoints, keep: int):
        self._checkpoints, self._keep = checkpoints, keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        scores = {step: self._checkpoints.score(step) for step in steps}
        best = max(steps, key=lambda step: (scores[step], step), default=None)
        kept = {*steps[-self._keep :], best}
        return [info.step in kept for info in checkpoints]


class _FinishingLoop(asyncio.SelectorEventLoop):
    """An event loop that runs its last tasks to their end before it closes."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _FinishingLoops(asyncio.DefaultEventLoopPolicy):
    _loop_factory = _FinishingLoop


@contextlib.contextmanager
def _reads_end() -> Iterator[None]:
    """Reads that start in this scope end in it.

    Orbax reads all arrays of a checkpoint at once and closes its event loop at the first that fails. The others would
    report to a closed loop, each with a traceback on stderr.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_FinishingLoops())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _everywhere(value: bool) -> bool:
    """Whether it is so in all processes."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def best_step(folder: epath.PathLike) -> int:
    """The step of the best checkpoint under `folder`, by the metric that the run chose when it last saved.

    Raises:
      UserError: no checkpoint there, a run that chose no metric, or no checkpoint that has it.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        runs = filter(None, (checkpoints.attributes(step) for step in reversed(steps)))
        metric = next(runs, {}).get("config", {}).get("evaluation", {}).get("best_metric", "")
    with Checkpoints(folder, read_only=True, best_metric=metric) as checkpoints:
        if (best := checkpoints.best_step()) is not None:
            return best
    if not steps:
        raise UserError(f"{folder}: no complete checkpoint; train first, or name a saved model")
    why = f"none of them has its best_metric, {metric}" if metric else "its config.evaluation.best_metric is empty"
    raise UserError(f"{folder}: none of {steps} is the best, since {why}; name one, such as {folder}/{steps[-1]}")


def restore_params(folder: epath.PathLike, *, like: Any, step: int | None = None) -> tuple[Any, int]:
    """(parameters, step) of a checkpoint under `folder`, as float32 host arrays shaped as `like`.

    Args:
      step: which; the newest that can be read when absent, with a warning on stderr for each that cannot.

    Raises:
      UserError: no checkpoint there, or one of another model.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps or step not in (None, *steps):
            wanted = "no complete checkpoint" if step is None else f"no checkpoint of step {step}, only of {steps}"
            raise UserError(f"{folder}: {wanted}; train first, or name a saved model")
        warnings: list[str] = []
        for each in reversed(steps) if step is None else [step]:
            path = checkpoints.folder.resolve() / str(each) / "state"
            try:
                params = _read_params(path, like)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise plain Exception, among others
                warnings.append(f"{path.parent} is damaged ({_reason(error)})")
                continue
            for warning in warnings:
                print(f"warning: {warning}; using step {each}", file=sys.stderr, flush=True)
            return params, each
    raise UserError(f"{'; '.join(warnings[:2])}; none of the checkpoints can be read: train again")


def _read_params(path: epath.Path, like: Any) -> Any:
    with ocp.PyTreeCheckpointer() as reader, _reads_end():
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
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
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
