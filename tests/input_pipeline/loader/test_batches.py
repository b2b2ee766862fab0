"""Batches: the same bits whatever the speed settings, exact resumption, disjoint processes, fair flips."""

import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.augment.row_random import Purpose, draws, unit
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import Split, open_split
from input_pipeline.loader import DataShare, Speed, iterate_split, make_loader
from input_pipeline.loader.examples import tree_map
from input_pipeline.train_tokenizer import train_tokenizer
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing

ROWS = 53
TITLES = [f"Item {k % 40} Red" for k in range(ROWS)]
PREPROCESSING = Preprocessing(image_size=(6, 5), tokenizer=train_tokenizer(TITLES, vocab_size=320), text_length=12)
NAFLEX = PREPROCESSING.replace(image_size=(4, 4), resize="naflex", patch_size=2, max_patches=12)


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
    arguments = {"split": "train", "preprocessing": PREPROCESSING, "batch_size": 8, "seed": 7, "show_progress": False}
    return make_loader(dataset, **(arguments | bundled(kwargs)))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert type(a[key]) is type(b[key])
        for one, other in zip(parts(a[key]), parts(b[key]), strict=True):
            np.testing.assert_array_equal(one, other)


def parts(value):
    return value if isinstance(value, Patches) else [value]


def test_a_batch(dataset):
    batch = next(loader(dataset))
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "image": ("uint8", (8, 6, 5, 3)),
        "text": ("int32", (8, 12)),
        "group": ("int32", (8,)),
        "index": ("int64", (8,)),
    }
    records = [open_split(dataset, "train")[k] for k in batch["index"].tolist()]
    np.testing.assert_array_equal(batch["image"], [PREPROCESSING.image(record["image"]) for record in records])
    np.testing.assert_array_equal(batch["text"], PREPROCESSING.text([record["title"] for record in records]))
    np.testing.assert_array_equal(batch["group"], [k % 40 for k in batch["index"]])


def test_epochs(dataset):
    batches = list(loader(dataset, epochs=3))
    assert len(batches) == 3 * (ROWS // 8)
    epochs = np.reshape([batch["index"] for batch in batches], (3, -1))
    assert all(len(set(epoch)) == epoch.size for epoch in epochs.tolist() for epoch in [np.array(epoch)])
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(epochs, 2))
    assert len(set(map(tuple, np.sort(epochs)))) > 1  # what does not fill a batch differs too
    in_order = next(loader(dataset, shuffle=False))
    np.testing.assert_array_equal(in_order["index"], np.arange(8))


