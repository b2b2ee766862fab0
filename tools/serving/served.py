"""What an answer comes from: an index, titles, pictures and an encoder, read once and shared by all requests."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
import numpy as np
from etils import epath

from eval.search import Index, check_recall, load_index
from eval.search.answers import Answers, read_known
from eval.search.attribute_columns import AttributeColumns, Known
from eval.search.index_folder import MANIFEST
from eval.search.selection import Selection
from input_pipeline.dataset import Split, dataset_fingerprint, item_table, open_split
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import image_format
from tools.serving.encode_queue import EncodeQueue
from tools.workflow.query_encoder import QueryEncoder

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
MOST_CHOICES = 40  # values of an attribute that the page offers as a filter
_READ_AGAIN = 3  # times, where an index is replaced while it is read


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of a dataset's items, by id."""

    splits: Mapping[str, Split]
    places: Mapping[str, tuple[str, int]]  # id -> (split, row)

    @classmethod
    def open(cls, dataset: epath.PathLike) -> Pictures:
        table = item_table.item_table(dataset, columns=("id", "split"), progress=False)
        places: dict[str, tuple[str, int]] = {}
        rows: Counter[str] = Counter()
        for item, split in zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True):
            if split:
                places[item] = split, rows[split]
                rows[split] += 1
        return cls({split: open_split(dataset, split) for split in rows}, places)

    def read(self, item: str) -> tuple[bytes, str] | None:
        """(encoded picture, media type) of an item; None where there is none."""
        if item not in self.places:
            return None
        split, row = self.places[item]
        record = self.splits[split][row]
        if record["id"] != item:
            raise UserError(f"item {item!r}: the dataset's table and records disagree; build the dataset again")
        return record["image"], MEDIA_TYPES.get(image_format(record["image"]), "application/octet-stream")


