"""Pictures against big_vision, Hugging Face and PIL; titles by the rules; what is saved comes back or is refused."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import EOS_ID, Preprocessing, decode_image, images, preprocessing, resize_image

TITLES = ["red dress", "blue jeans", "red shoes for men", "green dress with stripes", "a b c d e f", "it's 100% wool"]
TOKENIZER = train_tokenizer(TITLES, vocab_size=330)
SENTENCEPIECE = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER)
PLAIN = Preprocessing(image_size=(6, 5), tokenizer=TOKENIZER, text_length=8)


def picture(mode="RGB", size=(9, 7), seed=0) -> PIL.Image.Image:
    bands = len(PIL.Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return PIL.Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels, mode)


def encoded(image: PIL.Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "output", "method"),
    [
        ("big_vision_resize.npz", "output", "bilinear_no_antialias"),
        ("hf_resize.npz", "bicubic", "bicubic"),
        ("hf_resize.npz", "bilinear", "bilinear"),
    ],
)
def test_resize_equals_the_reference(golden, file, output, method):
    with np.load(golden / file) as stored:
        cases = [(stored[f"input_{i}"], stored[f"{output}_{i}"]) for i in range(5)]
    for image, expected in cases:
        resized = resize_image(image, expected.shape[:2], method=method)
        assert resized.dtype == np.uint8
        np.testing.assert_allclose(resized, (expected + 1) * 127.5, atol=0.01)  # equal: they hold whole grey levels
        preprocessing = Preprocessing(image_size=expected.shape[:2], resize=method)
        np.testing.assert_allclose(preprocessing.images([PIL.Image.fromarray(image)])[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "bilinear_no_antialias"])
def test_resize_keeps_height_and_width_apart(method):
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 255  # the right half is white
    resized = resize_image(image, (8, 3), method=method)
    assert resized.shape == (8, 3, 3)
    assert (resized[:, 0] < 64).all()
    assert (resized[:, 2] > 191).all()
    np.testing.assert_array_equal(resize_image(image, (4, 6), method=method), image)


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(-4, 4, width=16),
    width=st.floats(0.125, 8, width=16),
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=9),
)
def test_to_float_range(low, width, levels):
    value = Preprocessing(image_size=(1, 1), value_range=(low, low + width))
    found = value.to_float(np.array([0, *levels, 255], np.uint8))
    assert found.dtype == np.float32
    expected = low + np.array([0, *levels, 255], np.float64) / 255 * width
    np.testing.assert_allclose(found, expected, atol=4e-6)
    np.testing.assert_allclose(found[[0, -1]], [low, low + width], atol=4e-6)


def test_formats_decode_to_rgb():
    grey = picture("L")
    assert all(np.array_equal(decode_image(grey)[..., c], np.asarray(grey)) for c in range(3))
    cmyk = picture("CMYK")
    ink = np.asarray(cmyk).astype(int)
    by_hand = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    np.testing.assert_allclose(decode_image(encoded(cmyk, "TIFF")), by_hand, atol=1)
    assert decode_image(encoded(cmyk, "JPEG")).shape == (7, 9, 3)
    palette = picture().quantize(16)
    by_hand = np.array(palette.getpalette("RGB")).reshape(-1, 3)[np.asarray(palette)]
    np.testing.assert_array_equal(decode_image(encoded(palette)), by_hand)
    bitmap = PIL.Image.fromarray(np.asarray(grey) > 128)
    np.testing.assert_array_equal(decode_image(encoded(bitmap))[..., 0], 255 * (np.asarray(grey) > 128))


def test_alpha_is_dropped_not_blended():
    rgba = picture("RGBA")
    np.testing.assert_array_equal(decode_image(encoded(rgba)), np.asarray(rgba)[..., :3])
    la = picture("LA")
    np.testing.assert_array_equal(decode_image(encoded(la)), np.asarray(la)[..., [0, 0, 0]])


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    for image in (PIL.Image.fromarray(levels), encoded(PIL.Image.fromarray(levels))):
        np.testing.assert_array_equal(decode_image(image), np.repeat((levels // 256)[..., None], 3, axis=-1))


def test_first_frame_and_no_rotation():
    frames = [PIL.Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(animated), np.broadcast_to([255, 0, 0], (3, 4, 3)))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode_image(encoded(picture(), "JPEG", exif=exif)).shape == (7, 9, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(picture(size=(60, 60)), "JPEG")[:900],
        encoded(picture(size=(60, 60)))[:900],
        encoded(picture())[:20],
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "header only"],
)
def test_damaged_pictures_are_user_errors(data):
    with pytest.raises(UserError, match="not a readable picture"):
        decode_image(data)


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]))
def test_a_damaged_byte_is_survived_or_a_user_error(where, byte, kind):
    data = bytearray(encoded(picture(size=(20, 20)), kind))
    data[where % len(data)] = byte
    try:
        found = decode_image(bytes(data))
    except UserError:
        return
    assert found.dtype == np.uint8
    assert found.shape[2:] == (3,)


def test_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(PIL.Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 200_000
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"30000|exceeds limit"):
        decode_image(bomb)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 62)
    with pytest.raises(UserError, match="9x7 pixels; the limit is 62"):
        decode_image(picture())


def test_no_pictures():
    assert PLAIN.images([]).shape == (0, 6, 5, 3)


# --- titles -----------------------------------------------------------------------------------------------------------


def test_eos_and_padding():
    pieces = SENTENCEPIECE.encode("red dress")
    assert 1 <= len(pieces) < 7
    np.testing.assert_array_equal(PLAIN.text("red dress")[0], [*pieces, EOS_ID, *[0] * (7 - len(pieces))])
    np.testing.assert_array_equal(PLAIN.replace(pad_id=1).text("red dress")[0], [*pieces, *[1] * (8 - len(pieces))])
    np.testing.assert_array_equal(PLAIN.text(""), [[EOS_ID, *[0] * 7]])
    long = "red dress " * 20
    row = PLAIN.text([long])[0]
    np.testing.assert_array_equal(row[:-1], SENTENCEPIECE.encode(long)[:7])
    assert row[-1] == EOS_ID  # sticky: it takes the place of the eighth token
    for length in range(1, 12):
        assert EOS_ID in PLAIN.replace(text_length=length).text([long])[0]


def test_batches_of_titles_are_their_rows():
    rows = PLAIN.text(TITLES)
    assert rows.dtype == np.int32
    assert rows.shape == (len(TITLES), 8)
    for title, row in zip(TITLES, rows, strict=True):
        np.testing.assert_array_equal(PLAIN.text(title)[0], row)
    assert PLAIN.text([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("rules", "title", "expected"),
    [
        ({"lowercase": "ascii"}, "ÀÉÎ Red-DRESS", "ÀÉÎ red-dress"),
        ({"lowercase": "unicode"}, "ÀÉÎ Red-DRESS", "àéî red-dress"),
        ({"lowercase": "none"}, "ÀÉÎ Red-DRESS", "ÀÉÎ Red-DRESS"),
        ({"punctuation": "delete"}, "  T-Shirt (XL),  100% cotton_blend ", "tshirt xl 100 cottonblend"),
        ({"punctuation": "delete"}, "a -  b", "a b"),
        ({"punctuation": "keep"}, " Red,  DRESS!", " red,  dress!"),
        ({"punctuation": "delete"}, "メルカリ 「新品」", "メルカリ 「新品」"),  # ASCII punctuation only
    ],
)
def test_canonical_titles(rules, title, expected):
    value = PLAIN.replace(**rules)
    assert value.canonical(title) == expected
    np.testing.assert_array_equal(value.text(title)[0], PLAIN.replace(lowercase="none").text(expected)[0])


def test_hugging_face_canonical_titles(golden):
    """SigLIP 1's own canonicalisation, as its tokenizer wrote it down."""
    stored = json.loads((golden / "hf_siglip_tokens.json").read_text())
    value = PLAIN.replace(punctuation="delete", lowercase="unicode")
    for title, canonical in zip(stored["titles"], stored["canonical"], strict=True):
        assert value.canonical(title) == " ".join(canonical.lower().split())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_title_is_encoded(title):
    row = PLAIN.text(title)[0]
    assert 0 <= row.min() <= row.max() < PLAIN.vocab_size
    end = row.tolist().index(EOS_ID)
    assert not row[end + 1 :].any()
    short = PLAIN.replace(lowercase="none", text_length=400).text(title)[0]
    decoded = SENTENCEPIECE.decode(short[: short.tolist().index(EOS_ID)].tolist())
    assert isinstance(decoded, str)


