"""What a dataset holds and what should be looked at before anyone trains on it: duplicates, sizes, titles, attributes.

Everything is counted over the table of its rows (`item_table`), a column at a time; of what is found, the audit has the
counts and the first examples, so that it stays small whatever the number of rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.groups import first_rows
from input_pipeline.perceptual import NEAR, near_groups, signatures
from input_pipeline.scripts import main_scripts
from input_pipeline.split import normalise_title

EXAMPLES = 20  # of each kind
GROUPS, MEMBERS = 9, 8  # groups told, and rows of each
VALUES = 8  # of an attribute
BINS = 24
_TITLES_AT_ONCE = 8192  # for the tokenizer
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


def audit_table(table: pa.Table, *, near: int | None = NEAR, tokens: Tokens | None = None) -> dict[str, Any]:
    """The audit of a table of rows, in JSON's own types.

    Args:
      table: as `item_table` gives it.
      near: bits in which the signatures of pictures that look alike may differ, see `near_pictures`; None looks for
        equal bytes alone.
      tokens: counts tokens too.

    Returns:
      rows, kept, splits {name: rows}; problems {kind: {count, examples}}; images {equal, near}, each as `_groups` tells
      them; titles {repeated, scripts, mixed_scripts, characters, tokens}; sizes {shorter_side, aspect_ratio, bytes},
      each a `_histogram` with the rows at its two ends; formats; attributes. A row is told as {place, id, title, split,
      height, width, bytes}, its place being the index in `table`.
    """
    place = np.flatnonzero(pc.equal(table["kind"], "").to_numpy(zero_copy_only=False))
    kept = table.take(pa.array(place))
    tell = _Teller(kept, place)
    pictures = first_rows(_codes(kept["image_sha256"]))
    titles = kept["title"].to_pylist()
    title_groups = first_rows(_codes(pa.array([normalise_title(title) for title in titles], pa.string())))
    images = {"equal": _groups(pictures, tell, differing=title_groups)}
    if near is not None:
        groups = near_groups(signatures(kept["image_signature"]), distance=near)
        images["near"] = {"distance": near, **_groups(groups, tell, differing=pictures, least=2)}
    height, width = (kept[side].to_numpy().astype(np.float64) for side in ("height", "width"))
    sizes = {
        "shorter_side": np.minimum(height, width),
        "aspect_ratio": width / height,
        "bytes": kept["bytes"].to_numpy(),
    }
    return {
        "rows": len(table),
        "kept": len(kept),
        "splits": _counts(kept["split"]),
        "problems": _problems(table),
        "images": images,
        "titles": _titles(titles, title_groups, tell, tokens),
        "sizes": {
            name: {**_histogram(values, logarithmic=True), **_ends(values, tell, name)}
            for name, values in sizes.items()
        },
        "formats": _counts(kept["format"]),
        "attributes": _attributes(kept),
    }


class _Teller:
    """Rows of a table as small dicts."""

    def __init__(self, table: pa.Table, place: np.ndarray):
        self.table, self.place = table.select(["id", "title", "split", "height", "width", "bytes"]), place
        self.split_codes = _codes(table["split"])

    def __call__(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        rows = np.asarray(rows, np.int64)
        lines = self.table.take(pa.array(rows)).to_pylist()
        for line, row in zip(lines, rows.tolist(), strict=True):
            line["title"] = _shown(line["title"])
            line["place"] = int(self.place[row])
        return lines


def _groups(groups: np.ndarray, tell: _Teller, *, differing: np.ndarray, least: int = 1) -> dict[str, Any]:
    """Rows that are one in some way, and are told in groups.

    Args:
      groups: int64 [n], equal for rows of one group.
      differing: int64 [n], in what else the rows of a group may differ.
      least: distinct values of these that a group needs to be among those told.

    Returns:
      groups and rows: those of more than one row; more: rows beyond the first of each; across_splits: groups in several
      splits; crossing: the largest of these, those with rows that differ first, as {size, distinct, rows}, rows that
      differ first; largest: the same of groups in one split.
    """
    labels, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    variety = _distinct_by(inverse, differing, len(labels))
    crossing = _distinct_by(inverse, tell.split_codes, len(labels)) > 1
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
    pairs = np.unique(np.stack([groups, values]), axis=1) if len(groups) else np.zeros((2, 0), np.int64)
    return np.bincount(pairs[0], minlength=count)


def _repeats(values: np.ndarray) -> np.ndarray:
    """0 for the first row with each value, 1 for the second, ..."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return ranks


