"""Batches ahead of the step: in order, no more than asked for, positions of what was consumed, honest waiting."""

import threading
import time

import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.training.run import prefetch as feeds
from siglip_jax.training.run.prefetch import AHEAD, Feed


class Counting:
    """Batch k is k; each may wait for a signal."""

    def __init__(self, *, fails_at=None, gate=None):
        self.position, self.replaced, self._fails_at, self._gate = 0, [], fails_at, gate

    def __next__(self):
        if self._gate is not None:
            assert self._gate.acquire(timeout=30)
        if self.position == self._fails_at:
            raise ValueError("the disk is gone")
        self.position += 1
        self.replaced = [{"row": self.position}] if self.position % 2 else []
        return {"x": np.full(3, self.position), "index": np.array([self.position])}

    def get_state(self):
        return {"position": self.position}


def place(batch):
    return {"x": batch["x"] * 2}


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_positions_are_of_what_was_taken_not_of_what_is_ahead():
    batches = Counting()
    with Feed(batches, place, count=7) as feed:
        for k in range(1, 8):
            fed = feed.take(lambda: True)
            np.testing.assert_array_equal(fed.arrays["x"], [2 * k] * 3)
            assert (fed.position, fed.index.tolist()) == ({"position": k}, [k])
            assert fed.replaced == ([{"row": k}] if k % 2 else [])
            ahead = min(k + AHEAD, 7)
            until(lambda ahead=ahead: batches.position == ahead)
            assert batches.position == ahead
    assert batches.position == 7  # and not one more: the iterator is the caller's again
    with pytest.raises(IndexError):
        feed.take(lambda: True)


def test_an_end_that_comes_too_early_is_one_line():
    class Short(Counting):
        def __next__(self):
            if self.position == 2:
                raise StopIteration
            return super().__next__()

    with Feed(Short(), place, count=5) as feed:
        feed.wait_for_first()
        for _ in range(2):
            feed.take(lambda: True)
        with pytest.raises(
            UserError, match="ended after 2 of the 5 that the steps to do need; let it go on, as make_l"
        ):
            feed.take(lambda: True)
    with Feed(Counting(fails_at=0), place, count=5) as feed, pytest.raises(ValueError, match="the disk is gone"):
        feed.wait_for_first()  # before anything is done for the sake of a step
    with Feed(Counting(), place, count=0) as feed:
        feed.wait_for_first()


def test_an_error_comes_when_its_batch_is_asked_for():
    with Feed(Counting(fails_at=2), place, count=9) as feed:
        assert [int(feed.take(lambda: True).index[0]) for _ in range(2)] == [1, 2]
        with pytest.raises(ValueError, match="the disk is gone"):
            feed.take(lambda: True)


def test_the_thread_ends_with_the_block():
    before, started = set(threading.enumerate()), set()

    def interrupted():
        with Feed(Counting(), place, count=100) as feed:
            feed.take(lambda: True)
            started.update(set(threading.enumerate()) - before)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [thread.is_alive() for thread in started] == [False]


@pytest.fixture
def clock(monkeypatch):
    """Each look at it is a second; waiting for a batch takes ten, and lets it come at the third time."""

    class Clock:
        seconds, waits, gate = 0.0, 0, threading.Semaphore(0)

    def now():
        Clock.seconds += 1
        return Clock.seconds

    def wait(futures, timeout=None):
        Clock.seconds += 10
        Clock.waits += 1
        if Clock.waits == 3 or timeout is None:
            Clock.gate.release()
            until(futures[0].done)

    monkeypatch.setattr(feeds.time, "perf_counter", now)
    monkeypatch.setattr(feeds.concurrent.futures, "wait", wait)
    return Clock


@pytest.mark.parametrize(
    ("busy", "waited"),
    [
        ([True, True, True], 0),  # the devices worked all the while
        ([False], 11),  # they had nothing to do from the beginning
        ([True, True, False], 11),  # they ran dry after the second look
    ],
    ids=str,
)
def test_waiting_counts_while_the_devices_are_idle(clock, busy, waited):
    looks = iter(busy)
    with Feed(Counting(gate=clock.gate), place, count=1) as feed:
        feed.take(lambda: next(looks))
        assert feed.waited == waited
        assert not list(looks)


def test_a_batch_that_is_there_is_not_waited_for():
    batches = Counting()
    with Feed(batches, place, count=2) as feed:
        until(lambda: all(future.done() for future in feed._taken))
        for _ in range(2):
            feed.take(lambda: pytest.fail("nobody need ask"))
        assert feed.waited == 0
