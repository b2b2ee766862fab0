"""Training: mesh, model, optimizer, step, restore, loop. Batches come as an iterator, evaluators as functions of (step,
parameters)."""

from __future__ import annotations

import base64
import functools
import json
import sys
import time
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import optax
from etils import epath
from jax.sharding import Mesh

from siglip_jax.analysis.mfu import seconds_at_peak
from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import Stopped, UserError
from siglip_jax.model import Model, check_preprocessing
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.training import config as configs
from siglip_jax.training.encode import Batch
from siglip_jax.training.optimizer import ema
from siglip_jax.training.optimizer.adamw import make_optimizer, make_schedule
from siglip_jax.training.optimizer.freezing import check_freezing, frozen_parameters
from siglip_jax.training.optimizer.rates import check_rates
from siglip_jax.training.parallel.distributed import is_first_process
from siglip_jax.training.parallel.sharding import data_share, make_mesh, to_devices, to_host
from siglip_jax.training.param_rules import Params
from siglip_jax.training.run.bad_images import BadImages
from siglip_jax.training.run.evaluations import Evaluator, check_best, known_names
from siglip_jax.training.run.metric_writers import make_writers
from siglip_jax.training.run.prefetch import Feed
from siglip_jax.training.run.profiler import Trace
from siglip_jax.training.run.stopping import Stopping
from siglip_jax.training.run.training_progress import Progress
from siglip_jax.training.run.workdir import has_checkpoint, hold_workdir
from siglip_jax.training.start.expected_batch import ExpectedBatch, check_iterator
from siglip_jax.training.start.frozen_parts import check_same_frozen
from siglip_jax.training.start.prepare_start import prepare
from siglip_jax.training.start.spec import batch_shapes
from siglip_jax.training.step import State, TrainStep, init_state, make_train_step
from siglip_jax.training.terms import Terms
from siglip_jax.training.training_run import STEPS_IN_FLIGHT, ItemIds, Run

DEADLINE_SHARE = 0.05  # of the time given, kept for the last save until one was timed


