"""Pictures of a folder or a zip that no row of its table names."""

from __future__ import annotations

import array
import hashlib
import posixpath
from collections.abc import Iterable

import numpy as np

from input_pipeline.catalogue.item import IMAGE_SUFFIXES
from input_pipeline.folder_or_zip import FileProblem, Files, shown


def unused_pictures(files: Files, names: Iterable[str]) -> list[str]:
    """A sentence about the pictures beside those that `names` lead to, in the same folders; [] where all are named.

    Of a name eight bytes are kept, so that millions of them fit.
    """
    hashes, folders = array.array("Q"), set[str]()
    for name in names:
        try:
            found = files.found(name)
        except FileProblem:
            continue
        if found:
            hashes.append(_hash(found))
            folders.add(posixpath.dirname(found))
    used = np.unique(np.frombuffer(hashes, np.uint64))
    count, total, example = 0, 0, ""
    for folder in sorted(folders):
        there = [posixpath.join(folder, name) for name in files.names(folder) if _is_picture(name)]
        unused = ~np.isin(np.array([_hash(name) for name in there], np.uint64), used)
        total += len(there)
        count += int(unused.sum())
        if unused.any() and not example:
            example = there[int(unused.argmax())]
    if not count:
        return []
    return [f"{count} of {total} pictures in the rows' folders are named by no row, such as {shown(example)}"]


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and name[0] != "."


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
