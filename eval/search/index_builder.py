"""Builds and loads an index: exact, over reduced vectors, or ScaNN where it is installed.

index = build_index(vectors, ids, backend="scann")
index.search(queries, k=10).ids
index.save("index"); load_index("index")
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from eval.embeddings.vectors import unit_rows
from eval.search.exact_index import ExactIndex
from eval.search.index import IDS, VECTORS, Index, npy_array
from eval.search.index_folder import generation_of, read_folder
from eval.search.live_index import LiveIndex
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
    check_ids(ids)
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


def check_ids(ids: Sequence[str]) -> None:
    """Raises a UserError for an id that is no text, or none that can be written as UTF-8."""
    for item in ids:
        if not isinstance(item, str):
            raise UserError(f"id {item!r} is a {type(item).__name__}: ids are strings")
        try:
            item.encode()
        except UnicodeEncodeError:
            raise UserError(f"id {item!r} cannot be written as UTF-8: half a character") from None


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
    manifest, contents = read_folder(folder)
    try:
        index = _index_of(manifest, contents)
    except UserError as error:
        raise UserError(f"search index {folder}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"search index {folder}: not what this library writes ({type(error).__name__}: {error}); build it again"
        ) from None
    index.missing, index.encoder = manifest.get("missing", []), manifest.get("encoder", {})
    index.generation = generation_of(manifest)
    return index


def _index_of(manifest: Mapping[str, Any], contents: Mapping[str, Any]) -> Index:
    delta = LiveIndex.file_names() if "delta" in manifest else set()
    own = {name: content for name, content in contents.items() if name not in delta}
    if IDS not in own or not contents.keys() >= delta:
        raise UserError("the manifest lacks files; build the index again")
    ids = json.loads(bytes(own[IDS]))
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids) or len(set(ids)) != len(ids):
        raise UserError(f"{IDS} is no list of different ids; build the index again")
    base = _base_of(manifest, own, ids)
    base.digests = {name: manifest["files"][name] for name in own}
    index = LiveIndex.of_files(base, contents) if delta else base
    if len(index) != manifest["count"]:
        raise UserError(f"{len(index)} ids for {manifest['count']} items; build the index again")
    return index


def _base_of(manifest: Mapping[str, Any], contents: Mapping[str, Any], ids: Sequence[str]) -> Index:
    if manifest["backend"] == "exact":
        vectors = npy_array(contents[VECTORS]) if VECTORS in contents else np.empty(0)
        if vectors.shape != (len(ids), manifest["dimension"]):
            raise UserError(f"vectors {vectors.shape}, manifest {(len(ids), manifest['dimension'])}")
        return ExactIndex(vectors, ids, manifest["measured"], unit=True)
    if manifest["backend"] == "reduced":
        from eval.search import reduced_index

        return reduced_index.load(contents, ids, manifest)
    if manifest["backend"] == "scann":
        from eval.search import scann_index

        return scann_index.load(contents, ids, manifest)
    raise UserError(f"backend {manifest['backend']!r} is unknown: known are {', '.join(BACKENDS)}")
