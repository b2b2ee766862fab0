"""Colour jitter against PIL's ImageEnhance, and against the formulas one after the other in float64."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment import Augmentation
from input_pipeline.augment.colour_jitter import LUMA, change_colours, colour_map, mean_luma
from input_pipeline.augment.row_random import Purpose, draws, unit
from siglip_jax.preprocessing import Patches, Preprocessing

NOTHING = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
factors = st.floats(0, 2)


def picture(seed=0, height=13, width=9):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def changed(pixels, **change):
    colours = pixels.reshape(-1, 3).copy()
    change_colours(colours, *colour_map(mean_luma(colours), **(NOTHING | change)))
    return colours.reshape(pixels.shape)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", PIL.ImageEnhance.Brightness),
        ("contrast", PIL.ImageEnhance.Contrast),
        ("saturation", PIL.ImageEnhance.Color),
    ],
)
def test_each_is_pils(name, enhance, factor):
    """Within the levels that PIL rounds away: it rounds grey, and cuts off fractions."""
    pixels = picture()
    expected = np.asarray(enhance(PIL.Image.fromarray(pixels)).enhance(factor)).astype(int)
    assert np.abs(changed(pixels, **{name: factor}).astype(int) - expected).max() <= 2


@settings(max_examples=50, deadline=None)
@given(brightness=factors, contrast=factors, saturation=factors, hue=st.floats(-0.5, 0.5), seed=st.integers(0, 99))
def test_together_they_are_the_formulas_one_after_the_other(brightness, contrast, saturation, hue, seed):
    pixels = picture(seed)
    x = pixels.astype(np.float64) * brightness
    x = contrast * x + (1 - contrast) * (x @ LUMA).mean()
    luma = (x @ LUMA)[..., None]
    x = saturation * x + (1 - saturation) * luma
    # The NTSC axes: a hue is an angle in the plane of i and q.
    axes = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    y, i, q = np.moveaxis(x @ axes.T, -1, 0)
    angle = 2 * np.pi * hue
    turned = np.stack([y, i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)], -1)
    expected = (turned @ np.linalg.inv(axes).T).clip(0, 255)
    assert (
        np.abs(
            changed(pixels, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue) - expected
        ).max()
        <= 0.51
    )


def test_hue_keeps_luma_and_grey_and_goes_round():
    grey = np.repeat(np.arange(0, 256, dtype=np.uint8)[:, None, None], 3, axis=2)
    np.testing.assert_array_equal(changed(grey, hue=0.3), grey)
    muted = (picture() // 4 + 96).astype(np.uint8)  # nothing is cut off
    turned = changed(muted, hue=0.37)
    np.testing.assert_allclose(turned @ LUMA, muted @ LUMA, atol=0.6)
    assert np.abs(turned.astype(int) - muted).max() > 20
    back = changed(turned, hue=-0.37)
    assert np.abs(back.astype(int) - muted).max() <= 2


def test_a_picture_is_changed_by_the_draws_of_its_row():
    rows = np.array([5, 900, 31])
    images = np.stack([picture(k) for k in range(3)])
    value = Augmentation(flip=False, brightness=0.3, contrast=0.2, saturation=0.4, hue=0.1)
    found = value(images, rows, seed=3, epoch=4)
    for k in range(3):
        u = {
            name: 2 * float(unit(draws(rows, seed=3, epoch=4, purpose=Purpose[name.upper()]))[k]) - 1
            for name in NOTHING
        }
        expected = changed(
            images[k],
            brightness=1 + 0.3 * u["brightness"],
            contrast=1 + 0.2 * u["contrast"],
            saturation=1 + 0.4 * u["saturation"],
            hue=0.1 * u["hue"],
        )
        np.testing.assert_array_equal(found[k], expected)
    np.testing.assert_array_equal(value(images[1:2], rows[1:2], seed=3, epoch=4)[0], found[1])
    assert not np.array_equal(value(images, rows, seed=3, epoch=5), found)


def test_patches_have_the_colours_of_their_pictures():
    value = Preprocessing(image_size=(4, 4), resize="naflex", patch_size=2, max_patches=12)
    images = [picture(0, 4, 6), picture(1, 4, 4), picture(2, 2, 12)]
    rows = np.arange(3)
    augment = Augmentation(flip=True, brightness=0.5, contrast=0.5, hue=0.5)
    found = augment(value.batch(images), rows, seed=0, epoch=0)
    expected = value.batch(
        [augment(image[None], rows[k : k + 1], seed=0, epoch=0)[0] for k, image in enumerate(images)]
    )
    assert isinstance(found, Patches)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    np.testing.assert_array_equal(found.shape, expected.shape)
