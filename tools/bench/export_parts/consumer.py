"""A consumer of an export: encoded pictures to embeddings, with what runs that export and nothing of this library.

    python consumer.py KIND PATH PICTURES.npz

A program of its own: it reads questions from stdin, a JSON object a line, and answers each on stdout likewise.
{"start": 0, "stop": 64, "batch": 16, "save": "found.npy" or null} embeds pictures; the answer is {"peak_mib": ...}.
Files and folders that decode no pictures have them read by PIL, one after the other.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Embed = Callable[[Sequence[bytes]], np.ndarray]  # of one batch


def saved_model(folder: pathlib.Path) -> Embed:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    with contextlib.suppress(ImportError):
        import tensorflow_text  # noqa: F401 (brings the operations of graphs that take strings)
    loaded = tf.saved_model.load(str(folder))
    default = loaded.signatures["serving_default"]

    def embed(pictures: Sequence[bytes]) -> np.ndarray:
        assert loaded is not None  # it holds the variables
        return default(image_bytes=tf.constant(list(pictures)))["embedding"].numpy()

    return embed


def onnx_file(path: pathlib.Path) -> Embed:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()  # its default counts what it takes for physical cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["siglip_jax"])
    return lambda pictures: session.run(["embedding"], {"pixels": pixels(pictures, manifest["preprocessing"])})[0]


def programs(folder: pathlib.Path) -> Embed:
    encode = runpy.run_path(str(folder / "consume.py"))["load"]("image", folder)
    manifest = json.loads((folder / "siglip_jax.json").read_text())
    return lambda pictures: np.asarray(encode(pixels(pictures, manifest["preprocessing"])))


def library(path: pathlib.Path) -> Embed:
    import siglip_jax

    return siglip_jax.load(str(path)).encode_image


def transformers_model(folder: pathlib.Path) -> Embed:
    import PIL.Image
    import torch
    import transformers

    torch.set_num_threads(cores())
    model = transformers.AutoModel.from_pretrained(folder).float().eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)

    def embed(pictures: Sequence[bytes]) -> np.ndarray:
        images = [PIL.Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
        with torch.inference_mode():
            found = model.get_image_features(**processor(images=images, return_tensors="pt"))
            found = found if torch.is_tensor(found) else found.pooler_output
            return torch.nn.functional.normalize(found, dim=-1).numpy()

    return embed


KINDS = {  # and what must not be there, so that nothing leans on it
    "savedmodel": (saved_model, ("siglip_jax", "jax")),
    "onnx": (onnx_file, ("siglip_jax", "jax", "tensorflow")),
    "stablehlo": (programs, ("siglip_jax", "tensorflow")),
    "jax": (library, ("tensorflow",)),
    "transformers": (transformers_model, ("siglip_jax", "jax", "tensorflow")),
}


def pixels(pictures: Sequence[bytes], preprocessing: dict[str, Any]) -> np.ndarray:
    """float32 [n, h, w, 3], as the preprocessing that travels with an export says."""
    import PIL.Image

    (height, width), (low, high) = preprocessing["image_size"], preprocessing["value_range"]
    resize = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
    resample = resize[preprocessing["resize"]]
    images = [PIL.Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    rows = [np.asarray(image.resize((width, height), resample)) for image in images]
    return np.stack(rows).astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mib() -> float:
    """The most that this process has held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # unlike getrusage's, this is not at least what its parent held
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(kind: str, path: str, file: str) -> None:
    # What a runtime prints goes to stderr, and answers alone to stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run, absent = KINDS[kind]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    with np.load(file, allow_pickle=False) as stored:
        pictures = [stored[name].tobytes() for name in stored.files]
    embed: Embed | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        embed = embed or run(pathlib.Path(path))  # when asked, so that processes do not load all at once
        chosen = pictures[asked["start"] : asked["stop"]]
        found = [embed(chosen[k : k + asked["batch"]]) for k in range(0, len(chosen), asked["batch"])]
        if asked["save"]:
            np.save(asked["save"], np.concatenate(found))
        print(json.dumps({"peak_mib": peak_mib()}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
