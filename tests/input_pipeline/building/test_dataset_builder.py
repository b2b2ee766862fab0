"""The dataset holds what the catalogue held, TFDS reads it, and every row left out is in the audit."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import attributes, dataset_fingerprint, open_split
from input_pipeline.folder_or_zip import Folder
from input_pipeline.loader.bad_rows import BadRow, read_record
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image


def encode(mode="RGB", kind="PNG", value=0, size=(6, 4)):
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def make_catalogue(folder, rows, images):
    """rows: (id, title, image) triples, attribute `kind` added; images: {path: bytes}."""
    folder.mkdir(exist_ok=True)
    lines = ["id\ttitle\timage\tkind", *("\t".join([*row, f"kind {k}" * (k % 2)]) for k, row in enumerate(rows))]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return read_catalogue(folder)


@pytest.fixture
def catalogue(tmp_path):
    rows = [(f"id{k}", f"Tïtle {k}", f"{k}.png") for k in range(30)]
    return make_catalogue(tmp_path / "shop", rows, {f"{k}.png": encode(value=k) for k in range(30)})


def build(catalogue, out, **kwargs):
    return build_dataset(catalogue, out, max_left_out=1, progress=False, **kwargs)


def test_everything_comes_back(catalogue, tmp_path):
    audit = build(catalogue, tmp_path / "out")
    assert audit["rows"] == audit["kept"] == sum(audit["splits"].values()) == 30
    assert json.loads((tmp_path / "out/audit.json").read_text()) == audit
    found = {}
    for name, count in audit["splits"].items():
        split = open_split(tmp_path / "out", name)
        assert len(split) == count
        found |= {row["id"]: row for row in split}
        ids, titles, values = attributes(tmp_path / "out", name)
        assert (ids, titles) == ([row["id"] for row in split], [row["title"] for row in split])
        assert values == {"kind": [row["attributes"]["kind"] for row in split]}
        assert [int(id_[2:]) for id_ in ids] == sorted(int(id_[2:]) for id_ in ids)  # the catalogue's order
    for item in catalogue.rows:
        row = found[item.id]
        assert (row["title"], row["attributes"], row["title_group"]) == (item.title, item.attributes, item.row)
        assert row["image"] == catalogue.read_first_image(item)


def test_plain_tfds_reads_it(catalogue, tmp_path):
    build(catalogue, tmp_path / "out")
    source = tfds.builder_from_directory(str(tmp_path / "out")).as_data_source("train")
    ours = open_split(tmp_path / "out", "train")
    assert len(source) == len(ours)
    np.testing.assert_array_equal(source[3]["image"], decode_image(ours[3]["image"]))
    assert source[3]["title"].decode() == ours[3]["title"]


def test_pictures_of_every_mode_survive(tmp_path):
    kinds = {
        "grey.png": ("L", "PNG"), "alpha.png": ("RGBA", "PNG"), "palette.png": ("P", "PNG"), "bit.png": ("1", "PNG"),
        "cmyk.jpg": ("CMYK", "JPEG"), "grey.jpg": ("L", "JPEG"), "web.webp": ("RGBA", "WEBP"), "p.gif": ("P", "GIF"),
    }  # fmt: skip
    images = {name: encode(*kind, value=k) for k, (name, kind) in enumerate(kinds.items())}
    catalogue = make_catalogue(tmp_path / "shop", [(name, name, name) for name in images], images)
    build(catalogue, tmp_path / "out", fractions={"train": 1.0})
    split = open_split(tmp_path / "out", "train")
    assert {row["id"]: row["image"] for row in split} == images
    assert all(decode_image(row["image"]).shape == (4, 6, 3) for row in split)


def test_two_builds_are_equal(catalogue, tmp_path):
    audits = [build(catalogue, tmp_path / name, num_threads=threads) for name, threads in (("a", 1), ("b", 3))]
    assert audits[0] == audits[1]
    assert dataset_fingerprint(tmp_path / "a") == audits[0]["fingerprint"]
    code = f"""
