"""Odd pictures against PIL, the NaFlex size against an exact search, patches against slicing."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing, decode_image
from siglip_jax.preprocessing.images import cut_patches, naflex_size

FIXED = {kind: Preprocessing(image_size=(20, 28), resize=kind) for kind in ("bilinear", "bicubic")}
NO_ANTIALIAS = Preprocessing(image_size=(20, 28), resize="bilinear_no_antialias")
SCALED = Preprocessing(image_size=(20, 28), resize="bilinear_scaled_decode")
NAFLEX = Preprocessing(image_size=(16, 16), resize="naflex", patch_size=4, max_patches=20)


def noise(height, width, bands=3, dtype=np.uint8):
    return np.random.default_rng(height * width).integers(0, np.iinfo(dtype).max + 1, (height, width, bands), dtype)


def encoded(image, kind="PNG", **options) -> bytes:
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB or RGBA file, which PIL reads but does not write."""
    height, width, bands = pixels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated_by_exif() -> tuple[bytes, np.ndarray]:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    picture = encoded(noise(13, 31), "JPEG", exif=exif)
    return picture, np.asarray(PIL.Image.open(io.BytesIO(picture)))  # PIL does not rotate unless asked


def cmyk(kind: str) -> tuple[bytes, np.ndarray]:
    picture = encoded(PIL.Image.fromarray(noise(22, 9, bands=4), "CMYK"), kind)
    return picture, np.asarray(PIL.Image.open(io.BytesIO(picture)).convert("RGB"))


def animated(kind: str) -> tuple[bytes, np.ndarray]:
    frames = [PIL.Image.new("RGB", (11, 9), colour) for colour in ("#cc0000", "#0000cc")]
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert PIL.Image.open(io.BytesIO(picture)).n_frames == 2
    return picture, np.broadcast_to(np.array([204, 0, 0], np.uint8), (9, 11, 3))


def jpeg(pixels=None, *, mode="RGB", **options) -> tuple[bytes, np.ndarray]:
    """A JPEG file and PIL's own reading of it."""
    picture = encoded(PIL.Image.fromarray(noise(37, 53) if pixels is None else pixels).convert(mode), "JPEG", **options)
    return picture, np.asarray(PIL.Image.open(io.BytesIO(picture)).convert("RGB"))


def srgb_profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


DEEP, DEEP_ALPHA = noise(17, 6, dtype=np.uint16), noise(5, 16, bands=4, dtype=np.uint16)
ODD = {
    "1x7": (encoded(noise(1, 7)), noise(1, 7)),
    "7x1": (encoded(noise(7, 1)), noise(7, 1)),
    "1x1": (encoded(noise(1, 1)), noise(1, 1)),
    "4000x3": (encoded(noise(4000, 3)), noise(4000, 3)),
    "3x4000": (encoded(noise(3, 4000)), noise(3, 4000)),
    "16-bit grey": (encoded(DEEP[..., 0]), np.repeat(DEEP[..., :1] >> 8, 3, axis=-1).astype(np.uint8)),
    "16-bit RGB": (png16(DEEP), (DEEP >> 8).astype(np.uint8)),
    "16-bit RGBA": (png16(DEEP_ALPHA), (DEEP_ALPHA[..., :3] >> 8).astype(np.uint8)),
    "alpha is dropped": (encoded(noise(12, 19, bands=4)), noise(12, 19, bands=4)[..., :3]),
    "grey and alpha": (encoded(PIL.Image.fromarray(noise(8, 9, 2), "LA")), noise(8, 9, 2)[..., [0, 0, 0]]),
    "rotation is ignored": rotated_by_exif(),
    "CMYK JPEG": cmyk("JPEG"),
    "grey JPEG": jpeg(mode="L"),
    "RGB JPEG": jpeg(keep_rgb=True),
    "progressive JPEG": jpeg(progressive=True, quality=50),
    "full chroma JPEG": jpeg(subsampling=0),
    "4:2:2 JPEG": jpeg(subsampling=1, quality=30),
    "4:2:0 JPEG of odd sides": jpeg(noise(41, 55), subsampling=2),
    "JPEG with a profile": jpeg(icc_profile=srgb_profile(), comment=b"shop"),
    "JPEG with restarts": jpeg(restart_marker_rows=1),
    "JPEG with bytes behind": (jpeg()[0] + bytes(100), jpeg()[1]),
    "CMYK TIFF": cmyk("TIFF"),
    "animated GIF": animated("GIF"),
    "animated WebP": animated("WEBP"),
    "animated PNG": animated("PNG"),
}


