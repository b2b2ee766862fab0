"""What an export is checked with, and that one which differs is not kept. Only the last tests need TensorFlow."""

import pathlib
import shutil

import numpy as np
import pytest

from eval.comparison.items import read_split
from eval.embeddings import write_store
from siglip_jax import model as models
from siglip_jax.errors import UserError
from siglip_jax.export import savedmodel
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers
from tools.workflow.embedding import embed, image_encoder, load_encoder
from tools.workflow.exports import export as workflow
from tools.workflow.exports.export import verify
from tools.workflow.exports.export_target import check_target
from tools.workflow.item_vectors import Features


def export(model, output, *, features=None, **asked):
    workflow.export(model, check_target(output, **asked), features=features)


@pytest.fixture(scope="module")
def adapter():
    architecture = Architecture(
        image_size=(1, 1),
        patch_size=1,
        image=FeatureSize(inputs={"pixels": 2, "cnn": 3}, base=5, head=2, mlp_dim=4),
        text=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
        vocab_size=11,
        text_length=3,
    )
    return models.init(TwoTowers(architecture), None, seed=0)


@pytest.fixture
def checks(monkeypatch):
    """Exports are empty folders; the calls that they are checked with are recorded, and the errors are of the list."""
    found = {"calls": [], "errors": [2e-6]}

    def write_model(model, folder, **_):
        pathlib.Path(folder).mkdir()

    def write_golden(folder, calls, *, model, runtime):
        assert (folder.parent.is_dir(), model, runtime) == (True, "..", "savedmodel")
        found["calls"] = list(calls)

    def check(folder, *, sample=None):
        if sample is not None:  # answered as expected
            with np.load(sample / "golden.npz") as arrays:
                answers = {key.split("/")[0]: arrays[key] for key in arrays if key.endswith("/expected")}
            np.savez(sample / "answers.npz", **answers)
        (error,) = found["errors"]
        return [
            {
                "signature": call.signature, "of": call.of, "rows": len(call.expected), "max_error": error,
                "min_cosine": None, "limits": {"max_error": call.max_error}, "within": error <= call.max_error,
            }
            for call in found["calls"]
        ]  # fmt: skip

    monkeypatch.setattr(savedmodel, "export_saved_model", write_model)
    monkeypatch.setattr(workflow, "write_golden", write_golden)
    monkeypatch.setattr(workflow, "check_golden", check)
    return found


def test_made_up_vectors(adapter, checks, tmp_path, capsys):
    image = adapter.params["img"] | {"mean": np.arange(5) * 100.0, "scale": np.full(5, 2.0)}
    export(adapter.replace(params={**adapter.params, "img": image}), tmp_path / "a", dataset=None, split="test")
    assert "64 made-up vectors (none by --features): largest error from features 2.0e-06" in capsys.readouterr().out
    vectors = checks["calls"][0].inputs
    assert [call.signature for call in checks["calls"]] == ["features", "text_ids"]
    assert {name: (x.shape, x.dtype) for name, x in vectors.items()} == {
        "cnn": ((64, 3), np.float32),
        "pixels": ((64, 2), np.float32),
    }
    joined = np.concatenate([vectors["cnn"], vectors["pixels"]], axis=1)  # where the training rows were
    np.testing.assert_allclose(joined.mean(axis=0), np.arange(5) * 100, atol=1.5)
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_stored_vectors_of_items_that_have_all(adapter, checks, shop_dataset, tmp_path, capsys):
    ids = read_split(shop_dataset, "test").ids
    vectors = {
        name: np.random.default_rng(d).normal(size=(len(ids), d)).astype(np.float32)
        for name, d in (("cnn", 3), ("pixels", 2))
    }
    manifest = {"model": {"name": "made up"}, "preprocessing": None, "dataset": {}}
    write_store(tmp_path / "cnn", [(ids[1:], vectors["cnn"][1:])], manifest=manifest)
    write_store(tmp_path / "pixels", [(ids, vectors["pixels"])], manifest=manifest)
    features = Features.open({name: [tmp_path / name] for name in vectors})
    export(adapter, tmp_path / "a", dataset=shop_dataset, split="test", features=features)
    for name in vectors:
        np.testing.assert_array_equal(checks["calls"][0].inputs[name], vectors[name][1:65])
    assert f"{min(64, len(ids) - 1)} stored vectors: largest error" in capsys.readouterr().out
    with pytest.raises(UserError, match="--dataset is missing"):
        export(adapter, tmp_path / "b", dataset=None, split="test", features=features)
    some = Features.open({"cnn": [tmp_path / "cnn"]})
    with pytest.raises(UserError, match="export: no pixels is given; expected --features=cnn=STORE of 3 numbers, "):
        export(adapter, tmp_path / "b", dataset=shop_dataset, split="test", features=some)


