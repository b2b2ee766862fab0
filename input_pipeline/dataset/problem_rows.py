"""The rows that a build left out, as `problems.csv` beside the dataset lists them."""

from __future__ import annotations

import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from siglip_jax.errors import UserError

FILE = "problems.csv"
SCHEMA = pa.schema({"row": pa.int64(), "id": pa.string(), "kind": pa.string(), "detail": pa.string()})
FURTHER = "further picture: "
_LONGEST_LINE = 2**26  # bytes: a row may be left out for an id that never ends


def read_problems(path: pathlib.Path) -> pa.Table:
    """The rows left out, of `SCHEMA`; none where there is no file.

    Raises:
      UserError: a damaged file.
    """
    if not path.exists():
        return SCHEMA.empty_table()
    options: dict[str, Any] = dict(
        read_options=csv.ReadOptions(block_size=_LONGEST_LINE),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=SCHEMA, include_columns=SCHEMA.names, strings_can_be_null=False
        ),
    )
    try:
        table = csv.read_csv(path, **options)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable ({str(error)[:120]}); build the dataset again") from error
    return table.filter(pc.invert(pc.starts_with(table["kind"], FURTHER)))
