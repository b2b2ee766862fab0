"""Files and arrays that nobody should have made: one UserError each, nothing silently different, nothing unbounded."""

import json
import os
import zipfile

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax import Preprocessing
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, resize_image

DEEP = "[" * 200_000


@pytest.fixture(scope="module")
def model(golden):
    return siglip_jax.load(golden / "hf_siglip")


@pytest.fixture(scope="module")
def naflex(golden):
    return siglip_jax.load(golden / "hf_siglip2_naflex")


def stored(golden) -> dict[str, np.ndarray]:
    with np.load(golden / "big_vision_siglip_loop.weights.npz") as file:
        return {name: file[name] for name in file.files}


# --- nothing silently different ---------------------------------------------------------------------------------------


def test_saving_over_another_model_is_refused(model, tmp_path):
    value = Preprocessing(image_size=(32, 32), text_length=16)
    model.replace(preprocessing=value).save(tmp_path / "m")
    for format in ("native", "huggingface"):
        with pytest.raises(UserError, match="exists; give a new path"):
            model.save(tmp_path / "m", format=format)
    assert siglip_jax.load(tmp_path / "m").preprocessing == value
    model.save(tmp_path / "w.npz", format="big_vision")
    with pytest.raises(UserError, match="exists; give a new path"):
        model.save(tmp_path / "w.npz", format="big_vision")
    with pytest.raises(UserError, match="an empty path"):
        model.save("")


def test_a_preprocessing_that_does_not_fit_is_not_saved(model, tmp_path):
    with pytest.raises(UserError, match=r"image_size .*the model's is"):
        model.replace(preprocessing=Preprocessing(image_size=(16, 16), text_length=16)).save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_numbers_beyond_a_type_are_refused(model, tmp_path):
    params = jax.tree.map(np.array, model.params)
    params["txt"]["head"]["bias"][0] = 70_000
    model.replace(params=params).save(tmp_path / "m")
    with pytest.raises(UserError, match="txt/head/bias holds numbers beyond float16"):
        siglip_jax.load(tmp_path / "m", param_dtype="float16")
    assert siglip_jax.load(tmp_path / "m", param_dtype="bfloat16")


@pytest.mark.parametrize("number", ["00", "\u0661", "99999"])
def test_a_layer_of_another_spelling_is_no_layer(golden, tmp_path, number):
    """encoderblock_00 beside encoderblock_0 must not take its place."""
    arrays = stored(golden)
    name = "params/img/Transformer/encoderblock_0/LayerNorm_0/bias"
    arrays[name.replace("_0/Layer", f"_{number}/Layer")] = np.zeros_like(arrays[name])
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match="encoderblock"):
        siglip_jax.load(tmp_path / "w.npz")


def test_a_member_twice_is_refused(golden, tmp_path):
    np.savez(tmp_path / "w.npz", **stored(golden))
    np.save(tmp_path / "b.npy", np.array([77.0], np.float32))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
        archive.write(tmp_path / "b.npy", "params/b.npy")
    with pytest.raises(UserError, match=r"holds params/b.npy twice"):
        siglip_jax.load(tmp_path / "w.npz")


