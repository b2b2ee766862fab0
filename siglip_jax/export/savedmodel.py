"""The image encoder as a TensorFlow SavedModel. The only module that imports TensorFlow.

What it takes and gives is in `signatures`. Decoding and resizing are part of the graph and follow the model's own
preprocessing value, so that serving cannot drift from training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax import __version__
from siglip_jax.errors import UserError, check_choice
from siglip_jax.export.image_graph import check_resize
from siglip_jax.export.signatures import (
    Embedding,
    GraphEncoder,
    described,
    encoder_signatures,
    feature_signatures,
    picture_signatures,
)
from siglip_jax.export.stablehlo import PLATFORMS, READERS, StablehloModule, lower_for, lower_for_oldest

if TYPE_CHECKING:  # a process that only serves has no JAX
    from siglip_jax.model import Model

MANIFEST = "siglip_jax.json"

Calls = Mapping[str, Mapping[str, np.ndarray | Sequence[bytes]]]  # {signature: {input: values}}


def export_saved_model(
    model: Model,
    folder: str | pathlib.Path,
    *,
    target_tensorflow: str = "",
    encoders: Mapping[str, GraphEncoder] | None = None,
) -> None:
    """Writes the image encoder to `folder`, complete or not at all.

    Of an adapter of stored vectors that is the adapter alone, with the signature "features", unless its encoders are
    given. Parameters are variables, since a graph's constants are limited to 2 GB.

    Args:
      model: what is exported.
      folder: where to; it must not exist.
      target_tensorflow: the oldest TensorFlow that will read it, one of `READERS`; the oldest that can by default.
      encoders: of an adapter, what made its stored vectors, one for each name.

    Raises:
      UserError: TensorFlow is not installed, the folder exists, other encoders than the model takes, or a model of
        pictures has no known preprocessing, one of NaFlex pictures, or a resize that cannot be written in a graph.
    """
    if target_tensorflow:
        check_choice("--target_tensorflow", target_tensorflow, READERS)
    tf = _tensorflow()
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output or remove it")
    wanted, preprocessing = model.architecture.features, model.preprocessing
    if encoders and encoders.keys() != wanted.keys():
        takes = f"one for each of {', '.join(wanted)}" if wanted else "none, since this model takes pictures"
        raise UserError(f"export: encoders for {', '.join(encoders)}; expected {takes}")
    for encoder in (encoders or {}).values():
        check_resize(encoder.preprocessing)
    if not wanted:
        if preprocessing is None:
            raise UserError("export: the model has no known preprocessing; save it with preprocessing= first")
        check_resize(preprocessing)
    exported, embedding, target_tensorflow = _image_tower(tf, model, target_tensorflow)
    if wanted:
        signatures = feature_signatures(tf, wanted, embedding)
        if encoders:
            keeps = [encoder.in_graph_keeps for encoder in encoders.values()]
            exported.encoders = [each for each in keeps if each is not None]
            signatures |= encoder_signatures(tf, encoders, wanted, embedding)
    else:
        assert preprocessing is not None
        signatures = picture_signatures(tf, preprocessing, embedding)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        path = pathlib.Path(temporary) / "export"
        tf.saved_model.save(exported, str(path), signatures=signatures)
        manifest = {
            "signatures": described(wanted, encoders),
            "output": f"embedding: float32 [n, {model.architecture.embedding_dim}], unit norm",
            "platforms": PLATFORMS,
            "target_tensorflow": target_tensorflow,
            **({"features": wanted} if wanted else {"preprocessing": preprocessing and preprocessing.to_json()}),
            **({"encoders": {name: each.description for name, each in encoders.items()}} if encoders else {}),
            "siglip_jax": __version__,
            "tensorflow": tf.__version__,
        }
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.move(path, folder)


def _image_tower(tf: Any, model: Model, target_tensorflow: str) -> tuple[Any, Embedding, str]:
    """The tower in TensorFlow: (tf.Module with its variables, a function of a batch, the oldest release that reads)."""
    import jax

    def encode(params: Any, images: Any) -> Any:
        return model.module.apply({"params": params}, images, method="encode_image")

    # Only the image tower travels: the text tower is most of a multilingual model's bytes.
    kept = {name: model.params[name] for name in ("img", "t", "b")}
    (batch,) = jax.export.symbolic_shape("batch")
    architecture = model.architecture
    images: Any = {name: jax.ShapeDtypeStruct((batch, d), np.float32) for name, d in architecture.features.items()}
    if not images:
        images = jax.ShapeDtypeStruct((batch, *architecture.image_size, 3), np.float32)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept), images
    if target_tensorflow:
        lowered = lower_for(encode, *shapes, target_tensorflow=target_tensorflow)
    else:
        target_tensorflow, lowered = lower_for_oldest(encode, *shapes)
    parameters = jax.tree.map(tf.Variable, kept)
    variables = jax.tree.leaves(parameters)  # before tf.Module wraps the dicts
    exported = tf.Module()
    exported.parameters = parameters

    def embedding(batch: Any) -> dict[str, Any]:
        return {"embedding": call_module(tf, lowered, [*variables, *jax.tree.leaves(batch)])[0]}

    return exported, embedding, target_tensorflow


def run_saved_model(folder: str | pathlib.Path, calls: Calls) -> dict[str, np.ndarray]:
    """{signature: its embeddings, float32 [n, d]} of a SavedModel, which needs no JAX."""
    tf = _tensorflow()
    loaded = tf.saved_model.load(str(folder))
    found = {}
    for signature, inputs in calls.items():
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        found[signature] = loaded.signatures[signature](**tensors)["embedding"].numpy()
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelsSignature:
    """Anybody's SavedModel as a function of float32 pictures.

    Attributes:
      loaded: what holds its variables.
      function, input: the signature and the name of its input.
      shape: of the input, None where it is open.
      outputs: their names.
    """

    loaded: Any
    function: Any
    input: str
    shape: list[int | None]
    outputs: list[str]

    def in_graph(self, pixels: Any) -> dict[str, Any]:
        """float32 tensor -> {output: tensor}."""
        return self.function(**{self.input: pixels})

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.in_graph(_tensorflow().constant(pixels)).items()}


def load_pixels_signature(folder: str | pathlib.Path) -> PixelsSignature:
    """The signature "pixels" of a SavedModel where there is one, "serving_default" otherwise.

    Raises:
      UserError: TensorFlow is not installed, no SavedModel, or a signature that takes no float pictures.
    """
    tf = _tensorflow()
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises types of its own, with a page of text
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{folder}: not a SavedModel ({reason}); pass its folder") from error
    function = loaded.signatures.get("pixels") or loaded.signatures.get("serving_default")
    if function is None:
        known = ", ".join(loaded.signatures) or "none"
        raise UserError(f"{folder}: signatures are {known}; expected pixels or serving_default")
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1 or (spec := next(iter(inputs.values()))).dtype != tf.float32 or spec.shape.rank is None:
        found = ", ".join(f"{name} {one.dtype.name}" for name, one in inputs.items())
        raise UserError(f"{folder}: takes {found}; expected one input of float32 pictures [n, h, w, 3]")
    return PixelsSignature(
        loaded=loaded,
        function=function,
        input=next(iter(inputs)),
        shape=list(spec.shape),
        outputs=list(function.structured_outputs),
    )


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets every start with lines about the processor
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"SavedModels need TensorFlow ({error}); install siglip-jax[export]") from error
    return tf


def call_module(tf: Any, lowered: StablehloModule, arguments: Sequence[Any]) -> list[Any]:
    """Results of `lowered` for its flat arguments, variables or tensors, as an operation of a graph."""
    from tensorflow.compiler.tf2xla.python import xla

    return xla.call_module(
        [tf.convert_to_tensor(arguments[i]) for i in lowered.kept],
        version=lowered.calling_convention,
        module=lowered.module,
        Tout=[tf.as_dtype(dtype) for _, dtype in lowered.outputs],
        Sout=[tf.TensorShape(shape) for shape, _ in lowered.outputs],
        platforms=[platform.upper() for platform in PLATFORMS],
        function_list=[],
        has_token_input_output=False,
        disabled_checks=[],
    )


def run_without_jax(folder: str | pathlib.Path, calls: Calls) -> dict[str, np.ndarray]:
    """`run_saved_model` in a process of its own, in which JAX cannot be imported.

    Raises:
      RuntimeError: the other process failed; its last line is in the message.
    """
    arrays = {}
    for signature, inputs in calls.items():
        for name, values in inputs.items():
            if isinstance(values, np.ndarray):
                arrays[f"{signature}/{name}"] = values
            else:  # numpy's own bytes lose zeros at their end
                arrays |= {f"{signature}/{name}/{i}": np.frombuffer(value, np.uint8) for i, value in enumerate(values)}
    with tempfile.TemporaryDirectory() as temporary:
        inputs_file, outputs_file = (str(pathlib.Path(temporary) / name) for name in ("inputs.npz", "outputs.npz"))
        np.savez(inputs_file, **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __spec__.name, str(folder), inputs_file, outputs_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{folder} cannot be loaded without JAX: {(done.stderr.strip() or '?').splitlines()[-1]}"
            )
        with np.load(outputs_file) as found:
            return {signature: found[signature] for signature in calls}


def check_saved_model(folder: str | pathlib.Path, model: Model, pictures: Sequence[bytes]) -> dict[str, float]:
    """Loads the export in a process without JAX and compares its embeddings of `pictures` with the model's own.

    Returns:
      {"pixels_max_error": largest absolute difference from equal pixels,
       "bytes_min_cosine": smallest cosine between the graph's own decoding and `Preprocessing`'s}.

    Raises:
      RuntimeError: the other process failed; its last line is in the message.
    """
    assert model.preprocessing is not None
    pixels = model.preprocessing.images(pictures)
    expected = model.encode_image(pixels)
    found = run_without_jax(folder, {"pixels": {"pixels": pixels}, "serving_default": {"image": list(pictures)}})
    return {
        "pixels_max_error": float(np.abs(found["pixels"] - expected).max()),
        "bytes_min_cosine": float(np.sum(found["serving_default"] * expected, axis=-1).min()),
    }


def check_features(folder: str | pathlib.Path, model: Model, features: Mapping[str, np.ndarray]) -> float:
    """The largest absolute difference between the embeddings of "features" in a process without JAX and the model's.

    Raises:
      RuntimeError: the other process failed; its last line is in the message.
    """
    found = run_without_jax(folder, {"features": features})["features"]
    return float(np.abs(found - model.encode_image(features)).max())


def _answer(folder: str, inputs: str, outputs: str) -> None:
    """The other side of `run_without_jax`."""
    sys.modules["jax"] = None  # type: ignore[assignment]  # any import of it fails from here on
    calls: dict[str, dict[str, Any]] = {}
    with np.load(inputs) as arrays:
        for key in arrays.files:  # in the order in which they were written
            signature, name, *number = key.split("/")
            values = calls.setdefault(signature, {})
            if number:
                values.setdefault(name, []).append(arrays[key].tobytes())
            else:
                values[name] = arrays[key]
    np.savez(outputs, **run_saved_model(folder, calls))  # type: ignore[arg-type]


if __name__ == "__main__":
    _answer(*sys.argv[1:])
