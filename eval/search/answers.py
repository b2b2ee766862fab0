"""What a search answers, as one JSON object: `siglip-jax search --json` prints it, `siglip-jax serve` sends it.

{"query": {"item": "17"}, "generation": "3f6c...", "items": [
    {"id": "4", "score": 0.93, "title": "Red shirt", "attributes": {"colour": "red"}}, ...]}

Where the index has a row for each picture, an item is there once, and "picture" is the number of its nearest one.
With `collapse` there is "collapsed", the near-duplicates that were left out, in all and of each item. "unmatched" has
the values of filters that no item has, by attribute, where there are any.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow.compute as pc
from etils import epath

from eval.embeddings.pictures import has_picture_rows, item_and_picture
from eval.metrics.topk import select_top
from eval.search.attribute_columns import AttributeColumn, AttributeColumns, Known, Where
from eval.search.index import Index
from eval.search.recall import search_allowed
from eval.search.selection import Selection, choose, first_of_groups
from input_pipeline.dataset import item_table

SCANNED = 20_000  # items that pass a filter: up to so many, each is scored, whatever the index
_FILTERS_KEPT = 32
_ASK_MORE = 4  # times as many, where groups and near-duplicates left too few
_NEAREST = Selection()


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
      answers = Answers(load_index("runs/index"), read_known("data/shop"))
      answers.of_item("17", Selection(k=5, where={"colour": ["red"], "price": ["10..50"]}))
    """

    def __init__(self, index: Index, known: Known | None = None):
        self.index = index
        self.known = known or {}
        self._rows_passing = functools.lru_cache(_FILTERS_KEPT)(self._find_rows_passing)

    @functools.cached_property
    def columns(self) -> AttributeColumns:
        return AttributeColumns([item for item, _ in self._shows] if self._shows else self.index.ids, self.known)

    @functools.cached_property
    def _shows(self) -> list[tuple[str, int]]:
        """The item and the number of the picture of each row; [] where rows are items."""
        if not has_picture_rows(self.index.encoder):
            return []
        return [item_and_picture(row_id, self.index) for row_id in self.index.ids]

    @functools.cached_property
    def _item_codes(self) -> np.ndarray:
        """int64 [row]: equal for pictures of one item."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(item, row) for row, (item, _) in enumerate(self._shows)], np.int64)

    def of_item(self, item: str, selection: Selection = _NEAREST) -> dict[str, Any]:
        """The items nearest to an item of the index, by its first picture, without itself and, with `group_by`, its
        group.

        Raises:
          UserError: no such item, an attribute that no item has, a range that is none.
        """
        query = self.index.vectors_of([item])
        return {"query": {"item": item}, **self.of_vector(query, selection, without=item)}

    def of_vector(
        self, query: np.ndarray, selection: Selection = _NEAREST, *, without: str | None = None
    ) -> dict[str, Any]:
        """The items nearest to a vector, as JSON values, nearest first.

        Filters cost no recall of their own: few items that pass are all scored, of many the index is asked for more
        until enough pass. So do groups and near-duplicates: there are k items if the index has so many to show.

        Args:
          query: real [1, dimension].
          without: id of an item of the index that is left out.
        """
        unit = self.index.check_query(query, k=selection.k)
        passing = self._rows_passing(_frozen(selection.where)) if selection.where else None
        name = selection.group_by
        group = None if name is None or not len(self.index) else self.columns.column(name, what="group_by")
        most = len(self.index) if passing is None else len(passing)
        ask = selection.candidates + (without is not None)
        while True:
            rows, scores = self._nearest(unit, min(ask, most), passing)
            shown = (scores >= selection.least) & self._others(rows, without, group)
            if self._shows:
                shown &= np.isin(np.arange(len(rows)), first_of_groups(self._item_codes[rows]))
            last = ask >= most or len(rows) < ask or bool((scores < selection.least).any())
            chosen = choose(
                rows[shown],
                scores[shown],
                selection=selection,
                groups=None if group is None else group.codes,
                vectors_at=self.index.vectors_at,
            )
            if chosen.enough or last:
                break
            ask *= _ASK_MORE
        items = [
            self._item(row, score, None if selection.collapse is None else alike)
            for row, score, alike in zip(
                rows[shown][chosen.places].tolist(),
                scores[shown][chosen.places].tolist(),
                chosen.alike.tolist(),
                strict=True,
            )
        ]
        more: dict[str, Any] = {} if selection.collapse is None else {"collapsed": int(chosen.alike.sum())}
        if len(self.index) and (unmatched := self.columns.unmatched(selection.where) if selection.where else {}):
            more["unmatched"] = unmatched
        return {"generation": self.index.generation, **more, "items": items}

    def _item(self, row: int, score: float, alike: int | None) -> dict[str, Any]:
        item, picture = self._shows[row] if self._shows else (self.index.ids[row], None)
        title, attributes = self.known.get(item, ("", {}))
        more = {} if picture is None else {"picture": picture}
        more |= {} if alike is None else {"collapsed": alike}
        return {"id": item, "score": round(score, 6), **more, "title": title, "attributes": attributes}

    def _others(self, rows: np.ndarray, without: str | None, group: AttributeColumn | None) -> np.ndarray:
        """bool [n]: which are not the item that is left out, nor of its group."""
        others = np.ones(len(rows), bool)
        if without is None:
            return others
        if self._shows:
            without, _ = item_and_picture(without, self.index)
            others &= self._item_codes[rows] != self._item_codes[self.index.row_of(without)]
        else:
            others[[self.index.ids[row] == without for row in rows.tolist()]] = False
        if group is not None and (code := group.code_of(self.known.get(without, ("", {}))[1])) >= 0:
            others &= group.codes[rows] != code
        return others

    def _nearest(self, unit: np.ndarray, k: int, passing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows that pass and their scores, best first; fewer where no more are found."""
        if k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if passing is None:
            found = self.index.search(unit, k=k)
            rows, scores = found.rows[0], found.scores[0]
        elif len(passing) <= SCANNED:
            top = select_top(unit @ self.index.vectors_at(passing).T, k)
            rows, scores = passing[top.columns[0]], top.values[0]
        else:
            mask = np.zeros((1, len(self.index)), bool)
            mask[0, passing] = True
            (rows,), (scores,) = search_allowed(self.index, unit, mask, k=k)
        there = rows >= 0
        return rows[there], scores[there]

    def _find_rows_passing(self, where: tuple[tuple[str, frozenset[str]], ...]) -> np.ndarray:
        return self.columns.rows_passing(dict(where))


def _frozen(where: Where) -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple(sorted((name, frozenset(values)) for name, values in where.items()))