@pytest.mark.parametrize("title", ["🙂 ✨ bag", "red\x00dress", "\x07\x1b[31m", "\u200b\ufeff", "メルカリ", "\n\t "])
def test_odd_characters(title):
    row = PLAIN.text(title)[0]
    assert EOS_ID in row
    if title.strip("\u200b\ufeff\n\t "):
        assert row[0] != EOS_ID  # something is left of it


def test_lone_surrogates_are_no_traceback():
    """Half an emoji, as a careless cut of a JSON string leaves it."""
    assert EOS_ID in PLAIN.text("bag \ud83d")[0]


def test_long_titles_are_cut_at_a_bound():
    head = "red dress " * 1000
    value = PLAIN.replace(text_length=12_000)
    assert len(head) == preprocessing.MAX_TITLE_CHARACTERS
    np.testing.assert_array_equal(value.text(head + "blue jeans" * 1000), value.text(head))
    assert not np.array_equal(value.text(head[:-10] + "blue jeans"), value.text(head))


def test_strings_without_a_tokenizer():
    with pytest.raises(UserError, match="no tokenizer"):
        Preprocessing(image_size=(6, 5)).text("red dress")


def test_wrong_fields_are_refused():
    for fields, message in (
        ({"resize": "nearest"}, "resize='nearest'; expected one of bilinear"),
        ({"lowercase": "yes"}, "lowercase='yes'"),
        ({"punctuation": "drop"}, "punctuation='drop'"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"image_size": (5,)}, "image_size"),
        ({"text_length": 0}, "text_length=0"),
    ):
        with pytest.raises(UserError, match=message):
            PLAIN.replace(**fields)
    with pytest.raises(UserError, match="not a SentencePiece model"):
        PLAIN.replace(tokenizer=b"junk").text("red")


