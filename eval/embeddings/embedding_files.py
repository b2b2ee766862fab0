"""Embeddings that somebody brings as a file, put in the order of a split.

    vectors.npy        [n, dimension], its ids one a line in vectors.ids.txt beside it
    vectors.npz        arrays "ids" (text) and "embeddings"
    vectors.parquet    columns id and embedding (a list of numbers), or id and one column a number
    vectors.csv        a header, then id,v0,v1,...

Nothing is unpickled; what a file would take in memory is known before it is read.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import os
import pathlib
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from eval.embeddings.vectors import check_vectors
from eval.file_damage import describe_damage
from input_pipeline.catalogue.expand import expand
from siglip_jax.errors import UserError

SUFFIXES = (".npy", ".npz", ".parquet", ".csv")
MAX_BYTES = 64 << 30  # of numbers in memory
MAX_DIMENSION = 2**16
_SHOWN = 400  # letters of a list in a message
DAMAGE = (  # what numpy, zipfile and Arrow raise on damaged files
    *(ValueError, KeyError, OSError, EOFError, MemoryError, RuntimeError, SyntaxError, OverflowError, struct.error),
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class EmbeddingFile:
    """What a file held: row i of `vectors` belongs to `ids[i]`."""

    path: str
    ids: list[str]
    vectors: np.ndarray  # float32 [n, dimension]
    sha256: str

    def aligned(self, ids: Sequence[str]) -> tuple[np.ndarray, int]:
        """(the vectors of these items in this order, how many items of the file are none of them).

        Raises:
          UserError: an item without a vector; NaN, infinite or zero vectors among those asked for.
        """
        places = {item: row for row, item in enumerate(self.ids)}
        missing = [item for item in ids if item not in places]
        if missing:
            raise UserError(
                f"{self.path}: no embedding of {len(missing)} of the {len(ids)} items, {missing[0]!r} the first; "
                f"ids there are such as {self.ids[0]!r} (compared as text): embed them too, or write both alike"
            )
        rows = np.fromiter((places[item] for item in ids), np.int64, len(ids))
        vectors = self.vectors[rows]
        check_vectors(vectors, what=f"{self.path}: embedding", ids=ids)
        return vectors, len(self.ids) - len(rows)


def read_embeddings(path: str) -> EmbeddingFile:
    """Reads a file of one of the kinds above, or several that a range or a pattern names, one after the other.

    Raises:
      UserError: another kind, no file, damage, pickled arrays, no or repeated ids, counts that differ, no numbers,
        more than MAX_BYTES.
    """
    files = [pathlib.Path(each) for each in embedding_paths(path)]
    parts = [read_raw(file) for file in files]
    if len({vectors.shape[1] for _, vectors in parts}) > 1:
        found = ", ".join(f"{file} has {vectors.shape[1]}" for file, (_, vectors) in zip(files, parts, strict=True))
        raise UserError(f"{path}: embeddings of several lengths, {found}"[:_SHOWN] + "; expected those of one encoder")
    ids = [item for some, _ in parts for item in some]
    check_ids(pa.array(ids, pa.string()), path)
    with np.errstate(over="ignore"):  # too large for float32 is infinite, which `aligned` refuses
        whole = np.concatenate([vectors for _, vectors in parts]) if len(parts) > 1 else parts[0][1]
        vectors = np.ascontiguousarray(whole, np.float32)
    digests = [_sha256(file) for file in files]
    together = hashlib.sha256(" ".join(digests).encode()).hexdigest() if len(digests) > 1 else digests[0]
    return EmbeddingFile(path, ids, vectors, together)


def embedding_paths(path: str) -> list[str]:
    """The paths that a range or a pattern means, such as `part-{00..07}.parquet` or `part-*.csv`; else itself."""
    return [path] if "://" in path else [os.fspath(file) for file in expand(path, SUFFIXES)] or [path]


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def names_embeddings(path: str) -> bool:
    """Whether a path is that of such a file, by its suffix; an .npz without "embeddings" holds something else."""
    file = pathlib.Path(path)
    if file.suffix.lower() == ".npz" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return "embeddings.npy" in archive.namelist()
    return file.suffix.lower() in SUFFIXES and not file.is_dir()


def read_raw(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """(ids, numbers [n, dimension] as the file has them, an .npy's as a memory map); ids may repeat.

    Raises:
      UserError: as `read_embeddings`.
    """
    reader = _reader(path)
    with _telling_damage(path):
        ids, vectors = reader(path)
    check_numbers(vectors, path)
    if len(ids) != len(vectors):
        raise UserError(f"{path}: {len(ids)} ids for {len(vectors)} embeddings; expected one each, in the same order")
    return ids, vectors


def read_ids(path: pathlib.Path) -> list[str]:
    """The ids of an .npz or a Parquet file alone."""
    _reader(path)
    with _telling_damage(path):
        if path.suffix.lower() == ".parquet":
            return _ids(pq.read_table(path, columns=["id"]), path)
        with np.load(path, allow_pickle=False) as arrays:
            return _npz_ids(arrays, path)


def check_numbers(vectors: np.ndarray, path: pathlib.Path) -> None:
    """Raises a UserError unless they are numbers [n, dimension]."""
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: embeddings are {vectors.dtype} {list(vectors.shape)}; expected numbers [n, dimension]"
        )


def check_ids(ids: pa.Array, source: str) -> None:
    """Raises a UserError that names an id which is there twice."""
    counts: Any = pc.value_counts(ids)
    if len(counts) != len(ids):
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise UserError(f"{source}: id {str(repeated)[:100]!r} occurs twice; expected one embedding an item")


def beside(path: pathlib.Path) -> pathlib.Path:
    """The ids of an .npy."""
    return path.with_suffix(".ids.txt")


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], tuple[list[str], np.ndarray]]:
    reader = {".npy": _npy, ".npz": _npz, ".parquet": _parquet, ".csv": _csv}.get(path.suffix.lower())
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected embeddings as {', '.join(SUFFIXES)}, or the folder of a store")
    if reader is None:
        raise UserError(f"{path}: expected embeddings as {', '.join(SUFFIXES)}, or the folder of an embedding store")
    return reader


@contextlib.contextmanager
def _telling_damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        said = "it holds objects of Python; save plain arrays" if "pickle" in str(error) else _damage(path)
        raise UserError(f"{path}: cannot be read as embeddings: {said}") from error


def _damage(path: pathlib.Path) -> str:
    suffix = path.suffix[1:].lower()
    if suffix not in ("csv", "parquet"):
        return f"it is no .{suffix} file, or not a whole one; copy it again"
    with contextlib.suppress(UnicodeDecodeError, OSError), path.open(encoding="utf-8") as file:
        return describe_damage(path, suffix, fields=len(next(csv.reader(file), [])))
    return describe_damage(path, suffix)


def _check_size(path: pathlib.Path, size: int) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{path}: {size / 2**30:.1f} GiB of numbers; the limit is {MAX_BYTES >> 30} GiB")


def _npy(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    ids = beside(path)
    if not ids.is_file():
        raise UserError(f"{path}: no {ids.name} beside it; expected the ids there, one a line, in the same order")
    _check_size(ids, ids.stat().st_size)
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)  # no more than the file is long
    _check_size(path, 4 * vectors.size)
    return ids.read_text(encoding="utf-8").removesuffix("\n").split("\n"), vectors


def _npz(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as arrays:
        ids, vectors = _npz_ids(arrays, path), arrays["embeddings"]
    if not isinstance(vectors, np.ndarray):  # numpy hands other members out raw
        raise ValueError("no .npy inside")
    return ids, vectors


def _npz_ids(arrays: Any, path: pathlib.Path) -> list[str]:
    if not {"ids", "embeddings"} <= set(arrays.files):
        raise UserError(f"{path}: holds {', '.join(arrays.files) or 'nothing'}; expected arrays ids and embeddings")
    ids = arrays["ids"]
    if not isinstance(ids, np.ndarray):
        raise ValueError("no .npy inside")
    if ids.ndim != 1 or ids.dtype.kind not in "Uiu":
        raise UserError(f"{path}: ids are {ids.dtype} {list(ids.shape)}; expected text [n]")
    return [str(item) for item in ids.tolist()]


def _parquet(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    schema = pq.read_schema(path)
    if "id" not in schema.names:
        raise UserError(f"{path}: columns are {', '.join(schema.names)[:200]}; expected id and embedding")
    rows = pq.read_metadata(path).num_rows
    if "embedding" not in schema.names:
        return _columns(pq.read_table(path), path, rows)
    table = pq.read_table(path, columns=["id", "embedding"])
    column: Any = table["embedding"].combine_chunks()
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise UserError(f"{path}: embedding is {kind}; expected a list of numbers")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise UserError(f"{path}: embedding holds nulls; leave those items out or embed them")
    dimension = len(values) // max(1, rows)
    lengths = np.asarray(pa.compute.list_value_length(column))
    if not rows or (lengths != dimension).any():
        found = ", ".join(map(str, np.unique(lengths)[:4].tolist())) or "no rows"
        raise UserError(f"{path}: embeddings of lengths {found}; expected one length, from 1")
    _check_size(path, 4 * len(values))
    return _ids(table, path), values.to_numpy(zero_copy_only=False).reshape(rows, dimension)


def _csv(path: pathlib.Path) -> tuple[list[str], np.ndarray]:
    with path.open(encoding="utf-8") as file:
        names = file.readline(1 << 22).rstrip("\r\n").split(",")
    if names[0].strip('"') != "id":
        raise UserError(f"{path}: first column is {names[0][:40]!r}; expected a header line id,v0,v1,...")
    _check_size(path, path.stat().st_size)
    options = pyarrow.csv.ConvertOptions(column_types={"id": pa.string()}, strings_can_be_null=False, null_values=[])
    table = pyarrow.csv.read_csv(path, convert_options=options)
    return _columns(table, path, table.num_rows)


def _columns(table: Any, path: pathlib.Path, rows: int) -> tuple[list[str], np.ndarray]:
    """id and one column a number, in the file's order."""
    names = [name for name in table.column_names if name != "id"]
    if not 1 <= len(names) <= MAX_DIMENSION:
        raise UserError(f"{path}: {len(names)} columns beside id; expected the numbers of an embedding")
    _check_names(names, path)
    _check_size(path, 4 * rows * len(names))
    vectors = np.empty((rows, len(names)), np.float32)
    for place, name in enumerate(names):
        column = table[name]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)) or column.null_count:
            raise UserError(f"{path}: column {name} is {column.type}, {column.null_count} nulls; expected numbers")
        with np.errstate(over="ignore"):  # too large for float32 is infinite, as in `read_embeddings`
            vectors[:, place] = column.to_numpy()
    return _ids(table, path), vectors


