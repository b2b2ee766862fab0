"""The comparison: rows of vectors over one split in, the report out."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from eval import baselines
from eval.embeddings import EmbeddingStore
from eval.metrics import max_cutoff
from eval.neighbours import LEAST_RECALL
from eval.ranking import CatalogueRanking, compare_rows, rank_catalogue
from eval.relevance import AttributeRelevance
from input_pipeline.dataset import attributes, dataset_fingerprint, open_split
from input_pipeline.loader import iterate_split
from input_pipeline.progress import progress
from input_pipeline.split import title_groups
from siglip_jax import __version__
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools import log_notes

PROTOCOL = "full-catalogue retrieval, attribute agreement"
BATCH = 256


def relevance_of(config: ml_collections.ConfigDict, dataset: epath.PathLike) -> AttributeRelevance:
    """The config's relevance rules over the evaluation split; also the check that the catalogue has the attributes."""
    _, titles, columns = attributes(dataset, config.evaluation.split)
    return AttributeRelevance(tuple(config.evaluation.relevance), {"title": titles, **columns})


def baseline_vectors(
    names: Sequence[str], *, dataset: epath.PathLike, split: str, side: int = 32, seed: int = 0
) -> dict[str, np.ndarray]:
    """Vectors of the rows that need no model: "random" and "raw pixels" (side x side, centred)."""
    known = ("random", "raw pixels")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"unknown baseline {unknown[0]!r}; expected {' or '.join(map(repr, known))}")
    rows = len(open_split(dataset, split))
    vectors = {}
    for name in names:
        if name == "random":
            vectors[name] = baselines.random_embeddings(rows, 64, seed=seed)
        else:
            preprocessing = Preprocessing(image_size=(side, side))
            batches = iterate_split(dataset, split=split, preprocessing=preprocessing, batch_size=BATCH)
            watched = progress(batches, total=rows, label="raw pixels", unit="images", step=BATCH)
            images = [batch["image"] for batch in watched]
            vectors[name] = baselines.raw_pixels(np.concatenate(images))
    return vectors


def check_same_items(name: str, store: EmbeddingStore, ids: Sequence[str], *, fingerprint: str) -> None:
    """Raises a UserError where a store does not hold exactly the items of the split, in its order."""
    stored = store.manifest.get("dataset", {}).get("fingerprint")
    if stored not in (None, fingerprint):
        raise UserError(f"store {name!r} was made from another dataset ({stored}, not {fingerprint}); embed it again")
    if list(store.ids) != list(ids):
        raise UserError(
            f"store {name!r} holds {len(store.ids)} items that are not the {len(ids)} of this split, in order; "
            "embed the split again"
        )


