"""An adapter as an ONNX file, alone or behind ONNX encoders. The only module that imports onnx.

The adapter has some twenty operations, so they are written down here; jax2onnx would bind versions of other packages.
All exist in every opset from 11 on, which is then that of the encoders. ONNX decodes no JPEG: what goes in is what the
encoders take, or the stored vectors; either is named after its feature. Out comes "embedding", unit-norm float32
[n, d].
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax import __version__
from siglip_jax.errors import UserError
from siglip_jax.models.feature_tower import in_turns

if TYPE_CHECKING:
    from siglip_jax.model import Model

METADATA = "siglip_jax"  # key of the JSON in the file's metadata
_OPSET, _OLDEST_OPSET, _IR = 17, 11, 8  # of an adapter alone; onnxruntime 1.20 reads them, as do TensorRT and Triton


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxNetwork:
    """An encoder that is to be joined: its file and which of its outputs is the embedding."""

    path: str
    output: str
    description: dict[str, Any]


def export_onnx(model: Model, path: str | pathlib.Path, *, encoders: Mapping[str, OnnxNetwork] | None = None) -> None:
    """Writes one .onnx file.

    Args:
      model: an adapter that computes in float32.
      path: where to; it must not exist.
      encoders: one for each of its inputs, or none: its inputs are stored vectors then.

    Raises:
      UserError: onnx is not installed, the path exists, the model is no adapter or computes in half precision, or
        encoders that are not those of its inputs, or of opsets that differ or end before 11.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{path}: needs onnx ({error}); install siglip-jax[onnx]") from error
    path, wanted = pathlib.Path(path), model.architecture.features
    if path.exists():
        raise UserError(f"{path} exists already; choose another --output or remove it")
    if not wanted:
        raise UserError("export: this model takes pictures; expected an adapter for .onnx, or a folder as --output")
    if (dtype := np.dtype(model.module.dtype).name) != "float32":
        raise UserError(f"export: this model computes in {dtype}; expected float32 for .onnx")
    if encoders and encoders.keys() != wanted.keys():
        raise UserError(
            f"export: encoders for {', '.join(encoders)}; expected one for each of {', '.join(wanted)}, or none"
        )
    if "embedding" in wanted:
        raise UserError(
            "export: a feature named embedding, which is the output of an .onnx file; train with another name"
        )
    parts, opsets = {}, {"": _OPSET}
    if encoders:
        parts = {name: _prefixed(onnx, encoders[name].path, name) for name in wanted}
        opsets = _opsets(parts)
    graph = _Graph(onnx, opset=opsets[""])
    inputs, vectors = [], {}
    for name, size in wanted.items():
        if encoders:
            inputs.append(_input_named(onnx, name, parts[name].graph))
            vectors[name] = f"{name}/{encoders[name].output}"
        else:
            inputs.append(onnx.helper.make_tensor_value_info(name, 1, ["n", size]))
            vectors[name] = name
    _write_adapter(graph, model, vectors)

    joined = onnx.helper.make_graph(
        [*(node for part in parts.values() for node in part.graph.node), *graph.nodes],
        "adapter",
        inputs,
        [onnx.helper.make_tensor_value_info("embedding", 1, ["n", model.architecture.embedding_dim])],
        [*(each for part in parts.values() for each in part.graph.initializer), *graph.constants],
        value_info=[each for part in parts.values() for each in part.graph.value_info],
        sparse_initializer=[each for part in parts.values() for each in part.graph.sparse_initializer],
    )
    for part in parts.values():
        joined.quantization_annotation.extend(part.graph.quantization_annotation)
    written = onnx.helper.make_model(
        joined,
        producer_name="siglip_jax",
        producer_version=__version__,
        ir_version=max([_IR, *(part.ir_version for part in parts.values())]),
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[each for part in parts.values() for each in part.functions],
    )
    manifest: dict[str, Any] = {"features": wanted, "siglip_jax": __version__}
    if encoders:
        manifest["encoders"] = {name: each.description for name, each in encoders.items()}
    onnx.helper.set_model_props(written, {METADATA: json.dumps(manifest)})
    onnx.checker.check_model(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(written, str(path))


class _Graph:
    """Nodes that are written one after the other; what they are named begins with "/", which no feature does."""

    def __init__(self, onnx: Any, *, opset: int):
        self._onnx, self._opset = onnx, opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operation: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Name of the result; an input is the name of another, or a constant."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        output = output or f"/adapter/{len(self.nodes)}_{operation}"
        self.nodes.append(self._onnx.helper.make_node(operation, names, [output], name=f"{output}/node", **attributes))
        return output

    def length(self, x: str) -> str:
        """[n, d] -> [n, 1]."""
        if self._opset >= 18:  # axes became an input
            return self.add("ReduceL2", x, np.array([1], np.int64), keepdims=1)
        return self.add("ReduceL2", x, axes=[1], keepdims=1)

    def unit(self, x: str, *, epsilon: float, output: str = "") -> str:
        return self.add("Div", x, self.add("Add", self.length(x), epsilon), output=output)

    def dense(self, x: str, layer: Mapping[str, Any]) -> str:
        product = self.add("MatMul", x, layer["kernel"])
        return self.add("Add", product, layer["bias"]) if "bias" in layer else product

    def gelu(self, x: str) -> str:
        """By tanh; the operation Gelu is of opset 20."""
        cubic = self.add("Mul", self.add("Mul", self.add("Mul", x, x), x), 0.044715)
        inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cubic), np.sqrt(2 / np.pi)))
        return self.add("Mul", self.add("Mul", x, 0.5), self.add("Add", inner, 1.0))

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        name = f"/adapter/constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name


