"""A teacher's vectors in the model's dimension, against numpy's SVD of the whole matrix."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.errors import UserError
from siglip_jax.training.start import teacher_vectors as module
from siglip_jax.training.start.teacher_vectors import teacher_vectors


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def fitted(x, width):
    return teacher_vectors(lambda rows: x[rows], len(x), width=width)


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 30),
    dimension=st.integers(1, 12),
    width=st.integers(1, 12),
    rows_of_a_block=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_cosines_are_those_of_the_best_vectors_of_that_width(count, dimension, width, rows_of_a_block, seed):
    rng = np.random.default_rng(seed)
    # Few strong directions, all with a mean, so that nothing is left with a length of next to none.
    x = (rng.normal(size=(count, dimension)) + 3) * rng.uniform(0.5, 20, size=(count, 1))
    x = x.astype(np.float32)
    before, module.BLOCK = module.BLOCK, rows_of_a_block * dimension
    try:
        found = fitted(x, width)
    finally:
        module.BLOCK = before
    rows = unit(x.astype(np.float64))
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    best = unit(rows @ directions[:width].T)
    assert found.vectors.shape == (count, width)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors @ found.vectors.T, best @ best.T, atol=2e-6)
    assert found.kept == pytest.approx(np.sum(values[:width] ** 2) / np.sum(values**2))


def test_vectors_that_fit_stay_and_shorter_ones_get_zeros():
    x = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_allclose(fitted(x, 4).vectors, unit(x), rtol=1e-6)
    longer = fitted(x, 6)
    np.testing.assert_allclose(longer.vectors[:, :4], unit(x), rtol=1e-6)
    assert not longer.vectors[:, 4:].any()
    assert str(longer) == "5 vectors of 4 numbers, 2 zeros added"
    assert str(fitted(x, 4)) == "5 vectors of 4 numbers"
    assert str(fitted(np.eye(2, 4) + 1, 1)).startswith("2 vectors of 4 numbers, 1 of them kept (9")


def test_the_same_vectors_again_are_the_same_to_the_bit():
    x = np.random.default_rng(1).normal(size=(40, 9)) + 1
    np.testing.assert_array_equal(fitted(x, 3).vectors, fitted(x, 3).vectors)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.empty((0, 3)), "no vector of any training row"),
        (np.array([[1.0, 0], [0, 0], [0, 0]]), "2 of 3 vectors are zero or not finite"),
        (np.array([[1.0, 0], [np.nan, 0]]), "1 of 2 vectors are zero or not finite"),
        (np.array([[1.0, 0], [1.0, 0], [0, 1.0]]), "1 of 3 vectors point away from all that was kept"),
    ],
    ids=str,
)
def test_vectors_without_a_direction_are_refused(x, message):
    with pytest.raises(UserError, match=f"teacher: {message}"):
        fitted(x, 1)
