"""The fact table has a line for every row of the source, and what it says is so."""

import hashlib
import io

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.building.split import connected_groups
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from input_pipeline.duplicates.near_images import perceptual_hash
from input_pipeline.duplicates.normalised_titles import normalise_title
from siglip_jax.preprocessing import image_format


@pytest.fixture(scope="module")
def built(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts") / "out"
    audit = build_dataset(read_catalogue(shop), folder, max_left_out=1, progress=False)
    return read_catalogue(shop), folder, audit, pq.read_table(folder / "rows.parquet")


def test_every_row_of_the_source_has_a_line(built):
    catalogue, folder, audit, table = built
    items = catalogue.rows
    assert table["row"].to_pylist() == list(range(len(items)))
    assert table["id"].to_pylist() == [item.id for item in items]
    assert table["title"].to_pylist() == [item.title for item in items]
    assert table["attributes"].to_pylist() == [item.attributes for item in items]
    kinds = table["kind"].to_pylist()
    assert {row["row"]: row["kind"] for row in audit["problem_rows"]} == {k: v for k, v in enumerate(kinds) if v}
    assert sum(audit["problems"].values()) == len(audit["problem_rows"]) > 3
    splits = table["split"].to_pylist()
    assert [not split for split in splits] == [bool(kind) for kind in kinds]
    for name, count in audit["splits"].items():
        ids = [item.id for item, split in zip(items, splits, strict=True) if split == name]
        assert ids == [row["id"] for row in open_split(folder, name)]
        assert len(ids) == count


def test_pictures(built):
    catalogue, _, audit, table = built
    sides = []
    for item, row in zip(catalogue.rows, table.to_pylist(), strict=True):
        if row["kind"]:
            continue
        data = catalogue.read_first_image(item)
        picture = PIL.Image.open(io.BytesIO(data))
        assert row["image_sha256"] == hashlib.sha256(data).hexdigest()
        assert (row["width"], row["height"]) == picture.size
        assert (row["format"], row["bytes"]) == (picture.format, len(data))
        assert row["image_phash"] == perceptual_hash(np.asarray(picture.convert("RGB")))
        sides += picture.size
    assert audit["image_sides"] == [min(sides), max(sides)]


def test_groups(built):
    _, folder, audit, table = built
    kept = [row for row in table.to_pylist() if not row["kind"]]
    numbers: dict[str, int] = {}
    for row in kept:
        assert row["title_group"] == numbers.setdefault(normalise_title(row["title"]), len(numbers))
    groups = connected_groups([row["title"] for row in kept], [row["image_sha256"] for row in kept])
    assert [row["group"] for row in kept] == [kept[group]["row"] for group in groups]
    assert len(set(groups.tolist())) == audit["linked_groups"]
    for row in table.to_pylist():
        if row["kind"]:
            assert (row["title_group"], row["group"], row["split"]) == (-1, -1, "")
    stored = {row["id"]: row["title_group"] for name in audit["splits"] for row in open_split(folder, name)}
    assert stored == {row["id"]: row["title_group"] for row in kept}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_formats(kind):
    file = io.BytesIO()
    PIL.Image.new("RGB", (5, 5)).save(file, kind)
    assert image_format(file.getvalue()) == kind
    assert image_format(b"") == image_format(b"<html>") == "other"


def test_the_hash_of_a_resized_picture_is_near():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 10, 3), np.uint8)
    large = np.asarray(PIL.Image.fromarray(small).resize((300, 270), PIL.Image.Resampling.BICUBIC))
    other = rng.integers(0, 256, (300, 270, 3), np.uint8)
    near, far = (perceptual_hash(small) ^ perceptual_hash(picture) for picture in (large, other))
    assert near.bit_count() + 10 < far.bit_count()
    assert 0 <= perceptual_hash(other) < 2**64
