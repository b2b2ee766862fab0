"""What evaluators may report, and what is one line instead."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.training.run.evaluations import check_best, known_names, measure

TAKEN = ("loss", "gradient_norm")


def reports(*values):
    """Evaluators that report these."""

    def evaluator(value):
        def mine(step, params):
            return value

        return mine

    return [evaluator(value) for value in values]


def test_numbers_of_any_kind_become_floats():
    given_ = {"a": 1, "b": np.float32(0.5), "c": np.array(2.5), "d": True, "e": np.int64(3), "f": float("nan")}
    found = measure(reports(given_, {"other": 0.0}), 3, {}, taken=TAKEN)
    assert {type(value) for value in found.values()} == {float}
    assert [found[name] for name in "abcde"] == [1, 0.5, 2.5, 1, 3]
    assert found["other"] == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"a": 1}, {"a": 2}], r"evaluators: 1 \(mine\) and 2 \(mine\) both report 'a'; rename one"),
        ([{"loss": 1}], r"training itself and 1 \(mine\) both report 'loss'"),
        ([{"step": 1}], "both report 'step'"),
        ([{"a": "good"}], r"evaluator 1 \(mine\) returned a str for 'a'; expected a number"),
        ([{}, {"a": np.zeros(2)}], r"evaluator 2 \(mine\) returned a ndarray for 'a'"),
        ([{"a": None}], "returned a NoneType for 'a'"),
        ([{1: 1.0}], "returned a metric named 1; expected text"),
        ([0.5], r"evaluator 1 \(mine\) returned a float; expected \{metric: number\}"),
        ([None], "returned a NoneType; expected"),
    ],
)
def test_anything_else_is_one_line(values, message):
    with pytest.raises(UserError, match=message):
        measure(reports(*values), 0, {}, taken=TAKEN)


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats(), max_size=2)


@given(st.lists(st.dictionaries(st.text(max_size=2) | st.integers(), ANY, max_size=3) | ANY, max_size=3))
def test_floats_under_distinct_names_or_a_user_error(values):
    said = ""
    try:
        found = measure(reports(*values), 0, {}, taken=TAKEN)
    except UserError as error:
        found, said = None, str(error)
    assert "\n" not in said
    if found is not None:
        assert sum(map(len, values)) == len(found)
        assert all(type(name) is str and type(value) is float for name, value in found.items())


def test_names_that_are_known_before():
    (first, second) = reports({}, {})
    assert known_names([]) == []
    assert known_names([first]) is None
    first.names, second.names = ["a"], ("b", "c")
    assert known_names([first, second]) == ["a", "b", "c"]
    check_best("b", ["a", "b"])
    check_best("", [])
    with pytest.raises(UserError, match="best_metric='nope'; expected one of a, b"):
        check_best("nope", ["a", "b"])
