"""What runs an export: a program without this library, and without JAX unless the export is one of JAX's.

    python export_consumer.py JOB     # the folder of job.json and inputs.npz; writes answers.json and answers.npz

job.json: {"runtime": "savedmodel", "onnx" or "jax", "calls": [{"key", "export", "signature", "name", "rows"}]}. `rows`
is a number of encoded pictures or titles, None for an array. ONNX files and programs for JAX decode no pictures: those
of the signature "serving_default" are read here by PIL, as the preprocessing that travels with the export says.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import runpy
import sys

import numpy as np

ABSENT = {"savedmodel": ("siglip_jax", "jax"), "onnx": ("siglip_jax", "jax", "tensorflow")}


@functools.cache
def opened(runtime, path):
    """(signature, name, values) -> embeddings."""
    return {"savedmodel": saved_model, "onnx": onnx_file, "jax": programs}[runtime](pathlib.Path(path))


def saved_model(folder):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    with contextlib.suppress(ImportError):
        import tensorflow_text  # noqa: F401 (brings the operations of graphs that take strings)
    signatures = tf.saved_model.load(str(folder)).signatures
    return lambda signature, name, values: signatures[signature](**{name: tf.constant(values)})["embedding"].numpy()


def onnx_file(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["siglip_jax"])

    def run(signature, _, values):
        given = decoded(values, manifest["preprocessing"]) if signature == "serving_default" else values
        return session.run(["embedding"], {name: given})[0]

    return run


def programs(folder):
    load = runpy.run_path(str(folder / "consume.py"))["load"]
    towers = {tower: load(tower, folder) for tower in ("image", "text")}
    manifest = json.loads((folder / "siglip_jax.json").read_text())

    def run(signature, _, values):
        given = decoded(values, manifest["preprocessing"]) if signature == "serving_default" else values
        return np.asarray(towers["text" if signature == "text_ids" else "image"](given))

    return run


def decoded(pictures, preprocessing):
    """float32 [n, h, w, 3]."""
    import PIL.Image

    assert preprocessing["resize"] == "bilinear", preprocessing
    (height, width), (low, high) = preprocessing["image_size"], preprocessing["value_range"]
    rows = []
    for picture in pictures:
        image = PIL.Image.open(io.BytesIO(picture))
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        rows.append(np.asarray(image.convert("RGB").resize((width, height), PIL.Image.Resampling.BILINEAR)))
    return np.stack(rows).astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)


def peak_mib():
    """Of this process, where the system tells."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def main(folder):
    job = json.loads((folder / "job.json").read_text())
    sys.modules.update(dict.fromkeys(ABSENT.get(job["runtime"], ("siglip_jax",))))
    arrays, calls = {}, {}
    with np.load(folder / "inputs.npz") as inputs:
        for call in job["calls"]:
            key, rows = call["key"], call["rows"]
            values = inputs[key] if rows is None else [inputs[f"{key}/{row}"].tobytes() for row in range(rows)]
            before, said = peak_mib(), ""
            try:
                arrays[key] = opened(job["runtime"], call["export"])(call["signature"], call["name"], values)
            except Exception as error:  # what the runtime says is the answer
                said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            calls[key] = {"status": said, "grew_mib": None if before is None else peak_mib() - before}
    np.savez(folder / "answers.npz", **arrays)
    (folder / "answers.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
