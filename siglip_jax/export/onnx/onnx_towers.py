"""A tower of pictures or of titles as an ONNX file: the formulas of `models.transformer` and `models.towers`.

In go "pixels" float32 [n, h, w, 3] in the range of the preprocessing, or "images" uint8 [n, H, W, 3], decoded pictures
of any size that is one for the batch, or "ids" int32 [n, length]; out comes "embedding", unit-norm float32 [n, d].
onnxruntime decodes no JPEG and has no SentencePiece: whoever runs it does that as the preprocessing in the file's
metadata says.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax.errors import UserError, check_choice
from siglip_jax.export.onnx.onnx_graph import OPSET, OnnxGraph, import_onnx, write_onnx
from siglip_jax.models.feature_tower import in_turns
from siglip_jax.preprocessing.resize_table import RESIZES

if TYPE_CHECKING:
    from siglip_jax.model import Model

TOWERS = ("image", "text")
PRECISIONS = ("float32", "float16", "int8")
INPUTS = {"image": ("pixels", "images"), "text": ("ids",)}  # by default the first


def export_tower(
    model: Model,
    path: str | pathlib.Path,
    *,
    tower: str = "image",
    precision: str = "float32",
    takes: str = "",
) -> None:
    """Writes one .onnx file of opset 17, with an open batch.

    Args:
      model: of pictures, not NaFlex; of an adapter the text tower.
      path: where to; it must not exist.
      precision: of `PRECISIONS`. "float16" stores and multiplies in 16 bits, and normalises and takes softmax in 32.
        "int8" stores the matrices in 8 bits and quantises what they are multiplied with as it comes (onnxruntime's
        dynamic quantisation).
      takes: of `INPUTS`. "images" puts the resize of the model's preprocessing and its range into the graph.

    Raises:
      UserError: onnx is not installed (or onnxruntime, for int8), the path exists, a tower that cannot be written, or
        one that does not fit a file of 2 GB.
    """
    check_choice("--tower", tower, TOWERS)
    check_choice("--precision", precision, PRECISIONS)
    takes = takes or INPUTS[tower][0]
    check_choice(f"--tower={tower} with --takes", takes, INPUTS[tower])
    onnx, path, architecture = import_onnx(path), pathlib.Path(path), model.architecture
    if path.exists():
        raise UserError(f"{path} exists already; choose another --output or remove it")
    if tower == "image" and (architecture.features or architecture.naflex):
        kind = "an adapter" if architecture.features else "of NaFlex pictures, whose sizes differ"
        raise UserError(f"this model is {kind}; expected a model of pictures of one size")
    if takes == "images":
        check_resize(model)
    graph = OnnxGraph(onnx, opset=OPSET, floats="float16" if precision == "float16" else "float32")
    helper, d = onnx.helper, architecture.embedding_dim
    if takes == "images":
        given = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", "height", "width", 3])
        _Writer(graph).images(model, _resized(graph, model))
    elif tower == "image":
        height, width = architecture.image_size
        given = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["n", height, width, 3])
        _Writer(graph).images(model, graph.add("Transpose", "pixels", perm=[0, 3, 1, 2]))
    else:
        given = helper.make_tensor_value_info("ids", onnx.TensorProto.INT32, ["n", architecture.text_length])
        _Writer(graph).texts(model)
    found = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", d])
    whole = helper.make_graph(graph.nodes, f"{tower}_tower", [given], [found], graph.constants)
    manifest: dict[str, Any] = {"tower": tower, "precision": precision, "takes": takes}
    if model.preprocessing is not None:
        manifest["preprocessing"] = model.preprocessing.to_json()
    if precision != "int8":
        write_onnx(path, whole, manifest=manifest, opsets={"": OPSET})
        return
    full = path.with_name(f"{path.stem}-float32.onnx")
    write_onnx(full, whole, manifest=manifest, opsets={"": OPSET})
    try:
        _quantise(full, path)
    finally:
        full.unlink()


def check_resize(model: Model) -> None:
    """UserError: the model has no resize, or one that `RESIZES` does not write in ONNX's operations."""
    if model.preprocessing is None:
        raise UserError("this model has no preprocessing, so no resize; expected --takes=pixels")
    resize, known = model.preprocessing.resize, [name for name, each in RESIZES.items() if each.in_onnx]
    if resize not in known:
        expected = ", ".join(known)
        raise UserError(f"--takes=images with resize={resize!r}; expected one of {expected}, or --takes=pixels")


def _resized(graph: OnnxGraph, model: Model) -> str:
    """What the tower takes, float32 [n, 3, h, w], of "images"."""
    preprocessing = model.preprocessing
    assert preprocessing is not None
    in_onnx = RESIZES[preprocessing.resize].in_onnx
    assert in_onnx is not None
    whole = graph.add("Cast", graph.add("Transpose", "images", perm=[0, 3, 1, 2]), to=1)
    low, high = preprocessing.value_range
    scale, offset = (graph.constant(number, "float32") for number in ((high - low) / 255, low))
    return graph.add("Add", graph.add("Mul", in_onnx(graph, whole, preprocessing), scale), offset)


