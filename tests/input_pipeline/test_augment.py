"""Augmentation: against numpy.pad and slicing, fair draws, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment import Augmentation, draws
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing


def pictures(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_draws_are_fair_and_independent():
    rows = np.arange(100_000)
    keys = ((0, 0, 0), (0, 1, 0), (1, 0, 0), (2**32 - 1, 9, 0), (0, 0, 1))
    tosses = np.array([draws(rows, seed=s, epoch=e, purpose=p) >> np.uint64(63) for s, e, p in keys]).astype(float)
    np.testing.assert_allclose(tosses.mean(axis=1), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(tosses), np.eye(len(keys)), atol=0.015)
    np.testing.assert_allclose((tosses[:, 1:] == tosses[:, :-1]).mean(axis=1), 0.5, atol=0.01)
    part = draws(rows[500:510], seed=0, epoch=1) >> np.uint64(63)
    np.testing.assert_array_equal(part, tosses[1, 500:510])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_shift_is_a_window_of_the_edge_padded_picture(shift, height, width, seed):
    images, rows = pictures(40, height, width), np.arange(40)
    moved = Augmentation(flip=False, shift=shift)(images, rows, seed=seed, epoch=3)
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    windows = {
        (y, x): padded[:, y : y + height, x : x + width] for y in range(2 * shift + 1) for x in range(2 * shift + 1)
    }
    for k in range(40):
        assert any(np.array_equal(moved[k], window[k]) for window in windows.values())
    assert moved.shape == images.shape
    assert moved.dtype == np.uint8


def test_every_shift_occurs_equally_often():
    count = 9000
    images = np.zeros((count, 5, 5, 3), np.uint8)
    images[:, 2, 2] = 255
    moved = Augmentation(flip=False, shift=1)(images, np.arange(count), seed=0, epoch=0)
    shares = (moved[..., 0] == 255).mean(axis=0)
    np.testing.assert_allclose(shares[1:4, 1:4], 1 / 9, atol=0.015)
    np.testing.assert_allclose(shares.sum(), 1)


def test_a_zoom_enlarges_about_the_centre():
    images = np.zeros((2000, 21, 21, 3), np.uint8)
    images[:, 7:14, 7:14] = 255  # a square of 7, in the middle
    moved = Augmentation(flip=False, zoom=0.5)(images, np.arange(2000), seed=1, epoch=0)[..., 0] == 255
    sides = moved[:, 10].sum(axis=1)
    assert set(sides) == {3, 5, 7, 9, 11}  # odd: symmetric about the centre
    np.testing.assert_array_equal(moved, moved[:, ::-1, ::-1])
    np.testing.assert_array_equal(moved.sum(axis=(1, 2)), sides**2)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=8),
    patch=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_patches_are_flipped_as_their_pictures_are(sizes, patch, seed):
    value = Preprocessing(image_size=(patch, patch), resize="naflex", patch_size=patch, max_patches=16)
    images = [pictures(1, rows * patch, columns * patch)[0] for rows, columns in sizes]
    flipped = Augmentation()(value.batch(images), np.arange(len(images)), seed=seed, epoch=2)
    assert isinstance(flipped, Patches)
    toss = draws(np.arange(len(images)), seed=seed, epoch=2) >> np.uint64(63)
    expected = value.batch([image[:, ::-1] if heads else image for image, heads in zip(images, toss, strict=True)])
    np.testing.assert_array_equal(flipped.pixels, expected.pixels)
    np.testing.assert_array_equal(flipped.shape, expected.shape)


def test_the_input_is_left_alone():
    images = pictures(8, 4, 4)
    before = images.copy()
    Augmentation(flip=True, shift=2)(images, np.arange(8), seed=0, epoch=0)
    np.testing.assert_array_equal(images, before)
    value = Preprocessing(image_size=(2, 2), resize="naflex", patch_size=2, max_patches=4)
    patches = value.batch(list(images))
    Augmentation()(patches, np.arange(8), seed=0, epoch=0)
    np.testing.assert_array_equal(patches.pixels, value.batch(list(before)).pixels)


@pytest.mark.parametrize(("name", "value"), [("shift", -1), ("zoom", -0.1), ("zoom", 1.0)])
def test_out_of_range(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        Augmentation(**{name: value})
