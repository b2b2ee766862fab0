"""What a dataset holds and what should be looked at before anyone trains on it: duplicates, sizes, titles, attributes.

Everything is counted over the table of its rows (`item_table`), of which one column at a time is in memory; of what is
found, the audit has the counts and the first examples, so that it stays small whatever the number of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.audit.hygiene import find_accidents
from input_pipeline.audit.writing_scripts import main_scripts
from input_pipeline.dataset.item_table import ItemColumns
from input_pipeline.duplicates.groups import first_rows
from input_pipeline.duplicates.near_images import NEAR, near_groups, signatures
from input_pipeline.duplicates.normalised_titles import normalise_title

EXAMPLES = 20  # of each kind
GROUPS, MEMBERS = 9, 8  # groups told, and rows of each
VALUES = 8  # of an attribute
BINS = 24
_TITLES_AT_ONCE = 8192  # as Python's strings
_TITLE_SHOWN = 300  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """How titles become tokens, for counting those that are cut.

    Attributes:
      encode: titles -> ids, without an end token.
      text_length: tokens a model takes, with the end token.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    text_length: int


def audit_table(
    table: pa.Table | ItemColumns, *, near: int | None = NEAR, tokens: Tokens | None = None
) -> dict[str, Any]:
    """The audit of a table of rows, in JSON's own types.

    Args:
      table: as `item_table` or `open_columns` gives it.
      near: bits in which the signatures of pictures that look alike may differ, see `near_image_pairs`; None looks for
        equal bytes alone.
      tokens: counts tokens too.

    Returns:
      rows, kept, splits {name: rows}; accidents, see `find_accidents`; problems {kind: {count, examples}}; images
      {equal, near}, each as `_groups` tells
      them; titles {repeated, scripts, mixed_scripts, characters, tokens}; sizes {shorter_side, aspect_ratio, bytes},
      each a `_histogram` with the rows at its two ends; formats; attributes. A row is told as {place, id, title, split,
      height, width, bytes}, its place being the index in `table`.
    """
    columns = ItemColumns(table) if isinstance(table, pa.Table) else table
    kinds = columns.column("kind", only_kept=False)
    tell = _Teller(columns, np.flatnonzero(pc.equal(kinds, "").to_numpy()))
    splits = columns.column("split")
    split_codes, split_counts = _codes(splits), _counts(splits)
    del splits
    pictures = first_rows(_codes(columns.column("image_sha256")))
    titles = columns.column("title")
    title_groups = first_rows(_codes(_normalised(titles)))
    images = {"equal": _groups(pictures, tell, split_codes, differing=title_groups)}
    if near is not None:
        groups = near_groups(signatures(columns.column("image_signature")), distance=near)
        images["near"] = {"distance": near, **_groups(groups, tell, split_codes, differing=pictures, least=2)}
    height, width = (columns.column(side).to_numpy().astype(np.float64) for side in ("height", "width"))
    sizes = {
        "shorter_side": np.minimum(height, width),
        "aspect_ratio": width / height,
        "bytes": columns.column("bytes").to_numpy(),
    }
    audit = {
        "rows": len(kinds),
        "kept": len(titles),
        "splits": split_counts,
        "problems": _problems(columns, kinds),
        "images": images,
        "titles": {
            "repeated": _groups(title_groups, tell, split_codes, differing=np.arange(len(title_groups))),
            **_texts(titles, tell, tokens),
        },
        "sizes": {
            name: {**_histogram(values, logarithmic=True), **_ends(values, tell, name)}
            for name, values in sizes.items()
        },
        "accidents": find_accidents(columns.column("id"), titles, columns.column("format"), np.minimum(height, width)),
        "formats": _counts(columns.column("format")),
        "attributes": [_attribute(name, columns.attribute(name)) for name in columns.attribute_names],
    }
    tell.fill_in()
    return audit


