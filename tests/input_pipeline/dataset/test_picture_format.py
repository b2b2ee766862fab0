"""Which pictures a browser would turn."""

import io

import PIL.Image
import pytest

from input_pipeline.dataset.picture_format import picture_format


def encoded(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), "red").save(stream, kind, **({"exif": exif} if orientation else {}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8])
def test_turned(kind, orientation):
    assert picture_format(encoded(kind, orientation)) == kind + (" turned by EXIF" if orientation > 1 else "")


def test_damaged_notes():
    data = encoded("JPEG", 6)
    place = data.index(b"Exif")
    for cut in range(place, place + 30):
        picture_format(data[:cut])
        picture_format(data[:cut] + b"\xff" * 9 + data[cut + 9 :])
