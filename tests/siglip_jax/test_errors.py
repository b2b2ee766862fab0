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
