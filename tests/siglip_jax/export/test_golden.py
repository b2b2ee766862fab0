"""The program that travels with an export, run as a consumer runs it: by itself, beside a model that we know."""

import json
import subprocess
import sys

import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.export import golden

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def doubling(tmp_path_factory):
    """An ONNX file that doubles x."""
    folder = tmp_path_factory.mktemp("model")
    helper = onnx.helper
    value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3])  # noqa: E731
    node = helper.make_node("Add", ["x", "x"], ["embedding"])
    graph = helper.make_graph([node], "doubling", [value("x")], [value("embedding")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "doubling.onnx")
    return folder


def call(x, expected, **limits):
    return golden.Call(signature="x", inputs={"x": np.float32(x)}, expected=np.float32(expected), of="rows", **limits)


X = [[1, 2, 3], [4, 5, 6]]
TWICE = [[2, 4, 6], [8, 10, 12]]
CASES = {
    "equal": (call(X, TWICE, max_error=0.0), True),
    "near": (call(X, [[2, 4, 6], [8, 10, 12.5]], max_error=0.6), True),
    "too far": (call(X, [[2, 4, 6], [8, 10, 12.5]], max_error=0.4), False),
    "nearly parallel": (call(X, [[2, 4, 6], [8, 10, 12.1]], min_cosine=0.9999), True),
    "not parallel": (call(X, [[2, 4, 6], [8, 10, -12]], min_cosine=0.9999), False),
    "one row too few": (call(X, TWICE[:1], max_error=10.0), False),
    "not a number": (call([[1, 2, np.nan]], [[2, 4, 6]], max_error=10.0), False),
}


@pytest.mark.parametrize("case", CASES)
def test_beside_a_model_by_itself(case, doubling, tmp_path):
    given, within = CASES[case]
    golden.write_golden(tmp_path, [given], model=str(doubling / "doubling.onnx"), runtime="onnx")
    done = subprocess.run(
        [sys.executable, "-I", tmp_path / golden.VERIFY], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == (0 if within else 1), done.stderr
    assert ("DIFFERS" in done.stdout) is not within
    (found,) = golden.check_golden(tmp_path)
    assert (found["within"], found["signature"], found["of"]) == (within, "x", "rows")


def test_what_cannot_be_run_is_one_line(doubling, tmp_path):
    golden.write_golden(tmp_path, [call(X, TWICE, max_error=0.0)], model="gone.onnx", runtime="onnx")
    with pytest.raises(UserError, match=r"cannot be checked, by itself without siglip_jax and jax: .*gone\.onnx"):
        golden.check_golden(tmp_path)
    done = subprocess.run([sys.executable, tmp_path / golden.VERIFY], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    (tmp_path / "golden.json").write_text(json.dumps({"format": "another"}))
    with pytest.raises(UserError, match="format 'another'; expected"):
        golden.check_golden(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", "5", '{"calls": []}', "no limits"])
def test_nothing_checked_is_no_success(damage, doubling, tmp_path):
    golden.write_golden(tmp_path, [call(X, TWICE, max_error=0.0)], model=f"{doubling}/doubling.onnx", runtime="onnx")
    written = json.loads((tmp_path / "golden.json").read_text())
    if damage == "no limits":
        written["calls"][0]["limits"] = {}
    if damage in ("no limits", '{"calls": []}'):
        damage = json.dumps(written | ({} if damage == "no limits" else {"calls": []}))
    (tmp_path / "golden.json").write_text(damage)
    with pytest.raises(UserError):
        golden.check_golden(tmp_path)
    done = subprocess.run([sys.executable, tmp_path / golden.VERIFY], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_odd_pictures_are_served_and_read(tiny_model):
    pictures = golden.odd_pictures()
    assert len(set(pictures.values())) == len(pictures)
    assert tiny_model.encode_image(list(pictures.values())).shape[0] == len(pictures)