JPEGS = [name for name in ODD if "JPEG" in name or name == "rotation is ignored"]


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_is_decoded_as_pil_does(name):
    picture, pixels = ODD[name]
    for given_as in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(decode_image(given_as(picture)), pixels)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    grey=st.booleans(),
)
def test_any_jpeg_is_decoded_as_pil_does(height, width, quality, subsampling, progressive, grey):
    options = dict(quality=quality, subsampling=subsampling, progressive=progressive)
    picture, pixels = jpeg(noise(height, width), mode="L" if grey else "RGB", **options)
    np.testing.assert_array_equal(decode_image(picture), pixels)


def test_sound_jpegs_do_not_pass_through_pil(monkeypatch):
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("PIL"))
    for name in JPEGS:
        if "CMYK" not in name:
            decode_image(ODD[name][0])


@pytest.mark.parametrize("cut", [2, 20, 300, 900])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_a_user_error(cut, progressive):
    picture, _ = jpeg(progressive=progressive)
    for kind in (*FIXED.values(), SCALED):
        with pytest.raises(UserError, match="not a readable picture"):
            kind.image(picture[:-cut])


def test_a_jpeg_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(PIL.Image.new("L", (9000, 9000)), "JPEG")
    assert len(bomb) < 2_000_000
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    for value in (FIXED["bilinear"], SCALED):
        with pytest.raises(UserError, match="picture of 9000x9000 pixels; the limit is 64000000"):
            value.image(bomb)


