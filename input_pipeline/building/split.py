"""Train and test splits that share no title and no picture, nor what else is asked for; by chance or by time.

Shops list one product many times: colours and sizes under one title, one photo under several titles. A split by row
would put copies of test items into training and make every encoder look better than it is.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.duplicates.groups import connected, value_codes
from input_pipeline.duplicates.normalised_titles import normalise_title
from siglip_jax.errors import UserError

KEYS = ("title", "image")
NEAR_KEY = "near"  # groups of pictures that look alike, as `near_groups` numbers them
TRAIN = "train"  # of a split by time, what is before the first moment
OUT = -1  # in no split
WIDE_ROWS, WIDE_SHARE = 20, 0.02  # a title or image in more rows than both is no sign of one product
_AT_ONCE = 2**16  # groups whose titles are Python strings at a time
MAX_NAME = 64  # letters of a split's name, which becomes part of file names


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How rows are divided: by chance (`fractions`, `seed`) or, where `times` is not empty, by time.

    Attributes:
      fractions: split name -> share, see `split_groups`; empty where the split is by time.
      seed: of the split by chance.
      by: keys that keep rows together, see `linked_groups`: "title", "image", "near", names of attributes.
      time_column: the attribute that tells when.
      times: {split: its first moment, as text}; what is before the first is "train". See `split_by_time`.
    """

    fractions: Mapping[str, float]
    seed: int = 0
    by: tuple[str, ...] = KEYS
    time_column: str = ""
    times: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [TRAIN, *self.times] if self.times else list(self.fractions)

    def check(self, attribute_names: Sequence[str] | None) -> None:
        """Refuses, as a `UserError`, what cannot be followed; names of attributes only where these are known."""
        if bool(self.times) != bool(self.time_column):
            raise UserError(
                "split by time: give both the column that holds the time (--time_column) and the moment to split at "
                "(--split_time)"
            )
        if self.times and self.fractions:
            raise UserError("splits by share and by time; give either")
        if self.times:
            check_moments(self.times)
        else:
            check_fractions(self.fractions)
        if not self.by:
            raise UserError("split by nothing; expected title, image, near or attributes, such as title,image,seller")
        if attribute_names is not None:
            known = ", ".join(attribute_names) or "none"
            for key in self.by:
                if key not in (*KEYS, NEAR_KEY, *attribute_names):
                    raise UserError(f"split by {key}: expected title, image, near or an attribute; attributes: {known}")
            if self.time_column and self.time_column not in attribute_names:
                raise UserError(f"time column {self.time_column}: no such attribute; there are {known}")


def connected_groups(titles: Sequence[str], image_hashes: Sequence[str]) -> np.ndarray:
    """int64 [n]: rows linked by an equal normalised title or an equal picture, directly or through others.

    The number of a group is the index of its first row.
    """
    titles = [normalise_title(title) for title in titles]
    columns = {"title": pa.array(titles, pa.string()), "image": pa.array(list(image_hashes), pa.string())}
    return linked_groups(columns, KEYS)