def test_a_tensor_in_two_shards_is_refused(golden, tmp_path):
    state = safetensors.numpy.load_file(golden / "hf_siglip" / "model.safetensors")
    where = dict.fromkeys(state, "a.safetensors")
    where["logit_bias"] = "b.safetensors"
    zeros = {"logit_bias": state["logit_bias"], "logit_scale": np.zeros(1, np.float32)}
    safetensors.numpy.save_file({k: v for k, v in state.items() if k != "logit_bias"}, tmp_path / "a.safetensors")
    safetensors.numpy.save_file(zeros, tmp_path / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_text((golden / "hf_siglip" / "config.json").read_text())
    with pytest.raises(UserError, match=r"does not fit b.safetensors at logit_scale"):
        siglip_jax.load(tmp_path)


def test_training_state_of_any_type_is_left_out(golden, tmp_path):
    arrays = stored(golden) | {"opt/0/count": np.zeros((), np.int32), "chrono/step": np.array(7)}
    np.savez(tmp_path / "w.npz", **arrays)
    assert siglip_jax.load(tmp_path / "w.npz").architecture.vocab_size == 211


def test_not_finite_inputs_do_not_become_embeddings(model, naflex):
    pixels = np.zeros((3, 32, 32, 3), np.float32)
    pixels[1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"NaN in the embeddings of rows \[1\]"):
        model.encode_image(pixels)
    patches = np.zeros((2, 9, 192), np.float32)
    shape = np.array([[2, 3], [3, 3]])
    plain = naflex.encode_image(Patches(patches, shape))
    patches[0, 6:] = np.nan  # padding
    np.testing.assert_array_equal(naflex.encode_image(Patches(patches, shape)), plain)
    patches[1, 4] = np.inf
    with pytest.raises(UserError, match=r"rows \[1\]"):
        naflex.encode_image(Patches(patches, shape))
    with pytest.raises(UserError, match="does not fit 9 patches"):
        naflex.encode_image(Patches(np.zeros_like(patches), np.array([[2**32, 2**32], [1, 1]])))


def test_a_temperature_without_an_exponential_is_refused(model, tmp_path):
    model.replace(params={**model.params, "t": np.array([100.0], np.float32)}).save(tmp_path / "m")
    with pytest.raises(UserError, match="t is the LOG temperature"):
        siglip_jax.load(tmp_path / "m")


def test_logits_take_embeddings_alone(model):
    z = np.zeros((2, 48), np.float32)
    assert model.logits(z.tolist(), z).dtype == np.float32
    for bad in (z[0], z[None], z[:, :5]):
        with pytest.raises(UserError, match=r"expected \[n, 48\] and \[m, 48\]"):
            model.logits(bad, z)


def test_other_types_of_parameters_are_refused(golden, tmp_path):
    arrays = {name: value.astype(np.float64) for name, value in stored(golden).items()}
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match="holds float64; expected one of float32"):
        siglip_jax.load(tmp_path / "w.npz")


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.json", "preprocessing.json"])
@pytest.mark.parametrize("text", [DEEP, "{", "[]", "3", "\ud800"])
def test_damaged_json_of_our_own(model, tmp_path, file, text):
    model.replace(preprocessing=Preprocessing(image_size=(32, 32), text_length=16)).save(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=f"{file}: not a JSON object"):
        siglip_jax.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "x", "dtype is 'x'"),
        ("dtype", [], r"dtype is \[\]"),
        ("format", 1, "format is 1"),
        ("architecture", [], "not a model description"),
        ("image_size", [2**31 - 1, 2**31 - 1], "whole numbers from 1"),
        ("image_size", [2**14 + 8, 8], "pixels a side; the limit"),
        ("image", {"width": 48, "depth": 2**20, "mlp_dim": 96, "heads": 4}, "1048576 layers; the limit is 1024"),
    ],
)
def test_wrong_descriptions(model, tmp_path, field, value, message):
    model.save(tmp_path / "m")
    fields = json.loads((tmp_path / "m" / "model.json").read_text())
    (fields["architecture"] if field in ("image_size", "image") else fields)[field] = value
    (tmp_path / "m" / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        siglip_jax.load(tmp_path / "m")


@pytest.mark.parametrize("layers", [2**31 - 1, 10**6])
def test_a_depth_of_millions_is_refused_at_once(golden, tmp_path, layers):
    config = json.loads((golden / "hf_siglip" / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(config))
    os.symlink(golden / "hf_siglip" / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"from 1 to|layers; the limit is 1024"):
        siglip_jax.load(tmp_path)


@pytest.mark.parametrize("sha256", [0, "", [], {}, "abc"])
def test_a_wrong_sum_does_not_drop_the_tokenizer(model, tmp_path, sha256):
    model.replace(preprocessing=Preprocessing(image_size=(32, 32), text_length=16)).save(tmp_path / "m")
    path = tmp_path / "m" / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_sha256": sha256}))
    with pytest.raises(UserError, match="not a preprocessing file"):
        siglip_jax.load(tmp_path / "m")


def test_one_flipped_bit_of_our_own_weights_is_noticed(model, tmp_path):
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"not the file that model.json was written with"):
        siglip_jax.load(tmp_path / "m")


def test_members_that_are_no_arrays(golden, tmp_path):
    for name, data in (("notes.txt", b"hello"), ("params/x.npy", b"\x93NUMPY" + bytes(100)), ("params/x.npy", b"")):
        np.savez(tmp_path / "w.npz", **stored(golden))
        with zipfile.ZipFile(tmp_path / "w.npz", "a") as archive:
            archive.writestr(name, data)
        with pytest.raises(UserError, match=r"not a complete \.npz of arrays|not an array|beside params"):
            siglip_jax.load(tmp_path / "w.npz")


def test_a_name_below_a_tensor(golden, tmp_path):
    np.savez(tmp_path / "w.npz", **stored(golden), **{"params/b/x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"b/x lies below another tensor|both a tensor and a folder"):
        siglip_jax.load(tmp_path / "w.npz")


def test_things_that_are_no_files(model, tmp_path):
    for file in ("model.safetensors", "model.json"):
        model.save(tmp_path / file)
        (tmp_path / file / file).unlink()
        (tmp_path / file / file).mkdir()
        with pytest.raises(UserError, match="not a file"):
            siglip_jax.load(tmp_path / file)
    model.save(tmp_path / "pipe")
    (tmp_path / "pipe" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "pipe" / "model.safetensors")
    with pytest.raises(UserError, match="not a file"):
        siglip_jax.load(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero.npz")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        siglip_jax.load(tmp_path / "zero.npz")
    with pytest.raises(UserError, match="expected a local path or gs://"):
        siglip_jax.load("http://example.org/model")
    with pytest.raises(UserError, match="an empty path"):
        siglip_jax.load("")


def test_errors_are_bounded(golden, tmp_path):
    state = safetensors.numpy.load_file(golden / "hf_siglip" / "model.safetensors")
    safetensors.numpy.save_file(state | {"x" * 100_000: np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden / "hf_siglip" / "config.json").read_text())
    with pytest.raises(UserError) as error:
        siglip_jax.load(tmp_path)
    assert "extra xxx" in str(error.value)
    assert len(str(error.value)) < 1000
    for side, message in ((8192, "grid of 1024 x 1024 positions; the limit is 256"), (100_000, "limit is 16384")):
        with pytest.raises(UserError, match=message):
            siglip_jax.load(golden / "hf_siglip", image_size=(side, side))


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"dtype": "int8"}, {"dtype": 5}, {"remat": "x"}, {"unroll": 0}, {"unroll": "x"}, {"param_dtype": "float64"}],
    ids=str,
)
def test_options_are_checked_when_loading(golden, options):
    with pytest.raises(UserError, match=f"load: {next(iter(options))}=.*expected"):
        siglip_jax.load(golden / "hf_siglip", **options)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (None, "a NoneType; expected an array, or a sequence of pictures"),
        (PIL.Image.new("RGB", (3, 3)), "a Image; expected an array, or a sequence"),
        (b"bytes", "a bytes; expected an array, or a sequence"),
        (["x.jpg"], r"picture 0: a str is no picture; expected a PIL image, or encoded bytes"),
        ([PIL.Image.new("RGB", (3, 3)), np.zeros((3, 3, 3))], "picture 1: a ndarray is no picture"),
        ([PIL.Image.new("RGB", (0, 5))], "picture of 0x5 pixels"),
    ],
)
def test_what_is_no_picture(model, pictures, message):
    ready = model.replace(preprocessing=Preprocessing(image_size=(32, 32), text_length=16))
    with pytest.raises(UserError, match=message):
        ready.encode_image(pictures)


