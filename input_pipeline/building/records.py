"""Staged records copied into the shards of the splits, and the metadata by which TFDS reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.compute as pc
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.building import facts
from input_pipeline.building.stage import DamagedStage, Stage
from input_pipeline.progress import progress as show_progress

NAME, VERSION, MODULE = "catalogue", "1.0.0", "input_pipeline.dataset"
SHARD_BYTES = 512 * 2**20
_SEVERAL = ("more_images", "more_titles")  # features of datasets in which some item has several


@dataclasses.dataclass(frozen=True)
class Rows:
    """What was decided of every row.

    Attributes:
      kept: bool [n], over all rows.
      split: uint8 [kept], index of the split.
      title_group: int64 [kept].
      group: int64 [kept], the source row of the first row that had to stay together with this one.
    """

    kept: np.ndarray
    split: np.ndarray
    title_group: np.ndarray
    group: np.ndarray

    def of_all(self, rows: slice, splits: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
        """Split names, title groups and groups of a stretch of all rows; "" and -1 for those not kept."""
        kept = self.kept[rows]
        first = int(np.count_nonzero(self.kept[: rows.start]))
        here = slice(first, first + int(np.count_nonzero(kept)))
        names = np.full(len(kept), "", object)
        names[kept] = np.array(splits, object)[self.split[here]]
        numbers = np.full((2, len(kept)), -1, np.int64)
        numbers[:, kept] = self.title_group[here], self.group[here]
        return names.tolist(), numbers[0].tolist(), numbers[1].tolist()


def write_shards(
    stage: Stage, rows: Rows, names: Sequence[str], splits: Sequence[str], columns: facts.Facts, progress: bool
) -> list[tfds.core.SplitInfo]:
    """Writes the shards that are not there yet, each under another name first."""
    per_shard = _rows_per_shard(columns)
    several = _several(columns)
    infos = []
    for number, split in enumerate(splits):
        template = tfds.core.ShardedFileTemplate(
            data_dir=stage.dataset, dataset_name=NAME, split=split, filetype_suffix="array_record"
        )
        chosen = np.flatnonzero(rows.kept)[rows.split == number]
        lengths = [min(per_shard, len(chosen) - start) for start in range(0, len(chosen), per_shard)]
        bar = show_progress(
            _write_split(stage, rows, names, several, chosen, lengths, template),
            total=len(chosen), label=f"writing {split}", show=progress,
        )  # fmt: skip
        num_bytes = sum(bar)
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template)
        )
    return infos


def _write_split(
    stage: Stage,
    rows: Rows,
    names: Sequence[str],
    several: Sequence[str],
    chosen: np.ndarray,
    lengths: Sequence[int],
    template: tfds.core.ShardedFileTemplate,
) -> Iterator[int]:
    """Yields the bytes of each record, of shards that are there already too."""
    start = 0
    for shard, length in enumerate(lengths):
        path = pathlib.Path(os.fspath(template.sharded_filepath(shard_index=shard, num_shards=len(lengths))))
        sizes = stage.folder / f"{path.name}.sizes.npy"  # what TFDS needs to know of a shard that is not written again
        if not (path.exists() and sizes.exists()):
            written = []
            unfinished = stage.folder / f"{path.name}.unfinished"
            writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1")  # single rows are read
            for record in _records(stage, rows, names, several, chosen[start : start + length]):
                writer.write(record)
                written.append(len(record))
                yield len(record)
            writer.close()
            np.save(sizes, np.array(written, np.int64))
            unfinished.rename(path)
        else:
            yield from np.load(sizes).tolist()
        start += length


def _records(
    stage: Stage, rows: Rows, names: Sequence[str], several: Sequence[str], chosen: np.ndarray
) -> Iterator[bytes]:
    """The serialised examples of rows, given by their sorted positions among all."""
    # Not tfds.core.SequentialWriter: it writes a record's features in an order that differs from process to process.
    position = np.cumsum(rows.kept) - 1  # among the kept rows
    start = 0
    for part in stage.parts():
        low, high = np.searchsorted(chosen, [start, start + (count := _part_rows(part))])
        here = chosen[low:high]
        start += count
        if not len(here):
            continue
        table = facts.read_part(part, ["record_bytes", "attributes", "image_sha256"])
        wanted = np.zeros(count, bool)
        wanted[here - (start - count)] = True
        texts = table.filter(wanted)
        staged = stage.read_records(part, table["record_bytes"].to_pylist(), wanted.tolist())
        hashes, attributes = texts["image_sha256"].to_pylist(), texts["attributes"].to_pylist()
        for row, data, sha256, text in zip(here, staged, hashes, attributes, strict=True):
            example = tf_example_pb2.Example()
            features = example.features
            features.MergeFromString(data)
            if hashlib.sha256(features.feature["image"].bytes_list.value[0]).hexdigest() != sha256:
                raise DamagedStage(f"{part.with_suffix('.records')}: damaged, so it was removed; start again")
            features.feature["title_group"].int64_list.value.append(int(rows.title_group[position[row]]))
            values = json.loads(text)
            for name in names:
                features.feature[f"attributes/{name}"].bytes_list.value.append(values.get(name, "").encode())
            for name in several:
                features.feature[name].bytes_list.SetInParent()  # present, if perhaps empty
            yield example.SerializeToString(deterministic=True)


def write_info(
    folder: pathlib.Path, splits: Sequence[tfds.core.SplitInfo], names: Sequence[str], columns: facts.Facts
) -> None:
    text = tfds.features.Text
    features = {
        "id": text(),
        "title": text(),
        "image": tfds.features.Image(),
        "image_sha256": text(),
        "title_group": np.int64,
        "attributes": tfds.features.FeaturesDict({name: text() for name in names}),
    }
    kinds = {"more_images": tfds.features.Image(), "more_titles": text()}
    features |= {name: tfds.features.Sequence(kinds[name]) for name in _several(columns)}
    identity = tfds.core.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(folder), module_name=MODULE
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Items of a shop's catalogue: pictures as they came, titles and attributes.",
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(folder)


def _several(columns: facts.Facts) -> list[str]:
    """Which of `_SEVERAL` the dataset needs."""
    longest = {"more_images": "image_keys", "more_titles": "title_keys"}
    return [name for name in _SEVERAL if pc.max(pc.list_value_length(columns.staged(longest[name]))).as_py() > 1]


def _rows_per_shard(columns: facts.Facts) -> int:
    sizes = columns.numbers("record_bytes")
    return max(1, int(SHARD_BYTES / (sizes.mean() + 512)))


def _part_rows(part: pathlib.Path) -> int:
    return facts.read_part(part, ["row"]).num_rows
