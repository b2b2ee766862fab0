"""The training loop: restore, step, log, save. Data come as an iterator, evaluations as functions of (step, params)."""

from __future__ import annotations

import base64
import collections
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
from etils import epath

from siglip_jax.analysis.mfu import seconds_at_peak
from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import Stopped, UserError
from siglip_jax.model import Model, check_preprocessing
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.training import config as configs
from siglip_jax.training.optimizer import ema
from siglip_jax.training.optimizer.adamw import make_optimizer, make_schedule
from siglip_jax.training.optimizer.freezing import check_freezing, frozen_parameters
from siglip_jax.training.optimizer.rates import check_rates
from siglip_jax.training.parallel.distributed import is_first_process
from siglip_jax.training.parallel.sharding import data_share, make_mesh, to_devices, to_host
from siglip_jax.training.run.bad_images import BadImages
from siglip_jax.training.run.metric_writers import make_writers
from siglip_jax.training.run.prefetch import Feed
from siglip_jax.training.run.profiler import Trace
from siglip_jax.training.run.stopping import Stopping
from siglip_jax.training.run.training_progress import Progress
from siglip_jax.training.run.workdir import hold_workdir
from siglip_jax.training.start.prepare_start import prepare
from siglip_jax.training.step import init_state, make_train_step

STEPS_IN_FLIGHT = 2  # dispatched and not yet finished: enough to hide the host, and bounds the batches in memory
BATCH_KEYS = ("image", "text", "group")
DEADLINE_SHARE = 0.05  # of the time given, kept for the last save until one was timed
IDS_SHOWN = 5

Evaluator = Callable[[int, Any], dict[str, float]]


class BatchIterator(Protocol):
    """This process's rows of each global batch, with a position that can be saved and set (Grain's interface).

    One that replaces rows it cannot read has an attribute `replaced` and counts in its state, see `bad_pictures`.
    """

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
    item_ids: Callable[[np.ndarray], Sequence[str]] | None = None,
    began: float | None = None,
) -> Model:
    """Trains `model` for `config.steps` steps and returns the trained one; continues a run found in `workdir`.

    Args:
      config: the fields of `training.config.default_config`.
      model: the start, from random weights or loaded.
      batches: see `BatchIterator`; rows "image" uint8 [n, h, w, 3] or `Patches`, "text" int32 [n, L], "group" int32
        [n]. Where it has an attribute `preprocessing`, as `make_loader`'s has, that must be the model's.
      workdir: gets config.json, the model's description, checkpoints/, metrics.jsonl, tensorboard/ and, where (t, b)
        was fitted or a loaded start looked at, start.json; where pictures were replaced, bad_pictures.jsonl.
      fingerprint: of the data; a run does not continue on other data.
      evaluators: called with (step, params) at every checkpoint, every `config.evaluation.every` steps, and before
        the first step of a loaded model; their figures go to the metrics and into the checkpoint. The parameters are
        the running mean where one is kept, sharded as the state.
      item_ids: "index" [n] of a batch -> the items' ids, to name those of a batch that broke the run.
      began: `time.monotonic()` from which `config.deadline_minutes` count; now when absent.

    Raises:
      UserError: the workdir is in use, or holds a run of another config, data or preprocessing, the batches come from
        another preprocessing than the model's, or the loss or the gradient is not finite.
      Stopped: SIGTERM, Ctrl-C or the deadline came; everything so far is saved.
    """
    began = time.monotonic() if began is None else began
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
    with hold_workdir(workdir, config, fingerprint):
        if (workdir / "checkpoints").exists() and (stored := Preprocessing.load(workdir)) != model.preprocessing:
            raise UserError(
                f"--workdir {workdir} was trained with another preprocessing: {stored.to_json()} there, "
                f"{model.preprocessing.to_json()} here; a run cannot mix two"
            )
        return _train(
            config,
            model=model,
            batches=batches,
            workdir=workdir,
            fingerprint=fingerprint,
            evaluators=evaluators,
            item_ids=item_ids,
            began=began,
        )