def _write_adapter(graph: _Graph, model: Model, vectors: Mapping[str, str]) -> None:
    """The formula of `models.feature_tower`, step by step."""
    size: Any = model.architecture.image
    p = model.params["img"]
    ends = np.cumsum(list(size.dimensions.values()))[:-1]
    means, weights = np.split(np.asarray(p["mean"]), ends), np.asarray(p["weight"])
    centred, directions = [], []
    for (name, numbers), mean, weight in zip(size.dimensions.items(), means, weights, strict=True):
        # To float32 and [n, d], whatever an encoder gives: float16, or [n, d, 1, 1].
        vector = graph.add("Reshape", graph.add("Cast", vectors[name], to=1), np.array([-1, numbers], np.int64))
        centred.append(graph.add("Sub", vector, mean))
        directions.append(graph.add("Mul", graph.unit(centred[-1], epsilon=1e-12), weight))
    base = graph.add("Concat", *directions, axis=1)
    if size.projects:
        base = graph.add("MatMul", base, p["projection"])
    standard = hidden = graph.add("Div", graph.add("Concat", *centred, axis=1), p["scale"])
    for layer in range(size.depth):
        hidden = graph.gelu(graph.dense(hidden, p[f"hidden_{layer}"]))
    head = graph.add("Add", graph.dense(hidden, p["output"]), graph.dense(standard, p["linear"]))
    length = graph.length(head)
    head = graph.add("Div", head, graph.add("Sqrt", graph.add("Add", graph.add("Mul", length, length), 1.0)))
    strength = np.asarray(p["strength"], np.float32)
    both = graph.add(
        "Concat",
        graph.add("Mul", head, np.sqrt(strength)),
        graph.add("Mul", graph.unit(base, epsilon=1e-12), np.sqrt(1 - strength)),
        axis=1,
    )
    graph.unit(graph.add("Gather", both, in_turns(size), axis=1), epsilon=1e-8, output="embedding")


def _prefixed(onnx: Any, path: str, name: str) -> Any:
    """The network with the feature before every name in it."""
    return onnx.compose.add_prefix(onnx.load(path), f"{name}/")


def _input_named(onnx: Any, name: str, graph: Any) -> Any:
    """The one input of a network, renamed; old files list constants as inputs too."""
    constants = {each.name for each in graph.initializer}
    (fed,) = [each for each in graph.input if each.name not in constants]
    graph.node.insert(0, onnx.helper.make_node("Identity", [name], [fed.name], name=f"{name}/input"))
    renamed = onnx.ValueInfoProto()
    renamed.CopyFrom(fed)
    renamed.name = name
    return renamed


def _opsets(parts: Mapping[str, Any]) -> dict[str, int]:
    """{domain: version}, which all encoders must share."""
    found: dict[str, int] = {}
    for name, part in parts.items():
        for each in part.opset_import:
            domain = "" if each.domain == "ai.onnx" else each.domain
            if found.setdefault(domain, each.version) != each.version:
                raise UserError(
                    f"export: encoder {name} is of opset {each.version}, another of {found[domain]}; expected one "
                    "opset: export the networks to ONNX again with the same"
                )
    if found.get("", 0) < _OLDEST_OPSET:
        raise UserError(f"export: encoders of opset {found.get('', 0)}; expected {_OLDEST_OPSET} or later")
    return found
