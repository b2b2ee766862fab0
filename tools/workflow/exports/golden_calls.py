"""Questions that an export is asked, with the answers of its model: pictures, titles, stored vectors, odd ones too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from eval.comparison.items import Items
from input_pipeline.dataset import open_split
from input_pipeline.loader.item_vectors import complete_rows
from siglip_jax.errors import UserError
from siglip_jax.export.golden import ODD_TITLES, Call, odd_pictures
from siglip_jax.export.limits import Limits, limits_of
from siglip_jax.preprocessing import Patches, decode_image
from tools.workflow.adapters.export_encoders import stacked
from tools.workflow.item_vectors import Features

ITEMS_CHECKED = 64  # of an export
GOLDEN_BYTES = 2**23  # of pictures, and of pixels: so many items are enough
SIZES_CHECKED = 4  # of decoded pictures


class GoldenSource:
    """What an export is checked with."""

    def __init__(self, *, dataset: epath.PathLike | None, split: str, features: Features | None):
        self.dataset, self.split, self.features = dataset, split, features

    def pictures(self) -> tuple[list[bytes], dict[str, np.ndarray]]:
        """Of the first items, and their stored vectors where there are any."""
        assert self.dataset is not None
        rows = open_split(self.dataset, self.split)
        chosen, vectors = self._stored() if self.features is not None else (np.arange(len(rows)), {})
        found: list[bytes] = []
        for row in chosen[:ITEMS_CHECKED]:
            picture = rows[int(row)]["image"]
            if found and sum(map(len, found)) + len(picture) > GOLDEN_BYTES:
                break
            found.append(picture)
        return found, {name: x[: len(found)] for name, x in vectors.items()}

    def titles(self) -> list[str]:
        """Of the first items, and odd ones."""
        rows = [] if self.dataset is None else open_split(self.dataset, self.split)
        return [rows[row]["title"] for row in range(min(ITEMS_CHECKED, len(rows)))] + list(ODD_TITLES)

    def sample(self, most: int) -> tuple[Items, list[bytes], dict[str, np.ndarray]]:
        """Items at random places of the split, their pictures, and their stored vectors where there are any."""
        assert self.dataset is not None
        rows, vectors = open_split(self.dataset, self.split), {}
        places = np.arange(len(rows))
        if self.features is not None:
            stored = self.features.of_split(self.dataset, self.split)
            places = complete_rows(stored)
        places = np.sort(np.random.default_rng(0).permutation(places)[:most])
        if self.features is not None:
            vectors = {name: each.take(places) for name, each in stored.items()}
        found = [rows[int(place)] for place in places]
        items = Items(
            ids=[row["id"] for row in found],
            titles=[row["title"] for row in found],
            columns={name: [row["attributes"][name] for row in found] for name in rows.attribute_names},
            rows=places.tolist(),
        )
        return items, [row["image"] for row in found], vectors

    def vectors(self, model: Any) -> tuple[str, dict[str, np.ndarray]]:
        """What an adapter alone is checked with, and words for it."""
        if self.features is not None:
            return "stored vectors", self._stored()[1]
        made_up = np.random.default_rng(0).normal(size=(ITEMS_CHECKED, model.architecture.image.numbers))
        mean, scale = (np.asarray(model.params["img"][name], np.float64) for name in ("mean", "scale"))
        sizes = model.architecture.features
        parts = np.split((mean + scale * made_up).astype(np.float32), np.cumsum(list(sizes.values()))[:-1], axis=1)
        return "made-up vectors (none by --features)", dict(zip(sizes, parts, strict=True))

    def _stored(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows of the first items that have all features, and these."""
        assert self.features is not None
        assert self.dataset is not None
        stored = self.features.of_split(self.dataset, self.split)
        rows = complete_rows(stored)[:ITEMS_CHECKED]
        if not len(rows):
            raise UserError(f"no item of split {self.split} has all features; expected stores of one split")
        return rows, {name: each.take(rows) for name, each in stored.items()}


