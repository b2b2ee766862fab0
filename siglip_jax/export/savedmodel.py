"""The image encoder as a TensorFlow SavedModel. The only module that imports TensorFlow.

Signatures: `serving_default` takes JPEG or PNG bytes (string [n], "image"), `pixels` takes what the image tower takes
(float32 [n, h, w, 3], "pixels"); both give "embedding", unit-norm float32 [n, d]. Decoding and resizing are part of the
graph and follow the model's own preprocessing value, so that serving cannot drift from training.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax import __version__
from siglip_jax.errors import UserError, check_choice
from siglip_jax.export.stablehlo import PLATFORMS, READERS, StablehloModule, lower_for, lower_for_oldest
from siglip_jax.preprocessing import NAFLEX, Preprocessing
from siglip_jax.preprocessing.resize_table import RESIZES

if TYPE_CHECKING:  # a process that only serves has no JAX
    from siglip_jax.model import Model

MANIFEST = "siglip_jax.json"


def export_saved_model(model: Model, folder: str | pathlib.Path, *, target_tensorflow: str = "") -> None:
    """Writes the image encoder to `folder`, complete or not at all.

    The batch is dynamic, from 1 row on. Parameters are variables, since a graph's constants are limited to 2 GB.

    Args:
      model: what is exported.
      folder: where to; it must not exist.
      target_tensorflow: the oldest TensorFlow that will read it, one of `READERS`; the oldest that can by default.

    Raises:
      UserError: TensorFlow is not installed, the folder exists, the model has no known preprocessing or one of
        NaFlex pictures, it is an adapter of stored vectors, or its resize cannot be written in a graph.
    """
    if target_tensorflow:
        check_choice("--target_tensorflow", target_tensorflow, READERS)
    tf = _tensorflow()
    import jax

    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output or remove it")
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UserError("export: the model has no known preprocessing; save it with preprocessing= first")
    model.architecture.pictures_tower("export")
    if preprocessing.resize == NAFLEX:
        raise UserError(
            "export: this model takes NaFlex pictures, whose sizes differ, and there is no SavedModel for these; "
            "export a model of one fixed size"
        )
    if RESIZES[preprocessing.resize].in_graph is None:
        raise UserError(
            f"export: resize={preprocessing.resize!r} cannot be written in a graph; expected one of "
            + ", ".join(name for name, resize in RESIZES.items() if resize.in_graph is not None)
        )
    height, width = model.architecture.image_size

    def encode(params: Any, pixels: Any) -> Any:
        return model.module.apply({"params": params}, pixels, method="encode_image")

    # Only the image tower travels: the text tower is most of a multilingual model's bytes.
    kept = {name: model.params[name] for name in ("img", "t", "b")}
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept),
        jax.ShapeDtypeStruct((batch, height, width, 3), np.float32),
    )
    if target_tensorflow:
        lowered = lower_for(encode, *shapes, target_tensorflow=target_tensorflow)
    else:
        target_tensorflow, lowered = lower_for_oldest(encode, *shapes)
    parameters = jax.tree.map(tf.Variable, kept)
    variables = jax.tree.leaves(parameters)  # before tf.Module wraps the dicts
    exported = tf.Module()
    exported.parameters = parameters

    def embedding(pixels: Any) -> dict[str, Any]:
        return {"embedding": call_module(tf, lowered, [*variables, pixels])[0]}

    # autograph=False: nothing here is Python control flow, and AutoGraph would try to rewrite JAX itself.
    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32, name="pixels")], autograph=False)
    def pixels(pixels: Any) -> dict[str, Any]:
        return embedding(pixels)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")], autograph=False)
    def serving_default(image: Any) -> dict[str, Any]:
        resized = tf.map_fn(
            lambda encoded: _decode_and_resize(tf, encoded, preprocessing),
            image,
            fn_output_signature=tf.TensorSpec([height, width, 3], tf.float32),
        )
        low, high = preprocessing.value_range
        return embedding(resized * ((high - low) / 255) + low)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        path = pathlib.Path(temporary) / "export"
        signatures = {"serving_default": serving_default, "pixels": pixels}
        tf.saved_model.save(exported, str(path), signatures=signatures)
        manifest = {
            "signatures": {"serving_default": "image: string [n], JPEG or PNG", "pixels": "float32 [n, h, w, 3]"},
            "output": f"embedding: float32 [n, {model.architecture.embedding_dim}], unit norm",
            "platforms": PLATFORMS,
            "target_tensorflow": target_tensorflow,
            "preprocessing": preprocessing.to_json(),
            "siglip_jax": __version__,
            "tensorflow": tf.__version__,
        }
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.move(path, folder)


def run_saved_model(folder: str | pathlib.Path, signature: str, values: np.ndarray | Sequence[bytes]) -> np.ndarray:
    """Calls a signature of a SavedModel, which needs no JAX: bytes or float32 pixels -> float32 [n, d]."""
    tf = _tensorflow()
    function = tf.saved_model.load(str(folder)).signatures[signature]
    name = {"serving_default": "image", "pixels": "pixels"}[signature]
    return function(**{name: tf.constant(values)})["embedding"].numpy()


def load_pixels_signature(
    folder: str | pathlib.Path,
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], list[int | None], list[str]]:
    """Anybody's SavedModel as a function of pixels: (float32 pictures -> {output: array}, input shape, output names).

    The signature is "pixels" where there is one, "serving_default" otherwise.

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
    name = next(iter(inputs))

    def call(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in function(**{name: tf.constant(pixels)}).items()}

    call.keeps = loaded  # type: ignore[attr-defined]  # variables live as long as the loaded object
    return call, list(spec.shape), list(function.structured_outputs)


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


