"""Training on a dataset: the start, the loader and the evaluators joined to `training.loop.train`; and its dry run."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from etils import epath

from input_pipeline.augment import Augmentation
from input_pipeline.dataset import dataset_fingerprint, open_split
from input_pipeline.loader import DataShare, Speed, make_loader
from input_pipeline.loader.bad_rows import readable_titles
from input_pipeline.loader.batches import check_batches
from input_pipeline.loader.examples import Recipe
from input_pipeline.loader.item_vectors import BatchVectors, ItemVectors
from input_pipeline.loader.row_order import first_rows
from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.item_vectors import Features

if TYPE_CHECKING:
    from input_pipeline.loader.stored_outputs import StoredOutputs
    from siglip_jax.model import Model


def start_model(
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    *,
    workdir: epath.PathLike | None = None,
    features: Mapping[str, ItemVectors] | None = None,
) -> Model:
    """The model before the first step: loaded from `config.init`, or random with a tokenizer of the training titles.

    Deterministic, so the start can be embedded again after training.

    Args:
      workdir: of a run that may have started. It goes on with its tokenizer, since a title that could be read at its
        start may be damaged now.
      features: of the training split, which a new adapter takes its statistics from.
    """
    from siglip_jax import model as models
    from siglip_jax.models.towers import TwoTowers
    from siglip_jax.training.run.workdir import has_checkpoint
    from siglip_jax.training.start.spec import architecture_of, compute_options, preprocessing_of

    options, text, compute = config.model, config.preprocessing, compute_options(config)
    if config.init:
        from siglip_jax.loading import load

        try:
            model = load(config.init, tokenizer=text.tokenizer or None, **compute)
        except UserError:  # a run that goes on has its model in the workdir
            if workdir is None or not has_checkpoint(workdir):
                raise
            return load(workdir, **compute)
        if model.architecture.features and not model.params["img"]["strength"].any():
            raise UserError(
                f"config.init={config.init}: an adapter at strength 0 gives its encoders as they are, and learns "
                "nothing; start from the run that it was chosen from"
            )
        return model
    preprocessing = preprocessing_of(config)
    if text.tokenizer:
        try:
            tokenizer = epath.Path(text.tokenizer).read_bytes()
        except OSError as error:
            raise UserError(
                f"tokenizer {text.tokenizer}: {error.strerror}; pass a SentencePiece .model file or a tokenizer.json"
            ) from error
    elif workdir is not None and has_checkpoint(workdir):
        tokenizer = Preprocessing.load(workdir).tokenizer
    else:
        split = open_split(dataset, config.data.train_split)
        titles = readable_titles(split, _rows_to_train_on(config, len(split)))
        tokenizer = train_tokenizer(map(preprocessing.canonical, titles), vocab_size=text.vocab_size)
    preprocessing = preprocessing.replace(tokenizer=tokenizer)
    architecture = architecture_of(config, preprocessing, vocab_size=preprocessing.vocab_size)
    module = TwoTowers(architecture, init_temperature=options.init_temperature, init_bias=options.init_bias, **compute)
    model = models.init(module, preprocessing, seed=config.seed)
    return _start_adapter(config, model, features) if features else model


def _rows_to_train_on(config: ml_collections.ConfigDict, count: int) -> np.ndarray:
    """int64, ascending, of the training split's `count`."""
    return first_rows(count, most=config.data.most, seed=config.seed)


def _start_adapter(config: ml_collections.ConfigDict, model: Model, features: Mapping[str, ItemVectors]) -> Model:
    from siglip_jax.training.start.feature_statistics import start_adapter

    options = config.model.adapter
    model, found = start_adapter(
        model,
        lambda rows: {name: each.take(rows) for name, each in features.items()},
        BatchVectors(features).complete(_rows_to_train_on(config, len(next(iter(features.values())).rows))),
        strength=options.strength,
        weights=options.weights.to_dict(),
    )
    given, kept = sum(each.dimension for each in features.values()), model.architecture.image.base  # type: ignore[union-attr]
    print(f"adapter: {kept} of {given} numbers keep {found.kept:.1%} of their length ({found.rows} rows)", flush=True)
    return model


def _with_features(config: ml_collections.ConfigDict, features: Features | None) -> ml_collections.ConfigDict:
    """The config with `model.features` as the stores are; a UserError where it names others."""
    asked = config.model.features.to_dict()
    if features is None:
        if asked:
            given = ", ".join(f"--features={name}=STORE" for name in asked)
            raise UserError(f"config.model.features={asked} without stores; expected {given}")
        return config
    if asked:
        features.check(asked, model="config.model.features")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.features = features.dimensions
    return config


