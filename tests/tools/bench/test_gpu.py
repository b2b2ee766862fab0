"""`bench gpu` from start to end on a CPU, and what becomes of a part that fails or hangs."""

import json
import os

import jax
import numpy as np
import pytest

from siglip_jax import cli
from tools.bench import gpu
from tools.bench.gpu_parts import budget, loss, search

BROKEN = "def rows(budget):\n    yield {'what': 'before', 'ms': 1.5}\n    raise RuntimeError('on purpose')\n"
HANGING = "import time\ndef rows(budget):\n    yield {'what': 'before'}\n    time.sleep(600)\n"
UNIMPORTABLE = "import a_package_that_no_machine_has\n"
WHOLE = "def rows(budget):\n    yield {'what': 'tiny' if budget.tiny else 'full', 'ms': 2.0, 'error': ''}\n"


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A bench of made-up parts, each a process as any."""
    sources = {"made_broken": BROKEN, "made_absent": UNIMPORTABLE, "made_hanging": HANGING, "made_whole": WHOLE}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part(name, 1, {"PYTHONPATH": _path(tmp_path)}) for name in sources})
    return tmp_path


def _path(folder):
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_one_part_that_breaks_does_not_end_the_rest(parts, capsys):
    names = ["made_broken", "made_absent", "made_whole"]
    output = parts / "out"
    assert cli.main(["bench", "gpu", "--tiny", f"--parts={','.join(names)}", f"--output={output}"]) == 0
    results = json.loads((output / "results.json").read_text())
    broken, absent, whole = results["parts"]
    assert [part["outcome"] for part in results["parts"]] == ["failed", "failed", "done"]
    assert broken["rows"] == [{"what": "before", "ms": 1.5}]  # what was measured stays
    assert "RuntimeError: on purpose" in broken["error"]
    assert "a_package_that_no_machine_has" in absent["error"]
    assert whole["rows"][0]["what"] == "tiny"
    assert results["environment"]["versions"]["jax"] == jax.__version__
    assert results["command"].startswith("siglip-jax bench gpu")
    page = (output / "results.md").read_text()
    assert "| before | 1.5 |" in page
    assert "RuntimeError: on purpose" in page
    assert "1 of 3 parts done; not made_broken, made_absent" in capsys.readouterr().out


@pytest.mark.slow
def test_a_part_that_hangs_is_ended_at_its_limit(parts):
    found = gpu.run_part("made_hanging", parts, limit=15, tiny=True)
    assert (found["outcome"], found["rows"]) == ("out of time", [{"what": "before"}])
    assert 15 <= found["seconds"] < 25


def test_what_is_asked_for(capsys, tmp_path):
    assert cli.main(["bench", "gpu", "--parts=losses", f"--output={tmp_path}"]) == 2
    assert "losses" in capsys.readouterr().err
    assert next(iter(gpu.PARTS)) == "loss"


@pytest.mark.slow  # JAX starts six times
def test_from_start_to_end(tmp_path):
    """Every part, in small: each measures something, and nothing in it fails. Most of it is six starts of JAX."""
    assert cli.main(["bench", "gpu", "--tiny", "--minutes=20", f"--output={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    found = {part["name"]: part for part in results["parts"]}
    assert {name: part["outcome"] for name, part in found.items()} == dict.fromkeys(gpu.PARTS, "done"), results
    torch = [row["error"] for row in found["step_torch"]["rows"] if "error" in row]
    assert all("not installed" in error for error in torch)
    for name, part in found.items():
        assert part["rows"], name
        assert name == "step_torch" or not [row for row in part["rows"] if "error" in row], part["rows"]

    def figures(part, what):
        return next(row for row in found[part]["rows"] if row["what"].startswith(what))

    assert figures("loss", "best tile")["tile"] in (16, 32)
    assert {row["rows"] for row in found["loss"]["rows"] if "rows" in row} == {64, 128}
    ours = [row for row in found["step"]["rows"] if row["what"].startswith("siglip-jax") and "images/s" in row]
    assert [row["rows"] for row in ours] == [8, 16, 32]
    assert all(row["images/s"] == pytest.approx(1e3 * row["rows"] / row["ms"]) for row in ours)
    assert figures("step", "siglip-jax, largest exact batch")["rows"] > 16
    embed = figures("encode", "embed")
    assert embed["% of the time encoding"] + embed["% waiting for the loader and writing"] == pytest.approx(100)
    assert all(row["equal to float64, %"] == 100 for row in found["search"]["rows"] if "equal to float64, %" in row)
    assert [row["what"] for row in found["train"]["rows"]] == [f"step {k}" for k in range(1, 5)]
    assert (tmp_path / "results.md").read_text().count("\n## ") == len(gpu.PARTS)


def test_nearest_is_the_exact_search():
    """Against numpy in float64, the last chunk's items among the found ones."""
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(90, 8)), rng.normal(size=(7, 8))
    scores, rows = search.nearest(queries.astype(np.float32), vectors.astype(np.float32), k=5, chunk=30)
    exact = queries @ vectors.T
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], rtol=1e-5)
    assert (np.asarray(rows) >= 60).any()
    assert search.agreement(rows, queries, vectors) == 1
    assert search.agreement(np.asarray(rows) + 1, queries, vectors) < 0.5


def test_the_exact_gradients_are_those_of_differences():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 3))
    t, b = np.array([0.5]), np.array([-1.0])
    loss_value, dx, _, dt, db = loss.exact_gradients(x, y, t, b)
    signs = 2 * np.eye(6) - 1

    def value(x, t, b):
        return np.sum(np.log1p(np.exp(-signs * (np.exp(t) * x @ y.T + b)))) / 6

    step = np.zeros_like(x)
    step[2, 1] = 1e-6
    assert loss_value == pytest.approx(value(x, t, b))
    assert dx[2, 1] == pytest.approx((value(x + step, t, b) - value(x - step, t, b)) / 2e-6, rel=1e-5)
    assert dt == pytest.approx((value(x, t + 1e-6, b) - value(x, t - 1e-6, b)) / 2e-6, rel=1e-5)
    assert db == pytest.approx((value(x, t, b + 1e-6) - value(x, t, b - 1e-6)) / 2e-6, rel=1e-5)


def test_the_largest_batch_by_a_straight_line():
    memory = {batch: 1000.0 + 10 * batch for batch in (8, 64, 128)}
    assert budget.largest_by_line(list(memory.items()), capacity=5000) == 400
    assert budget.largest_by_line([(8, 10.0), (16, 10.0)], capacity=100) == 0


def test_a_table_keeps_its_cells():
    part = {"name": "a", "outcome": "done", "seconds": 1, "limit": 2, "error": ""}
    rows = [{"what": "x|y", "error": "a\nb"}, {"what": "z", "ms": 12345.6}, {"what": "e", "table": "Errors", "x": 1e-7}]
    assert gpu.part_markdown(part | {"rows": rows}).splitlines()[4:] == [
        "| what | ms | error |",
        "| --- | --- | --- |",
        "| x/y |  | a b |",
        "| z | 12,346 |  |",
        "",
        "Errors:",
        "",
        "| what | x |",
        "| --- | --- |",
        "| e | 1e-07 |",
    ]
