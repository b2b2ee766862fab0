"""What a server answers from: an index, titles, pictures and an encoder, loaded once and shared by all requests."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import PIL.Image
from etils import epath

from eval.search import check_recall, load_index
from eval.search.answers import Answers, Known, read_known
from input_pipeline.dataset import Split, item_table, open_split
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import image_format
from tools.workflow.query_encoder import QueryEncoder

MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
MOST_CHOICES = 40  # values of an attribute that the page offers as a filter


class Busy(Exception):
    """More queries wait for the encoder than may."""


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


class Served:
    """All of it. Threads may share one.

    Args:
      waiting: queries that may wait for the encoder, which takes one at a time.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        pictures: Pictures | None = None,
        encoder: QueryEncoder | None = None,
        waiting: int = 32,
    ):
        self.answers, self.pictures, self.encoder, self.waiting = answers, pictures, encoder, waiting
        self._places = threading.BoundedSemaphore(waiting)
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        index: epath.PathLike,
        *,
        dataset: epath.PathLike | None = None,
        model: str | None = None,
        waiting: int = 32,
        allow_low_recall: bool = False,
    ) -> Served:
        """Reads everything, and encodes once, so that the first query finds it compiled.

        Raises:
          UserError: a folder that is none, a model other than the index's, an index that finds too little.
        """
        loaded = load_index(index)
        check_recall(loaded, allow=allow_low_recall)
        encoder = None if model is None else QueryEncoder.load(model, index=loaded)
        known: Known = {} if dataset is None else read_known(dataset)
        served = cls(
            Answers(loaded, known),
            pictures=None if dataset is None else Pictures.open(dataset),
            encoder=encoder,
            waiting=waiting,
        )
        if encoder is not None and encoder.texts is not None:
            encoder.text("warm-up")
        if encoder is not None and encoder.images is not None:
            encoder.image(_any_picture())
        return served

    @contextmanager
    def encoding(self) -> Iterator[QueryEncoder]:
        """The encoder, for one query at a time.

        Raises:
          UserError: there is none.
          Busy: too many wait.
        """
        if self.encoder is None:
            raise UserError("this server has no model, so it is asked by item only; start it with --model")
        if not self._places.acquire(blocking=False):
            raise Busy
        try:
            with self._turn:
                yield self.encoder
        finally:
            self._places.release()

    def choices(self) -> dict[str, list[str]]:
        """Attributes with few values, which make good filters: {name: its values in order of frequency}."""
        counts: dict[str, Counter[str]] = {}
        for item in self.answers.index.ids:
            for name, value in self.answers.known.get(item, ("", {}))[1].items():
                counts.setdefault(name, Counter())[value] += 1
        return {
            name: [value for value, _ in found.most_common()]
            for name, found in sorted(counts.items())
            if 1 < len(found) <= MOST_CHOICES
        }


def _any_picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return file.getvalue()
