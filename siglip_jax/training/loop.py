"""The training loop: restore, step, log, save. Data come as an iterator, evaluations as functions of (step, params)."""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_collections
from etils import epath

from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import UserError
from siglip_jax.model import Model, check_preprocessing
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.training import config as configs
from siglip_jax.training.distributed import first_process_first, is_first_process
from siglip_jax.training.optimizer import make_optimizer, make_schedule
from siglip_jax.training.progress import Progress
from siglip_jax.training.sharding import make_mesh, to_devices, to_host
from siglip_jax.training.step import init_state, make_train_step

STEPS_IN_FLIGHT = 2  # dispatched and not yet finished: enough to hide the host, and bounds the batches in memory
BATCH_KEYS = ("image", "text", "group")

Evaluator = Callable[[int, Any], dict[str, float]]


class BatchIterator(Protocol):
    """This process's rows of each global batch, with a position that can be saved and set (Grain's interface)."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...
    def __next__(self) -> dict[str, Any]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def train(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    batches: BatchIterator,
    workdir: epath.PathLike,
    fingerprint: str = "",
    evaluators: Sequence[Evaluator] = (),
) -> Model:
    """Trains `model` for `config.steps` steps and returns the trained one; continues a run found in `workdir`.

    Args:
      config: the fields of `training.config.default_config`.
      model: the start, from random weights or loaded.
      batches: see `BatchIterator`; rows "image" uint8 [n, h, w, 3] or `Patches`, "text" int32 [n, L], "group" int32
        [n]. Where it has an attribute `preprocessing`, as `make_loader`'s has, that must be the model's.
      workdir: gets config.json, the model's description, checkpoints/ and metrics.jsonl.
      fingerprint: of the data; a run does not continue on other data.
      evaluators: called with (step, params) at every checkpoint; their figures go into metrics.jsonl.

    Raises:
      UserError: the workdir holds a run of another config, data or preprocessing, the batches come from another
        preprocessing than the model's, or the loss is not finite.
    """
    configs.check(config)
    workdir = epath.Path(workdir)
    if model.preprocessing is None:
        raise UserError("train: the model has no known preprocessing; save it with preprocessing= first")
    check_preprocessing(model)
    if (given := getattr(batches, "preprocessing", model.preprocessing)) != model.preprocessing:
        raise UserError(
            f"train: the batches come from another preprocessing: {given.to_json()}, the model's is "
            f"{model.preprocessing.to_json()}; a run cannot mix two"
        )
    claim_workdir(workdir, config, fingerprint)
    if (workdir / "checkpoints").exists() and (stored := Preprocessing.load(workdir)) != model.preprocessing:
        raise UserError(
            f"--workdir {workdir} was trained with another preprocessing: {stored.to_json()} there, "
            f"{model.preprocessing.to_json()} here; a run cannot mix two"
        )
    if is_first_process():
        model.save_description(workdir)
    mesh = make_mesh(config.mesh)
    configs.check_batch(config, mesh)
    optimizer = make_optimizer(config)

    # The donated state must not be the caller's arrays, hence the copy.
    def create(params):
        return init_state(jax.tree.map(lambda x: x + 0, params), optimizer)

    shapes = jax.eval_shape(create, model.params)
    step_function, shardings = make_train_step(
        model.module,
        optimizer,
        to_float=model.preprocessing.to_float,
        mesh=mesh,
        state=shapes,
        schedule=make_schedule(config),
        same_group=config.same_group,
        microbatch=config.microbatch,
    )
    with Checkpoints(workdir / "checkpoints") as checkpoints, MetricsFile(workdir / "metrics.jsonl") as metrics_file:
        start = checkpoints.latest_step() or 0
        if start:
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
            state, position = checkpoints.restore(start, like=like)
            batches.set_state(position)
        else:
            state = jax.jit(create, out_shardings=shardings)(jax.device_get(model.params))
        metrics_file.drop_after(start)
        progress = Progress(config.steps, start=start, images_per_step=config.batch_size)
        in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        waited = 0.0

        def finish_oldest():
            done, arrays = in_flight.popleft()
            metrics = {name: float(value) for name, value in arrays.items()}
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(metrics[name]):
                    raise UserError(
                        f"step {done}: the {name.replace('_', ' ')} is {metrics[name]}; lower "
                        "config.optimizer.learning_rate and start again in a new --workdir "
                        f"(last good checkpoint here: {checkpoints.latest_step() or 'none yet'})"
                    )
            progress.update(done, loss=metrics["loss"])
            if done % config.log_every == 0 or done in (1, config.steps):
                metrics_file.write(
                    done, metrics | {"images_per_second": progress.rate, "wait_share": progress.waited(waited)}
                )

        for step in range(start + 1, config.steps + 1):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            state, metrics = step_function(state, to_devices({key: batch[key] for key in BATCH_KEYS}, mesh))
            in_flight.append((step, metrics))
            while len(in_flight) > STEPS_IN_FLIGHT:
                finish_oldest()
            if step % config.checkpoint_every == 0 or step == config.steps:
                while in_flight:  # nothing that turned out not finite is ever saved
                    finish_oldest()
                metrics_file.flush()
                checkpoints.save(step, state=state, iterator=batches.get_state())
                for evaluate in evaluators:
                    metrics_file.write(step, evaluate(step, state["params"]))
        progress.close()
    return model.replace(params=to_host(state["params"], mesh))


def claim_workdir(workdir: epath.Path, config: ml_collections.ConfigDict, fingerprint: str) -> None:
    """Writes config.json into a new workdir; refuses one that belongs to another run, naming the differences."""
    with first_process_first("claim_workdir"):
        _claim_workdir(workdir, config, fingerprint)


def _claim_workdir(workdir: epath.Path, config: ml_collections.ConfigDict, fingerprint: str) -> None:
    ours = {"config": configs.config_to_json(config), "data": fingerprint}
    path = workdir / "config.json"
    if path.exists():
        different = _differences(path, ours)
        if not different:
            return
        # Without a checkpoint nothing was computed yet: a config that failed at the start may be mended.
        if (workdir / "checkpoints").exists():
            more = f" and {len(different) - 5} more" if len(different) > 5 else ""
            raise UserError(
                f"--workdir {workdir} holds a run with another config ({'; '.join(different[:5])}{more}); "
                "choose another --workdir or the same config"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir {workdir} is not empty and holds no run; choose a new folder")
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ours, indent=1) + "\n")


def _differences(path: epath.Path, ours: dict[str, Any]) -> list[str]:
    """Between ours and a run's config.json, but for mesh, micro-batch and logging: they do not change the result."""
    try:
        theirs = json.loads(path.read_text())
        runs: list[dict[str, Any]] = [{"config": dict(run["config"]), "data": run["data"]} for run in (ours, theirs)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not of a training run ({error}); choose another --workdir") from error
    for run in runs:
        for name in ("mesh", "topology", "microbatch", "log_every", "checkpoint_every"):
            run["config"].pop(name, None)
    return configs.differences(runs[0], runs[1])


class MetricsFile:
    """One JSON object a line: {"step", name: value, ...}."""

    def __init__(self, path: epath.Path):
        self.path = path
        self._lines: list[str] = path.read_bytes().decode("utf-8", "replace").splitlines() if path.exists() else []

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_) -> None:
        self.flush()

    def drop_after(self, step: int) -> None:
        """Forgets what a killed run logged beyond the checkpoint it is continued from."""
        self._lines = [line for line in self._lines if _step_of(line) <= step]

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step, **metrics}))

    def flush(self) -> None:
        if not is_first_process():
            return
        self.path.write_text("".join(f"{line}\n" for line in self._lines))


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill
