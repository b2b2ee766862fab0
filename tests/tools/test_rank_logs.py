"""`siglip-jax rank --logs`: what each protocol leaves behind, on simulated sessions, and every planted fault found."""

import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from eval.comparison.comparison_table import compare_rows
from eval.embeddings import write_store
from eval.report.trec import read_qrels, read_run
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import attributes, open_split
from siglip_jax import cli


@pytest.fixture(scope="module")
def made(shop_dataset, config_file, tmp_path_factory):
    """A folder with a store of every test item and simulated sessions over them."""
    root = tmp_path_factory.mktemp("rank_logs")
    ids, _, columns = attributes(shop_dataset, "test")
    kinds = sorted(set(columns["type"]))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(kinds), 8))[[kinds.index(kind) for kind in columns["type"]]]
    vectors = (vectors + 0.5 * rng.normal(size=vectors.shape)).astype(np.float32)
    write_store(root / "store", [(ids[::-1], vectors[::-1])], manifest={})  # in another order than the split
    write_store(root / "constant", [(ids, np.ones((len(ids), 4), np.float32))], manifest={})
    run = ["simulate", f"--config={config_file}", f"--dataset={shop_dataset}", "--length=8", "--users=40"]
    assert cli.main([*run, "--queries=400", f"--output={root / 'log.parquet'}"]) == 0
    return root


@pytest.fixture
def rank(made, shop_dataset, config_file, tmp_path):
    """rank(*flags, log=...) -> (exit code, report)."""

    def run(*flags, log="log.parquet", dataset=shop_dataset):
        given = ["rank", f"--config={config_file}", f"--output={tmp_path / 'report.html'}", f"--logs={made / log}"]
        given += [f"--dataset={dataset}"] if dataset else []
        stores = [] if any(flag.startswith("--store=") for flag in flags) else [f"--store=new={made / 'store'}"]
        code = cli.main([*given, *stores, "--scann=none", *flags])
        return code, json.loads((tmp_path / "report.json").read_text()) if code == 0 else None

    return run


def means(report):
    return {row["name"]: {name: cell["mean"] for name, cell in row["exact"].items()} for row in report["rows"]}


ROWS = ["random", "popularity", "item-to-item", "title TF-IDF", "raw pixels", "new"]


@pytest.mark.parametrize("protocol", ["logged_lists", "retrieval", "leave_one_out", "time_split"])
def test_a_protocol_and_what_it_leaves(rank, tmp_path, capsys, protocol):
    window = ["--from=2024-05-01", "--until=2024-05-25"] if protocol != "leave_one_out" else []
    extra = [
        f"--trec={tmp_path / 'trec'}",
        f"--per_query={tmp_path / 'queries.parquet'}",
        "--config.evaluation.gain=linear",
    ]
    code, report = rank(f"--protocol={protocol}", *window, *extra)
    out = capsys.readouterr().out
    assert code == 0
    names = {"logged_lists": "logged-list re-ranking", "retrieval": "full-catalogue retrieval, logged queries"}
    named = names.get(protocol, protocol.replace("_", "-" if protocol == "leave_one_out" else " "))
    table = pq.read_table(tmp_path / "queries.parquet")
    page = (tmp_path / "report.html").read_text()
    manifest = json.loads((tmp_path / "trec" / "trec.json").read_text())
    for said in (report["protocol"], out, page, set(table["protocol"].to_pylist()).pop(), manifest["protocol"]):
        assert named in said
    for said in (out, page):
        assert "simulated" in said
        assert "queries of" in said
        assert "Leakage: no item shares" in said
    assert [row["name"] for row in report["rows"]] == ["logged order"] * (protocol == "logged_lists") + ROWS
    if protocol in names:  # simulated users favour styles that no picture shows
        assert means(report)["new"]["nDCG@5"] > means(report)["random"]["nDCG@5"]

    # The table of queries and the TREC files say the same.
    qrels = read_qrels(tmp_path / "trec" / "qrels.txt")
    for row in report["rows"]:
        mine = np.array(table["row"].to_pylist()) == row["name"]
        values = np.array(table["nDCG@5"].to_pylist(), float)[mine]
        assert np.nanmean(values) == pytest.approx(row["exact"]["nDCG@5"]["mean"], abs=1e-12)
        assert np.isfinite(values).sum() == report["queries"] == len(qrels)
        tied = np.array(table["tied"].to_pylist())[mine]
        run = read_run(tmp_path / "trec" / manifest["runs"][row["name"]])
        theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5"}).evaluate(run)
        if not tied.any():
            assert np.mean([v["ndcg_cut_5"] for v in theirs.values()]) == pytest.approx(np.nanmean(values), abs=1e-9)
    assert ("Sensitivity to position" in out) == (protocol == "logged_lists")


@pytest.mark.parametrize("protocol", ["logged_lists", "retrieval"])
def test_err_knows_the_highest_gain_of_the_actions(rank, tmp_path, protocol):
    """Against its definition (Chapelle et al. 2009, algorithm 1) over the TREC files, whose scores do not tie there."""
    flags = ["--config.evaluation.metrics=('ERR@4','nDCG@5')", f"--protocol={protocol}", "--from=2024-05-01"]
    code, report = rank(*flags, f"--trec={tmp_path / 'trec'}", f"--per_query={tmp_path / 'q.parquet'}")
    assert code == 0
    assert report["max_grade"] == 3  # a purchase, though the log may hold none
    qrels, run = read_qrels(tmp_path / "trec/qrels.txt"), read_run(tmp_path / "trec/run.new.txt")
    table = pq.read_table(tmp_path / "q.parquet").to_pylist()
    found = {row["query_id"]: row for row in table if row["row"] == "new"}
    compared = 0
    for query, grades in qrels.items():
        row = found[query]
        if row["tied"]:
            continue
        err, reached = 0.0, 1.0
        for place, item in enumerate(sorted(run[query], key=lambda item: -run[query][item])[:4], 1):
            stop = (2 ** grades.get(item, 0) - 1) / 2**3
            err += reached * stop / place
            reached *= 1 - stop
        assert row["ERR@4"] == pytest.approx(err, abs=1e-9)
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("protocol", ["retrieval", "time_split", "logged_lists"])
def test_what_the_lists_are_like_beyond_accuracy(rank, made, shop_dataset, tmp_path, protocol):
    """Coverage, novelty and variety of the first ten, from the TREC runs, the log and the attributes themselves."""
    flags = [f"--protocol={protocol}", "--from=2024-05-01", f"--trec={tmp_path / 'trec'}"]
    code, report = rank(*flags, "--trec_depth=12")
    assert code == 0
    if protocol == "logged_lists":  # what is in a shown list is the old ranker's doing
        assert report["beyond"] is None
        return
    beyond = report["beyond"]
    assert list(beyond["rows"]) == ROWS
    assert beyond["metrics"] == ["coverage@10", "gini@10", "novelty@10", "diversity_type@10", "diversity_colour@10"]
    assert "Beyond accuracy" in (tmp_path / "report.html").read_text()
    ids, _, columns = attributes(shop_dataset, "test")
    run = read_run(tmp_path / "trec" / "run.new.txt")
    lists = [sorted(scored, key=lambda item: -scored[item])[:10] for scored in run.values()]
    assert {len(scored) for scored in run.values()} <= set(range(13))
    found = beyond["rows"]["new"]
    if report["left_out"] == 0:  # runs hold the other queries alone
        assert found["coverage@10"] == pytest.approx(len({item for best in lists for item in best}) / len(ids))
    kind = dict(zip(ids, columns["type"], strict=True))
    apart = [
        np.mean([kind[a] != kind[b] for a, b in itertools.combinations(best, 2)]) for best in lists if len(best) > 1
    ]
    slack = 1e-9 if report["left_out"] == 0 else 0.05
    assert found["diversity_type@10"]["mean"] == pytest.approx(np.mean(apart), abs=slack)
    assert found["diversity_type@10"]["low"] < found["diversity_type@10"]["mean"] < found["diversity_type@10"]["high"]
    # Popular items first is nothing new.
    novelty = {name: values["novelty@10"]["mean"] for name, values in beyond["rows"].items()}
    assert min(novelty, key=novelty.get) == "popularity"


