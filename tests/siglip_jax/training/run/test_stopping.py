"""Signals, deadlines and locks: what a run does when it must stop, and when another one is there."""

import signal
import subprocess
import sys

import pytest

from siglip_jax.errors import Stopped, UserError
from siglip_jax.training.run import stopping
from siglip_jax.training.run.stopping import Stopping
from siglip_jax.training.run.workdir import LOCK, claim_workdir, hold_workdir

HOLD = """
import sys
from etils import epath
from siglip_jax.training.config import default_config
from siglip_jax.training.run.workdir import hold_workdir
with hold_workdir(epath.Path(sys.argv[1]), default_config(), "data"):
    print("held", flush=True)
    sys.stdin.read()
"""


def never() -> float:
    return 0.0


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_is_answered_after_the_step(number, name, code, capfd):
    before = signal.getsignal(number)
    with Stopping(deadline=None, margin=never, lag=3) as stop:
        assert stop.after(1) is None
        signal.raise_signal(number)
        reason = stop.after(2)
        assert (reason.name, reason.code) == (name, code)
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == f"{name}: finishing the step and saving\n"


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with Stopping(deadline=None, margin=never, lag=3):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_deadline_leaves_time_to_save(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock)
    with Stopping(deadline=160.0, margin=lambda: 20.0, lag=3) as stop:
        assert stop.after(1) is None
        clock = 139.0
        assert stop.after(2) is None
        clock = 140.0
        assert stop.after(3) is stopping.DEADLINE
    assert stopping.DEADLINE.code == 75


@pytest.fixture
def held(tmp_path):
    """A workdir that another process holds, and that process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield tmp_path / "run", process
    process.kill()
    process.communicate()


def test_a_workdir_in_use_is_refused_until_its_process_is_killed(held):
    from siglip_jax.training.config import default_config

    workdir, process = held
    with pytest.raises(UserError, match=rf"--workdir {workdir} is in use by another run \(process {process.pid} on "):
        claim_workdir(workdir, default_config(), "data")
    process.kill()
    process.wait()
    assert (workdir / LOCK).exists()
    with hold_workdir(workdir, default_config(), "data"):
        pass


def test_the_lock_ends_with_the_run(tiny_config, tmp_path):
    for _ in range(2):
        with pytest.raises(Stopped), hold_workdir(tmp_path, tiny_config, "data"):
            raise Stopped("enough", code=75)
