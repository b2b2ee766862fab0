"""What the first bytes of an encoded picture say: its format, its size, and whether every consumer reads it alike.

PIL reads dozens of formats, TensorFlow's operations five, and of these not every kind. Pictures outside `SERVED` are
stored as PNG when a dataset is built, so that training, embedding and the exported graph see equal pixels.
`siglip_jax.export.graph_formats` has the same rules in TensorFlow's operations.
"""

from __future__ import annotations

SERVED = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # read by PIL and by TensorFlow's operations (WEBP: from 2.20)
EXPECTED = f"expected {', '.join(SERVED[:-1])} or {SERVED[-1]}"
HEADER_BYTES = 2**16  # that a GIF's first picture has to begin in

# Longest first; what else PIL reads is "other".
SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"), (8, b"WEBP", "WEBP"), (4, b"ftypavif", "AVIF"), (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"BM", "BMP"),
)  # fmt: skip

# Kinds that TensorFlow's decoders read otherwise than PIL, or not at all: what `unserved` says of them.
ANIMATED = "an animated WEBP; give one frame, or PNG"
TRANSPARENT = "a GIF with transparency, or whose first picture does not fill it; give PNG"
FEW_COLOURS = "a BMP of a palette, of 16 bits or compressed; give PNG"


def image_format(data: bytes) -> str:
    """What the bytes are, whatever the file's name says: "JPEG", "PNG", ... or "other"."""
    return next((name for place, mark, name in SIGNATURES if data.startswith(mark, place)), "other")


def unserved(data: bytes) -> str:
    """Why an export's graph refuses an encoded picture, "a picture in TIFF; ..."; "" where it gives PIL's pixels."""
    kind = image_format(data)
    if kind not in SERVED:
        return not_served(kind)
    if kind == "WEBP" and data[12:16] == b"VP8X" and data[20:21] and data[20] & 2:
        return ANIMATED
    if kind == "GIF" and not _first_frame_is_whole(data):
        return TRANSPARENT
    if kind == "BMP" and not _is_plain_bitmap(data):
        return FEW_COLOURS
    return ""


def not_served(kind: str) -> str:
    return f"a picture {'of another format' if kind == 'other' else f'in {kind}'}; {EXPECTED}"


def _is_plain_bitmap(data: bytes) -> bool:
    """24 or 32 bits a pixel, not compressed, with the header of Windows."""
    header, bits, compression = (int.from_bytes(data[a:b], "little") for a, b in ((14, 18), (28, 30), (30, 34)))
    return header >= 40 and bits in (24, 32) and compression == 0


def _first_frame_is_whole(data: bytes) -> bool:
    """Whether the first picture of a GIF covers it, without a transparent colour."""
    data = data[:HEADER_BYTES]
    if len(data) < 13:
        return False
    place, inside = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 128 else 0), False
    while place + 9 < len(data):
        if inside:  # an extension: blocks that say how long they are, up to one of no bytes
            inside, place = data[place] != 0, place + data[place] + 1
        elif data[place] == 0x21:
            if data[place + 1] == 0xF9 and data[place + 3] & 1:
                return False
            inside, place = True, place + 2
        else:  # the picture: left, top, width, height
            return data[place] == 0x2C and data[place + 1 : place + 9] == bytes(4) + data[6:10]
    return False