def test_the_log_is_held_against_the_training_set_without_a_dataset_too(rank, shop_dataset, tmp_path, capsys):
    flags = ["--protocol=retrieval", f"--train_dataset={shop_dataset}"]
    code, _ = rank(*flags, dataset=None)
    assert code == 0
    assert "Leakage: no item shares its id with the training split." in capsys.readouterr().out
    assert not (tmp_path / "report.leakage.csv").exists()
    # The split that is evaluated here was trained on.
    seen = [*flags, "--config.data.train_split=test"]
    code, _ = rank(*seen, dataset=None)
    error = capsys.readouterr().err
    ids, _, _ = attributes(shop_dataset, "test")
    assert code == 2
    assert f"{len(ids)} of {len(ids)} evaluation items are in the training set ({len(ids)} by id, " in error
    listed = (tmp_path / "report.leakage.csv").read_text()
    assert all(item in listed for item in ids)


def test_a_constant_scorer_gains_nothing(rank, made, capsys):
    code, report = rank("--protocol=retrieval", f"--store=constant={made / 'constant'}")
    assert code == 0
    found = means(report)
    assert found["constant"]["nDCG_exp@5"] == pytest.approx(found["random"]["nDCG_exp@5"], abs=0.05)
    row = report["rows"][-1]
    assert row["tie_rate"] == 1
    against = next(d for d in report["differences"] if d["b"] == "random")
    assert against["low"] < 0 < against["high"] or abs(against["mean"]) < 0.03


def test_a_leaked_item_is_found(rank, shop_dataset, made, tmp_path, capsys):
    """A training set that holds a test item's picture under another id and title."""
    rows = open_split(shop_dataset, "test")
    (tmp_path / "shop" / "images").mkdir(parents=True)
    lines = ["id\ttitle\timage"]
    for place in range(4):
        lines.append(f"other{place}\tanother title {place}\timages/{place}.png")
        source = rows[3]["image"] if place == 0 else open_split(shop_dataset, "train")[place]["image"]
        (tmp_path / "shop" / "images" / f"{place}.png").write_bytes(source)
    (tmp_path / "shop" / "items.tsv").write_text("\n".join(lines) + "\n")
    build_dataset(read_catalogue(tmp_path / "shop"), tmp_path / "trained", fractions={"train": 1.0}, progress=False)
    leaked = {row["id"] for row in rows if row["image_sha256"] == rows[3]["image_sha256"]}
    flags = ["--protocol=retrieval", f"--train_dataset={tmp_path / 'trained'}"]
    code, _ = rank(*flags)
    said = capsys.readouterr().err
    assert code == 2
    assert "in the training split" in said
    assert all(f"'{item}' (picture)" in said for item in leaked)
    code, report = rank(
        *flags, "--leakage=skip", f"--per_query={tmp_path / 'queries.parquet'}", f"--trec={tmp_path / 'trec'}"
    )
    assert code == 0
    assert report["log"]["leaked"] == len(leaked)
    assert report["log"]["queries_left_out"]["query item in the training split"] > 0
    assert not leaked & set(pq.read_table(tmp_path / "queries.parquet")["query_item"].to_pylist())
    assert not leaked & {item for scored in read_run(tmp_path / "trec" / "run.new.txt").values() for item in scored}


def test_a_query_written_twice_changes_nothing(rank, made, capsys):
    log = pq.read_table(made / "log.parquet")
    once = log.filter(pa.compute.equal(log["query_id"], "simulated-query-7"))
    again = once.set_column(0, "query_id", pa.array(["simulated-again"] * len(once)))
    pq.write_table(pa.concat_tables([log, again]), made / "twice.parquet")
    _, plain = rank("--protocol=logged_lists")
    _, twice = rank("--protocol=logged_lists", log="twice.parquet")
    assert twice["log"]["queries_left_out"]["the same as an earlier query"] == 1
    assert means(twice) == means(plain)
    assert "1 the same as an earlier query" in capsys.readouterr().out