def of_pictures(model: Any, source: GoldenSource) -> tuple[list[Call], Limits]:
    """Bytes, odd ones among them, and pixels.

    Raises:
      UserError: a model that says nothing of preprocessing.
    """
    if model.preprocessing is None:
        raise UserError("the model has no known preprocessing, so no picture can check the export; save it with one")
    pictures = source.pictures()[0] + list(odd_pictures().values())
    pixels = model.preprocessing.images(pictures)
    expected, limits = model.encode_image(pixels), limits_of(model, pixels)
    signature, inputs = as_inputs(pixels)
    some = max(4, min(len(pictures), GOLDEN_BYTES // inputs["pixels"][0].nbytes))
    inputs = {name: values[:some] for name, values in inputs.items()}
    return [
        by_bytes("serving_default", pictures, expected, limits),
        by_error(signature, inputs, expected[:some], limits, of="pictures"),
    ], limits


def as_inputs(pixels: Any) -> tuple[str, dict[str, np.ndarray]]:
    """The signature that takes what the image tower takes, and its inputs."""
    if isinstance(pixels, Patches):
        return "patches", {"pixels": pixels.pixels, "shape": pixels.shape}
    return "pixels", {"pixels": pixels}


def asked_of(
    model: Any, signature: str, source: GoldenSource, most: int, *, opened: Mapping[str, Any] | None = None
) -> tuple[Items, dict[str, Any], np.ndarray]:
    """A sample of items, what a signature takes of them, and float32 [n, d], what the model makes of that.

    Args:
      opened: what is joined with an adapter.
    """
    items, pictures, vectors = source.sample(most)
    if signature == "text_ids":
        ids = model.preprocessing.text(items.titles)
        return items, {"ids": ids}, model.encode_text(ids)
    if signature == "features":
        return items, vectors, model.encode_image(vectors)
    if opened:
        pixels = stacked(opened, pictures)
        by_encoders = {name: opened[name].encode_image(pixels[name]) for name in opened}
        inputs: dict[str, Any] = pixels
        if signature != "serving_default":  # of ONNX, which takes what the networks do
            inputs = {name: opened[name].network_input(pixels[name]) for name in opened}
        expected = model.encode_image(by_encoders)
    else:
        pixels = model.preprocessing.images(pictures)
        if signature == "images":  # decoded, and of many sizes, so that each is a batch
            return items, {"images": [decode_image(each)[None].copy() for each in pictures]}, model.encode_image(pixels)
        inputs, expected = as_inputs(pixels)[1], model.encode_image(pixels)
    return items, {"image_bytes": pictures} if signature == "serving_default" else inputs, expected


def of_decoded(model: Any, source: GoldenSource) -> tuple[list[Call], Limits]:
    """Decoded pictures of equal sizes, a call for each of the commonest sizes."""
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for picture in source.pictures()[0] + list(odd_pictures().values()):
        image = decode_image(picture)
        by_size.setdefault(image.shape, []).append(image.copy())
    limits = limits_of(model, model.preprocessing.images([PIL.Image.fromarray(x[0]) for x in by_size.values()]))
    calls, left = [], GOLDEN_BYTES
    for images in sorted(by_size.values(), key=len, reverse=True)[:SIZES_CHECKED]:
        fitting = np.stack(images[: max(1, left // images[0].nbytes)])
        left -= fitting.nbytes
        expected = model.encode_image(model.preprocessing.images(map(PIL.Image.fromarray, fitting)))
        of = f"pictures of {fitting.shape[1]}x{fitting.shape[2]}"
        calls.append(by_cosine("images", {"images": fitting}, expected, limits, of=of))
    return calls, limits


def of_features(model: Any, source: GoldenSource) -> tuple[list[Call], Limits]:
    of, vectors = source.vectors(model)
    limits = limits_of(model, vectors)
    return [by_error("features", vectors, model.encode_image(vectors), limits, of=of)], limits


def of_joined(model: Any, source: GoldenSource, opened: Mapping[str, Any]) -> tuple[list[Call], Limits]:
    pictures, stored = source.pictures()
    pixels = stacked(opened, pictures)
    vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
    expected, limits = model.encode_image(vectors), limits_of(model, vectors)
    calls = [
        by_bytes("serving_default", pictures, expected, limits),
        by_error("pixels", pixels, expected, limits, of="pictures"),
        by_error("features", vectors, expected, limits, of="vectors"),
    ]
    if stored:
        of = "pictures, against stored vectors"
        calls.append(by_bytes("serving_default", pictures, model.encode_image(stored), limits, of=of))
    return calls, limits


def of_titles(model: Any, source: GoldenSource, *, strings: bool) -> tuple[list[Call], Limits]:
    """Token ids, and last what the scores take."""
    if model.preprocessing is None or model.preprocessing.tokenizer is None:
        architecture = model.architecture
        shape = ITEMS_CHECKED, architecture.text_length
        ids = np.random.default_rng(0).integers(0, architecture.vocab_size, shape).astype(np.int32)
        limits = limits_of(model, ids, tower="text")
        return [by_error("text_ids", {"ids": ids}, model.encode_text(ids), limits, of="made-up rows of ids")], limits
    titles = source.titles()
    ids = model.preprocessing.text(titles)
    expected, limits = model.encode_text(ids), limits_of(model, ids, tower="text")
    calls = [by_error("text_ids", {"ids": ids}, expected, limits, of="titles")]
    if strings:
        given = [title.encode() for title in titles]
        calls.append(by_error("text", {"text": given}, expected, limits, of="titles"))
    return calls, limits


def of_scores(model: Any, pictures: Call, titles: Call, *, most: int = 8) -> Call:
    """Logits of some pictures with some texts."""
    image, text = pictures.expected[:most], titles.expected[:most]
    # As far as an image at its smallest cosine may move a logit.
    assert pictures.min_cosine is not None
    assert titles.max_error is not None
    distance = np.sqrt(2 * (1 - pictures.min_cosine)) + titles.max_error * np.sqrt(text.shape[1])
    error = float(np.exp(np.asarray(model.params["t"], np.float32)[0]) * distance)
    inputs = {name: values[:most] for call in (pictures, titles) for name, values in call.inputs.items()}
    expected = model.logits(image, text)
    return Call(signature="scores", inputs=inputs, expected=expected, of="pictures", max_error=error, output="logits")


def by_error(signature: str, inputs: Mapping[str, Any], expected: np.ndarray, limits: Limits, *, of: str) -> Call:
    return Call(signature=signature, inputs=inputs, expected=expected, of=of, max_error=limits.max_error)


def by_cosine(signature: str, inputs: Mapping[str, Any], expected: np.ndarray, limits: Limits, *, of: str) -> Call:
    return Call(signature=signature, inputs=inputs, expected=expected, of=of, min_cosine=limits.min_cosine)


def by_bytes(
    signature: str, pictures: Sequence[bytes], expected: np.ndarray, limits: Limits, *, of: str = "pictures"
) -> Call:
    return by_cosine(signature, {"image_bytes": pictures}, expected, limits, of=of)
