"""The others, each with all cores, its usual sizes, and the parameter that its users turn for recall."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.search.scans.scan import cores

Setting = Mapping[str, int]
Ask = Callable[[np.ndarray], np.ndarray]
EF = tuple({"ef": ef} for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024))
PROBES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TRAINED_ON = 100_000  # items, as many as ScaNN takes
FACTORS = (8, 16, 32)  # candidates scored in full for each neighbour


class Faiss:
    """Attributes: module that must be there; sweeps of settings, each in the order of their recall."""

    module = "faiss"
    sweeps: Sequence[Sequence[Setting]] = (({},),)

    def build(self, items: np.ndarray) -> None:
        import faiss

        faiss.omp_set_num_threads(cores())
        self._index = self._make(faiss, items)

    def _make(self, faiss: Any, items: np.ndarray) -> Any:
        index = faiss.IndexFlatIP(items.shape[1])
        index.add(items)
        return index

    @property
    def bytes(self) -> int:
        import faiss

        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "index")
            faiss.write_index(self._index, path)
            return os.path.getsize(path)

    def ask(self, setting: Setting, k: int) -> Ask:
        return lambda queries: self._index.search(queries, k)[1]


class FaissHnsw(Faiss):
    sweeps = (EF,)

    def _make(self, faiss: Any, items: np.ndarray) -> Any:
        index = faiss.IndexHNSWFlat(items.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.add(items)
        return index

    def ask(self, setting: Setting, k: int) -> Ask:
        self._index.hnsw.efSearch = setting["ef"]
        return super().ask(setting, k)


class FaissIvfPq(Faiss):
    """Inverted lists, 4-bit codes of two numbers each, read by fast scan, and the full vectors for re-scoring. The
    codes are of residuals (fsr), which find far more than those of plain fs."""

    sweeps = tuple(tuple({"nprobe": probes, "k_factor": factor} for probes in PROBES) for factor in FACTORS)

    def _make(self, faiss: Any, items: np.ndarray) -> Any:
        lists = max(4, round(2 * len(items) ** 0.5))
        kind = f"IVF{lists},PQ{items.shape[1] // 2}x4fsr,RFlat"
        index = faiss.index_factory(items.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        some = np.random.default_rng(0).permutation(len(items))[:TRAINED_ON]
        index.train(np.ascontiguousarray(items[np.sort(some)]))
        index.add(items)
        return index

    def ask(self, setting: Setting, k: int) -> Ask:
        import faiss

        faiss.extract_index_ivf(self._index).nprobe = setting["nprobe"]
        self._index.k_factor = setting["k_factor"]
        return super().ask(setting, k)


class Hnswlib:
    module = "hnswlib"
    sweeps = (EF,)

    def build(self, items: np.ndarray) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", items.shape[1])
        self._index.init_index(len(items), M=16, ef_construction=100)
        self._index.set_num_threads(cores())
        self._index.add_items(items)

    @property
    def bytes(self) -> int:
        return self._index.index_file_size()

    def ask(self, setting: Setting, k: int) -> Ask:
        self._index.set_ef(max(k, setting["ef"]))
        return lambda queries: self._index.knn_query(queries, k=k)[0].astype(np.int64)


class Usearch:
    module = "usearch"
    sweeps = (EF,)

    def build(self, items: np.ndarray) -> None:
        from usearch.index import Index

        self._index: Any = Index(ndim=items.shape[1], metric="ip", dtype="f32")
        self._index.add(np.arange(len(items)), items, threads=cores())

    @property
    def bytes(self) -> int:
        return self._index.serialized_length

    def ask(self, setting: Setting, k: int) -> Ask:
        self._index.expansion_search = setting["ef"]

        def asked(queries: np.ndarray) -> np.ndarray:
            keys = self._index.search(queries, k, threads=cores()).keys
            return np.asarray(keys).astype(np.int64).reshape(len(queries), -1)

        return asked
