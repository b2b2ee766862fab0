"""The ScaNN backend of `eval.search.index_builder`, and the only importer of scann (Guo et al. 2020, arXiv 1908.10396).

Two packages hold this module, Google's scann and scann-core (no TensorFlow, and AVX-512); either reads the files of the
other.

What ScaNN 1.4.2 would do to a caller, and what is done here about it: `import scann` imports TensorFlow when it is
installed and dies of any release but 2.20 (hidden during that import alone); short result rows are padded with row 0
and distance NaN (dropped); there is no cosine (unit vectors in); tree builds differ from run to run, on one thread too
(k-means++ centres and one thread make them equal); document ids are pickled (never handed over, and such a file is
refused).
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from eval.search.index import Index, npy_array
from siglip_jax.errors import UserError, check_choice

MODES = ("brute_force", "ah", "tree")
_BRUTE_FORCE_BELOW, _TREE_FROM = 20_000, 100_000  # Google's sizing (ScaNN docs, algorithms.md)
_AH_MIN_ITEMS = 16  # a 4-bit codebook needs as many points as centres
_REORDER = 200
_DATASET = "dataset.npy"  # the unit vectors, in every mode
_importing = threading.Lock()


class ScannIndex(Index):
    backend = "scann"

    def __init__(self, searcher: Any, vectors: np.ndarray, ids: Sequence[str], options: Mapping, measured: Mapping):
        super().__init__(ids, vectors.shape[1], options, measured)
        self._searcher = searcher
        self._unit = vectors  # float32 [n, dimension]

    def asking(self, **options: int) -> ScannIndex:
        """The same searcher, asked otherwise: leaves_to_search, reorder."""
        return ScannIndex(self._searcher, self._unit, self.ids, {**self.options, **options}, {})

    @property
    def bytes_in_memory(self) -> int:
        """Of vectors, codes and centres."""
        codes = 0 if self.options["mode"] == "brute_force" else len(self) * math.ceil(self.dimension / 2) // 2
        return self._unit.nbytes + codes + self.options.get("leaves", 0) * self.dimension * 4

    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._unit[rows])

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        # Candidates scored exactly are more than the neighbours asked for, or the approximate order would show.
        reorder = self.options.get("reorder")
        pre = None if reorder is None else min(len(self), max(reorder, 4 * k))
        rows, scores = self._searcher.search_batched_parallel(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=pre,
            leaves_to_search=self.options.get("leaves_to_search"),
        )
        padding = np.isnan(scores)
        return np.where(padding, -1, rows.astype(np.int64)), np.where(padding, np.float32(-np.inf), scores)

    def _files(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            self._searcher.serialize(folder, relative_path=True)
            contents = {}
            for name in sorted(os.listdir(folder)):
                with open(os.path.join(folder, name), "rb") as file:
                    contents[name] = file.read()
        return contents


def build(
    vectors: np.ndarray,
    ids: Sequence[str],
    *,
    mode: str | None = None,
    leaves: int | None = None,
    leaves_to_search: int | None = None,
    reorder: int | None = None,
) -> ScannIndex:
    """Builds a ScaNN searcher over unit vectors; called by `eval.search.index_builder.build_index`, which checks and
    normalises.

    Args:
      vectors: float32 [n, dimension], unit norm.
      mode: "brute_force" (exact), "ah" (asymmetric hashing, then exact reordering) or "tree" (partitioned, then as
          ah); None for brute_force below 20,000 items, ah below 100,000, tree from there. Fewer than 16 items are
          always searched by brute force.
      leaves: partitions of the tree, at most n; None for sqrt(n).
      leaves_to_search: partitions read per query; None for a fifth of them, at least 10.
      reorder: candidates scored exactly per query, at least 4 k at search time; None for 200.

    Raises:
      UserError: ScaNN is not installed, or an option that is out of range or does not belong to the mode.
    """
    n = len(vectors)
    if mode is not None:
        check_choice("ScaNN mode", mode, MODES)
    given = {"leaves": leaves, "leaves_to_search": leaves_to_search, "reorder": reorder}
    for name, value in given.items():
        if value is not None and value < 1:
            raise UserError(f"ScaNN option {name}={value}: expected at least 1")
    mode = mode or ("brute_force" if n < _BRUTE_FORCE_BELOW else "ah" if n < _TREE_FROM else "tree")
    takes = {"brute_force": (), "ah": ("reorder",), "tree": ("leaves", "leaves_to_search", "reorder")}[mode]
    for name, value in given.items():
        if value is not None and name not in takes:
            raise UserError(
                f"ScaNN option {name}={value} has no effect in mode {mode}: leave it out or choose another mode"
            )

    options: dict[str, Any] = {"mode": mode if n >= _AH_MIN_ITEMS else "brute_force"}
    builder = _pybind().builder(vectors, min(10, n), "dot_product").set_n_training_threads(1)
    if options["mode"] == "brute_force":
        builder = builder.score_brute_force()
    else:
        if mode == "tree":
            options["leaves"] = min(n, leaves or round(math.sqrt(n)))
            options["leaves_to_search"] = min(options["leaves"], leaves_to_search or max(10, options["leaves"] // 5))
            builder = builder.tree(
                num_leaves=options["leaves"],
                num_leaves_to_search=options["leaves_to_search"],
                random_init=False,  # random centres take a fresh seed in every process; k-means++ takes a fixed one
            )
        options["reorder"] = reorder or _REORDER
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(options["reorder"])
    return ScannIndex(builder.build(), vectors, ids, options, {})


def load(contents: Mapping[str, Any], ids: Sequence[str], manifest: Mapping[str, Any]) -> ScannIndex:
    """Reads a searcher from the files of a saved index (already checked against their sums)."""
    if any(name.endswith(".pkl") for name in contents):
        raise UserError("search index holds a pickle file, which this library neither writes nor reads: build it again")
    with tempfile.TemporaryDirectory() as folder:  # ScaNN reads folders of this machine only; it loads all into memory
        for name, content in contents.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(content)
        try:
            searcher = _pybind().load_searcher(folder, assets_backcompat_shim=False)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"ScaNN cannot read the index ({str(error).splitlines()[0]}): build it again") from None
    vectors = npy_array(contents[_DATASET]) if _DATASET in contents else np.empty((0, 0), np.float32)
    if vectors.shape != (len(ids), manifest["dimension"]):
        raise UserError(
            f"search index: {_DATASET} of {vectors.shape}; the manifest says "
            f"{(len(ids), manifest['dimension'])}: build it again"
        )
    return ScannIndex(searcher, vectors, ids, manifest["options"], manifest["measured"])


def _pybind() -> ModuleType:
    """ScaNN's numpy interface, imported with TensorFlow out of its sight."""
    name = "scann.scann_ops.py.scann_ops_pybind"
    with _importing:
        if name in sys.modules:
            return sys.modules[name]
        hidden = {key: sys.modules[key] for key in ("tensorflow",) if key in sys.modules}
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "scann":
                problem = "ScaNN is not installed"
            else:
                problem = f"ScaNN does not load here ({error})"
            raise UserError(
                f"{problem}: `pip install 'siglip-jax[scann-core]'` (Linux; no TensorFlow, faster) or "
                "`pip install 'siglip-jax[search]'` (Google's own; Linux, Python 3.11-3.13), or use backend=\"exact\""
            ) from None
        finally:
            del sys.modules["tensorflow"]
            sys.modules.update(hidden)
