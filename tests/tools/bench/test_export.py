"""`bench export` and `bench formats`: which rows run, what a consumer says that cannot, and both from start to end."""

import importlib.util
import sys

import numpy as np
import pytest

from siglip_jax import cli
from siglip_jax.errors import UserError
from tools.bench.export_parts import consumer, export_rows
from tools.bench.export_parts.consumer_process import Consumer, write_pictures

ABSENT = ("savedmodel-bfloat16", "transformers")  # not asked for; perhaps not installed


def test_which_rows_run(monkeypatch, capsys):
    find = importlib.util.find_spec
    missing = ("torch", "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    asked = ["onnx-int8", "transformers", "stablehlo"]
    assert export_rows.chosen(asked, python=None) == ["jax", "stablehlo", "onnx-int8"]
    said = capsys.readouterr().out
    assert said.startswith("transformers: left out, torch and transformers not installed; --transformers=PYTHON names")
    assert export_rows.chosen(asked, python="python")[-1] == "transformers"
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="--rows='onxx'; expected one of jax"):
        export_rows.chosen(["onxx"], python=None)


def test_every_row_has_a_consumer():
    assert {row.kind for row in export_rows.ROWS.values()} == set(consumer.KINDS)


def test_a_consumer_that_cannot_run_says_why(tmp_path):
    write_pictures(tmp_path / "pictures.npz", [b"no picture", b""])
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    given = tmp_path / "broken.onnx", tmp_path / "pictures.npz"
    process = Consumer("onnx", "onnx", *given, python=sys.executable, log=tmp_path / "log")
    try:
        with pytest.raises(UserError, match=r"onnx: its process ended: .*(Protobuf|INVALID_PROTOBUF|Fail)"):
            process.embed(0, 2, batch=2)
    finally:
        process.close()


def test_pixels_are_those_of_the_library(tiny_model):
    """Which reads no export, and has a decoder and a resize of its own."""
    from siglip_jax.export.golden import odd_pictures

    names = ("grey JPEG", "PNG with alpha", "very wide JPEG", "PNG with a palette", "animated GIF", "BMP")
    pictures = [odd_pictures()[name] for name in names]
    for resize in export_rows.RESIZES:
        preprocessing = tiny_model.preprocessing.replace(resize=resize)
        found = consumer.pixels(pictures, preprocessing.to_json())
        np.testing.assert_allclose(found, preprocessing.images(pictures), atol=1e-6)


def rows_of(text, names):
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    return {name: lines[name] for name in names}


@pytest.mark.slow
def test_export_from_start_to_end(capsys):
    options = ["--preset=small", "--count=3", "--repetitions=1", "--singles=1"]
    assert cli.main(["bench", "export", *options]) == 0
    for name, row in rows_of(
        capsys.readouterr().out, [name for name in export_rows.ROWS if name not in ABSENT]
    ).items():
        assert float(row[-1]) > (0.99 if name == "onnx-int8" else 0.9999), row
        assert all(float(figure.replace(",", "")) > 0 for figure in row[1:])


@pytest.mark.slow
def test_formats_rank_alike(trained_workdir, shop_dataset, config_file, capsys):
    flags = [f"--model={trained_workdir}", f"--dataset={shop_dataset}", f"--config={config_file}"]
    assert cli.main(["bench", "formats", *flags]) == 0
    rows = rows_of(capsys.readouterr().out, [name for name in export_rows.ROWS if name != "transformers"])
    exact = {name: row for name, row in rows.items() if name in ("jax", "savedmodel", "stablehlo", "onnx")}
    assert len(exact) == 4
    assert len({row[3] for row in exact.values()}) == 1, exact  # nDCG to five digits
    assert all(float(row[1]) > 0.99999 for row in exact.values()), exact
