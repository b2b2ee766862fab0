"""Node, C++ and Java embed golden pictures as the model does: `make test-consumers` brings what the first two need."""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest

from tools.workflow.exports.export import export
from tools.workflow.exports.export_target import check_target

SERVING = pathlib.Path(__file__).parents[2] / "examples" / "serving"
CONSUMERS = pathlib.Path(os.environ.get("SIGLIP_JAX_CONSUMERS", ".consumers")).absolute()  # holds node_modules
ONNXRUNTIME = pathlib.Path(os.environ.get("SIGLIP_JAX_ONNXRUNTIME", "onnxruntime")).absolute()  # include and lib
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def golden(tiny_model, shop_dataset, tmp_path_factory):
    """(the .onnx file, pictures without a suffix, float32 [n, d] of the model and of onnxruntime in Python).

    The pictures are there as PNG and as PPM.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("golden")
    path = folder / "images.onnx"
    export(tiny_model, check_target(path, dataset=shop_dataset, split="test", takes="images"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pictures, expected, by_python = [], [], []
    with np.load(folder / f"{path.name}.golden" / "golden.npz") as arrays:
        for name in arrays:
            if name.endswith("/images"):
                expected.append(arrays[name.replace("images", "expected")][:8])
                by_python.append(session.run(["embedding"], {"images": arrays[name][:8]})[0])
                for row, image in enumerate(arrays[name][:8]):
                    pictures.append(folder / f"{name.partition('/')[0]}-{row}")
                    for suffix in ("png", "ppm"):
                        PIL.Image.fromarray(image).save(f"{pictures[-1]}.{suffix}")
    return path, pictures, np.concatenate(expected), np.concatenate(by_python)


def compare(command, golden, *, suffix, cwd=None):
    path, pictures, expected, by_python = golden
    files = [f"{picture}.{suffix}" for picture in pictures]
    done = subprocess.run([*map(str, command), str(path), *files], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.asarray([json.loads(line) for line in done.stdout.splitlines()])
    cosine, error = (found * expected).sum(axis=1).min(), np.abs(found - expected).max()
    same = np.abs(found - by_python).max()
    print(f"{len(found)} pictures: smallest cosine {cosine:.7f}, largest error {error:.1e}, to Python {same:.1e}")
    assert cosine > 0.9999  # as the export's own check
    assert same < 1e-6


def test_node(golden, tmp_path):
    if not (CONSUMERS / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip(f"no onnxruntime-node in {CONSUMERS}")
    (tmp_path / "node_modules").symlink_to(CONSUMERS / "node_modules")
    shutil.copy(SERVING / "embed.mjs", tmp_path)  # a module is looked for from where the program lies
    compare(["node", "embed.mjs"], golden, suffix="png", cwd=tmp_path)


def test_cpp(golden, tmp_path):
    if not (ONNXRUNTIME / "include" / "onnxruntime_cxx_api.h").exists() or not shutil.which("g++"):
        pytest.skip(f"no g++, or no onnxruntime in {ONNXRUNTIME}")
    lib = ONNXRUNTIME / "lib"
    command = ["g++", "-std=c++17", SERVING / "embed.cc", "-I", ONNXRUNTIME / "include", "-L", lib, "-lonnxruntime"]
    subprocess.run([*command, f"-Wl,-rpath,{lib}", "-o", tmp_path / "embed"], check=True)
    compare([tmp_path / "embed"], golden, suffix="ppm")


def test_java(golden):
    jars = [*CONSUMERS.glob("onnxruntime*.jar")]
    if not jars or not shutil.which("java"):
        pytest.skip(f"no java, or no onnxruntime*.jar in {CONSUMERS}")
    compare(["java", "-cp", jars[0], SERVING / "Embed.java"], golden, suffix="png")
