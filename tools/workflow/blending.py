"""Blends of a start and tuned models: embedded on a catalogue, measured along the way, one chosen and saved."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np
from etils import epath

from eval.comparison.by_attributes import rank_by_attributes, relevance_over
from eval.comparison.comparison_table import Certainty, compare_rows
from eval.comparison.items import Items, places_in_store, read_items
from eval.embeddings import EmbeddingStore, read_store, write_store
from eval.embeddings.store import MANIFEST, read_manifest
from eval.metrics import report_name
from eval.protocols.cross_modal import retrieval_names, retrieval_of_queries
from eval.rankers import VectorRanker
from input_pipeline.dataset import dataset_fingerprint
from input_pipeline.progress import progress
from siglip_jax.blending import average, check_blendable, interpolate
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.training.param_rules import params_checksum
from tools.workflow.embedding import embed, image_encoder
from tools.workflow.item_vectors import Features

NEW, LEARNED = "new", "learned"  # catalogues: tuned on, and known to the start
TITLES_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A split as one model sees it.

    Attributes:
      folder: that was embedded into.
      store: the images.
      titles: folder for those of the items.
    """

    folder: epath.Path
    store: EmbeddingStore
    titles: epath.Path


class Way(Protocol):
    """Models along a way: one for each alpha from 0, where nothing has changed, to 1."""

    def at(self, alpha: float) -> Model: ...

    def embed(
        self, alphas: Sequence[float], *, dataset: epath.PathLike, split: str, stores: epath.Path, on_error: str
    ) -> dict[float, Embedded]:
        """The split by the model of each alpha, in the folder `stores`; what is finished there is kept."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blends:
    """The models between a start and the mean of the models tuned from it.

    Attributes:
      tuned: parameters at alpha 1.
      features: that they read in the place of pictures, of adapters.
    """

    start: Model
    tuned: Any
    features: Features | None = None

    @classmethod
    def between(
        cls, start: tuple[str, Model], tuned: Mapping[str, Model], *, features: Features | None = None
    ) -> Blends:
        """UserError where they are not of one architecture and preprocessing, by the names given."""
        name, model = start
        check_blendable({name: model, **{key: value for key, value in tuned.items() if key != name}})
        return cls(start=model, tuned=average([each.params for each in tuned.values()]), features=features)

    def at(self, alpha: float) -> Model:
        """The blend of one alpha; it computes as the start does."""
        return self.start.replace(params=interpolate(self.start.params, self.tuned, alpha))

    def embed(
        self, alphas: Sequence[float], *, dataset: epath.PathLike, split: str, stores: epath.Path, on_error: str
    ) -> dict[float, Embedded]:
        found = {}
        for alpha in alphas:
            folder = stores / f"alpha_{alpha:g}"
            encoder = image_encoder(self.at(alpha), name=f"blend, alpha {alpha:g}", features=self.features)
            store = embed(encoder, dataset=dataset, split=split, output=folder, on_error=on_error)
            found[alpha] = Embedded(folder, store, folder.with_name(folder.name + ".titles"))
        return found


def parse_alphas(text: str) -> list[float]:
    """ "0,0.2,...,1" -> [0, 0.2, 0.4, 0.6, 0.8, 1]: sorted, each once, and with 0, which all others are compared to.

    Raises:
      UserError: something that is no number from 0 to 1, or dots without two numbers before and one after them.
    """
    expected = f"--alphas={text}: expected numbers from 0 to 1, such as 0,0.5,1 or 0,0.2,...,1"
    found: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    for place, part in enumerate(parts):
        try:
            if part == "...":
                last, step = float(parts[place + 1]), found[-1] - found[-2]
                if not step > 0.001:
                    raise UserError(expected)
                found += [found[-1] + step * k for k in range(1, round((last - found[-1]) / step))]
            else:
                found.append(float(part))
        except (ValueError, IndexError):
            raise UserError(expected) from None
    if not all(0 <= alpha <= 1 for alpha in found):
        raise UserError(expected)
    return sorted({0.0, *(round(alpha, 6) for alpha in found)})


def parse_limits(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """--max_forgetting as {metric: most that it may fall}; a number alone is of the first name.

    Raises:
      UserError: no number of at least 0, an unknown metric or one twice.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, sign, number = text.rpartition("=")
        name = name if sign else names[0]
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in names or name in limits or not 0 <= limit < math.inf:
            raise UserError(
                f"--max_forgetting={text}: expected a number of at least 0, or METRIC=number, each metric once; "
                f"metrics are {', '.join(names)}"
            )
        limits[name] = limit
    return limits