@pytest.mark.parametrize("error", [2e-5, np.nan])
def test_an_export_that_differs_is_not_kept(error, adapter, checks, tmp_path):
    checks["errors"] = [error]
    with pytest.raises(UserError, match=r"largest error from features .*; expected at most 1.0e-05: it is not kept"):
        export(adapter, tmp_path / "a", dataset=None, split="test")
    assert not list(tmp_path.iterdir())


def test_never_over_another(adapter, checks, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(adapter, tmp_path / "a", dataset=None, split="test")
    assert checks["calls"] == []


def test_pictures_need_a_dataset(tiny_model, tmp_path):
    with pytest.raises(UserError, match="--dataset is missing: its pictures check the export"):
        export(tiny_model, tmp_path / "a", dataset=None, split="test")


@pytest.mark.parametrize("dtype", ["bfloat16"])  # XLA has no products of float16 on a CPU
def test_a_model_of_fewer_bits_is_held_to_its_own_rounding(tiny_model, dtype, shop_dataset, tmp_path, capsys):
    pytest.importorskip("tensorflow")
    model = tiny_model.replace(module=tiny_model.module.clone(dtype=dtype))
    export(model, tmp_path / "a", dataset=shop_dataset, split="test", serving_version=3)
    assert f"({dtype} on cpu itself rounds by " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["3"]
    folder = tmp_path / "a" / "3" / "assets.extra"
    assert {path.name for path in folder.iterdir()} == {
        "golden.json", "golden.npz", "verify.py", "tf_serving_warmup_requests",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no golden\.json"):
        verify(tmp_path)


@pytest.mark.slow
def test_fewer_bits_excuse_no_other_weights(tiny_model, shop_dataset, tmp_path, monkeypatch):
    """The export holds a tower that takes its patches in another order."""
    pytest.importorskip("tensorflow")
    model = tiny_model.replace(module=tiny_model.module.clone(dtype="bfloat16"))
    moved = {**model.params["img"], "pos_embedding": model.params["img"]["pos_embedding"][:, ::-1]}
    other, write = model.replace(params={**model.params, "img": moved}), savedmodel.export_saved_model
    monkeypatch.setattr(savedmodel, "export_saved_model", lambda model, path, **options: write(other, path, **options))
    with pytest.raises(UserError, match=r"bfloat16 on cpu itself rounds by .*: it is not kept"):
        export(model, tmp_path / "a", dataset=shop_dataset, split="test")
    assert not list(tmp_path.iterdir())


def test_programs_for_jax(tiny_model, shop_dataset, tmp_path, capsys, python):
    folder = tmp_path / "shop.stablehlo"
    export(tiny_model, folder, dataset=shop_dataset, split="test")
    assert "StableHLO programs" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        "image.jax", "text.jax", "weights.safetensors", "consume.py", "siglip_jax.json", "assets.extra",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (3, *tiny_model.architecture.image_size, 3)).astype(np.float32)
    np.savez(tmp_path / "given.npz", pixels=pixels, ids=tiny_model.preprocessing.text(["red shirt", ""]))
    code = """
import sys
sys.modules["siglip_jax"] = None
sys.path.insert(0, sys.argv[1])
import consume, numpy as np
given = np.load(sys.argv[2])
np.savez(sys.argv[3], image=consume.load("image")(given["pixels"]), text=consume.load("text")(given["ids"]))
"""
    done = python(code, folder, tmp_path / "given.npz", tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["image"], tiny_model.encode_image(pixels), atol=1e-6)
        np.testing.assert_allclose(found["text"], tiny_model.encode_text(["red shirt", ""]), atol=1e-6)
    for option in ({"target_tensorflow": "2.16"}, {"serving_version": 1}, {"precision": "int8"}):
        with pytest.raises(UserError, match=r"leave (it|them) out for"):
            export(tiny_model, tmp_path / "b.stablehlo", dataset=shop_dataset, split="test", **option)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_towers_as_onnx(tiny_model, tower, shop_dataset, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"{tower}.onnx"
    export(tiny_model, path, dataset=shop_dataset, split="test", tower=tower)
    files = {path.name, f"{path.name}.golden"} | ({f"{path.name}.json"} if tower == "image" else set())
    assert {each.name for each in tmp_path.iterdir()} == files
    verify(path)
    assert "largest error from" in capsys.readouterr().out
    renamed = tmp_path / "renamed.onnx"  # the file that is named is run, whatever its name was
    shutil.copytree(tmp_path / f"{path.name}.golden", tmp_path / f"{renamed.name}.golden")
    shutil.copy(path, renamed)
    verify(renamed)
    renamed.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot be checked"):
        verify(renamed)
    arrays = tmp_path / f"{path.name}.golden" / "golden.npz"
    with np.load(arrays) as golden:
        found = dict(golden)
    np.savez(arrays, **found | {"0/expected": -found["0/expected"]})
    with pytest.raises(UserError, match=r"largest error from .*; expected at most"):
        verify(path)
    export(tiny_model, tmp_path / "int8.onnx", dataset=shop_dataset, split="test", tower=tower, precision="int8")
    assert "smallest cosine from" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--tower, --precision and --takes are of \.onnx files"):
        export(tiny_model, tmp_path / "b", dataset=shop_dataset, split="test", precision="int8")


def test_a_model_without_preprocessing_is_refused(tiny_model, shop_dataset, tmp_path):
    with pytest.raises(UserError, match="no known preprocessing"):
        export(tiny_model.replace(preprocessing=None), tmp_path / "x.onnx", dataset=shop_dataset, split="test")
    assert not list(tmp_path.iterdir())


def test_decoded_pictures_check_a_tower_that_resizes(tiny_model, shop_dataset, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(tiny_model, tmp_path / "images.onnx", dataset=shop_dataset, split="test", takes="images")
    said = capsys.readouterr().out
    assert "9 pictures of 43x61: smallest cosine from images" in said  # the odd ones
    assert said.count("smallest cosine from images") == 4, said
    verify(tmp_path / "images.onnx")
    with pytest.raises(UserError, match=r"--tower, --precision and --takes are of \.onnx files"):
        export(tiny_model, tmp_path / "b", dataset=shop_dataset, split="test", takes="images")


def test_an_image_tower_in_onnx_embeds_as_the_model(tiny_model, shop_dataset, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export(tiny_model, tmp_path / "image.onnx", dataset=shop_dataset, split="test")
    own = embed(image_encoder(tiny_model, name="own"), dataset=shop_dataset, split="test", output=tmp_path / "own")
    found = embed(
        load_encoder(str(tmp_path / "image.onnx")), dataset=shop_dataset, split="test", output=tmp_path / "found"
    )
    assert found.ids == own.ids
    np.testing.assert_allclose(found.vectors, own.vectors, atol=1e-5)