@pytest.mark.parametrize("cache", [True, False])
def test_a_part_of_the_rows(dataset, cache):
    """An epoch is of the same rows each time, which are among those of more."""
    few, more = (
        [batch["index"].tolist() for batch in loader(dataset, most=most, batch_size=most // 2, epochs=3, cache=cache)]
        for most in (16, 24)
    )
    few, more = ([{*found[k], *found[k + 1]} for k in (0, 2, 4)] for found in (few, more))
    assert few[0] == few[1] == few[2]
    assert len(few[0]) == 16
    assert few[0] < more[0]
    assert len(more[0]) == 24


def test_another_part_of_the_rows_is_another_run(dataset):
    state = loader(dataset, most=16).get_state()
    with pytest.raises(UserError, match="rows=16 there, 24 here"):
        loader(dataset, most=24).set_state(state)
    for most, said in ((6, "split train has 53, most=6; give a smaller batch"), (99, "most=99; expected 1 to 53")):
        with pytest.raises(UserError, match=said):
            loader(dataset, most=most)


@pytest.mark.parametrize("cache", [True, False])
def test_resumes_exactly(dataset, cache):
    unbroken = loader(dataset, cache=cache)
    for _ in range(9):  # in the second epoch
        next(unbroken)
    state = json.loads(json.dumps(unbroken.get_state()))
    expected = [next(unbroken) for _ in range(8)]
    resumed = loader(dataset, cache=cache)
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)


@pytest.mark.parametrize(
    "other", [{"cache": False}, {"cache": False, "num_threads": 1}, {"cache": False, "num_threads": 5}]
)
def test_the_same_bits_at_any_speed(dataset, other):
    for a, b in zip(loader(dataset, epochs=2, cache=True), loader(dataset, epochs=2, **other), strict=True):
        assert_same(a, b)


def test_seeds(dataset):
    a, b = (next(loader(dataset, seed=seed)) for seed in (0, 2**32 - 1))
    assert not np.array_equal(a["index"], b["index"])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_the_epoch(dataset, count):
    size = 12 // count
    parts = [
        list(loader(dataset, batch_size=size, epochs=2, process_index=k, process_count=count)) for k in range(count)
    ]
    together = list(loader(dataset, batch_size=12, epochs=2))
    assert [len(part) for part in parts] == [len(together)] * count
    for *shares, whole in zip(*parts, together, strict=True):
        order = np.argsort(np.concatenate([share["index"] for share in shares]))
        for key, value in whole.items():
            joined = np.concatenate([share[key] for share in shares])[order]
            np.testing.assert_array_equal(joined, value[np.argsort(whole["index"])])
    seen = np.concatenate([batch["index"] for part in parts for batch in part[: len(part) // 2]])
    assert len(seen) == len(set(seen.tolist())) == 48


def test_processes_cover_the_split(dataset):
    seen = [
        batch["index"]
        for k in range(2)
        for batch in loader(dataset, batch_size=2, epochs=1, process_index=k, process_count=2)
    ]
    assert len(set(np.concatenate(seen).tolist())) == 52  # of 53; the odd one is another each epoch


def test_augmentation_reaches_the_batches_and_nothing_else(dataset):
    flipped = 0
    for a, b in zip(
        loader(dataset, epochs=10, augmentation=Augmentation(flip=True)), loader(dataset, epochs=10), strict=True
    ):
        for one, plain in zip(a["image"], b["image"], strict=True):
            mirrored = np.array_equal(one, plain[:, ::-1])
            assert mirrored or np.array_equal(one, plain)
            flipped += mirrored
        assert_same({**a, "image": 0}, {**b, "image": 0})
    assert 0.4 < flipped / 480 < 0.6


def test_naflex_batches(dataset):
    batches = loader(dataset, preprocessing=NAFLEX)
    assert batches.preprocessing == NAFLEX
    batch = next(batches)
    assert isinstance(batch["image"], Patches)
    assert (batch["image"].pixels.dtype, batch["image"].pixels.shape) == (np.uint8, (8, 12, 12))
    assert (batch["image"].shape.dtype, batch["image"].shape.tolist()) == (np.int32, [[3, 4]] * 8)
    records = [open_split(dataset, "train")[k] for k in batch["index"].tolist()]
    expected = NAFLEX.batch([NAFLEX.image(record["image"]) for record in records])
    np.testing.assert_array_equal(batch["image"].pixels, expected.pixels)


@pytest.mark.parametrize("other", [{"cache": False}, {"cache": False, "num_threads": 1}])
def test_naflex_batches_are_the_same_bits_at_any_speed(dataset, other):
    arguments = {"preprocessing": NAFLEX, "epochs": 2, "augmentation": Augmentation()}
    cached = list(loader(dataset, cache=True, **arguments))
    for a, b in zip(cached, loader(dataset, **arguments, **other), strict=True):
        assert_same(a, b)
    plain = loader(dataset, preprocessing=NAFLEX, epochs=2)
    flipped = [
        not np.array_equal(one, other)
        for a, b in zip(cached, plain, strict=True)
        for one, other in zip(a["image"].pixels, b["image"].pixels, strict=True)
    ]
    assert 0.3 < np.mean(flipped) < 0.7


def test_naflex_pictures_are_only_flipped(dataset):
    for change in ({"shift": 1}, {"zoom": 0.1}):
        with pytest.raises(UserError, match="NaFlex pictures, whose sizes differ; these can only be flipped"):
            loader(dataset, preprocessing=NAFLEX, augmentation=Augmentation(**change))


def test_iterate_split_of_naflex(dataset):
    batches = list(iterate_split(dataset, split="train", preprocessing=NAFLEX, batch_size=20))
    assert [batch["image"].pixels.shape for batch in batches] == [(20, 12, 12), (20, 12, 12), (13, 12, 12)]


def test_iterate_split(dataset):
    batches = list(iterate_split(dataset, split="train", preprocessing=PREPROCESSING, batch_size=20))
    assert [len(batch["id"]) for batch in batches] == [20, 20, 13]
    records = list(open_split(dataset, "train"))
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), np.arange(ROWS))
    assert [id_ for batch in batches for id_ in batch["id"]] == [record["id"] for record in records]
    assert [title for batch in batches for title in batch["title"]] == TITLES
    assert [c for batch in batches for c in batch["attributes"]["colour"]] == [f"c{k % 3}" for k in range(ROWS)]
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images, [PREPROCESSING.image(record["image"]) for record in records])
    assert batches[-1]["text"].shape == (13, 12)


def test_iterate_some_rows_without_tokenizer(dataset):
    preprocessing = Preprocessing(image_size=(4, 4))
    some = iterate_split(dataset, split="train", preprocessing=preprocessing, batch_size=4, rows=range(50, ROWS))
    (batch,) = some
    np.testing.assert_array_equal(batch["index"], [50, 51, 52])
    assert "text" not in batch
    none = iterate_split(dataset, split="train", preprocessing=preprocessing, batch_size=4, rows=range(3, 3))
    assert list(none) == []
    with pytest.raises(UserError, match="rows 50:54 asked of split train; it has 53"):
        iterate_split(dataset, split="train", preprocessing=preprocessing, batch_size=4, rows=range(50, 54))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 54}, "batch_size=54 on 1 process needs 54 rows; split train has 53"),
        ({"batch_size": 27, "process_count": 2}, "batch_size=27 on 2 processes needs 54 rows"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"process_index": 1}, "process_index=1; expected 0 to 0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"num_workers": 1, "cache": True}, "cached batches need no workers"),
        ({"split": "dev"}, "no split dev"),
        ({"preprocessing": Preprocessing(image_size=(4, 4))}, "no tokenizer"),
    ],
)
def test_bad_arguments(dataset, arguments, message):
    with pytest.raises(UserError, match=message):
        loader(dataset, **arguments)


