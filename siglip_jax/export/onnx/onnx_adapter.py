"""An adapter as an ONNX file, alone or behind ONNX encoders.

The adapter has some twenty operations, so they are written down here; jax2onnx would bind versions of other packages.
All exist in every opset from 11 on, which is then that of the encoders. ONNX decodes no JPEG: what goes in is what the
encoders take, or the stored vectors; either is named after its feature. Out comes "embedding", unit-norm float32
[n, d].
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.export.onnx.onnx_graph import IR, OPSET, OnnxGraph, import_onnx, write_onnx
from siglip_jax.models.feature_tower import in_turns

if TYPE_CHECKING:
    from siglip_jax.model import Model

_OLDEST_OPSET = 11


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
    onnx = import_onnx(path)
    path, wanted = pathlib.Path(path), model.architecture.features
    if path.exists():
        raise UserError(f"{path} exists already; choose another --output or remove it")
    if not wanted:
        raise UserError("this model takes pictures; expected an adapter for .onnx, or a folder as --output")
    if (dtype := np.dtype(model.module.dtype).name) != "float32":
        raise UserError(f"this model computes in {dtype}; expected float32 for .onnx")
    if encoders and encoders.keys() != wanted.keys():
        raise UserError(f"encoders for {', '.join(encoders)}; expected one for each of {', '.join(wanted)}, or none")
    if "embedding" in wanted:
        raise UserError("a feature named embedding, which is the output of an .onnx file; train with another name")
    parts, opsets = {}, {"": OPSET}
    if encoders:
        parts = {name: _prefixed(onnx, encoders[name].path, name) for name in wanted}
        opsets = _opsets(parts)
    graph = OnnxGraph(onnx, opset=opsets[""])
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
    manifest: dict[str, Any] = {"features": wanted}
    if encoders:
        manifest["encoders"] = {name: each.description for name, each in encoders.items()}
    write_onnx(
        path,
        joined,
        manifest=manifest,
        opsets=opsets,
        ir_version=max([IR, *(part.ir_version for part in parts.values())]),
        functions=[each for part in parts.values() for each in part.functions],
    )


def _write_adapter(graph: OnnxGraph, model: Model, vectors: Mapping[str, str]) -> None:
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
                    f"encoder {name} is of opset {each.version}, another of {found[domain]}; expected one "
                    "opset: export the networks to ONNX again with the same"
                )
    if found.get("", 0) < _OLDEST_OPSET:
        raise UserError(f"encoders of opset {found.get('', 0)}; expected {_OLDEST_OPSET} or later")
    return found
