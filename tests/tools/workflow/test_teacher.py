"""A teacher's file, joined to a training run."""

import numpy as np
import pytest

from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError
from siglip_jax.training.run.metric_writers import read_metrics
from tools.workflow.teacher import open_teacher, teacher_of_split
from tools.workflow.training import dry_run, train_on_dataset

MISSING = 3  # items of the split that the file has not


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ids(shop_dataset):
    rows = open_split(shop_dataset, "train")
    return [record["id"] for record in rows.__getitems__(range(len(rows)))]


def write_teacher(path, ids, *, seed=0, dimension=24):
    """An .npz of all but the last items, in another order, and of items of nobody; returns {id: vector}."""
    known = [*ids[:-MISSING], "stranger 1", "stranger 2"]
    rng = np.random.default_rng(seed)
    known = [known[k] for k in rng.permutation(len(known))]
    vectors = (rng.normal(size=(len(known), dimension)) + 0.5).astype(np.float32)
    np.savez(path, ids=np.array(known), embeddings=vectors)
    return dict(zip(known, vectors, strict=True))


def test_each_item_has_its_own_reduced_vector(shop_dataset, tiny_config, ids, tmp_path, capsys):
    vectors = write_teacher(tmp_path / "teacher.npz", ids)
    tiny_config.teacher.store, tiny_config.teacher.cosine = str(tmp_path / "teacher.npz"), 1.0
    rows, count = np.arange(len(ids)), len(ids) - MISSING
    found = teacher_of_split(open_teacher(tiny_config), dataset=shop_dataset, split="train", rows=rows, width=16)
    said = capsys.readouterr().out
    assert f"{count} of {len(ids)} items of split train; none for {', '.join(ids[-MISSING:])}; 2 of other items" in said
    assert f"{count} vectors of 24 numbers, 16 of them kept (" in said
    assert found.rows[-MISSING:].tolist() == [-1] * MISSING
    own = unit(np.array([vectors[item] for item in ids[:count]], np.float64))
    best = unit(own @ np.linalg.svd(own)[2][:16].T)
    taken = found.take(np.arange(count))
    np.testing.assert_allclose(taken @ taken.T, best @ best.T, atol=1e-5)


def test_a_run_is_taught_and_goes_on_with_this_teacher_alone(shop_dataset, tiny_config, ids, tmp_path):
    config, path = tiny_config, tmp_path / "teacher.npz"
    config.steps, config.checkpoint_every, config.optimizer.warmup_steps = 2, 1, 1
    config.teacher.store, config.teacher.cosine = str(path), 5.0
    write_teacher(path, ids)
    train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["total"] == pytest.approx(line["loss"] + 5 * line["teacher_cosine"], rel=1e-5)
    path = path.rename(tmp_path / "moved.npz")
    config.teacher.store = str(path)
    train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")  # the same, elsewhere
    write_teacher(path, ids, seed=1)
    with pytest.raises(UserError, match=r"another config \(stores\.teacher: '\w+' here, '\w+' there\)"):
        train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")
    config.teacher.cosine = 0.0
    with pytest.raises(UserError, match=r"teacher\.cosine: 0\.0 here, 5\.0 there; stores\.teacher: None here"):
        train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")


def test_teachers_that_cannot_teach_are_refused(shop_dataset, tiny_config, tmp_path):
    config = tiny_config
    assert open_teacher(config) is None
    config.teacher.similarity = 2.0
    for call in (
        lambda: open_teacher(config),
        lambda: dry_run(config, dataset=shop_dataset),
    ):
        with pytest.raises(UserError, match=r"config.teacher.similarity=2.0 and no config.teacher.store; name"):
            call()
    write_teacher(tmp_path / "teacher.npz", [f"other {k}" for k in range(9)])
    config.teacher.store = str(tmp_path / "teacher.npz")
    with pytest.raises(UserError, match=r"teacher: none of the \d+ items of split train is in .*teacher.npz"):
        teacher_of_split(open_teacher(config), dataset=shop_dataset, split="train", rows=np.arange(3), width=16)