def _check_names(names: Sequence[str], path: pathlib.Path) -> None:
    """Refuses columns that are no numbers of an embedding by their names: an index of pandas, a price."""
    matches = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    stems = collections.Counter(match[1] for match in matches if match)
    stem = max(stems, key=lambda name: stems[name], default="")
    odd = [name for name, match in zip(names, matches, strict=True) if not match or match[1] != stem]
    numbers = [int(match[2]) for match in matches if match and match[1] == stem]
    if not odd and (numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers)))):
        odd = [f"{stem}{number}" for number in numbers[:4]]
    if odd:
        pandas = ", with to_parquet(..., index=False)" if any(_PANDAS_INDEX.fullmatch(name) for name in odd) else ""
        alike = f" and {len(numbers)} named {stem}{numbers[0]}, ..." if numbers else ""
        raise UserError(
            f"{path}: columns {', '.join(map(repr, odd[:4]))} beside id{alike}; expected id and the numbers of an "
            f"embedding alone, named alike and in order, such as v0, v1: leave the others out{pandas}"
        )


def _ids(table: Any, path: pathlib.Path) -> list[str]:
    column = table["id"]
    if not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_integer(column.type)
    ):
        raise UserError(f"{path}: id is {column.type}; expected text")
    if column.null_count:
        raise UserError(f"{path}: {column.null_count} rows without an id")
    return [str(item) for item in column.to_pylist()]