from input_pipeline.catalogue import read_catalogue
from input_pipeline.building import build_dataset
build_dataset(read_catalogue({str(tmp_path / "shop")!r}), {str(tmp_path / "elsewhere")!r}, progress=False)
"""  # in another process protobuf hashes, and so orders, the features of a record in another way
    subprocess.run([sys.executable, "-c", code], check=True)
    for file in (tmp_path / "a").iterdir():
        for other in ("b", "elsewhere"):
            assert file.read_bytes() == (tmp_path / other / file.name).read_bytes(), file.name
    assert build(catalogue, tmp_path / "c", seed=1)["fingerprint"] != audits[0]["fingerprint"]


@pytest.fixture
def faulty(tmp_path):
    good = encode(kind="JPEG", size=(64, 64))
    images = {
        "good.jpg": good, "other.png": encode(value=1), "cut.jpg": good[:-300], "text.jpg": b"404 Not Found",
        "small.png": encode(size=(3, 2)),
    }  # fmt: skip
    rows = [
        ("1", "good", "good.jpg"),
        ("", "no id", "good.jpg"),
        ("3", "  ", "good.jpg"),
        ("1", "again", "other.png"),
        ("5", "missing", "absent.jpg"),
        ("6", "without", ""),
        ("7", "cut", "cut.jpg"),
        ("8", "text", "text.jpg"),
        ("9", "out", "../shop/good.jpg"),
        ("10", "small", "small.png"),
        ("11", "GOOD ", "other.png"),
        ("12", "copy", "good.jpg"),
    ]
    return make_catalogue(tmp_path / "shop", rows, images)


def test_problems_are_counted_and_listed(faulty, tmp_path):
    audit = build(faulty, tmp_path / "out", fractions={"train": 1.0}, min_image_size=4)
    assert audit["problems"] == {
        "corrupt image": 2, "duplicate id": 1, "empty id": 1, "empty title": 1, "missing image": 2, "small image": 1,
        "unsafe path": 1,
    }  # fmt: skip
    assert [problem["row"] for problem in audit["problem_rows"]] == list(range(1, 10))
    assert audit["problem_rows"][3]["detail"].startswith("absent.jpg not found")
    assert (audit["rows"], audit["kept"]) == (12, 3)
    assert (audit["duplicate_images"], audit["duplicate_titles"]) == (1, 1)
    assert (audit["linked_groups"], audit["largest_group"]) == (1, 3)
    assert audit["image_sides"] == [4, 64]
    assert attributes(tmp_path / "out", "train")[0] == ["1", "11", "12"]


def test_refusal_writes_the_audit_and_no_dataset(faulty, tmp_path):
    with pytest.raises(UserError, match=r"2 corrupt image, 1 duplicate id.* among 12 rows.*out\.audit\.json") as error:
        build(faulty, tmp_path / "out", on_error="error")
    assert "\n" not in str(error.value)
    assert len(json.loads((tmp_path / "out.audit.json").read_text())["problem_rows"]) == 8
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="on_error='ignore'; expected one of error, skip"):
        build(faulty, tmp_path / "out", on_error="ignore")


def test_no_rows_and_empty_splits(faulty, tmp_path):
    with pytest.raises(UserError, match=r"would be empty: 4 rows form 2 groups"):
        build(faulty, tmp_path / "out", fractions=dict.fromkeys("abcd", 0.25))
    bad = make_catalogue(tmp_path / "bad", [("1", "a", "none.jpg")], {})
    with pytest.raises(UserError, match=r"no usable row among 1 \(1 missing image; the first .* is row 0, id '1'"):
        build(bad, tmp_path / "out")


def test_existing_folders(catalogue, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    first = build(catalogue, out)  # an empty folder is fine
    with pytest.raises(UserError, match="holds a dataset already"):
        build(catalogue, out)
    again = build(catalogue, out, seed=5, overwrite=True)
    assert dataset_fingerprint(out) == again["fingerprint"] != first["fingerprint"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of a dataset"):
        build(catalogue, out, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shop"]  # nothing half done is left


def test_an_interrupted_build_leaves_what_was_there(catalogue, tmp_path, monkeypatch, capsys):
    build(catalogue, tmp_path / "out")
    before = dataset_fingerprint(tmp_path / "out")
    monkeypatch.setattr(
        "input_pipeline.building.dataset_builder.write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        build(catalogue, tmp_path / "out", seed=9, overwrite=True)
    monkeypatch.undo()
    assert dataset_fingerprint(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out.partial", "shop"]
    assert "out.partial: 30 rows are done and kept; the same command goes on" in capsys.readouterr().err
    build(catalogue, tmp_path / "out", seed=9, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shop"]


def test_interrupted_before_anything_is_finished(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "input_pipeline.building.check_item.decode_image", lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        build(catalogue, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


def test_every_picture_is_read_and_decoded_once(catalogue, tmp_path, monkeypatch):
    read, decoded = [], []
    monkeypatch.setattr(
        "input_pipeline.folder_or_zip.Folder.read",
        lambda self, name, _read=Folder.read: read.append(name) or _read(self, name),
    )
    monkeypatch.setattr(
        "input_pipeline.building.check_item.decode_image", lambda data: decoded.append(data) or decode_image(data)
    )
    build(catalogue, tmp_path / "out")
    assert sorted(read) == sorted(f"{k}.png" for k in range(30))
    assert len(decoded) == 30


def test_no_attributes(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(encode())
    (tmp_path / "items.csv").write_text("id,title\n1,hat\n")
    build(read_catalogue(tmp_path), tmp_path / "out", fractions={"train": 1.0})
    assert open_split(tmp_path / "out", "train")[0]["attributes"] == {}
    assert attributes(tmp_path / "out", "train") == (["1"], ["hat"], {})


def test_several_shards_keep_the_order(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr("input_pipeline.building.records.SHARD_BYTES", 5000)
    build(catalogue, tmp_path / "out", fractions={"train": 1.0})
    assert len(list((tmp_path / "out").glob("*.array_record-*"))) > 2
    assert attributes(tmp_path / "out", "train")[0] == [f"id{k}" for k in range(30)]
    split = open_split(tmp_path / "out", "train")
    assert [row["id"] for row in split.__getitems__([29, 0, 17])] == ["id29", "id0", "id17"]
    assert [row["id"] for row in split[-2:]] == ["id28", "id29"]
    assert pickle.loads(pickle.dumps(split))[4]["id"] == "id4"


def test_opening_what_is_not_there(catalogue, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_split(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="no dataset here"):
        open_split(tmp_path, "train")
    build(catalogue, tmp_path / "out")
    with pytest.raises(UserError, match="no split dev; splits are train, test"):
        open_split(tmp_path / "out", "dev")
    (shard,) = (tmp_path / "out").glob("*train*")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"of split train cannot be read \(.*ArrayRecord file.*build the dataset again"):
        open_split(tmp_path / "out", "train")
    (tmp_path / "out/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="damaged dataset"):
        open_split(tmp_path / "out", "train")
    (tmp_path / "out/audit.json").unlink()
    with pytest.raises(UserError, match="no fingerprint"):
        dataset_fingerprint(tmp_path / "out")


def test_a_dataset_of_something_else(tmp_path):
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name="other", version=tfds.core.Version("1.0.0"), data_dir=str(tmp_path), module_name="other"
        ),
        features=tfds.features.FeaturesDict({"id": np.int64}),
    )
    writer = tfds.core.SequentialWriter(info, 10, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": [{"id": 1}]})
    writer.close_all()
    with pytest.raises(UserError, match="a dataset without title, image"):
        open_split(tmp_path, "train")


def test_neither_tensorflow_nor_jax_is_imported(catalogue, tmp_path):
    code = f"""
