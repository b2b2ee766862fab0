"""Damage that comes after a dataset was built: replaced and counted in training, an error in a pass."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from input_pipeline.augment import Augmentation
from input_pipeline.augment.row_random import Purpose, draws
from input_pipeline.building import build_dataset, records
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import Split, open_split
from input_pipeline.loader import DataShare, Speed, examples, iterate_split, make_loader
from input_pipeline.loader.bad_rows import BadRow, Budget, Replacement, readable_titles
from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing

ROWS, BAD = 60, {3, 17, 40}
TITLES = [f"Item {k} Red" for k in range(ROWS)]
PREPROCESSING = Preprocessing(image_size=(6, 6), tokenizer=train_tokenizer(TITLES, vocab_size=300), text_length=8)
NAFLEX = PREPROCESSING.replace(image_size=(4, 4), resize="naflex", patch_size=2, max_patches=12)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Records of 8 KB, so that damage to one leaves the others; three files."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    for k in range(ROWS):
        pixels = np.random.default_rng(k).integers(0, 256, (50, 50, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"images/id{k}.png")
    (folder / "items.csv").write_text("\n".join(["id,title", *(f"id{k},{title}" for k, title in enumerate(TITLES))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD_BYTES", 22 * 8400)
        build_dataset(read_catalogue(folder), folder / "dataset", fractions={"train": 1.0}, progress=False)
    assert len(list((folder / "dataset").glob("*array_record*"))) == 3
    return folder / "dataset"


@pytest.fixture
def rotten(dataset, monkeypatch):
    """The dataset, the pictures of BAD being cut short since it was built."""
    plain = Split.__getitems__

    def cut_short(self, rows):
        rows = [int(row) for row in rows]
        return [
            {**record, "image": record["image"][:900]} if row in BAD else record
            for row, record in zip(rows, plain(self, rows), strict=True)
        ]

    monkeypatch.setattr(Split, "__getitems__", cut_short)
    return dataset


def bundled(options):
    """Arguments of `make_loader`, from the fields of its bundles and its other arguments alike."""
    fields = {bundle: {field.name for field in dataclasses.fields(bundle)} for bundle in (DataShare, Speed)}
    share, speed = (
        bundle(**{name: options[name] for name in names & options.keys()}) for bundle, names in fields.items()
    )
    return {"share": share, "speed": speed} | {
        name: value for name, value in options.items() if name not in set().union(*fields.values())
    }


def loader(dataset, **kwargs):
    arguments = {
        "split": "train",
        "preprocessing": PREPROCESSING,
        "batch_size": 10,
        "seed": 7,
        "max_bad_fraction": 1.0,
        "augmentation": Augmentation(),
        "show_progress": False,
    }
    return make_loader(dataset, **(arguments | bundled({"cache": False} | kwargs)))


def with_replaced(batches, count):
    return [(next(batches), batches.replaced) for _ in range(count)]


def pixels_of(batch):
    return {key: value.pixels if isinstance(value, Patches) else value for key, value in batch.items()}


def assert_equal(a, b):
    (a, a_replaced), (b, b_replaced) = a, b
    assert a_replaced == b_replaced
    for key in a | b:
        for one, other in zip(np.atleast_1d(a[key]), np.atleast_1d(b[key]), strict=True):
            np.testing.assert_array_equal(one, other)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocessing", [PREPROCESSING, NAFLEX], ids=["square", "naflex"])
@pytest.mark.parametrize("cache", [False, True])
def test_bad_pictures_are_replaced_and_counted(rotten, dataset, cache, preprocessing, monkeypatch):
    options = {"preprocessing": preprocessing, "epochs": 2}
    batches = loader(rotten, cache=cache, **options)
    found = with_replaced(batches, 12)
    state = batches.get_state()
    monkeypatch.undo()
    whole = list(loader(dataset, **options))
    replaced = [each for _, replaced in found for each in replaced]
    assert state["replaced"] == len(replaced) == 2 * len(BAD)
    assert {each["row"] for each in replaced} == BAD
    assert {each["id"] for each in replaced} == {f"id{row}" for row in BAD}
    assert all("not a readable picture" in each["reason"] for each in replaced)
    for number, ((batch, replaced), plain) in enumerate(zip(found, whole, strict=True)):
        expected = plain["index"].copy()
        for each in replaced:
            drawn = (
                int(
                    draws(np.array([each["row"]]), seed=7, epoch=number // 6, purpose=Purpose.STAND_IN + attempt)[0]
                    % ROWS
                )
                for attempt in itertools.count()
            )
            assert each["stand_in"] == next(row for row in drawn if row not in BAD)
            expected[expected == each["row"]] = each["stand_in"]
        np.testing.assert_array_equal(batch["index"], expected)  # nothing else has moved
        # What is in the batch is the row that its index says, as that row is elsewhere in the epoch.
        epoch = whole[:6] if number < 6 else whole[6:]
        keys = ("index", "text", "group", "image")
        everything = {key: np.concatenate([pixels_of(other)[key] for other in epoch]) for key in keys}
        for k, row in enumerate(batch["index"]):
            there = int(np.flatnonzero(everything["index"] == row)[0])
            for key, value in everything.items():
                np.testing.assert_array_equal(pixels_of(batch)[key][k], value[there])


def test_the_same_replacements_at_any_speed_and_on_any_number_of_processes(rotten):
    whole = with_replaced(loader(rotten), 9)
    for options in ({"cache": True}, {"num_threads": 1}, {"num_threads": 5}):
        for a, b in zip(with_replaced(loader(rotten, **options), 9), whole, strict=True):
            assert_equal(a, b)
    halves = [with_replaced(loader(rotten, batch_size=5, process_index=k, process_count=2), 9) for k in range(2)]
    for one, other, (batch, replaced) in zip(*halves, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([one[0]["image"], other[0]["image"]]), batch["image"])
        np.testing.assert_array_equal(np.concatenate([one[0]["index"], other[0]["index"]]), batch["index"])
        assert sorted(one[1] + other[1], key=str) == sorted(replaced, key=str)


@pytest.mark.parametrize("cache", [False, True])
def test_resumes_exactly_with_its_count(rotten, cache):
    unbroken = loader(rotten, cache=cache)
    with_replaced(unbroken, 8)
    state = json.loads(json.dumps(unbroken.get_state()))
    assert state["replaced"] >= len(BAD)
    rest = with_replaced(unbroken, 8)
    resumed = loader(rotten, cache=not cache)
    resumed.set_state(state)
    for a, b in zip(with_replaced(resumed, 8), rest, strict=True):
        assert_equal(a, b)
    assert resumed.get_state() == unbroken.get_state()


def test_the_budget_stops_a_run_and_names_rows(rotten):
    batches = loader(rotten, max_bad_fraction=0.03)  # of 60 rows: two
    with pytest.raises(UserError) as error:
        with_replaced(batches, 6)
    message = str(error.value)
    assert message.startswith("3 rows could not be used in 1 epoch of 60, more than max_bad_fraction=0.03 allows (row ")
    assert all(f"row {row}, id id{row}: not a readable picture" in message for row in BAD)
    with pytest.raises(UserError, match=r"1 row could .* max_bad_fraction=0\.0 allows"):
        with_replaced(loader(rotten, max_bad_fraction=0.0), 6)
    with_replaced(loader(rotten, max_bad_fraction=0.05), 40)  # three an epoch are within it for ever
    resumed = loader(rotten, max_bad_fraction=0.03)
    resumed.set_state({**resumed.get_state(), "replaced": 2})
    with pytest.raises(UserError, match="3 rows"):
        with_replaced(resumed, 6)


def test_the_budget_counts_what_all_processes_replaced_before():
    bad = [Replacement(BadRow(1, "a", "gone"), 2)]
    budget = Budget(fraction=0.1, share=50, processes=4, before=16)
    budget.add(bad, epochs=1)
    with pytest.raises(UserError, match="6 rows could not be used in 1 epoch of 50"):
        budget.add(bad, epochs=1)
    budget.add(bad, epochs=2)


def test_a_damaged_record_is_replaced(dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(dataset, folder)
    damaged = damage_one_record(folder)
    batches = loader(folder, epochs=1)
    replaced = [each for _, replaced in with_replaced(batches, 6) for each in replaced]
    assert {each["row"] for each in replaced} == damaged
    assert all(each["id"] == "" and each["reason"].startswith("damaged record (") for each in replaced)
    cached = loader(folder, epochs=1, cache=True)
    assert [each for _, replaced in with_replaced(cached, 6) for each in replaced] == replaced


def test_titles_of_what_can_be_read(dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(dataset, folder)
    assert list(readable_titles(open_split(folder, "train"), np.arange(ROWS))) == TITLES
    damaged = damage_one_record(folder)
    expected = [title for row, title in enumerate(TITLES) if row not in damaged]
    assert list(readable_titles(open_split(folder, "train"), np.arange(ROWS))) == expected


@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_a_damaged_record_at_either_end_is_replaced_too(dataset, tmp_path, row):
    """A split is opened by a look at these two."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset, folder)
    damaged = damage_one_record(folder, row=row)
    replaced = [each for _, replaced in with_replaced(loader(folder, epochs=1), 6) for each in replaced]
    assert row in damaged
    assert {each["row"] for each in replaced} == damaged