def train_on_dataset(
    config: ml_collections.ConfigDict,
    *,
    dataset: epath.PathLike,
    workdir: epath.PathLike,
    features: Mapping[str, Sequence[epath.PathLike]] | None = None,
) -> Model:
    """`training.loop.train` with the model, the batches and the evaluators that `config` and `dataset` say.

    Continues a run in `workdir`, and returns the trained model, which the workdir holds as well.

    Args:
      features: stores by name, which an adapter reads in the place of pictures; see `item_vectors.Features`.

    Raises:
      UserError: a config, dataset or workdir that cannot be trained with.
      Stopped: SIGTERM, Ctrl-C or the deadline came; everything so far is saved.
    """
    from siglip_jax.training import loop
    from siglip_jax.training.config import check
    from siglip_jax.training.parallel.sharding import data_share, make_mesh
    from siglip_jax.training.run.workdir import claim_workdir
    from tools.workflow.evaluators import make_evaluators
    from tools.workflow.frozen_towers import remove_outputs
    from tools.workflow.teacher import open_teacher, teacher_of_split

    began = time.monotonic()
    check(config)
    augmentation = _augmentation(config)
    share, shares = data_share(make_mesh(config.mesh))
    if config.batch_size % shares:
        raise UserError(f"config.batch_size={config.batch_size} does not divide over {shares} processes")
    fingerprint = dataset_fingerprint(dataset)
    rows = _rows_to_train_on(config, len(open_split(dataset, config.data.train_split)))
    opened = Features.open(features) if features else None
    config = _with_features(config, opened)
    stores = {f"features/{name}": sha256 for name, sha256 in opened.fingerprints.items()} if opened else {}
    if (teacher := open_teacher(config)) is not None:
        stores["teacher"] = teacher.fingerprint
    claim_workdir(epath.Path(workdir), config, fingerprint, stores=stores)  # before the work of preparing data
    vectors = opened.of_split(dataset, config.data.train_split) if opened else None
    model = start_model(config, dataset, workdir=workdir, features=vectors)
    if opened:
        opened.check(model.architecture.features, model=config.init)
    elif model.architecture.features:
        raise UserError(f"{config.init}: takes stored vectors; expected --features=name=STORE")
    if model.preprocessing is None:
        raise UserError("train: the model has no known preprocessing; save it with preprocessing= first")
    print(f"parameters: {_count_parameters(config, model)}", flush=True)
    evaluators = make_evaluators(
        config,
        model=model,
        dataset=dataset,
        features=functools.partial(opened.of_split, dataset) if opened else None,
    )
    stored = _run_frozen_towers(
        config, model=model, dataset=dataset, workdir=workdir, fingerprint=fingerprint, stores=stores
    )
    more: dict[str, ItemVectors] = {}
    if teacher is not None:
        more["teacher"] = teacher_of_split(
            teacher,
            dataset=dataset,
            split=config.data.train_split,
            rows=rows,
            width=model.architecture.embedding_dim,
        )
    batches = make_loader(
        dataset,
        split=config.data.train_split,
        preprocessing=model.preprocessing,
        batch_size=config.batch_size // shares,
        seed=config.seed,
        most=config.data.most,
        augmentation=augmentation,
        share=DataShare(share, shares),
        speed=_speed(config),
        max_bad_fraction=config.data.max_bad_fraction,
        features=vectors,
        stored=stored,
        more=more,
    )
    if batches.left_out.count:
        print(f"{batches.left_out.count} training rows take no part, since they lack vectors ({batches.left_out})")

    def item_ids(index: np.ndarray) -> list[str]:
        return [record["id"] for record in open_split(dataset, config.data.train_split).__getitems__(index)]

    with batches:  # worker processes end with the run, however it ends
        trained = loop.train(
            config,
            model=model,
            batches=batches,
            workdir=workdir,
            fingerprint=fingerprint,
            stores=stores,
            item_ids=item_ids,
            evaluators=evaluators,
            began=began,
        )
    if stored:
        remove_outputs(workdir)
    return trained


def _run_frozen_towers(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    dataset: epath.PathLike,
    workdir: epath.PathLike,
    fingerprint: str,
    stores: Mapping[str, str],
) -> StoredOutputs | None:
    """What frozen towers make of the training split, where `config.data.cache_frozen` and the run allow it."""
    from siglip_jax.training.run.workdir import hold_workdir
    from tools.workflow.frozen_towers import plan_cache, store_outputs

    assert model.preprocessing is not None
    if (epath.Path(workdir) / "checkpoints" / str(config.steps)).exists():
        return None  # the run is done
    rows = open_split(dataset, config.data.train_split)
    plan = plan_cache(
        config,
        module=model.module,
        params=model.params,
        preprocessing=model.preprocessing,
        augmentation=_augmentation(config),
        rows=len(rows),
        workdir=workdir,
    )
    if plan is None:
        return None
    with hold_workdir(epath.Path(workdir), config, fingerprint, stores=stores):
        return store_outputs(
            config,
            plan,
            model=model,
            split=rows,
            fingerprint=fingerprint,
            workdir=workdir,
            threads=_speed(config).threads,
        )


