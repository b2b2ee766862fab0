"""Embeddings of an ONNX network by onnxruntime."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np

from eval.embeddings.encoders.encoder_settings import Settings, describe
from siglip_jax.errors import UserError
from siglip_jax.export.onnx.onnx_adapter import OnnxNetwork


class OnnxEncoder:
    """Pictures in, vectors out; what the network expects of a picture is in `<path>.json` (`Settings`).

    Attributes:
      preprocessing: of the pictures that `encode_image` takes.
      description: name and sha256, for manifests.
    """

    def __init__(self, path: str):
        """UserError: onnxruntime is not installed, or the file is no network of one picture input."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path}: needs onnxruntime ({error}); install siglip-jax[onnxruntime]") from error
        try:
            content = pathlib.Path(path).read_bytes()
            # By path: weights of more than 2 GB lie in files beside it.
            self._session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime raises types of its own for each kind of damage
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{path}: not an ONNX network ({reason}); pass an .onnx file") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            found = ", ".join(f"{one.name} {one.type}" for one in inputs)
            raise UserError(f"{path}: takes {found}; expected one input of float pictures")
        self._path, self._input = path, inputs[0].name
        self._dtype = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        self._settings = Settings.beside(path).for_input(inputs[0].shape, network=path)
        self._batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else None
        names = [one.name for one in self._session.get_outputs()]
        self._output = self._settings.output or (names[0] if len(names) == 1 else "")
        if self._output not in names:
            raise UserError(f'{path}: outputs are {", ".join(names)}; name the embedding as "output" in {path}.json')
        self.preprocessing = self._settings.preprocessing
        self.description = describe(path, hashlib.sha256(content).hexdigest())

    @property
    def network(self) -> OnnxNetwork:
        """For joining it with an adapter.

        Raises:
          UserError: the network takes batches of one size.
        """
        if self._batch is not None:
            raise UserError(
                f"{self._path}: takes batches of {self._batch}; expected any size, to be joined with an adapter: "
                "export the network again with an open batch"
            )
        return OnnxNetwork(path=self._path, output=self._output, description=self.description)

    def network_input(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> what the network takes, in its range, layout and type."""
        return self._settings.pixels(images).astype(self._dtype, copy=False)

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> float32 [n, d], not normalised."""
        pixels = self.network_input(images)
        size = self._batch or len(pixels)
        parts = []
        for lo in range(0, len(pixels), size):
            batch = pixels[lo : lo + size]
            full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])  # of a fixed batch
            found = self._session.run([self._output], {self._input: full})[0]
            parts.append(self._settings.vectors(found, network=self._path)[: len(batch)])
        return np.concatenate(parts)