def test_a_cache_beyond_the_memory_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}[name])
    with pytest.raises(UserError, match="do without cache"):
        loader(dataset, cache=True)


def test_one_row(dataset, tmp_path):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(buffer.getvalue())
    (tmp_path / "items.csv").write_text("id,title\n1,hat\n")
    build_dataset(read_catalogue(tmp_path), tmp_path / "one", fractions={"train": 1.0}, progress=False)
    batches = loader(tmp_path / "one", batch_size=1, epochs=3)
    assert [batch["index"].tolist() for batch in batches] == [[0]] * 3


def test_works_without_jax_and_tensorflow(dataset, tmp_path):
    """Grain 0.2.18 imports jax for its tree functions where it is installed; nothing here does."""
    PREPROCESSING.save(tmp_path)
    code = f"""
import sys
sys.modules["jax"] = None  # an import of it fails (TFDS does not bear this of tensorflow)
from input_pipeline.loader import (iterate_split, make_loader)
from siglip_jax.preprocessing import Preprocessing
arguments = dict(split="train", preprocessing=Preprocessing.load({str(tmp_path)!r}), batch_size=8)
batch = next(make_loader({str(dataset)!r}, seed=0, **arguments))
print(batch["image"].shape, len(list(iterate_split({str(dataset)!r}, **arguments))), "tensorflow" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(8, 6, 5, 3) 7 False"


# --- augmentation -----------------------------------------------------------------------------------------------------

EVERYTHING = Augmentation(
    crop_area=(0.4, 0.9),
    crop_aspect=(0.8, 1.2),
    shift=1,
    zoom=0.1,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
    choose_image=True,
    choose_title=True,
    title_attributes=("colour",),
    title_dropout=0.2,
    title_shuffle=0.5,
)
OF_PREPARED = dataclasses.replace(EVERYTHING, choose_image=False, crop_area=(1, 1), crop_aspect=(1, 1))


@pytest.fixture
def several(dataset, monkeypatch):
    """The dataset, every second item with a second picture and two more titles."""
    plain = Split.__getitems__

    def more(self, rows):
        records = plain(self, rows)
        for record in records:
            if (k := int(record["id"])) % 2:
                record["more_images"] = [encoded(k + ROWS)]
                record["more_titles"] = [f"Other {k}", f"Third {k}"]
        return records

    monkeypatch.setattr(Split, "__getitems__", more)
    return dataset


def encoded(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (11, 7, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("other", [{"num_threads": 1}, {"num_threads": 5}, {"process_count": 2}], ids=str)
@pytest.mark.parametrize("preprocessing", [PREPROCESSING, NAFLEX], ids=["square", "naflex"])
def test_everything_drawn_is_the_same_bits_at_any_speed(several, other, preprocessing):
    augmentation = EVERYTHING
    if preprocessing is NAFLEX:
        augmentation = dataclasses.replace(EVERYTHING, shift=0, zoom=0.0)
    options = {"preprocessing": preprocessing, "augmentation": augmentation, "epochs": 2}
    whole = list(loader(several, **options))
    if "process_count" in other:
        halves = [loader(several, batch_size=4, process_index=k, process_count=2, **options) for k in range(2)]
        batches = [
            {key: tree_map(lambda *x: np.concatenate(x), *(part[key] for part in parts_)) for key in parts_[0]}
            for parts_ in zip(*halves, strict=True)
        ]
    else:
        batches = list(loader(several, **options, **other))
    for a, b in zip(batches, whole, strict=True):
        assert_same(a, b)


def test_what_works_on_prepared_pictures_is_the_same_bits_from_memory(several):
    options = {"augmentation": OF_PREPARED, "epochs": 2}
    for a, b in zip(loader(several, cache=True, **options), loader(several, cache=False, **options), strict=True):
        assert_same(a, b)


def test_a_crop_is_of_the_whole_picture(several):
    """Not of the resized one: against cutting and preparing each picture here."""
    augmentation = Augmentation(flip=False, crop_area=(0.3, 0.8), choose_image=True)
    batch = next(loader(several, augmentation=augmentation))
    pictures = []
    for row in batch["index"].tolist():
        record = open_split(several, "train")[row]
        choices = [record["image"], *record.get("more_images", [])]
        drawn = unit(draws(np.array([row]), seed=7, epoch=0, purpose=Purpose.IMAGE))[0]
        chosen = choices[int(drawn * len(choices))]
        whole = np.asarray(PIL.Image.open(io.BytesIO(chosen)).convert("RGB"))
        window = augmentation.crop(whole, row, seed=7, epoch=0)
        pictures.append(np.asarray(PIL.Image.fromarray(window).resize((5, 6), PIL.Image.Resampling.BILINEAR)))
        assert window.size < whole.size
    np.testing.assert_array_equal(batch["image"], pictures)


def test_every_picture_and_title_of_an_item_occurs(several):
    augmentation = Augmentation(flip=False, choose_image=True, choose_title=True)
    seen = {}
    for batch in loader(several, augmentation=augmentation, epochs=12):
        for row, image, text in zip(batch["index"].tolist(), batch["image"], batch["text"], strict=True):
            seen.setdefault(row, []).append((image.tobytes(), text.tobytes()))
    counts = {k: [len(set(values)) for values in zip(*drawn, strict=True)] for k, drawn in seen.items()}
    ids = {row: int(open_split(several, "train")[row]["id"]) for row in seen}
    assert all(counts[row] == [1, 1] for row in seen if not ids[row] % 2)
    several_ = np.array([counts[row] for row in seen if ids[row] % 2])
    assert several_.max(axis=0).tolist() == [2, 3]
    assert several_.mean(axis=0) == pytest.approx([2, 3], abs=0.25)


def test_titles_are_those_drawn(several):
    augmentation = Augmentation(flip=False, title_dropout=0.4, title_attributes=("colour",))
    batches = loader(several, augmentation=augmentation, epochs=2, cache=True)
    rows = open_split(several, "train")
    for number, batch in enumerate(batches):
        records = [rows[row] for row in batch["index"].tolist()]
        titles = augmentation.titles(records, batch["index"], seed=7, epoch=number // 6)
        np.testing.assert_array_equal(batch["text"], PREPROCESSING.text(titles))
    assert any(title.split()[-1].startswith("c") for title in titles)


@pytest.mark.parametrize(
    ("augmentation", "options", "message"),
    [
        ({"crop_area": (0.5, 1.0)}, {"cache": True}, "cache with crop_area: these need the pictures as they came"),
        ({"choose_image": True, "crop_aspect": (1, 2)}, {"cache": True}, "cache with crop_aspect, choose_image: "),
        ({"title_attributes": ("size", "colour")}, {}, "title_attributes has size; attributes are colour"),
        ({}, {"max_bad_fraction": 1.1}, "max_bad_fraction=1.1; expected 0 to 1"),
    ],
    ids=str,
)
def test_what_cannot_be_combined_is_refused(dataset, augmentation, options, message):
    with pytest.raises(UserError, match=message):
        loader(dataset, augmentation=Augmentation(**augmentation), **options)


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [3, 6, 9, 12], ids=lambda k: f"after {k} of 6")
@pytest.mark.parametrize("counts", [(1, 2), (2, 1), (4, 2), (2, 8)], ids=str)
@pytest.mark.slow
def test_another_number_of_processes_continues_exactly(dataset, before, counts):
    """In the middle of an epoch as well: it is the global batch that counts."""
    one = list(loader(dataset, epochs=3))
    begun = [
        loader(dataset, batch_size=8 // counts[0], process_index=k, process_count=counts[0]) for k in range(counts[0])
    ]
    for _ in range(before):
        for process in begun:
            next(process)
    states = [json.loads(json.dumps(process.get_state())) for process in begun]
    assert all(state == states[0] for state in states)
    rest = [
        loader(dataset, batch_size=8 // counts[1], process_index=k, process_count=counts[1], epochs=3)
        for k in range(counts[1])
    ]
    for process in rest:
        process.set_state(states[0])
    joined = [
        {key: np.concatenate([part[key] for part in together]) for key in together[0]}
        for together in zip(*rest, strict=True)
    ]
    assert len(joined) == len(one) - before
    for a, b in zip(joined, one[before:], strict=True):
        assert_same(a, b)


def test_the_batch_size_changes_between_epochs_only(dataset):
    batches = loader(dataset, batch_size=13)
    first = [next(batches) for _ in range(4)]  # all of the first epoch but one row
    resumed = loader(dataset, batch_size=26, epochs=2)
    resumed.set_state(batches.get_state())
    second = list(resumed)
    assert [len(batch["index"]) for batch in second] == [26, 26]
    for epoch in (first, second):
        rows = np.concatenate([batch["index"] for batch in epoch])
        assert len(set(rows.tolist())) == 52
    following = loader(dataset, batch_size=13, epochs=2)
    following.set_state(batches.get_state())
    np.testing.assert_array_equal(
        np.concatenate([batch["index"] for batch in following]), np.concatenate([batch["index"] for batch in second])
    )
    next(batches)
    with pytest.raises(UserError, match=r"1 batches of 13 rows of epoch 1 are done, and a batch of 26 cannot continue"):
        resumed.set_state(batches.get_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 54}, "rows=54 there, 53 here"),
        ({"seed": 8}, "seed=8 there, 7 here"),
        ({"batch": "many"}, "not one of this version"),
    ],
)
def test_positions_of_other_data_are_refused(dataset, change, message):
    batches = loader(dataset)
    with pytest.raises(UserError, match=message):
        batches.set_state(batches.get_state() | change)
    with pytest.raises(UserError, match="not one of this version; start anew"):
        batches.set_state({"next_index": 3})


def test_a_position_after_the_end(dataset):
    batches = loader(dataset, epochs=2)
    list(batches)
    state = batches.get_state()
    assert (state["epoch"], state["batch"]) == (2, 0)
    resumed = loader(dataset, epochs=2)
    resumed.set_state(state)
    assert list(resumed) == []
    longer = loader(dataset, epochs=3)
    longer.set_state(state)
    assert len(list(longer)) == 6


def test_a_process_reads_its_own_rows_only(dataset, monkeypatch):
    read, plain = [], Split.__getitems__

    def reading(self, rows):
        read.extend(map(int, rows))
        return plain(self, rows)

    batches = [loader(dataset, batch_size=4, epochs=1, process_index=k, process_count=2, cache=False) for k in range(2)]
    monkeypatch.setattr(Split, "__getitems__", reading)
    shares = []
    for process in batches:
        read.clear()
        given = np.concatenate([batch["index"] for batch in process])
        assert sorted(read) == sorted(given.tolist())
        shares.append(set(read))
    assert not shares[0] & shares[1]


def test_closing(dataset):
    before = set(threading.enumerate())
    with loader(dataset, cache=False, num_threads=3) as batches:
        next(batches)
        started = set(threading.enumerate()) - before
        assert any(thread.name.startswith("decode") for thread in started)
    batches.close()
    deadline = time.monotonic() + 20
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [thread for thread in started if thread.is_alive()]


# --- worker processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(dataset, tmp_path):
    """In a program of its own, with flags of its own, as ours are: with another number of workers after a stop."""
    found = run_with_workers(
        tmp_path,
        dataset,
        """
    plain, workers = loader(), loader(num_workers=2)
    batches = list(plain)
    for batch in batches[:7]:
        other = next(workers)
        assert all(np.array_equal(batch[key], other[key]) for key in batch)
        assert type(other["image"]) is np.ndarray
    state = json.loads(json.dumps(workers.get_state()))
    workers.close()
    for resumed in (loader(num_workers=1), loader()):
        resumed.set_state(state)
        rest = list(resumed)
        assert len(rest) == len(batches) - 7
        for a, b in zip(rest, batches[7:]):
            assert all(np.array_equal(a[key], b[key]) for key in a)
        resumed.close()
    print("equal", *leftovers())
