"""What the newest jax writes and TensorFlow 2.20 reads: across the two environments of the Makefile, where both are."""

import io
import pathlib
import subprocess

import numpy as np
import PIL.Image
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEWEST, OLDEST = (ROOT / name / "bin/python" for name in (".venv-newest", ".venv"))  # make test-newest, make test

WRITE = """
import sys
import jax, numpy as np, siglip_jax
from siglip_jax.export.savedmodel import export_saved_model

model, inputs, output, expected = sys.argv[1:]
model = siglip_jax.load(model)
export_saved_model(model, output)
with np.load(inputs) as arrays:
    np.save(expected, model.encode_image(arrays["pixels/pixels"]))
print(jax.__version__)
"""


@pytest.mark.skipif(not (NEWEST.exists() and OLDEST.exists()), reason="no .venv-newest: make test-newest makes it")
def test_a_saved_model_of_the_newest_jax_is_read_without_jax(tiny_model, process_environment, tmp_path):
    png = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(png, "PNG")
    same = tiny_model.preprocessing.images([png.getvalue()])
    others = np.random.default_rng(1).uniform(-1, 1, (4, *same.shape[1:])).astype(np.float32)
    tiny_model.save(tmp_path / "model")
    np.savez(
        tmp_path / "inputs.npz",
        **{
            "pixels/pixels": np.concatenate([same, others]),
            "serving_default/image/0": np.frombuffer(png.getvalue(), np.uint8),
        },
    )

    def run(python: pathlib.Path, *arguments: object) -> str:
        command = [str(python), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=process_environment(1))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    files = [tmp_path / name for name in ("model", "inputs.npz", "savedmodel", "expected.npy", "found.npz")]
    model, inputs, savedmodel, expected, found = files
    version = run(NEWEST, "-c", WRITE, model, inputs, savedmodel, expected).split()[-1]
    assert tuple(map(int, version.split(".")[:2])) >= (0, 12)
    run(OLDEST, "-m", "siglip_jax.export.savedmodel", savedmodel, inputs, found)
    with np.load(found) as arrays:
        np.testing.assert_allclose(arrays["pixels"], np.load(expected), rtol=0, atol=1e-5)
        np.testing.assert_allclose(arrays["serving_default"], np.load(expected)[:1], rtol=0, atol=1e-5)
