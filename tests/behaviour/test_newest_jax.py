"""What the newest jax writes and TensorFlow 2.20 reads: across the two environments of the Makefile, where both are."""

import io
import json
import pathlib
import subprocess

import numpy as np
import PIL.Image
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEWEST, OLDEST = (ROOT / name / "bin/python" for name in (".venv-newest", ".venv"))  # make test-newest, make test

WRITE = """
import pathlib, sys
import jax, numpy as np, siglip_jax
from siglip_jax.export.golden import Call, golden_folder, write_golden
from siglip_jax.export.savedmodel import export_saved_model

model, picture, output = sys.argv[1:]
model = siglip_jax.load(model)
export_saved_model(model, output)
png = pathlib.Path(picture).read_bytes()
same = model.preprocessing.images([png])
others = np.random.default_rng(1).uniform(-1, 1, (4, *same.shape[1:])).astype(np.float32)
pixels, ids = np.concatenate([same, others]), model.preprocessing.text(["red shirt", ""])
image, text = model.encode_image(pixels), model.encode_text(ids)
calls = [
    Call(signature="pixels", inputs={"pixels": pixels}, expected=image, of="pictures", max_error=1e-5),
    Call(signature="serving_default", inputs={"image_bytes": [png]}, expected=image[:1], of="pictures", max_error=1e-5),
    Call(signature="text_ids", inputs={"ids": ids}, expected=text, of="titles", max_error=1e-5),
]
write_golden(golden_folder(pathlib.Path(output)), calls, model="..", runtime="savedmodel")
print(jax.__version__)
"""


@pytest.mark.skipif(not (NEWEST.exists() and OLDEST.exists()), reason="no .venv-newest: make test-newest makes it")
def test_a_saved_model_of_the_newest_jax_is_read_without_jax(tiny_model, process_environment, tmp_path):
    png = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(png, "PNG")
    (tmp_path / "picture.png").write_bytes(png.getvalue())
    tiny_model.save(tmp_path / "model")

    def run(python: pathlib.Path, *arguments: object) -> str:
        command = [str(python), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=process_environment(1))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    savedmodel = tmp_path / "savedmodel"
    version = run(NEWEST, "-c", WRITE, tmp_path / "model", tmp_path / "picture.png", savedmodel).split()[-1]
    assert tuple(map(int, version.split(".")[:2])) >= (0, 12)
    found = json.loads(run(OLDEST, "-I", savedmodel / "assets.extra" / "verify.py", "--json"))["calls"]
    assert [each["signature"] for each in found] == ["pixels", "serving_default", "text_ids"]
    assert all(each["within"] for each in found), found
