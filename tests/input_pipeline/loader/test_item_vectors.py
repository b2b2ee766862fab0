"""Stored vectors in batches, compared with plain numpy; rows without any, shares of processes, resumption, workers."""

import pickle

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment import Augmentation
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from input_pipeline.loader import DataShare, Speed, iterate_split, make_loader
from input_pipeline.loader.item_vectors import MISSING, ItemVectors, align
from input_pipeline.loader.row_order import first_rows
from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

ROWS, MISSES = 41, (3, 17)
TITLES = [f"Item {k % 30} Red" for k in range(ROWS)]
PREPROCESSING = Preprocessing(image_size=(6, 5), tokenizer=train_tokenizer(TITLES, vocab_size=320), text_length=12)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    for k in range(ROWS):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 9, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"images/{k}.png")
    lines = ["id\ttitle\tcolour", *(f"{k}\t{title}\tc{k % 3}" for k, title in enumerate(TITLES))]
    (folder / "items.tsv").write_text("\n".join(lines))
    build_dataset(read_catalogue(folder), folder / "dataset", fractions={"train": 1.0}, progress=False)
    return folder / "dataset"


@pytest.fixture(scope="module")
def ids(dataset):
    return [row["id"] for row in open_split(dataset, "train")[:]]


@pytest.fixture(scope="module")
def truth():
    """By id: vectors [4] float32 of one kind, [3] float64 of another."""
    random = np.random.default_rng(9)
    return {str(k): (random.normal(size=4).astype(np.float32), random.normal(size=3)) for k in range(ROWS)}


@pytest.fixture(scope="module")
def stored(ids, truth, tmp_path_factory):
    """Both kinds for the split: "cnn" in a file that has other items too, "pixels" in two arrays; rows 3 and 17 lack
    one of them.
    """
    path = tmp_path_factory.mktemp("vectors") / "cnn.npy"
    known = ["another", *reversed([item for item in ids if item != ids[3]]), "more"]
    np.save(path, np.stack([truth[item][0] if item in truth else np.ones(4, np.float32) for item in known]))
    cnn = align(ids, known, np.load(path, mmap_mode="r"))
    known = [item for item in ids if item != ids[17]]
    values = np.stack([truth[item][1] for item in known])
    return {"cnn": cnn, "pixels": align(ids, known, (values[:11], values[11:]))}


def loader(dataset, **options):
    fixed = dict(split="train", preprocessing=PREPROCESSING, batch_size=8, seed=4, show_progress=False)
    return make_loader(dataset, **{**fixed, **options})


