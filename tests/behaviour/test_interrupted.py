"""A run that is killed or stopped and started again computes what an unbroken one would have, bit for bit."""

import os
import re
import shutil
import signal
import socket

import flax.traverse_util
import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax.cli import main
from siglip_jax.errors import Stopped
from siglip_jax.training import loop
from siglip_jax.training.run.metric_writers import read_metrics
from tools.workflow.training import train_on_dataset

# Trains, and signals itself at a moment: "step N" after dispatching that many steps, "save N" when the N-th temporary
# folder of a checkpoint appears, "delete N" when the N-th deletion of an old one begins; so many milliseconds later.
INTERRUPTED_TRAIN = """
import os, pathlib, shutil, sys, threading, time
workdir, moment = sys.argv[1:3]
number, count, milliseconds = map(int, sys.argv[3:6])
from siglip_jax.training import loop
from siglip_jax.cli import main
from etils import epath
seen = {"step": 0, "save": 0, "delete": 0}

def interrupt():
    time.sleep(milliseconds / 1000)
    os.kill(os.getpid(), number)

def happened(what):
    if what == moment and seen[what] == count:
        if milliseconds:
            threading.Thread(target=interrupt, daemon=True).start()
        else:
            interrupt()

def watch():
    folder, known = pathlib.Path(workdir) / "checkpoints", set()
    while True:
        names = {name for name in (os.listdir(folder) if folder.exists() else ()) if "-tmp" in name}
        for _ in names - known:
            seen["save"] += 1
            happened("save")
        known |= names
        time.sleep(0.0005)

def take(feed, busy, plain=loop.Feed.take):
    seen["step"] += 1
    happened("step")
    return plain(feed, busy)

def rmtree(path, *args, plain=shutil.rmtree, **kwargs):
    seen["delete"] += 1
    happened("delete")
    return plain(path, *args, **kwargs)

loop.Feed.take = take
shutil.rmtree = rmtree
if moment == "save":
    threading.Thread(target=watch, daemon=True).start()
sys.exit(main(["train", f"--workdir={workdir}", *sys.argv[6:]]))
"""


def deterministic(workdir):
    """The logged lines without what depends on the clock."""
    clock = ("images_per_second", "step_seconds", "wait_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(workdir)]


def assert_same_parameters(a, b):
    a, b = siglip_jax.load(a), siglip_jax.load(b)
    assert a.preprocessing == b.preprocessing
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def moments(seed: int, kills: int):
    """(what happens, signal, how often, milliseconds after): saves, steps, deletions of an older checkpoint."""
    rng = np.random.default_rng(seed)
    for kill in range(kills):
        moment = ("save", "step", "save", "delete")[kill % 4]
        count = int(rng.integers(1, 9)) if moment == "step" else 1
        yield moment, int(signal.SIGKILL), count, int(rng.integers(0, 30))


@pytest.fixture
def flags(config_file, shop_dataset):
    return [f"--config={config_file}", f"--dataset={shop_dataset}"]


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kills_change_nothing(python, flags, trained_workdir, tiny_config, shop_dataset, tmp_path, kills):
    workdir = tmp_path / "run"
    for moment in moments(seed=0, kills=kills):
        done = python(INTERRUPTED_TRAIN, workdir, *moment, *flags)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
    assert not (workdir / "checkpoints" / "20").exists()
    assert len(read_metrics(workdir)) < 20
    with (workdir / "metrics.jsonl").open("a") as file:  # what a kill in the middle of a write leaves
        file.write('{"step": 19, "loss": 1.0}\n{"step": 20, "lo')
    trained = train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    assert deterministic(workdir) == deterministic(trained_workdir)
    assert_same_parameters(workdir, trained_workdir)
    jax.tree.map(np.testing.assert_array_equal, trained.params, siglip_jax.load(workdir).params)
    assert not [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]
    # Done is done: once more changes nothing.
    again = train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)
    assert deterministic(workdir) == deterministic(trained_workdir)


@pytest.mark.slow
def test_twenty_kills_change_nothing(python, flags, tmp_path):
    flags = [*flags, "--config.steps=120", "--config.checkpoint_every=3"]
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    assert main(["train", f"--workdir={unbroken}", *flags]) == 0
    in_a_save = 0
    for moment in moments(seed=1, kills=20):
        done = python(INTERRUPTED_TRAIN, workdir, *moment, *flags)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
        in_a_save += any("-tmp" in name for name in os.listdir(workdir / "checkpoints"))
    assert in_a_save  # some of them did hit a save
    assert main(["train", f"--workdir={workdir}", *flags]) == 0
    assert deterministic(workdir) == deterministic(unbroken)
    assert_same_parameters(workdir, unbroken)


