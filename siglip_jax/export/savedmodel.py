"""The encoders as a TensorFlow SavedModel. The only module that imports TensorFlow.

What it takes and gives is in `signatures`. Decoding and resizing are part of the graph and follow the model's own
preprocessing value, so that serving cannot drift from training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
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
    patch_signatures,
    picture_signatures,
    score_signature,
    text_signatures,
)
from siglip_jax.export.smaller_graph import Smaller
from siglip_jax.export.stablehlo import PLATFORMS, READERS, StablehloModule, lower_for, lower_for_oldest
from siglip_jax.export.text_graph import TextGraph
from siglip_jax.export.warmup import Requests, write_warmup
from siglip_jax.preprocessing import NAFLEX, Patches

if TYPE_CHECKING:  # a process that only serves has no JAX
    from siglip_jax.model import Model

MANIFEST = "siglip_jax.json"
TEXTS = ("ids", "strings", "none")


def export_saved_model(
    model: Model,
    folder: str | pathlib.Path,
    *,
    target_tensorflow: str = "",
    encoders: Mapping[str, GraphEncoder] | None = None,
    text: str = "ids",
    smaller: Smaller | None = None,
    warmup: Requests = (),
) -> None:
    """Writes the encoders to `folder`, complete or not at all.

    Of an adapter of stored vectors the image side is the adapter alone, with the signature "features", unless its
    encoders are given. Parameters are variables, since a graph's constants are limited to 2 GB.

    Args:
      model: what is exported.
      folder: where to; it must not exist.
      target_tensorflow: the oldest TensorFlow that will read it, one of `READERS`; the oldest that can by default.
      encoders: of an adapter, what made its stored vectors, one for each name.
      text: of `TEXTS`, what the text tower takes: "ids"; "strings" as well, which need tensorflow-text wherever the
        SavedModel is loaded; "none" leaves the tower out.
      smaller: what becomes of the embeddings of both towers; the scores are of whole ones.
      warmup: what TensorFlow Serving asks the model before others may.

    Raises:
      UserError: TensorFlow is not installed, the folder exists, other encoders than the model takes, a tokenizer that
        cannot be written in a graph, or a model of pictures has no known preprocessing, or a resize that cannot be
        written in a graph.
    """
    check_choice("--text", text, TEXTS)
    if target_tensorflow:
        check_choice("--target_tensorflow", target_tensorflow, READERS)
    tf = _tensorflow()
    folder = pathlib.Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output or remove it")
    wanted, preprocessing = model.architecture.features, model.preprocessing
    if encoders and encoders.keys() != wanted.keys():
        takes = f"one for each of {', '.join(wanted)}" if wanted else "none, since this model takes pictures"
        raise UserError(f"encoders for {', '.join(encoders)}; expected {takes}")
    for encoder in (encoders or {}).values():
        check_resize(encoder.preprocessing)
    if not wanted:
        if preprocessing is None:
            raise UserError("the model has no known preprocessing; save it with preprocessing= first")
        check_resize(preprocessing)
        if (preprocessing.resize == NAFLEX) != model.architecture.naflex:
            raise UserError(
                "the model and its preprocessing do not fit, one of NaFlex pictures, the other not; save the "
                "model with the preprocessing that belongs to it"
            )
    tokenize = TextGraph(tf, preprocessing) if text == "strings" and preprocessing is not None else None
    towers, target_tensorflow = _towers(tf, model, target_tensorflow, with_text=text != "none")
    exported = towers.module
    if encoders:
        keeps = [encoder.in_graph_keeps for encoder in encoders.values()]
        exported.encoders = [each for each in keeps if each is not None]
    exported.tokenizer = tokenize and tokenize.tokenizer
    whole = _signatures(tf, model, towers, encoders=encoders, tokenize=tokenize)
    signatures = whole
    if smaller is not None:
        signatures = _signatures(tf, model, towers.smaller(tf, smaller), encoders=encoders, tokenize=tokenize)
    if towers.text is not None and "serving_default" in whole:
        signatures = signatures | score_signature(tf, whole, t=towers.t, b=towers.b)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        path = pathlib.Path(temporary) / "export"
        tf.saved_model.save(exported, str(path), signatures=signatures)
        write_warmup(tf, path, warmup)
        manifest = {
            "signatures": described(
                signatures,
                wanted,
                encoders,
                text_length=model.architecture.text_length,
                patches=preprocessing.row_shape if model.architecture.naflex and preprocessing else (),
            ),
            "output": (smaller or Smaller(width=model.architecture.embedding_dim)).output,
            **(smaller.described if smaller else {}),
            "platforms": PLATFORMS,
            "target_tensorflow": target_tensorflow,
            **({"features": wanted} if wanted else {"preprocessing": preprocessing and preprocessing.to_json()}),
            **({"encoders": {name: each.description for name, each in encoders.items()}} if encoders else {}),
            "siglip_jax": __version__,
            "tensorflow": tf.__version__,
        }
        (path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        shutil.move(path, folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Towers:
    """Both in TensorFlow.

    Attributes:
      module: holds the variables.
      image, text: functions of a batch; text is None where it was left out.
      t, b: variables [1].
    """

    module: Any
    image: Embedding
    text: Embedding | None
    t: Any
    b: Any

    def smaller(self, tf: Any, smaller: Smaller) -> _Towers:
        """The same towers with smaller embeddings."""

        def of(tower: Embedding) -> Embedding:
            return lambda given: smaller.in_graph(tf, tower(given)["embedding"])

        return dataclasses.replace(self, image=of(self.image), text=self.text and of(self.text))


def _signatures(
    tf: Any,
    model: Model,
    towers: _Towers,
    *,
    encoders: Mapping[str, GraphEncoder] | None,
    tokenize: TextGraph | None,
) -> dict[str, Any]:
    """All but the scores."""
    wanted, preprocessing = model.architecture.features, model.preprocessing
    if wanted:
        signatures = feature_signatures(tf, wanted, towers.image)
        if encoders:
            signatures |= encoder_signatures(tf, encoders, wanted, towers.image)
    else:
        assert preprocessing is not None
        of_pictures = patch_signatures if model.architecture.naflex else picture_signatures
        signatures = of_pictures(tf, preprocessing, towers.image)
    if towers.text is not None:
        signatures |= text_signatures(tf, model.architecture.text_length, towers.text, tokenize)
    return signatures


def _towers(tf: Any, model: Model, target_tensorflow: str, *, with_text: bool) -> tuple[_Towers, str]:
    """The towers, and the oldest TensorFlow that reads them."""
    import jax

    architecture = model.architecture
    (batch,) = jax.export.symbolic_shape("batch")
    images: Any = {name: jax.ShapeDtypeStruct((batch, d), np.float32) for name, d in architecture.features.items()}
    if architecture.naflex:
        assert model.preprocessing is not None
        pixels = jax.ShapeDtypeStruct((batch, *model.preprocessing.row_shape), np.float32)
        images = Patches(pixels, jax.ShapeDtypeStruct((batch, 2), np.int32))
    elif not images:
        images = jax.ShapeDtypeStruct((batch, *architecture.image_size, 3), np.float32)
    # Each tower takes what it needs: the text tower is most of a multilingual model's bytes.
    inputs, takes = {"image": images}, {"image": ("img", "t", "b")}
    if with_text:
        inputs["text"] = jax.ShapeDtypeStruct((batch, architecture.text_length), np.int32)
        takes["text"] = ("txt", "t", "b")

    def to_lower(tower: str) -> tuple[Any, Any, Any]:
        def encode(params: Any, given: Any) -> Any:
            return model.module.apply({"params": params}, given, method=f"encode_{tower}")

        params = {name: model.params[name] for name in takes[tower]}
        return encode, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params), inputs[tower]

    lowered = {}
    if not target_tensorflow:
        oldest = {tower: lower_for_oldest(*to_lower(tower)) for tower in inputs}
        target_tensorflow = max((release for release, _ in oldest.values()), key=list(READERS).index)
        lowered = {tower: module for tower, (release, module) in oldest.items() if release == target_tensorflow}
    for tower in inputs.keys() - lowered.keys():
        lowered[tower] = lower_for(*to_lower(tower), target_tensorflow=target_tensorflow)
    used = {name for names in takes.values() for name in names}
    variables = jax.tree.map(tf.Variable, {name: model.params[name] for name in used})
    # Before tf.Module wraps the dicts.
    leaves = {tower: jax.tree.leaves({name: variables[name] for name in takes[tower]}) for tower in inputs}
    t, b = variables["t"], variables["b"]
    exported = tf.Module()
    exported.parameters = variables

    def embedding(tower: str) -> Embedding:
        def of_batch(given: Any) -> dict[str, Any]:
            found = call_module(tf, lowered[tower], [*leaves[tower], *jax.tree.leaves(given)])
            return {"embedding": found[0]}

        return of_batch

    text = embedding("text") if with_text else None
    return _Towers(module=exported, image=embedding("image"), text=text, t=t, b=b), target_tensorflow


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
