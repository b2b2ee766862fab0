"""An adapter over an encoder that a shop has, and the comparison with that encoder: `siglip-jax demo --encoder`."""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_collections

from eval.comparison.choose_rankers import RankerOptions, RankersToCompare, read_rankers
from eval.comparison.items import read_items
from eval.embeddings.embedding_files import EmbeddingFile, names_embeddings, read_embeddings
from eval.embeddings.reduction import FITTED_ON
from eval.embeddings.store import describe_skipped, read_manifest
from eval.report.report_text import number, signed, signed_percent
from input_pipeline.dataset import dataset_fingerprint
from siglip_jax.model import Model
from siglip_jax.training.config import check, config_to_json
from tools.workflow import training
from tools.workflow.adapters.strengths import choose_strength
from tools.workflow.embedding import ImageEncoder, embed, image_encoder, import_embeddings, load_encoder
from tools.workflow.item_vectors import Features
from tools.workflow.recipes import with_relevance

TRAIN, VALIDATION, TEST = "train", "validation", "test"
FRACTIONS = {TRAIN: 0.72, VALIDATION: 0.08, TEST: 0.2}  # the strength is chosen on validation
BESIDE = {"colours": "colours:6x7x7", "edges": "edges:8x6x8", "pixels": "pixels:16x12"}  # further inputs
INPUT = "encoder"  # the adapter's name for the vectors of the encoder
ENCODER, ADAPTER = "your encoder", "adapter"  # rows of the table
MOST_EPOCHS = 64  # that a pair is seen: with few of them, an adapter learns them by heart
PCA = 128  # numbers that the encoder is reduced to, as in the paper's baseline

Encoder = ImageEncoder | EmbeddingFile
Stores = dict[str, dict[str, pathlib.Path]]  # {input: {split: folder}}


