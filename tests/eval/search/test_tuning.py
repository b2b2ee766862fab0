"""A tuned tree reaches its target by a count that this file makes itself, and what is below a target is refused."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

from eval.embeddings import write_store
from eval.embeddings.vectors import unit_rows
from eval.search import build_index, check_recall, load_index, tuned_index, tuning
from eval.search.recall import Truth
from siglip_jax import cli
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
SCANN_CORE = os.environ.get("SCANN_CORE_PYTHON")  # a Python that has numpy and scann-core
N, D = 1500, 16


@pytest.fixture(scope="module")
def items():
    random = np.random.default_rng(0)
    return (random.normal(size=(75, D))[np.arange(N) % 75] + 0.5 * random.normal(size=(N, D))).astype(np.float32)


def ids(count=N):
    return [f"item-{row}" for row in range(count)]


def nearest(items, rows, k):
    """By float64, without the item itself."""
    unit = items.astype(np.float64) / np.linalg.norm(items.astype(np.float64), axis=1, keepdims=True)
    scores = unit[rows] @ unit.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-scores, axis=1)[:, :k]


@needs_scann
def test_the_tree_reaches_its_target(items, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "SAMPLE", 300)
    index = tuned_index(items, ids(), target=0.95, leaves=[20, 40])
    curve = index.measured["curve"]
    chosen = {name: index.options[name] for name in ("leaves", "leaves_to_search", "reorder")}
    line = next(line for line in curve if chosen.items() <= line.items())
    assert line["recall"] >= 0.95
    assert {each["leaves"] for each in curve} == {20, 40}
    assert all(each["bytes"] > items.nbytes and each["queries_per_second"] > 0 for each in curve)
    rows = np.sort(np.random.default_rng(0).permutation(N)[:600])[1::2]  # those that confirm
    found = index.search(items[rows], k=11).rows
    best = nearest(items, rows, 10)
    recall = np.mean([len((set(found[i]) - {own}) & set(best[i])) / 10 for i, own in enumerate(rows)])
    assert index.measured["recall"] == pytest.approx(recall, abs=2e-3)
    assert recall >= 0.95
    index.save(tmp_path / "index")
    again = load_index(tmp_path / "index")
    assert (again.measured, again.options) == (index.measured, index.options)
    np.testing.assert_array_equal(again.search(items[:50], k=10).rows, index.search(items[:50], k=10).rows)
    check_recall(again)


@needs_scann
def test_a_target_that_nothing_reaches_is_an_error(items, monkeypatch):
    monkeypatch.setattr(tuning, "SHARES", (0.001,))
    with pytest.raises(UserError, match=r"target_recall=1.0: no setting reached it, the best 0\.\d+"):
        tuned_index(items, ids(), target=1.0, leaves=[100])


@pytest.mark.parametrize(
    ("count", "target", "message"), [(999, 0.9, "below 1,000"), (N, 1.1, "at most 1"), (N, 0, "above 0")]
)
def test_what_cannot_be_tuned(items, count, target, message):
    with pytest.raises(UserError, match=message):
        tuned_index(items[:count], ids(count), target=target)


def test_the_truth_leaves_the_own_item_out(items):
    truth = Truth.of(unit_rows(items, what="vector"), k=5, sample=100, seed=3)
    best = nearest(items, truth.rows, 5)
    unit = items.astype(np.float64) / np.linalg.norm(items.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(truth.worst, (unit[truth.rows] * unit[best[:, -1]]).sum(axis=1), atol=1e-6)
    assert truth.recall(build_index(items, ids())) == 1
    assert truth.part(slice(0, None, 2)).rows.tolist() == truth.rows[::2].tolist()


@pytest.mark.parametrize(
    ("backend", "measured", "refused"),
    [
        ("scann", {"recall": 0.97, "k": 10}, True),
        ("scann", {"recall": 0.98, "k": 10}, False),
        ("scann", {"recall": 0.985, "k": 10, "target": 0.99}, True),
        ("scann", {"recall": 0.91, "k": 10, "target": 0.9}, False),
        ("exact", {"recall": 0.5, "k": 10}, False),
        ("scann", {}, False),
    ],
)
def test_an_index_that_finds_too_little_is_refused(items, backend, measured, refused):
    index = build_index(items[:20], ids(20))
    index.backend, index.measured = backend, measured
    check_recall(index, allow=True)
    if refused:
        with pytest.raises(UserError, match="--allow_low_recall"):
            check_recall(index)
    else:
        check_recall(index)


def test_the_programs_say_what_it_costs_and_refuse(items, tmp_path, capsys):
    about = {"model": {"name": "m"}, "preprocessing": {}, "dataset": {}}
    write_store(tmp_path / "store", [(ids(), items)], manifest=about)
    common = ["index", f"--store={tmp_path / 'store'}", f"--output={tmp_path / 'index'}"]
    assert cli.main([*common, "--backend=reduced", "--reduce=truncate:2", "--candidates=1"]) == 0
    assert f"in memory {N * 8:,} bytes, instead of {N * D * 4:,}" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["options"] == {"reduce": "truncate:2", "candidates": 1}
    assert manifest["measured"]["bytes"] == N * 8
    assert manifest["measured"]["recall"] < 0.98
    search = ["search", f"--index={tmp_path / 'index'}", "--item=item-3", "--k=2", "--json"]
    assert cli.main(search) == 2
    assert "--allow_low_recall" in capsys.readouterr().err
    assert cli.main([*search, "--allow_low_recall"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 2
    assert cli.main([*common, "--target_recall=0.9"]) == 2
    assert "goes with --backend=scann" in capsys.readouterr().err


BOTH = """
import sys
sys.path += sys.argv[2].split(":")
import numpy as np
from eval.search import build_index, load_index, measure_recall
here, folder = sys.argv[1], sys.argv[3]
items = np.load(folder + "/items.npy")
ids = [str(row) for row in range(len(items))]
build_index(items, ids, backend="scann", mode="tree", leaves=20).save(folder + "/" + here)
for name in ("scann", "scann-core"):
    try:
        index = load_index(folder + "/" + name)
    except Exception:
        continue
    print(here, name, measure_recall(index, items, sample=500)["recall"])
"""


@needs_scann
@pytest.mark.skipif(SCANN_CORE is None, reason="SCANN_CORE_PYTHON names no Python that has scann-core")
def test_either_scann_reads_the_files_of_the_other(items, tmp_path):
    np.save(tmp_path / "items.npy", items)
    behind, found = sysconfig.get_paths()["purelib"], {}
    for _ in range(2):  # the second time, both folders are there
        for python, here in ((sys.executable, "scann"), (SCANN_CORE, "scann-core")):
            environment = {**os.environ, "PYTHONPATH": os.getcwd()}
            done = subprocess.run(
                [python, "-c", BOTH, here, behind, str(tmp_path)], capture_output=True, text=True, env=environment
            )
            assert done.returncode == 0, done.stderr
            found |= {tuple(line.split()[:2]): float(line.split()[2]) for line in done.stdout.splitlines()}
    assert len(found) == 4
    assert max(found.values()) - min(found.values()) < 0.01