@dataclasses.dataclass(frozen=True)
class Query:
    """What is asked for: an id, the bytes of a picture, or a text."""

    kind: str  # "item", "image" or "text"
    value: Any  # str, or the bytes of a picture

    @property
    def told(self) -> dict[str, str]:
        return {self.kind: self.value if isinstance(self.value, str) else f"{len(self.value)} bytes"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """All that one answer comes from. It never changes; another takes its place.

    Attributes:
      source: name of the `GenerationSource` it was read from, and `stamp` what that had then.
      queue: None where there is no model.
    """

    answers: Answers
    source: str = "index"
    stamp: str = ""
    pictures: Pictures | None = None
    queue: EncodeQueue | None = None

    @property
    def name(self) -> str:
        return self.answers.index.generation

    @property
    def able(self) -> dict[str, bool]:
        encoder = self.queue and self.queue.encoder
        return {"image": bool(encoder and encoder.images), "text": bool(encoder and encoder.texts)}

    def described(self) -> dict[str, Any]:
        model = {"model": self.queue.encoder.name} if self.queue else {}
        return {"generation": self.name, "items": len(self.answers.index), **self.able, **model}

    async def answer(self, query: Query, selection: Selection) -> dict[str, Any]:
        """The object of `Answers`; UserError as it raises it, or where there is no model; Busy where too many wait."""
        if query.kind == "item":
            return await _in_thread(self.answers.of_item, query.value, selection)
        if self.queue is None:
            raise UserError("this server has no model, so it is asked by item only; start it with --model")
        vector = await self.queue.encode(query.kind, query.value)
        return {"query": query.told, **await _in_thread(self.answers.of_vector, vector, selection)}

    def filters(self) -> dict[str, Any]:
        """What filters and groups can be by: {"choices": {name: values by frequency}, "ranges": {name: [least, most]},
        "groups": [name]}.

        Choices are attributes with few values, ranges those with many that are mostly numbers, groups those of which
        items share values.
        """
        return _filters(self.answers.columns)


def _filters(columns: AttributeColumns) -> dict[str, Any]:
    choices, ranges, groups = {}, {}, []
    for name in columns.names:
        column = columns.column(name, what="attribute")
        numbers = column.numbers[np.isfinite(column.numbers)]
        if 1 < len(column.values) <= MOST_CHOICES:
            order = np.argsort(-column.counts, kind="stable")
            choices[name] = [column.values[place] for place in order.tolist()]
        elif 2 * len(numbers) > len(column.values) > 1:
            ranges[name] = [float(numbers.min()), float(numbers.max())]
        if 1 < len(column.values) < column.counts.sum():
            groups.append(name)
    return {"choices": choices, "ranges": ranges, "groups": groups}


class ServedItems:
    """Titles, attributes and pictures of a dataset; read again when it was built again. Threads may share one."""

    def __init__(self, dataset: epath.PathLike | None):
        self._dataset = dataset
        self._lock = threading.Lock()
        self._read: tuple[str, Known, Pictures | None] | None = None

    def stamp(self) -> str:
        try:
            return "" if self._dataset is None else dataset_fingerprint(self._dataset)
        except UserError:  # which reading it then says
            return "missing"

    def read(self) -> tuple[Known, Pictures | None]:
        with self._lock:
            stamp = self.stamp()
            if self._read is None or self._read[0] != stamp:
                known = {} if self._dataset is None else read_known(self._dataset)
                self._read = stamp, known, None if self._dataset is None else Pictures.open(self._dataset)
            return self._read[1], self._read[2]


class GenerationSource:
    """Where generations of one encoder come from: a folder with an index, and a model that is loaded once.

    Args:
      name: "index" or "candidate".
      folder: of the index; another one may be given later.

    Raises:
      UserError: a folder that is no index, one that finds too little, or a model that did not make its vectors.
    """

    def __init__(
        self,
        name: str,
        folder: epath.PathLike,
        *,
        items: ServedItems | None = None,
        model: str | None = None,
        batch: int = 16,
        waiting: int = 32,
        allow_low_recall: bool = False,
    ):
        self.name, self.folder, self._items = name, epath.Path(folder), items or ServedItems(None)
        self._queue: EncodeQueue | None = None
        self._allow_low_recall = allow_low_recall
        self._index: tuple[str, Index] = _index_stamp(self.folder), self._checked(self.folder)
        if model is not None:
            self._queue = EncodeQueue(QueryEncoder.load(model, index=self._index[1]), batch=batch, waiting=waiting)
            self._probe = self._queue.warm_up()

    def stamp(self, folder: epath.Path | None = None) -> str:
        """Another one whenever the index or the dataset is another one."""
        return f"{_index_stamp(folder or self.folder)} {self._items.stamp()}"

    def load(self, beside: str | None = None) -> Generation:
        """The newest, read aside and tried.

        Args:
          beside: name of another folder beside this one, which takes its place where it is good.

        Raises:
          UserError: broken, or of another encoder than the model.
        """
        folder = self.folder if beside is None else self.folder.parent / _checked_name(beside)
        for attempt in range(_READ_AGAIN):
            stamp = self.stamp(folder)
            try:
                return self._load(folder, stamp)
            except Exception:
                if attempt == _READ_AGAIN - 1 or self.stamp(folder) == stamp:
                    raise
        raise AssertionError

    def _checked(self, folder: epath.Path) -> Index:
        index = load_index(folder)
        check_recall(index, allow=self._allow_low_recall)
        return index

    def _load(self, folder: epath.Path, stamp: str) -> Generation:
        read = _index_stamp(folder)
        index = self._index[1] if read == self._index[0] else self._checked(folder)
        known, pictures = self._items.read()
        answers = Answers(index, known)
        _ = answers.columns  # made here, so that no query waits for them
        if self._queue is not None:
            self._queue.encoder.check(index)
            if len(index):
                answers.of_vector(self._probe, Selection(k=1))
        if len(index):
            answers.of_item(index.ids[0], Selection(k=1))
        self.folder, self._index = folder, (read, index)
        return Generation(answers=answers, source=self.name, stamp=stamp, pictures=pictures, queue=self._queue)


def _checked_name(folder: str) -> str:
    if not folder.strip() or "/" in folder or "\\" in folder or "\0" in folder or folder in (".", ".."):
        raise UserError(f"index {folder[:100]!r}; expected the name of a folder beside the one that is served")
    return folder


def _index_stamp(folder: epath.Path) -> str:
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return "missing"


async def _in_thread(run: Any, *arguments: Any) -> Any:
    """In a thread, which goes on by itself where its task is cancelled."""
    return await anyio.to_thread.run_sync(run, *arguments, abandon_on_cancel=True)
