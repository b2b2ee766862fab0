"""Opens a table by the suffix of its name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO

from input_pipeline.catalogue.tables.table import FORMATS, Table
from input_pipeline.catalogue.tables.text_options import UTF8, TextOptions
from input_pipeline.catalogue.tables.text_table import open_delimited, open_jsonl
from input_pipeline.folder_or_zip import ZIP_ERRORS
from siglip_jax.errors import UserError


def open_table(open_file: Callable[[], IO[bytes]], *, name: str, text: TextOptions = UTF8) -> Table:
    """A table, checked.

    A tsv has no quoting: a field is what stands between two tabs. A csv has the usual double quotes. The columns of a
    jsonl are the keys of all its lines. Empty lines are no rows. Nothing (null, NaN, absent) is "". A row that is not
    of the table's encoding comes with the letters that could be read and the line it stands on.

    Args:
      open_file: gives the file anew, from its beginning; text is UTF-8, or what a byte order mark says.
      name: the file's name; its suffix tells the format.
      text: what the user says of the encoding and of what is between fields.

    Raises:
      UserError: the file cannot be parsed, a row has another number of fields than the header, or column names are
        empty or not distinct; options of text for a table that is none.
    """
    suffix = name.rpartition(".")[2].lower()
    text = text.checked()
    if suffix == "parquet" and text.encoding:
        raise UserError(f"{name}: --encoding is for tables of text; leave the flag out")
    if suffix in ("parquet", "jsonl") and text.separator:
        raise UserError(f"{name}: --separator is for .csv and .tsv; leave the flag out")
    if suffix == "parquet":
        from input_pipeline.catalogue.tables.parquet_table import ParquetTable

        return ParquetTable(open_file, name=name)
    if suffix not in FORMATS:
        raise UserError(f"{name}: not a table; expected one of {', '.join(f'.{f}' for f in FORMATS)}")
    try:
        with open_file() as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except UserError:
        raise
    except ZIP_ERRORS as error:  # a damaged member of a zip
        raise UserError(f"{name}: the table cannot be read ({error}); copy it again") from error
    if suffix == "jsonl":
        return open_jsonl(open_file, name, sha256, text)
    return open_delimited(open_file, name, suffix, sha256, text)
