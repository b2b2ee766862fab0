"""Batches: the same bits whatever the speed settings, exact resumption, disjoint processes, fair flips."""

import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from input_pipeline.augment import Augmentation
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import build_dataset, open_split
from input_pipeline.loader import iterate_split, make_loader
from input_pipeline.tokenizer import train_tokenizer
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


def loader(dataset, **kwargs):
    arguments = {"split": "train", "preprocessing": PREPROCESSING, "batch_size": 8, "seed": 7, "show_progress": False}
    return make_loader(dataset, **(arguments | kwargs))


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
from input_pipeline.loader import iterate_split, make_loader
from siglip_jax.preprocessing import Preprocessing
arguments = dict(split="train", preprocessing=Preprocessing.load({str(tmp_path)!r}), batch_size=8)
batch = next(make_loader({str(dataset)!r}, seed=0, **arguments))
print(batch["image"].shape, len(list(iterate_split({str(dataset)!r}, **arguments))), "tensorflow" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(8, 6, 5, 3) 7 False"


@pytest.mark.slow
def test_worker_processes_give_the_same_bits(dataset, tmp_path):
    """In a program of its own, since Grain's workers need absl flags parsed and a main module to import."""
    PREPROCESSING.save(tmp_path)
    script = tmp_path / "program.py"
    script.write_text(f"""
import json
import numpy as np
from absl import app
from input_pipeline.loader import make_loader
from siglip_jax.preprocessing import Preprocessing

def main(_):
    def loader(**kwargs):
        preprocessing = Preprocessing.load({str(tmp_path)!r})
        return make_loader({str(dataset)!r}, split="train", preprocessing=preprocessing, batch_size=8, seed=7, **kwargs)
    plain, workers = loader(epochs=2), loader(epochs=2, num_workers=2)
    batches = list(plain)
    for batch in batches[:7]:
        other = next(workers)
        assert all(np.array_equal(batch[key], other[key]) for key in batch)
    state = json.loads(json.dumps(workers.get_state()))
    workers.close()
    resumed = loader(epochs=2, num_workers=2)
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == len(batches) - 7
    for a, b in zip(rest, batches[7:]):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    print("equal")

if __name__ == "__main__":
    app.run(main)
""")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=".")
    assert result.stdout.strip().endswith("equal"), result.stderr[-2000:]
