"""What a stored picture is, as the table of a dataset's rows tells it."""

from __future__ import annotations

import io
import warnings

import PIL.Image

from siglip_jax.preprocessing import image_format

TURNED = " turned by EXIF"  # after the format of a picture that is seen as it is stored, and elsewhere turned
_ORIENTATION, _UPRIGHT = 0x0112, 1
_MARKS = (b"Exif", b"eXIf", b"EXIF")  # of JPEG, PNG and WEBP
_LOOKED_AT = 2**16  # bytes; cameras write the mark first


def picture_format(data: bytes) -> str:
    """ "JPEG", "PNG", ..., or "JPEG turned by EXIF": decoding ignores that mark, which browsers follow."""
    return image_format(data) + (TURNED if _is_turned(data) else "")


def _is_turned(data: bytes) -> bool:
    start = data[:_LOOKED_AT]
    if not any(mark in start for mark in _MARKS):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PIL.Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, _UPRIGHT) in range(2, 9)
    except Exception:  # PIL raises many types; the picture was decoded before, so that only its notes are damaged
        return False