# --- storage ----------------------------------------------------------------------------------------------------------


def test_saved_value_comes_back(tmp_path):
    value = PLAIN.replace(resize="bicubic", value_range=(0.0, 1.0), pad_id=1, lowercase="ascii", punctuation="delete")
    value.save(tmp_path)
    assert Preprocessing.load(tmp_path) == value
    arrays_only = Preprocessing(image_size=(6, 5))
    arrays_only.save(tmp_path / "arrays")
    assert Preprocessing.load(tmp_path / "arrays") == arrays_only


@pytest.mark.parametrize("fields", [{"resize": "bilinear_pad", "fill": "edge"}, {"resize": "bilinear_scaled_decode"}])
def test_saved_resizes_come_back(tmp_path, fields):
    value = PLAIN.replace(**fields)
    value.save(tmp_path)
    assert Preprocessing.load(tmp_path) == value
    assert value.to_json() != PLAIN.to_json()


def test_values_without_a_fill_are_stored_as_before():
    """Manifests of embeddings and runs are compared with them."""
    assert "fill" not in PLAIN.to_json()


def test_another_tokenizer_is_refused(tmp_path):
    PLAIN.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(train_tokenizer([*TITLES, "one more"], vocab_size=330))
    with pytest.raises(UserError, match="sha256"):
        Preprocessing.load(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        Preprocessing.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"normalise": True},
        lambda fields: {name: value for name, value in fields.items() if name != "image_size"},
        lambda fields: fields | {"text_length": "many"},
        lambda fields: fields | {"image_size": 224},
        lambda fields: [],
    ],
)
def test_other_fields_are_refused(tmp_path, change):
    PLAIN.save(tmp_path)
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=r"not a preprocessing file|not a JSON object"):
        Preprocessing.load(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"not a preprocessing file|not a JSON object"):
        Preprocessing.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no preprocessing\.json"):
        Preprocessing.load(tmp_path)