import sys
from input_pipeline.catalogue import read_catalogue
from input_pipeline.folder_or_zip import Folder
from input_pipeline.dataset import attributes
from input_pipeline.building import build_dataset
build_dataset(read_catalogue({str(tmp_path / "shop")!r}), {str(tmp_path / "out")!r}, progress=False)
attributes({str(tmp_path / "out")!r}, "train")
print([name for name in ("jax", "tensorflow", "grain", "torch") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_audits_of_damaged_pictures_are_equal(faulty, tmp_path):
    for name in ("a", "b"):
        build(faulty, tmp_path / name, fractions={"train": 1.0})
    audit = (tmp_path / "a/audit.json").read_bytes()
    assert audit == (tmp_path / "b/audit.json").read_bytes()
    assert b"text.jpg: not a readable picture (unknown format)" in audit
    assert b" at 0x" not in audit


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_current_folder_may_be_given(catalogue, tmp_path, monkeypatch, overwrite):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if overwrite:
        build(catalogue, ".")
    audit = build(catalogue, ".", seed=3, overwrite=overwrite)
    assert dataset_fingerprint(".") == dataset_fingerprint(tmp_path / "here") == audit["fingerprint"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "shop"]


def test_leftovers_and_permissions(catalogue, tmp_path):
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()  # of a killed run
    (tmp_path / f".out.old-{os.getpid()}/x").mkdir(parents=True)
    build(catalogue, tmp_path / "out")
    build(catalogue, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "shop").stat().st_mode


@pytest.mark.parametrize("out", ["shop/items.tsv/out", "x" * 300, "x" * 250])
def test_folders_that_cannot_be_made_are_found_first(catalogue, tmp_path, monkeypatch, out):
    monkeypatch.setattr("input_pipeline.building.check_item.decode_image", lambda _: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"cannot be written .*give another folder"):
        build(catalogue, tmp_path / out)


def spoil(folder, changes):
    """Records of the split "train" changed: {row: function of the Example, or bytes}."""
    (shard,) = folder.glob("*train*")
    records = ArrayRecordReader(str(shard)).read_all()
    for row, change in changes.items():
        if isinstance(change, bytes):
            records[row] = change
            continue
        example = tf_example_pb2.Example.FromString(records[row])
        change(example.features.feature)
        records[row] = example.SerializeToString()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_records_that_are_no_rows_are_named(catalogue, tmp_path):
    build(catalogue, tmp_path / "out")
    wrong = {
        1: (b"\xff\xff not an example", "DecodeError"),
        2: (lambda features: features.pop("title"), "title has 0 values; expected one"),
        3: (lambda features: features["id"].bytes_list.value.append(b"two"), "id has 2 values; expected one"),
        4: (lambda features: features["title"].bytes_list.value.__setitem__(0, b"caf\xe9"), "UnicodeDecodeError"),
        5: (lambda features: features["title_group"].int64_list.value.__setitem__(0, 2**40), "title_group is"),
    }
    spoil(tmp_path / "out", {row: change for row, (change, _) in wrong.items()})
    rows = open_split(tmp_path / "out", "train")
    assert rows[0]["id"]
    for row, (_, message) in wrong.items():
        with pytest.raises(UserError, match=rf"split train: row {row}: .*{message}.*; build the dataset again"):
            rows[row]
        found = read_record(rows, row)
        assert isinstance(found, BadRow)
        assert message in found.reason
    with pytest.raises(UserError, match="row 1: "):
        rows[:]


@pytest.mark.parametrize(
    ("name", "like", "message"),
    [
        ("id", "title_group", "feature id is int64; expected Text"),
        ("title", "attributes", "feature title is FeaturesDict; expected Text"),
        ("attributes", "title", "feature attributes is Text; expected FeaturesDict"),
        ("title_group", "id", "feature title_group is Text; expected int64"),
        ("image", "id", "feature image is Text; expected Image"),
    ],
)
def test_features_of_another_type_are_refused(catalogue, tmp_path, name, like, message):
    build(catalogue, tmp_path / "out")
    path = tmp_path / "out/features.json"
    described = json.loads(path.read_text())
    features = described["featuresDict"]["features"]
    features[name] = features[like]
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match=message):
        open_split(tmp_path / "out", "train")