def taken(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal_batches(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"image"}:
            assert np.array_equal(one[key], other[key]), key
        for name in one["image"]:
            assert np.array_equal(one["image"][name], other["image"][name]), name


def test_batches_have_the_vectors_of_their_rows(dataset, stored, ids, truth):
    with loader(dataset, features=stored, epochs=2) as batches:
        found = list(batches)
    assert len(found) == 2 * ((ROWS - len(MISSES)) // 8)
    records = open_split(dataset, "train")
    for batch in found:
        assert batch["image"]["cnn"].dtype == batch["image"]["pixels"].dtype == np.float32
        for k, row in enumerate(batch["index"].tolist()):
            assert row not in MISSES
            assert np.array_equal(batch["image"]["cnn"][k], truth[ids[row]][0])
            assert np.array_equal(batch["image"]["pixels"][k], truth[ids[row]][1].astype(np.float32))
            assert batch["group"][k] == records[row]["title_group"]
        assert np.array_equal(batch["text"], PREPROCESSING.text([records[row]["title"] for row in batch["index"]]))
    epoch = np.concatenate([batch["index"] for batch in found[: len(found) // 2]])
    assert len(np.unique(epoch)) == len(epoch)


def test_rows_that_lack_vectors_are_counted_and_named(dataset, stored, ids):
    with loader(dataset, features=stored) as batches:
        assert (batches.left_out.count, batches.left_out.ids) == (2, (ids[3], ids[17]))
        assert str(batches.left_out) == f"cnn 1, pixels 1: ids {ids[3]}, {ids[17]}"
        assert batches.get_state()["rows"] == ROWS - 2
    with pytest.raises(UserError, match=r"2 of them lack vectors \(cnn 1, pixels 1: ids"):
        loader(dataset, features=stored, batch_size=40)


def test_a_part_of_the_rows(dataset, stored, ids):
    """Rows that lack vectors are counted where they are among those asked for, and no other takes their place."""
    asked = first_rows(ROWS, most=30, seed=4).tolist()
    lacking = [row for row in MISSES if row in asked]
    batches = loader(dataset, features=stored, most=30, batch_size=30 - len(lacking), epochs=1)
    assert lacking  # else the seed tells nothing
    assert batches.left_out.count == len(lacking)
    assert batches.left_out.ids == tuple(ids[row] for row in lacking)
    (batch,) = batches
    assert sorted(batch["index"].tolist()) == [row for row in asked if row not in MISSES]


def test_vectors_beside_pictures(dataset, stored):
    with loader(dataset, more={"teacher": stored["cnn"]}, epochs=1, shuffle=False) as batches:
        found = list(batches)
    with loader(dataset, epochs=1, shuffle=False) as batches:
        plain = {row: image for batch in batches for row, image in zip(batch["index"], batch["image"], strict=True)}
    for batch in found:
        assert 3 not in batch["index"]
        assert np.array_equal(batch["teacher"], stored["cnn"].take(batch["index"]))
        assert all(np.array_equal(image, plain[row]) for row, image in zip(batch["index"], batch["image"], strict=True)
                   if row in plain)  # fmt: skip


def test_pictures_are_never_decoded(dataset, stored, monkeypatch):
    monkeypatch.setattr(Preprocessing, "image", None)
    monkeypatch.setattr(Preprocessing, "batch", None)
    with loader(dataset, features=stored, augmentation=Augmentation(title_dropout=0.5)) as batches:
        assert len(next(batches)["index"]) == 8
    assert sum(len(batch["index"]) for batch in passed(dataset, features=stored)) == ROWS - 2


def passed(dataset, **options):
    return iterate_split(dataset, split="train", preprocessing=PREPROCESSING, batch_size=8, **options)


def test_two_processes_have_the_halves(dataset, stored):
    with loader(dataset, features=stored) as batches:
        whole = taken(batches, 7)
    halves = []
    for index in (0, 1):
        with loader(dataset, features=stored, batch_size=4, share=DataShare(index, 2)) as batches:
            halves.append(taken(batches, 7))
    for one, first, second in zip(whole, *halves, strict=True):
        assert np.array_equal(one["index"], np.concatenate([first["index"], second["index"]]))
        for name in stored:
            assert np.array_equal(one["image"][name], np.concatenate([x["image"][name] for x in (first, second)]))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.slow
def test_goes_on_where_it_was(dataset, stored, num_workers):
    """Other workers than before, too: they open the memory map anew."""
    with loader(dataset, features=stored, augmentation=Augmentation(title_dropout=0.5)) as batches:
        whole = taken(batches, 9)
        batches.set_state(batches.get_state() | {"epoch": 0, "batch": 2})
        assert_equal_batches(taken(batches, 2), whole[2:4])
    options = dict(features=stored, speed=Speed(num_workers=num_workers, num_threads=1))
    with loader(dataset, augmentation=Augmentation(title_dropout=0.5), **options) as batches:
        batches.set_state({"epoch": 1, "batch": 1, "batch_size": 8, "rows": ROWS - 2, "seed": 4, "replaced": 0})
        assert_equal_batches(taken(batches, 4), whole[5:9])


def test_stand_ins_have_vectors(dataset, stored, monkeypatch):
    """Titles that cannot be read are replaced by rows that lack nothing."""
    parse = type(open_split(dataset, "train"))._row

    def row(self, number, record):
        if number in (5, 6, 7, 8, 9, 10):
            raise ValueError("rotten")
        return parse(self, number, record)

    monkeypatch.setattr(type(open_split(dataset, "train")), "_row", row)
    monkeypatch.setattr(type(open_split(dataset, "train")), "why_unreadable", lambda self, number: "rotten")
    with loader(dataset, features=stored, max_bad_fraction=1, epochs=3) as batches:
        replaced = []
        for batch in batches:
            assert not set(batch["index"].tolist()) & {*MISSES, 5, 6, 7, 8, 9, 10}
            assert np.array_equal(batch["image"]["cnn"], stored["cnn"].take(batch["index"]))
            replaced += batches.replaced
    assert {each["row"] for each in replaced} == {5, 6, 7, 8, 9, 10}


def test_a_pass_leaves_out_what_is_missing(dataset, stored, ids, truth):
    found = passed(dataset, features=stored)
    batches = list(found)
    assert [item for batch in batches for item in batch["id"]] == [ids[k] for k in range(ROWS) if k not in MISSES]
    assert [(each.row, each.id, each.reason) for each in found.skipped] == [
        (3, ids[3], "no vector of cnn"),
        (17, ids[17], "no vector of pixels"),
    ]
    for batch in batches:
        assert np.array_equal(batch["image"]["cnn"], np.stack([truth[item][0] for item in batch["id"]]))


def test_vectors_of_another_split_and_names_that_are_taken(dataset, stored):
    with pytest.raises(UserError, match="of a split of 2 rows; this one has 41"):
        loader(dataset, features={"cnn": ItemVectors(np.ones((2, 3)), np.arange(2))})
    with pytest.raises(UserError, match="vectors named text"):
        loader(dataset, more={"text": stored["cnn"]})
    with pytest.raises(UserError, match="row 3 of the split has no vector"):
        stored["cnn"].take(np.array([2, 3]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_gathers_as_numpy_does(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    kind = data.draw(st.sampled_from(["float32", "float64", "float16", "uint8", ">f4"]))
    values = np.random.default_rng(sum(sizes)).integers(0, 200, (sum(sizes), 3)).astype(kind)
    parts = tuple(np.split(values, np.cumsum(sizes)[:-1]))
    places = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1))
    rows = data.draw(st.lists(st.integers(0, len(places) - 1)))
    vectors = ItemVectors(parts, np.array(places, np.int64))
    found = vectors.take(np.array(rows, np.int64))
    assert found.dtype == np.float32
    assert np.array_equal(found, values[np.array(places)[rows].astype(int)].astype(np.float32).reshape(-1, 3))


def test_a_mapped_file_goes_to_workers_by_name(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(3000, dtype=np.float32).reshape(1000, 3))
    whole = np.load(tmp_path / "v.npy", mmap_mode="r")
    vectors = ItemVectors((whole, whole[500:]), np.array([0, 1400, MISSING]))
    sent = pickle.dumps(vectors)
    assert len(sent) < 2000
    assert pickle.loads(sent).take(np.array([1, 0])).tolist() == vectors.take(np.array([1, 0])).tolist()
    assert all(isinstance(part, np.memmap) for part in pickle.loads(sent).parts)