class _Writer:
    """Writes the operations of a tower to a graph."""

    def __init__(self, graph: OnnxGraph):
        self._graph = graph

    def images(self, model: Model, pixels: str) -> None:
        """`pixels`: float32 [n, 3, h, w]."""
        add, p = self._graph.add, _float32(model.params["img"])
        size, width = model.architecture.image, model.architecture.image.width
        kernel = p["embedding"]["kernel"]  # [patch, patch, 3, width]; ONNX wants the channels first
        pixels = self._graph.cast(pixels, self._graph.floats)
        patch = list(kernel.shape[:2])
        x = add("Conv", pixels, kernel.transpose(3, 2, 0, 1), p["embedding"]["bias"], kernel_shape=patch, strides=patch)
        x = add("Transpose", add("Reshape", x, np.array([0, width, -1])), perm=[0, 2, 1])
        x = self._encoder(add("Add", x, p["pos_embedding"]), p["Transformer"], size)
        self._unit(self._pool(x, p["MAPHead_0"], size))

    def texts(self, model: Model) -> None:
        add, p, architecture = self._graph.add, _float32(model.params["txt"]), model.architecture
        x = add("Add", add("Gather", p["Embed_0"]["embedding"], "ids", axis=0), p["pos_embedding"])
        x = self._encoder(x, p["Encoder_0"], architecture.text)
        x = add("Gather", x, np.array(architecture.text_length - 1), axis=1)
        if "head" in p:
            x = self._graph.dense(x, p["head"])
        if not architecture.features:
            self._unit(x)
            return
        # A title has nothing of what images have of their encoders; see `feature_tower.beside_nothing`.
        image: Any = architecture.image
        text = self._graph.unit(self._graph.cast(x, "float32"), epsilon=1e-8)
        padded = add("Pad", text, np.array([0, 0, 0, image.base]))
        add("Gather", padded, in_turns(image), axis=1, output="embedding")

    def _unit(self, x: str) -> None:
        self._graph.unit(self._graph.cast(x, "float32"), epsilon=1e-8, output="embedding")

    def _encoder(self, x: str, p: Mapping[str, Any], size: Any) -> str:
        for layer in range(size.depth):
            block = _layer(p["encoderblock"], layer)
            y = self._norm(x, block["LayerNorm_0"])
            x = self._graph.add("Add", x, self._attention(y, block["MultiHeadDotProductAttention_0"], size))
            y = self._norm(x, block["LayerNorm_1"])
            x = self._graph.add("Add", x, self._mlp(y, block["MlpBlock_0"], size))
        return self._norm(x, p["encoder_norm"])

    def _pool(self, x: str, p: Mapping[str, Any], size: Any) -> str:
        attended = self._attention(x, p["MultiHeadDotProductAttention_0"], size, probe=p["probe"])
        y = self._mlp(self._norm(attended, p["LayerNorm_0"]), p["MlpBlock_0"], size)
        return self._graph.add("Gather", self._graph.add("Add", attended, y), np.array(0), axis=1)

    def _attention(self, x: str, p: Mapping[str, Any], size: Any, *, probe: np.ndarray | None = None) -> str:
        """Of [n, tokens, width] over itself, or of one probe [1, 1, width] over it: [n, 1, width]."""
        add, heads = self._graph.add, size.heads
        split = np.array([0, -1, heads, size.width // heads])

        def projected(name: str, perm: list[int]) -> str:
            return add("Transpose", add("Reshape", self._graph.dense(x, _flat(p[name])), split), perm=perm)

        scale = 1 / np.sqrt(size.width // heads)
        if probe is None:
            queries = add("Mul", projected("query", [0, 2, 1, 3]), scale)
        else:
            flat = _flat(p["query"])
            query = (probe.astype(np.float64) @ flat["kernel"] + flat["bias"]) * scale
            queries = self._graph.constant(query.reshape(1, 1, heads, -1).transpose(0, 2, 1, 3))
        logits = self._graph.cast(add("MatMul", queries, projected("key", [0, 2, 3, 1])), "float32")
        weights = self._graph.cast(add("Softmax", logits, axis=-1), self._graph.floats)
        values = add("MatMul", weights, projected("value", [0, 2, 1, 3]))
        joined = add("Reshape", add("Transpose", values, perm=[0, 2, 1, 3]), np.array([0, -1, size.width]))
        return self._graph.dense(
            joined, {"kernel": p["out"]["kernel"].reshape(size.width, -1), "bias": p["out"]["bias"]}
        )

    def _mlp(self, x: str, p: Mapping[str, Any], size: Any) -> str:
        hidden = self._graph.gelu(self._graph.dense(x, p["Dense_0"]), kind=size.gelu)
        return self._graph.dense(hidden, p["Dense_1"])

    def _norm(self, x: str, p: Mapping[str, Any]) -> str:
        """In 32 bits, whatever the rest is in."""
        scale, bias = (self._graph.constant(p[name], "float32") for name in ("scale", "bias"))
        whole = self._graph.cast(x, "float32")
        return self._graph.cast(
            self._graph.add("LayerNormalization", whole, scale, bias, axis=-1, epsilon=1e-6), self._graph.floats
        )


def _quantise(source: pathlib.Path, path: pathlib.Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise UserError(f"{path}: --precision=int8 needs onnxruntime ({error}); install siglip-jax[onnx]") from error
    root = logging.getLogger()
    root.addFilter(_no_advice)
    try:
        quantize_dynamic(source, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)
    finally:
        root.removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    """Without onnxruntime's advice to run a program of its own first: these graphs have nothing left to fold."""
    return "pre-processing before quantization" not in record.getMessage()


def _float32(tree: Any) -> Any:
    return {name: _float32(x) if isinstance(x, Mapping) else np.asarray(x, np.float32) for name, x in tree.items()}


def _layer(stacked: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {name: _layer(x, number) if isinstance(x, Mapping) else x[number] for name, x in stacked.items()}


def _flat(p: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Of all heads side by side."""
    kernel = p["kernel"]
    return {"kernel": kernel.reshape(len(kernel), -1), "bias": p["bias"].reshape(-1)}
