"""Does an export give what its model gave? Runs it on golden pictures and titles and compares the answers.

A program of its own, which travels beside every export: it needs numpy and what runs the model (TensorFlow, with
tensorflow-text where titles go in as strings; onnxruntime; or JAX), and nothing of the project that wrote it.

    python verify.py            # the export that it lies in
    python verify.py FOLDER     # the folder that holds golden.json; --json for one JSON object

Exit code 0 when every answer is within its limits, 1 when one is not, 2 when the export cannot be run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_BESIDE = ".golden"  # of the folder beside an .onnx file
GOLDEN, ARRAYS, ANSWERS = "golden.json", "golden.npz", "answers.npz"
FORMAT = "siglip-jax golden 1"

Run = Callable[[str, dict[str, Any], str], np.ndarray]  # signature, {input: values}, output -> its values


def verify(folder: pathlib.Path, *, sample: pathlib.Path | None = None) -> list[dict[str, Any]]:
    """A row for each call: {"signature", "rows", "max_error", "min_cosine" or None, "limits", "within"}.

    Args:
      folder: holds golden.json and golden.npz.
      sample: another such folder, whose calls are answered as well, not judged: answers.npz in it holds the answers,
        "0" of the first call.
    """
    golden = json.loads((folder / GOLDEN).read_text())
    if golden.get("format") != FORMAT:
        raise ValueError(f"{folder / GOLDEN}: format {golden.get('format')!r}; expected {FORMAT!r}")
    if not golden["calls"]:
        raise ValueError(f"{folder / GOLDEN}: no calls, so nothing would be checked")
    model = folder / golden["model"]
    if golden["runtime"] == "onnx" and folder.name.endswith(_BESIDE):  # the file that it lies beside, renamed or not
        model = folder.resolve().with_name(folder.name.removesuffix(_BESIDE))
    run = {"savedmodel": _saved_model, "onnx": _onnx, "jax": _programs}[golden["runtime"]](model)
    results = []
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        for number, call in enumerate(golden["calls"]):
            inputs = {name: _values(arrays, f"{number}/{name}", rows) for name, rows in call["inputs"].items()}
            expected = arrays[f"{number}/expected"]
            results.append(_compared(call, run(call["signature"], inputs, call["output"]), expected))
    if sample is not None:
        _answer(run, sample)
    return results


def _answer(run: Run, sample: pathlib.Path) -> None:
    calls = json.loads((sample / GOLDEN).read_text())["calls"]
    answers = {}
    with np.load(sample / ARRAYS, allow_pickle=False) as arrays:
        for number, call in enumerate(calls):
            inputs = {name: _values(arrays, f"{number}/{name}", rows) for name, rows in call["inputs"].items()}
            answers[str(number)] = run(call["signature"], inputs, call["output"])
    np.savez(sample / ANSWERS, **answers)  # type: ignore[arg-type]


def _values(arrays: Any, key: str, rows: int | None) -> Any:
    """An array, or a list of bytes: one array of each, since numpy's own bytes lose zeros at their end."""
    return arrays[key] if rows is None else [arrays[f"{key}/{row}"].tobytes() for row in range(rows)]


def _compared(call: dict[str, Any], found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    limits = call["limits"]
    if found.dtype == np.int8:  # whose differences have more than eight bits
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
    cosine = None
    if "min_cosine" in limits:
        cosine = float("nan")
        if found.shape == expected.shape:
            norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
            cosine = float((np.sum(found.astype(np.float64) * expected, axis=-1) / norms).min())
    if not limits.keys() & {"max_error", "min_cosine"}:
        raise ValueError(f"signature {call['signature']}: no limits, so nothing would be checked")
    within = error <= limits.get("max_error", np.inf) and (cosine is None or cosine >= limits["min_cosine"])
    return {
        "signature": call["signature"], "of": call["of"], "rows": len(expected), "max_error": error,
        "min_cosine": cosine, "limits": limits, "within": bool(within),
    }  # fmt: skip


def _saved_model(folder: pathlib.Path) -> Run:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets every start with lines about the processor
    import tensorflow as tf

    with contextlib.suppress(ImportError):
        import tensorflow_text  # noqa: F401 (brings the operations of graphs that take strings)
    signatures = tf.saved_model.load(str(folder)).signatures

    def run(signature: str, inputs: dict[str, Any], output: str) -> np.ndarray:
        return signatures[signature](**{name: tf.constant(values) for name, values in inputs.items()})[output].numpy()

    return run


def _onnx(file: pathlib.Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(signature: str, inputs: dict[str, Any], output: str) -> np.ndarray:
        return session.run([output], inputs)[0]

    return run


def _programs(folder: pathlib.Path) -> Run:
    """As consume.py beside them does it, which is not imported: what lies in a folder is not run to check it."""
    from jax import export
    from safetensors.numpy import load_file

    weights = load_file(folder / "weights.safetensors")

    def run(signature: str, inputs: dict[str, Any], output: str) -> np.ndarray:
        tower, part = ("text", "txt/") if signature == "text_ids" else ("image", "img/")
        program = export.deserialize(bytearray((folder / f"{tower}.jax").read_bytes()))
        given = dict(inputs) if signature == "features" else next(iter(inputs.values()))
        return np.asarray(program.call({name: x for name, x in weights.items() if name.startswith(part)}, given))

    return run


def table(results: list[dict[str, Any]]) -> str:
    rows = [("signature", "rows", "largest error", "smallest cosine", "limit", "")]
    for each in results:
        limits = each["limits"]
        said = [f"error <= {limits['max_error']:.1e}"] if "max_error" in limits else []
        said += [f"cosine >= {limits['min_cosine']:.6f}"] if "min_cosine" in limits else []
        cosine = "" if each["min_cosine"] is None else f"{each['min_cosine']:.6f}"
        verdict = "ok" if each["within"] else "DIFFERS"
        rows.append((each["signature"], f"{each['rows']} {each['of']}", f"{each['max_error']:.1e}", cosine,
                     ", ".join(said), verdict))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--json", action="store_true", help="one JSON object in the place of the table")
    parser.add_argument("--sample", type=pathlib.Path, help="more questions, whose answers are written beside them")
    options = parser.parse_args()
    try:
        results = verify(options.folder, sample=options.sample)
    except Exception as error:  # whatever the runtime raises
        print(f"{options.folder}: cannot be run: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    print(json.dumps({"calls": results}) if options.json else table(results))
    return 0 if all(each["within"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
