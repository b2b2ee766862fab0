"""Several processes of one run: when they are started, who feeds what, and that they learn and measure as one."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.training.parallel.distributed import _on_tpu_machine, detect, initialize
from siglip_jax.training.parallel.sharding import AXES, data_share
from siglip_jax.training.param_rules import path_name
from siglip_jax.training.run.metric_writers import read_metrics
from tools.workflow.training import train_on_dataset

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
EXPLICIT = {
    "SIGLIP_JAX_COORDINATOR": "localhost:1234",
    "SIGLIP_JAX_NUM_PROCESSES": "4",
    "SIGLIP_JAX_PROCESS_ID": "3",
}


# --- when -------------------------------------------------------------------------------------------------------------


def test_nothing_is_started_on_a_laptop(python):
    assert detect({}) is None
    code = (
        "import sys; from siglip_jax.training.parallel.distributed import initialize; found = initialize();"
        "print(found, 'jax' in sys.modules)"
    )
    assert python(code).stdout.split() == ["None", "False"]


def test_slurm_needs_srun_and_more_than_one_task():
    assert detect(SRUN) == ("SLURM", {"cluster_detection_method": "slurm"})
    assert detect(SRUN | {"SLURM_NTASKS": "1"}) is None
    assert detect({name: value for name, value in SRUN.items() if name != "SLURM_STEP_NODELIST"}) is None


def test_an_explicit_coordinator_goes_first_and_flags_before_the_environment():
    reason, arguments = detect(SRUN | EXPLICIT, tpu=True)
    assert reason == "coordinator"
    assert arguments["coordinator_address"] == "localhost:1234"
    assert (arguments["num_processes"], arguments["process_id"]) == (4, 3)
    _, arguments = detect(EXPLICIT, given={"coordinator": None, "num_processes": None, "process_id": 0})
    assert (arguments["num_processes"], arguments["process_id"]) == (4, 0)
    assert detect({}, tpu=True) == ("TPU", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "localhost:1"}, r"num_processes=None.*expected --coordinator=host:port, --num_processes and"),
        ({"process_id": 0}, "coordinator=None, num_processes=None, process_id=0; expected"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "coordinator=localhost,.*host:port"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "process_id counts from 0"),
    ],
    ids=str,
)
def test_half_a_coordinator_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        initialize(**given)


def test_a_tpu_machine_is_one_with_chips_libtpu_and_more_than_one_worker(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name) or object())
    assert not _on_tpu_machine({}, devices=tmp_path)
    (tmp_path / "accel0").touch()
    assert _on_tpu_machine({}, devices=tmp_path)
    assert _on_tpu_machine({"TPU_WORKER_HOSTNAMES": "a,b"}, devices=tmp_path)
    for environ in (
        {"JAX_PLATFORMS": "cpu"},
        {"TPU_SKIP_MDS_QUERY": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ):
        assert not _on_tpu_machine(environ, devices=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not _on_tpu_machine({}, devices=tmp_path)
    assert set(found) == {"libtpu"}


# --- who feeds what ---------------------------------------------------------------------------------------------------


def mesh_of(*shape, processes):
    """A mesh of fake devices that belong to `processes` equal processes."""
    count = int(np.prod(shape))
    devices = [types.SimpleNamespace(id=k, process_index=k * processes // count) for k in range(count)]
    return types.SimpleNamespace(devices=np.array(devices).reshape(shape), shape=dict(zip(AXES, shape, strict=True)))


@pytest.mark.parametrize(
    ("shape", "processes", "shares"),
    [
        ((8, 1, 1), 1, [0]),
        ((8, 1, 1), 4, [0, 1, 2, 3]),
        ((2, 2, 2), 2, [0, 1]),
        ((1, 8, 1), 2, [0, 1]),
        ((1, 2, 4), 4, [0, 0, 1, 1]),  # the tensor axis spans two processes: both feed the same rows
        ((1, 1, 8), 2, [0, 0]),
    ],
)
def test_shares_of_the_batch(monkeypatch, shape, processes, shares):
    mesh, found = mesh_of(*shape, processes=processes), []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(data_share.__wrapped__(mesh))
    assert found == [(share, len(set(shares))) for share in shares]


def test_rows_that_overlap_in_part_are_refused():
    mesh = mesh_of(3, 1, 2, processes=2)
    with pytest.raises(UserError, match=r"over 2 processes gives them rows that overlap in part"):
        data_share.__wrapped__(mesh)


def test_one_process_feeds_all():
    assert data_share(Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)) == (0, 1)


# --- learning as one --------------------------------------------------------------------------------------------------

TRAIN = "import sys; from siglip_jax.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"


def named_leaves(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def train_in_processes(count, environment_of, port, *flags):
    """Runs `train` in `count` processes of 8 / count devices each; asserts that all end well."""
    processes = []
    for index in range(count):
        group = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", TRAIN, *flags, *group],
                env=environment_of(8 // count),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    assert not any("rematerialization" in output for output in outputs)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_learn_as_one(
    count, trained_workdir, config_file, tiny_config, shop_dataset, process_environment, free_port, tmp_path
):
    """And one process reads the checkpoint of several."""
    workdir = tmp_path / "run"
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={workdir}", *mesh]
    if count == 2:  # the quick one
        tiny_config.steps = tiny_config.checkpoint_every = 6
        flags += ["--config.steps=6", "--config.checkpoint_every=6"]
        trained_workdir = tmp_path / "one"
        train_on_dataset(tiny_config, dataset=shop_dataset, workdir=trained_workdir)
    train_in_processes(count, process_environment, free_port(), *flags)
    losses, expected = ([line["loss"] for line in read_metrics(w)] for w in (workdir, trained_workdir))
    assert len(losses) == tiny_config.steps
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    restored = train_on_dataset(tiny_config, dataset=shop_dataset, workdir=workdir)
    ours, theirs = named_leaves(restored.params), named_leaves(siglip_jax.load(trained_workdir).params)
    for name in ours.keys() | theirs.keys():
        if not name.endswith("key/bias"):  # no gradient but rounding, and Adam makes steps of that
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")  # a tiny random model
@pytest.mark.slow
def test_processes_fit_t_and_b_and_measure_as_one(
    trained_workdir, config_file, tiny_config, shop_dataset, process_environment, free_port, tmp_path
):
    """From a loaded start: the fit, the evaluation before the first step and those while training."""
    changes = {
        "init": str(trained_workdir),
        "refit_temperature": "both",
        "steps": 4,
        "checkpoint_every": 2,
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,
        "evaluation.while_training": ("retrieval", "ranking"),
    }
    tiny_config.update_from_flattened_dict(changes)
    train_on_dataset(tiny_config, dataset=shop_dataset, workdir=tmp_path / "one")
    flags = [f"--config={config_file}", f"--dataset={shop_dataset}", f"--workdir={tmp_path / 'two'}"]
    flags += [f"--config.{name}={value}" for name, value in changes.items()]
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    train_in_processes(2, process_environment, free_port(), *flags, *mesh)

    fitted, expected = (json.loads((tmp_path / run / "start.json").read_text()) for run in ("two", "one"))
    assert fitted["rows"] == expected["rows"] == 8 * 16
    assert expected["after"]["t"] != expected["before"]["t"]
    for record in ("before", "after"):
        for name, value in expected[record].items():
            np.testing.assert_allclose(fitted[record][name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(fitted["constant_loss"], expected["constant_loss"], rtol=1e-4)
    # The rows of a batch are the same, their order goes by process, and so does which title a picture is shuffled to.
    np.testing.assert_allclose(fitted["shuffled_loss"], expected["shuffled_loss"], rtol=0.05)

    measured, alone = (
        {line["step"]: line for line in read_metrics(tmp_path / run) if "ranking/nDCG_exp@5" in line}
        for run in ("two", "one")
    )
    assert measured.keys() == alone.keys() == {0, 2, 4}
    for step, line in alone.items():
        assert measured[step].keys() == line.keys() > {"image_to_text/recall@1", "text_to_image/MRR"}
        for name, value in line.items():
            np.testing.assert_allclose(measured[step][name], value, atol=1e-6, err_msg=f"{step} {name}")
