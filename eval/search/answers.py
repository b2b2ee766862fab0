"""What a search answers, as one JSON object: `siglip-jax search --json` prints it.

{"query": {"item": "17"}, "generation": "3f6c...", "items": [
    {"id": "4", "score": 0.93, "title": "Red shirt", "attributes": {"colour": "red"}}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
from etils import epath

from eval.search.index import Index, Neighbours
from input_pipeline.dataset import item_table

Known = Mapping[str, tuple[str, dict[str, str]]]  # id -> (title, attributes)


def read_known(dataset: epath.PathLike) -> Known:
    """Titles and attributes of all items that a dataset kept, whatever their split."""
    table = item_table.item_table(dataset, columns=("id", "title", "kind", "attributes"), progress=False)
    rows = table.filter(pc.equal(table["kind"], "")).to_pylist()
    return {
        row["id"]: (row["title"], {name: text for name, text in (row.get("attributes") or {}).items() if text})
        for row in rows
    }


def item_answer(
    index: Index, item: str, *, k: int, known: Known | None = None, least: float = -math.inf
) -> dict[str, Any]:
    """The k items nearest to an item of the index, without itself.

    Raises:
      UserError: no such item, k below 1.
    """
    found = index.search(index.vectors_of([item]), k=k + 1)
    return {"query": {"item": item}, **answer(index, found, without=item, k=k, known=known, least=least)}


def answer(
    index: Index,
    found: Neighbours,
    *,
    k: int,
    without: str | None = None,
    known: Known | None = None,
    least: float = -math.inf,
) -> dict[str, Any]:
    """The first query's neighbours as JSON values, nearest first.

    Args:
      without: id of an item that is left out, such as the one that was asked for.
      known: titles and attributes; an item that is not in it has the title "" and no attributes.
      least: cosine from which an item is shown.
    """
    items = []
    for item, score in zip(found.ids[0], found.scores[0].tolist(), strict=False):
        if item != without and score >= least:
            title, attributes = (known or {}).get(item, ("", {}))
            items.append({"id": item, "score": round(score, 6), "title": title, "attributes": attributes})
    return {"generation": index.generation, "items": items[:k]}
