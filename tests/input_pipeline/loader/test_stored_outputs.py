"""Stored outputs of frozen towers: every row as it was written, and examples that have them."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.augment import Augmentation
from input_pipeline.loader import make_loader
from input_pipeline.loader.bad_rows import BadRow
from input_pipeline.loader.stored_outputs import StoredArray, StoredOutputs


def write_all(stored: StoredOutputs, values: dict[str, np.ndarray], *, bad=()) -> None:
    for shard in range(stored.shards):
        rows = stored.shard_rows(shard)
        part = {key: value[rows.start : rows.stop] for key, value in values.items()}
        stored.write(shard, part, bad=[each for each in bad if each.row in rows])


@settings(deadline=None, max_examples=25)
@given(data=st.data(), rows=st.integers(1, 20), rows_per_shard=st.integers(1, 9), dtype=st.sampled_from(["f", "b"]))
def test_rows_are_those_written(tmp_path_factory, data, rows, rows_per_shard, dtype):
    dtype = {"f": np.dtype(np.float32), "b": np.dtype(ml_dtypes.bfloat16)}[dtype]
    arrays = {
        "image_tokens": StoredArray(shape=(2, 3), dtype=dtype.name, variants=2),
        "text_pooled": StoredArray(shape=(4,), dtype=dtype.name),
    }
    folder = tmp_path_factory.mktemp("stored")
    stored = StoredOutputs(folder=folder, arrays=arrays, rows=rows, rows_per_shard=rows_per_shard)
    assert not any(map(stored.is_complete, range(stored.shards)))
    rng = np.random.default_rng(rows)
    values = {key: rng.normal(size=(rows, each.variants, *each.shape)).astype(dtype) for key, each in arrays.items()}
    write_all(stored, values)
    stored = pickle.loads(pickle.dumps(stored))
    assert all(map(stored.is_complete, range(stored.shards)))
    asked = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=12)), np.int64)
    mirrored = np.array(data.draw(st.lists(st.booleans(), min_size=len(asked), max_size=len(asked))), bool)
    taken = stored.take(asked, mirrored)
    assert taken["image_tokens"].dtype == dtype
    np.testing.assert_array_equal(taken["image_tokens"], values["image_tokens"][asked, mirrored.astype(int)])
    np.testing.assert_array_equal(taken["text_pooled"], values["text_pooled"][asked, 0])
    np.testing.assert_array_equal(stored.take(asked)["image_tokens"], values["image_tokens"][asked, 0])


@pytest.fixture
def stored(tmp_path):
    arrays = {"image_embedding": StoredArray(shape=(2,), dtype="float32", variants=2)}
    stored = StoredOutputs(folder=tmp_path, arrays=arrays, rows=93, rows_per_shard=10)
    number = np.arange(93, dtype=np.float32)
    values = np.stack([np.stack([number, number + 0], -1), np.stack([number, number + 1000], -1)], axis=1)
    write_all(stored, {"image_embedding": values}, bad=[BadRow(7, "item", "no picture")])
    return stored


@pytest.mark.parametrize("end", ["npy", "json"])
def test_a_shard_cut_short_is_not_complete(stored, tmp_path, end):
    path = tmp_path / ("00002.image_embedding.npy" if end == "npy" else "00002.json")
    path.unlink() if end == "json" else path.write_bytes(path.read_bytes()[:-4])
    assert [shard for shard in range(stored.shards) if not stored.is_complete(shard)] == [2]


def test_batches_have_them_in_the_place_of_pictures(stored, shop_dataset, tiny_model, monkeypatch):
    options = dict(
        split="train", preprocessing=tiny_model.preprocessing, batch_size=31, seed=3, epochs=2, max_bad_fraction=0.1
    )
    mirrored = Augmentation(flip=True)
    with make_loader(shop_dataset, augmentation=mirrored, **options) as batches:
        plain = list(batches)
    monkeypatch.delattr("input_pipeline.loader.examples.Recipe.picture")  # nothing may be decoded
    replaced = []
    with make_loader(shop_dataset, augmentation=mirrored, stored=stored, **options) as batches:
        assert batches.stored == ("image_embedding",)
        ours = []
        for batch in batches:
            ours.append(batch)
            replaced += batches.replaced
    assert [each["row"] for each in replaced] == [7, 7]
    for number, (batch, other) in enumerate(zip(ours, plain, strict=True)):
        assert set(batch) == {"image_embedding", "text", "group", "index"}
        same = other["index"] != 7
        np.testing.assert_array_equal(batch["index"][same], other["index"][same])
        np.testing.assert_array_equal(batch["text"][same], other["text"][same])
        flipped = mirrored.mirrored(batch["index"], seed=3, epoch=number // 3)
        assert 0 < flipped.sum() < 31
        row = batch["index"].astype(np.float32)
        np.testing.assert_array_equal(batch["image_embedding"], np.stack([row, row + 1000 * flipped], axis=1))