def metric_names(config: ml_collections.ConfigDict) -> list[str]:
    """What `measure` reports; the first one is that which an alpha is chosen by."""
    options = config.evaluation
    return [*(report_name(metric, gain=options.gain) for metric in options.metrics), *retrieval_names()]


def check_catalogue(config: ml_collections.ConfigDict, dataset: epath.PathLike) -> None:
    """UserError: the dataset lacks the split or an attribute of the relevance; asked before minutes are spent."""
    relevance_over(config, read_items(dataset, config.evaluation.split, {}))


def measure(
    blends: Way,
    alphas: Sequence[float],
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    stores: epath.PathLike,
    on_error: str = "error",
) -> dict[str, Any]:
    """Embeds the evaluation split with each blend, ranks as `siglip-jax rank` does, and compares with the start.

    Args:
      alphas: with 0.
      stores: folder of the stores that `blends` makes; finished ones are kept.
      on_error: of rows that cannot be read, see `embed`.

    Returns:
      {"dataset", "queries", "clusters", "warnings", "metrics": [name], "rows": [{"alpha", "metrics": {name: estimate},
      "differences": {name: estimate}}]}: means over the items, and differences to alpha 0 paired by item, with
      intervals over titles.

    Raises:
      UserError: a store that is there is of something else, or no item has a relevant one.
    """
    split = config.evaluation.split
    embedded = blends.embed(alphas, dataset=dataset, split=split, stores=epath.Path(stores), on_error=on_error)
    names = {os.fspath(each.folder): _row(alpha) for alpha, each in embedded.items()}  # each folder once
    items = read_items(dataset, split, {name: folder for folder, name in names.items()})
    fingerprint = dataset_fingerprint(dataset)
    images = {
        alpha: each.store.vectors[places_in_store(_row(alpha), each.store, items, fingerprint=fingerprint)]
        for alpha, each in embedded.items()
    }
    rankers = [VectorRanker(_row(alpha), vectors, ids=items.ids) for alpha, vectors in images.items()]
    ranked = rank_by_attributes(rankers, config=config, dataset=dataset, items=items)
    if ranked.unanswerable == len(items.ids):
        raise UserError(f"{dataset}: no item of split {split} has a relevant one; see config.evaluation.relevance")
    groups, rows = ranked.queries.clusters["title"], {}
    for alpha, each in embedded.items():
        titles = _titles(blends.at(alpha), items, fingerprint=fingerprint, folder=each.titles)
        rows[_row(alpha)] = {**ranked.metrics[_row(alpha)], **retrieval_of_queries(images[alpha], titles, groups)}
    pairs = [(_row(alpha), _row(0.0)) for alpha in alphas]
    table = compare_rows(rows, pairs=pairs, certainty=Certainty({"title": groups}))
    changes: dict[str, dict[str, Any]] = {}
    for cell in table["differences"]:
        changes.setdefault(cell.pop("a"), {})[cell.pop("metric")] = cell
    return {
        "dataset": os.fspath(dataset),
        "clusters": table["clusters"]["title"],
        **{key: table[key] for key in ("queries", "samples", "confidence", "metrics")},
        "warnings": items.warnings(),
        "rows": [
            {"alpha": alpha, "metrics": row["metrics"], "differences": changes[row["name"]]}
            for alpha, row in zip(alphas, table["rows"], strict=True)
        ],
    }


def rule_in_words(catalogues: Sequence[str], limits: Mapping[str, float], metric: str) -> str:
    """What `choose` does, for people."""
    if limits:
        bounds = " and ".join(f"{name} by at most {limit:g}" for name, limit in limits.items())
        best = f"the best {metric} on the new catalogue among those whose mean falls on the learned one in {bounds}"
    else:
        best = f"the best {metric}, mean of both catalogues" if LEARNED in catalogues else f"the best {metric}"
    where = " on the new catalogue" if LEARNED in catalogues else ""
    return f"{best}; no change unless the interval of the gain{where} is above zero"