class BatchIterator(Protocol):
    """This process's rows of each global batch, with a position that can be saved and set (Grain's interface).

    One that replaces rows it cannot read has an attribute `replaced` and counts in its state, see `bad_images`.
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
    stores: Mapping[str, str] = types.MappingProxyType({}),
    evaluators: Sequence[Evaluator] = (),
    item_ids: ItemIds | None = None,
    began: float | None = None,
) -> Model:
    """Trains `model` for `config.steps` steps and returns the trained one; continues a run found in `workdir`.

    Args:
      config: the fields of `training.config.default_config`.
      model: the start, from random weights or loaded.
      batches: see `BatchIterator`; rows "image" uint8 [n, h, w, 3], `Patches` or, for an adapter, {name: float32
        [n, numbers]}, "text" int32 [n, L], "group" int32 [n]; with weights in `config.teacher` also "teacher" float32
        [n, d], unit rows. Where it has an attribute `preprocessing`, as `make_loader`'s has, that must be the model's;
        an attribute `stored` names what frozen towers made in the place of "image" or "text".
      workdir: gets config.json, the model's description, checkpoints/, metrics.jsonl, tensorboard/ and, where (t, b)
        was fitted or a loaded start looked at, start.json; where images were replaced, bad_pictures.jsonl.
      fingerprint: of the data; a run does not continue on other data.
      stores: fingerprints of the stored vectors in the batches, by name; nor on others of these.
      evaluators: called with (step, params) at every checkpoint and every `config.evaluation.every` steps; their
        metrics, {name: number}, go to the log and into the checkpoint. The parameters are the running mean where one
        is kept, sharded as the state. They are also called before the first step of a loaded model; and of any,
        where one has no attribute `names`, the names of its metrics.
      item_ids: "index" [n] of a batch -> the items' ids, to name those of a batch that broke the run.
      began: `time.monotonic()` from which `config.deadline_minutes` count; now when absent.

    Raises:
      UserError: the workdir is in use, or holds a run of another config, data or preprocessing, the batches come from
        another preprocessing than the model's, or the loss or the gradient is not finite. Before the first step:
        batches or their position of another kind than above, an evaluator that reports no numbers or a name that
        another or the step itself reports, a best metric that none does. Later: batches that end too early.
      Stopped: SIGTERM, Ctrl-C or the deadline came; everything so far is saved.
    """
    began = time.monotonic() if began is None else began
    workdir = epath.Path(workdir)
    configs.check(config)
    preprocessing = _preprocessing_of(model, batches)

    with hold_workdir(workdir, config, fingerprint, stores=stores):
        _check_workdir(workdir, preprocessing)
        if is_first_process():
            model.save_description(workdir)

        mesh = make_mesh(config.mesh)
        configs.check_batch(config, mesh)
        check_iterator(batches)

        check_freezing(config, model.params)
        check_rates(config, model.params)

        optimizer = make_optimizer(config)
        first_state = functools.partial(_first_state, optimizer=optimizer, ema_decay=config.ema_decay)
        shapes = jax.eval_shape(first_state, model.params)

        terms = Terms.of(config, embedding_dim=model.architecture.embedding_dim)
        expected = ExpectedBatch.of(
            model,
            rows=config.batch_size // data_share(mesh)[1],
            stored=getattr(batches, "stored", ()),
            more=terms.batch_keys,
        )
        make_step = functools.partial(
            _make_step, config, model=model, optimizer=optimizer, mesh=mesh, shapes=shapes, terms=terms
        )
        step_function, shardings = make_step(remat=model.module.remat, microbatch=config.microbatch)

        with Checkpoints(
            workdir / "checkpoints",
            keep=config.keep_checkpoints,
            best_metric=config.evaluation.best_metric,
            attributes=_attributes(config, model, fingerprint),
        ) as checkpoints:
            if restored := checkpoints.restore_newest(like=_with_shardings(shapes, shardings)):
                start, state, position = restored
                if getattr(batches, "stored", ()):
                    check_same_frozen(config, restored=state["params"], start=model.params)
                batches.set_state(position)
            else:
                start, position = 0, {}
                if config.init or config.refit_temperature != "none":
                    model, record = prepare(
                        config,
                        model=model,
                        batches=batches,
                        expected=expected,
                        mesh=mesh,
                        shardings=shardings["params"],
                    )
                    if is_first_process():
                        (workdir / "start.json").write_text(json.dumps(record, indent=1) + "\n")
                # From host memory: several processes each hold the whole model before it is spread.
                state = jax.jit(first_state, out_shardings=shardings)(jax.device_get(model.params))

            progress = Progress(config.steps, start=start, images_per_step=config.batch_size, show=is_first_process())
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
                ) as bad_images,
                Stopping(
                    deadline=deadline, margin=lambda: 2 * checkpoints.save_seconds or margin, lag=STEPS_IN_FLIGHT + 1
                ) as stopping,
                Feed(
                    batches,
                    functools.partial(_place, mesh=mesh, expected=expected),
                    count=config.steps - start,
                ) as feed,
            ):
                feed.wait_for_first()
                once, _ = make_step(remat="none", microbatch=0)  # work done twice is no use made of a device
                batch = batch_shapes(
                    model.module,
                    preprocessing,
                    batch_size=config.batch_size,
                    stored=getattr(batches, "stored", ()),
                    more=terms.batch_keys,
                )
                run = Run(
                    config=config,
                    workdir=workdir,
                    step_function=step_function,
                    state=state,
                    checkpoints=checkpoints,
                    writers=writers,
                    progress=progress,
                    trace=trace,
                    bad_images=bad_images,
                    feed=feed,
                    evaluators=evaluators,
                    step_metrics=jax.eval_shape(once, shapes, batch)[1],
                    item_ids=item_ids,
                )
                _check_evaluators(run, config, start=start)
                progress.seconds_at_peak = seconds_at_peak(once, shapes, batch)

                for step in range(start + 1, config.steps + 1):
                    run.step(step)
                    stop = stopping.after(step)
                    saves = stop is not None or step % config.checkpoint_every == 0 or step == config.steps
                    every = config.evaluation.every
                    if not (saves or (every and step % every == 0)):
                        continue
                    run.finish()  # nothing that turns out not finite is ever saved
                    # Before saving, since the metrics decide which checkpoints stay; not when there is no time left.
                    evaluated = {} if stop else run.evaluate(step)
                    run.flush()
                    stop = stop or stopping.after(step)
                    if saves or stop or config.evaluation.best_metric:
                        run.save(step, evaluated=evaluated)
                    if stop and step < config.steps:
                        checkpoints.wait()
                        raise Stopped(
                            f"{stop.name}: saved at step {step} of {config.steps}; start again with the same --workdir",
                            code=stop.code,
                        )
            progress.close()
            _show_best(checkpoints, metric=config.evaluation.best_metric, workdir=workdir)
        return model.replace(params=to_host(ema.evaluated(run.state), mesh))


def _preprocessing_of(model: Model, batches: BatchIterator) -> Preprocessing:
    """The model's, which must be known and that of the batches."""
    if model.preprocessing is None:
        raise UserError("train: the model has no known preprocessing; save it with preprocessing= first")
    check_preprocessing(model)
    if (given := getattr(batches, "preprocessing", model.preprocessing)) != model.preprocessing:
        raise UserError(
            f"train: the batches come from another preprocessing: {given.to_json()}, the model's is "
            f"{model.preprocessing.to_json()}; a run cannot mix two"
        )
    return model.preprocessing


