"""One item checked: its text, its pictures decoded once, the facts that splits and audits need, the record to keep."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from typing import Any

import numpy as np
import PIL.Image
from tensorflow_datasets.proto import tf_feature_pb2

from input_pipeline.catalogue import Catalogue, Item
from input_pipeline.dataset.picture_format import picture_format
from input_pipeline.duplicates.near_images import image_signature, leading_bits
from input_pipeline.duplicates.normalised_titles import normalise_title
from input_pipeline.folder_or_zip import FileProblem
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image, image_format
from siglip_jax.preprocessing.image_formats import unserved

NULL_WORDS = frozenset(("nan", "null", "none", "\\n", "#n/a", "n/a", "<na>", "nat", "-", "--", "#name?", "#ref!"))
_KEY = 32  # hexadecimal digits of a hash by which equal pictures are found: 128 bits


@dataclasses.dataclass(frozen=True)
class Checked:
    """What `check_item` found.

    Attributes:
      facts: values for the columns of `facts.STAGED`.
      record: serialised `Features` without title_group and attributes; b"" where the row is a problem.
    """

    facts: dict[str, Any]
    record: bytes


def check_item(catalogue: Catalogue, item: Item, *, min_image_size: int) -> Checked:
    """Reads and decodes an item's pictures. Safe to call from several threads.

    A problem is of the first kind that fits: those of the item's text ("not UTF-8", "empty id", "empty title", "NUL
    byte"), of reading its first picture (see `Catalogue.read_image`), "corrupt image" (it does not decode whole),
    "small image". A further picture with a problem is left out of the record and told in `more_problems`. A picture
    that the graph of an export could not read is stored as a PNG of the same pixels.
    """
    facts: dict[str, Any] = {
        "row": item.row, "id": item.id, "title": item.title, "kind": "", "detail": "", "image_sha256": "",
        "image_phash": 0, "image_signature": None, "height": 0, "width": 0, "bytes": 0, "format": "",
        "more_titles": list(item.more_titles), "more_problems": [],
        "title_keys": [normalise_title(title) for title in (item.title, *item.more_titles)],
        "image_keys": [], "attributes": json.dumps(item.attributes, ensure_ascii=False), "record_bytes": 0,
        "item_key": catalogue.item_key(item),  # before its pictures are read: a change in between is seen later
    }  # fmt: skip
    try:
        _check_text(item)
        data = catalogue.read_first_image(item)
        pixels = _decode(data, item.image, min_image_size)
        data, stored_as = _as_served(data, pixels)
    except FileProblem as problem:
        facts |= {"kind": problem.kind, "detail": str(problem)}
        return Checked({name: _storable(value) for name, value in facts.items()}, b"")
    sha256 = hashlib.sha256(data).hexdigest()
    height, width, _ = pixels.shape
    facts |= {"image_sha256": sha256, "height": height, "width": width}
    signature = image_signature(pixels)
    facts |= {"image_phash": int(leading_bits(signature[None])[0]), "image_signature": signature.tobytes()}
    facts |= {"bytes": len(data), "format": stored_as}
    del pixels
    images, keys, problems = [], [sha256[:_KEY]], []
    for name in item.more_images:
        try:
            more = catalogue.read_image(item, name)
            more, _ = _as_served(more, _decode(more, name, min_image_size))
        except FileProblem as problem:
            problems.append(_storable(f"{problem.kind}: {problem}"))
        else:
            images.append(more)
            keys.append(hashlib.sha256(more).hexdigest()[:_KEY])
    record = _record(item, data, sha256, images)
    facts |= {"image_keys": keys, "more_problems": problems, "record_bytes": len(record)}
    return Checked(facts, record)


def _check_text(item: Item) -> None:
    if item.problem:
        raise item.problem
    if not item.id.strip():
        raise FileProblem("empty id", "the id is empty")
    if not item.title.strip():
        raise FileProblem("empty title", "the title is empty")
    if item.title.strip().lower() in NULL_WORDS:
        raise FileProblem("empty title", f"the title is {item.title.strip()!r}, which stands for nothing")
    texts = {"the id": item.id, "the title": "".join((item.title, *item.more_titles)), **item.attributes}
    if found := [name for name, text in texts.items() if "\0" in text]:
        raise FileProblem("NUL byte", f"{found[0]} has a NUL byte; take it out")


def _decode(data: bytes, name: str, min_image_size: int) -> np.ndarray:
    try:
        pixels = decode_image(data)
    except UserError as error:
        hint = "; it is an HTML page" if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")) else ""
        raise FileProblem("corrupt image", f"{name}: {error}{hint}") from error
    height, width, _ = pixels.shape
    if min(height, width) < min_image_size:
        raise FileProblem("small image", f"{name}: {width}x{height} pixels, fewer than {min_image_size}")
    return pixels


def _as_served(data: bytes, pixels: np.ndarray) -> tuple[bytes, str]:
    """(what is stored of a picture, its format: "JPEG", or "TIFF as PNG")."""
    if not unserved(data):
        return data, picture_format(data)
    png = io.BytesIO()
    PIL.Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue(), f"{image_format(data)} as PNG"


def _record(item: Item, image: bytes, sha256: str, more_images: list[bytes]) -> bytes:
    features = tf_feature_pb2.Features()
    single = {"id": item.id.encode(), "title": item.title.encode(), "image": image, "image_sha256": sha256.encode()}
    for name, value in single.items():
        features.feature[name].bytes_list.value.append(value)
    several = {"more_images": more_images, "more_titles": [title.encode() for title in item.more_titles]}
    for name, values in several.items():
        if values:
            features.feature[name].bytes_list.value.extend(values)
    return features.SerializeToString()


def _storable(value: Any) -> Any:
    """Text of problem rows may be anything; a fact table holds UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
