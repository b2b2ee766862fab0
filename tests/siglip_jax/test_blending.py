"""Parameters between a start and a tuned model, against float64 and to the bit at the ends."""

import jax
import numpy as np
import pytest

from siglip_jax.blending import average, check_blendable, interpolate
from siglip_jax.errors import UserError

SHAPES = {"img": {"kernel": (3, 4), "bias": (4,)}, "t": (1,), "b": (1,)}


def tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    made = jax.tree.map(lambda shape: rng.normal(size=shape).astype(dtype), SHAPES, is_leaf=lambda x: type(x) is tuple)
    made["img"]["bias"][:2] = -0.0, 0.0
    return made


def bits(params):
    return [leaf.view(np.uint32).tolist() for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_are_the_inputs_to_the_bit(end):
    start, tuned = tree(1), tree(2)
    assert bits(interpolate(start, tuned, end)) == bits((start, tuned)[end])


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_between_the_ends(alpha):
    start, tuned = tree(1), tree(2)
    found = interpolate(start, tuned, alpha)
    want = jax.tree.map(lambda a, b: (1 - alpha) * a.astype(np.float64) + alpha * b, start, tuned)
    for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    assert found["t"] != start["t"]


def test_half_precision_is_blended_in_float32():
    start, tuned = tree(1, np.float16), tree(2, np.float16)
    found = interpolate(start, tuned, 0.5)["img"]["kernel"]
    want = (start["img"]["kernel"].astype(np.float64) + tuned["img"]["kernel"]) / 2
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)


def test_a_soup_of_three():
    trees = [tree(seed) for seed in (1, 2, 3)]
    want = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves).astype(np.float64), axis=0), *trees)
    for got, expected in zip(jax.tree.leaves(average(trees)), jax.tree.leaves(want), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    assert bits(average(trees[:1])) == bits(trees[0])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_outside_the_ends(alpha):
    with pytest.raises(UserError, match="from 0, the start, to 1"):
        interpolate(tree(1), tree(2), alpha)


def test_the_difference_between_models_is_named(tiny_model):
    check_blendable({"start": tiny_model, "tuned": tiny_model.replace(params=dict(tiny_model.params))})
    other = tiny_model.replace(preprocessing=tiny_model.preprocessing.replace(resize="bicubic"))
    with pytest.raises(UserError, match=r"tuned cannot be blended with start.*preprocessing.resize: 'bicubic' here"):
        check_blendable({"start": tiny_model, "tuned": other})
    lacking = tiny_model.replace(params={name: leaf for name, leaf in tiny_model.params.items() if name != "t"})
    with pytest.raises(UserError, match=r"parameters.t: None here, \[1\] there"):
        check_blendable({"start": tiny_model, "tuned": lacking})