def _check_workdir(workdir: epath.Path, preprocessing: Preprocessing) -> None:
    """Raises a UserError where the run in `workdir` was started with another preprocessing."""
    if has_checkpoint(workdir) and (stored := Preprocessing.load(workdir)) != preprocessing:
        raise UserError(
            f"--workdir {workdir} was trained with another preprocessing: {stored.to_json()} there, "
            f"{preprocessing.to_json()} here; a run cannot mix two"
        )


def _first_state(params: Params, *, optimizer: optax.GradientTransformation, ema_decay: float) -> State:
    """The state before step 1, of copies: a step takes its state over, and the arrays of `params` are the caller's."""
    return init_state(jax.tree.map(lambda x: x + 0, params), optimizer, ema_decay=ema_decay)


def _make_step(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    shapes: State,
    terms: Terms,
    remat: str,
    microbatch: int,
) -> tuple[TrainStep, Any]:
    """(step, shardings of its state) of this config, but for `remat` and `microbatch`."""
    assert model.preprocessing is not None
    return make_train_step(
        model.module.clone(remat=remat),
        optimizer,
        to_float=model.preprocessing.to_float,
        mesh=mesh,
        state=shapes,
        schedule=make_schedule(config),
        loss=config.loss,
        same_group=config.same_group,
        microbatch=microbatch,
        frozen=frozen_parameters(config, shapes["params"]),
        ema_decay=config.ema_decay,
        terms=terms,
    )


def _with_shardings(shapes: State, shardings: Any) -> State:
    """ShapeDtypeStructs that say where each array lives."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _place(batch: dict[str, Any], *, mesh: Mesh, expected: ExpectedBatch) -> Batch:
    """What the step takes of a batch, on the devices."""
    expected.check(batch)
    return to_devices({key: batch[key] for key in expected.shapes}, mesh)


def _check_evaluators(run: Run, config: ml_collections.ConfigDict, *, start: int) -> None:
    """Before the first step, raises what is wrong with what the evaluators report; logs what there is to lose."""
    names: Collection[str] | None = known_names(run.evaluators)
    if start < config.steps and (names is None or (config.init and not start)):
        names = run.evaluate(start, log=not start)
    if names is not None:
        check_best(config.evaluation.best_metric, (*names, *run.step_metrics))


def _show_best(checkpoints: Checkpoints, *, metric: str, workdir: epath.Path) -> None:
    if is_first_process() and (best := checkpoints.best_step()) is not None:
        value, path = checkpoints.metrics(best)[metric], workdir / "checkpoints" / str(best)
        print(f"train: best {metric} {value:.4g} at step {best}, {path}", file=sys.stderr)


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