def test_a_user_with_ten_thousand_clicks_is_found(rank, made, shop_dataset, config_file, tmp_path, capsys):
    run = [
        "simulate",
        f"--config={config_file}",
        f"--dataset={shop_dataset}",
        "--length=8",
        "--users=40",
        "--queries=400",
    ]
    assert cli.main([*run, "--heavy=10000", f"--output={made / 'heavy.parquet'}"]) == 0
    code, report = rank("--protocol=logged_lists", f"--per_query={tmp_path / 'q.parquet'}", log="heavy.parquet")
    assert code == 0
    assert report["log"]["heavy_users"] == {"simulated-user-heavy": 10_000}
    assert "simulated-user-heavy (10,000 events)" in capsys.readouterr().out
    # The bootstrap over queries would be sure of itself; the one over users, as reported, is not.
    row = report["rows"][-1]["exact"]["nDCG_exp@5"]
    table = pq.read_table(tmp_path / "q.parquet")
    mine = np.array(table["row"].to_pylist()) == "new"
    values = np.array(table["nDCG_exp@5"].to_pylist(), float)[mine]
    by_query = compare_rows({"new": {"m": values}})["rows"][0]["metrics"]["m"]
    assert row["mean"] == pytest.approx(by_query["mean"])
    assert row["high"] - row["low"] > 4 * (by_query["high"] - by_query["low"])
    users = np.array(table["user_id"].to_pylist())[mine]
    each = [np.nanmean(values[users == user]) for user in set(users) if np.isfinite(values[users == user]).any()]
    assert report["rows"][-1]["mean_over_users"]["nDCG_exp@5"] == pytest.approx(np.mean(each))


def test_live_items_and_windows(rank, capsys):
    _, everything = rank("--protocol=retrieval", "--from=2024-05-01")
    _, seen = rank("--protocol=retrieval", "--from=2024-05-01", "--config.evaluation.live_from=first_seen")
    assert everything["log"]["list_length"]["least"] == everything["items"] - 1
    assert seen["log"]["list_length"]["most"] <= everything["log"]["list_length"]["most"]
    assert "from its first event in the log" in capsys.readouterr().out
    assert everything["queries"] + everything["left_out"] < 400


def test_without_a_dataset(rank, capsys):
    code, report = rank("--protocol=logged_lists", "--from=2024-05-01", dataset=None)
    assert code == 0
    assert [row["name"] for row in report["rows"]] == ["logged order", "random", "popularity", "item-to-item", "new"]
    assert "Leakage: not checked" in capsys.readouterr().out
    code, report = rank("--protocol=logged_lists", dataset=None)
    assert [row["name"] for row in report["rows"]] == ["logged order", "random", "new"]
    assert "No row popularity or item-to-item" in capsys.readouterr().out


def test_low_recall_is_refused_unless_asked_for(rank, monkeypatch, capsys):
    pytest.importorskip("scann")
    monkeypatch.setattr(
        "eval.protocols.full_catalogue.recall_of_allowed", lambda rows, exact, *, k: np.full(len(rows), 0.5)
    )
    flags = ["--protocol=retrieval", "--scann=brute_force"]
    code, report = rank(*flags)
    assert code == 0
    assert "recall@5 0.500 is under 0.98" in capsys.readouterr().out
    assert report["rows"][-1]["scann"] is None
    assert report["rows"][-1]["scann_refused"]
    _, report = rank(*flags, "--allow_low_recall")
    assert report["rows"][-1]["scann"]["nDCG_exp@5"]["mean"] == pytest.approx(means(report)["new"]["nDCG_exp@5"])