def prepare(
    encoder: str, adapter: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> tuple[Encoder, ml_collections.ConfigDict]:
    """(the encoder, the config of an adapter over it).

    Args:
      encoder: whatever `siglip-jax embed --model` takes, or a file of embeddings.
      adapter: how an adapter is trained.
      config: what is relevant.

    Raises:
      UserError: nothing there, a network whose library is not installed, damage, or configs that cannot be trained.
    """
    wanted = adapter_config(adapter, config)
    return read_embeddings(encoder) if names_embeddings(encoder) else load_encoder(encoder), wanted


def adapter_config(base: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`base`, which says how an adapter is trained, with what `config` says of relevance and of titles."""
    made = with_relevance(base, config)
    with made.unlocked():
        made.evaluation.split = VALIDATION
        made.preprocessing.tokenizer = config.preprocessing.tokenizer or made.preprocessing.tokenizer
    check(made)
    return made


def store_inputs(encoder: Encoder, *, dataset: pathlib.Path, output: pathlib.Path) -> Stores:
    """Stores of all splits, by the encoder and by those of BESIDE. Finished ones are kept.

    Raises:
      UserError: a file of embeddings without the items of a split.
    """
    # The encoder comes first: a file of other items is noticed at once.
    encoders = {INPUT: encoder, **{name: load_encoder(model) for name, model in BESIDE.items()}}
    return {
        name: {split: _store(each, dataset, split, output / f"{name}-{split}") for split in FRACTIONS}
        for name, each in encoders.items()
    }


def _store(encoder: Encoder, dataset: pathlib.Path, split: str, output: pathlib.Path) -> pathlib.Path:
    if isinstance(encoder, ImageEncoder):
        embed(encoder, dataset=dataset, split=split, output=output, overwrite=True)
        return output
    store = import_embeddings(encoder, dataset=dataset, split=split, output=output, on_error="skip")
    if store.skipped:
        print(f"{len(store.skipped)} items of split {split} have no vector: {describe_skipped(store.skipped)}")
    return output


def train_adapter(
    config: ml_collections.ConfigDict, *, dataset: pathlib.Path, stores: Stores, workdir: pathlib.Path
) -> tuple[Model, pathlib.Path]:
    """(the adapter at the strength that the validation split chooses, the folder of its training).

    Args:
      workdir: with a folder for each pair of config and vectors, so that a run is continued only by the same run.
    """
    features = {name: [folders[TRAIN], folders[VALIDATION]] for name, folders in stores.items()}
    opened = Features.open(features)
    config = _fitted_to(config, rows=min(_count(folders[TRAIN]) for folders in stores.values()))
    run = json.dumps([config_to_json(config), dataset_fingerprint(dataset), opened.fingerprints]).encode()
    folder = workdir / hashlib.sha256(run).hexdigest()[:12]
    trained = training.train_on_dataset(config, dataset=dataset, workdir=folder, features=features)
    adapter, stores_of_split = (ADAPTER, trained), folder / "strengths"
    return choose_strength(adapter, config=config, dataset=dataset, features=opened, stores=stores_of_split), folder


def _count(store: pathlib.Path) -> int:
    return read_manifest(store)["count"]


def _fitted_to(config: ml_collections.ConfigDict, *, rows: int) -> ml_collections.ConfigDict:
    """The config with a batch of no more than the rows, a power of two, and with no more than MOST_EPOCHS; says so.

    The bias follows the batch, as log(p / (1 - p)) of one positive in it.
    """
    size = min(config.batch_size, 2 ** max(1, rows.bit_length() - 1))
    steps = min(config.steps, max(1, MOST_EPOCHS * rows // size))
    if (size, steps) == (config.batch_size, config.steps):
        return config
    changes = []
    if size != config.batch_size:
        changes.append(f"a batch of {size} pairs, not {config.batch_size}")
    if steps != config.steps:
        changes.append(f"{steps} steps, not {config.steps}")
    print(f"{' and '.join(changes)}, since there are {rows} items to train on", flush=True)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.init_bias += math.log(config.batch_size / size)
        config.optimizer.warmup_steps = math.ceil(config.optimizer.warmup_steps * steps / config.steps)
        config.batch_size, config.steps = size, steps
    return config


def compare(
    model: Model, *, dataset: pathlib.Path, split: str, stores: Stores, output: pathlib.Path
) -> RankersToCompare:
    """The rows of the table: baselines, the encoder and its PCA, the adapter and a quarter of its numbers."""
    own = _embed_adapter(model, dataset=dataset, split=split, stores=stores, output=output)
    rows = {ENCODER: stores[INPUT][split], ADAPTER: own[split]}
    fits = {ENCODER: stores[INPUT][TRAIN], ADAPTER: own[TRAIN]}
    reductions = [(ADAPTER, f"truncate:{max(1, model.architecture.embedding_dim // 4)}")]
    fitted = read_manifest(fits[ENCODER])
    if fitted["dimension"] > PCA and fitted["count"] > PCA:
        reductions.insert(0, (ENCODER, f"pca:{PCA}"))
    else:
        del fits[ENCODER]
    options = RankerOptions(
        stores={name: str(folder) for name, folder in rows.items()},
        baselines=["random", "raw pixels"],
        reductions=reductions,
        fits={name: str(folder) for name, folder in fits.items()},
        ladders=[ADAPTER],
        new=ADAPTER,
        against=ENCODER,
    )
    return read_rankers(options, dataset=dataset, split=split, items=read_items(dataset, split, options.stores))


def _embed_adapter(
    model: Model, *, dataset: pathlib.Path, split: str, stores: Stores, output: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Stores by the adapter: of the split that is ranked, and of training items to fit a PCA on."""
    folders = {}
    for each, most in ((split, None), (TRAIN, FITTED_ON)):
        features = Features.open({name: [folder[each]] for name, folder in stores.items()})
        encoder = image_encoder(model, name=ADAPTER, features=features)
        folders[each] = output / f"{ADAPTER}-{each}"
        embed(encoder, dataset=dataset, split=each, output=folders[each], most=most, overwrite=True)
    return folders


def save_adapter(model: Model, folder: pathlib.Path) -> None:
    """In the place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save(folder)


def write_headline(path: pathlib.Path, report: Mapping[str, Any]) -> str:
    """Writes the report's headline as JSON, and returns it as one line."""
    found = headline(report)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return headline_text(found)


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """{"metric", "encoder", "ours", "difference": {"mean", "low", "high"}, "relative"} of the first metric."""
    metric = report["primary_metric"]
    means = {row["name"]: row["exact"][metric] for row in report["rows"]}
    between = next(
        each for each in report["differences"] if (each["a"], each["b"], each["metric"]) == (ADAPTER, ENCODER, metric)
    )
    return {
        "metric": metric,
        "encoder": means[ENCODER],
        "ours": means[ADAPTER],
        "difference": {key: between[key] for key in ("mean", "low", "high")},
        "relative": between["relative"],
    }


def headline_text(found: Mapping[str, Any]) -> str:
    """ "nDCG_exp@5: your encoder 0.518, ours 0.593, difference +0.075 [+0.070, +0.079] (+14.4 %)"."""
    difference = found["difference"]
    return (
        f"{found['metric']}: {ENCODER} {number(found['encoder']['mean'])}, ours {number(found['ours']['mean'])}, "
        f"difference {signed(difference['mean'])} [{signed(difference['low'])}, {signed(difference['high'])}] "
        f"({signed_percent(found['relative'])})"
    )
