"""Builds and loads an index: exact, over reduced vectors, or ScaNN where it is installed.

index = build_index(vectors, ids, backend="scann")
index.search(queries, k=10).ids
index.save("index"); load_index("index")
"""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from eval.embeddings.vectors import unit_rows
from eval.search.exact_index import ExactIndex
from eval.search.index import FORMAT, IDS, MANIFEST, VECTORS, Index, file_content, generation_of, npy_array
from siglip_jax.errors import UserError, check_choice

BACKENDS = ("exact", "reduced", "scann")


def build_index(vectors: np.ndarray, ids: Sequence[str], *, backend: str = "exact", **options: Any) -> Index:
    """Builds a cosine index.

    Args:
      vectors: real [n, dimension], any norm but 0.
      ids: n unique strings.
      backend: "exact" (no options), "reduced" (of `eval.search.reduced_index.build`: reduce, candidates) or "scann" (of
        `eval.search.scann_index.build`: mode, leaves, leaves_to_search, reorder).

    Raises:
      UserError: a NaN, infinite or zero vector, repeated ids, no item, unknown backend or option, ScaNN wanted and
          not installed.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(ids) or not vectors.size:
        raise UserError(
            f"{len(ids)} ids with vectors of shape {list(vectors.shape)}: expected at least one, [n, dimension]"
        )
    for item in ids:
        if not isinstance(item, str):
            raise UserError(f"id {item!r} is a {type(item).__name__}: ids are strings")
    if len(set(ids)) != len(ids):
        raise UserError("ids of the index are not unique: each item is indexed once")
    check_choice("backend", backend, BACKENDS)
    if backend == "exact":
        if options:
            raise UserError(f"unknown option {next(iter(options))!r}: the exact backend takes none")
        return ExactIndex(vectors, ids, {})
    build = _builder(backend)
    takes = {**inspect.signature(build).parameters}
    for name in options:
        if name not in takes:
            raise UserError(f"unknown option {name!r}: the {backend} backend takes {', '.join([*takes][2:])}")
    return build(unit_rows(vectors, what="vector", ids=ids), ids, **options)


def _builder(backend: str) -> Callable[..., Index]:
    if backend == "reduced":
        from eval.search import reduced_index

        return reduced_index.build
    from eval.search import scann_index

    return scann_index.build


def load_index(folder: epath.PathLike) -> Index:
    """Reads a saved index after checking every file against the manifest.

    Raises:
      UserError: no folder or manifest, a file missing, altered or not listed, ScaNN needed and not installed.
    """
    folder = epath.Path(folder)
    if not (folder / MANIFEST).exists():
        raise UserError(f"search index {folder}: no {MANIFEST}: not an index, or one whose writing was cut off")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, count, dimension = dict(manifest["files"]), manifest["count"], manifest["dimension"]
        known = manifest["format"] == FORMAT and IDS in files
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"search index {folder}: {MANIFEST} is not of format {FORMAT!r}; build the index again")
    contents = {}
    for name, digest in files.items():
        path = folder / name
        if name != os.path.basename(name) or not path.exists():
            raise UserError(f"search index {folder}: {name} is missing; build the index again")
        contents[name] = file_content(path)
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise UserError(f"search index {folder}: {name} is not what was written (sha256); build the index again")
    ids = json.loads(bytes(contents[IDS]))
    if len(ids) != count:
        raise UserError(f"search index {folder}: {len(ids)} ids for {count} items; build the index again")
    if manifest["backend"] == "exact":
        vectors = npy_array(contents[VECTORS])
        if vectors.shape != (count, dimension):
            raise UserError(f"search index {folder}: vectors {vectors.shape}, manifest {(count, dimension)}")
        index: Index = ExactIndex(vectors, ids, manifest["measured"], unit=True)
    elif manifest["backend"] == "reduced":
        from eval.search import reduced_index

        index = reduced_index.load(contents, ids, manifest)
    elif manifest["backend"] == "scann":
        from eval.search import scann_index

        index = scann_index.load(contents, ids, manifest)
    else:
        raise UserError(
            f"search index {folder}: backend {manifest['backend']!r} is unknown: known are {', '.join(BACKENDS)}"
        )
    index.missing, index.encoder = manifest.get("missing", []), manifest.get("encoder", {})
    index.generation = generation_of(manifest)
    return index