def _train(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    batches: BatchIterator,
    workdir: epath.Path,
    fingerprint: str,
    evaluators: Sequence[Evaluator],
    item_ids: Callable[[np.ndarray], Sequence[str]] | None,
    began: float,
) -> Model:
    """In a workdir that is ours."""
    assert model.preprocessing is not None
    to_float = model.preprocessing.to_float
    if is_first_process():
        model.save_description(workdir)
    mesh = make_mesh(config.mesh)
    configs.check_batch(config, mesh)
    check_freezing(config, model.params)
    check_rates(config, model.params)
    optimizer = make_optimizer(config)

    # The donated state must not be the caller's arrays, hence the copy.
    def create(params):
        return init_state(jax.tree.map(lambda x: x + 0, params), optimizer, ema_decay=config.ema_decay)

    shapes = jax.eval_shape(create, model.params)

    def make_step(*, remat: str, microbatch: int):
        return make_train_step(
            model.module.clone(remat=remat),
            optimizer,
            to_float=to_float,
            mesh=mesh,
            state=shapes,
            schedule=make_schedule(config),
            same_group=config.same_group,
            microbatch=microbatch,
            frozen=frozen_parameters(config, shapes["params"]),
            ema_decay=config.ema_decay,
        )

    step_function, shardings = make_step(remat=model.module.remat, microbatch=config.microbatch)
    with Checkpoints(
        workdir / "checkpoints",
        keep=config.keep_checkpoints,
        best_metric=config.evaluation.best_metric,
        attributes=_attributes(config, model, fingerprint),
    ) as checkpoints:
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        start, state, position = 0, None, {}  # type: int, Any, dict[str, Any]
        if restored := checkpoints.restore_newest(like=like):
            start, state, position = restored
            batches.set_state(position)
        else:
            if config.init or config.refit_temperature != "none":
                model, found = prepare(config, model=model, batches=batches, mesh=mesh, shardings=shardings["params"])
                if is_first_process():
                    (workdir / "start.json").write_text(json.dumps(found, indent=1) + "\n")
            # From host memory: several processes each hold the whole model before it is spread.
            state = jax.jit(create, out_shardings=shardings)(jax.device_get(model.params))
        progress = Progress(config.steps, start=start, images_per_step=config.batch_size, show=is_first_process())
        # (step, its figures, rows of its batch, pictures replaced until then or None)
        in_flight: collections.deque[tuple[int, dict[str, jax.Array], Any, int | None]] = collections.deque()
        metrics: dict[str, float] = {}  # of the last step that has ended

        def finish_oldest():
            nonlocal metrics
            done, arrays, index, replaced = in_flight.popleft()
            metrics = {name: float(value) for name, value in arrays.items()}
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(metrics[name]):
                    items = _write_items(workdir, done, index, item_ids)
                    raise UserError(
                        f"step {done}: the {name.replace('_', ' ')} is {metrics[name]}; lower "
                        "config.optimizer.learning_rate and start again in a new --workdir "
                        f"(last good checkpoint here: {checkpoints.latest_step() or 'none yet'}{items})"
                    )
            logs = done % config.log_every == 0 or done in (1, config.steps)
            if logs and replaced is not None:
                progress.bad_pictures = bad.total(replaced)
            progress.update(done, loss=metrics["loss"], waited=feed.waited)
            if logs:
                writers.write(done, metrics | progress.rates())

        def computing() -> bool:
            return bool(in_flight) and not in_flight[-1][1]["gradient_norm"].is_ready()  # type: ignore[attr-defined]

        def place(batch: dict[str, Any]) -> dict[str, Any]:
            return to_devices({key: batch[key] for key in BATCH_KEYS}, mesh)

        def evaluate(step: int) -> dict[str, float]:
            params = ema.evaluated(state)
            figures = {name: value for each in evaluators for name, value in each(step, params).items()}
            if figures:
                writers.write(step, figures)
            return figures

        deadline = began + 60 * config.deadline_minutes if config.deadline_minutes else None
        margin = 60 * config.deadline_minutes * DEADLINE_SHARE
        first, last = config.profile_steps
        with (
            make_writers(
                workdir, start=start, wandb_project=config.wandb_project, config=configs.config_to_json(config)
            ) as writers,
            Trace(workdir / "profile", first=first, last=last) as trace,
            BadImages(
                workdir, start=start, position=position, repeats=jax.process_count() // data_share(mesh)[1]
            ) as bad,
            Stopping(
                deadline=deadline, margin=lambda: 2 * checkpoints.save_seconds or margin, lag=STEPS_IN_FLIGHT + 1
            ) as stopping,
            Feed(batches, place, count=config.steps - start) as feed,
        ):
            if config.init and not start:  # what there is to lose
                evaluate(0)
            for step in range(start + 1, config.steps + 1):
                trace.before(step, state)
                fed = feed.take(computing)
                bad.add(step, fed.replaced or ())
                arrays = fed.arrays
                if step == start + 1:
                    once, _ = make_step(remat="none", microbatch=0)
                    progress.seconds_at_peak = seconds_at_peak(once, shapes, arrays)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, values = step_function(state, arrays)
                in_flight.append((step, values, fed.index, None if fed.replaced is None else bad.here))
                while len(in_flight) > STEPS_IN_FLIGHT:
                    finish_oldest()
                trace.after(step, state)
                stop = stopping.after(step)
                saves = stop is not None or step % config.checkpoint_every == 0 or step == config.steps
                evaluates = saves or (config.evaluation.every and step % config.evaluation.every == 0)
                if not evaluates:
                    continue
                while in_flight:  # nothing that turned out not finite is ever saved
                    finish_oldest()
                # Before saving, since the figures decide which checkpoints stay; not when there is no time left.
                figures = {} if stop else evaluate(step)
                writers.flush()
                bad.flush()
                stop = stop or stopping.after(step)
                if saves or stop or config.evaluation.best_metric:
                    checkpoints.save(step, state=state, iterator=bad.position(fed.position), metrics=metrics | figures)
                if stop and step < config.steps:
                    checkpoints.wait()
                    raise Stopped(
                        f"{stop.name}: saved at step {step} of {config.steps}; start again with the same --workdir",
                        code=stop.code,
                    )
        progress.close()
        if is_first_process() and (best := checkpoints.best_step()) is not None:
            name = config.evaluation.best_metric
            print(
                f"train: best {name} {checkpoints.metrics(best)[name]:.4g} at step {best}, "
                f"{workdir / 'checkpoints' / str(best)}",
                file=sys.stderr,
            )
    return model.replace(params=to_host(ema.evaluated(state), mesh))


