"""The SavedModel of an adapter: its signature "features" against the formula in float64, in a process without JAX."""

import json

import pytest

from siglip_jax.errors import UserError
from siglip_jax.export import savedmodel
from siglip_jax.export.golden import Call, check_golden, write_golden

pytest.importorskip("tensorflow")


def test_features_without_jax_equal_the_formula(adapter, tmp_path):
    model, features = adapter.model, adapter.vectors(9)
    savedmodel.export_saved_model(model, tmp_path / "export", text="none")
    z, calls = adapter.by_the_formula(features), []
    for rows in (9, 1, 4):  # any batch
        some = {name: x[:rows] for name, x in features.items()}
        calls.append(Call(signature="features", inputs=some, expected=z[:rows], of="rows", max_error=1e-5))
    write_golden(tmp_path / "golden", calls, model="../export", runtime="savedmodel")
    assert [(each["rows"], each["within"]) for each in check_golden(tmp_path / "golden")] == [
        (9, True), (1, True), (4, True),
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "export" / savedmodel.MANIFEST).read_text())
    assert manifest["features"] == {"cnn-2": 7, "pixels": 5}
    assert manifest["signatures"] == {"features": "cnn-2: float32 [n, 7], pixels: float32 [n, 5]"}
    assert manifest["output"] == "embedding: float32 [n, 10], unit norm"


def test_other_encoders_are_refused(adapter, tmp_path):
    with pytest.raises(UserError, match="encoders for cnn-2; expected one for each of cnn-2, pixels"):
        savedmodel.export_saved_model(adapter.model, tmp_path / "export", encoders={"cnn-2": None})