def test_ladder_slices_and_examples(rank, shop_dataset, capsys):
    """What the report has over attributes it has over logs too: of the lists shown, or of the items live then."""
    ids, titles, _ = attributes(shop_dataset, "test")
    for protocol in ("logged_lists", "retrieval"):
        flags = ["--ladder=new", "--reduce=new=truncate:4", "--slice=type", "--against=random"]
        code, report = rank(f"--protocol={protocol}", "--from=2024-04-10", *flags)
        assert code == 0
        assert report["against"] == "random"
        assert any(name.startswith("new, ") for name in means(report))
        full = report["ladders"][0]["rungs"][0]
        assert full["mean"] == pytest.approx(means(report)["new"]["nDCG_exp@5"])
        assert {row["slicing"] for row in (*report["slices"]["slices"], *report["slices"]["small"])} >= {"type"}
        assert report["gains"]
        for example in (*report["gains"], *report["losses"]):
            assert titles[ids.index(example["query"])] == example["title"]
            assert len(example["systems"]) == 2
            for system in example["systems"]:
                listed = [result["id"] for result in system["results"]]
                assert example["query"] not in listed
                assert len(set(listed)) == len(listed) > 1
        assert all(e["values"]["new"] > e["values"]["random"] for e in report["gains"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "attribute_agreement takes no log"),
        (["--protocol=retrieval", "--from=2024-05-02", "--until=2024-05-01"], "is not before --until"),
        (["--protocol=retrieval", "--from=2024-05-01", "--train_until=2024-05-02"], "they overlap"),
        (["--protocol=retrieval", "--train_until=2024-05-02"], "has no begin"),
        (["--protocol=leave_one_out", "--from=2024-05-02", "--train_from=2024-05-01"], "leave them out"),
        (["--protocol=retrieval", "--from=2030-01-01"], "no query to evaluate"),
        (["--protocol=retrieval", "--from=later"], "expected an ISO 8601 time"),
        (["--protocol=retrieval", "--config.evaluation.query_item=anchor"], "expected query_item_id, query_id"),
        (["--protocol=retrieval", "--config.evaluation.live_from=born"], "no such attribute"),
        (["--protocol=retrieval", "--log_column=time"], "expected ours=theirs"),
        (["--protocol=retrieval", "--log_column=time=ts"], "no column ts"),
        (["--protocol=retrieval", "--layout=movielens"], "MovieLens has userId"),
        (["--protocol=retrieval", "--baseline=best"], "expected one of random"),
        (["--protocol=retrieval", "--store=logged order=x"], "'logged order' is named twice"),
        (["--protocol=retrieval", "--train_dataset=nowhere"], "no such folder"),
    ],
)  # fmt: skip
def test_bad_flags(rank, capsys, flags, said):
    code, _ = rank(*flags)
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_store_must_hold_the_catalogue(rank, made, shop_dataset, tmp_path, capsys):
    ids, _, _ = attributes(shop_dataset, "test")
    write_store(tmp_path / "part", [(ids[2:], np.random.default_rng(0).normal(size=(len(ids) - 2, 4)))], manifest={})
    code, _ = rank("--protocol=retrieval", f"--store=part={tmp_path / 'part'}")
    assert code == 2
    assert f"lacks 2 of the catalogue's {len(ids)} items, such as {ids[0]!r}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "part")


def test_equal_seeds_simulate_equal_sessions(made, shop_dataset, config_file, tmp_path):
    run = ["simulate", f"--config={config_file}", f"--dataset={shop_dataset}", "--length=8", "--users=40"]
    assert cli.main([*run, "--queries=400", f"--output={tmp_path / 'again.parquet'}"]) == 0
    first, again = pq.read_table(made / "log.parquet"), pq.read_table(tmp_path / "again.parquet")
    assert first.equals(again)
    assert first.schema.metadata[b"source"] == b"simulated"
    for column in ("query_id", "user_id"):
        assert all(value.startswith("simulated-") for value in first[column].to_pylist())
    taps = first.filter(pa.compute.equal(first["action"], "tap"))["position"].to_numpy()
    assert (taps < 4).mean() > 0.6  # what stands first is seen more