def damage_one_record(folder: pathlib.Path, *, row: int = 20) -> set[int]:
    """Flips bytes in the middle of a picture; returns the rows that cannot be read any more."""
    image = open_split(folder, "train")[row]["image"]
    path = folder / open_split(folder, "train").shard_of(row)[0]
    content = bytearray(path.read_bytes())
    place = content.index(image[4000:4200])
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    split, damaged = open_split(folder, "train"), set()
    for number in range(ROWS):
        try:
            split[number]
        except UserError:
            damaged.add(number)
    assert row in damaged
    assert len(damaged) < 10
    return damaged


@pytest.mark.parametrize("damage", ["cut short", "missing", "empty", "zeros"])
def test_a_wholly_damaged_file_is_one_clear_error(dataset, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(dataset, folder)
    second = sorted(folder.glob("*array_record*"))[1]
    name, start, stop = open_split(folder, "train").shard_of(30)
    assert (name, start < 30 < stop) == (second.name, True)
    size = second.stat().st_size
    if damage == "missing":
        second.unlink()
    else:
        second.write_bytes({"cut short": second.read_bytes()[: size // 2], "empty": b"", "zeros": bytes(size)}[damage])
    expected = rf"{name}: rows {start} to {stop - 1} of split train cannot be read \(.*\); copy the file anew"
    for cache in (False, True):
        with pytest.raises(UserError, match=expected):
            with_replaced(loader(folder, cache=cache), 6)
    with pytest.raises(UserError, match=expected):
        list(iterate_split(folder, split="train", preprocessing=PREPROCESSING, batch_size=50, on_error="skip"))


def test_shards_of_rows(dataset):
    """Against reading the files one by one."""
    split = open_split(dataset, "train")
    for path in sorted(dataset.glob("*array_record*")):
        records = ArrayRecordReader(str(path))
        first = records.read([0])[0]
        rows = [row for row in range(ROWS) if split.shard_of(row)[0] == path.name]
        assert split.shard_of(rows[0])[1:] == (rows[0], rows[-1] + 1)
        assert len(rows) == records.num_records()
        assert split[rows[0]]["id"].encode() in first
        records.close()


def test_a_file_that_is_damaged_in_the_middle_of_a_run(dataset, monkeypatch):
    """What the reader says of each of its rows is one error, with the file's name."""
    plain = Split.__getitems__
    name, start, stop = open_split(dataset, "train").shard_of(ROWS - 1)

    def gone(self, rows):
        if any(int(row) >= start for row in rows):
            raise UserError("the disk is gone")
        return plain(self, rows)

    batches = loader(dataset)
    monkeypatch.setattr(Split, "__getitems__", gone)
    expected = rf"{name}: rows {start} to {stop - 1} of split train cannot be read \(the disk is gone\); copy the file"
    with pytest.raises(UserError, match=expected):
        with_replaced(batches, 6)


def test_no_good_row_is_an_error(dataset, monkeypatch):
    def refuse(*_):
        raise UserError("no decoder")

    monkeypatch.setattr(examples.Recipe, "picture", refuse)
    with pytest.raises(UserError, match=r"row \d+, id id\d+: no decoder; the 16 rows tried in its place are no better"):
        next(loader(dataset))


# --- passes -----------------------------------------------------------------------------------------------------------


def a_pass(dataset, **options):
    return iterate_split(dataset, split="train", preprocessing=PREPROCESSING, batch_size=25, **options)


def test_a_pass_raises_with_the_id(rotten):
    with pytest.raises(UserError, match=r"split train: row 3, id id3: not a readable .* \(and 1 more of 25 rows\)"):
        next(a_pass(rotten))
    with pytest.raises(UserError, match=r"on_error='leave'; expected one of error, skip"):
        a_pass(rotten, on_error="leave")


def test_a_pass_skips_and_counts_when_asked(rotten, dataset, monkeypatch):
    found = a_pass(rotten, on_error="skip")
    batches = list(found)
    assert [(bad.row, bad.id) for bad in found.skipped] == [(row, f"id{row}") for row in sorted(BAD)]
    assert [len(batch["image"]) for batch in batches] == [23, 24, 10]
    nothing = iterate_split(
        rotten, split="train", preprocessing=PREPROCESSING, batch_size=1, rows=range(3, 4), on_error="skip"
    )
    assert list(nothing) == []
    assert len(nothing.skipped) == 1
    monkeypatch.undo()
    whole = list(a_pass(dataset))
    kept = sorted(set(range(ROWS)) - BAD)
    for key in ("index", "image", "text", "group", "id", "title"):
        expected = np.concatenate([batch[key] for batch in whole])[kept]
        np.testing.assert_array_equal(np.concatenate([batch[key] for batch in batches]), expected)