class _Teller:
    """Rows as small dicts, all of whose texts and numbers are filled in by one look at each column."""

    def __init__(self, columns: ItemColumns, place: np.ndarray):
        self._columns, self._place = columns, place
        self._lines: list[tuple[int, dict[str, Any]]] = []

    def __call__(self, rows: Sequence[int] | np.ndarray, **values: np.ndarray) -> list[dict[str, Any]]:
        """The dicts of rows among those kept, with what `values` has of each row by its index."""
        lines = [
            {"place": int(self._place[row]), **{name: column[row].item() for name, column in values.items()}}
            for row in np.asarray(rows, np.int64).tolist()
        ]
        self._lines += zip(np.asarray(rows, np.int64).tolist(), lines, strict=True)
        return lines

    def fill_in(self) -> None:
        rows = pa.array([row for row, _ in self._lines], pa.int64())
        for name in ("id", "title", "split", "height", "width", "bytes"):
            values = self._columns.column(name).take(rows).to_pylist()
            for (_, line), value in zip(self._lines, values, strict=True):
                line[name] = _shown(value) if name == "title" else value


def _groups(
    groups: np.ndarray, tell: _Teller, splits: np.ndarray, *, differing: np.ndarray, least: int = 1
) -> dict[str, Any]:
    """Rows that are one in some way, and are told in groups.

    Args:
      groups: int64 [n], equal for rows of one group.
      splits: int64 [n], of each row.
      differing: int64 [n], in what else the rows of a group may differ.
      least: distinct values of these that a group needs to be among those told.

    Returns:
      groups and rows: those of more than one row; more: rows beyond the first of each; across_splits: groups in several
      splits; crossing: the largest of these, those with rows that differ first, as {size, distinct, rows}, rows that
      differ first; largest: the same of groups in one split.
    """
    labels, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    variety = _distinct_by(inverse, differing, len(labels))
    crossing = _distinct_by(inverse, splits, len(labels)) > 1
    several = sizes > 1
    order = np.argsort(inverse, kind="stable")
    starts = np.cumsum(sizes) - sizes

    def told(chosen: np.ndarray) -> list[dict[str, Any]]:
        chosen = chosen[variety[chosen] >= least]
        ranked = chosen[np.lexsort((chosen, -sizes[chosen], variety[chosen] <= 1))][:GROUPS]
        found = []
        for group in ranked.tolist():
            members = order[starts[group] : starts[group] + sizes[group]]
            members = members[np.lexsort((members, _repeats(differing[members])))][:MEMBERS]
            found.append({"size": int(sizes[group]), "distinct": int(variety[group]), "rows": tell(members)})
        return found

    return {
        "groups": int(several.sum()),
        "rows": int(sizes[several].sum()),
        "more": int((sizes - 1).sum()),
        "across_splits": int((several & crossing).sum()),
        "largest": told(np.flatnonzero(several & ~crossing)),
        "crossing": told(np.flatnonzero(several & crossing)),
    }


