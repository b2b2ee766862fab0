"""A built dataset read back by row."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.folder_or_zip import local_path
from siglip_jax.errors import UserError

FEATURES = ("id", "title", "image", "image_sha256", "title_group", "attributes")  # that every dataset has
SEVERAL = ("more_images", "more_titles")  # and those in which some item has several
_KINDS = {
    **dict.fromkeys(("id", "title", "image_sha256"), "Text"),
    "image": "Image",
    "title_group": "int64",
    "attributes": "FeaturesDict",
    "more_images": "Sequence of Image",
    "more_titles": "Sequence of Text",
}
READ_ROWS = 1024  # at a time


class DamagedRecord(UserError):
    """`reason` is what is wrong with it, a short phrase."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}; build the dataset again")
        self.reason = reason


class Split(Sequence[dict[str, Any]]):
    """Rows of one split, read from disk on demand; can be pickled for worker processes and shared by threads.

    A row is a dict: id, title, image_sha256 (str), image (bytes, encoded as it came), title_group (int), attributes
    {name: str}, more_images (list of bytes) and more_titles (list of str): what the item has besides the first, empty
    where the dataset has none.
    """

    def __init__(self, dataset_dir: pathlib.Path, name: str, source: Any):
        self.dataset_dir, self.name, self._source = dataset_dir, name, source  # of serialised records
        features = source.dataset_info.features
        self.attribute_names = list(features["attributes"])
        self._several = [name for name in SEVERAL if name in features]

    def __len__(self) -> int:
        return len(self._source)

    @property
    def has_more_images(self) -> bool:
        """Whether an item may have pictures besides the first."""
        return "more_images" in self._several

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        chosen = range(len(self))[row]  # negative numbers, slices and IndexError, as lists have them
        return self.__getitems__(chosen) if isinstance(chosen, range) else self.__getitems__([chosen])[0]

    def __getitems__(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Many rows at once; in one thread that is faster than one by one, in several it is not."""
        numbers = [int(row) for row in rows]
        try:
            many = len(numbers) != 1  # ArrayRecord starts a thread pool for these
            records = self._source.__getitems__(numbers) if many else [self._source[numbers[0]]]
        except RuntimeError as error:  # ArrayRecord's checksums
            raise DamagedRecord(f"{self.dataset_dir}: split {self.name}", _one_line(error)) from error
        return [self._row(number, record) for number, record in zip(numbers, records, strict=True)]

    def _row(self, number: int, record: bytes) -> dict[str, Any]:
        try:
            return self._parse(record)
        except (ValueError, DecodeError) as error:  # UnicodeDecodeError among them
            raise DamagedRecord(f"{self.dataset_dir}: split {self.name}: row {number}", _one_line(error)) from error

    def _parse(self, record: bytes) -> dict[str, Any]:
        """Not by TFDS's features, which take longer than all else that Python does for a row."""
        features = tf_example_pb2.Example.FromString(record).features.feature

        def one(name: str) -> bytes:
            values = features[name].bytes_list.value
            if len(values) != 1:
                raise ValueError(f"{name} has {len(values)} values; expected one")
            return values[0]

        row: dict[str, Any] = {name: one(name).decode() for name in ("id", "title", "image_sha256")}
        row["image"] = one("image")
        groups = features["title_group"].int64_list.value
        if len(groups) != 1 or not 0 <= groups[0] < 2**31:
            raise ValueError(f"title_group is {list(groups)[:3]}; expected one number from 0 to {2**31 - 1}")
        row["title_group"] = groups[0]
        row["attributes"] = {name: one(f"attributes/{name}").decode() for name in self.attribute_names}
        more = {name: list(features[name].bytes_list.value) for name in self._several}
        row["more_images"] = more.get("more_images", [])
        row["more_titles"] = [title.decode() for title in more.get("more_titles", [])]
        return row

    def shard_of(self, row: int) -> tuple[str, int, int]:
        """(name, first row, row after the last) of the file that a row is in."""
        info = self._source.dataset_info.splits[self.name]
        ends = np.cumsum(info.shard_lengths)
        shard = int(np.searchsorted(ends, row, side="right"))
        names = [pathlib.Path(path).name for path in info.filepaths]  # in the order of shards; `filenames` is sorted
        return names[shard], int(ends[shard]) - info.shard_lengths[shard], int(ends[shard])

    def why_unreadable(self, row: int) -> str:
        """Of a row whose record is damaged; "" for others.

        Raises:
          UserError: the first, the middle and the last record of the row's file are all damaged.
        """
        if not (reason := self._damage(row)):
            return ""
        name, start, stop = self.shard_of(row)
        if all(self._damage(other) for other in {start, (start + stop) // 2, stop - 1}):
            raise UserError(
                f"{self.dataset_dir / name}: rows {start} to {stop - 1} of split {self.name} cannot be read "
                f"({reason}); copy the file anew, or build the dataset again"
            )
        return reason

    def _damage(self, row: int) -> str:
        try:
            self[row]
        except DamagedRecord as error:
            return error.reason
        except Exception as error:  # damaged bytes raise many types
            return " ".join(str(error).split())[:200] or type(error).__name__
        return ""

    def __reduce__(self) -> tuple[Callable[..., Split], tuple[pathlib.Path, str]]:
        return open_split, (self.dataset_dir, self.name)


def open_split(dataset_dir: str | os.PathLike, split: str) -> Split:
    """Opens one split of a dataset that `build_dataset` (or any TFDS builder with the same features) wrote.

    Raises:
      UserError: no folder, no dataset in it, other features, or no such split.
    """
    folder = local_path(dataset_dir)
    _check_dataset(folder)
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        names, features = list(builder.info.splits), builder.info.features
    except Exception as error:  # TFDS raises many types on damaged metadata
        raise UserError(f"{folder}: damaged dataset ({_one_line(error)}); build it again") from error
    if missing := [name for name in FEATURES if name not in features]:
        raise UserError(f"{folder}: a dataset without {', '.join(missing)}; expected one of `siglip-jax data`")
    for name, expected in _KINDS.items():
        if name in features and (found := _kind(features[name])) != expected:
            raise UserError(f"{folder}: feature {name} is {found}; expected {expected}, as `siglip-jax data` writes it")
    if wrong := [name for name, feature in features["attributes"].items() if _kind(feature) != "Text"]:
        raise UserError(f"{folder}: attribute {wrong[0]} is {_kind(features['attributes'][wrong[0]])}; expected Text")
    if split not in names:
        raise UserError(f"{folder}: no split {split}; splits are {', '.join(names)}")
    try:
        source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except Exception as error:
        raise UserError(f"{folder}: split {split} cannot be opened ({_one_line(error)}); build it again") from error
    rows = Split(folder, split, source)
    if len(rows):  # files are opened when first read; one cut short is better found now
        for row in {0, len(rows) - 1}:
            rows.why_unreadable(row)
    return rows


def _kind(feature: Any) -> str:
    """Such as "Text" (any one string), "int64", "Image" or "Sequence of Text"."""
    if isinstance(feature, tfds.features.Sequence):
        return f"Sequence of {_kind(feature.feature)}"
    if isinstance(feature, tfds.features.Tensor) and feature.shape == ():
        kind = np.dtype(feature.np_dtype)
        return "Text" if kind.kind == "O" else kind.name
    return type(feature).__name__


def has_split(dataset_dir: str | os.PathLike, split: str) -> bool:
    """Whether a dataset has a split of this name."""
    folder = local_path(dataset_dir)
    _check_dataset(folder)
    try:
        return split in tfds.builder_from_directory(os.fspath(folder)).info.splits
    except Exception as error:  # TFDS raises many types on damaged metadata
        raise UserError(f"{folder}: damaged dataset ({_one_line(error)}); build it again") from error


def attributes(dataset_dir: str | os.PathLike, split: str) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """(ids, titles, {attribute: values}) of a split in row order; pictures are not decoded (about 14,000 rows/s)."""
    rows = open_split(dataset_dir, split)
    ids: list[str] = []
    titles: list[str] = []
    values: dict[str, list[str]] = {}
    for start in range(0, len(rows), READ_ROWS):
        for row in rows[start : start + READ_ROWS]:
            ids.append(row["id"])
            titles.append(row["title"])
            for name, value in row["attributes"].items():
                values.setdefault(name, []).append(value)
    return ids, titles, values


def dataset_fingerprint(dataset_dir: str | os.PathLike) -> str:
    """sha256 of the content of all splits, as the audit has it; equal for equal builds."""
    folder = local_path(dataset_dir)
    _check_dataset(folder)
    try:
        return str(json.loads((folder / "audit.json").read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no fingerprint in audit.json ({_one_line(error)}); build it again") from error


def _check_dataset(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; build the dataset with `siglip-jax data`")
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder}: no dataset here (dataset_info.json is missing); build it with `siglip-jax data`")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
