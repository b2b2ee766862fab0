"""What a build may go on with of the work it finds: the parts whose items and files are as they were."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Sequence

import pyarrow as pa

from input_pipeline.building import facts
from input_pipeline.building.stage import Stage, part_number
from input_pipeline.catalogue import Catalogue
from input_pipeline.folder_or_zip import PASSING_PROBLEMS
from input_pipeline.progress import progress as show_progress


def drop_changed(stage: Stage, catalogue: Catalogue, progress: bool) -> None:
    """Removes the parts whose items or files were changed since an earlier process checked them."""
    parts = stage.parts()
    compared = changed_parts(parts, catalogue)
    compared = show_progress(compared, total=len(parts), label="comparing", unit="parts", show=progress)
    changed = [part for part, is_changed in compared if is_changed]
    if changed:
        before = stage.rows()
        stage.drop(changed)
        again = f"{before - stage.rows()} of the {before} rows checked before"
        told = f"{stage.folder}: {again} are near one that has changed, or could not be read, and are checked again"
        print(told, file=sys.stderr, flush=True)


def changed_parts(parts: Sequence[pathlib.Path], catalogue: Catalogue) -> Iterator[tuple[pathlib.Path, bool]]:
    """Each part and whether its rows are no longer those of the catalogue, or were read from other files.

    A catalogue without keys has one identity for all it holds, so that nothing in it can have changed.
    """
    if not (parts and catalogue.has_keys):
        yield from ((path, False) for path in parts)
        return
    numbers = [part_number(path) for path in parts]
    firsts = [next(iter(facts.read_part(path, ["row"])["row"].to_pylist()), None) for path in parts]
    items = catalogue.items(pictures=False)
    item = next(items, None)
    for place, path in enumerate(parts):
        table = facts.read_part(path, ["row", "item_key", "detail", "more_problems"])
        keys = list(zip(table["row"].to_pylist(), table["item_key"].to_pylist(), strict=True))
        if not keys:  # rows that are there now are found with the part before
            yield path, False
            continue
        if place and numbers[place - 1] + 1 < numbers[place]:
            while item is not None and item.row < keys[0][0]:  # these are in no part
                item = next(items, None)
        is_followed = numbers[place + 1 : place + 2] == [numbers[place] + 1]
        later = next((first for first in firsts[place + 1 :] if first is not None), None)
        end = later if is_followed and later is not None else keys[-1][0] + 1
        found = []
        while item is not None and item.row < end:
            found.append((item.row, catalogue.item_key(item)))
            item = next(items, None)
        yield path, found != keys or _had_passing_problem(table)


def _had_passing_problem(table: pa.Table) -> bool:
    """Whether a picture could not be read, which its stamp does not tell."""
    texts = [
        *table["detail"].to_pylist(),
        *(text for texts in table["more_problems"].to_pylist() for text in texts or ()),
    ]
    return any(mark in text for text in texts if text for mark in PASSING_PROBLEMS)
