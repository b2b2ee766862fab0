"""What is measured while a model trains: metrics of both towers' embeddings of the evaluation split.

EVALUATORS has one entry for each evaluator of ours. A user's own is named in `config.evaluation.while_training` as
"module:function", without an entry:

    # my_evaluators.py, in the working directory or installed
    def pairs(split):  # an EmbeddedSplit
        cosine = (split.image * split.text).sum(axis=1)
        return {"cosine": cosine.mean(), "worst": cosine.min()}

    config.evaluation.while_training = ("retrieval", "my_evaluators:pairs")
    config.evaluation.best_metric = "pairs/cosine"

Its metrics have the function's name before theirs, so that they are nobody else's.

`training.loop` calls what `make_evaluators` gives and knows nothing of datasets.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from eval.comparison.by_attributes import attribute_measures, relevance_over
from eval.comparison.items import Items, read_split
from eval.metrics import mean_metrics, report_name
from eval.metrics.metric_names import max_cutoff
from eval.protocols import AttributeRelevance, rank_catalogue
from eval.protocols.cross_modal import cross_modal_retrieval, retrieval_names
from input_pipeline.duplicates.normalised_titles import title_groups
from input_pipeline.loader.item_vectors import ItemVectors, complete_rows
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.training.run.evaluations import Evaluator, check_best, check_distinct, checked_metrics
from tools.workflow.split_embedder import split_embedder

_FIELD = "config.evaluation.while_training"


class SplitItems:
    """The items of the evaluation split; read when they are first asked for, since many evaluators need none.

    Args:
      rows: those of the split that are embedded; None for all of them.
    """

    def __init__(self, config: ml_collections.ConfigDict, dataset: epath.PathLike, rows: np.ndarray | None = None):
        self.config, self._dataset, self._rows = config, dataset, rows

    @functools.cached_property
    def _items(self) -> Items:
        items = read_split(self._dataset, self.config.evaluation.split)
        return items if self._rows is None else items.at(self._rows.tolist())

    @property
    def columns(self) -> tuple[list[str], list[str], dict[str, list[str]]]:
        """(ids, titles, {attribute: values}), in the order of the split."""
        return self._items.ids, self._items.titles, self._items.columns

    @functools.cached_property
    def relevance(self) -> AttributeRelevance:
        """The config's relevance rules over the items; UserError where they lack an attribute."""
        return relevance_over(self.config, self._items)


@dataclass(frozen=True, kw_only=True)
class EmbeddedSplit:
    """The evaluation split as the model of one step embeds it: what an evaluator gets. Rows are items everywhere.

    Attributes:
      step: after how many steps.
      image, text: float32 [n, d], unit norm, embeddings of each item's first image and first title.
      group: int [n], equal for items of equal title.
      params: the parameters that embedded it, a tree of arrays that may lie on several devices.
      model: the model that training started from; `model.replace(params=jax.device_get(split.params))` is this step's.
      items: the same items through all of the run.
    """

    step: int
    image: np.ndarray
    text: np.ndarray
    group: np.ndarray
    params: Any
    model: Model
    items: SplitItems

    @property
    def config(self) -> ml_collections.ConfigDict:
        """Of the run."""
        return self.items.config

    @property
    def ids(self) -> list[str]:
        """[n]."""
        return self.items.columns[0]

    @property
    def titles(self) -> list[str]:
        """[n]."""
        return self.items.columns[1]

    @property
    def attributes(self) -> dict[str, list[str]]:
        """{name: values [n]}, such as `split.attributes["colour"]`."""
        return self.items.columns[2]


@dataclass(frozen=True, kw_only=True)
class EvaluatorEntry:
    """One evaluator.

    Attributes:
      measure: called at every evaluation, on every process with the whole split; returns {metric: number}. Metrics that
        are not finite are left out of the logs. Their names stand in logs and in `config.evaluation.best_metric`.
      names: the metrics' names, checked before training; also raises a UserError for settings that do not fit. Without
        it, `measure` is called once before training, with random embeddings, and tells the names by that.
    """

    measure: Callable[[EmbeddedSplit], Mapping[str, float]]
    names: Callable[[SplitItems], Sequence[str]] | None = None


def _retrieval(split: EmbeddedSplit) -> dict[str, float]:
    return cross_modal_retrieval(split.image, split.text, split.group)


def _ranking(split: EmbeddedSplit) -> dict[str, float]:
    relevance = split.items.relevance
    ranking = rank_catalogue(split.image, relevance, attribute_measures(split.config, relevance))
    return {f"ranking/{name}": mean["mean"] for name, mean in mean_metrics(ranking.metrics).items()}