def _count_parameters(config: ml_collections.ConfigDict, model: Model) -> str:
    """Such as "image tower 92.88 M, text tower 282.30 M, of which 92.88 M frozen"."""
    import jax

    from siglip_jax.training.optimizer.freezing import freezes_any, frozen_parameters

    millions = {
        tower: sum(leaf.size for leaf in jax.tree.leaves(model.params[key])) / 1e6
        for tower, key in (("image", "img"), ("text", "txt"))
    }
    towers = ", ".join(f"{tower} tower {count:.2f} M" for tower, count in millions.items())
    if not freezes_any(config):
        return towers
    still = jax.tree.map(lambda x, stays: x.size * stays, model.params, frozen_parameters(config, model.params))
    return f"{towers}, of which {sum(jax.tree.leaves(still)) / 1e6:.2f} M frozen"


def _augmentation(config: ml_collections.ConfigDict) -> Augmentation:
    return Augmentation(**{field.name: config.data[field.name] for field in dataclasses.fields(Augmentation)})


def _speed(config: ml_collections.ConfigDict) -> Speed:
    options = config.data
    return Speed(num_threads=options.num_threads or None, num_workers=options.num_workers, cache=options.cache)


def dry_run(
    config: ml_collections.ConfigDict,
    *,
    dataset: epath.PathLike,
    workdir: epath.PathLike | None = None,
    features: Mapping[str, Sequence[epath.PathLike]] | None = None,
) -> None:
    """Prints where every parameter would live, memory, FLOPs, steps and hours on this machine; trains nothing.

    The hours are those of a few steps timed on zeros, so they know nothing of waiting for data.

    Args:
      workdir: whose disk is asked for room, where frozen towers would be run once.
    """
    from siglip_jax.models.towers import parameter_shapes
    from siglip_jax.training import aot
    from siglip_jax.training.config import check
    from siglip_jax.training.parallel.sharding import data_share
    from siglip_jax.training.parallel.sharding_table import sharding_table
    from siglip_jax.training.start.spec import outline
    from tools.workflow.frozen_towers import plan_cache
    from tools.workflow.teacher import open_teacher

    check(config)
    rows = open_split(dataset, config.data.train_split)
    opened = Features.open(features) if features else None
    config = _with_features(config, opened)
    teacher = open_teacher(config)
    split = config.data.train_split
    vectors = BatchVectors(
        opened.of_split(dataset, split) if opened else {},
        {"teacher": teacher.of_split(dataset, split)} if teacher else {},
    )
    module, preprocessing = outline(config)
    augmentation = _augmentation(config)
    plan = plan_cache(
        config,
        module=module,
        params=parameter_shapes(module.architecture),
        preprocessing=preprocessing,
        augmentation=augmentation,
        rows=len(rows),
        workdir=workdir,
    )
    if plan:
        print(plan)
    step = aot.build_step(config, stored=[part.key for part in plan.parts] if plan else ())
    _, shares = data_share(step.mesh)
    recipe = Recipe(preprocessing=preprocessing, augmentation=augmentation, seed=config.seed)
    batch_size = config.batch_size // shares
    check_batches(
        rows,
        recipe,
        batch_size=batch_size,
        most=config.data.most,
        share=DataShare(0, shares),
        speed=_speed(config),
        vectors=vectors,
        pictures=not (vectors.image or (plan and "image" in plan.sources)),
    )
    per_epoch = len(vectors.complete(_rows_to_train_on(config, len(rows)))) // config.batch_size
    print(sharding_table(step.state, step.mesh), flush=True)
    report, compiled = aot.compile_step(config, step, capacity=aot.device_memory())
    print(aot.describe(report))
    epochs = config.steps / per_epoch
    length = f"{config.steps} steps of {config.batch_size}, {epochs:.1f} epochs of {per_epoch * config.batch_size} rows"
    if report.fits:
        seconds = aot.time_step(step, compiled)
        images = config.batch_size / seconds
        print(f"{length}: {seconds * config.steps / 3600:.2f} hours at {seconds:.3f} s a step, {images:.0f} images/s")
        print("(timed on zeros after compilation; waiting for data, evaluation and checkpoints come on top)")
    else:
        print(length)
    print(aot.verdict(report))


def metrics_of(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The logged lines of a training run."""
    from siglip_jax.training.run.metric_writers import read_metrics

    return read_metrics(workdir)
