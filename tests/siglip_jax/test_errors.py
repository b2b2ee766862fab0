"""Errors for the person at the keyboard."""

import doctest

import pytest

from siglip_jax import errors


def test_user_errors_are_value_errors():
    """Whoever calls the library from Python catches them as such."""
    with pytest.raises(ValueError, match=r"ties='random'; expected one of expected, docid"):
        errors.check_choice("ties", "random", ("expected", "docid"))


def test_choices_pass():
    errors.check_choice("ties", "docid", iter(("expected", "docid")))


def test_examples():
    assert doctest.testmod(errors).failed == 0


@pytest.mark.parametrize(
    ("given", "word"),
    [("error", "error"), ("skip", "skip"), ("refuse", "error"), ("raise", "error"), ("drop", "skip")],
)
def test_earlier_words_for_bad_input_are_understood(given, word):
    assert errors.checked_on_error("--on_error", given) == word


def test_other_words_for_bad_input():
    with pytest.raises(errors.UserError, match=r"--on_error='ignore'; expected one of error, skip"):
        errors.checked_on_error("--on_error", "ignore")
