"""How far an export may be from its model, beside what the model rounds away."""

import dataclasses

import jax
import numpy as np
import pytest

from siglip_jax.export.limits import MAX_ERROR, MIN_COSINE, Limits, limits_of


@pytest.fixture(scope="module")
def pixels(tiny_model):
    return np.random.default_rng(0).uniform(-1, 1, (9, *tiny_model.architecture.image_size, 3)).astype(np.float32)


def test_float32_on_a_cpu_is_exact(tiny_model, pixels):
    limits = limits_of(tiny_model, pixels)
    assert (limits.max_error, limits.min_cosine) == (MAX_ERROR, pytest.approx(MIN_COSINE))
    assert str(limits) == ""


@pytest.mark.parametrize("dtype", ["bfloat16"])  # XLA has no products of float16 on a CPU
def test_what_a_dtype_rounds_away_is_measured(tiny_model, pixels, dtype):
    model = tiny_model.replace(module=tiny_model.module.clone(dtype=dtype))
    limits = limits_of(model, pixels)
    difference = model.encode_image(pixels) - tiny_model.encode_image(pixels)
    assert limits.rounding == pytest.approx(np.abs(difference).max(), rel=1e-3)
    assert limits.distance == pytest.approx(np.sqrt((difference**2).sum(axis=1)).max(), rel=1e-3)
    assert MAX_ERROR < limits.max_error < 0.1
    assert 0.9 < limits.min_cosine < MIN_COSINE
    assert f"{dtype} on cpu itself rounds by" in str(limits)


def test_float32_on_an_accelerator_is_measured(tiny_model, pixels, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    limits = limits_of(tiny_model, pixels)  # this CPU in truth: nothing rounds
    assert limits == Limits(words="float32 on gpu", rounding=limits.rounding, distance=limits.distance)
    assert limits.max_error == pytest.approx(MAX_ERROR, rel=0.5)


def test_a_model_of_noise_is_no_measure():
    noise = dataclasses.replace(Limits(), rounding=1.0, distance=1.0)
    assert noise.max_error < 0.2
    assert noise.min_cosine > 0.97
