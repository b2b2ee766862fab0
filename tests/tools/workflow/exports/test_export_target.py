"""Mistakes that are told before a model is loaded, and exports that end early."""

import os
import signal
import time

import pytest

from siglip_jax import cli
from siglip_jax.errors import UserError
from tools.workflow.exports.export_target import check_target

WRONG = {
    "serving_version": (
        {"serving_version": 1},
        "a.onnx",
        "--serving_version is of SavedModels; leave it out for .onnx",
    ),
    "target": ({"target_tensorflow": "2.16"}, "a.stablehlo", "--target_tensorflow is of SavedModels"),
    "text": ({"text": "strings"}, "a.onnx", "--text is of SavedModels"),
    "reduce": ({"reduce": "truncate:4"}, "a.onnx", "--reduce is of SavedModels"),
    "output_dtype": ({"output_dtype": "int8"}, "a.stablehlo", "--output_dtype is of SavedModels"),
    "precision": ({"precision": "int8"}, "a", "--tower, --precision and --takes are of .onnx files"),
    "no such reduction": ({"reduce": "pca"}, "a", "expected pca:WIDTH"),
    "PCA of nothing": ({"reduce": "pca:4"}, "a", "give --store"),
    "store of nothing": ({"store": "s"}, "a", "leave it out"),
    "taken": ({}, "taken", "exists already"),
    "in a file": ({}, "file/a/b", "file is a file"),
    "no dataset": ({"dataset": "nowhere"}, "a", "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    options, output, said = WRONG[case]
    with pytest.raises(UserError) as error:
        check_target(output, **options)
    assert said in str(error.value)
    assert sorted(os.listdir()) == ["file", "taken"]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match="cannot be written to"):
        check_target(tmp_path / "a" / "b")


def test_the_program_says_them_before_it_looks_for_the_model(tmp_path, capsys):
    line = ["export", "--model=no-such-model", f"--output={tmp_path / 'a.onnx'}", "--serving_version=1"]
    assert cli.main(line) == 2
    assert "--serving_version is of SavedModels" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_nothing_stays_of_what_ends_early(when, tmp_path, monkeypatch):
    target = check_target(tmp_path / "new" / "deep" / "a.onnx")

    def write():
        with target.written_aside() as path:
            path.write_text("model")
            path.with_name("a.onnx.json").write_text("{}")
            assert list((tmp_path / "new" / "deep").iterdir()) == [path.parent]
            if when == "writing":
                raise KeyboardInterrupt
            (target.output.parent / "a.onnx.json").mkdir()

    with pytest.raises(KeyboardInterrupt if when == "writing" else UserError):
        write()
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == ([] if when == "writing" else ["a.onnx.json", "deep", "new"])  # what somebody else put there


KILLED = """
import pathlib, sys, time
import numpy as np
from siglip_jax import cli, loading
from siglip_jax.export import savedmodel
from tools.workflow.exports import export

class Model:
    source, preprocessing = "", None
    class architecture:
        features, naflex, text_length, vocab_size = {"cnn": 2}, False, 3, 11
        class image: numbers = 2
    params = {"img": {"mean": np.zeros(2), "scale": np.ones(2)}}

def write(model, path, **_):
    pathlib.Path(path).mkdir()
    (pathlib.Path(path) / "half").write_text("")
    print("half", flush=True)
    time.sleep(60)

loading.load = lambda name: Model
export.of_features = export.of_titles = lambda *_, **__: ([], None)
savedmodel.export_saved_model = write
sys.exit(cli.main(["export", "--model=m", f"--output={sys.argv[1]}"]))
"""


def test_a_killed_export_leaves_nothing(tmp_path, start_python):
    process = start_python(KILLED, tmp_path / "new" / "savedmodel")
    for _ in range(6000):
        if list(tmp_path.glob("new/.savedmodel.partial-*/savedmodel/half")):
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert list(tmp_path.iterdir()) == []
