"""Bad pictures in a training run: figures, the list in the workdir, the same after a stop, and the budget."""

import json
import signal

import jax
import numpy as np
import pytest
from etils import epath

import siglip_jax
from input_pipeline.dataset import Split, open_split
from siglip_jax.errors import Stopped, UserError
from siglip_jax.training import loop
from siglip_jax.training.run import bad_images
from siglip_jax.training.run.bad_images import BadImages
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.run.training_progress import Progress
from tools.workflow.training import train_on_dataset

BAD = {2, 30, 55}


@pytest.fixture
def rotten(shop_dataset, monkeypatch):
    """The dataset, the pictures of the rows BAD of its training split being cut short since it was built."""
    plain = Split.__getitems__

    def cut_short(self, rows):
        rows = [int(row) for row in rows]
        records = plain(self, rows)
        if self.name != "train":
            return records
        return [
            {**record, "image": record["image"][:60]} if row in BAD else record
            for row, record in zip(rows, records, strict=True)
        ]

    monkeypatch.setattr(Split, "__getitems__", cut_short)
    return shop_dataset


def stop_after(monkeypatch, step):
    plain, taken = loop.Feed.take, []

    def take(feed, busy):
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(signal.SIGTERM)
        return plain(feed, busy)

    monkeypatch.setattr(loop.Feed, "take", take)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.slow
def test_a_run_counts_and_lists_them_whether_it_is_stopped_or_not(
    rotten, tiny_config, tmp_path, monkeypatch, capfd, cache
):
    tiny_config.steps, tiny_config.data.max_bad_fraction, tiny_config.data.cache = 12, 0.1, cache
    train_on_dataset(tiny_config, dataset=rotten, workdir=tmp_path / "whole")
    assert " bad pictures replaced" in capfd.readouterr().err
    counts = [line["bad_pictures"] for line in read_metrics(tmp_path / "whole")]
    listed = [json.loads(line) for line in (tmp_path / "whole" / "bad_pictures.jsonl").read_text().splitlines()]
    assert counts == sorted(counts)
    assert counts == [sum(each["step"] <= step for each in listed) for step in range(1, 13)]
    assert {each["row"] for each in listed} == BAD
    assert counts[-1] >= 2 * len(BAD)  # two epochs and more
    rows = open_split(rotten, "train")
    assert all(each["id"] == rows[each["row"]]["id"] for each in listed)
    assert not BAD & {each["stand_in"] for each in listed}

    # Batches taken ahead of the stop are neither lost nor counted twice.
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            train_on_dataset(tiny_config, dataset=rotten, workdir=tmp_path / "parts")
    saved = json.loads((tmp_path / "parts" / "checkpoints" / "7" / "iterator" / "metadata").read_text())
    assert (saved["epoch"], saved["batch"], saved["replaced"]) == (1, 7 - len(rows) // 16, counts[6])
    tiny_config.data.cache = not cache
    train_on_dataset(tiny_config, dataset=rotten, workdir=tmp_path / "parts")
    assert [line["bad_pictures"] for line in read_metrics(tmp_path / "parts")] == counts
    lists = [(tmp_path / name / "bad_pictures.jsonl").read_text() for name in ("whole", "parts")]
    assert lists[0] == lists[1]
    a, b = (siglip_jax.load(tmp_path / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_too_many_stop_the_run_with_their_ids(rotten, tiny_config, tmp_path):
    tiny_config.data.max_bad_fraction = 0.02  # of 93 rows: two an epoch
    with pytest.raises(UserError, match="5 rows could not be used in 2 epochs of 93, more than max_bad") as error:
        train_on_dataset(tiny_config, dataset=rotten, workdir=tmp_path / "run")
    rows = open_split(rotten, "train")
    assert all(f"row {row}, id {rows[row]['id']}: not a readable picture" in str(error.value) for row in BAD)
    listed = (tmp_path / "run" / "bad_pictures.jsonl").read_text().splitlines()
    assert len(listed) == 4  # of the steps before the batch that was one too many


def test_a_record_that_is_damaged_between_two_starts_is_no_other_run(shop_dataset, tiny_config, tmp_path, monkeypatch):
    """The tokenizer was trained on its title."""
    tiny_config.steps, tiny_config.optimizer.warmup_steps, tiny_config.data.max_bad_fraction = 12, 2, 0.1
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "run")
    plain = Split.__getitems__

    def damaged(self, rows):
        if self.name == "train" and BAD & {int(row) for row in rows}:
            raise UserError("a checksum is wrong")
        return plain(self, rows)

    monkeypatch.setattr(Split, "__getitems__", damaged)
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "run")
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_pictures.jsonl").read_text().splitlines()]
    assert {(each["row"], each["reason"]) for each in listed} == {
        (row, "damaged record (a checksum is wrong)") for row in BAD
    }


def test_a_whole_run_lists_nothing(trained_workdir):
    assert not (trained_workdir / "bad_pictures.jsonl").exists()
    assert {line["bad_pictures"] for line in read_metrics(trained_workdir)} == {0}


def test_the_list_is_bounded_and_forgets_what_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_images, "LISTED", 3)
    folder = epath.Path(tmp_path)
    with BadImages(folder, start=0, position={}, repeats=1) as bad:
        for step in range(1, 6):
            bad.add(step, [{"row": step}])
        assert (bad.here, bad.total(bad.here)) == (5, 5)
        assert bad.position({"replaced": 2, "batch": 1}) == {"replaced": 5, "batch": 1}
        assert bad.position({"theirs": 1}) == {"theirs": 1}
    with BadImages(folder, start=2, position={"replaced": 2}, repeats=1) as bad:
        assert bad.total(bad.here) == 2
        bad.add(3, [{"row": 30}, {"row": 31}])
        assert bad.total(bad.here) == 4
    lines = [json.loads(line) for line in (tmp_path / "bad_pictures.jsonl").read_text().splitlines()]
    assert [(line["step"], line["row"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


def test_of_several_processes_all_are_counted_once(tmp_path, monkeypatch):
    """Two of four are fed the same rows; each writes a list of its own."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    monkeypatch.setattr(bad_images.multihost_utils, "process_allgather", lambda here: np.array([5, 5, 1, here]))
    with BadImages(epath.Path(tmp_path), start=0, position={"replaced": 10}, repeats=2) as bad:
        bad.add(1, [{"row": 0}])
        assert bad.position({"replaced": 11})["replaced"] == 10 + 5 + 1
    assert (tmp_path / "bad_pictures.3.jsonl").exists()


def test_progress_tells_of_them(capfd):
    shown = Progress(3, start=0, images_per_step=8)
    shown.update(1, loss=1.0, waited=0.0)
    assert "bad_pictures" not in shown.rates()
    shown.bad_pictures = 4
    assert shown.rates()["bad_pictures"] == 4
    shown.update(3, loss=1.0, waited=0.0)
    assert "% waiting for data, 4 bad pictures replaced, " in capfd.readouterr().err
