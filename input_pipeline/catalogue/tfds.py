"""A TFDS dataset as a catalogue, by name or by the folder it was prepared in; read without TensorFlow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from input_pipeline.catalogue.item import PARTS, Catalogue, Item, as_text, title_texts
from input_pipeline.catalogue.tables.table import is_utf8, mend_text
from input_pipeline.folder_or_zip import FileProblem, local_path
from siglip_jax.errors import UserError

# Where the parts of well-known datasets are; --keys says it for others.
KNOWN_KEYS = {
    "coco_captions": {"id": "image/id", "title": "captions/text", "image": "image"},
    "stanford_online_products": {"title": "super_class_id", "image": "image"},  # has no titles: the kind of thing
}
SPLIT_ATTRIBUTE = "source_split"
OUR_FEATURES = frozenset(("id", "title", "image", "image_sha256", "title_group", "attributes"))
MADE_BY_BUILDING = frozenset(("image_sha256", "title_group"))  # and made anew by the next build
READ_ROWS = 64  # at a time


class KeepBytes(tfds.decode.SkipDecoding):
    """Leaves pictures encoded, those of sequences too, for which TFDS's own has no NumPy method."""

    def decode_batch_example_np(self, example: Any) -> list[bytes]:
        return list(example)


def open_tfds(name: str, *, keys: Mapping[str, str]) -> Catalogue:
    """All splits of a prepared dataset, one after the other; the attribute `source_split` tells them apart.

    Args:
      name: of a dataset in the TFDS data folder (TFDS_DATA_DIR, or ~/tensorflow_datasets), or the folder of one.
      keys: feature for each of "id", "title" and "image", such as "captions/text"; a sequence gives several pictures or
        titles. Without "id" the ids are split and number. Class labels become their names; other plain features are
        attributes, also those inside a dict, as "dict/name". Of a dataset that `build_dataset` wrote, the attributes
        are those it was built from, and `more_images` and `more_titles` follow the first.

    Raises:
      UserError: no such dataset, not prepared, not in ArrayRecord files, or a key that is no fitting feature.
    """
    place = local_path(name)
    try:
        # From the files alone: the builders' code would import TensorFlow.
        builder = tfds.builder_from_directory(os.fspath(place)) if place.is_dir() else builder_from_files(name)
        splits = {split: info.num_examples for split, info in builder.info.splits.items()}
        if not splits:
            raise ValueError("no split in it")
    except Exception as error:  # TFDS raises many types
        raise UserError(
            f"tfds:{name}: no prepared dataset ({' '.join(str(error).split())[:160]}); give the folder of one, or run "
            "`tfds build NAME --file_format=array_record` where TensorFlow and a network are, and copy what it made"
        ) from error
    if "array_record" not in {format_.value for format_ in builder.info.available_file_formats()}:
        raise UserError(
            f"tfds:{name}: its files are {builder.info.file_format.value}, which only TensorFlow reads; prepare it "
            "with `tfds build --file_format=array_record`, or use tensorflow_datasets.scripts.convert_format"
        )
    return TfdsCatalogue(builder, name, splits, dict(keys) or KNOWN_KEYS.get(builder.info.name, {}))