def split_groups(
    titles: Sequence[str], image_hashes: Sequence[str], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """A split name for each row; rows linked by title or picture (`connected_groups`) get the same one.

    A group goes where the hash of (seed, its smallest normalised title) falls among the cumulative fractions. So the
    order of rows does not matter, and rows added later move no group they are not linked to. Fractions are met on
    average over groups, not exactly.

    Args:
      titles, image_hashes: [n] each.
      fractions: split name -> share, positive, summing to 1.
      seed: another seed, another split.
    """
    columns = {
        "title": pa.array([normalise_title(title) for title in titles], pa.string()),
        "image": pa.array(list(image_hashes), pa.string()),
    }
    splits, _ = split_rows(columns, fractions=fractions, seed=seed)
    names = list(fractions)
    return [names[split] for split in splits]


def split_rows(
    columns: Mapping[str, pa.Array | pa.ChunkedArray],
    *,
    fractions: Mapping[str, float],
    seed: int,
    keys: Sequence[str] = KEYS,
) -> tuple[np.ndarray, np.ndarray]:
    """`split_groups` for millions of rows and by any keys: Arrow columns in, small arrays out.

    Args:
      columns: "title", normalised, and those of `keys`; see `linked_groups`.
      fractions, seed: see `split_groups`.
      keys: what rows that must stay together have in common.

    Returns:
      uint8 [n], the index of each row's split among `fractions`, and int64 [n], its group (the index of the group's
      first row).
    """
    check_fractions(fractions)
    titles = columns["title"]
    codes, rows, distinct = value_codes(titles)
    count = len(titles)
    telling = ~widely_shared(codes, rows, count)[codes]
    known = codes[telling], rows[telling], len(distinct), count
    groups = _linked([known if key == "title" else _edges(columns, key) for key in keys])
    # Byte order of UTF-8 is the order of code points, so that these ranks are those of Python's strings.
    order = pc.array_sort_indices(distinct).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    smallest = np.full(len(groups), len(order), np.int64)  # of each group, at the index of its first row
    if "title" in keys:  # a title that half of the shop has tells no group from another
        np.minimum.at(smallest, groups[rows[telling]], rank[codes[telling]])
    else:
        np.minimum.at(smallest, groups[rows], rank[codes])
    bounds = np.cumsum(list(fractions.values()))[:-1]
    firsts = np.flatnonzero(groups == np.arange(len(groups)))
    split = np.zeros(len(groups), np.uint8)
    for start in range(0, len(firsts), _AT_ONCE):
        some = firsts[start : start + _AT_ONCE]
        named = smallest[some] < len(order)
        texts = np.empty(len(some), object)
        texts[named] = distinct.take(pa.array(order[smallest[some[named]]])).to_pylist()
        if not named.all():
            texts[~named] = _first_values(columns["image"], some[~named])
        split[some] = np.searchsorted(bounds, [_uniform(seed, text) for text in texts], side="right")
    return split[groups], groups


def widely_shared(codes: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """bool [values]: which values so many rows have that they tell no product: a size chart, "Untitled".

    These are in more than `WIDE_SHARE` of the rows and in `WIDE_ROWS` at least. Linked by them, most of a catalogue
    would be one group and go to one split. Titles of real products are rarer: the commonest of the 44,441 rows of
    Fashion Product Images is in 82 (0.2 %), and in 1 % of samples of 200 rows; no picture is in more than 4. What is
    less shared than this stays a link, and moves no share by more than it has rows.

    Args:
      codes, rows: int [m], as `value_codes` gives them.
      count: of all rows.
    """
    pairs = np.unique(codes.astype(np.int64) * max(1, count) + rows)  # a row may have a value twice
    holders = np.bincount(pairs // max(1, count), minlength=int(codes.max(initial=-1)) + 1)
    return (holders >= WIDE_ROWS) & (holders > WIDE_SHARE * count)


def _first_values(column: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> list[str]:
    values = column.take(pa.array(rows)).to_pylist()
    return [value[0] if isinstance(value, list) else value for value in values]


def linked_groups(columns: Mapping[str, pa.Array | pa.ChunkedArray], keys: Sequence[str]) -> np.ndarray:
    """int64 [n]: rows with a value of a key in common, directly or through others, get the index of the first of them.

    An empty value is no value, but for titles. Titles and images that very many rows have link none of them, see
    `widely_shared`.

    Args:
      columns: {key: text or numbers [n], or lists of text where rows have several}. A mapping that reads a column when
        it is asked for keeps memory small; others of its columns are not asked for.
      keys: at least one.

    Raises:
      UserError: a key without a column.
    """
    return _linked([_edges(columns, key) for key in keys])


def split_by_time(times: np.ndarray, groups: np.ndarray, *, moments: Mapping[str, np.datetime64]) -> np.ndarray:
    """int8 [n]: 0 (train) for what is before the first moment, k for what is from the k-th moment on; or `OUT`.

    A model trained before a moment is evaluated on what came later, and on nothing that it has seen: where rows of one
    group lie in several splits, those in the earliest stay and the later ones are in none. (To move the later ones
    would train on the future; to move the earlier ones would take from training what was there to be learnt.) Rows
    without a time are in none either.

    Args:
      times: datetime64 [n], NaT where there is none.
      groups: int64 [n], see `linked_groups`.
      moments: {split: its first moment}, in order of time.
    """
    starts = np.array(list(moments.values()), "datetime64[us]")
    known = ~np.isnat(times)
    split = np.where(known, np.searchsorted(starts, times.astype("datetime64[us]"), side="right"), OUT)
    earliest = np.full(int(groups.max(initial=-1)) + 1, len(starts), np.int64)
    np.minimum.at(earliest, groups[known], split[known])
    return np.where(split == earliest[groups], split, OUT).astype(np.int8)


def parse_times(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """datetime64[us] [n], in UTC, of text: ISO 8601 (UTC where no zone is given) or seconds since 1970; else NaT."""
    codes, _, distinct = value_codes(pc.fill_null(column, ""))
    return np.array([_moment(text) for text in distinct.to_pylist()], "datetime64[us]")[codes]


def check_moments(moments: Mapping[str, str]) -> dict[str, np.datetime64]:
    """{"test": "2024-06-01"} with moments instead of text.

    Raises:
      UserError: a time that `parse_times` does not read, moments that do not follow one another, a bad name.
    """
    found = {name: _moment(text) for name, text in moments.items()}
    for name, text in moments.items():
        _check_name(name)
        if np.isnat(found[name]):
            raise UserError(f"split time {text!r}; expected a date such as 2024-06-01 or 2024-06-01T12:00:00Z")
    if TRAIN in found:
        raise UserError(f"split time {TRAIN}={moments[TRAIN]}: {TRAIN} is what is before; give the moment of another")
    values = list(found.values())
    if any(later <= earlier for earlier, later in itertools.pairwise(values)):
        given = ", ".join(f"{name}={text}" for name, text in moments.items())
        raise UserError(f"split times {given}; expected each later than the one before")
    return found


def _moment(text: str) -> np.datetime64:
    try:
        if re.fullmatch(r"\d{13}|\d{16}|\d{19}", text := text.strip()):
            moment = datetime.datetime.fromtimestamp(int(text) / 10 ** (3 * ((len(text) - 10) // 3)), datetime.UTC)
        elif re.fullmatch(r"(19|20)\d{8}(\d\d){0,2}", text) and (len(text) > 10 or int(text) >= 2 * 10**9):
            moment = datetime.datetime.strptime(text.ljust(14, "0"), "%Y%m%d%H%M%S")
        elif re.fullmatch(r"-?\d{9,11}(\.\d+)?", text):
            moment = datetime.datetime.fromtimestamp(float(text), datetime.UTC)
        else:
            moment = datetime.datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        return np.datetime64("NaT", "us")
    if moment.tzinfo:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def _edges(columns: Mapping[str, pa.Array | pa.ChunkedArray], key: str) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Codes of a key's values, their rows, how many distinct values and how many rows there are."""
    try:
        column = columns[key]
    except KeyError as error:
        raise UserError(f"split by {key}: no such attribute; there are {', '.join(columns)}") from error
    codes, rows, distinct = value_codes(column)
    if key != "title" and pa.types.is_string(distinct.type) and (empty := pc.index(distinct, "").as_py()) >= 0:
        codes, rows = codes[codes != empty], rows[codes != empty]
    if key in KEYS:
        telling = ~widely_shared(codes, rows, len(column))[codes]
        codes, rows = codes[telling], rows[telling]
    return codes, rows, len(distinct), len(column)


def _linked(edges: Sequence[tuple[np.ndarray, np.ndarray, int, int]]) -> np.ndarray:
    """`linked_groups` from the `_edges` of each key."""
    count = edges[0][3]
    starts = np.cumsum([count, *(distinct for _, _, distinct, _ in edges)])  # a node for each row and distinct value
    rows = np.concatenate([rows for _, rows, _, _ in edges])
    values = [codes + np.int32(start) for (codes, *_), start in zip(edges, starts[:-1], strict=True)]
    return connected(np.stack([rows, np.concatenate(values)]), int(starts[-1]))[:count]


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuses, as a `UserError`, what is no set of shares with names that TFDS accepts."""
    for name, fraction in fractions.items():
        _check_name(name)
        if not 0 < fraction <= 1:
            raise UserError(f"split {name}={fraction}; expected a fraction between 0 and 1")
    if not fractions or not math.isclose(math.fsum(fractions.values()), 1, abs_tol=1e-6):
        given = ", ".join(f"{name}={fraction}" for name, fraction in fractions.items())
        raise UserError(f"splits {given or 'none'}; expected fractions that sum to 1")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "all":
        raise UserError(f"split name {name!r}; expected letters, digits and _, a letter first, and not 'all'")
    if len(name) > MAX_NAME:
        raise UserError(f"split name {name[:20]}... of {len(name)} letters; expected {MAX_NAME} or fewer")


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) from a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