# --- scaled decoding --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), subsampling=st.sampled_from([0, 1, 2]))
@example(height=160, width=224, subsampling=2)  # an eighth exactly
@example(height=159, width=224, subsampling=2)
@example(height=80, width=112, subsampling=1)
@example(height=60, width=300, subsampling=2)  # 3/8 would reach the size, too
def test_scaled_decode_is_what_pil_drafts(height, width, subsampling):
    picture, _ = jpeg(noise(height, width), subsampling=subsampling)
    opened = PIL.Image.open(io.BytesIO(picture))
    opened.draft(None, (28, 20))
    divisor = max(d for d in (1, 2, 4, 8) if d == 1 or (height >= 20 * d and width >= 28 * d))
    assert opened.size == (-(-width // divisor), -(-height // divisor))
    expected = FIXED["bilinear"].image(PIL.Image.fromarray(np.asarray(opened)))
    np.testing.assert_allclose(SCALED.image(picture).astype(int), expected, atol=1)


def test_scaled_decode_of_other_files():
    for name, (picture, pixels) in ODD.items():
        if "JPEG" not in name and name != "rotation is ignored":
            np.testing.assert_array_equal(SCALED.image(picture), FIXED["bilinear"].image(PIL.Image.fromarray(pixels)))
    picture = encoded(PIL.Image.fromarray(noise(200, 300, bands=4), "CMYK"), "JPEG")
    opened = PIL.Image.open(io.BytesIO(picture))
    opened.draft(None, (28, 20))
    np.testing.assert_array_equal(SCALED.image(picture), FIXED["bilinear"].image(opened.convert("RGB")))
    with pytest.raises(UserError, match="an opened JPEG cannot be decoded at a reduced size"):
        SCALED.image(PIL.Image.open(io.BytesIO(jpeg()[0])))
    with pytest.raises(UserError, match="expected a PIL image"):
        SCALED.image(7)


# --- padding ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), fill=st.sampled_from(["white", "grey", "edge"]))
@example(height=20, width=28, fill="edge")
@example(height=40, width=56, fill="grey")
@example(height=1, width=300, fill="edge")
@example(height=300, width=1, fill="white")
def test_padding(height, width, fill):
    """Against PIL and exact fractions: the picture in the middle, as large as fits, the ground around it."""
    image = noise(height, width)
    found = Preprocessing(image_size=(20, 28), resize="bilinear_pad", fill=fill).image(PIL.Image.fromarray(image))
    scale = min(Fraction(20, height), Fraction(28, width))
    h, w = (max(1, int(side * scale + Fraction(1, 2))) for side in (height, width))
    assert h == 20 or w == 28
    top, left = (20 - h) // 2, (28 - w) // 2
    inner = np.asarray(PIL.Image.fromarray(image).resize((w, h), PIL.Image.Resampling.BILINEAR)).astype(int)
    np.testing.assert_allclose(found[top : top + h, left : left + w], inner, atol=1)
    around = np.ones((20, 28), bool)
    around[top : top + h, left : left + w] = False
    edges = np.concatenate([inner[0], inner[-1]] if h < 20 else [inner[:, 0], inner[:, -1]])
    ground = {"white": np.full(3, 255), "grey": np.full(3, 128), "edge": edges.mean(axis=0)}[fill]
    np.testing.assert_allclose(found[around], np.broadcast_to(ground, (around.sum(), 3)), atol=1.0)


@pytest.mark.parametrize("kind", [*FIXED, "bilinear_no_antialias", "bilinear_pad", "bilinear_scaled_decode"])
def test_a_picture_is_written_into_its_row(kind):
    value = Preprocessing(image_size=(20, 28), resize=kind, fill="edge" if kind == "bilinear_pad" else "")
    batch = np.zeros((len(ODD), 20, 28, 3), np.uint8)
    for row, (picture, _) in zip(batch, ODD.values(), strict=True):
        assert value.image(picture, out=row) is row
    np.testing.assert_array_equal(batch, value.batch([value.image(picture) for picture, _ in ODD.values()]))
    with pytest.raises(UserError, match=r"expected uint8 \[20, 28, 3\]"):
        value.image(ODD["grey JPEG"][0], out=np.zeros((20, 20, 3), np.uint8))


def test_naflex_is_not_written_into_a_row():
    with pytest.raises(UserError, match="leave out= away"):
        NAFLEX.image(ODD["1x7"][0], out=np.zeros((20, 20, 3), np.uint8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "bilinear_pad"}, "fill=''; expected one of white, grey, edge"),
        ({"resize": "bilinear_pad", "fill": "pink"}, "fill='pink'; expected one of"),
        ({"resize": "bilinear", "fill": "white"}, "fill='white' belongs to resize='bilinear_pad'"),
        ({"resize": "naflex", "patch_size": 4, "max_patches": 9, "fill": "white"}, "belongs to"),
    ],
)
def test_fill_goes_with_padding(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(**{"image_size": (16, 16), **fields})


# --- patches ----------------------------------------------------------------------------------------------------------


def exact_naflex_patches(height, width, patch, budget, largest=Fraction(100)):
    """(rows, columns) just below the smallest scale at which the budget is exceeded, and that scale.

    Rounded up to patches, a side has more than k of them from the scale k * patch / side on.
    """
    rows = columns = 1
    while True:
        scale = min(Fraction(rows * patch, height), Fraction(columns * patch, width), largest)
        more_rows = rows + (scale == Fraction(rows * patch, height))
        more_columns = columns + (scale == Fraction(columns * patch, width))
        if more_rows * more_columns > budget or scale == largest:
            return (rows, columns), scale
        rows, columns = more_rows, more_columns


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_are_as_pil_resizes_them(kind, name):
    picture, pixels = ODD[name]
    expected = PIL.Image.fromarray(pixels).resize((28, 20), getattr(PIL.Image.Resampling, kind.upper()))
    np.testing.assert_allclose(FIXED[kind].image(picture).astype(int), np.asarray(expected), atol=1)


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_without_antialias(name):
    """PIL's affine transform samples bilinearly at half-pixel centres, without antialias, rounding to nearest."""
    picture, pixels = ODD[name]
    step = (pixels.shape[1] / 28, 0, 0, 0, pixels.shape[0] / 20, 0)
    image = PIL.Image.fromarray(pixels)
    expected = image.transform((28, 20), PIL.Image.Transform.AFFINE, step, PIL.Image.Resampling.BILINEAR)
    np.testing.assert_allclose(NO_ANTIALIAS.image(picture).astype(int), np.asarray(expected), atol=1)


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_in_patches(name):
    picture, pixels = ODD[name]
    (rows, columns), _ = exact_naflex_patches(*pixels.shape[:2], 4, 20)
    resized = PIL.Image.fromarray(pixels).resize((columns * 4, rows * 4), PIL.Image.Resampling.BILINEAR)
    expected = np.asarray(resized).astype(int)
    patches = NAFLEX.batch([NAFLEX.image(picture)])
    assert patches.shape.tolist() == [[rows, columns]]
    for y in range(rows):
        for x in range(columns):
            found = patches.pixels[0, y * columns + x].reshape(4, 4, 3)
            np.testing.assert_allclose(found, expected[4 * y : 4 * y + 4, 4 * x : 4 * x + 4], atol=1)
    assert not patches.pixels[0, rows * columns :].any()


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(1, 6000),
    width=st.integers(1, 6000),
    patch=st.sampled_from([1, 8, 14, 16, 32]),
    budget=st.integers(1, 1100),
)
@example(height=1, width=7, patch=16, budget=256)
@example(height=4000, width=3, patch=16, budget=256)
@example(height=48, width=48, patch=8, budget=24)
def test_naflex_size_is_the_largest_within_the_budget(height, width, patch, budget):
    found = naflex_size(height, width, patch_size=patch, max_patches=budget)
    assert all(side % patch == 0 for side in found)
    rows, columns = found[0] // patch, found[1] // patch
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= budget
    exact, scale = exact_naflex_patches(height, width, patch, budget)
    # The search ends within 1e-5 of the scale that exceeds the budget.
    nearly = scale - Fraction(1, 10**5)
    at_least = [max(1, -(-side * nearly // patch)) for side in (height, width)]
    assert at_least[0] <= rows <= exact[0]
    assert at_least[1] <= columns <= exact[1]


def test_naflex_size_of_a_strip_of_millions():
    for height, width in ((60_000_000, 1), (1, 60_000_000)):
        rows, columns = naflex_size(height, width, patch_size=8, max_patches=4)
        assert rows * columns == 4 * 8 * 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 30))
def test_any_small_picture(height, width, patch, budget):
    picture = PIL.Image.fromarray(noise(height, width))
    for value in (*FIXED.values(), NO_ANTIALIAS):
        assert value.image(picture).shape == (20, 28, 3)
    value = Preprocessing(image_size=(patch, patch), resize="naflex", patch_size=patch, max_patches=budget)
    patches = value.images([picture, picture])
    assert patches.pixels.shape == (2, budget, patch * patch * 3)
    assert patches.pixels.dtype == np.float32
    assert patches.mask.sum(axis=1).tolist() == [patches.shape[0].prod()] * 2
    assert not patches.pixels[~patches.mask].any()


def test_patches_are_windows_in_row_major_order():
    image = noise(6, 9)
    patches = cut_patches(image, 3)
    for k in range(6):
        y, x = 3 * (k // 3), 3 * (k % 3)
        np.testing.assert_array_equal(patches[k], image[y : y + 3, x : x + 3].ravel())


def test_naflex_patches_equal_hugging_face(golden):
    with np.load(golden / "hf_resize.npz") as stored:
        arrays = dict(stored)
    value = Preprocessing(
        image_size=(32, 32),
        resize="naflex",
        patch_size=int(arrays["patch"]),
        max_patches=int(arrays["max_num_patches"]),
    )
    patches = value.images([PIL.Image.fromarray(arrays[f"input_{i}"]) for i in range(5)])
    for i in range(5):
        np.testing.assert_allclose(patches.pixels[i], arrays[f"naflex_patches_{i}"], atol=1e-6)
        np.testing.assert_array_equal(patches.mask[i], arrays[f"naflex_mask_{i}"])
        np.testing.assert_array_equal(patches.shape[i], arrays[f"naflex_shape_{i}"])


def test_to_float_of_patches_on_the_device():
    import jax

    value = NAFLEX.replace(value_range=(-1.0, 0.5))
    uint8 = value.batch([value.image(picture) for picture, _ in ODD.values()])
    expected = value.to_float(uint8)
    garbage = Patches(np.where(uint8.mask[..., None], uint8.pixels, 77).astype(np.uint8), uint8.shape)
    for patches in (uint8, garbage):
        found = jax.jit(value.to_float)(jax.tree.map(jax.numpy.asarray, patches))
        np.testing.assert_allclose(found.pixels, expected.pixels, atol=1e-6)
        np.testing.assert_array_equal(found.shape, expected.shape)
    by_hand = np.where(uint8.mask[..., None], uint8.pixels / 255 * 1.5 - 1, 0)
    np.testing.assert_allclose(expected.pixels, by_hand, atol=1e-6)


def test_no_pictures():
    patches = NAFLEX.images([])
    assert patches.pixels.shape == (0, 20, 48)
    assert patches.shape.shape == (0, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "naflex"}, "patch_size=0, max_patches=0; expected both at least 1"),
        ({"resize": "naflex", "patch_size": 4}, "max_patches=0; expected both"),
        ({"resize": "naflex", "patch_size": 4, "max_patches": 2.0}, "expected whole numbers"),
        ({"resize": "bilinear", "patch_size": 4}, "belong to resize='naflex'"),
        ({"resize": "naflex", "patch_size": 3, "max_patches": 9}, "not a multiple of the patch size"),
        ({"resize": "naflex", "patch_size": 4, "max_patches": 10**8}, "the limit is 64000000 pixels"),
    ],
)
def test_patch_fields_go_with_naflex(fields, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(**{"image_size": (16, 16), **fields})