def _decode_and_resize(tf: Any, encoded: Any, preprocessing: Preprocessing) -> Any:
    """Scalar string -> float32 [h, w, 3] of whole numbers 0 to 255, as `Preprocessing.image` gives."""
    size, resize = preprocessing.image_size, RESIZES[preprocessing.resize]
    assert resize.in_graph is not None
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_jpeg(tf, encoded, at_least=size if resize.reduced_decode else None),
        lambda: tf.io.decode_png(encoded, channels=3),
    )
    return tf.ensure_shape(resize.in_graph(tf, tf.cast(image, tf.float32), preprocessing), [*size, 3])


def _decode_jpeg(tf: Any, encoded: Any, *, at_least: tuple[int, int] | None) -> Any:
    """uint8 [H, W, 3], at 1/8, 1/4 or 1/2 of the size where that reaches `at_least`, see `images.decode_image`."""

    def decode(ratio: int) -> Any:
        # PIL's decoder; TensorFlow's default is off by up to 5 grey levels.
        return tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if at_least is None:
        return decode(1)
    fits = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2] // tf.constant(at_least))
    return tf.case(
        [(fits >= ratio, lambda ratio=ratio: decode(ratio)) for ratio in (8, 4, 2)],
        default=lambda: decode(1),
    )


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
    with tempfile.TemporaryDirectory() as temporary:
        inputs, outputs = (str(pathlib.Path(temporary) / name) for name in ("inputs.npz", "outputs.npz"))
        encoded = {f"picture_{i}": np.frombuffer(picture, np.uint8) for i, picture in enumerate(pictures)}
        np.savez(inputs, pixels=pixels, **encoded)  # type: ignore[arg-type]
        command = [sys.executable, "-m", __spec__.name, str(folder), inputs, outputs]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{folder} cannot be loaded without JAX: {(done.stderr.strip() or '?').splitlines()[-1]}"
            )
        with np.load(outputs) as arrays:
            from_pixels, from_bytes = arrays["from_pixels"], arrays["from_bytes"]
    return {
        "pixels_max_error": float(np.abs(from_pixels - expected).max()),
        "bytes_min_cosine": float(np.sum(from_bytes * expected, axis=-1).min()),
    }


def _answer(folder: str, inputs: str, outputs: str) -> None:
    """The other side of `check_saved_model`."""
    sys.modules["jax"] = None  # type: ignore[assignment]  # any import of it fails from here on
    with np.load(inputs) as arrays:
        pictures = [arrays[f"picture_{i}"].tobytes() for i in range(len(arrays.files) - 1)]
        from_pixels = run_saved_model(folder, "pixels", arrays["pixels"])
    np.savez(outputs, from_pixels=from_pixels, from_bytes=run_saved_model(folder, "serving_default", pictures))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
