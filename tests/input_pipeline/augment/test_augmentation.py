"""Augmentation: against numpy.pad and slicing, fair draws, errors."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment import Augmentation
from input_pipeline.augment.row_random import draws
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


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_pictures_are_mirrored_by_the_toss_of_their_row(height, width, seed):
    images, rows = pictures(20, height, width), np.arange(20)
    heads = (draws(rows, seed=seed, epoch=1) >> np.uint64(63)).astype(bool)
    expected = np.where(heads[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(Augmentation()(images, rows, seed=seed, epoch=1), expected)
    Augmentation().change(images, rows, seed=seed, epoch=1)
    np.testing.assert_array_equal(images, expected)


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


# --- crops ------------------------------------------------------------------------------------------------------------


def numbered(height, width):
    """A picture whose pixels tell where they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, y * 0], axis=-1).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    area=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted).map(tuple),
    aspect=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted).map(tuple),
    row=st.integers(0, 10**6),
)
def test_a_crop_is_a_window_of_the_area_and_aspect_asked_for(height, width, area, aspect, row):
    image = numbered(height, width)
    window = Augmentation(crop_area=area, crop_aspect=aspect).crop(image, row, seed=1, epoch=2)
    h, w = window.shape[:2]
    top, left = window[0, 0, :2].astype(int)
    np.testing.assert_array_equal(window, image[top : top + h, left : left + w])
    # Up to the rounding of each side, and to what is cut off where the window sticks out.
    assert (h - 0.5) / height * (w - 0.5) / width <= area[1] + 1e-9 or 1 in (h, w)
    if h < height and w < width:
        assert (h + 0.5) / height * (w + 0.5) / width >= area[0] - 1e-9 or 1 in (h, w)
        smallest, largest = (
            ((w - 0.5) / width) / ((h + 0.5) / height),
            ((w + 0.5) / width) / (max(h - 0.5, 0.1) / height),
        )
        assert 1 in (h, w) or (smallest <= aspect[1] + 1e-9 and largest >= aspect[0] - 1e-9)


def test_crops_are_spread_evenly():
    image = numbered(100, 50)
    windows = [Augmentation(crop_area=(0.25, 0.25)).crop(image, row, seed=0, epoch=0) for row in range(4000)]
    assert {window.shape for window in windows} == {(50, 25, 3)}
    places = np.array([window[0, 0, :2] for window in windows])
    assert (places.min(axis=0).tolist(), places.max(axis=0).tolist()) == ([0, 0], [50, 25])
    np.testing.assert_allclose(places.mean(axis=0), [25, 12.5], atol=0.8)
    areas = [
        window.shape[0] * window.shape[1] / 5000
        for row in range(2000)
        for window in [Augmentation(crop_area=(0.5, 1.0)).crop(image, row, seed=0, epoch=0)]
    ]
    assert np.mean(areas) == pytest.approx(0.75, abs=0.01)


def test_the_whole_picture_where_no_crop_is_asked():
    assert not Augmentation().crops
    assert Augmentation(crop_aspect=(0.9, 1.1)).crops
    image = numbered(7, 9)
    np.testing.assert_array_equal(Augmentation().crop(image, 3, seed=0, epoch=0), image)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift", -1),
        ("zoom", -0.1),
        ("zoom", 1.0),
        ("crop_area", (0.5, 1.1)),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.9, 0.5)),
        ("crop_area", (0.9,)),
        ("crop_aspect", (0.0, 1.0)),
        ("brightness", 1.5),
        ("saturation", -0.1),
        ("hue", 0.6),
        ("title_dropout", 1.0),
        ("title_shuffle", 1.1),
    ],
    ids=str,
)
def test_out_of_range(name, value):
    with pytest.raises(UserError, match=re.escape(f"{name}={value}; expected")):
        Augmentation(**{name: value})


def test_crops_are_refused_with_scaled_decoding():
    scaled = Preprocessing(image_size=(8, 8), resize="bilinear_scaled_decode")
    Augmentation(shift=1).check(scaled)
    with pytest.raises(UserError, match="windows are cut from whole decoded pictures"):
        Augmentation(crop_area=(0.5, 1.0)).check(scaled)
    Augmentation(crop_area=(0.5, 1.0)).check(Preprocessing(image_size=(8, 8)))
