"""Embedding that is stopped, continued, damaged and shared out, against a store written in one go."""

import json
import signal

import numpy as np
import pytest

import siglip_jax
from eval.embeddings import read_store
from eval.embeddings.sharded_writer import EmbeddingPlan
from eval.embeddings.store import read_manifest
from eval.embeddings.store_shards import ShardRows
from siglip_jax import cli
from siglip_jax.errors import UserError
from tools.workflow.embedding import embed, load_encoder

NEVER = -1


@pytest.fixture(scope="module")
def flags(trained_workdir, shop_dataset):
    return [f"--model={trained_workdir}", f"--dataset={shop_dataset}", "--split=train", "--rows_per_shard=16"]


@pytest.fixture(scope="module")
def in_one_go(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("stores") / "whole"
    assert cli.main(["embed", *flags, f"--output={output}"]) == 0
    return output


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_continues_and_ends_with_the_same_bytes(flags, in_one_go, python, embed_script, tmp_path, capsys):
    output = tmp_path / "store"
    done = python(embed_script, 2, *flags, f"--output={output}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(UserError, match=r"no manifest.json: not a store, or one whose writing was cut off"):
        read_store(output)
    kept = {k: (output / f"shard-{k:05d}.parquet").stat().st_ino for k in range(3)}
    # One of the three is damaged; half of a fourth was written.
    (output / "shard-00001.parquet").write_bytes(b"PAR1")
    (output / "shard-00003.parquet.partial").write_bytes(b"PAR1")
    assert cli.main(["embed", *flags, f"--output={output}"]) == 0
    assert files_of(output) == files_of(in_one_go)
    after = {k: (output / f"shard-{k:05d}.parquet").stat().st_ino for k in range(3)}
    assert {k for k in kept if kept[k] == after[k]} >= {0, 2}
    assert len(read_manifest(output)["shards"]) > 4


def test_a_complete_store_is_left_as_it_is(flags, in_one_go, monkeypatch):
    monkeypatch.setattr(EmbeddingPlan, "write", lambda *_, **__: pytest.fail("embedded again"))
    before = files_of(in_one_go)
    assert cli.main(["embed", *flags, f"--output={in_one_go}"]) == 0
    assert files_of(in_one_go) == before


def test_a_complete_store_that_was_damaged_is_made_again(flags, in_one_go, trained_workdir, shop_dataset, tmp_path):
    output = tmp_path / "store"
    output.mkdir()
    for name, content in files_of(in_one_go).items():
        (output / name).write_bytes(content[:-1] if name == "shard-00002.parquet" else content)
    assert cli.main(["embed", *flags, f"--output={output}"]) == 0
    assert files_of(output) == files_of(in_one_go)


@pytest.mark.parametrize("stopped", [True, False], ids=["unfinished", "complete"])
def test_another_model_or_dataset_is_refused(
    flags, in_one_go, python, embed_script, tiny_model, shop_dataset, tmp_path, capsys, stopped
):
    output, other = tmp_path / "store", tmp_path / "other"
    if stopped:
        python(embed_script, 0, *flags, f"--output={output}")
    else:
        output.mkdir()
        for name, content in files_of(in_one_go).items():
            (output / name).write_bytes(content)
    before = files_of(output)
    tiny_model.save(other)  # of the same shapes
    state = "an unfinished" if stopped else "a"
    for change, said in (
        ([*flags, f"--model={other}"], "model.image_tower_sha256: '"),
        ([*flags, "--split=test"], "dataset.split: 'test' here, 'train' there"),
    ):
        capsys.readouterr()
        assert cli.main(["embed", *change, f"--output={output}"]) == 2
        error = capsys.readouterr().err
        assert f"holds {state} store of something else" in error
        assert said in error
        assert "--overwrite" in error
        assert files_of(output) == before
    assert cli.main(["embed", *flags, "--split=test", "--overwrite", f"--output={output}"]) == 0
    assert read_manifest(output)["dataset"]["split"] == "test"
    assert not list(output.glob("*.json.*")) + list(output.glob("plan.json"))


def test_the_path_of_the_model_and_the_text_tower_do_not_matter(trained_workdir, shop_dataset, in_one_go, tmp_path):
    """It is the image tower that is embedded with."""
    model = siglip_jax.load(trained_workdir)
    changed = model.replace(params={**model.params, "b": model.params["b"] + 1})
    changed.save(tmp_path / "moved")
    options = dict(dataset=shop_dataset, split="train", rows_per_shard=16)
    store = embed(load_encoder(str(tmp_path / "moved")), output=in_one_go, **options)
    assert store.manifest["model"]["name"] == str(trained_workdir)


@pytest.mark.parametrize("rows", [0, 300, -1])
def test_shards_that_batches_do_not_fill_are_refused(flags, shop_dataset, trained_workdir, tmp_path, rows):
    with pytest.raises(UserError, match=f"rows_per_shard={rows}; expected a multiple of 256"):
        embed(
            load_encoder(str(trained_workdir)),
            dataset=shop_dataset,
            split="test",
            output=tmp_path / "store",
            rows_per_shard=rows,
        )


@pytest.mark.slow
def test_two_processes_share_out_what_is_missing(
    flags, in_one_go, python, embed_script, embed_in_two, tmp_path, capsys
):
    """The store of one process, byte for byte; the shard that an earlier, killed process finished is kept."""
    output = tmp_path / "store"
    python(embed_script, 0, *flags, f"--output={output}")
    first = (output / "shard-00000.parquet").stat().st_ino
    embed_in_two(*flags, f"--output={output}")
    assert files_of(output) == files_of(in_one_go)
    assert (output / "shard-00000.parquet").stat().st_ino == first


def test_a_folder_that_processes_do_not_share_is_said(tmp_path):
    plan = EmbeddingPlan(folder=tmp_path / "store", manifest={"model": {}}, rows=10, rows_per_shard=4)
    assert plan.shards() == [range(4), range(4, 8), range(8, 10)]
    assert not plan.claim()
    for number in (0, 2):
        rows = plan.shards()[number]
        plan.write(number, ShardRows.of([str(row) for row in rows], np.ones((len(rows), 2)), dtype="float32"))
    assert [plan.is_finished(number) for number in range(3)] == [True, False, True]
    with pytest.raises(UserError, match="1 of 3 shards are missing, the first of them 1; all processes must write to"):
        plan.complete()
    plan.write(1, ShardRows.of([str(row) for row in plan.shards()[1]], np.full((4, 2), 2.0), dtype="float32"))
    assert plan.complete()["count"] == 10
    assert read_store(tmp_path / "store").ids == [str(row) for row in range(10)]
    assert sorted(path.name for path in (tmp_path / "store").iterdir())[0] == "manifest.json"
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["model"] == {}
