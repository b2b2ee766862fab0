"""The rows of both benches: how each export is written, and which consumer reads it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from siglip_jax.errors import UserError, check_choice
from tools.bench.export_parts.consumer_process import Consumer

RESIZES = ("bilinear", "bicubic")  # that PIL does as the library


def _native(model: Any, path: pathlib.Path) -> None:
    model.save(path)


def _saved_model(model: Any, path: pathlib.Path) -> None:
    from siglip_jax.export.savedmodel import export_saved_model

    export_saved_model(model, path, text="none")


def _saved_model_in_bfloat16(model: Any, path: pathlib.Path) -> None:
    _saved_model(model.replace(module=model.module.clone(dtype="bfloat16")), path)


def _programs(model: Any, path: pathlib.Path) -> None:
    from siglip_jax.export.stablehlo_folder import export_programs

    export_programs(model, path)


def _onnx(precision: str) -> Callable[[Any, pathlib.Path], None]:
    def write(model: Any, path: pathlib.Path) -> None:
        from siglip_jax.export.onnx.onnx_towers import export_tower

        export_tower(model, path, precision=precision)

    return write


def _huggingface(model: Any, path: pathlib.Path) -> None:
    model.save(path, format="huggingface")


@dataclasses.dataclass(frozen=True)
class Row:
    """An export and its consumer.

    Attributes:
      kind: of `consumer.KINDS`.
      needs: packages of the consumer, and of what writes the export.
      write: (model, path), which writes it.
      suffix: of the path.
    """

    kind: str
    needs: tuple[str, ...]
    write: Callable[[Any, pathlib.Path], None]
    suffix: str = ""


JAX, TRANSFORMERS = "jax", "transformers"
ROWS = {
    JAX: Row("jax", (), _native),
    "savedmodel": Row("savedmodel", ("tensorflow",), _saved_model),
    "savedmodel-bfloat16": Row("savedmodel", ("tensorflow",), _saved_model_in_bfloat16),
    "stablehlo": Row("stablehlo", (), _programs),
    "onnx": Row("onnx", ("onnx", "onnxruntime"), _onnx("float32"), ".onnx"),
    "onnx-float16": Row("onnx", ("onnx", "onnxruntime"), _onnx("float16"), ".onnx"),
    "onnx-int8": Row("onnx", ("onnx", "onnxruntime"), _onnx("int8"), ".onnx"),
    TRANSFORMERS: Row("transformers", ("torch", "transformers"), _huggingface),
}


def chosen(rows: Sequence[str], *, python: str | None) -> list[str]:
    """Those of `rows`, JAX first, that can run here; what cannot is printed with its reason.

    Args:
      python: one that has torch and transformers, for their row; ours when None.

    Raises:
      UserError: an unknown row.
    """
    for name in rows:
        check_choice("--rows", name, tuple(ROWS))
    found = []
    for name, row in ROWS.items():
        if name != JAX and name not in rows:
            continue
        needs = () if name == TRANSFORMERS and python else row.needs
        if absent := [each for each in needs if importlib.util.find_spec(each) is None]:
            hint = "; --transformers=PYTHON names a Python that has them" if name == TRANSFORMERS else ""
            print(f"{name}: left out, {' and '.join(absent)} not installed{hint}", flush=True)
        else:
            found.append(name)
    return found


def write_exports(model: Any, folder: pathlib.Path, names: Sequence[str]) -> dict[str, pathlib.Path]:
    """Each export of `model`, {name: its file or folder}.

    Raises:
      UserError: a model whose pictures PIL does not read alike.
    """
    if model.preprocessing is None or model.preprocessing.resize not in RESIZES:
        raise UserError(
            f"the consumers here read pictures with PIL: expected a model with resize {' or '.join(RESIZES)}"
        )
    paths = {}
    for name in names:
        paths[name] = folder / f"{name}{ROWS[name].suffix}"
        ROWS[name].write(model, paths[name])
    return paths


@contextlib.contextmanager
def consumers_of(
    paths: dict[str, pathlib.Path], pictures: pathlib.Path, *, folder: pathlib.Path, python: str | None
) -> Iterator[dict[str, Consumer]]:
    """A process for each export; all end with the context."""
    started: dict[str, Consumer] = {}
    try:
        for name, path in paths.items():
            runs = python if name == TRANSFORMERS and python else sys.executable
            log = folder / f"{name}.log"
            started[name] = Consumer(name, ROWS[name].kind, path, pictures, python=runs, log=log)
        yield started
    finally:
        for each in started.values():
            each.close()


def mebibytes(path: pathlib.Path) -> float:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files) / 2**20