def _attributes(config: ml_collections.ConfigDict, model: Model, fingerprint: str) -> dict[str, Any]:
    """What a checkpoint says of its run: enough to understand it without the rest of the workdir."""
    preprocessing = model.preprocessing
    assert preprocessing is not None
    tokenizer = preprocessing.tokenizer
    return {
        "config": configs.config_to_json(config),
        "data": fingerprint,
        "architecture": model.architecture.to_json(),
        "preprocessing": preprocessing.to_json(),
        "tokenizer": None if tokenizer is None else base64.b64encode(tokenizer).decode(),
    }


def _write_items(
    workdir: epath.Path, step: int, index: Any, item_ids: Callable[[np.ndarray], Sequence[str]] | None
) -> str:
    """Writes the items of a batch to not_finite.json; "; items a, b, c and 13 more: (path)" for a message."""
    if index is None:
        return ""
    ids = [str(item) for item in (index.tolist() if item_ids is None else item_ids(index))]
    name = "not_finite.json" if jax.process_count() == 1 else f"not_finite.{jax.process_index()}.json"
    (workdir / name).write_text(json.dumps({"step": step, "items": ids}, indent=1) + "\n")
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return f"; items of the batch: {', '.join(ids[:IDS_SHOWN])}{more}, see {workdir / name}"
