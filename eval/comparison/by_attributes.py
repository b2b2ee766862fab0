"""The comparison over attributes: each item of a split is ranked against the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from eval.checks import check_queries
from eval.comparison.index_columns import SearchOptions
from eval.comparison.items import Items, read_split
from eval.comparison.protocol_result import ProtocolResult, QuerySet, ReportParts, run_protocol
from eval.protocols import AttributeAgreement, AttributeRelevance, Measures
from eval.rankers import Ranker
from eval.statistics import Slicing
from input_pipeline.dataset import dataset_fingerprint
from input_pipeline.duplicates.normalised_titles import title_groups


def relevance_of(config: ml_collections.ConfigDict, dataset: epath.PathLike) -> AttributeRelevance:
    """`relevance_over` the evaluation split."""
    return relevance_over(config, read_split(dataset, config.evaluation.split))


def relevance_over(config: ml_collections.ConfigDict, items: Items) -> AttributeRelevance:
    """The config's relevance rules over the items; also the check that the catalogue has the attributes."""
    return AttributeRelevance(tuple(config.evaluation.relevance), {"title": items.titles, **items.columns})


def relevance_attributes(config: ml_collections.ConfigDict) -> list[str]:
    """The attributes that relevance asks for, each once, but for the title, of which nearly every item has its own."""
    names = dict.fromkeys(name for rule in config.evaluation.relevance for name in rule["agree"])
    return [name for name in names if name != "title"]


def attribute_measures(config: ml_collections.ConfigDict, relevance: AttributeRelevance) -> Measures:
    """What the config has computed of each ranking, with grades up to the highest of the rules."""
    options = config.evaluation
    return Measures(
        tuple(options.metrics), options.gain, relevant_from=options.relevant_from, max_grade=relevance.max_grade
    )


def rank_by_attributes(
    rankers: Iterable[Ranker],
    *,
    config: ml_collections.ConfigDict,
    dataset: epath.PathLike,
    items: Items,
    search: SearchOptions | None = None,
    slicings: Sequence[Slicing] = (),
    cluster: Sequence[str] = (),
) -> ProtocolResult:
    """Ranks each item against the others with every ranker.

    Args:
      rankers: over the items, in their order.
      config: `config.evaluation` decides relevance, gain and metrics.
      dataset: that the items are of, named in the report.
      slicings: of the items as queries.
      cluster: see `QuerySet.clustered_by`.
    """
    check_queries(items.ids)
    relevance = relevance_over(config, items)
    protocol = AttributeAgreement(relevance, attribute_measures(config, relevance))
    ids = np.array(items.ids, object)
    queries = QuerySet(
        clusters={"title": title_groups(items.titles)},  # queries of one title are no independent evidence
        columns={
            "query_id": ids,
            "query_item": ids,
            "query_item_row": protocol.query_items,
            "candidates": protocol.candidate_counts(),
        },
        slicings=slicings,
    ).clustered_by(cluster)
    result = run_protocol(protocol, rankers, queries, search=search)
    return dataclasses.replace(
        result,
        attributes={name: items.columns[name] for name in relevance_attributes(config)},
        parts=ReportParts(
            head=_head(result, relevance, items),
            source={"dataset": dataset_fingerprint(dataset), "split": config.evaluation.split},
        ),
    )


def _head(result: ProtocolResult, relevance: AttributeRelevance, items: Items) -> dict[str, Any]:
    measures, left_out = result.protocol.measures, result.unanswerable
    return {
        "relevance": [{"gain": rule.gain, "agree": list(rule.agree)} for rule in relevance.rules],
        "relevant_from": measures.relevant_from,
        "max_grade": measures.needed_max_grade,
        "queries": len(items.ids) - left_out,
        "items": len(items.ids),
        "left_out": left_out,
        "list_length": len(items.ids) - 1,
        "warnings": items.warnings(),
        "missing": items.missing,
    }
