"""open_clip's folders and ours, in both directions: the same numbers, every tensor there and back.

The gate compares with a folder that open_clip's own code made and what it embedded (golden/open_clip_siglip). The slow
test runs installed peers on our folders, a Python each with what there is of transformers (with torch, sentencepiece
and protobuf), sentence-transformers, and open_clip_torch with timm (after 3.3, for sizes that timm has no name for):

    SIGLIP_JAX_PEERS=venv/bin/python:other/bin/python make test-slow
    python tests/behaviour/test_open_clip.py venv/bin/python    # prints the table of docs/guide/models.md
    venv/bin/python tests/behaviour/open_clip_peer.py make tests/golden/open_clip_siglip    # makes the folder anew
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import flax.traverse_util
import numpy as np
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import GELUS, Architecture, TowerSize
from siglip_jax.models.presets import PRESETS, SIGLIP, Preset
from siglip_jax.models.towers import TwoTowers, parameter_shapes
from siglip_jax.preprocessing import Preprocessing

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "open_clip_siglip"
PEER = pathlib.Path(__file__).with_name("open_clip_peer.py")
INSTALLED = [path for path in os.environ.get("SIGLIP_JAX_PEERS", "").split(":") if path]
WHATS = ("image", "text", "zero-shot scores", "image features")
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def answers():
    with np.load(FOLDER / "io.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def loaded():
    return siglip_jax.load(FOLDER, param_dtype="stored")


def state(path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), name


def test_we_embed_what_open_clip_embedded(loaded, answers):
    titles = json.loads(str(answers["titles"]))
    pictures = [answers[f"file/{k}"].tobytes() for k in range(2)]
    pixels = answers["pixels"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(loaded.preprocessing.images(pictures), pixels, atol=1e-6)
    at = [k for k, title in enumerate(titles) if "_" not in title]  # which becomes a space there, and nothing here
    np.testing.assert_array_equal(loaded.preprocessing.text(titles)[at], answers["ids"][at])
    image, text = loaded.encode_image(pixels), loaded.encode_text(answers["ids"])
    np.testing.assert_allclose(image, answers["image"], atol=1e-6)
    np.testing.assert_allclose(text, answers["text"], atol=1e-6)
    np.testing.assert_allclose(loaded.logits(image, text), answers["logits"], atol=2e-5)


def test_the_golden_model_has_one_gelu_of_each_kind(loaded):
    """Else the test above would not tell them apart."""
    assert (loaded.architecture.image.gelu, loaded.architecture.text.gelu) == ("exact", "tanh")


def test_every_tensor_goes_there_and_back(loaded, tmp_path):
    loaded.save(tmp_path / "again", format="open_clip")
    same_bits(state(tmp_path / "again" / WEIGHTS), state(FOLDER / WEIGHTS))
    back = siglip_jax.load(tmp_path / "again", param_dtype="stored")
    assert back.architecture == loaded.architecture
    flat = [flax.traverse_util.flatten_dict(each.params, sep="/") for each in (back, loaded)]
    same_bits(*flat)


def changed_copy(tmp_path, *, change=None, tensors=None) -> pathlib.Path:
    folder = tmp_path / "changed"
    folder.mkdir()
    config = json.loads((FOLDER / CONFIG).read_text())
    for path, value in (change or {}).items():
        *above, last = path.split("/")
        place = config
        for name in above:
            place = place[name]
        place[last] = value
    (folder / CONFIG).write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors or state(FOLDER / WEIGHTS), folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_cfg/quick_gelu", True, "quick_gelu is True"),
        ("model_cfg/vision_cfg/timm_pool", "avg", "timm_pool is 'avg'; SigLIP has 'map'"),
        ("model_cfg/vision_cfg/timm_model_name", "vit_base_patch16_siglip_gap_224", "timm's SigLIP towers"),
        ("model_cfg/vision_cfg/timm_model_kwargs", {"qk_norm": True}, "timm_model_kwargs"),
        ("model_cfg/vision_cfg/image_size", 16, "image_size is"),
        ("model_cfg/text_cfg/no_causal_mask", False, "no_causal_mask is False; SigLIP has True"),
        ("model_cfg/text_cfg/pool_type", "argmax", "pool_type is 'argmax'; SigLIP has 'last'"),
        ("model_cfg/text_cfg/norm_kwargs", None, "norm_kwargs is None"),
        ("model_cfg/text_cfg/act_kwargs", {"approximate": "fast"}, "act_kwargs"),
        ("model_cfg/text_cfg/proj_bias", False, "proj_bias is False"),
        ("model_cfg/text_cfg/embed_cls", True, "unknown settings embed_cls"),
        ("model_cfg/embed_dim", 9, "embed_dim is 9"),
        ("preprocess_cfg/resize_mode", "shortest", "resize_mode='shortest'"),
        ("preprocess_cfg/mean", [0.1, 0.2, 0.3], "expected equal channels"),
    ],
)
def test_other_models_and_settings_are_refused(tmp_path, path, value, message):
    with pytest.raises(UserError, match=message):
        siglip_jax.load(changed_copy(tmp_path, change={path: value}))


def test_tensors_that_the_table_does_not_cover_are_errors(tmp_path):
    tensors = state(FOLDER / WEIGHTS)
    tensors["visual.trunk.reg_token"] = np.zeros(3, np.float32)
    del tensors["text.ln_final.bias"]
    with pytest.raises(UserError, match=r"missing text\.ln_final\.bias, extra visual\.trunk\.reg_token"):
        siglip_jax.load(changed_copy(tmp_path, tensors=tensors))


def test_a_state_dict_of_distributed_training_loads_by_its_config(loaded, tmp_path):
    tensors = {f"module.{name}": value for name, value in state(FOLDER / WEIGHTS).items()}
    for name in ("module.logit_scale", "module.logit_bias"):
        tensors[name] = tensors[name].reshape(1)
    folder = changed_copy(tmp_path, tensors=tensors)
    (folder / WEIGHTS).rename(folder / "epoch_5.safetensors")
    for path in (folder, folder / "epoch_5.safetensors"):
        found = siglip_jax.load(path, param_dtype="stored")
        flat = [flax.traverse_util.flatten_dict(each.params, sep="/") for each in (found, loaded)]
        same_bits(*flat)
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match="how many heads"):
        siglip_jax.load(folder / "epoch_5.safetensors")


@pytest.mark.parametrize("source", [FOLDER / WEIGHTS, GOLDEN / "hf_siglip" / "model.safetensors"])
def test_bare_tensors_load_by_the_name_of_a_preset(source, tmp_path, monkeypatch):
    model = siglip_jax.load(source.parent, param_dtype="stored")
    preset = Preset(name="tiny/siglip", family=SIGLIP, architecture=model.architecture, big_vision="gs://none/none.npz")
    monkeypatch.setitem(PRESETS, preset.name, preset)
    (tmp_path / "epoch_5.safetensors").write_bytes(source.read_bytes())
    found = siglip_jax.load(preset.name, weights=tmp_path / "epoch_5.safetensors", param_dtype="stored")
    flat = [flax.traverse_util.flatten_dict(each.params, sep="/") for each in (found, model)]
    same_bits(*flat)
    assert found.preprocessing == preset.preprocessing("huggingface")


def test_a_folder_of_timm_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_siglip_224", "pretrained_cfg": {}}')
    safetensors.numpy.save_file({"norm.bias": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="vit_base_patch16_siglip_224, an image tower of timm alone"):
        siglip_jax.load(tmp_path)


def test_one_tower_of_timm_is_refused(tmp_path):
    trunk = {
        name.removeprefix("visual.trunk."): value
        for name, value in state(FOLDER / WEIGHTS).items()
        if name.startswith("visual.")
    }
    safetensors.numpy.save_file(trunk, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="an image tower of timm alone"):
        siglip_jax.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "epoch_5.pt", "model.pth"])
def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"{name} is a pickle, which is never read; convert it: python -c"):
            siglip_jax.load(path)


def test_a_folder_of_sentence_transformers_with_more_modules_is_refused(loaded, tmp_path):
    """Such as a projection, which makes other embeddings."""
    loaded.save(tmp_path / "st", format="sentence_transformers")
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "st" / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(UserError, match=r"modules \['Transformer', 'Normalize', 'Dense'\]; expected Transformer and"):
        siglip_jax.load(tmp_path / "st")


# --- installed ones ---------------------------------------------------------------------------------------------------


def errors_of(python: str, folder: pathlib.Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(library and version, model, {what: largest error}) of each folder that a Python's libraries read."""
    with np.load(GOLDEN / "transformers.npz") as stored:
        tokenizers = {name: stored[name].tobytes() for name in ("spiece", "gemma")}
        files = {name.split("/")[1]: x.tobytes() for name, x in stored.items() if name.startswith("file/")}
    pictures = {name: files[name] for name in ("plain.png", "wide.png", "tall.png", "same.png")}
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    titles = ["red dress", "Men's Black Running-Shoe!!!", "blue jeans", "word " * 40, "赤いドレス", ""]
    kinds = {
        "siglip": {"tokenizer": tokenizers["spiece"], "pad_id": 1, "punctuation": "delete", "resize": "bicubic"},
        "siglip2": {"tokenizer": tokenizers["gemma"]},
    }
    models = {f"{kind}-{gelu}": tower_pair(gelu, **fields) for kind, fields in kinds.items() for gelu in GELUS}
    folders = {}
    for name, model in models.items():
        for each in ("open_clip", "sentence_transformers", "huggingface"):
            folders[str(folder / f"{name}-{each}")] = each
            model.save(folder / f"{name}-{each}", format=each, shard_bytes=30_000)
    job = {"folders": folders, "images": [str(folder / name) for name in pictures], "titles": titles}
    (folder / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path := os.environ.get("SIGLIP_JAX_PEERS_PATH"):  # sources of a library that is not yet released
        environment["PYTHONPATH"] = path
    done = subprocess.run(
        [python, PEER, "embed", folder / "job.json"], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    versions = json.loads(done.stdout.splitlines()[-1])
    for path, kind in folders.items():
        if kind not in versions:
            continue
        name = pathlib.Path(path).name.removesuffix(f"-{kind}")
        image, text = models[name].encode_image(list(pictures.values())), models[name].encode_text(titles)
        expected = {"image": image, "text": text}
        if kind == "huggingface":
            expected["zero-shot scores"] = 1 / (1 + np.exp(-models[name].logits(image[:1], text[:3])[0]))
            expected["image features"] = image
        with np.load(f"{path}.npz") as found:
            yield versions[kind], name, {what: float(np.abs(found[what] - x).max()) for what, x in expected.items()}


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="SIGLIP_JAX_PEERS names no Python")
@pytest.mark.parametrize("python", INSTALLED)
def test_peers_embed_our_folders_as_we_do(python, tmp_path):
    found = list(errors_of(python, tmp_path))
    assert len(found) % (2 * len(GELUS)) == 0
    assert found
    for library, name, errors in found:
        assert max(errors.values()) < 1e-5, (library, name, errors)


def tower_pair(gelu: str, **fields) -> Model:
    """One tower has this GELU, the other the other one."""
    other = {"tanh": "exact", "exact": "tanh"}[gelu]
    architecture = Architecture(
        image_size=(16, 16),
        patch_size=4,
        image=TowerSize(width=16, depth=2, mlp_dim=30, heads=2, gelu=gelu),
        text=TowerSize(width=16, depth=1, mlp_dim=50, heads=2, gelu=other),
        vocab_size=512,
        text_length=64,
    )
    rng = np.random.default_rng(0)
    shapes = flax.traverse_util.flatten_dict(parameter_shapes(architecture))
    flat = {name: rng.normal(0, 0.3, x.shape).astype(np.float32) for name, x in shapes.items()}
    preprocessing = Preprocessing(image_size=(16, 16), text_length=64, **fields)
    params = flax.traverse_util.unflatten_dict(flat)
    return Model(module=TwoTowers(architecture), params=params, preprocessing=preprocessing)


def main(pythons: Sequence[str]) -> None:
    """Prints the table of docs/guide/models.md."""
    print("| library | " + " | ".join(WHATS) + " |\n| --- |" + " ---: |" * len(WHATS))
    for python in pythons:
        with tempfile.TemporaryDirectory() as temporary:
            worst: dict[str, dict[str, float]] = {}
            for library, _, errors in errors_of(python, pathlib.Path(temporary)):
                row = worst.setdefault(library, {})
                row |= {what: max(error, row.get(what, 0.0)) for what, error in errors.items()}
        for library, row in worst.items():
            cells = (f"{row[what]:.0e}" if what in row else "" for what in WHATS)
            print(f"| {library} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