class TfdsCatalogue(Catalogue):
    def __init__(self, builder: Any, name: str, splits: dict[str, int], keys: Mapping[str, str]):
        self.table, self._splits = f"tfds:{name}", splits
        self.total = sum(splits.values())
        features = builder.info.features
        if unknown := keys.keys() - set(PARTS):
            raise UserError(f"keys: {', '.join(sorted(unknown))} given; only id, title and image can be named")
        known = ", ".join(features)
        paths: dict[str, tuple[str, ...]] = {}
        for part in PARTS:
            key = keys.get(part, part)
            path = _find(features, key)
            if path is None and (part in keys or part != "id"):
                raise UserError(
                    f"tfds:{name}: no feature {key}; features are {known}; say where the {part} is with "
                    f"--keys={part}=FEATURE"
                )
            if path is not None:
                paths[part] = path
        self._paths = paths
        image = _feature(features, paths["image"])
        if not isinstance(_inner(image), tfds.features.Image):
            raise UserError(f"tfds:{name}: {'/'.join(paths['image'])} is a {type(image).__name__}; expected an Image")
        self._labels = {part: _inner(_feature(features, path)) for part, path in paths.items()}
        ours = features.keys() >= OUR_FEATURES and _members(features["attributes"]) is not None
        more = {part: f"more_{part}s" for part in ("image", "title") if ours and f"more_{part}s" in features}
        self._more = {part: (name,) for part, name in more.items()}
        used = {path[:depth] for path in (*paths.values(), *self._more.values()) for depth in range(1, len(path) + 1)}
        used |= {(name,) for name in MADE_BY_BUILDING} if ours else set()
        others = {path: feature for path, feature in _leaves(features) if path not in used}
        # An attribute's name is that of its column again, after any number of builds.
        self._attributes = {
            "/".join(path[1:] if ours and path[0] == "attributes" else path): (path, feature)
            for path, feature in others.items()
            if _is_plain(feature)
        }
        self._split_attribute = SPLIT_ATTRIBUTE
        while self._split_attribute in self._attributes:  # of a dataset that was built from one of TFDS
            self._split_attribute = f"source_{self._split_attribute}"
        self.attribute_names = [*self._attributes, self._split_attribute]
        unused = ["/".join(path) for path, feature in others.items() if not _is_plain(feature)]
        if unused:
            self.notes = (f"tfds:{name}: the features {', '.join(unused)} are used for nothing",)
        skipped: dict[str, Any] = {  # pictures nobody asked for are not decoded either
            name: KeepBytes() for name, feature in features.items() if isinstance(_inner(feature), tfds.features.Image)
        }
        skipped[paths["image"][0]] = _skip(features[paths["image"][0]], paths["image"][1:])
        try:
            sources = builder.as_data_source(split={split: split for split in splits}, decoders=skipped)
        except Exception as error:
            raise UserError(f"tfds:{name}: cannot be opened ({' '.join(str(error).split())[:160]})") from error
        self._sources = sources
        self._content = {
            "name": builder.info.full_name,
            "splits": splits,
            "bytes": {split: info.num_bytes for split, info in builder.info.splits.items()},
        }
        self.sha256 = hashlib.sha256(json.dumps(self._content, sort_keys=True).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        return super().identity() | self._content | {"keys": {part: list(path) for part, path in self._paths.items()}}

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        row = 0
        for split, count in self._splits.items():
            first = max(0, start - row)
            for begin in range(first, count, READ_ROWS):
                numbers = range(begin, min(count, begin + READ_ROWS))
                try:
                    records = self._sources[split].__getitems__(list(numbers))
                except Exception as error:  # ArrayRecord's checksums, protobuf
                    told = " ".join(str(error).split())[:160]
                    raise UserError(f"{self.table}: split {split} cannot be read ({told}); prepare it again") from error
                for number, record in zip(numbers, records, strict=True):
                    yield self._item(row + number, split, number, record)
            row += count

    def _item(self, row: int, split: str, number: int, record: Mapping[str, Any]) -> Item:
        ids = self._texts("id", record) if "id" in self._paths else [f"{split}-{number}"]
        titles = [title for text in self._texts("title", record) for title in title_texts(text)]
        pictures = {}
        for k, data in enumerate(self._all("image", record), 1):
            pictures["/".join(self._paths["image"]) + (f"[{k}]" if k > 1 else "")] = data
        names = list(pictures)
        attributes = {name: _text(_dig(record, path), feature) for name, (path, feature) in self._attributes.items()}
        problem = None
        if not all(map(is_utf8, (*ids, *titles, *attributes.values()))):
            ids, titles = [mend_text(text) for text in ids], [mend_text(text) for text in titles]
            attributes = {name: mend_text(text) for name, text in attributes.items()}
            problem = FileProblem("not UTF-8", f"{self.table} row {row}: text that is not UTF-8; prepare it as UTF-8")
        return Item(
            row=row,
            id=ids[0] if ids else "",
            title=titles[0] if titles else "",
            image=names[0] if names else "",
            attributes=attributes | {self._split_attribute: split},
            more_images=tuple(names[1:]),
            more_titles=tuple(titles[1:]),
            pictures=pictures,
            problem=problem,
        )

    def _texts(self, part: str, record: Mapping[str, Any]) -> list[str]:
        return [_text(value, self._labels[part]) for value in self._all(part, record)]

    def _all(self, part: str, record: Mapping[str, Any]) -> list[Any]:
        """The values of a part, of its first feature and of what stands beside it."""
        paths = [self._paths[part], *([self._more[part]] if part in self._more else [])]
        return [value for path in paths for value in _values(_dig(record, path))]


# --- features ---------------------------------------------------------------------------------------------------------


def _find(features: Any, key: str) -> tuple[str, ...] | None:
    """The path of a feature; names may hold / themselves, as COCO's `image/id` does."""
    if key in features:
        return (key,)
    for cut in [k for k, letter in enumerate(key) if letter == "/"]:
        head, tail = key[:cut], key[cut + 1 :]
        inner = _members(features[head]) if head in features else None
        if inner is not None and (rest := _find(inner, tail)) is not None:
            return (head, *rest)
    return None


def _members(feature: Any) -> Any:
    """The features inside a dict of features or a sequence of such dicts; None for others."""
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, (tfds.features.FeaturesDict, dict)) else None


def _feature(features: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        features = (_members(features) or features)[step]
    return features


def _inner(feature: Any) -> Any:
    return getattr(feature, "feature", feature)


def _leaves(features: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, feature) of all that is no dict of features."""
    for name, feature in features.items():
        if isinstance(feature, (tfds.features.FeaturesDict, dict)):
            yield from _leaves(feature, (*above, name))
        else:
            yield (*above, name), feature


def _is_plain(feature: Any) -> bool:
    if isinstance(feature, (tfds.features.Text, tfds.features.ClassLabel)):
        return True
    return type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and feature.shape == ()


def _skip(feature: Any, path: tuple[str, ...]) -> Any:
    """Decoders that leave the pictures as bytes."""
    return {path[0]: _skip(_members(feature)[path[0]], path[1:])} if path else KeepBytes()


def _dig(record: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        record = [entry[step] for entry in record] if isinstance(record, list) else record[step]
    return record


def _values(value: Any) -> list[Any]:
    if isinstance(value, (bytes, str)) or np.ndim(value) == 0:
        return [value]
    return [entry for inner in value for entry in _values(inner)]


def _text(value: Any, feature: Any) -> str:
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return as_text(value.item() if isinstance(value, (np.ndarray, np.generic)) else value)
