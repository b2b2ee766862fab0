"""What a dataset holds of pictures that an exported graph cannot read: PNG of the same pixels, counted."""

import numpy as np
import PIL.Image
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from siglip_jax.preprocessing import decode_image, image_format
from siglip_jax.preprocessing.image_formats import unserved

KEPT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
OTHERS = {"tiff": "TIFF", "avif": "AVIF", "ppm": "PPM"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    (folder / "images").mkdir()
    rng, lines = np.random.default_rng(0), ["id\ttitle\timage"]
    for number, (suffix, kind) in enumerate((KEPT | OTHERS).items()):
        image = PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
        image.save(folder / "images" / f"{number}.{suffix}", kind)
        lines.append(f"{number}\tproduct number {number}\timages/{number}.{suffix}")
    palette = PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).quantize(16)
    palette.save(folder / "images" / "p.bmp")
    lines.append("p\ta bitmap with a palette\timages/p.bmp")
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_every_stored_picture_can_be_served(shop, tmp_path):
    audit = build_dataset(read_catalogue(shop), tmp_path / "d", max_left_out=1, progress=False)
    assert audit["kept"] == len(KEPT) + len(OTHERS) + 1
    stored = {row["id"]: row["image"] for name in audit["splits"] for row in open_split(tmp_path / "d", name)}
    files = {path.stem: path.read_bytes() for path in (shop / "images").iterdir()}
    for item, data in files.items():
        assert unserved(stored[item]) == ""
        np.testing.assert_array_equal(decode_image(stored[item]), decode_image(data))
        if not unserved(data):
            assert stored[item] == data
    found = {item: image_format(data) for item, data in stored.items()}
    assert found == {str(n): kind for n, kind in enumerate(KEPT.values())} | dict.fromkeys("567p", "PNG")
    counted = audit["contents"]["formats"]
    assert {name: count for name, count in counted.items() if "as PNG" in name} == {
        "TIFF as PNG": 1, "AVIF as PNG": 1, "other as PNG": 1, "BMP as PNG": 1,
    }  # fmt: skip