""",
    )
    assert (found.returncode, found.stdout.strip()) == (0, "equal"), found.stderr[-2000:]
    assert "Exception ignored" not in found.stderr


WORKERS = """
import json, os, signal, sys, threading, time
import numpy as np
from input_pipeline.augment import Augmentation
from input_pipeline.loader import Speed, make_loader
from siglip_jax.preprocessing import Preprocessing

def loader(**speed):
    preprocessing = Preprocessing.load({folder!r})
    arguments = dict(split="train", preprocessing=preprocessing, batch_size=8, seed=7, epochs=2)
    augmentation = Augmentation(crop_area=(0.5, 1.0), hue=0.1, title_dropout=0.2)
    return make_loader({dataset!r}, augmentation=augmentation, speed=Speed(cache=False, **speed), **arguments)

def leftovers():
    import multiprocessing
    return multiprocessing.active_children()

if __name__ == "__main__":
{body}
"""


def run_with_workers(folder, dataset, body, start=subprocess.run):
    PREPROCESSING.save(folder)
    script = folder / "program.py"
    script.write_text(WORKERS.format(folder=str(folder), dataset=str(dataset), body=body))
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    options = {"check": False} if start is subprocess.run else {}
    return start(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_worker_processes_end_with_a_parent_that_is_killed(dataset, tmp_path, number):
    """And leave signals to it while it lives: what stops a run is sent to all processes of it."""
    process = run_with_workers(
        tmp_path,
        dataset,
        """
    def signal_them():  # from their birth on
        told = set()
        while not done:
            for child in set(leftovers()):
                os.kill(child.pid, signal.SIGINT)
                os.kill(child.pid, signal.SIGTERM)
                told.add(child)
            time.sleep(0.01)
        assert len(told) == 2

    done = []
    thread = threading.Thread(target=signal_them)
    thread.start()
    workers = loader(num_workers=2)
    batches = [next(workers) for _ in range(3)]
    done.append(1)
    thread.join()
    children = leftovers()
    batches += [next(workers) for _ in range(9)]
    print(*(child.pid for child in children), flush=True)
    time.sleep(300)
""",
        start=subprocess.Popen,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert len(pids) == 2, error[-2000:]
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def test_a_worker_that_is_killed_is_one_clear_error(dataset):
    with loader(dataset, num_workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"is gone \(Worker process .* exit code -9\)"):
            list(itertools.islice(batches, 100))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = pathlib.Path(f"/proc/{pid}/status")
    return not (status.exists() and "State:\tZ" in status.read_text())


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_callers(dataset, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(dataset, folder)
    found = run_with_workers(
        tmp_path,
        folder,
        """
    from siglip_jax.errors import UserError
    batches = loader(num_workers=1)
    for file in os.listdir({folder!r}):
        if "array_record" in file:
            os.truncate(os.path.join({folder!r}, file), 70_000)
    try:
        list(batches)
    except UserError as error:
        print(error, *leftovers())
""".format(folder=str(folder)),
    )
    assert re.match(r".*/dataset: split train: .*; build it again\n", found.stdout), found
    assert "BaseProcess" not in found.stdout
    assert "Exception ignored" not in found.stderr
