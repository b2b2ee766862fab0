"""Our backends as `run_row` asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.search import Index
from eval.search.exact_index import ExactIndex

Setting = Mapping[str, int]
Ask = Callable[[np.ndarray], np.ndarray]  # queries float32 [q, d] -> rows [q, k]
CANDIDATES = (1, 2, 4, 8, 16)
AROUND = (1 / 8, 1 / 5, 1 / 3, 1 / 2, 2 / 3, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 8)  # times what was chosen


class Exact:
    """A saved index: unit vectors in a memory map."""

    sweeps: Sequence[Sequence[Setting]] = (({},),)

    def build(self, items: np.ndarray) -> None:
        self._index: Index = ExactIndex(items, [""] * len(items), {}, unit=True)

    @property
    def bytes(self) -> int:
        return self._index.bytes_in_memory

    def ask(self, setting: Setting, k: int) -> Ask:
        return lambda queries: self._index._search(queries, k)[0]


class Int8(Exact):
    sweeps = (tuple({"candidates": candidates} for candidates in CANDIDATES),)

    def build(self, items: np.ndarray) -> None:
        from eval.search import reduced_index

        self._index = reduced_index.build(items, [""] * len(items), reduce="int8")

    def ask(self, setting: Setting, k: int) -> Ask:
        self._index.options.update(setting)
        return super().ask(setting, k)


class Tree(Exact):
    """What --target_recall builds; then more and more leaves are read, with as many candidates as it chose."""

    def __init__(self, *, target: float, k: int, leaves: Sequence[int]):
        self._target, self._k, self._leaves = target, k, leaves
        self.about: dict[str, Any] = {}

    def build(self, items: np.ndarray) -> None:
        from eval.search import tuned_index

        ids = [str(row) for row in range(len(items))]
        leaves = self._leaves or [max(2, round(share * len(items) ** 0.5)) for share in (1, 2)]
        index = tuned_index(items, ids, target=self._target, k=self._k, leaves=leaves, say=print)
        self._index = index
        self.about = {"tuned": index.options, "curve": index.measured["curve"]}
        there, all_of_them = index.options["leaves_to_search"], index.options["leaves"]
        around = {round(there * factor) for factor in AROUND}
        read = sorted(each for each in around if 1 <= each <= all_of_them)
        self.sweeps = [[{"leaves_to_search": each, "reorder": index.options["reorder"]} for each in read]]

    def ask(self, setting: Setting, k: int) -> Ask:
        index = self._index.asking(**setting)  # type: ignore[attr-defined]
        return lambda queries: index._search(queries, k)[0]
