"""The compiled filters against PIL's, to the bit, and against float32 numpy; where nothing can be kept on disk."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import resize_image

KINDS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}


def noise(height, width, *, harsh=False) -> np.ndarray:
    levels = np.random.default_rng(height * 7 + width).integers(0, 256, (height, width, 3), np.uint8)
    return np.where(levels > 127, np.uint8(255), np.uint8(0)) if harsh else levels


def pil(image, size, kind) -> np.ndarray:
    """One axis by PIL, then the other, in the order of Pillow 13; earlier ones always begin with the width."""
    height, width = image.shape[:2]
    height_first = size[0] < height and height - size[0] > 2 * (width - size[1])
    between = (size[0], width) if height_first else (height, size[1])
    for h, w in (between, size):
        image = np.asarray(PIL.Image.fromarray(image).resize((w, h), KINDS[kind]))
    return image


def no_antialias(image, size) -> np.ndarray:
    """Gathered in numpy: along the height, then along the width, then truncated."""
    taps = []
    for old, new in zip(image.shape, size, strict=False):
        position = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        floor = np.floor(position)
        index = [np.clip(floor + step, 0, old - 1).astype(int) for step in (0, 1)]
        taps.append((*index, (position - floor).astype(np.float32)))
    (above, below, down), (left, right, across) = taps
    rows = image[above] * (1 - down)[:, None, None] + image[below] * down[:, None, None]
    resized = rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    return resized.clip(0, 255).astype(np.uint8)


sides = st.one_of(st.integers(1, 9), st.integers(1, 80), st.integers(1, 300))


@settings(max_examples=80, deadline=None)
@given(height=sides, width=sides, h=sides, w=sides, harsh=st.booleans())
@example(height=301, width=203, h=16, w=16, harsh=True)  # the width first
@example(height=400, width=39, h=16, w=10, harsh=True)  # the height first
@example(height=2, width=2, h=1, w=350, harsh=True)
@example(height=320, width=320, h=256, w=256, harsh=False)  # where fast_image_resize is off by two
def test_equal_to_the_reference(height, width, h, w, harsh):
    image = noise(height, width, harsh=harsh)
    for kind in KINDS:
        np.testing.assert_array_equal(resize_image(image, (h, w), method=kind), pil(image, (h, w), kind))
    found = resize_image(image, (h, w), method="bilinear_no_antialias")
    np.testing.assert_array_equal(found, no_antialias(image, (h, w)))


@pytest.mark.parametrize("shape", [(2, 200_000), (200_000, 2), (1, 70_000)])
@pytest.mark.parametrize("kind", KINDS)
def test_long_strips(shape, kind):
    image = noise(*shape)
    np.testing.assert_array_equal(resize_image(image, (20, 28), method=kind), pil(image, (20, 28), kind))


@pytest.mark.parametrize("method", [*KINDS, "bilinear_no_antialias"])
def test_written_where_asked(method):
    image, batch = noise(50, 61), np.full((3, 20, 28, 3), 7, np.uint8)
    found = resize_image(image, (20, 28), method=method, out=batch[1])
    assert found.base is batch
    np.testing.assert_array_equal(batch[1], resize_image(image, (20, 28), method=method))
    assert (batch[[0, 2]] == 7).all()
    resize_image(batch[1].copy(), (20, 28), method=method, out=batch[2])  # of that size already
    np.testing.assert_array_equal(batch[2], batch[1])
    # Views and read-only arrays, as PIL gives them, are read as they are.
    np.testing.assert_array_equal(
        resize_image(image[::2, ::-1], (20, 28), method=method),
        resize_image(image[::2, ::-1].copy(), (20, 28), method=method),
    )
    for wrong in (batch[1].astype(np.float32), batch[1, :-1], batch[:, :, :, 0], batch[1].transpose(1, 0, 2)):
        with pytest.raises(UserError, match=r"out is .*; expected uint8 \[20, 28, 3\]"):
            resize_image(image, (20, 28), method=method, out=wrong)


WITHIN_THE_ARRAYS = """
import ctypes, mmap
import numpy as np
from siglip_jax.preprocessing import resize

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)

def before_a_wall(size):
    # The last byte is the last that the process may touch.
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for wall in (0, pages + 1):
        assert not libc.mprotect(ctypes.c_void_p(address + wall * PAGE), ctypes.c_size_t(PAGE), 0)
    whole = np.frombuffer(memory, np.uint8)
    return whole[(pages + 1) * PAGE - size : (pages + 1) * PAGE], whole[PAGE : (pages + 1) * PAGE - size]

rng = np.random.default_rng(0)
for _ in range(300):
    height, width, h, w = rng.integers(1, rng.choice([9, 40, 200], 4) + 1).tolist()
    image, _ = before_a_wall(3 * height * width)
    image[:] = rng.integers(0, 256, len(image))
    out, ahead = before_a_wall(3 * h * w)
    image, result = image.reshape(height, width, 3), out.reshape(h, w, 3)
    for run in (
        lambda: resize.resample(image, result, False),
        lambda: resize.resample(image, result, True),
        lambda: resize.resample_no_antialias(image, result),
    ):
        run()
        assert not ahead.any()
print("within")
"""


def test_nothing_beyond_the_arrays_is_touched(python):
    """Vectors of 16 bytes hold more than the pixels that are wanted of them."""
    done = python(WITHIN_THE_ARRAYS)
    assert done.stdout.strip() == "within", (done.returncode, done.stderr)


NOWHERE_TO_KEEP = """
import sys
from numba.core import caching
caching.CacheImpl._locator_classes = []
from siglip_jax.preprocessing import resize_image
import numpy as np
print(resize_image(np.full((9, 9, 3), 77, np.uint8), (4, 4), method="bilinear").sum())
"""


@pytest.mark.slow
def test_compiles_without_a_folder_to_write_to(python):
    done = python(NOWHERE_TO_KEEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(77 * 48)


def test_pictures_of_many_threads():
    """The filters release the GIL and share nothing."""
    import concurrent.futures

    images = [noise(30 + k, 90 - k) for k in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: resize_image(image, (17, 19), method="bicubic"), images))
    for image, resized in zip(images, found, strict=True):
        np.testing.assert_array_equal(resized, pil(image, (17, 19), "bicubic"))
