"""Embeddings of a TensorFlow SavedModel: somebody else's, or one of our own exports."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from eval.embeddings.encoders.encoder_settings import Settings, describe
from siglip_jax import files
from siglip_jax.errors import UserError


class SavedModelEncoder:
    """Pictures in, vectors out, through the signature "pixels" (our exports) or "serving_default".

    What a foreign network expects of a picture is in `<folder>.json` (`Settings`); our exports say it themselves.

    Attributes:
      preprocessing: of the pictures that `encode_image` takes.
      description: name and sha256 of the graph, for manifests.
      in_graph_keeps: the variables of the network.
    """

    def __init__(self, folder: str):
        """UserError: TensorFlow is not installed, or the folder holds no SavedModel of one picture input."""
        from siglip_jax.export import savedmodel

        self._folder = folder
        self._signature = savedmodel.load_pixels_signature(folder)
        self.in_graph_keeps, outputs = self._signature.loaded, self._signature.outputs
        manifest = epath.Path(folder) / savedmodel.MANIFEST
        settings = Settings.beside(folder)
        of_ours = manifest.exists()
        if of_ours:
            own = files.read_json(manifest).get("preprocessing", {})
            given = {name: own[name] for name in ("image_size", "resize", "fill", "value_range") if name in own}
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
            settings = Settings(**fields)
        self._settings = settings.for_input(self._signature.shape, network=folder)
        only = "embedding" if of_ours else outputs[0] if len(outputs) == 1 else ""  # ours in int8 have a scale as well
        self._output = self._settings.output or only
        if self._output not in outputs:
            names = ", ".join(outputs)
            raise UserError(f'{folder}: outputs are {names}; name the embedding as "output" in {folder}.json')
        self.preprocessing = self._settings.preprocessing
        self.description = describe(folder, files.sha256(epath.Path(folder) / "saved_model.pb"))

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> float32 [n, d], not normalised."""
        found = self._signature(self._settings.pixels(images))[self._output]
        return self._settings.vectors(found, network=self._folder)

    def in_graph(self, tf: Any, images: Any) -> Any:
        """`encode_image` in TensorFlow's operations, see `siglip_jax.export.signatures.GraphEncoder`.

        Raises:
          UserError: the network takes batches of one size.
        """
        if self._signature.shape[0] is not None:
            raise UserError(
                f"{self._folder}: takes batches of {self._signature.shape[0]}; expected any size, to be joined with an "
                "adapter: save the network with an open batch"
            )
        settings = self._settings
        low, high = settings.value_range
        mean, std = (np.asarray(each, np.float32) for each in (settings.mean, settings.std))
        pixels = (images * ((high - low) / 255) + low - mean) / std
        if settings.layout == "nchw":
            pixels = tf.transpose(pixels, [0, 3, 1, 2])
        vectors = self._signature.in_graph(pixels)[self._output]
        return tf.cast(tf.reshape(vectors, [tf.shape(images)[0], -1]), tf.float32)
