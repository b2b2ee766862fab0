"""One tiny catalogue, dataset, model and training run, each made once and read by many tests."""

import fcntl
import importlib.util
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

# Tolerances are those of float32 on a CPU; JAX_PLATFORMS=cuda in the environment still wins, for `-m gpu`.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models spend their time in the compiler; level 0 halves it. Bit-equality needs it in other processes as well.
FAST_COMPILE = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}"
# Many tests, and the processes they start, compile the same step.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="siglip-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

TINY_CONFIG = '''"""A run of seconds."""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    config.data.cache = True
    config.preprocessing.image_size = (16, 16)
    config.preprocessing.text_length = 8
    config.preprocessing.vocab_size = 400
    config.model.patch_size = 8
    config.model.image = dict(width=16, depth=2, mlp_dim=32, heads=2)
    config.model.text = dict(width=16, depth=1, mlp_dim=32, heads=2)
    config.model.init_bias = -2.5
    config.batch_size = 16
    config.steps = 20
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 2
    config.log_every = 1
    config.checkpoint_every = 5
    config.evaluation.relevance = ({"gain": 2, "agree": ("type", "colour")}, {"gain": 1, "agree": ("type",)})
    config.evaluation.metrics = ("nDCG@5", "precision@1")
    config.evaluation.while_training = ()
    return config.lock()
'''


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """What the reference implementations computed."""
    return pathlib.Path(__file__).parent / "golden"


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], Any]) -> pathlib.Path:
    """What `make` writes to a folder, once for all workers of pytest-xdist; nobody writes to it later."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (whole := shared / f"{name}.whole").exists():
            make(shared / name)
            whole.touch()
    return shared / name


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> pathlib.Path:
    """A catalogue of 120 synthetic items, five of them faulty."""
    from input_pipeline.synthetic.synthetic_catalogue import write_synthetic_catalogue

    return _made_once(tmp_path_factory, "shop", lambda folder: write_synthetic_catalogue(folder, items=120, size=24))


@pytest.fixture(scope="session")
def shop_dataset(shop, tmp_path_factory) -> pathlib.Path:
    """The catalogue as a dataset with splits train and test."""
    from input_pipeline.building import build_dataset
    from input_pipeline.catalogue import read_catalogue

    def build(folder: pathlib.Path) -> None:
        build_dataset(read_catalogue(shop), folder, max_left_out=1, progress=False)

    return _made_once(tmp_path_factory, "dataset", build)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY_CONFIG)
    return path


@pytest.fixture
def tiny_config(config_file):
    """A fresh, locked config of the tiny run; tests change its fields."""
    return runpy.run_path(str(config_file))["get_config"]()


@pytest.fixture(scope="session")
def tiny_model(config_file, shop_dataset):
    """The model that the tiny run starts from: random weights, a tokenizer of the training titles."""
    from tools.workflow.training import start_model

    return start_model(runpy.run_path(str(config_file))["get_config"](), shop_dataset)


@pytest.fixture(scope="session")
def trained_workdir(config_file, shop_dataset, tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished, unbroken tiny run on one device. Not to be written to."""
    from tools.workflow.training import train_on_dataset

    def train(workdir: pathlib.Path) -> None:
        train_on_dataset(runpy.run_path(str(config_file))["get_config"](), dataset=shop_dataset, workdir=workdir)

    return _made_once(tmp_path_factory, "unbroken", train)


@pytest.fixture(scope="session")
def python():
    """python(code, *arguments, devices=1, cwd=None, environment={}, timeout=300) -> the finished process of a fresh
    interpreter.
    """

    def run(
        code: str, *arguments, devices: int = 1, cwd=None, environment: dict[str, str] | None = None, timeout=300.0
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**_environment(devices), **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def start_python():
    """As `python`, but returns the running process."""

    def start(code: str, *arguments) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=_environment(1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def tpu_compiler() -> dict[str, str]:
    """The environment of a process that compiles for TPU: finds libtpu, asks no TPU, and shows the compiler's warnings,
    which libtpu keeps to files of its own otherwise.

    `make test` and `make test-tpu` install libtpu in a folder that SIGLIP_JAX_LIBTPU names.
    """
    folder = os.environ.get("SIGLIP_JAX_LIBTPU", "")
    if not (pathlib.Path(folder or os.devnull) / "libtpu").is_dir() and importlib.util.find_spec("libtpu") is None:
        pytest.skip("no libtpu: `make test` and `make test-tpu` install it on Linux x86-64, SIGLIP_JAX_LIBTPU names it")
    paths = [folder and str(pathlib.Path(folder).resolve()), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TPU_STDERR_LOG_LEVEL": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-256",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


@pytest.fixture(scope="session")
def free_port():
    """free_port() -> a port of this machine that nothing listens at."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            return free.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def process_environment():
    """process_environment(devices) -> the environment of a process that sees so many CPU devices."""
    return _environment


def _environment(devices: int) -> dict[str, str]:
    """Of a process that sees `devices` CPU devices."""
    flags = f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


EMBED = """
import os, signal, sys
from eval.embeddings import sharded_writer as embedding_plan
from siglip_jax.cli import main

last, write = int(sys.argv[1]), embedding_plan.EmbeddingPlan.write

def killed_after(self, number, *arguments, **options):
    write(self, number, *arguments, **options)
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)

embedding_plan.EmbeddingPlan.write = killed_after
sys.exit(main(["embed", *sys.argv[2:]]))
"""


@pytest.fixture(scope="session")
def embed_script() -> str:
    """A program: `siglip-jax embed` with its flags, killed once it has written the shard of the first argument."""
    return EMBED


@pytest.fixture
def embed_in_two(embed_script, free_port, process_environment):
    """A function of flags: `siglip-jax embed` in two processes, none of them killed."""

    def run(*flags: str) -> None:
        group = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", embed_script, str(sys.maxsize), *flags, *group, f"--process_id={index}"],
                env=process_environment(1),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]
        try:
            outputs = [process.communicate(timeout=400)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)

    return run
