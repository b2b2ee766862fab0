"""Position embeddings of another size: scipy, torch and JAX's own resampling as references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.models.towers import positions_of_patches
from siglip_jax.preprocessing import Patches
from siglip_jax.weights.position_embedding import resize_positions

sides = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides))
def test_linear_is_scipys_zoom_as_in_big_vision(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 3))
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = scipy.ndimage.zoom(grid, zoom, order=1)
    assert expected.shape == (*new, 3)
    # zoom reads one sample as if there were two equal ones, and so do we
    np.testing.assert_allclose(resize_positions(grid, new), expected, atol=1e-12)


def test_bicubic_is_torchs(golden):
    with np.load(golden / "torch_bicubic.npz") as stored:
        cases = [(stored[f"input_{i}"], stored[f"output_{i}"]) for i in range(4)]
    for grid, expected in cases:
        found = resize_positions(grid, expected.shape[:2], method="bicubic")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_same_size_changes_nothing():
    grid = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    for method in ("linear", "bicubic"):
        np.testing.assert_allclose(resize_positions(grid, (4, 5), method=method), grid, atol=1e-7)


@pytest.mark.parametrize("method", ["linear", "bicubic"])
@pytest.mark.parametrize("name", ["big_vision_siglip_scan.weights.npz", "hf_siglip"])
def test_load_at_another_resolution(golden, tmp_path, name, method):
    start = siglip_jax.load(golden / name)
    size = (start.architecture.image_size[0] * 2, start.architecture.image_size[1] + start.architecture.patch_size)
    model = siglip_jax.load(golden / name, image_size=size, position_resize=method)
    assert model.architecture.image_size == size
    rows, columns = start.architecture.grid
    grid = start.params["img"]["pos_embedding"].reshape(rows, columns, -1)
    expected = resize_positions(grid, (rows * 2, columns + 1), method=method).reshape(1, 2 * rows * (columns + 1), -1)
    np.testing.assert_array_equal(model.params["img"]["pos_embedding"], expected)
    z = model.encode_image(np.zeros((1, *size, 3), np.float32))
    assert np.isfinite(z).all()
    model.save(tmp_path)
    assert siglip_jax.load(tmp_path).architecture == model.architecture


def test_another_resolution_means_nothing_to_naflex(golden):
    with pytest.raises(UserError, match="set max_patches of its preprocessing"):
        siglip_jax.load(golden / "hf_siglip2_naflex", image_size=(64, 64))


# --- NaFlex: one embedding for every aspect ratio ---------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (1, 3)])
def test_positions_are_resized_for_each_picture(grid):
    """Against jax.image.scale_and_translate, which big_vision's naflex_vit calls."""
    shapes = [(1, 1), (4, 4), (2, 7), (9, 3), (5, 5), (1, 12)]
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(*grid, 2)).astype(np.float32)
    count = max(rows * columns for rows, columns in shapes) + 3
    patches = Patches(np.zeros((len(shapes), count, 3), np.float32), np.array(shapes, np.int32))
    found = np.asarray(positions_of_patches(jnp.asarray(embedding), jax.tree.map(jnp.asarray, patches)))
    assert np.isfinite(found).all()  # where there is no patch as well
    for row, (height, width) in enumerate(shapes):
        expected = jax.image.scale_and_translate(
            embedding,
            (height, width, 2),
            (0, 1),
            jnp.array([height / grid[0], width / grid[1]]),
            jnp.zeros(2),
            method="bilinear",
            antialias=True,
        )
        np.testing.assert_allclose(found[row, : height * width], expected.reshape(-1, 2), atol=2e-5)


def test_padding_is_never_looked_at(golden):
    model = siglip_jax.load(golden / "hf_siglip2_naflex")
    with np.load(golden / "hf_siglip2_naflex" / "io.npz") as stored:
        pixels, shape = stored["pixel_values"], stored["spatial_shapes"]
    plain = model.encode_image(Patches(pixels, shape))
    mask = Patches(pixels, shape).mask
    noisy = np.where(
        mask[..., None], pixels, np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32) * 50
    )
    np.testing.assert_allclose(model.encode_image(Patches(noisy, shape)), plain, atol=1e-6)
    longer = np.concatenate([pixels, np.ones_like(pixels)], axis=1)
    np.testing.assert_allclose(model.encode_image(Patches(longer, shape)), plain, atol=1e-6)
    one = [model.encode_image(Patches(pixels[i : i + 1, : shape[i].prod()], shape[i : i + 1]))[0] for i in range(4)]
    np.testing.assert_allclose(one, plain, atol=1e-6)
    turned = shape.copy()
    turned[0] = shape[0, ::-1]  # the same patches in another arrangement are another picture
    assert np.abs(model.encode_image(Patches(pixels, turned))[0] - plain[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("pixels", "shape", "message"),
    [
        (np.zeros((1, 4, 192), np.uint8), [[2, 2]], "Patches of uint8"),
        (np.zeros((1, 4, 190), np.float32), [[2, 2]], r"\[1, 4, 190\]; expected float Patches of \[n, N, 192\]"),
        (np.zeros((1, 4, 192), np.float32), [[2, 3]], "does not fit 4 patches"),
        (np.zeros((1, 4, 192), np.float32), [[0, 2]], "does not fit 4 patches"),
        (np.zeros((2, 4, 192), np.float32), [[2, 2]], r"shape of int32 \[1, 2\]"),
    ],
)
def test_wrong_patches_are_refused(golden, pixels, shape, message):
    model = siglip_jax.load(golden / "hf_siglip2_naflex")
    with pytest.raises(UserError, match=message):
        model.encode_image(Patches(pixels, np.array(shape, np.int32)))
    with pytest.raises(UserError, match="a NaFlex model takes float Patches"):
        model.encode_image(np.zeros((1, 32, 32, 3), np.float32))


def test_patches_are_no_input_of_other_models(golden):
    model = siglip_jax.load(golden / "hf_siglip")
    with pytest.raises(UserError, match="encode_image: Patches; expected float"):
        model.encode_image(Patches(np.zeros((1, 4, 192), np.float32), np.array([[2, 2]])))
