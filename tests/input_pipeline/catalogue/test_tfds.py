"""TFDS datasets as catalogues, COCO's nested captions and class labels among them."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.filter import choose_items
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError


def picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tfds(folder, name, features, splits, file_format="array_record"):
    """A prepared dataset, as `download_and_prepare` leaves it."""
    folder.mkdir()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name, version=tfds.core.Version("1.1.0"), data_dir=str(folder), module_name="elsewhere"
        ),
        features=tfds.features.FeaturesDict(features),
    )
    if file_format != "array_record":
        info.set_file_format(file_format)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split="train", filetype_suffix=file_format
        )
        split = tfds.core.SplitInfo(name="train", shard_lengths=[1], num_bytes=1, filename_template=template)
        info.set_splits(tfds.core.SplitDict([split]))
        info.write_to_directory(folder)
        return folder
    writer = tfds.core.SequentialWriter(info, 3, file_format=file_format)
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        writer.add_examples({split: examples})
    writer.close_all()
    return folder


COCO = {
    "image": tfds.features.Image(encoding_format="jpeg"),
    "image/filename": tfds.features.Text(),
    "image/id": np.int64,
    "objects": tfds.features.Sequence({"area": np.int64, "label": tfds.features.ClassLabel(names=["cat", "dog"])}),
    "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
}


def coco_example(k):
    captions = [{"text": f"a thing {k}, said in way {j}", "id": 10 * k + j} for j in range(k % 3 + 1)]
    objects = [{"area": 3, "label": "dog"}] * (k % 2)
    return {"image": picture(k), "image/filename": f"{k}.jpg", "image/id": 900 + k, "objects": objects} | {
        "captions": captions
    }


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    splits = {"train": [coco_example(k) for k in range(5)], "val": [coco_example(k) for k in range(5, 8)]}
    return write_tfds(tmp_path_factory.mktemp("tfds") / "coco", "coco_captions", COCO, splits)


def test_coco_captions(coco):
    catalogue = read_catalogue(f"tfds:{coco}")  # its keys are known
    items = catalogue.rows
    assert catalogue.total == len(items) == 8
    for k, item in enumerate(items):
        assert (item.row, item.id, item.title) == (k, str(900 + k), f"a thing {k}, said in way 0")
        assert item.more_titles == tuple(f"a thing {k}, said in way {j}" for j in range(1, k % 3 + 1))
        assert item.attributes == {"image/filename": f"{k}.jpg", "source_split": "train" if k < 5 else "val"}
        assert catalogue.read_first_image(item) == picture(k)
    assert catalogue.attribute_names == ["image/filename", "source_split"]
    for start in (3, 5, 7, 8):
        assert list(catalogue.items(start)) == items[start:]
    chosen = choose_items(catalogue, {"source_split": ["val"]})
    assert [item.id for item in chosen.items()] == ["905", "906", "907"]


def test_keys(coco):
    catalogue = read_catalogue(f"tfds:{coco}", keys={"title": "image/filename", "image": "image"})
    assert [(item.id, item.title) for item in catalogue.rows[4:6]] == [("train-4", "4.jpg"), ("val-0", "5.jpg")]


def test_captions_reach_the_dataset(coco, tmp_path):
    audit = build_dataset(read_catalogue(f"tfds:{coco}"), tmp_path / "out", fractions={"all_": 1.0}, progress=False)
    assert audit["kept"] == 8
    rows = list(open_split(tmp_path / "out", "all_"))
    assert [len(row["more_titles"]) for row in rows] == [k % 3 for k in range(8)]
    assert rows[2]["more_titles"] == ["a thing 2, said in way 1", "a thing 2, said in way 2"]
    assert [row["image"] for row in rows] == [picture(k) for k in range(8)]
    assert rows[0]["more_images"] == []
    plain = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source("all_")
    assert [title.decode() for title in plain[2]["more_titles"]] == rows[2]["more_titles"]
    assert plain[0]["image"].shape == (9, 7, 3)


def rows_by_id(folder, splits):
    rows = [row for split in splits for row in open_split(folder, split)]
    return {row["id"]: {name: value for name, value in row.items() if name != "title_group"} for row in rows}


def test_our_own_dataset_is_a_catalogue(tmp_path):
    """Built again, and again from that: equal rows, but for the split they came from."""
    shop = tmp_path / "shop"
    (shop / "images").mkdir(parents=True)
    lines = ["id\ttitle\ttitle_2\timage\timage_2\tcolour\timage_sha256\tsplit/of"]
    for k in range(8):
        for j in range(2):
            (shop / "images" / f"{k}.{j}.jpg").write_bytes(picture(10 * k + j))
        title, image = (f"second {k}", f"images/{k}.1.jpg") if k % 3 else ("", "")
        lines.append(f"{k}\tKleid {k} ä\t{title}\timages/{k}.0.jpg\t{image}\trot\tx\t{k}")
    (shop / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    catalogue = read_catalogue(shop)
    options = {"fractions": {"train": 0.5, "test": 0.5}, "progress": False}
    for name in ("first", "second", "third"):
        build_dataset(catalogue, tmp_path / name, **options)
        catalogue = read_catalogue(f"tfds:{tmp_path / name}")
        assert catalogue.notes == ()
    first, second, third = (rows_by_id(tmp_path / name, ("train", "test")) for name in ("first", "second", "third"))
    assert len(first) == 8
    assert first["4"]["attributes"] == {"colour": "rot", "image_sha256": "x", "split/of": "4"}
    assert [len(row["more_titles"]) + len(row["more_images"]) for row in first.values()].count(2) == 5
    assert {item: row["attributes"].pop("source_split") for item, row in second.items()}.keys() == first.keys()
    assert second == first
    assert {name for row in third.values() for name in row["attributes"]} >= {"source_split", "source_source_split"}
    for row in third.values():
        del row["attributes"]["source_split"], row["attributes"]["source_source_split"]
    assert third == first


def test_what_nobody_uses_is_named(coco, tmp_path):
    assert read_catalogue(f"tfds:{coco}").notes == (f"tfds:{coco}: the features objects are used for nothing",)
    features = {"image": tfds.features.Image(), "title": tfds.features.Text(), "about": {"size": np.int64}}
    example = {"image": picture(1), "title": "a", "about": {"size": 3}}
    folder = write_tfds(tmp_path / "nested", "nested", features, {"train": [example]})
    catalogue = read_catalogue(f"tfds:{folder}")
    assert catalogue.rows[0].attributes == {"about/size": "3", "source_split": "train"}
    assert catalogue.notes == ()


def test_class_labels_as_titles(tmp_path):
    features = {  # those of stanford_online_products
        "class_id": tfds.features.ClassLabel(num_classes=22634),
        "super_class_id/num": tfds.features.ClassLabel(num_classes=12),
        "super_class_id": tfds.features.ClassLabel(names=["bicycle", "cabinet"]),
        "image": tfds.features.Image(),
    }
    examples = [
        {"class_id": k + 7, "super_class_id/num": k, "super_class_id": "cabinet" if k else "bicycle"} | {
            "image": picture(k)
        }
        for k in range(2)
    ]  # fmt: skip
    folder = write_tfds(tmp_path / "sop", "stanford_online_products", features, {"train": examples})
    items = read_catalogue(f"tfds:{folder}").rows
    assert [(item.id, item.title) for item in items] == [("train-0", "bicycle"), ("train-1", "cabinet")]
    assert items[1].attributes == {"class_id": "8", "super_class_id/num": "1", "source_split": "train"}


def test_several_pictures(tmp_path):
    features = {"views": tfds.features.Sequence(tfds.features.Image()), "name": tfds.features.Text()}
    examples = [{"views": [picture(1), picture(2)], "name": "two"}, {"views": [picture(3)], "name": "one"}]
    folder = write_tfds(tmp_path / "views", "views", features, {"train": examples})
    catalogue = read_catalogue(f"tfds:{folder}", keys={"title": "name", "image": "views"})
    items = catalogue.rows
    assert [len(item.more_images) for item in items] == [1, 0]
    assert catalogue.read_image(items[0], items[0].more_images[0]) == picture(2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"title": "captions/txt"}, r"no feature captions/txt; features are .*captions.*--keys=title=FEATURE"),
        ({"title": "captions/text", "image": "image/filename"}, "image/filename is a Text; expected an Image"),
        ({"titel": "captions/text"}, "titel given; only id, title and image"),
    ],
)
def test_bad_keys(coco, keys, message):
    with pytest.raises(UserError, match=message):
        read_catalogue(f"tfds:{coco}", keys=keys)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"tfds:no_such_thing: no prepared dataset .*run `tfds build NAME"):
        read_catalogue("tfds:no_such_thing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no prepared dataset"):
        read_catalogue(f"tfds:{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="keys are for tfds:NAME"):
        read_catalogue(tmp_path, keys={"title": "a"})


def test_files_only_tensorflow_reads(tmp_path):
    folder = write_tfds(tmp_path / "old", "old", {"image": tfds.features.Image()}, {}, file_format="tfrecord")
    with pytest.raises(UserError, match=r"its files are tfrecord, which only TensorFlow reads; prepare it with"):
        read_catalogue(f"tfds:{folder}")


def test_damaged_files(coco, tmp_path):
    folder = tmp_path / "coco"
    shutil.copytree(coco, folder)
    shard = sorted(folder.glob("*train*"))[0]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match=r"split train cannot be read|cannot be opened"):
        _ = read_catalogue(f"tfds:{folder}").rows


@pytest.mark.parametrize("by_name", [False, True])
def test_no_tensorflow(coco, tmp_path, by_name):
    code = """
import sys
from input_pipeline.catalogue import read_catalogue
print(len(read_catalogue(f"tfds:{sys.argv[1]}").rows), [name for name in ("jax", "tensorflow") if name in sys.modules])
"""
    name = str(coco)
    if by_name:
        shutil.copytree(coco, tmp_path / "coco_captions/2014/1.1.0")
        name = "coco_captions"
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "8 []", done.stderr


def test_records_are_those_tfds_writes(coco, tmp_path):
    """Our records, assembled from staged features, against the serializer of TFDS."""
    build_dataset(read_catalogue(f"tfds:{coco}"), tmp_path / "out", fractions={"all_": 1.0}, progress=False)
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    serializer = ExampleSerializer(builder.info.features.get_serialized_info())
    raw = builder.as_data_source("all_", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    for row, record in zip(open_split(tmp_path / "out", "all_"), raw, strict=True):
        example = {name: row[name] for name in builder.info.features}
        proto = serializer.get_tf_example(builder.info.features.encode_example(example))
        assert proto.SerializeToString(deterministic=True) == record
