"""`siglip-jax interleave`: its lists, and what `abtest --interleaved` reads out of taps that prefer one store."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.embeddings import write_store
from eval.experiments import draft_lists
from siglip_jax import cli


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    root = tmp_path_factory.mktemp("interleave")
    rng = np.random.default_rng(0)
    ids = [f"i{i}" for i in range(60)]
    for name in ("old", "new"):
        write_store(root / name, [(ids, rng.normal(size=(60, 6)).astype(np.float32))], manifest={})
    stores = [f"--store={name}={root / name}" for name in ("old", "new")]
    assert cli.main(["interleave", *stores, "--length=6", "--drafts=2", f"--output={root / 'lists.parquet'}"]) == 0
    return root / "lists.parquet"


def test_lists_hold_the_best_of_both(lists):
    table = pq.read_table(lists).to_pylist()
    by_list: dict[str, list] = {}
    for row in table:
        by_list.setdefault(row["list_id"], []).append(row)
    assert len(by_list) == 120
    for name, rows in by_list.items():
        items = [row["item_id"] for row in rows]
        assert [row["position"] for row in rows] == list(range(6))
        assert len(set(items)) == 6
        assert name.partition("#")[0] == rows[0]["query_item_id"]
        assert rows[0]["query_item_id"] not in items
        for end in (2, 4, 6):  # as many of each, after every round
            assert [row["ranker"] for row in rows[:end]].count("new") == end // 2


def test_a_preference_is_read_out(lists, tmp_path, capsys):
    rng = np.random.default_rng(1)
    drafted = {}
    for row in pq.read_table(lists).to_pylist():
        drafted.setdefault(row["list_id"], []).append(row)
    rows, wins = [], {"old": 0, "new": 0, "even": 0}
    for request in range(1500):
        name = list(drafted)[rng.integers(len(drafted))]
        base = (f"q{request}", f"u{rng.integers(300)}", f"2024-07-{rng.integers(1, 15):02d}", name)
        rows.append((*base, drafted[name][0]["item_id"], "impression"))
        taps = {"old": 0, "new": 0}
        for row in drafted[name]:
            if rng.random() < (0.16 if row["ranker"] == "new" else 0.10):
                rows += [(*base, row["item_id"], "tap")] * 2  # two equal rows are one tap
                taps[row["ranker"]] += 1
        if sum(taps.values()):
            wins["even" if taps["old"] == taps["new"] else max(taps, key=taps.get)] += 1
    names = ("query_id", "user_id", "time", "list_id", "item_id", "action")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "log.parquet"
    )
    flags = [f"--logs={tmp_path / 'log.parquet'}", f"--interleaved={lists}"]
    assert cli.main(["abtest", *flags, f"--output={tmp_path / 'out.html'}"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["requests"], found["tapped"], found["ties"]) == (1500, sum(wins.values()), wins["even"])
    assert found["wins"] == {"old": wins["old"], "new": wins["new"]}
    assert found["preference"] == pytest.approx((wins["new"] - wins["old"]) / sum(wins.values()))
    assert found["verdict"] == "new"
    assert found["low"] > 0
    assert found["sign_p"] < 0.05
    assert capsys.readouterr().out.startswith("Users prefer new to old: new minus old is +")
    assert "Users prefer new to old" in (tmp_path / "out.html").read_text()

    for more, said in (
        (["--credit=buy"], "--credit=buy: no such action"),
        ([f"--interleaved={tmp_path / 'log.parquet'}"], "no column query_item_id"),
        (["--log_column=list_id=user_id"], "a list is called"),
    ):
        assert cli.main(["abtest", *flags, *more, f"--output={tmp_path / 'out.html'}"]) == 2
        assert said in capsys.readouterr().err


def test_bad_input_is_one_line(lists, tmp_path, capsys):
    store = f"--store=old={lists.parent / 'old'}"
    for flags, said in (
        ([store, "--output=x.parquet"], "expected two"),
        ([store, f"--store=new={lists.parent / 'new'}", "--output=x.csv"], "ending in .parquet"),
        (
            [store, f"--store=new={lists.parent / 'new'}", "--output=x.parquet", "--queries=none"],
            "--queries=none: no such file; expected one id a line",
        ),
    ):
        assert cli.main(["interleave", *flags]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


class Equal:
    """A ranker to which all items are alike."""

    def scores(self, queries):
        return np.zeros((len(queries), 60), np.float32)


def test_of_equal_items_the_first_are_drafted():
    for query, _, items, _ in draft_lists([Equal(), Equal()], np.array([1, 40]), length=4, drafts=1, seed=0):
        assert sorted(items.tolist()) == [row for row in range(5 if query < 4 else 4) if row != query]
