"""What tests across environments share."""

import io
import subprocess

import numpy as np
import PIL.Image
import pytest

WRITE = """
import pathlib, sys
import jax, numpy as np, siglip_jax
from siglip_jax.export.golden import Call, golden_folder, write_golden
from siglip_jax.export.limits import limits_of
from siglip_jax.export.savedmodel import export_saved_model

model, picture, output, dtype = sys.argv[1:]
model = siglip_jax.load(model)
model = model.replace(module=model.module.clone(dtype=dtype))
export_saved_model(model, output)
png = pathlib.Path(picture).read_bytes()
same = model.preprocessing.images([png])
others = np.random.default_rng(1).uniform(-1, 1, (4, *same.shape[1:])).astype(np.float32)
pixels, ids = np.concatenate([same, others]), model.preprocessing.text(["red shirt", ""])
image, text = model.encode_image(pixels), model.encode_text(ids)
pictures, titles = limits_of(model, pixels).max_error, limits_of(model, ids, tower="text").max_error
calls = [
    Call(signature="pixels", inputs={"pixels": pixels}, expected=image, of="pictures", max_error=pictures),
    Call(signature="serving_default", inputs={"image_bytes": [png]}, expected=image[:1], of="pictures",
         max_error=pictures),
    Call(signature="text_ids", inputs={"ids": ids}, expected=text, of="titles", max_error=titles),
]
write_golden(golden_folder(pathlib.Path(output)), calls, model="..", runtime="savedmodel")
print(jax.__version__)
"""


@pytest.fixture(scope="session")
def run_python(process_environment):
    """run_python(python, *arguments) -> what that interpreter prints."""

    def run(python, *arguments) -> str:
        command = [str(python), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=process_environment(1))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def write_saved_model(tiny_model, run_python, tmp_path_factory):
    """write_saved_model(python, folder, dtype="float32") -> the jax that wrote it: both towers, with golden inputs."""
    given, png = tmp_path_factory.mktemp("given"), io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(png, "PNG")
    (given / "picture.png").write_bytes(png.getvalue())
    tiny_model.save(given / "model")

    def write(python, folder, *, dtype="float32") -> tuple[int, ...]:
        version = run_python(python, "-c", WRITE, given / "model", given / "picture.png", folder, dtype).split()[-1]
        return tuple(map(int, version.split(".")[:2]))

    return write
