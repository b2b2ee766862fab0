"""The networks before an adapter (`--encoder=cnn=NETWORK`), as far as they can be a part of its export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings.encoders.encoder_table import open_network
from eval.embeddings.encoders.onnx_encoder import OnnxEncoder
from siglip_jax.errors import UserError

_INSTEAD = (
    "export the adapter without --encoder, run this encoder where it runs now, and give what it makes to the adapter"
)


def open_encoders(paths: Mapping[str, str], *, savedmodel: bool) -> dict[str, Any]:
    """{feature: its encoder}, each of which can be written into a SavedModel, or into an ONNX file.

    Raises:
      UserError: one that cannot, with what to do instead.
    """
    found = {}
    for name, path in paths.items():
        encoder = open_network(path)
        said = f"--encoder={name}={path}"
        if encoder is None:
            raise UserError(
                f"{said}: no network of a known kind; expected a SavedModel's folder, .onnx, pixels:16x12, colours: or "
                "edges:; a model of this library is exported to a SavedModel first"
            )
        if savedmodel and not hasattr(encoder, "in_graph"):
            raise UserError(
                f"{said}: cannot be a part of a SavedModel; pass the SavedModel that it was made from, or {_INSTEAD}"
            )
        if not savedmodel and not isinstance(encoder, OnnxEncoder):
            raise UserError(f"{said}: cannot be a part of an ONNX file, which joins .onnx networks alone; {_INSTEAD}")
        found[name] = encoder
    return found


def stacked(encoders: Mapping[str, Any], pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """{feature: uint8 [n, h, w, 3] as its encoder takes the encoded pictures}."""
    return {
        name: np.stack([each.preprocessing.image(picture) for picture in pictures]) for name, each in encoders.items()
    }
