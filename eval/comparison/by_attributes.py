"""The comparison: rows over one split in, the report out."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from eval.checks import check_queries
from eval.comparison import log_notes
from eval.comparison.comparison_table import compare_rows
from eval.comparison.conclusions import beyond_table, conclude
from eval.comparison.dimension_ladder import measure_ladder
from eval.comparison.index_columns import index_columns
from eval.comparison.items import Catalogue, read_split
from eval.embeddings.reduction import Reduction
from eval.metrics.metric_names import max_cutoff, needs_max_grade
from eval.protocols import AttributeRelevance, rank_catalogue
from eval.protocols.attribute_agreement import CatalogueRanking
from eval.rankers import Ranker, VectorRanker, baselines
from eval.report.example_queries import Items, catalogue_examples, largest_changes
from eval.statistics import Slicing, measure_slices
from input_pipeline.dataset import dataset_fingerprint, open_split
from input_pipeline.duplicates.normalised_titles import title_groups
from input_pipeline.loader import iterate_split
from input_pipeline.progress import progress
from siglip_jax import __version__
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

PROTOCOL = "full-catalogue retrieval, attribute agreement"
BATCH = 256
LISTED = 10  # first items of a ranking that coverage and variety are measured on


def relevance_of(config: ml_collections.ConfigDict, dataset: epath.PathLike) -> AttributeRelevance:
    """`relevance_over` the evaluation split."""
    return relevance_over(config, read_split(dataset, config.evaluation.split))


def relevance_over(config: ml_collections.ConfigDict, catalogue: Catalogue) -> AttributeRelevance:
    """The config's relevance rules over the items; also the check that the catalogue has the attributes."""
    return AttributeRelevance(tuple(config.evaluation.relevance), {"title": catalogue.titles, **catalogue.columns})


def relevance_attributes(config: ml_collections.ConfigDict) -> list[str]:
    """The attributes that relevance asks for, each once, but for the title, of which nearly every item has its own."""
    names = dict.fromkeys(name for rule in config.evaluation.relevance for name in rule["agree"])
    return [name for name in names if name != "title"]


def pixel_vectors(
    dataset: epath.PathLike, split: str, *, catalogue: Catalogue | None = None, side: int = 32
) -> np.ndarray:
    """The pictures of a split, or of its items in `catalogue`, as "raw pixels": squashed to side x side, centred.

    Raises:
      UserError: one of these pictures cannot be read.
    """
    preprocessing = Preprocessing(image_size=(side, side))
    total = len(open_split(dataset, split))
    wanted = np.ones(total, bool)
    if catalogue is not None:
        wanted[:] = False
        wanted[catalogue.rows] = True
    on_error = "raise" if wanted.all() else "skip"
    batches = iterate_split(dataset, split=split, preprocessing=preprocessing, batch_size=BATCH, on_error=on_error)
    watched = progress(batches, total=total, label="raw pixels", unit="images", step=BATCH)
    images = np.concatenate([batch["image"][wanted[batch["index"]]] for batch in watched])
    if lost := [bad for bad in batches.skipped if wanted[bad.row]]:
        raise UserError(
            f"{dataset}: split {split}: {lost[0]}, though the stores have it; embed again, or leave out raw pixels"
        )
    return baselines.raw_pixels(images)


