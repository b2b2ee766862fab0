"""Signatures of pictures, and the search for near ones against all pairs."""

import io

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.duplicates import near_images
from input_pipeline.duplicates.groups import connected, first_rows
from input_pipeline.duplicates.near_images import (
    COLOUR_NEAR,
    HASH_NEAR,
    image_signature,
    near_groups,
    near_hashes,
    near_image_pairs,
    near_matches,
    perceptual_hash,
)


def drawing(seed: int, height: int = 150, width: int = 120) -> np.ndarray:
    """Overlapping shapes of plain colours."""
    rng = np.random.default_rng(seed)
    picture = PIL.Image.new("RGB", (width, height), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for _ in range(8):
        corners = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(4)]
        draw.polygon(corners, fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    return np.asarray(picture)


def again(picture: PIL.Image.Image, quality: int) -> PIL.Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return PIL.Image.open(io.BytesIO(stream.getvalue()))


CHANGES = {
    "saved again": lambda p: again(p, 60),
    "smaller": lambda p: again(p.resize((p.width // 2, p.height // 2), PIL.Image.Resampling.LANCZOS), 85),
    "larger": lambda p: again(p.resize((p.width * 2, p.height * 2), PIL.Image.Resampling.LANCZOS), 85),
    "squashed": lambda p: p.resize((64, 64), PIL.Image.Resampling.LANCZOS),
    "darker": lambda p: PIL.ImageEnhance.Brightness(p).enhance(0.9),
    "more contrast": lambda p: PIL.ImageEnhance.Contrast(p).enhance(1.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_found_and_no_other(change):
    pictures = [drawing(seed) for seed in range(40)]
    changed = [np.asarray(CHANGES[change](PIL.Image.fromarray(picture)).convert("RGB")) for picture in pictures]
    found = near_matches(
        np.stack([image_signature(picture) for picture in changed]),
        np.stack([image_signature(picture) for picture in pictures]),
    )
    assert all(match in (row, -1) for row, match in enumerate(found))
    assert np.mean(found >= 0) >= 0.8


def test_the_bits_are_signs_of_a_cosine_transform():
    """SciPy's DCT of the picture that PIL makes small, and the low frequencies first."""
    image = drawing(3)
    small = PIL.Image.fromarray(image).resize((64, 64), PIL.Image.Resampling.BOX).convert("L")
    table = scipy.fft.dctn(np.asarray(small, np.float64))[1:17, 1:17]
    bits = np.unpackbits(image_signature(image)[:32]).astype(bool)
    assert bits.sum() == pytest.approx((table > 0).sum(), abs=3)
    assert bits[:64].sum() == pytest.approx((table[:8, :8] > 0).sum(), abs=2)
    assert bits[0] == (table[0, 0] > 0)
    assert perceptual_hash(image) == int.from_bytes(np.packbits(bits[:64]).tobytes(), "big")


def test_plain_pictures_are_all_alike_whatever_their_drawing():
    rng = np.random.default_rng(0)
    plain = [np.full((50, 40, 3), 255, np.uint8), np.full((80, 80, 3), 255, np.uint8)]
    plain.append(np.where(rng.random((90, 60, 1)) < 0.01, 254, 255).astype(np.uint8).repeat(3, 2))
    assert [perceptual_hash(image) for image in plain] == [0, 0, 0]


def test_another_colour_is_another_picture():
    image = np.full((60, 60, 3), 255, np.uint8)
    image[10:50, 15:45] = (200, 40, 40)
    other = image[:, :, ::-1]
    signatures = np.stack([image_signature(picture) for picture in (image, other)])
    np.testing.assert_array_equal(near_groups(signatures), [0, 1])


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (700, 3), (1500, 1500)])
def test_any_size(size):
    assert image_signature(np.zeros((*size, 3), np.uint8)).shape == (64,)


def clustered(seed: int, count: int) -> np.ndarray:
    """Distinct signatures, many near one another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (max(1, count // 8), 64), dtype=np.uint8)
    signatures = centres[rng.integers(0, len(centres), count)]
    bits = np.unpackbits(signatures[:, :32], axis=1)
    bits ^= rng.random(bits.shape) < rng.choice([0.0, 0.02, 0.05, 0.1], (count, 1))
    signatures[:, :32] = np.packbits(bits, axis=1)
    signatures[:, 32:] += rng.integers(0, 4, (count, 32), dtype=np.uint8)
    return np.unique(signatures, axis=0)


def alike(signatures: np.ndarray, distance: int) -> np.ndarray:
    """bool [n, n] by the definition, from strings of bits."""
    bits = [[f"{byte:08b}" for byte in row] for row in signatures.tolist()]
    words = np.array([[int(bit) for byte in row[:32] for bit in byte] for row in bits])
    differing = words[:, None] != words[None]
    colours = np.abs(signatures[:, None, 32:].astype(int) - signatures[None, :, 32:]).mean(2)
    return (differing.sum(2) <= distance) & (differing[:, :, :64].sum(2) <= HASH_NEAR) & (colours <= COLOUR_NEAR)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 90), st.sampled_from([0, 5, 20, 32]), st.sampled_from([1, 7, 2**21]))
def test_pairs_are_those_of_all_pairs(seed, count, distance, at_once):
    signatures = clustered(seed, count)
    expected = {(a, b) for a, b in np.argwhere(alike(signatures, distance)).tolist() if a < b}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_images, "_PAIRS_AT_ONCE", at_once)
        found = [
            (min(pair), max(pair))
            for a, b in near_image_pairs(signatures, distance=distance)
            for pair in zip(a.tolist(), b.tolist(), strict=True)
        ]
    assert len(found) == len(set(found))
    assert set(found) == expected


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 60), st.randoms(use_true_random=False), st.sampled_from([3, 2**21]))
def test_groups_and_matches_with_copies(seed, count, random, at_once):
    distinct = clustered(seed, count)
    signatures = distinct[random.choices(range(len(distinct)), k=count)]
    near = alike(signatures, 20)
    reach = near
    while not np.array_equal(further := (reach.astype(int) @ near) > 0, reach):
        reach = further
    cut = count // 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_images, "_PAIRS_AT_ONCE", at_once)
        np.testing.assert_array_equal(near_groups(signatures), reach.argmax(1))
        found = near_matches(signatures[:cut], signatures[cut:])
    cross = near[:cut, cut:]
    np.testing.assert_array_equal(found, np.where(cross.any(1), cross.argmax(1), -1) if cut else [])


@pytest.mark.parametrize("distance", [1, 2, 4, 8])
def test_hashes_are_those_of_all_pairs(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    flips = (rng.random((400, 64)) < 0.05) @ (np.uint64(1) << np.arange(64, dtype=np.uint64))
    hashes = np.unique(np.concatenate([hashes, hashes ^ flips]))
    bits = [[(a ^ b).bit_count() for b in hashes.tolist()] for a in hashes.tolist()]
    expected = {(i, j, bits[i][j]) for i in range(len(bits)) for j in range(i) if bits[i][j] <= distance}
    found = [
        (max(i, j), min(i, j), k)
        for a, b, c in near_hashes(hashes, distance=distance)
        for i, j, k in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert len(found) >= 5


def test_a_hundred_thousand_blank_pictures():
    """By their square they would be five thousand million pairs."""
    signatures = np.zeros((100_000, 64), np.uint8)
    signatures[70_000:, 40] = 1
    assert not near_groups(signatures).any()
    assert not near_matches(signatures[:9], signatures).any()


@pytest.mark.parametrize("share", [0.003, 0.02])
def test_one_picture_saved_in_thousands_of_ways_is_not_compared_with_itself_each_time(share, monkeypatch):
    """The pairs are two hundred million; all but a few bits of each are those of the first."""
    rng = np.random.default_rng(1)
    signatures = np.repeat(rng.integers(0, 256, (1, 64), np.uint8), 20_000, axis=0)
    signatures[:, :32] ^= np.packbits(rng.random((20_000, 256)) < share, axis=1)
    compared = []
    compare = near_images._Comparison.__call__
    monkeypatch.setattr(
        near_images._Comparison, "__call__", lambda self, a, b: (compared.append(len(a)), compare(self, a, b))[1]
    )
    assert not near_groups(signatures).any()
    assert sum(compared) < 10 * len(signatures)


def test_nothing_to_compare():
    nothing = np.zeros((0, 64), np.uint8)
    assert near_groups(nothing).shape == (0,)
    assert near_matches(nothing, nothing).shape == (0,)
    np.testing.assert_array_equal(near_matches(np.zeros((2, 64), np.uint8), nothing), [-1, -1])


def test_what_is_no_signature():
    with pytest.raises(ValueError, match=r"uint8 \[n, 64\]"):
        next(near_image_pairs(np.zeros((3, 8), np.uint8)))
    with pytest.raises(ValueError, match="distance=33"):
        next(near_image_pairs(np.zeros((3, 64), np.uint8), distance=33))


def test_connected():
    np.testing.assert_array_equal(connected(np.array([[1, 4, 5], [4, 2, 0]]), 7), [0, 1, 1, 3, 1, 0, 6])
    np.testing.assert_array_equal(first_rows(np.array([7, 3, 7, 1, 3])), [0, 1, 0, 3, 1])