def rank(
    vectors: Mapping[str, np.ndarray],
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    title: str,
    new: str,
    scann: Mapping[str, Any] | None = None,
    allow_low_recall: bool = False,
    loss_curve: Sequence[Mapping[str, float]] = (),
    provenance: Mapping[str, Any] | None = None,
    grid: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Ranks each item of the evaluation split against the others with every row of vectors; the report as a dict.

    Args:
      vectors: {row name: [n, d]} in the order of the split.
      config: `config.evaluation` decides split, relevance, gain and metrics.
      new: the row whose differences to all others are reported.
      scann: options of the ScaNN column, or None to leave it out.
      allow_low_recall: show a row's ScaNN figures though its recall is under `eval.neighbours.LEAST_RECALL`.
      grid: how many queries to show with pictures.
    """
    options = config.evaluation
    ids, titles, _ = attributes(dataset, options.split)
    relevance = relevance_of(config, dataset)
    rng = np.random.default_rng(seed)
    show = np.sort(rng.permutation(len(ids))[: 4 * grid])
    settings: dict[str, Any] = {
        "metrics": tuple(options.metrics),
        "gain": options.gain,
        "relevant_from": options.relevant_from,
    }
    exact: dict[str, CatalogueRanking] = {}
    approximate: dict[str, CatalogueRanking] = {}
    for name, rows in progress(vectors.items(), total=len(vectors), label="ranking"):
        exact[name] = rank_catalogue(rows, relevance, show=show.tolist(), **settings)
        if scann is not None and name != "random":  # a random row through ScaNN says nothing of ScaNN
            approximate[name] = rank_catalogue(rows, relevance, backend="scann", index_options=scann, **settings)
    clusters = title_groups(titles)  # queries of one title are no independent evidence
    others = [name for name in reversed(list(vectors)) if name != new]
    table = compare_rows(
        {name: result.metrics for name, result in exact.items()},
        pairs=[(new, other) for other in others],
        clusters=clusters,
        tied={name: result.tied for name, result in exact.items()},
        seed=seed,
    )
    recall = {name: float(np.mean(r.index_recall)) for name, r in approximate.items() if r.index_recall is not None}
    refused = [name for name, value in recall.items() if value < LEAST_RECALL and not allow_low_recall]
    columns = {name: result.metrics for name, result in approximate.items() if name not in refused}
    scann_rows = {}
    if columns:
        scanned = compare_rows(columns, clusters=clusters, seed=seed)
        scann_rows = {row["name"]: row["metrics"] for row in scanned["rows"]}
    primary = table["metrics"][0]
    depth = max(1, max_cutoff(options.metrics))
    left_out = table["rows"][0]["metrics"][primary]["left_out"]
    return {
        "title": title,
        "protocol": PROTOCOL,
        "gain": options.gain,
        "relevance": [{"gain": rule.gain, "agree": list(rule.agree)} for rule in relevance.rules],
        "relevant_from": options.relevant_from,
        "queries": len(ids) - left_out,
        "items": len(ids),
        "left_out": left_out,
        "primary_metric": primary,
        "resampled": "titles",
        "rows": [
            {
                "name": row["name"],
                "exact": row["metrics"],
                "scann": scann_rows.get(row["name"]),
                "scann_recall": {f"recall@{depth}": recall[row["name"]]} if row["name"] in recall else None,
                "scann_refused": row["name"] in refused,
                "tie_rate": row["tie_rate"],
            }
            for row in table["rows"]
        ],
        "differences": table["differences"],
        "loss_curve": [{"step": line["step"], "loss": line["loss"]} for line in loss_curve if "loss" in line],
        "notes": log_notes.of_refused({name: recall[name] for name in refused}, k=depth),
        "grid": _grid(exact, show=show, ids=ids, titles=titles, primary=primary, size=grid),
        "provenance": {
            "dataset": dataset_fingerprint(dataset),
            "split": options.split,
            "bootstrap": {"samples": table["samples"], "clusters": "title", "confidence": table["confidence"]},
            "ScaNN": dict(scann) if scann is not None else "not run",
            "versions": versions(),
            **(provenance or {}),
        },
    }


def _grid(
    exact: Mapping[str, CatalogueRanking],
    *,
    show: np.ndarray,
    ids: Sequence[str],
    titles: Sequence[str],
    primary: str,
    size: int,
) -> list[dict[str, Any]]:
    """The first `size` sampled queries that have something relevant, not chosen by how any row did."""
    any_row = next(iter(exact.values()))
    asked = [place for place, row in enumerate(show) if not np.isnan(any_row.metrics[primary][row])][:size]

    def results(ranking: CatalogueRanking, place: int) -> list[dict[str, Any]]:
        found = zip(ranking.shown.rows[place], ranking.shown.labels[place], strict=True)
        return [{"id": ids[row], "title": titles[row], "gain": int(gain)} for row, gain in found if row >= 0]

    return [
        {
            "query": ids[show[place]],
            "title": titles[show[place]],
            "systems": [{"name": name, "results": results(ranking, place)} for name, ranking in exact.items()],
        }
        for place in asked
    ]


def pictures_by_id(dataset: epath.PathLike, split: str) -> Callable[[str], bytes]:
    """id -> encoded picture, for the report."""
    rows = open_split(dataset, split)
    ids, _, _ = attributes(dataset, split)
    places = {item: place for place, item in enumerate(ids)}
    return lambda item: rows[places[item]]["image"]


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"siglip-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scann"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
