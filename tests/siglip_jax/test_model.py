"""`Model`: batching, refusals, and folders that come back bit for bit or are refused by name."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.models.towers import TwoTowers


@pytest.fixture(scope="module")
def pixels(tiny_model):
    return np.random.default_rng(0).uniform(-1, 1, (7, *tiny_model.architecture.image_size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def ids(tiny_model):
    arch = tiny_model.architecture
    return np.random.default_rng(1).integers(0, arch.vocab_size, (7, arch.text_length), np.int32)


def test_embeddings_do_not_depend_on_the_batch(tiny_model, pixels, ids):
    exact_image, exact_text, _, _ = jax.jit(tiny_model.module.apply)({"params": tiny_model.params}, pixels, ids)
    for batch_size in (3, 256):
        for found, exact in (
            (tiny_model.encode_image(pixels, batch_size=batch_size), exact_image),
            (tiny_model.encode_text(ids, batch_size=batch_size), exact_text),
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, exact, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(tiny_model.encode_image(jnp.asarray(pixels[:5])), exact_image[:5], atol=1e-6)


def test_nothing_in_nothing_out(tiny_model, pixels, ids):
    d = tiny_model.architecture.embedding_dim
    assert tiny_model.encode_image(pixels[:0]).shape == (0, d)
    assert tiny_model.encode_text(ids[:0]).shape == (0, d)
    assert tiny_model.encode_image([]).shape == (0, d)
    assert tiny_model.encode_text([]).shape == (0, d)


def test_pictures_and_strings_go_through_the_preprocessing(tiny_model):
    image = PIL.Image.fromarray(np.random.default_rng(2).integers(0, 256, (20, 31, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    size = tiny_model.architecture.image_size
    resized = np.asarray(image.resize(size[::-1], PIL.Image.Resampling.BILINEAR), np.float64)
    expected = tiny_model.encode_image((resized / 127.5 - 1)[None].astype(np.float32))
    for found in tiny_model.encode_image([image, buffer.getvalue()]):
        np.testing.assert_allclose(found, expected[0], atol=1e-6)
    titles = ["Red cap", "blue mug"]
    expected = tiny_model.encode_text(tiny_model.preprocessing.text(titles))
    np.testing.assert_array_equal(tiny_model.encode_text(titles), expected)
    np.testing.assert_allclose(tiny_model.encode_text("Red cap"), expected[:1], atol=1e-6)


def test_logits(tiny_model, pixels, ids):
    params = tiny_model.params | {"t": np.array([1.5], np.float32), "b": np.array([-3.0], np.float32)}
    model = tiny_model.replace(params=params)
    image, text = model.encode_image(pixels), model.encode_text(ids[:3])
    expected = np.exp(1.5) * image.astype(np.float64) @ text.T.astype(np.float64) - 3
    np.testing.assert_allclose(model.logits(image, text), expected, atol=1e-5)


def test_wrong_pictures_are_refused(tiny_model, pixels):
    for wrong in (pixels.astype(np.uint8), pixels[:, :-1], pixels[0], pixels[..., :1], pixels.astype(np.int32)):
        with pytest.raises(UserError, match=r"expected float \[n, 16, 16, 3\] in \[-1, 1\]"):
            tiny_model.encode_image(wrong)


@pytest.mark.parametrize("scale", [255.0, -255.0])
def test_pixels_of_another_range_are_refused(tiny_model, pixels, scale):
    wrong = np.array(pixels[:2])
    wrong[1, 0, 0, 0] = scale
    with pytest.raises(UserError, match=r"encode_image: pixels from .*; expected \[-1, 1\]: give PIL images"):
        tiny_model.encode_image(wrong)
    tiny_model.encode_image(3 * np.clip(pixels[:2], -1, 1))  # odd, and not refused
    wrong[1, 0, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"NaN in the embeddings of rows \[1\]"):
        tiny_model.encode_image(wrong)


def test_wrong_ids_are_refused(tiny_model, ids):
    for wrong in (ids[:, :-1], ids[0], ids.astype(np.float32)):
        with pytest.raises(UserError, match=r"expected int32 ids \[n, 8\]"):
            tiny_model.encode_text(wrong)
    vocab = tiny_model.architecture.vocab_size
    for outside in (-1, vocab):
        with pytest.raises(UserError, match=f"expected 0 to {vocab - 1}"):
            tiny_model.encode_text(np.where(ids == ids.max(), outside, ids))


def test_without_preprocessing_only_arrays_encode(tiny_model, pixels, ids):
    model = tiny_model.replace(preprocessing=None)
    for encode, wrong in ((model.encode_image, [b"..."]), (model.encode_text, ["red cap"])):
        with pytest.raises(UserError, match="load it with preprocessing="):
            encode(wrong)
    np.testing.assert_array_equal(model.encode_image(pixels), tiny_model.encode_image(pixels))
    np.testing.assert_array_equal(model.encode_text(ids), tiny_model.encode_text(ids))


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    return tmp_path / "model"


def change(folder, edit) -> None:
    """Rewrites model.safetensors after `edit` has changed the dict of its arrays."""
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load(path.read_bytes())
    edit(arrays)
    path.write_bytes(safetensors.numpy.save(arrays))


ENCODE = """
import sys
import jax, numpy as np, siglip_jax
folder, inputs, outputs = sys.argv[1:]
model = siglip_jax.load(folder)
with np.load(inputs) as x:
    image, text = model.encode_image(x["pixels"]), model.encode_text(x["ids"])
