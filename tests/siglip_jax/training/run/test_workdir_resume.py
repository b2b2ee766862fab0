"""What a run in an existing workdir is refused for: another config, data, preprocessing or model."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

import siglip_jax
from input_pipeline.loader import make_loader
from siglip_jax.errors import UserError
from siglip_jax.training import loop
from siglip_jax.training.run.metric_writers import MetricsFile, read_metrics
from siglip_jax.training.run.workdir import claim_workdir
from tools.workflow.training import train_on_dataset


def test_training_moved_the_parameters(trained_workdir, tiny_model):
    trained = siglip_jax.load(trained_workdir)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained.params, jax.device_get(tiny_model.params))
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.learning_rate": 0.5}, r"optimizer\.learning_rate: 0\.5 here, 0\.003 there"),
        ({"seed": 7}, "seed: 7 here, 0 there"),
        ({"model.image.mlp_dim": 64}, r"model\.image\.mlp_dim: 64 here, 32 there"),
    ],
    ids=str,
)
def test_another_config_is_refused(trained_workdir, tiny_config, shop_dataset, change, message):
    before = (trained_workdir / "config.json").read_bytes()
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=trained_workdir)
    assert (trained_workdir / "config.json").read_bytes() == before


def test_other_data_are_refused(trained_workdir, tiny_config):
    with pytest.raises(UserError, match="data: 'another' here"):
        claim_workdir(trained_workdir, tiny_config, "another")


def test_where_it_runs_and_what_it_logs_may_change(trained_workdir, tiny_config):
    fingerprint = json.loads((trained_workdir / "config.json").read_text())["data"]
    tiny_config.mesh.data, tiny_config.log_every, tiny_config.checkpoint_every = 8, 3, 2
    claim_workdir(trained_workdir, tiny_config, fingerprint)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation.while_training": ("retrieval",)},
        {"evaluation.metrics": ("MRR",)},
        {"evaluation.split": "validation"},
        {"evaluation.query_item": "query_id"},
        {"evaluation.relevance": ({"gain": 2, "agree": ("type",)},)},
        {"model.remat": "full", "model.unroll": 1},
    ],
    ids=str,
)
def test_what_does_not_change_a_step_may_change(trained_workdir, tiny_config, change):
    fingerprint = json.loads((trained_workdir / "config.json").read_text())["data"]
    tiny_config.update_from_flattened_dict(change)
    claim_workdir(trained_workdir, tiny_config, fingerprint)


@pytest.mark.parametrize("names", [("seed",), ("optimizer.b1",), ("teacher", "matryoshka", "ema_decay")], ids=str)
def test_a_field_that_a_newer_version_added_counts_as_its_default(trained_workdir, tiny_config, tmp_path, names):
    run = json.loads((trained_workdir / "config.json").read_text())
    for name in names:
        group, _, last = name.rpartition(".")
        (run["config"][group] if group else run["config"]).pop(last)
    (tmp_path / "config.json").write_text(json.dumps(run))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    claim_workdir(tmp_path, tiny_config, run["data"])
    name, value = {"seed": ("seed", 3), "optimizer.b1": ("optimizer.b1", 0.5)}.get(names[0], ("ema_decay", 0.5))
    tiny_config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=rf"{name}: {value} here"):
        claim_workdir(tmp_path, tiny_config, run["data"])


def test_a_foreign_folder_is_refused(tiny_config, shop_dataset, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    for text in ("{", "[]", '{"config": 1}', '{"config": 1, "data": ""}', '{"their": "settings"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="is not of a training run"):
            train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path)
        assert (tmp_path / "config.json").read_text() == text


def test_a_start_that_failed_does_not_claim_the_workdir(tiny_config, shop_dataset, tmp_path):
    """Nothing was computed yet, so the mended config may have the folder."""
    workdir = tmp_path / "run"
    tiny_config.batch_size = 100_000
    with pytest.raises(UserError, match="smaller batch"):
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    tiny_config.batch_size = 16
    claim_workdir(workdir, tiny_config, "data")
    written = json.loads((workdir / "config.json").read_text())
    assert (written["config"]["batch_size"], written["data"]) == (16, "data")
    assert written["config"]["mesh"]["data"] == -1
    (workdir / "checkpoints").mkdir()  # by a run that failed before its first step
    tiny_config.seed = 4
    claim_workdir(workdir, tiny_config, "data")
    tiny_config.seed = 0
    claim_workdir(workdir, tiny_config, "data")
    (workdir / "checkpoints" / "1").mkdir()
    tiny_config.seed = 5
    with pytest.raises(UserError, match="seed: 5 here, 0 there"):
        claim_workdir(workdir, tiny_config, "data")


def test_a_checkpoint_of_another_model_is_refused(trained_workdir, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained_workdir, folder)
    fields = json.loads((folder / "model.json").read_text())
    fields["architecture"]["text"]["mlp_dim"] = 48
    (folder / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"txt/Encoder_0/encoderblock/MlpBlock_0/Dense_0/bias \(1, 32\) instead of"):
        siglip_jax.load(folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        siglip_jax.load(folder)


def test_another_preprocessing_is_refused(trained_workdir, tiny_config, tiny_model, shop_dataset, tmp_path):
    """The config names a tokenizer file by its path; what the file holds may have changed since."""
    folder = tmp_path / "copy"
    shutil.copytree(trained_workdir, folder)
    tiny_model.preprocessing.replace(lowercase="none").save(folder)
    with pytest.raises(UserError, match=r"another preprocessing: .*'lowercase': 'none'.*'lowercase': 'unicode'"):
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=folder)


def test_batches_of_another_preprocessing_are_refused(tiny_config, tiny_model, shop_dataset, tmp_path):
    other = tiny_model.preprocessing.replace(resize="bicubic")
    batches = make_loader(shop_dataset, split="train", preprocessing=other, batch_size=16, seed=0)
    with pytest.raises(UserError, match=r"'resize': 'bicubic'.*the model's is .*'resize': 'bilinear'.*cannot mix two"):
        loop.train(tiny_config, model=tiny_model, batches=batches, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (16, 24)}, r"image_size \(16, 24\), the model's is \(16, 16\)"),
        ({"text_length": 9}, "text_length 9, the model's is 8"),
        ({"pad_id": 5000}, "5001 token ids, the model has"),
    ],
)
def test_a_preprocessing_of_another_model_is_refused(tiny_config, tiny_model, tmp_path, change, message):
    model = tiny_model.replace(preprocessing=tiny_model.preprocessing.replace(**change))
    with pytest.raises(UserError, match=message):
        loop.train(tiny_config, model=model, batches=iter([]), workdir=tmp_path / "run")


def test_damaged_metric_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n[]\n\xff\xfe\n{"step": 9}\n{"ste')
    with MetricsFile(path) as file:
        file.drop_after(5)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.slow
def test_a_run_goes_on_without_its_start_and_with_other_evaluations(
    trained_workdir, tiny_config, shop_dataset, tmp_path
):
    """Stopped half-way, its start moved away, its evaluation changed: bit for bit the unbroken run."""
    start, unbroken, broken = (tmp_path / name for name in ("start", "unbroken", "broken"))
    siglip_jax.load(trained_workdir).save(start)
    with tiny_config.unlocked():
        tiny_config.init, tiny_config.steps, tiny_config.checkpoint_every = str(start), 4, 2
        tiny_config.optimizer.warmup_steps = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = train_on_dataset(tiny_config, dataset=shop_dataset, workdir=unbroken)
    shutil.copytree(unbroken, broken)
    shutil.rmtree(broken / "checkpoints" / "4")
    start.rename(tmp_path / "away")
    assert tiny_config.evaluation.while_training == ()
    tiny_config.evaluation.while_training, tiny_config.evaluation.every = ("retrieval",), 1
    tiny_config.evaluation.best_metric = "image_to_text/recall@1"
    found = train_on_dataset(tiny_config, dataset=shop_dataset, workdir=broken)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert [line["step"] for line in read_metrics(broken) if "image_to_text/recall@1" in line] == [3, 4]
