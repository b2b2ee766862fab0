"""The ScaNN backend: recall against exact, padding, equal builds, and living beside TensorFlow."""

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from eval.search import build_index, index_folder, load_index, measure_recall, scann_index
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")


def clustered(n, d=32, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 20), d))
    return (centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, d))).astype(np.float32)


def names(n):
    return [f"item-{i}" for i in range(n)]


@needs_scann
@pytest.mark.parametrize("options", [{}, {"mode": "ah"}, {"mode": "tree"}])
def test_finds_what_exact_finds_and_survives_a_save(tmp_path, options):
    x, q = clustered(3000), clustered(50, seed=1)
    index = build_index(x, names(3000), backend="scann", **options)
    exact = build_index(x, names(3000))
    recall = measure_recall(index, x, k=10, sample=300)["recall"]
    assert recall >= (0.9 if options.get("mode") == "tree" else 0.99)
    got, want = index.search(q, k=5), exact.search(q, k=5)
    if options.get("mode") != "tree":
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)  # reordered exactly: cosines, not estimates
        assert np.mean(got.rows == want.rows) > 0.99
    index.save(tmp_path)
    again = load_index(tmp_path)
    assert again.ids == index.ids
    assert again.options == index.options
    assert again.measured["recall"] == recall
    after = again.search(q, k=5)
    np.testing.assert_array_equal(after.rows, got.rows)
    np.testing.assert_array_equal(after.scores, got.scores)
    assert not list(tmp_path.glob("*.pkl"))
    assert str(tmp_path) not in "".join(p.read_text(errors="ignore") for p in tmp_path.glob("*.pbtxt"))


@needs_scann
def test_a_moved_index_still_loads(tmp_path):
    x = clustered(500)
    build_index(x, names(500), backend="scann", mode="tree").save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert load_index(tmp_path / "b").search(x[:3], k=1).rows[:, 0].tolist() == [0, 1, 2]


@needs_scann
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17])
@pytest.mark.parametrize("mode", ["brute_force", "ah", "tree"])
@pytest.mark.parametrize("d", [1, 3])
def test_small_sets_and_k_beyond_them(n, mode, d):
    x = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    got = build_index(x, names(n), backend="scann", mode=mode).search(x, k=n + 3)
    assert got.rows.shape == (n, n + 3)
    assert all(sorted(row[row >= 0]) == list(range(n)) for row in got.rows)
    assert ((got.rows == -1) == (got.scores == -np.inf)).all()


@needs_scann
def test_short_rows_hold_no_phantom_of_row_0():
    x = clustered(400)
    index = build_index(x, names(400), backend="scann", mode="tree", leaves=40, leaves_to_search=1)
    got = index.search(x, k=100)
    assert (got.rows == -1).any()
    assert (got.scores[got.rows == -1] == -np.inf).all()
    assert max(np.sum(row == 0) for row in got.rows) <= 1
    assert not np.isnan(got.scores).any()
    assert [len(found) for found in got.ids] == (got.rows >= 0).sum(axis=1).tolist()


@needs_scann
@pytest.mark.parametrize("mode", ["brute_force", "ah", "tree"])
def test_equal_builds_in_two_processes_write_equal_bytes(tmp_path, mode):
    code = """
import sys
import numpy as np
from eval.search import build_index
x = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
build_index(x, [str(i) for i in range(3000)], backend="scann", mode=sys.argv[2]).save(sys.argv[1])
"""
    sums = []
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name), mode], check=True, capture_output=True)
        files = sorted((tmp_path / name).iterdir())
        sums.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert sums[0] == sums[1]


@needs_scann
@pytest.mark.parametrize(
    "first",
    [
        "",
        "import types; fake = sys.modules['tensorflow'] = types.ModuleType('tensorflow'); fake.constant = 1",
        pytest.param("import tensorflow", marks=pytest.mark.slow),
    ],
)
def test_tensorflow_is_hidden_during_the_import_alone(first):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    code = f"""
import sys
{first}
before = sys.modules.get("tensorflow")
import numpy as np
from eval.search import build_index
build_index(np.eye(3), list("abc"), backend="scann").search(np.eye(3), k=1)
assert sys.modules.get("tensorflow") is before
assert "tensorflow" not in sys.modules or before is not None
assert not [name for name, module in sys.modules.items() if module is None]
import importlib.util
if before is None:
    assert importlib.util.find_spec("tensorflow") is not None  # raises ValueError where a None was left
assert before is None or hasattr(before, "constant")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_without_scann_one_line_says_what_to_do():
    code = """
import sys
class NoScann:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "scann":
            raise ModuleNotFoundError(f"No module named {name!r}", name="scann")
sys.meta_path.insert(0, NoScann())
import numpy as np
from eval.search import build_index
from siglip_jax.errors import UserError
try:
    build_index(np.eye(3), list("abc"), backend="scann")
except UserError as error:
    print(error)
assert not [name for name, module in sys.modules.items() if module is None]
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "ScaNN is not installed" in run.stdout
    assert "siglip-jax[search]" in run.stdout
    assert 'backend="exact"' in run.stdout
    assert run.stdout.count("\n") == 1


@needs_scann
@pytest.mark.parametrize(("n", "mode"), [(19_999, "brute_force"), (20_000, "ah"), (99_999, "ah"), (100_000, "tree")])
def test_sizing(monkeypatch, n, mode):
    """Google's thresholds; the builder is stood in for, since only the choice is in question."""
    calls = []

    class Builder:
        def __getattr__(self, name):
            def call(*args, **kwargs):
                calls.append((name, args, kwargs))
                return self

            return call

    fake = type("Pybind", (), {"builder": staticmethod(lambda *args: Builder())})
    monkeypatch.setattr(scann_index, "_pybind", lambda: fake)
    index = scann_index.build(np.zeros((n, 2), np.float32), names(n))
    assert index.options["mode"] == mode
    assert ("set_n_training_threads", (1,), {}) in calls
    if mode == "tree":
        assert index.options["leaves"] == 316


@needs_scann
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "hnsw"}, "expected one of brute_force, ah, tree"),
        ({"leaves": 0, "mode": "tree"}, "leaves=0"),
        ({"leaves": 5}, "no effect in mode brute_force"),
        ({"mode": "ah", "leaves_to_search": 5}, "no effect in mode ah"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_index(clustered(50), names(50), backend="scann", **options)


@needs_scann
def test_a_pickle_in_the_folder_is_never_loaded(tmp_path):
    build_index(clustered(50), names(50), backend="scann").save(tmp_path)
    bomb = b"cbuiltins\nexit\n(I3\ntR."  # unpickling this ends the process
    (tmp_path / "scann_docids.pkl").write_bytes(bomb)
    assert len(load_index(tmp_path)) == 50  # unlisted: not looked at
    manifest = index_folder.read_manifest(tmp_path)
    manifest["files"]["scann_docids.pkl"] = index_folder.write_file(epath.Path(tmp_path), "scann_docids.pkl", bomb)
    index_folder.replace_manifest(epath.Path(tmp_path), manifest)
    with pytest.raises(UserError, match="pickle"):
        load_index(tmp_path)