leaves = {f"leaf_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(model.params))}
np.savez(outputs, image=image, text=text, titles=model.encode_text(["Red cap"]), **leaves)
"""


def test_saved_model_is_bit_equal_in_another_process(tiny_model, saved, python, tmp_path, pixels, ids):
    np.savez(tmp_path / "inputs.npz", pixels=pixels, ids=ids)
    done = python(ENCODE, saved, tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "outputs.npz") as found:
        np.testing.assert_array_equal(found["image"], tiny_model.encode_image(pixels))
        np.testing.assert_array_equal(found["text"], tiny_model.encode_text(ids))
        np.testing.assert_array_equal(found["titles"], tiny_model.encode_text(["Red cap"]))
        leaves = jax.tree.leaves(tiny_model.params)
        assert len(found.files) == 3 + len(leaves)
        for i, leaf in enumerate(leaves):
            np.testing.assert_array_equal(found[f"leaf_{i}"], leaf)


def test_what_is_saved(tiny_model, saved):
    model = siglip_jax.load(saved)
    assert model.architecture == tiny_model.architecture
    assert model.preprocessing == tiny_model.preprocessing
    arrays = safetensors.numpy.load((saved / "model.safetensors").read_bytes())
    assert "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel" in arrays
    assert siglip_jax.load(saved, remat="full").module.remat == "full"


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, np.dtype("float32")])
def test_compute_type_is_kept(tiny_model, tmp_path, dtype):
    module = TwoTowers(tiny_model.architecture, dtype=dtype)
    tiny_model.replace(module=module).save(tmp_path)
    assert jnp.dtype(siglip_jax.load(tmp_path).module.dtype) == jnp.dtype(dtype)


def test_other_parameters_are_listed(saved):
    def edit(arrays):
        arrays["img/extra/kernel"] = np.zeros(3, np.float32)
        arrays["t"] = np.zeros((2, 1), np.float32)
        del arrays["txt/head/bias"], arrays["img/MAPHead_0/probe"]

    change(saved, edit)
    with pytest.raises(UserError) as caught:
        siglip_jax.load(saved)
    message = str(caught.value)
    for part in (
        "missing img/MAPHead_0/probe",
        "missing txt/head/bias",
        "extra img/extra/kernel",
        "t is [2, 1], expected [1]",
    ):
        assert part in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(saved, value):
    def edit(arrays):
        arrays["txt/head/kernel"] = arrays["txt/head/kernel"].copy()
        arrays["txt/head/kernel"][2, 3] = value

    change(saved, edit)
    with pytest.raises(UserError, match="txt/head/kernel holds NaN or infinity"):
        siglip_jax.load(saved)


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_cut_parameters(saved, length):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        siglip_jax.load(saved)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": "siglip-jax model 9"}', '{"format": "siglip-jax model 1"}']
)
def test_wrong_descriptions(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"not a model description|not a JSON object"):
        siglip_jax.load(saved)


def test_another_architecture(saved):
    fields = json.loads((saved / "model.json").read_text())
    fields["architecture"]["image"]["mlp_dim"] *= 2
    (saved / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"Dense_0/kernel is \[2, 16, 32\], expected \[2, 16, 64\]"):
        siglip_jax.load(saved)


def test_folders_that_are_no_model(saved, tmp_path):
    with pytest.raises(UserError, match="a folder of no known format"):
        siglip_jax.load(tmp_path)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor checkpoints"):
        siglip_jax.load(saved)


ON_EIGHT = """
import sys
import jax, numpy as np
import siglip_jax
from siglip_jax.model import _encoder

folder, count = sys.argv[1], int(sys.argv[2])
model = siglip_jax.load(folder)
pixels, ids = np.load(folder + "/pixels.npy"), np.load(folder + "/ids.npy")
seen = []
mesh, params = model._on_devices
assert mesh.size == count == jax.device_count()
for name, rows in (("image", pixels), ("text", ids)):
    encode = _encoder(model.module, f"encode_{name}")
    found = getattr(model, f"encode_{name}")(rows, batch_size=4)
    np.save(f"{folder}/{name}-{count}.npy", found)
    spread = jax.device_put(rows[:16], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    compiled = encode.lower(params, spread).compile()
    text = compiled.as_text()
    assert compiled.output_shardings.shard_shape((16, found.shape[1])) == (16 // count, found.shape[1])
    assert f"num_partitions={count}" in text or count == 1
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
"""


def test_every_device_encodes_its_share_and_the_numbers_stay(tiny_model, python, tmp_path):
    """Rows spread evenly, nothing is sent between devices; counts that eight devices do not divide."""
    folder, random = tmp_path / "model", np.random.default_rng(3)
    tiny_model.save(folder)
    architecture = tiny_model.architecture
    pixels = random.uniform(-1, 1, (45, *architecture.image_size, 3)).astype(np.float32)
    ids = random.integers(0, architecture.vocab_size, (45, architecture.text_length), np.int32)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "ids.npy", ids)
    done = python(ON_EIGHT, folder, 8, devices=8)
    assert done.returncode == 0, done.stderr
    for name, rows in (("image", pixels), ("text", ids)):
        expected = getattr(tiny_model, f"encode_{name}")(rows)
        np.testing.assert_allclose(np.load(folder / f"{name}-8.npy"), expected, atol=1e-6)