# --- stops that are announced -----------------------------------------------------------------------------------------


def signal_at(monkeypatch, number: int, step: int):
    """Sends this process a signal when it has taken so many batches."""
    plain, taken = loop.Feed.take, []

    def take(feed, busy):
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(number)
        return plain(feed, busy)

    monkeypatch.setattr(loop.Feed, "take", take)


def test_a_stopped_run_loses_no_step(flags, trained_workdir, tiny_config, shop_dataset, tmp_path, monkeypatch, capfd):
    """SIGTERM, Ctrl-C and the deadline, each with its exit code."""
    workdir = tmp_path / "run"
    arguments = ["train", f"--workdir={workdir}", *flags]
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 7)
        assert main(arguments) == 143
    assert (workdir / "checkpoints" / "7").exists()
    error = capfd.readouterr().err
    assert "SIGTERM: saved at step 7 of 20; start again with the same --workdir\n" in error
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGINT, 3)
        assert main(arguments) == 130
    assert "Ctrl-C: saved at step 10 of 20" in capfd.readouterr().err
    assert main([*arguments, "--config.deadline_minutes=1e-9"]) == 75
    assert "the deadline: saved at step 11 of 20" in capfd.readouterr().err
    assert [line["step"] for line in read_metrics(workdir)] == list(range(1, 12))
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    assert deterministic(workdir) == deterministic(trained_workdir)
    assert_same_parameters(workdir, trained_workdir)


def test_a_signal_in_the_last_step_finds_the_run_done(
    trained_workdir, tiny_config, shop_dataset, tmp_path, monkeypatch
):
    signal_at(monkeypatch, signal.SIGTERM, 20)
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "run")
    assert_same_parameters(tmp_path / "run", trained_workdir)


TWO_PROCESSES = """
import os, signal, sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from siglip_jax.training import loop
from siglip_jax.cli import main
taken, plain = [], loop.Feed.take

def take(feed, busy):
    taken.append(1)
    if len(taken) == 4 and jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(feed, busy)

loop.Feed.take = take
sys.exit(main(["train", *sys.argv[3:]]))
"""


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(
    start_python, flags, trained_workdir, tiny_config, shop_dataset, tmp_path
):
    """The signal reaches one of them."""
    workdir = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start_python(TWO_PROCESSES, port, number, f"--workdir={workdir}", *flags) for number in (0, 1)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    stops = [re.search(r"SIGTERM: saved at step (\d+) of 20", error)[1] for error in errors]
    assert stops[0] == stops[1]
    assert 4 < int(stops[0]) < 20
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    ours, theirs = ([line["loss"] for line in read_metrics(folder)] for folder in (workdir, trained_workdir))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


# --- elsewhere, and damaged -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_moves_to_eight_devices_and_back(
    python, flags, trained_workdir, tiny_config, shop_dataset, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 7)
        with pytest.raises(Stopped, match="saved at step 7 "):
            train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    moment = ("step", int(signal.SIGTERM), 6, 0)
    done = python(INTERRUPTED_TRAIN, workdir, *moment, *flags, *mesh, devices=8)
    assert done.returncode == 143, done.stderr
    assert "saved at step 13 " in done.stderr
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    ours, theirs = ([line["loss"] for line in read_metrics(folder)] for folder in (workdir, trained_workdir))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    ours, theirs = (
        flax.traverse_util.flatten_dict(siglip_jax.load(folder).params, sep="/")
        for folder in (workdir, trained_workdir)
    )
    for name in ours.keys() - {name for name in ours if name.endswith("key/bias")}:
        # Attention does not see the bias of its keys: their gradient is rounding, which Adam blows up.
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


def test_a_damaged_last_checkpoint_costs_its_steps_only(trained_workdir, tiny_config, shop_dataset, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(trained_workdir, workdir)
    for file in (workdir / "checkpoints" / "20" / "state" / "ocdbt.process_0").rglob("*"):
        if file.is_file():
            os.truncate(file, 1)  # half of it could be enough: the order of the arrays in a file is by chance
    loaded = siglip_jax.load(workdir)  # the one before, and says so
    assert "checkpoints/20 is damaged" in capfd.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, loaded.params, siglip_jax.load(workdir / "checkpoints" / "15").params)
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    assert "20 is damaged" in capfd.readouterr().err
    assert deterministic(workdir) == deterministic(trained_workdir)
    assert_same_parameters(workdir, trained_workdir)
