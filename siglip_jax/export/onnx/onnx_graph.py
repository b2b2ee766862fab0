"""ONNX files, operation by operation. The only module that imports onnx.

The towers and adapters here have some twenty kinds of operations, so they are written down; jax2onnx would bind
versions of other packages.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from siglip_jax import __version__
from siglip_jax.errors import UserError

METADATA = "siglip_jax"  # key of the JSON in the file's metadata
OPSET, IR = 17, 8  # onnxruntime 1.20 reads them, as do TensorRT and Triton
MAX_BYTES = 2**31 - 2**20  # of one file: protobuf's limit, and a margin


def import_onnx(path: Any) -> Any:
    """The library.

    Raises:
      UserError: it is not installed; `path` says for what it is needed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"{path}: needs onnx ({error}); install siglip-jax[onnx]") from error
    return onnx


class OnnxGraph:
    """Nodes that are written one after the other; what they are named begins with "/", which no feature does.

    Args:
      onnx: the library.
      opset: that the operations are of, 11 or later.
      floats: type of the constants, float32 or float16.
    """

    def __init__(self, onnx: Any, *, opset: int, floats: str = "float32"):
        self._onnx, self._opset, self.floats = onnx, opset, floats
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._numbers = itertools.count()

    def add(self, operation: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Name of the result; an input is the name of another, or a constant."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = output or f"/{next(self._numbers)}_{operation}"
        self.nodes.append(self._onnx.helper.make_node(operation, names, [output], name=f"{output}/node", **attributes))
        return output

    def choose(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """The one of two float32 results that a boolean picks; the other is not computed."""
        outside, branches = self.nodes, []
        for write in (then, otherwise):
            self.nodes = []
            result = self._onnx.helper.make_tensor_value_info(write(), self._onnx.TensorProto.FLOAT, None)
            branches.append(self._onnx.helper.make_graph(self.nodes, f"/{next(self._numbers)}_branch", [], [result]))
        self.nodes = outside
        return self.add("If", condition, then_branch=branches[0], else_branch=branches[1])

    def cast(self, x: str, dtype: str) -> str:
        """To "float32" or "float16"; nothing in a graph of float32, in which all are."""
        if self.floats == "float32":
            return x
        return self.add("Cast", x, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def length(self, x: str) -> str:
        """[n, d] -> [n, 1]."""
        if self._opset >= 18:  # axes became an input
            return self.add("ReduceL2", x, np.array([1], np.int64), keepdims=1)
        return self.add("ReduceL2", x, axes=[1], keepdims=1)

    def unit(self, x: str, *, epsilon: float, output: str = "") -> str:
        """Of float32 [n, d]."""
        return self.add("Div", x, self.add("Add", self.length(x), self.constant(epsilon, "float32")), output=output)

    def dense(self, x: str, layer: Mapping[str, Any]) -> str:
        product = self.add("MatMul", x, layer["kernel"])
        return self.add("Add", product, layer["bias"]) if "bias" in layer else product

    def gelu(self, x: str, *, kind: str = "tanh") -> str:
        """By tanh, or exact by the error function; the operation Gelu is of opset 20."""
        if kind == "exact":
            inner = self.add("Erf", self.add("Mul", x, np.sqrt(0.5)))
            return self.add("Mul", self.add("Mul", x, 0.5), self.add("Add", inner, 1.0))
        cubic = self.add("Mul", self.add("Mul", self.add("Mul", x, x), x), 0.044715)
        inner = self.add("Tanh", self.add("Mul", self.add("Add", x, cubic), np.sqrt(2 / np.pi)))
        return self.add("Mul", self.add("Mul", x, 0.5), self.add("Add", inner, 1.0))

    def constant(self, value: Any, dtype: str = "") -> str:
        """Whole numbers stay such; others become the type of the graph, unless another is given."""
        array = np.asarray(value)
        array = array if array.dtype == np.int64 else array.astype(dtype or self.floats)
        name = f"/constant_{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name


def write_onnx(
    path: pathlib.Path,
    graph: Any,
    *,
    manifest: Mapping[str, Any],
    opsets: Mapping[str, int],
    ir_version: int = IR,
    functions: Sequence[Any] = (),
) -> None:
    """Checks a graph and writes it, with the manifest and our version as JSON in its metadata."""
    onnx = import_onnx(path)
    written = onnx.helper.make_model(
        graph,
        producer_name="siglip_jax",
        producer_version=__version__,
        ir_version=ir_version,
        opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=functions,
    )
    onnx.helper.set_model_props(written, {METADATA: json.dumps({**manifest, "siglip_jax": __version__})})
    if (size := written.ByteSize()) > MAX_BYTES:
        raise UserError(
            f"{path}: {size} bytes; one ONNX file holds {MAX_BYTES}: choose --precision=float16, or a SavedModel"
        )
    onnx.checker.check_model(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(written, str(path))
