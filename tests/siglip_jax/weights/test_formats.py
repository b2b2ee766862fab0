"""The table of formats: what is detected as what, and that one entry adds a format to load, save and convert."""

import json

import jax
import numpy as np
import pytest
from etils import epath

import siglip_jax
from siglip_jax import cli
from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture
from siglip_jax.weights import tensors
from siglip_jax.weights.formats import FORMATS, detect_format, written_formats
from siglip_jax.weights.stored_model import Format, StoredModel


@pytest.mark.parametrize(
    ("path", "name"),
    [("hf_siglip", "huggingface"), ("big_vision_siglip_loop.weights.npz", "big_vision")],
)
def test_files_of_others_are_detected(golden, path, name):
    assert detect_format(epath.Path(golden / path)) is FORMATS[name]


def test_our_own_folders_are_detected(tiny_model, trained_workdir, tmp_path):
    tiny_model.save(tmp_path / "model")
    checkpoint = next(path for path in (trained_workdir / "checkpoints").iterdir() if path.name.isdigit())
    for path in (tmp_path / "model", trained_workdir, checkpoint):
        assert detect_format(epath.Path(path)) is FORMATS["native"]


@pytest.mark.parametrize("name", written_formats())
def test_every_format_gives_back_what_it_wrote(tiny_model, tmp_path, name):
    path = tmp_path / ("model.npz" if name == "big_vision" else "model")
    tiny_model.save(path, format=name)
    assert detect_format(epath.Path(path)) is FORMATS[name]
    model = siglip_jax.load(path)
    assert model.architecture == tiny_model.architecture
    jax.tree.map(np.testing.assert_array_equal, model.params, jax.device_get(tiny_model.params))


def read_one_file(path, preset):
    fields, flat = json.loads(path.with_suffix(".json").read_text()), tensors.read_file(path)
    params = tensors.unflatten({name.replace(".", "/"): value for name, value in flat.items()}, source=path)
    return StoredModel(params=params, architecture=Architecture.from_json(fields), source=path)


def write_one_file(model, path, options):
    path.parent.mkdir(parents=True, exist_ok=True)
    named = jax.tree_util.tree_flatten_with_path(model.params)[0]
    flat = {jax.tree_util.keystr(name, simple=True, separator="."): value for name, value in named}
    tensors.write_file(path, flat, metadata={})
    path.with_suffix(".json").write_text(json.dumps(model.architecture.to_json()))
    return [] if model.preprocessing is None else ["one file holds no preprocessing"]


ONE_FILE = Format(
    description="a .weights file",
    detect=lambda path: path.suffix == ".weights",
    read=read_one_file,
    write=write_one_file,
)


def test_one_entry_adds_a_format(monkeypatch, tiny_model, tmp_path, capsys):
    monkeypatch.setitem(FORMATS, "one_file", ONE_FILE)
    path = tmp_path / "new" / "model.weights"
    assert tiny_model.save(path, format="one_file") == ["one file holds no preprocessing"]
    model = siglip_jax.load(path, preprocessing=tiny_model.preprocessing)
    jax.tree.map(np.testing.assert_array_equal, model.params, jax.device_get(tiny_model.params))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.encode_image(images), tiny_model.encode_image(images))

    tiny_model.save(tmp_path / "native")
    arguments = [f"--model={tmp_path}/native", f"--output={tmp_path}/b.weights", "--to=one_file"]
    assert cli.main(["convert", *arguments]) == 0
    assert "one file holds no preprocessing" in capsys.readouterr().out
    assert (tmp_path / "b.weights").read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match=r"expected a preset .*, a \.weights file$"):
        siglip_jax.load(tmp_path)

    flat = tensors.read_file(epath.Path(path))
    flat["t"] = np.full(1, np.nan, np.float32)  # a format need not check what is checked of all
    tensors.write_file(epath.Path(path), flat, metadata={})
    with pytest.raises(UserError, match="t holds NaN or infinity"):
        siglip_jax.load(path)


def test_a_format_that_is_only_read(monkeypatch, tiny_model, tmp_path):
    monkeypatch.setitem(FORMATS, "one_file", Format(**{**vars(ONE_FILE), "write": None}))
    with pytest.raises(
        UserError,
        match=r"one_file.; expected one of native, sentence_transformers, huggingface, open_clip, big_vision$",
    ):
        tiny_model.save(tmp_path / "x.weights", format="one_file")