def _problems(table: pa.Table) -> dict[str, Any]:
    found = {}
    for kind, count in _counts(table["kind"]).items():
        if kind:
            first = table.filter(pc.equal(table["kind"], kind)).slice(0, EXAMPLES)
            examples = first.select(["row", "id", "title", "detail"]).to_pylist()
            found[kind] = {"count": count, "examples": [line | {"title": _shown(line["title"])} for line in examples]}
    return found


def _titles(titles: list[str], groups: np.ndarray, tell: _Teller, tokens: Tokens | None) -> dict[str, Any]:
    characters = np.array([len(title) for title in titles], np.int64)
    scripts, mixed = main_scripts(titles)
    ends = _ends(characters, tell, "characters")
    found = {
        "repeated": _groups(groups, tell, differing=np.arange(len(groups))),
        "scripts": scripts,
        "mixed_scripts": mixed,
        "characters": {**_histogram(characters), **ends},
    }
    if tokens is not None:
        pieces = (titles[start : start + _TITLES_AT_ONCE] for start in range(0, len(titles), _TITLES_AT_ONCE))
        lengths = np.array([len(ids) + 1 for some in pieces for ids in tokens.encode(some)], np.int64)
        cut = np.flatnonzero(lengths > tokens.text_length)
        longest = cut[np.argsort(-lengths[cut], kind="stable")][:EXAMPLES]
        lines = [line | {"tokens": int(lengths[row])} for line, row in zip(tell(longest), longest, strict=True)]
        found["tokens"] = {
            **_histogram(lengths), "text_length": tokens.text_length, "cut": len(cut), "examples": lines,
        }  # fmt: skip
    return found


def _ends(values: np.ndarray, tell: _Teller, name: str) -> dict[str, Any]:
    """The rows with the smallest and the largest values, where these differ."""
    if not len(values) or values.min() == values.max():
        return {"lowest": [], "highest": []}
    count = min(EXAMPLES, len(values))
    ends = {}
    for end, signed in (("lowest", values), ("highest", -values)):
        some = np.argpartition(signed, count - 1)[:count] if count < len(values) else np.arange(len(values))
        some = some[np.lexsort((some, signed[some]))]
        ends[end] = [line | {name: values[row].item()} for line, row in zip(tell(some), some, strict=True)]
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


def _attributes(table: pa.Table) -> list[dict[str, Any]]:
    if "attributes" not in table.column_names:
        return []
    found = []
    column = table["attributes"]
    for field in column.type:
        values = pc.fill_null(pc.struct_field(column, field.name), "")
        counts = pc.value_counts(values.combine_chunks())
        order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")
        common, numbers = [], counts.field("counts").to_numpy()
        empty = 0
        place = pc.index(counts.field("values"), "").as_py()
        if place >= 0:
            empty = int(numbers[place])
            order = order[order != place]
        for number in order[:VALUES].tolist():
            common.append({"value": _shown(counts.field("values")[number].as_py()), "count": int(numbers[number])})
        found.append({"name": field.name, "distinct": len(order), "empty": empty, "common": common})
    return found


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """{value: rows}, most frequent first."""
    pairs = pc.value_counts(pc.fill_null(column, "").combine_chunks()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in sorted(pairs, key=lambda pair: -pair["counts"])}


def _codes(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64 [n]: equal numbers for equal texts."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pc.fill_null(column, "").dictionary_encode().indices.to_numpy().astype(np.int64)


def _shown(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _TITLE_SHOWN else text[:_TITLE_SHOWN] + "…"
