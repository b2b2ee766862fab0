"""SIGTERM at any moment ends the block, also where Python drops exceptions."""

import gc
import os
import signal
import sys
import time
import weakref

import pytest

from siglip_jax.errors import Stopped
from tools.workflow.termination import terminable


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def in_a_collector_callback():
    def callback(phase, info):
        if phase == "start":
            terminate()
            busy(0.05)  # the handler runs in here

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


def in_a_finaliser():
    class Last:
        def __del__(self):
            terminate()
            busy(0.05)

    Last()


def in_a_callback_of_a_weak_reference():
    class Last:
        pass

    def callback(reference):
        terminate()
        busy(0.05)

    last = Last()
    reference = weakref.ref(last, callback)
    del last
    assert reference() is None


@pytest.mark.parametrize(
    "sent", [terminate, in_a_collector_callback, in_a_finaliser, in_a_callback_of_a_weak_reference]
)
def test_the_block_ends(sent):
    before, reached = (signal.getsignal(signal.SIGTERM), sys.unraisablehook), []

    @terminable()
    def work():
        try:
            sent()
            busy(10)
            reached.append("the end")
        finally:
            reached.append("what must be done")

    with pytest.raises(Stopped) as stopped:
        work()
    assert reached == ["what must be done"]
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


def test_other_dropped_exceptions_are_told_as_ever(monkeypatch):
    problems = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)

    class Broken:
        def __del__(self):
            raise ValueError("not about signals")

    with terminable():
        Broken()
    assert [str(problem.exc_value) for problem in problems] == ["not about signals"]


def test_an_error_is_not_a_signal():
    @terminable()
    def work():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
