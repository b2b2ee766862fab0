"""Vectors to search an index with: of a picture or a text, by the encoder that made the index's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings.encoders.encoder_table import open_network
from eval.search import Index
from eval.search.encoder_identity import encoder_identity
from siglip_jax.errors import UserError
from tools.workflow.embedding import ImageEncoder, description_of, image_encoder, load_encoder


@dataclasses.dataclass(frozen=True)
class QueryEncoder:
    """The towers of one model, loaded once.

    Attributes:
      images: None for an adapter, which reads no pictures.
      texts: strings -> float32 [n, d]; None for a network without a text tower.
      name: for messages.
      description: what the manifest of a store says of it.
    """

    images: ImageEncoder | None
    texts: Callable[[list[str]], np.ndarray] | None
    name: str
    description: Mapping[str, Any]

    @classmethod
    def load(cls, model: str, *, index: Index) -> QueryEncoder:
        """The encoder at a path or of a name.

        Raises:
          UserError: no model, or another one than made the vectors of the index.
        """
        if open_network(model) is not None:
            network = load_encoder(model)
            encoder = cls(network, None, model, network.description)
        else:
            from siglip_jax.loading import load

            loaded = load(model)
            images = None if loaded.architecture.features else image_encoder(loaded, name=model)
            encoder = cls(images, loaded.encode_text, model, description_of(loaded, name=model))
        encoder.check(index)
        return encoder

    def check(self, index: Index) -> None:
        """Raises a UserError unless this encoder made the vectors of the index."""
        check_encoder(index, self.description, model=self.name)

    def image(self, picture: bytes) -> np.ndarray:
        """float32 [1, dimension] of an encoded picture; UserError where it is none, or the model takes none."""
        return self.encode_pixels([self.pixels(picture)])

    def text(self, text: str) -> np.ndarray:
        """float32 [1, dimension] of a text; UserError where it is empty, or the model has no text tower."""
        return self.encode_texts([self.checked(text)])

    def pixels(self, picture: bytes) -> Any:
        """A picture as one row for `encode_pixels`; UserError as `image` raises it."""
        if self.images is None:
            raise UserError(f"{self.name} reads no pictures, but stored vectors; search by item or by text")
        return self.images.preprocessing.image(picture)

    def checked(self, text: str) -> str:
        """The text; UserError as `text` raises it."""
        if self.texts is None:
            raise UserError(f"{self.name} encodes images only; search by item or by image")
        if not text.strip():
            raise UserError("the text is empty; expected a few words")
        return text

    def encode_pixels(self, rows: Sequence[Any]) -> np.ndarray:
        """float32 [n, dimension] of rows of `pixels`."""
        assert self.images is not None
        return self.images.encode(self.images.preprocessing.batch(rows))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dimension] of texts that were `checked`."""
        assert self.texts is not None
        return self.texts(list(texts))


def check_encoder(index: Index, description: Mapping[str, Any], *, model: str) -> None:
    """Raises a UserError unless the encoder is the one that made the vectors of the index, to the last parameter."""
    made_by = index.encoder.get("model")
    if made_by is None:
        raise UserError("the index does not say what made its vectors, so only items can be searched; build it again")
    if encoder_identity(made_by) != encoder_identity(description):
        raise UserError(
            f"--model={model} is not what made the vectors of the index ({made_by.get('name', 'unnamed')}), and "
            "vectors of two encoders cannot be compared; give that one, or embed and index again"
        )
