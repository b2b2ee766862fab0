"""Reductions against float64 SVD, their files, and what they refuse."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings import reduction
from eval.embeddings.reduction import Spec, fit
from siglip_jax.errors import UserError


def vectors(n=200, d=24, seed=0):
    """Anisotropic, so that components are told apart, and off centre."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.linspace(3, 0.2, d) + 0.5).astype(np.float32)


def by_svd(fitted_on, x, width):
    """PCA of unit vectors as a textbook has it, float64."""
    unit = fitted_on.astype(np.float64) / np.linalg.norm(fitted_on.astype(np.float64), axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    _, singular, right = np.linalg.svd(unit - mean, full_matrices=False)
    asked = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    out = (asked - mean) @ right[:width].T
    return out / np.linalg.norm(out, axis=1, keepdims=True), (singular**2)[:width].sum() / (singular**2).sum()


@pytest.mark.parametrize("width", [1, 5, 24])
def test_pca_is_the_svd_of_centred_unit_vectors(width, monkeypatch):
    monkeypatch.setattr(reduction, "_BLOCK", 24 * 7)  # blocks that divide nothing
    train, test = vectors(), vectors(50, seed=1)
    made = fit(Spec("pca", width, False), train)
    want, explained = by_svd(train, test, width)
    got = made(test)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.abs(np.sum(got * want, axis=1)) if width == 1 else got @ got.T,
                               1 if width == 1 else want @ want.T, atol=1e-5)  # signs of an SVD are free  # fmt: skip
    assert made.explained[-1] == pytest.approx(explained)
    assert (made.components[np.abs(made.components).argmax(axis=0), np.arange(width)] > 0).all()


def test_a_narrowed_pca_is_the_narrower_pca():
    wide = fit(Spec("pca", 16, False), vectors())
    for width in (1, 7):
        spec = Spec("pca", width, True)
        one, other = wide.narrowed(spec), fit(spec, vectors())
        np.testing.assert_array_equal(one(vectors(9, seed=3)), other(vectors(9, seed=3)))
        assert one.to_json() == other.to_json()
    with pytest.raises(UserError, match="cannot be narrowed"):
        wide.narrowed(Spec("pca", 17, False))


def test_truncation_keeps_the_first_numbers_at_unit_norm():
    x = vectors()
    got = fit(Spec("truncate", 6, False), x)(x)
    want = x[:, :6].astype(np.float64)
    np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-6)


def test_int8_is_within_half_a_step():
    x = vectors()
    got = fit(Spec("", 0, True), x)(x)
    assert np.abs(got).max(axis=1).tolist() == [127] * len(x)
    scale = np.abs(x).max(axis=1, keepdims=True) / 127
    assert np.abs(got * scale - x).max() <= scale.max() / 2 + 1e-6
    np.testing.assert_array_equal(got, np.rint(got))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.booleans(), st.sampled_from(["pca", "truncate"]), st.integers(0, 1000))
def test_equal_vectors_stay_equal_to_the_last_bit(width, int8, kind, seed):
    x = vectors(67, seed=seed)
    x[[11, 66]] = x[3]
    got = fit(Spec(kind, width, int8), vectors())(x)
    assert got.shape == (67, width)
    np.testing.assert_array_equal(got[[11, 66]], got[[3, 3]])
    if not int8:
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("text", ["pca:128", "truncate:64", "int8", "pca:12+int8"])
def test_specs_are_written_as_they_are_read(text):
    assert str(Spec.parse(text)) == text


def test_bytes_per_item():
    assert [Spec.parse(text).bytes_per_item(768) for text in ("pca:128", "int8", "pca:128+int8")] == [512, 768, 128]


@pytest.mark.parametrize("text", ["", "pca", "pca:0", "pca:-1", "pca:12int8", "+int8", "umap:2", "pca:128+", "pca:1e3"])
def test_other_specs_are_refused(text):
    with pytest.raises(UserError, match="expected pca:WIDTH"):
        Spec.parse(text)


@pytest.mark.parametrize("text", ["pca:5", "truncate:5", "pca:5+int8", "int8"])
def test_saved_and_loaded(tmp_path, text):
    made = fit(Spec.parse(text), vectors(), fitted_on="200 items")
    reduction.save(tmp_path / "pca", made)
    x = vectors(20, seed=5)
    np.testing.assert_array_equal(reduction.load(tmp_path / "pca")(x), made(x))
    first = {path.name: path.read_bytes() for path in (tmp_path / "pca").iterdir()}
    reduction.save(tmp_path / "pca", fit(Spec.parse(text), vectors(), fitted_on="200 items"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "pca").iterdir()} == first


def test_what_is_damaged_is_not_loaded(tmp_path):
    made = fit(Spec("pca", 5, False), vectors())
    reduction.save(tmp_path, made)
    arrays, manifest = tmp_path / "reduction.npz", tmp_path / "reduction.json"
    whole, said = arrays.read_bytes(), manifest.read_text()
    arrays.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="sha256"):
        reduction.load(tmp_path)
    arrays.unlink()
    with pytest.raises(UserError, match="missing"):
        reduction.load(tmp_path)
    arrays.write_bytes(whole)
    for changes, message in (
        ({"format": "other"}, "format"),
        ({"dimension": 25}, "mean is float64"),
        ({"reduction": "pca:6"}, "components is float64"),
        ({"reduction": "x"}, "expected pca:WIDTH"),
    ):
        manifest.write_text(json.dumps(json.loads(said) | changes))
        with pytest.raises(UserError, match=message):
            reduction.load(tmp_path)
    manifest.write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        reduction.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("pca:25", vectors(), "have 24 numbers"),
        ("pca:20", vectors(20), "at most 19 directions"),
        ("pca:2", np.ones((30, 4)), "all 30 vectors are equal"),
        ("pca:2", np.zeros((30, 4)), "is zero"),
        ("pca:2", np.full((30, 4), np.nan), "NaN"),
        ("truncate:2", np.ones(4), "shape"),
    ],
)
def test_refusals(text, given, message):
    with pytest.raises(UserError, match=message):
        fit(Spec.parse(text), given)


def test_vectors_that_do_not_fit_or_vanish():
    made = fit(Spec("truncate", 2, False), vectors())
    with pytest.raises(UserError, match=r"made for \[n, 24\]"):
        made(np.ones((2, 5)))
    x = vectors(3)
    x[1, :2] = 0
    with pytest.raises(UserError, match="row 1 is zero"):
        made(x)