def test_what_is_no_title(model):
    from input_pipeline.train_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["red dress", "blue"], vocab_size=300)
    value = Preprocessing(image_size=(32, 32), text_length=16, tokenizer=tokenizer)
    with pytest.raises(UserError, match="title 1 is a NoneType"):
        value.text(["a", None])
    with pytest.raises(UserError, match="expected strings, or an int array of ids"):
        value.text([[1, 2, 3]])
    assert value.text(title for title in ("red", "blue")).shape == (2, 16)
    for batch_size in (0, -1, 1.5, None):
        with pytest.raises(UserError, match=r"batch_size=.*expected a whole number"):
            model.encode_text(np.zeros((2, 16), np.int32), batch_size=batch_size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "path.model"}, "tokenizer is a str; expected the bytes"),
        ({"image_size": 5}, "image_size=5"),
        ({"value_range": (float("-inf"), float("inf"))}, "value_range"),
        ({"value_range": 5}, "value_range=5"),
        ({"pad_id": 2**40}, "pad_id"),
        ({"text_length": 10**12}, "text_length"),
    ],
)
def test_wrong_preprocessings(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(**({"image_size": (8, 8)} | fields))


def test_lists_become_tuples():
    assert hash(Preprocessing(image_size=[8, 8])) == hash(Preprocessing(image_size=(8, 8)))


def test_a_strip_of_millions_of_pixels_stays_small():
    """Only the pixels that are looked at become floats; the whole strip would be 15 GiB of them."""
    import resource

    strip = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 40_000_000, 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resized = resize_image(strip, (32, 32), method="bilinear_no_antialias")
    assert (resized == [10, 20, 30]).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("preprocessor_config.json", {"do_rescale": "x"}, "do_rescale='x'; expected true or false"),
        ("preprocessor_config.json", {"do_normalize": []}, r"do_normalize=\[\]; expected true or false"),
        ("preprocessor_config.json", {"image_mean": {}}, "image_mean"),
        ("preprocessor_config.json", {"image_std": [[1]]}, "expected numbers"),
        ("preprocessor_config.json", {"rescale_factor": True}, "expected numbers"),
        ("preprocessor_config.json", {"resample": []}, "resample"),
        ("tokenizer_config.json", {"do_lower_case": 1}, "do_lower_case=1; expected true or false"),
    ],
)
def test_wrong_processor_settings(model, tmp_path, file, settings, message):
    from input_pipeline.train_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["red dress", "blue"], vocab_size=300)
    value = Preprocessing(image_size=(32, 32), text_length=16, tokenizer=tokenizer, punctuation="delete", pad_id=1)
    from siglip_jax.weights.processor import read_processor, write_processor

    write_processor(value, tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        read_processor(tmp_path, text_length=16, vocab_size=400)