def rank(
    rows: Mapping[str, Ranker],
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    catalogue: Catalogue | None = None,
    title: str,
    new: str,
    against: str,
    scann: Mapping[str, Any] | None = None,
    allow_low_recall: bool = False,
    slicings: Sequence[Slicing] = (),
    ladders: Mapping[str, tuple[np.ndarray, Sequence[Reduction]]] | None = None,
    bytes_per_item: Mapping[str, int] | None = None,
    loss_curve: Sequence[Mapping[str, float]] = (),
    provenance: Mapping[str, Any] | None = None,
    grid: int = 8,
    changes: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """Ranks each item of the evaluation split against the others with every row; the report as a dict.

    Args:
      rows: {name: row} over the items, in their order.
      catalogue: the items; those of the split when absent.
      config: `config.evaluation` decides split, relevance, gain and metrics.
      new: the row whose differences to all others are reported.
      against: the one of them that comes first, and that slices and examples are about.
      scann: options of the ScaNN column, or None to leave it out.
      allow_low_recall: show a row's ScaNN figures though its recall is under `eval.search.recall.LEAST_RECALL`.
      slicings: of the items as queries.
      ladders: {row name: (its vectors, reductions to measure)}.
      bytes_per_item: of the rows that store vectors.
      grid: how many queries, drawn by `seed`, to show with pictures.
      changes: how many of the largest gains, and of the largest losses, to show.
    """
    options = config.evaluation
    catalogue = read_split(dataset, options.split) if catalogue is None else catalogue
    ids, titles, columns_of = catalogue.ids, catalogue.titles, catalogue.columns
    relevance = relevance_over(config, catalogue)
    settings: dict[str, Any] = {
        "metrics": tuple(options.metrics),
        "gain": options.gain,
        "relevant_from": options.relevant_from,
        "max_grade": relevance.max_grade,
    }
    exact: dict[str, CatalogueRanking] = {}
    approximate: dict[str, CatalogueRanking] = {}
    for name, row in progress(rows.items(), total=len(rows), label="ranking"):
        exact[name] = rank_catalogue(row, relevance, show=range(len(ids)), show_depth=LISTED, **settings)
        if scann is not None and isinstance(row, VectorRanker):
            approximate[name] = rank_catalogue(row, relevance, backend="scann", index_options=scann, **settings)
    check_queries(ids)
    clusters = title_groups(titles)  # queries of one title are no independent evidence
    others = [name for name in list(rows)[::-1] if name not in (new, against)]
    others = [against, *sorted(others, key=lambda name: name.startswith(f"{new}, "))]  # its own reductions last
    table = compare_rows(
        {name: result.metrics for name, result in exact.items()},
        pairs=[(new, other) for other in others],
        clusters=clusters,
        tied={name: result.tied for name, result in exact.items()},
        seed=seed,
    )
    metrics = {name: result.metrics for name, result in exact.items()}
    said = conclude(table, metrics, new=new, against=against, clusters=clusters, seed=seed)
    indexed = index_columns(exact, approximate, allow_low_recall=allow_low_recall, clusters=clusters, seed=seed)
    primary = table["metrics"][0]
    depth = max(1, max_cutoff(options.metrics))
    left_out = table["rows"][0]["metrics"][primary]["left_out"]
    values = {name: result.metrics[primary] for name, result in exact.items()}

    def primary_of(vectors: np.ndarray) -> np.ndarray:
        return rank_catalogue(vectors, relevance, **settings).metrics[primary]

    measured = [
        measure_ladder(
            vectors,
            reductions,
            primary_of,
            row=name,
            metric=primary,
            full=values[name],
            options={"clusters": clusters, "seed": seed},
        )
        for name, (vectors, reductions) in (ladders or {}).items()
    ]
    sliced = None
    if slicings:
        sliced = measure_slices(slicings, values[new], values[against], clusters=clusters)
        sliced |= {"new": new, "base": against, "metric": primary}
    items = Items(ids, titles)
    drawn = np.random.default_rng(seed).permutation(len(ids))
    asked = drawn[~np.isnan(values[new][drawn])][:grid]  # not chosen by how any row did
    two = {name: rows[name] for name in (against, new)}
    gains, losses = (
        [
            {**example, "values": {name: float(values[name][query]) for name in two}}
            for query, example in zip(found, catalogue_examples(found, two, relevance, items), strict=True)
        ]
        for found in largest_changes(values[new], values[against], groups=clusters, count=changes, seed=seed)
    )
    return {
        "title": title,
        "protocol": PROTOCOL,
        "gain": options.gain,
        "relevance": [{"gain": rule.gain, "agree": list(rule.agree)} for rule in relevance.rules],
        "relevant_from": options.relevant_from,
        "max_grade": relevance.max_grade if needs_max_grade(options.metrics) else None,
        "queries": len(ids) - left_out,
        "items": len(ids),
        "left_out": left_out,
        "list_length": len(ids) - 1,
        "warnings": [
            *catalogue.warnings(),
            *log_notes.of_refused(indexed.refused, k=depth),
        ],
        "missing": catalogue.missing,
        "primary_metric": primary,
        **said,
        "new": new,
        "against": against,
        "resampled": "titles",
        "rows": [
            {
                "name": row["name"],
                "exact": row["metrics"],
                **indexed.of(row["name"], k=depth),
                "tie_rate": row["tie_rate"],
                "bytes_per_item": (bytes_per_item or {}).get(row["name"]),
            }
            for row in table["rows"]
        ],
        "differences": table["differences"],
        "ladders": measured,
        "slices": sliced,
        "beyond": beyond_table(
            {name: result.shown.rows for name, result in exact.items()},
            items=len(ids),
            k=LISTED,
            attributes={name: columns_of[name] for name in relevance_attributes(config)},
            clusters=clusters,
            seed=seed,
        ),
        "loss_curve": [{"step": line["step"], "loss": line["loss"]} for line in loss_curve if "loss" in line],
        "gains": gains,
        "losses": losses,
        "grid": catalogue_examples(asked, rows, relevance, items),
        "provenance": {
            "dataset": dataset_fingerprint(dataset),
            "split": options.split,
            "bootstrap": {"samples": table["samples"], "clusters": "title", "confidence": table["confidence"]},
            "ScaNN": dict(scann) if scann is not None else "not run",
            "versions": versions(),
            **(provenance or {}),
        },
    }


def images_by_id(dataset: epath.PathLike, split: str, *, catalogue: Catalogue | None = None) -> Callable[[str], bytes]:
    """id -> encoded picture, for the report."""
    source = open_split(dataset, split)
    catalogue = read_split(dataset, split) if catalogue is None else catalogue
    places = dict(zip(catalogue.ids, catalogue.rows, strict=True))
    return lambda item: source[places[item]]["image"]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"siglip-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scann"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
