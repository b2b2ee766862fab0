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
from siglip_jax.training import ema
from siglip_jax.training.freezing import check_freezing, frozen_parameters
from siglip_jax.training.optimizer import make_optimizer, make_schedule
from siglip_jax.training.progress import Progress
from siglip_jax.training.rates import check_rates
from siglip_jax.training.sharding import make_mesh, to_devices
from siglip_jax.training.start import prepare
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
      workdir: gets config.json, the model's description, checkpoints/, metrics.jsonl and, where (t, b) was fitted or
        a loaded start looked at, start.json.
      fingerprint: of the data; a run does not continue on other data.
      evaluators: called with (step, params) at every checkpoint, at every `config.evaluation.every`-th step where that
        is not 0, and before the first step of a loaded model; their figures go into metrics.jsonl. The parameters are
        the running mean where one is kept, sharded as the state.

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
    model.save_description(workdir)
    mesh = make_mesh(config.mesh)
    if config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise UserError(f"config.batch_size={config.batch_size} does not divide over the mesh {dict(mesh.shape)}")
    check_freezing(config, model.params)
    check_rates(config, model.params)
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    if config.microbatch and rows % config.microbatch:
        raise UserError(f"config.microbatch={config.microbatch} does not divide the {rows} rows of a device")
    optimizer = make_optimizer(config)

    # The donated state must not be the caller's arrays, hence the copy.
    def create(params):
        return init_state(jax.tree.map(lambda x: x + 0, params), optimizer, ema_decay=config.ema_decay)

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
        frozen=frozen_parameters(config, shapes["params"]),
        ema_decay=config.ema_decay,
    )

    def evaluate(step: int) -> dict[str, float]:
        params = ema.evaluated(state)
        figures = {name: value for each in evaluators for name, value in each(step, params).items()}
        if figures:
            metrics_file.write(step, figures)
        return figures

    with Checkpoints(workdir / "checkpoints") as checkpoints, MetricsFile(workdir / "metrics.jsonl") as metrics_file:
        start = checkpoints.latest_step() or 0
        if start:
            like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
            state, position = checkpoints.restore(start, like=like)
            batches.set_state(position)
        metrics_file.drop_after(start or -1)
        if not start:
            if config.init or config.refit_temperature != "none":
                model, found = prepare(config, model=model, batches=batches, mesh=mesh, shardings=shardings["params"])
                if jax.process_index() == 0:
                    (workdir / "start.json").write_text(json.dumps(found, indent=1) + "\n")
            state = jax.jit(create, out_shardings=shardings)(model.params)
            if config.init:  # what there is to lose
                evaluate(0)
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
            saves = step % config.checkpoint_every == 0 or step == config.steps
            if saves or (config.evaluation.every and step % config.evaluation.every == 0):
                while in_flight:  # nothing that turned out not finite is ever saved
                    finish_oldest()
                # Before saving: the figures of a checkpoint decide whether it is kept.
                evaluate(step)
                metrics_file.flush()
            if saves:
                checkpoints.save(step, state=state, iterator=batches.get_state())
        progress.close()
    return model.replace(params=jax.device_get(ema.evaluated(state)))


def claim_workdir(workdir: epath.Path, config: ml_collections.ConfigDict, fingerprint: str) -> None:
    """Writes config.json into a new workdir; refuses one that belongs to another run, naming the differences."""
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
        for name in ("mesh", "microbatch", "log_every", "checkpoint_every"):
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
        self.path.write_text("".join(f"{line}\n" for line in self._lines))


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill
