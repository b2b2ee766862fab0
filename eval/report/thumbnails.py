"""Small pictures inside a page, as data: addresses of bounded size."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image

SIDE = 144  # pixels: twice the width shown, for dense screens
MAX_BYTES = 12 << 20  # of pictures in a page


def thumbnails(shown: Iterable[str], images: Callable[[str], bytes], *, most: int = MAX_BYTES) -> dict[str, str | None]:
    """{item: data: address} for every item shown, in order; an item shown twice counts twice.

    None for a picture that cannot be had (KeyError, OSError) or read, and for those beyond `most` bytes.
    """
    left = most
    found: dict[str, str | None] = {}
    for item, times in Counter(shown).items():
        address = _thumbnail(images, item) if left > 0 else None
        if address is not None and times * len(address) > left:
            address = None
        left -= times * len(address or "")
        found[item] = address
    return found


def _thumbnail(images: Callable[[str], bytes], item: str) -> str | None:
    from PIL import Image

    try:
        picture = Image.fromarray(decode_image(images(item)))
    except (KeyError, OSError, UserError):
        return None
    # Small pictures are enlarged here, not by the browser, which would blur them.
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
