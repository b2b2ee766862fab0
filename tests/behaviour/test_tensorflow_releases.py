"""Every TensorFlow of `READERS` reads both towers, as the oldest and the newest jax of our range write them.

`make test-tensorflows` makes an environment for each release, with TensorFlow and nothing of ours, and runs this.
"""

import json
import pathlib
import subprocess

import pytest

from siglip_jax.export.stablehlo import READERS

ROOT = pathlib.Path(__file__).parents[2]
WRITERS = {name: ROOT / name / "bin/python" for name in (".venv", ".venv-newest")}
FOLDER = ROOT / ".venv-tensorflow"
DTYPES = ("float32", "bfloat16")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.exists(), reason="no .venv-tensorflow: make test-tensorflows makes it"),
]


@pytest.fixture(scope="module")
def written(write_saved_model, tmp_path_factory):
    """{(environment that wrote it, dtype): folder}."""
    folder, found = tmp_path_factory.mktemp("written"), {}
    for name, python in WRITERS.items():
        for dtype in DTYPES if python.exists() else ():
            found[name, dtype] = folder / f"{name.strip('.')}-{dtype}"
            write_saved_model(python, found[name, dtype], dtype=dtype)
    return found


@pytest.mark.parametrize("release", READERS)
def test_it_reads_what_it_is_said_to_read(release, written):
    python = FOLDER / release / "bin/python"
    if not python.exists():
        pytest.skip(f"no {python}")
    for key, folder in written.items():
        target = json.loads((folder / "siglip_jax.json").read_text())["target_tensorflow"]
        line = [python, "-I", folder / "assets.extra" / "verify.py", "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if list(READERS).index(release) < list(READERS).index(target):
            assert done.returncode == 2, (key, done.stdout)  # too new for it, in one line
            assert len(done.stderr.strip().splitlines()[-1]) < 600
            continue
        assert done.returncode == 0, (key, done.stdout, done.stderr[-2000:])
        found = json.loads(done.stdout.strip().splitlines()[-1])["calls"]
        assert [each["signature"] for each in found] == ["pixels", "serving_default", "text_ids"]
        print(release, *key, *(f"{each['signature']} {each['max_error']:.1e}" for each in found))
