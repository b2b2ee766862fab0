"""Order, errors and how far ahead the work is."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.one_ahead import one_ahead


@given(st.lists(st.integers()))
def test_equals_map(items):
    assert list(one_ahead(lambda x: x + 1, items)) == [x + 1 for x in items]


def test_works_on_one_while_the_one_before_is_used():
    fetched, working = [], threading.Event()

    def items():
        for number in range(4):
            fetched.append(number)
            yield number

    def work(number):
        if number == 1:
            working.set()
        return number

    results = one_ahead(work, items())
    assert next(results) == 0
    assert working.wait(10)  # 1 is worked on although nobody has asked for it
    assert fetched == [0, 1]
    assert list(results) == [1, 2, 3]


@pytest.mark.parametrize("bad", ["source", "work"])
def test_an_error_comes_after_what_was_before_it(bad):
    def items():
        yield 1
        yield 2
        if bad == "source":
            raise KeyError("three")
        yield 3

    def work(number):
        if number == 3:
            raise KeyError("three")
        return number

    results = one_ahead(work, items())
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(results)
