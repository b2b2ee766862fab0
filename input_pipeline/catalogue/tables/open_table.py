"""Opens a table by the suffix of its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO

from input_pipeline.catalogue.tables.table import FORMATS, Table
from input_pipeline.catalogue.tables.text_table import open_delimited, open_jsonl
from siglip_jax.errors import UserError


def open_table(open_file: Callable[[], IO[bytes]], *, name: str) -> Table:
    """A table, checked.

    A tsv has no quoting: a field is what stands between two tabs. A csv has the usual double quotes. The columns of a
    jsonl are the keys of all its lines. Empty lines are no rows. Nothing (null, NaN, absent) is "". A row that is not
    UTF-8 comes with the letters that could be read and the line it stands on.

    Args:
      open_file: gives the file anew, from its beginning; text is UTF-8, with or without a byte order mark.
      name: the file's name; its suffix tells the format.

    Raises:
      UserError: the file cannot be parsed, a row has another number of fields than the header, or column names are
        empty or not distinct.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix == "parquet":
        from input_pipeline.catalogue.tables.parquet_table import ParquetTable

        return ParquetTable(open_file, name=name)
    if suffix not in FORMATS:
        raise UserError(f"{name}: not a table; expected one of {', '.join(f'.{f}' for f in FORMATS)}")
    with open_file() as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if suffix == "jsonl":
        return open_jsonl(open_file, name, sha256)
    return open_delimited(open_file, name, suffix, sha256)
