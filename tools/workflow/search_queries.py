"""Vectors to search an index with: of a picture or a text, by the encoder that made the index's own."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.search import Index
from input_pipeline.folder_or_zip import MAX_FILE_BYTES
from siglip_jax.errors import UserError

_NOT_OF_NUMBERS = ("name", "dtype", "features")  # where the encoder lies, and how it computes


def image_query(index: Index, path: str, *, model: str) -> np.ndarray:
    """float32 [1, dimension] of a picture file.

    Raises:
      UserError: no picture, or a model other than the index's.
    """
    from tools.workflow.embedding import load_encoder

    encoder = load_encoder(model)
    check_encoder(index, encoder.description, model=model)
    pixels = encoder.preprocessing.image(_read_picture(path))
    return encoder.encode(encoder.preprocessing.batch([pixels]))


def text_query(index: Index, text: str, *, model: str) -> np.ndarray:
    """float32 [1, dimension] of a text, which the model's text tower places among its images.

    Raises:
      UserError: a network without a text tower, or a model other than the index's.
    """
    from eval.embeddings.encoders.encoder_table import open_network
    from siglip_jax.loading import load
    from tools.workflow.embedding import description_of

    if not text.strip():
        raise UserError("--text is empty; expected a few words")
    if open_network(model) is not None:
        raise UserError(f"--text: {model} encodes images only; search by --item or --image")
    loaded = load(model)
    check_encoder(index, description_of(loaded, name=model), model=model)
    return loaded.encode_text([text])


def check_encoder(index: Index, description: Mapping[str, Any], *, model: str) -> None:
    """Raises a UserError unless the encoder is the one that made the vectors of the index, to the last parameter."""
    made_by = index.encoder.get("model")
    if made_by is None:
        raise UserError("the index does not say what made its vectors, so only --item can be searched; build it again")
    if _identity(made_by) != _identity(description):
        raise UserError(
            f"--model={model} is not what made the vectors of the index ({made_by.get('name', 'unnamed')}), and "
            "vectors of two encoders cannot be compared; give that one, or embed and index again"
        )


def _identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an encoder's numbers; its name where it has no checksum, such as "pixels:16x12"."""
    named = not any(key.endswith("sha256") for key in description)
    return {key: value for key, value in description.items() if key not in _NOT_OF_NUMBERS or (named and key == "name")}


def _read_picture(path: str) -> bytes:
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"--image={path}: no such file")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise UserError(f"--image={path}: {size} bytes; the limit is {MAX_FILE_BYTES}")
    return file.read_bytes()
