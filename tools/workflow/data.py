"""A catalogue in any layout becomes a dataset."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from input_pipeline.audit.hygiene import sentence
from input_pipeline.building import build_dataset
from input_pipeline.building.problems import told_problems
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.tables.text_options import UTF8, TextOptions
from siglip_jax.errors import UserError
from tools.workflow.termination import terminable


def build_data(
    catalog: str | Sequence[str],
    output: epath.PathLike,
    *,
    layout: str = "catalog",
    columns: Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    text: TextOptions = UTF8,
    dots_in_keys: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """A catalogue in any of the layouts, or the public fashion one -> a dataset; prints and returns the audit.

    `options` are those of `build_dataset`.
    """
    with tempfile.TemporaryDirectory() as temporary, terminable():
        source = catalog
        if layout == "fashion":
            if not isinstance(source, str):
                raise UserError(f"--catalog={source[1]}: the fashion layout is one folder or zip; give --catalog once")
            if text != UTF8 or dots_in_keys:
                raise UserError("--layout=fashion: its styles.csv is UTF-8; leave --encoding and the like out")
            from input_pipeline.catalogue.fashion import convert_fashion

            counts = convert_fashion(pathlib.Path(source), temporary)
            print(f"fashion layout: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
            source = temporary
        catalogue = read_catalogue(source, columns=columns, keys=keys, text=text, dots_in_keys=dots_in_keys)
        for note in catalogue.notes:
            print(f"note: {note}")
        audit = build_dataset(catalogue, output, **options)
    if audit["not_chosen"]:
        print(f"{audit['not_chosen']} rows of other attributes not looked at")
    splits = ", ".join(f"{count} {name}" for name, count in audit["splits"].items())
    for note in audit["notes"]:
        if note not in catalogue.notes:  # these were said before
            print(f"note: {note}")
    print(f"{audit['kept']} of {audit['rows']} rows kept: {splits}")
    if audit["problems"]:
        print(f"left out: {told_problems(audit)}")
    if audit["more_image_problems"]:
        found = ", ".join(f"{count} {kind}" for kind, count in audit["more_image_problems"].items())
        print(f"further pictures left out of rows kept: {found}")
    for accident in audit["contents"]["accidents"]:
        print(f"look at: {sentence(accident)}")
    if converted := {name: count for name, count in audit["contents"]["formats"].items() if name.endswith(" as PNG")}:
        found = ", ".join(f"{count} {name}" for name, count in converted.items())
        print(f"stored with the same pixels, in a format that every consumer reads: {found}")
    print(f"dataset {output}, audit {pathlib.Path(output) / 'audit.html'}")
    return audit
