"""`bench search` from start to end in small: what is counted, kept and skipped; how fast anything is is no matter."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from eval.embeddings import write_store
from siglip_jax import cli
from tools.bench import search
from tools.bench.search_parts import made_vectors, picture, run_row


def test_from_start_to_end(tmp_path, capsys, monkeypatch):
    common = ["bench", "search", "--tiny", f"--output={tmp_path}"]
    assert cli.main([*common, "--rows=exact,int8,scann-core"]) == 0
    printed = capsys.readouterr().out
    assert "1,500 items x 16, made from 1,200 real ones with noise, of pixels of the synthetic catalogue" in printed
    assert "scann-core: skipped, give --scann_core=PYTHON" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: row["outcome"] for name, row in results["rows"].items()} == {"exact": "done", "int8": "done"}, results
    exact, int8 = results["rows"].values()
    assert exact["settings"][exact["chosen"]]["recall"] == 1
    assert (exact["bytes"], int8["bytes"]) == (1500 * 64, 1500 * 20)
    assert int8["settings"][int8["chosen"]]["recall"] >= 0.98
    assert exact["bounds"].keys() >= {"read_ms", "ratio", "operations_per_second"}
    table = (tmp_path / "results.md").read_text()
    assert "reading all items once" in table
    assert xml.etree.ElementTree.parse(tmp_path / "batched.svg").getroot().tag.endswith("svg")

    # What is done is not run again; a row that is not there is said and skipped.
    monkeypatch.setattr(search, "_run", lambda *args, **options: pytest.fail("ran again"))
    monkeypatch.setitem(run_row.PEERS, "hnswlib", type("Absent", (), {"module": "a_module_that_no_machine_has"}))
    assert cli.main([*common, "--rows=exact,hnswlib"]) == 0
    assert "hnswlib: skipped, a_module_that_no_machine_has is not installed" in capsys.readouterr().out


@pytest.mark.slow  # a process for each
def test_every_row_finds_enough(tmp_path):
    assert cli.main(["bench", "search", "--tiny", f"--output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for name, row in rows.items():
        assert row["outcome"] == "done", (name, row)
        assert row["settings"][row["chosen"]]["recall"] >= 0.98, name


def test_a_row_that_is_out_of_time_keeps_what_it_has(tmp_path):
    made_vectors.make(tmp_path, vectors=None, items=200, dim=8, queries=10, k=5)
    asked = {"k": 5, "target": 0.98, "leaves": []}
    found = search._run("exact", tmp_path, asked, limit=0.01, python=search.sys.executable)
    assert found["outcome"] == "out of time"
    assert search.line_of("exact", found)[:2] == ["exact", "out of time"]


def test_items_of_a_store_are_real_ones_where_there_are_enough(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
    about = {"model": {"name": "m"}, "preprocessing": {}, "dataset": {}}
    write_store(tmp_path / "store", [([str(row) for row in range(150)], vectors)], manifest=about)
    found = made_vectors.make(tmp_path, vectors=str(tmp_path / "store"), items=120, dim=6, queries=30, k=3)
    assert (found["made"], found["real"], found["kept"]) == (False, 150, 1.0)
    parts = [np.load(tmp_path / name) for name in (made_vectors.ITEMS, made_vectors.QUERIES)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(np.sort(np.concatenate(parts)[:, 0]), np.sort(unit[:, 0]), atol=1e-6)  # each once
    worst = -np.sort(-parts[1].astype(np.float64) @ parts[0].T.astype(np.float64), axis=1)[:, 2]
    np.testing.assert_allclose(np.load(tmp_path / made_vectors.WORST), worst, atol=1e-6)


def test_what_is_asked_for(tmp_path, capsys):
    assert cli.main(["bench", "search", "--tiny", "--leaves=1000,x", f"--output={tmp_path}"]) == 2
    assert "--leaves=1000,x" in capsys.readouterr().err
    assert cli.main(["bench", "search", "--rows=exactly", f"--output={tmp_path}"]) == 2
    assert "expected one of exact, int8" in capsys.readouterr().err


def test_a_picture_has_a_line_for_each():
    curves = {"a<b": [(0.9, 100.0), (0.99, 50.0)], "low": [(0.5, 1e4)], "c": [(1.0, 7.0)]}
    root = xml.etree.ElementTree.fromstring(picture.draw(curves, title="t & u", target=0.98))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert (tags.count("polyline"), tags.count("circle")) == (2, 3)
    assert "a<b" in [element.text for element in root.iter()]


def test_the_line_leaves_out_what_another_setting_beats():
    points = [(0.9, 5.0), (0.95, 4.0), (0.92, 3.0), (0.99, 1.0), (0.95, 2.0)]
    assert picture.best_of(points) == [(0.9, 5.0), (0.95, 4.0), (0.99, 1.0)]
