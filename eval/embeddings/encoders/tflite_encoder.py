"""Embeddings of a TensorFlow Lite network, such as an ImageNet MobileNet: the kind of baseline a shop already runs."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np

from eval.embeddings.encoders.encoder_settings import describe
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing


class TfliteEncoder:
    """One picture in, one vector out; quantised inputs and outputs are mapped as the file says.

    Attributes:
      preprocessing: squash to the network's picture size, bilinear with antialias.
    """

    def __init__(self, path: str):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UserError(f"{path}: needs ai-edge-litert ({error}); install siglip-jax[tflite]") from error
        try:
            content = pathlib.Path(path).read_bytes()
            self._interpreter = Interpreter(model_content=content)
            self._interpreter.allocate_tensors()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: not a TensorFlow Lite network ({error}); pass a .tflite file") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        shape = inputs[0]["shape"].tolist()
        if len(inputs) != 1 or len(outputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
            raise UserError(f"{path}: takes {shape}; expected a network of one picture [1, h, w, 3] to one vector")
        self._input, self._output = inputs[0], outputs[0]
        self.preprocessing = Preprocessing(image_size=(shape[1], shape[2]))
        self.description = describe(path, hashlib.sha256(content).hexdigest())

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> float32 [n, d], dequantised, not normalised."""
        return np.stack([self._encode(image) for image in images])

    def _encode(self, image: np.ndarray) -> np.ndarray:
        taken = self._input["dtype"]
        pixels = image if taken == np.uint8 else self.preprocessing.to_float(image).astype(taken)
        self._interpreter.set_tensor(self._input["index"], pixels[None])
        self._interpreter.invoke()
        return dequantise(self._interpreter.get_tensor(self._output["index"]), self._output).ravel()


def dequantise(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Quantised numbers -> float32: scale * (value - zero point); scale 0 marks a float tensor."""
    scale, zero_point = details["quantization"]
    return values.astype(np.float32) if scale == 0 else np.float32(scale) * (values.astype(np.float32) - zero_point)