def _distinct_by(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """int64 [count]: how many distinct values each group has."""
    base = values.max(initial=0) + 1  # both count rows at most, so that a pair is one number
    return np.bincount(np.unique(groups * base + values) // base, minlength=count)


def _repeats(values: np.ndarray) -> np.ndarray:
    """0 for the first row with each value, 1 for the second, ..."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return ranks


def _problems(columns: ItemColumns, kinds: pa.ChunkedArray) -> dict[str, Any]:
    found: dict[str, Any] = {kind: {"count": count, "examples": []} for kind, count in _counts(kinds).items() if kind}
    waiting = set(found)
    for batch in columns.batches(["row", "id", "title", "kind", "detail"]):
        if not waiting:
            break
        for line in batch.filter(pc.is_in(batch.column("kind"), pa.array(waiting, pa.string()))).to_pylist():
            kind = line.pop("kind")
            if kind in waiting:
                found[kind]["examples"].append(line | {"title": _shown(line["title"])})
                if len(found[kind]["examples"]) == EXAMPLES:
                    waiting.remove(kind)
    return found


def _texts(titles: pa.ChunkedArray, tell: _Teller, tokens: Tokens | None) -> dict[str, Any]:
    characters = pc.utf8_length(titles).to_numpy().astype(np.int64)
    scripts, mixed = main_scripts(title for some in _pieces(titles) for title in some)
    ends = _ends(characters, tell, "characters")
    found = {"scripts": scripts, "mixed_scripts": mixed, "characters": {**_histogram(characters), **ends}}
    if tokens is not None:
        lengths = np.array([len(ids) + 1 for some in _pieces(titles) for ids in tokens.encode(some)], np.int64)
        cut = np.flatnonzero(lengths > tokens.text_length)
        longest = cut[np.argsort(-lengths[cut], kind="stable")][:EXAMPLES]
        found["tokens"] = {
            **_histogram(lengths), "text_length": tokens.text_length, "cut": len(cut),
            "examples": tell(longest, tokens=lengths),
        }  # fmt: skip
    return found


def _normalised(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = (pa.array([normalise_title(title) for title in some], pa.string()) for some in _pieces(titles))
    return pa.chunked_array(list(chunks), pa.string())


def _pieces(titles: pa.ChunkedArray) -> Iterator[list[str]]:
    """The titles as Python's strings, some thousand at a time."""
    for start in range(0, len(titles), _TITLES_AT_ONCE):
        yield titles.slice(start, _TITLES_AT_ONCE).to_pylist()


def _ends(values: np.ndarray, tell: _Teller, name: str) -> dict[str, Any]:
    """The rows with the smallest and the largest values, where these differ."""
    if not len(values) or values.min() == values.max():
        return {"lowest": [], "highest": []}
    count = min(EXAMPLES, len(values))
    ends = {}
    for end, signed in (("lowest", values), ("highest", -values)):
        some = np.argpartition(signed, count - 1)[:count] if count < len(values) else np.arange(len(values))
        some = some[np.lexsort((some, signed[some]))]
        ends[end] = tell(some, **{name: values})
    return ends


def _histogram(values: np.ndarray, *, logarithmic: bool = False) -> dict[str, Any]:
    """Of numbers [n]: smallest, median, largest, and counts between edges; all beyond the last but one edge in one bin.

    The bins are equally wide, of logarithms where so asked, and reach over all but the outermost thousandths.
    """
    if not len(values):
        return {"smallest": None, "median": None, "largest": None, "edges": [], "counts": []}
    values = np.asarray(values, np.float64)
    low, median, high = np.quantile(values, [0.001, 0.5, 0.999])
    if low == high:
        low, high = values.min(), values.max()
    if logarithmic:
        edges = np.geomspace(low, high, BINS + 1) if high > low else np.array([low, high])
    else:
        width = max(1, int(np.ceil((high - low + 1) / BINS)))  # whole numbers have bins of whole numbers
        edges = np.arange(np.floor(low), high + 1 + width, width)
    edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    counts = np.histogram(values, edges)[0] if edges[-1] > edges[0] else np.array([len(values)])
    return {
        "smallest": values.min().item(), "median": median.item(), "largest": values.max().item(),
        "edges": edges.tolist(), "counts": counts.tolist(),
    }  # fmt: skip


def _attribute(name: str, values: pa.ChunkedArray) -> dict[str, Any]:
    counts = _value_counts(values)
    numbers = counts.field("counts").to_numpy()
    order = np.argsort(-numbers, kind="stable")
    empty = 0
    place = pc.index(counts.field("values"), "").as_py()
    if place >= 0:
        empty = int(numbers[place])
        order = order[order != place]
    common = [
        {"value": _shown(counts.field("values")[number].as_py()), "count": int(numbers[number])}
        for number in order[:VALUES].tolist()
    ]
    return {"name": name, "distinct": len(order), "empty": empty, "common": common}


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """{value: rows}, most frequent first."""
    pairs = _value_counts(column).to_pylist()
    return {pair["values"]: pair["counts"] for pair in sorted(pairs, key=lambda pair: -pair["counts"])}


def _value_counts(column: pa.ChunkedArray) -> pa.StructArray:
    return pc.value_counts(pc.fill_null(column, ""))


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: equal numbers for equal texts."""
    column = pc.fill_null(column, "") if column.null_count else column
    chunks = column.dictionary_encode().chunks  # which share one dictionary
    return np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)]).astype(np.int64)


def _shown(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _TITLE_SHOWN else text[:_TITLE_SHOWN] + "…"
