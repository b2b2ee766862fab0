"""Vectors of a file as a memory map: what is not compressed lies there as numpy has it, so nothing is read until asked.

An .npz is a zip archive of .npy files. A Parquet column of fixed-size lists is a row of pages, each with a header (of
Thrift's compact protocol), a few bytes on where lists begin, and then the numbers
(https://parquet.apache.org/docs/file-format/data-pages/). pyarrow copies these even from a memory map.
"""

from __future__ import annotations

import mmap
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name
_PIECE = 1 << 22  # bytes read at a time
_DATA_PAGE, _DATA_PAGE_V2, _PLAIN = 0, 3, 0
_KINDS = {"float": "<f4", "double": "<f8", "halffloat": "<f2"}


class _Unmapped(Exception):
    """Something that a memory map cannot show."""


def map_npz(path: pathlib.Path, name: str) -> np.ndarray | None:
    """An array of an .npz, read-only, its checksum right; None where it is compressed, absent or nothing that maps.

    Raises:
      zipfile.BadZipFile, OSError, ValueError: a damaged file.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = [member for member in archive.infolist() if member.filename == f"{name}.npy"]
        if len(members) != 1 or members[0].compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(members[0]) as member:  # once through, for its checksum: a memory map has none
            while member.read(_PIECE):
                pass
        file.seek(members[0].header_offset)
        header = file.read(_LOCAL_HEADER)
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject or not all(shape):
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape)  # ValueError where the file is too short


def map_parquet(path: pathlib.Path, column: str) -> tuple[np.ndarray, ...] | None:
    """A column of fixed-size lists as arrays [n, size], one a page, read-only; None where it does not lie so: nulls,
    compression, an encoding, lists that run over the end of a page.

    Raises:
      pa.ArrowException, OSError: a damaged file.
    """
    file = pq.ParquetFile(path)
    try:
        kind: Any = file.schema_arrow.field(column).type
        dtype = np.dtype(_KINDS[str(kind.value_type)]) if pa.types.is_fixed_size_list(kind) else None
    except KeyError:
        return None
    if dtype is None:
        return None
    place = next(k for k in range(len(file.schema)) if file.schema.column(k).path.split(".")[0] == column)
    levels = file.schema.column(place).max_definition_level > 0
    parts: list[np.ndarray] = []
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            for group in range(file.metadata.num_row_groups):
                chunk = file.metadata.row_group(group).column(place)
                if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
                    return None
                for offset, count in _pages(content, chunk, dtype.itemsize, levels):
                    if count % kind.list_size:
                        return None
                    shape = (count // kind.list_size, kind.list_size)
                    parts.append(np.memmap(path, dtype, "r", offset, shape))
        except (_Unmapped, IndexError, ValueError):
            return None
    return tuple(parts) if sum(map(len, parts)) == file.metadata.num_rows and parts else None


def _pages(content: mmap.mmap, chunk: Any, itemsize: int, levels: bool) -> Iterator[tuple[int, int]]:
    """(offset of the numbers in the file, how many) of each page of a column chunk."""
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    while at < end:
        header, start = _struct(content, at)
        size = header[3]
        if header[1] == _DATA_PAGE:
            count, encoding = header[5][1], header[5][2]
            begin = start
            for _ in range(1 + levels):  # where lists begin, then what is null
                begin += 4 + int.from_bytes(content[begin : begin + 4], "little")
        elif header[1] == _DATA_PAGE_V2:
            count, encoding = header[8][1], header[8][4]
            begin = start + header[8][5] + header[8][6]
        else:
            raise _Unmapped
        # A null has no number, so fewer bytes are left.
        if encoding != _PLAIN or start + size - begin != count * itemsize:
            raise _Unmapped
        yield begin, count
        at = start + size


def _struct(content: mmap.mmap, at: int) -> tuple[dict[int, Any], int]:
    """({field: value} of a Thrift struct that begins here, where it ends)."""
    fields: dict[int, Any] = {}
    number = 0
    while kind := content[at]:
        at += 1
        if kind >> 4:
            number += kind >> 4
        else:
            number, at = _integer(content, at)
        match kind & 15:
            case 1 | 2:
                fields[number] = kind & 15 == 1
            case 4 | 5 | 6:
                fields[number], at = _integer(content, at)
            case 8:
                length, at = _varint(content, at)
                at += length
            case 12:
                fields[number], at = _struct(content, at)
            case _:
                raise _Unmapped
    return fields, at + 1


def _integer(content: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(content: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
