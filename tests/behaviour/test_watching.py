"""What a run shows and writes of itself."""

import base64
import json
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

from input_pipeline.dataset import open_split
from input_pipeline.loader import Speed, make_loader
from siglip_jax.analysis import mfu
from siglip_jax.analysis.mfu import peak_flops
from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import Stopped, UserError
from siglip_jax.training import loop
from siglip_jax.training.run import training_progress
from siglip_jax.training.run.metric_writers import make_writers, read_metrics
from siglip_jax.training.run.training_progress import Progress
from tools.workflow.training import start_model, train_on_dataset

# --- writers ----------------------------------------------------------------------------------------------------------

READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
print(json.dumps({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""


def test_tensorboard_reads_what_was_written_and_forgets_what_is_repeated(python, tmp_path):
    """Its own reader, in a process of its own: it imports TensorFlow."""
    with make_writers(epath.Path(tmp_path), start=0) as writers:
        for step in (1, 2, 3, 4):
            writers.write(step, {"loss": step / 2, "temperature": 10.0})
    # Killed, and continued from the checkpoint at step 2.
    with make_writers(epath.Path(tmp_path), start=2) as writers:
        writers.write(3, {"loss": 7.0, "test/recall@1": 0.25})
    done = python(READ_EVENTS, tmp_path / "tensorboard")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "loss": [[1, 0.5], [2, 1.0], [3, 7.0]],
        "temperature": [[1, 10.0], [2, 10.0]],
        "test/recall@1": [[3, 0.25]],
    }
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_weights_and_biases_when_asked_for(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, metrics, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for start in (0, 5):
        with make_writers(epath.Path(tmp_path), start=start, wandb_project="shop", config={"seed": 1}) as writers:
            writers.write(start + 1, {"loss": 0.5})
    first, *_, last = (call for call in calls if "project" in call)
    assert first == last  # the same run is continued
    assert (first["project"], first["config"], first["resume"]) == ("shop", {"seed": 1}, "allow")
    assert [call for call in calls if call != first] == [(1, {"loss": 0.5}), "finished", (6, {"loss": 0.5}), "finished"]


def test_weights_and_biases_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config.wandb_project='shop': wandb is not installed; pip install"):
        make_writers(epath.Path(tmp_path), start=0, wandb_project="shop")


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(training_progress.time, "perf_counter", lambda: now.seconds)
    return now


def test_rates_leave_compilation_out(clock, capfd):
    shown = Progress(100, start=10, images_per_step=64)
    shown.seconds_at_peak = 0.2
    clock.seconds = 300.0  # compiles
    shown.update(11, loss=1.5, waited=20.0)
    for step in range(12, 32):
        clock.seconds += 0.5
        shown.update(step, loss=1.25, waited=20.0 + 0.1 * (step - 11))
    expected = {"images_per_second": 128.0, "step_seconds": 0.5, "wait_share": 0.2, "mfu": 0.4}
    assert shown.rates() == pytest.approx(expected)
    shown.seconds_at_peak = None
    assert "mfu" not in shown.rates()
    shown.seconds_at_peak = 0.2
    capfd.readouterr()
    clock.seconds += 0.5
    shown.update(100, loss=1.25, waited=22.1)
    assert capfd.readouterr().err == (
        "train: step 100/100, loss 1.250, 128 images/s, 0.5 s/step, MFU 40 %, 20 % waiting for data, 0.0 minutes left\n"
    )


def test_a_log_gets_a_line_every_few_seconds(clock, capfd):
    shown = Progress(1000, start=0, images_per_step=8)
    for step in range(1, 61):
        clock.seconds += 1.0
        shown.update(step, loss=1.0, waited=0.0)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"train: step {step}/1000" for step in (10, 20, 30, 40, 50, 60)]
    assert lines[-1].endswith("15.7 minutes left")
    quiet = Progress(1, start=0, images_per_step=8, show=False)
    quiet.update(1, loss=1.0, waited=0.0)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L400", None),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak


# --- a run ------------------------------------------------------------------------------------------------------------


def count_flops(architecture, batch: int) -> float:
    """Of a training step, from the sizes alone: 6 FLOPs a weight and row, attention, and the loss."""
    total = 0.0
    towers = (
        (architecture.image, architecture.grid[0] * architecture.grid[1], 3 * architecture.patch_size**2),
        (architecture.text, architecture.text_length, None),
    )
    for tower, tokens, patch in towers:
        width, mlp = tower.width, tower.mlp_dim
        block = 2 * tokens * (4 * width * width + 2 * width * mlp) + 4 * tokens * tokens * width
        total += 3 * batch * tower.depth * block
        if patch:  # the embedding has no gradient by its pixels; the pooling head has one query
            total += 2 * batch * 2 * tokens * patch * width
            head = 2 * (2 * width * width + 2 * tokens * width * width + 2 * width * mlp) + 4 * tokens * width
            total += 3 * batch * head
        else:
            total += 3 * batch * 2 * width * width
    return total + 6 * batch * batch * architecture.text.width


def test_mfu_counts_the_work_of_a_step_without_what_is_done_twice(tiny_config, shop_dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(mfu.PEAK_FLOPS, "cpu", 1e9)
    found = []

    def stop(*arguments):
        found.append(mfu.seconds_at_peak(*arguments))
        raise Stopped("before anything is compiled", code=0)

    monkeypatch.setattr(loop, "seconds_at_peak", stop)
    tiny_config.microbatch, tiny_config.model.remat = 4, "full"
    with pytest.raises(Stopped):
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "run")
    architecture = start_model(tiny_config, shop_dataset).architecture
    assert found == [pytest.approx(count_flops(architecture, 16) / 1e9, rel=0.01)]


def test_the_profile_of_chosen_steps(tiny_config, shop_dataset, tmp_path):
    tiny_config.steps, tiny_config.profile_steps = 4, (2, 3)
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "run")
    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"step_num" in content
    assert b"train" in content


def batches_of(model, dataset, config):
    return make_loader(
        dataset,
        split="train",
        preprocessing=model.preprocessing,
        batch_size=config.batch_size,
        seed=0,
        speed=Speed(cache=True),
    )


def test_evaluations_in_between_and_the_best_checkpoint(tiny_config, tiny_model, shop_dataset, tmp_path, capfd):
    config, workdir = tiny_config, tmp_path / "run"
    config.steps, config.checkpoint_every, config.evaluation.every = 9, 4, 3
    config.evaluation.best_metric = "recall"
    values = {0: 0.3, 3: 0.2, 4: 0.1, 6: 0.9, 8: 0.3, 9: 0.5}
    evaluators = [lambda step, params: {"recall": values[step]}, lambda step, params: {"other": step + 0.5}]
    loop.train(
        config,
        model=tiny_model,
        batches=batches_of(tiny_model, shop_dataset, config),
        workdir=workdir,
        evaluators=evaluators,
    )
    lines = [line for line in read_metrics(workdir) if "recall" in line]
    assert lines == [{"step": step, "recall": value, "other": step + 0.5} for step, value in values.items()]
    with Checkpoints(workdir / "checkpoints", best_metric="recall", read_only=True) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([6, 8, 9], 6)
        stored = checkpoints.metrics(6)
    assert (stored["recall"], stored["other"]) == (0.9, 6.5)
    assert stored["loss"] == next(line["loss"] for line in read_metrics(workdir) if line["step"] == 6)
    assert f"train: best recall 0.9 at step 6, {workdir / 'checkpoints' / '6'}\n" in capfd.readouterr().err
    run = json.loads((workdir / "checkpoints" / "6" / "run" / "metadata").read_text())
    assert run["config"]["evaluation"]["best_metric"] == "recall"
    assert run["preprocessing"] == tiny_model.preprocessing.to_json()
    assert base64.b64decode(run["tokenizer"]) == tiny_model.preprocessing.tokenizer


def test_a_batch_that_breaks_the_run_is_named(tiny_config, tiny_model, shop_dataset, tmp_path, monkeypatch):
    """By the ids of its items; the last good checkpoint stays the last."""
    plain, taken = loop.make_train_step, []

    def make_train_step(*args, **kwargs):
        step, shardings = plain(*args, **kwargs)

        def broken_once(state, batch):
            state, metrics = step(state, batch)
            if not isinstance(metrics["loss"], jax.core.Tracer):
                taken.append(1)
            return state, metrics | ({"loss": np.float32("nan")} if len(taken) == 7 else {})

        return broken_once, shardings

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    workdir = tmp_path / "run"
    with pytest.raises(
        UserError, match=r"step 7: the loss is nan; .*checkpoint here: 5; items of the batch: "
    ) as error:
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    broken = json.loads((workdir / "not_finite.json").read_text())
    batches = batches_of(tiny_model, shop_dataset, tiny_config)
    index = [next(batches)["index"] for _ in range(7)][-1]
    rows = open_split(shop_dataset, "train")
    assert broken == {"step": 7, "items": [rows[int(i)]["id"] for i in index]}
    assert f"{', '.join(broken['items'][:5])} and 11 more, see {workdir / 'not_finite.json'}" in str(error.value)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [5]
