"""Which encoder reads which network, and those that need none: one entry each in ENCODERS.

To add one, write a file and its entry here (docs/adding.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from etils import epath

from eval.embeddings.encoders import colour_encoder, edge_encoder, pixel_encoder
from eval.embeddings.encoders.colour_encoder import ColourEncoder
from eval.embeddings.encoders.edge_encoder import EdgeEncoder
from eval.embeddings.encoders.onnx_encoder import OnnxEncoder
from eval.embeddings.encoders.pixel_encoder import PixelEncoder
from eval.embeddings.encoders.savedmodel_encoder import SavedModelEncoder
from eval.embeddings.encoders.tflite_encoder import TfliteEncoder
from siglip_jax.preprocessing import Preprocessing


class NetworkEncoder(Protocol):
    """Somebody else's image network.

    Attributes:
      preprocessing: of the images that `encode_image` takes (`encoder_settings.Settings.preprocessing`).
      description: what the manifest of a store says of it, with a checksum (`encoder_settings.describe`): embeddings of
        another description are not continued.
    """

    preprocessing: Preprocessing
    description: dict[str, Any]

    def encode_image(self, images: np.ndarray, /) -> np.ndarray:
        """uint8 [n, h, w, 3] of `preprocessing` -> float32 [n, d], of any norm."""
        ...


# {suffix of the path, name of a file in the folder, or, ending in a colon, what the name of an encoder without files
# begins with: called with the path or the name}. The library that a network needs is imported when an encoder is made,
# since it is installed only by those who have such networks.
ENCODERS: dict[str, Callable[[str], NetworkEncoder]] = {
    ".tflite": TfliteEncoder,
    ".onnx": OnnxEncoder,
    "saved_model.pb": SavedModelEncoder,
    pixel_encoder.PREFIX: PixelEncoder,
    colour_encoder.PREFIX: ColourEncoder,
    edge_encoder.PREFIX: EdgeEncoder,
}


def open_network(path: str) -> NetworkEncoder | None:
    """The encoder of a network by the suffix of its path, a file in its folder or the name; None where no entry fits.

    Raises:
      UserError: the library is not installed, or the network cannot be read or takes no images.
    """
    for mark, encoder in ENCODERS.items():
        if _fits(path, mark):
            return encoder(path)
    return None


def _fits(path: str, mark: str) -> bool:
    if mark.endswith(":"):
        return path.startswith(mark)
    return path.endswith(mark) if mark.startswith(".") else (epath.Path(path) / mark).exists()