def choose(catalogues: Mapping[str, Mapping[str, Any]], *, limits: Mapping[str, float], metric: str) -> float:
    """The alpha that the rule of `rule_in_words` finds; of equal ones the smallest. 0, the start, may win.

    With few queries, the best of several means is easily the best by chance. So only those alphas can be chosen whose
    gain on the new catalogue, paired by item, has an interval above zero; 0 needs none.

    Args:
      catalogues: {NEW: what `measure` found, LEARNED: the same or absent}.
      limits: {metric: most that its mean may fall on the learned catalogue}, at least 0, so that the start fits.
    """
    new, learned = catalogues[NEW]["rows"], catalogues.get(LEARNED, {}).get("rows")
    best, chosen = -np.inf, 0.0
    for place, row in enumerate(new):
        gain = row["differences"][metric]["low"]
        if row["alpha"] and not (gain is not None and gain > 0):
            continue
        value = row["metrics"][metric]["mean"]
        if learned is not None and limits:
            changes = learned[place]["differences"]
            # The mean of differences over all queries: what a reader computes from the table, rounding apart.
            if any((changes[name]["mean"] or 0.0) < -limit - 1e-9 for name, limit in limits.items()):
                continue
        elif learned is not None:
            value = (value + learned[place]["metrics"][metric]["mean"]) / 2
        if value > best:
            best, chosen = value, row["alpha"]
    return chosen


def save_blend(model: Model, folder: epath.PathLike) -> None:
    """Saves a model in the place of an earlier blend that may be there; whole or not at all."""
    folder = epath.Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        partial.rmtree()
    model.save(partial)
    if folder.exists():
        folder.rmtree()
    partial.rename(folder)


def format_curve(report: Mapping[str, Any]) -> str:
    """Markdown: each alpha with the metric that chose and, where it was limited, the others, beside their changes."""
    names = list(dict.fromkeys([report["metric"], *report["limits"]]))
    columns = [(side, name) for side in report["catalogues"] for name in names]
    lines = [
        "| alpha | " + " | ".join(f"{side}: {name} | change" for side, name in columns) + " |",
        "| ---: | " + " | ".join("---: | ---:" for _ in columns) + " |",
    ]
    for place, alpha in enumerate(report["alphas"]):
        cells = []
        for side, name in columns:
            row = report["catalogues"][side]["rows"][place]
            cells += [_cell(row["metrics"][name], ".4f"), _cell(row["differences"][name], "+.4f") if alpha else ""]
        mark = " (chosen)" if alpha == report["chosen"] else ""
        lines.append(f"| {alpha:g}{mark} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(estimate: Mapping[str, Any], form: str) -> str:
    if estimate["mean"] is None:
        return "none"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def _row(alpha: float) -> str:
    return f"alpha {alpha:g}"


def _titles(model: Model, items: Items, *, fingerprint: str, folder: epath.Path) -> np.ndarray:
    """float32 [n, d] of the items' titles, from a store that is made where it is not there."""
    ids = hashlib.sha256("\0".join(items.ids).encode()).hexdigest()
    made_of = {
        "model": {"text_tower_sha256": params_checksum(model.params["txt"])},
        "preprocessing": model.preprocessing.to_json(),  # type: ignore[union-attr]
        "dataset": {"fingerprint": fingerprint, "ids_sha256": ids},
    }
    if (folder / MANIFEST).exists():
        found = read_manifest(folder)
        if all(found.get(key) == value for key, value in made_of.items()):
            return read_store(folder).vectors
    starts = progress(
        range(0, len(items.ids), TITLES_AT_ONCE),
        total=len(items.ids),
        label="titles",
        unit="titles",
        step=TITLES_AT_ONCE,
    )
    parts = [
        (items.ids[low : low + TITLES_AT_ONCE], model.encode_text(items.titles[low : low + TITLES_AT_ONCE]))
        for low in starts
    ]
    write_store(folder, parts, manifest=made_of)
    return read_store(folder).vectors
