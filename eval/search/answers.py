"""What a search answers, as one JSON object: `siglip-jax search --json` prints it, `siglip-jax serve` sends it.

{"query": {"item": "17"}, "generation": "3f6c...", "items": [
    {"id": "4", "score": 0.93, "title": "Red shirt", "attributes": {"colour": "red"}}, ...]}
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from etils import epath

from eval.metrics.topk import select_top
from eval.search.index import Index
from eval.search.recall import search_allowed
from input_pipeline.dataset import item_table
from siglip_jax.errors import UserError

Known = Mapping[str, tuple[str, dict[str, str]]]  # id -> (title, attributes)
Where = Mapping[str, Collection[str]]  # attribute -> its values that are let through

SCANNED = 20_000  # items that pass a filter: up to so many, each is scored, whatever the index
_FILTERS_KEPT = 64


def read_known(dataset: epath.PathLike) -> Known:
    """Titles and attributes of all items that a dataset kept, whatever their split."""
    table = item_table.item_table(dataset, columns=("id", "title", "kind", "attributes"), progress=False)
    rows = table.filter(pc.equal(table["kind"], "")).to_pylist()
    return {
        row["id"]: (row["title"], {name: text for name, text in (row.get("attributes") or {}).items() if text})
        for row in rows
    }


class Answers:
    """An index, and what is known of its items. Threads may share one.

    Args:
      known: titles and attributes; an item that is not in it has the title "" and no attributes.

    Example:
      Answers(load_index("runs/index"), read_known("data/shop")).of_item("17", k=5, where={"colour": ["red"]})
    """

    def __init__(self, index: Index, known: Known | None = None):
        self.index = index
        self.known = known or {}
        self._rows_allowed = functools.lru_cache(_FILTERS_KEPT)(self._find_rows_allowed)

    def of_item(self, item: str, *, k: int, least: float = -math.inf, where: Where | None = None) -> dict[str, Any]:
        """The k items nearest to an item of the index, without itself.

        Raises:
          UserError: no such item, k below 1, an attribute that no item has.
        """
        return {
            "query": {"item": item},
            **self.of_vector(self.index.vectors_of([item]), k=k, least=least, where=where, without=item),
        }

    def of_vector(
        self,
        query: np.ndarray,
        *,
        k: int,
        least: float = -math.inf,
        where: Where | None = None,
        without: str | None = None,
    ) -> dict[str, Any]:
        """The k items nearest to a vector, as JSON values, nearest first.

        Args:
          query: real [1, dimension].
          least: cosine from which an item is shown.
          where: filters, which must all hold. They cost no recall of their own: few items that pass are all scored,
            of many the index is asked for more until k pass.
          without: id of an item that is left out.
        """
        wanted = k + (without is not None)
        if where:
            rows, scores = self._allowed(query, wanted, self._rows_allowed(_frozen(where)))
        else:
            found = self.index.search(query, k=wanted)
            rows, scores = found.rows[0], found.scores[0]
        items = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if row >= 0 and score >= least and (item := self.index.ids[row]) != without:
                title, attributes = self.known.get(item, ("", {}))
                items.append({"id": item, "score": round(score, 6), "title": title, "attributes": attributes})
        return {"generation": self.index.generation, "items": items[:k]}

    def _allowed(self, query: np.ndarray, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        unit = self.index.check_query(query, k=k)
        if not len(rows):
            return rows, np.empty(0, np.float32)
        if len(rows) <= SCANNED:
            top = select_top(unit @ self.index.vectors_at(rows).T, min(k, len(rows)))
            return rows[top.columns[0]], top.values[0]
        mask = np.zeros((1, len(self.index)), bool)
        mask[0, rows] = True
        found, scores = search_allowed(self.index, query, mask, k=k)
        return found[0], scores[0]

    def _find_rows_allowed(self, where: tuple[tuple[str, frozenset[str]], ...]) -> np.ndarray:
        """Rows of the index that pass, ascending."""
        names = {name for _, attributes in self.known.values() for name in attributes}
        for name, _ in where:
            if name not in names:
                shown = ", ".join(sorted(names)[:20]) or "none, since the dataset is not given"
                raise UserError(f"filter on {name!r}: no item has this attribute; there are {shown}")
        passing = []
        for row, item in enumerate(self.index.ids):
            attributes = self.known.get(item, ("", {}))[1]
            if all(attributes.get(name) in values for name, values in where):
                passing.append(row)
        return np.array(passing, np.int64)


def _frozen(where: Where) -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple(sorted((name, frozenset(values)) for name, values in where.items()))
