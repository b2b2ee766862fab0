"""A store as a batch for Vertex AI Vector Search: a flat folder of JSON lines, and what to delete of the batch before.

    batch/part-00000.json    {"id", "embedding", "restricts": [{"namespace", "allow"}], "numeric_restricts":
                             [{"namespace", "value_int" or "value_float"}], "crowding_tag"}
    batch/delete/ids.txt     ids that are no longer there, one a line

https://cloud.google.com/vertex-ai/docs/vector-search/setup/format-structure
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.embeddings.dumps.aside import written_aside
from eval.embeddings.dumps.item_facts import ItemFacts
from eval.embeddings.pictures import has_picture_rows, item_and_picture
from eval.embeddings.store_shards import ShardRows
from eval.embeddings.stored_rows import StoredRows, update_differences
from siglip_jax.errors import UserError

MAX_FILES = 5000  # of a batch
ROWS_PER_FILE = 10_000  # 100 MB of 768 numbers


@dataclass(frozen=True)
class Restricts:
    """What a search may ask of an item.

    Attributes:
      facts: of the items.
      names: attributes whose text is compared; of an item without a value there is none.
      numeric: attributes that are numbers.
      crowding: attribute of which a search may ask for few of one value, such as the product; "" for none.
    """

    facts: ItemFacts
    names: Sequence[str] = ()
    numeric: Sequence[str] = ()
    crowding: str = ""

    def __post_init__(self) -> None:
        self.facts.check(self.names, flag="restrict")
        self.facts.check(self.numeric, flag="numeric")
        self.facts.check([self.crowding] * bool(self.crowding), flag="crowding")

    def numbers(self) -> dict[str, tuple[str, list[int | float | None]]]:
        """{attribute: ("value_int" or "value_float", a number of each row)}: a namespace has numbers of one kind.

        Raises:
          UserError: a value that is no number.
        """
        return {name: _numbers(name, self.facts) for name in self.numeric}


def write_vertex(
    store: StoredRows,
    output: str | os.PathLike,
    *,
    restricts: Restricts | None = None,
    since: StoredRows | None = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> str:
    """Writes a batch that replaces an index, or with `since` one that brings an index up to date.

    Of a store with a row for each picture, the crowding tag is the item, unless `restricts` has another.

    Args:
      since: the store that the index has. Items that are gone go to `delete/`. Without `restricts` only items that are
        new or have another vector are written; with them all are, since attributes may have changed.

    Returns:
      What was written, in a line.

    Raises:
      UserError: more than 5,000 files, an id that is no line, a store of another encoder, equal stores, a folder that
        is there already.
    """
    output = pathlib.Path(output)
    count = store.manifest["count"]
    if (files := math.ceil(count / rows_per_file)) > MAX_FILES:
        raise UserError(
            f"{files:,} files for {count:,} items; Vertex AI takes {MAX_FILES:,}: give --rows_per_file="
            f"{math.ceil(count / MAX_FILES)} or more"
        )
    gone: list[str] = []
    if since is not None:
        if different := update_differences(store.manifest, since.manifest):
            raise UserError(
                f"--since: that store was made in another way ({'; '.join(different[:3])}), so each vector is another "
                "one; leave --since out, and overwrite the index"
            )
        gone = [item for item in since.places if item not in store.places]
    if broken := [item for item in (*store.places, *gone) if len(item.splitlines()) != 1]:
        raise UserError(
            f"id {broken[0]!r} holds a line break, which Vertex AI cannot delete; embed it under another id"
        )
    if restricts:
        restricts = replace(restricts, facts=restricts.facts.of_store(store))
    unknown = restricts.facts.describe_unknown(list(store.places)) if restricts else ""
    with written_aside(output) as aside:
        folder = aside / output.name
        folder.mkdir()
        if gone:
            (folder / "delete").mkdir()
            (folder / "delete" / "ids.txt").write_text("\n".join(gone) + "\n", encoding="utf-8")
        written = 0
        lines = _lines(store, restricts, None if restricts else since)
        for number, numbered in itertools.groupby(enumerate(lines), key=lambda each: each[0] // rows_per_file):
            with (folder / f"part-{number:05d}.json").open("w", encoding="utf-8") as part:
                for _, line in numbered:
                    part.write(line)
                    written += 1
        if not written and not gone:
            raise UserError("--since: both stores hold the same, so there is nothing to bring up to date")
    count, numbers = math.ceil(written / rows_per_file), store.manifest["dimension"]
    said = f"{written} items of {numbers} numbers in {count} file{'s' * (count != 1)} of {output}"
    if since is not None:
        said += f", {len(gone)} to delete"
    return said + (f"; {unknown}" if unknown else "")


def _lines(store: StoredRows, restricts: Restricts | None, since: StoredRows | None) -> Iterator[str]:
    """A JSON object an item; with `since`, of those alone that are new or have another vector there."""
    numbers_of = restricts.numbers() if restricts else {}
    of_pictures = has_picture_rows(store.manifest) and not (restricts and restricts.crowding)
    for rows in store.shards():
        vectors = rows.vectors()
        digits = ",".join(["%.9g"] * vectors.shape[1])  # so many tell each float32 from the next
        for row in range(len(rows.ids)) if since is None else _changed(rows, since):
            item = json.dumps(rows.ids[row], ensure_ascii=False)
            fields = _fields(rows.ids[row], restricts, numbers_of) if restricts else {}
            if of_pictures:
                fields["crowding_tag"] = item_and_picture(rows.ids[row], store.places)[0]
            more = ", " + json.dumps(fields, ensure_ascii=False)[1:-1] if fields else ""
            yield f'{{"id": {item}, "embedding": [{digits % tuple(vectors[row].tolist())}]{more}}}\n'


def _fields(item: str, restricts: Restricts, numbers_of: Mapping[str, tuple[str, list[Any]]]) -> dict[str, Any]:
    facts, fields = restricts.facts, dict[str, Any]()
    row = facts.rows.get(item)
    if row is None:
        return fields
    of = [(name, facts.attributes[name][row]) for name in restricts.names]
    if allowed := [{"namespace": name, "allow": [value]} for name, value in of if value]:
        fields["restricts"] = allowed
    numbers = [(name, kind, values[row]) for name, (kind, values) in numbers_of.items()]
    if compared := [{"namespace": name, kind: value} for name, kind, value in numbers if value is not None]:
        fields["numeric_restricts"] = compared
    if restricts.crowding and (tag := facts.attributes[restricts.crowding][row]):
        fields["crowding_tag"] = tag
    return fields


def _changed(rows: ShardRows, since: StoredRows) -> list[int]:
    """Those that are not in the other store, or have another vector there."""
    both = [row for row, item in enumerate(rows.ids) if item in since.places]
    equal: set[int] = set()
    if both:
        old = since.take(np.array([since.places[rows.ids[row]] for row in both])).vectors()
        same = (old == rows.vectors()[both]).all(axis=1)
        equal = {row for row, is_same in zip(both, same, strict=True) if is_same}
    return [row for row in range(len(rows.ids)) if row not in equal]


def _numbers(name: str, facts: ItemFacts) -> tuple[str, list[int | float | None]]:
    texts = facts.attributes[name]
    try:
        whole: list[int | float | None] = [int(text) if text else None for text in texts]
        if all(number is None or abs(number) < 2**63 for number in whole):
            return "value_int", whole
    except ValueError:
        pass
    found: list[int | float | None] = []
    for item, text in zip(facts.rows, texts, strict=False):  # further pictures come after the items
        try:
            number = float(text) if text else None
        except ValueError:
            number = math.nan
        if number is not None and not abs(number) <= float(np.finfo(np.float32).max):
            raise UserError(f"--numeric={name}: item {item!r} has {text!r}; expected a number")
        found.append(number)
    return "value_float", found


def restricts_of(facts: ItemFacts, *, names: Sequence[str], numeric: Sequence[str], crowding: str) -> Restricts:
    """Where no names are given, all attributes but those of the other two."""
    chosen = names or [name for name in facts.attributes if name not in numeric and name != crowding]
    return Restricts(facts, chosen, numeric, crowding)