def _ranking_names(items: SplitItems) -> list[str]:
    options = items.config.evaluation
    max_cutoff(options.metrics)  # raises for unknown names
    _ = items.relevance
    return [f"ranking/{report_name(metric, gain=options.gain)}" for metric in options.metrics]


EVALUATORS: dict[str, EvaluatorEntry] = {
    "retrieval": EvaluatorEntry(measure=_retrieval, names=lambda items: retrieval_names()),
    "ranking": EvaluatorEntry(measure=_ranking, names=_ranking_names),
}


def make_evaluators(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    dataset: epath.PathLike,
    features: Callable[[str], Mapping[str, ItemVectors]] | None = None,
) -> list[Evaluator]:
    """The evaluators that `config.evaluation.while_training` names, over `config.evaluation.split`.

    They are one function, so that the split is embedded once. Every process embeds its share and computes the metrics
    of the whole.

    Args:
      features: of an adapter, those of a split by its name; items that lack one are not evaluated.

    Raises:
      UserError: before any training: an unknown name, a module or function that cannot be imported, one that returns no
        metrics or another's, no such split, relevance rules that the catalogue has no attributes for, or a best_metric
        that nothing reports.
    """
    options = config.evaluation
    entries = {name: _entry(name) for name in options.while_training}
    if not entries:
        if options.best_metric:
            raise UserError(
                f"config.evaluation.best_metric={options.best_metric!r}; nothing is measured, see while_training"
            )
        return []
    vectors = features(options.split) if features else None
    items = SplitItems(config, dataset, complete_rows(vectors) if vectors else None)
    reported = {
        name: list(entry.names(items) if entry.names else _measured(name, entry, _random_split(model, items)))
        for name, entry in entries.items()
    }
    check_distinct(reported, where=_FIELD)
    known = [metric for metrics in reported.values() for metric in metrics]
    check_best(options.best_metric, known)
    embed = split_embedder(config, model=model, dataset=dataset, features=vectors)

    def evaluate(step: int, params: Any) -> dict[str, float]:
        image, text, group = embed(params)
        split = EmbeddedSplit(step=step, image=image, text=text, group=group, params=params, model=model, items=items)
        for array in (image, text, group):  # the next evaluator sees the same
            array.setflags(write=False)
        measured = {name: _measured(name, entry, split) for name, entry in entries.items()}
        check_distinct(measured, where=_FIELD)
        metrics = {metric: value for values in measured.values() for metric, value in values.items()}
        return {metric: value for metric, value in metrics.items() if math.isfinite(value)}

    evaluate.names = known  # type: ignore[attr-defined]  # so that `loop.train` need not ask for them
    return [evaluate]


def _measured(name: str, entry: EvaluatorEntry, split: EmbeddedSplit) -> dict[str, float]:
    try:
        return checked_metrics(name, entry.measure(split))
    except Exception as error:
        error.add_note(f"while {_FIELD}: {name!r} was measured at step {split.step}")
        raise


def _entry(name: str) -> EvaluatorEntry:
    if name in EVALUATORS:
        return EVALUATORS[name]
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise UserError(
            f"{_FIELD}: {name!r}; expected {' or '.join(EVALUATORS)}, or a function of your own as module:function"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a file there hides nothing that is installed
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            problem = f"no module {error.name}, neither installed nor in {os.getcwd()}"
        else:
            problem = f"{module} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        raise UserError(f"{_FIELD}: {name!r}: {problem}") from error
    measure = getattr(imported, function, None)
    if not callable(measure):
        problem = "is no function" if hasattr(imported, function) else "does not exist"
        raise UserError(f"{_FIELD}: {name!r}: {function} {problem} in {getattr(imported, '__file__', module)}")

    def with_prefix(split: EmbeddedSplit) -> dict[str, float]:
        return {f"{function}/{metric}": value for metric, value in checked_metrics(name, measure(split)).items()}

    return EvaluatorEntry(measure=with_prefix)


def _random_split(model: Model, items: SplitItems) -> EmbeddedSplit:
    """The items with random embeddings of the right shape."""
    titles = items.columns[1]
    vectors = (
        np.random.default_rng(0).normal(size=(2, len(titles), model.architecture.embedding_dim)).astype(np.float32)
    )
    image, text = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    group = title_groups(titles)
    return EmbeddedSplit(step=0, image=image, text=text, group=group, params=model.params, model=model, items=items)
