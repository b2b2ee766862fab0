"""What the newest jax writes and TensorFlow 2.20 reads: across the two environments of the Makefile, where both are."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEWEST, OLDEST = (ROOT / name / "bin/python" for name in (".venv-newest", ".venv"))  # make test-newest, make test


@pytest.mark.skipif(not (NEWEST.exists() and OLDEST.exists()), reason="no .venv-newest: make test-newest makes it")
def test_a_saved_model_of_the_newest_jax_is_read_without_jax(write_saved_model, run_python, tmp_path):
    savedmodel = tmp_path / "savedmodel"
    assert write_saved_model(NEWEST, savedmodel) >= (0, 12)
    found = json.loads(run_python(OLDEST, "-I", savedmodel / "assets.extra" / "verify.py", "--json"))["calls"]
    assert [each["signature"] for each in found] == ["pixels", "serving_default", "text_ids"]
    assert all(each["within"] for each in found), found
