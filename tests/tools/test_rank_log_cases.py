"""Logs as other tools write them, through `siglip-jax rank`: the value of the plain log, or one line that says what to
type, and then that value.
"""

import csv
import datetime
import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax import cli

ITEMS = [str(100_000 + n) for n in range(40)]
BEGIN = datetime.datetime(2024, 4, 1, tzinfo=datetime.UTC)


def plain_log(action=None, queries=36):
    """Lists of seven items, up to three of them tapped; two or three lists a user."""
    rng = random.Random(0)
    rows = []
    for query in range(queries):
        asked, *shown = rng.sample(ITEMS, 8)
        time = BEGIN + datetime.timedelta(hours=5 * query)
        common = {"query_id": f"q{query}", "user_id": f"u{query % 15}", "query_item_id": asked}
        events = [(time, position, "impression") for position in range(7)]
        for position in sorted(rng.sample(range(7), rng.choice([1, 2, 3]))):
            events.append((time + datetime.timedelta(seconds=9), position, "tap"))
        for time, position, done in events:
            rows.append({**common, "time": time, "item_id": shown[position], "position": position, "action": done})
    return [row for row in rows if action in (None, row["action"])]


def to_parquet(rows, path):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def to_csv(rows, path, *, index=False, sep=","):
    """As pandas writes it."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=sep)
        writer.writerow([*([""] if index else []), *rows[0]])
        for number, row in enumerate(rows):
            writer.writerow([*([number] if index else []), *("" if v is None else v for v in row.values())])
    return path


def to_jsonl(rows, path):
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cases")
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 4)).astype(np.float32)
    np.savez(root / "good.npz", ids=np.array(ITEMS), embeddings=vectors)
    columns = {"id": ITEMS, **{f"v{k}": vectors[:, k] for k in range(4)}}
    pq.write_table(pa.table({**columns, "__index_level_0__": np.arange(len(ITEMS))}), root / "index.parquet")
    to_parquet(plain_log(), root / "plain.parquet")
    return root


@pytest.fixture
def rank(folder, tmp_path, capsys):
    """rank(log, *flags) -> {row: {metric: mean}}, or the one line of exit 2."""

    def run(log, *flags, protocol="logged_lists"):
        given = [f"--logs={log}", f"--store=good={folder / 'good.npz'}", f"--protocol={protocol}"]
        given += ["--scann=none", "--baseline=random", f"--output={tmp_path / 'x.html'}"]
        capsys.readouterr()
        code = cli.main(["rank", *given, *flags])
        captured = capsys.readouterr()
        if code:
            assert code == 2
            assert captured.err.count("\n") == 1
            return captured.err
        report = json.loads((tmp_path / "x.json").read_text())
        run.notes = " ".join(report["notes"])
        return {row["name"]: {name: cell["mean"] for name, cell in row["exact"].items()} for row in report["rows"]}

    run.notes = ""
    return run


@pytest.fixture(scope="module")
def value():
    """{protocol: {row: ...}} of the plain log, measured once."""
    return {}


@pytest.fixture
def of_plain(rank, folder, value):
    def measured(protocol="logged_lists"):
        if protocol not in value:
            value[protocol] = rank(folder / "plain.parquet", protocol=protocol)
        return value[protocol]

    return measured


def test_pandas_index_is_no_dimension(rank, folder):
    said = rank(folder / "plain.parquet", f"--store=x={folder / 'index.parquet'}")
    assert "columns '__index_level_0__' beside id and 4 named v0" in said
    assert "to_parquet(..., index=False)" in said


def test_unnamed_first_column(rank, of_plain, tmp_path):
    assert rank(to_csv(plain_log(), tmp_path / "log.csv", index=True)) == of_plain()


def test_log_of_clicks_alone(rank, of_plain, tmp_path):
    log = to_parquet(plain_log("tap"), tmp_path / "log.parquet")
    said = rank(log)
    assert "lists every item was acted upon" in said
    assert "--protocol=retrieval, leave_one_out" in said
    assert rank(log, protocol="leave_one_out") == of_plain("leave_one_out")


def test_log_of_hardly_any_impressions(rank, tmp_path):
    """Of one list in ten: the others have no wrong order, and random would score 0.97."""
    taps = {(row["query_id"], row["item_id"]) for row in plain_log("tap")}
    rows = [row for row in plain_log() if (row["query_id"], row["item_id"]) in taps or row["query_id"] in ("q1", "q20")]
    said = rank(to_parquet(rows, tmp_path / "log.parquet"))
    assert "lists every item was acted upon" in said
    assert "hardly any" in said


@pytest.mark.parametrize("column", ["item_id", "query_item_id"])
@pytest.mark.parametrize("kept", [0, 1])
def test_ids_that_do_not_join(rank, tmp_path, column, kept):
    """None of them, and all but one: an id of each side, and why."""
    known = {row[column] for row in plain_log()[:kept]}
    rows = [row if row[column] in known else {**row, column: f"00{row[column]}"} for row in plain_log()]
    said = rank(to_parquet(rows, tmp_path / "log.parquet"))
    assert "they differ in leading zeros" in said
    assert "'00100" in said
    assert "'100" in said


def test_some_ids_that_do_not_join_are_a_note_with_the_cause(rank, tmp_path):
    rows = [row if row["item_id"] in ITEMS[:30] else {**row, "item_id": f"{row['item_id']}-b"} for row in plain_log()]
    rank(to_parquet(rows, tmp_path / "log.parquet"))
    assert "Many differ in what stands behind it, a suffix: the catalogue has '1000" in rank.notes


def test_two_rows_without_a_hit(rank, tmp_path):
    """Of each list the two tapped items are what both rows put last."""
    vectors = {item: [1.0, 0.001 * n] for n, item in enumerate(ITEMS)}
    rows = []
    for query in range(30):
        asked, *shown = ITEMS[0], *ITEMS[1:9], *ITEMS[38:]
        common = {"query_id": f"q{query}", "user_id": f"u{query}", "query_item_id": asked, "time": BEGIN}
        rows += [{**common, "item_id": item, "action": "impression"} for item in shown]
        rows += [{**common, "item_id": item, "action": "tap"} for item in ITEMS[38:]]
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", ids=np.array(ITEMS), embeddings=np.array(list(vectors.values())))
    flags = [f"--store={name}={tmp_path / name}.npz" for name in ("one", "two")]
    said = rank(to_parquet(rows, tmp_path / "log.parquet"), *flags)
    assert "nDCG_exp@5 of two and of one is 0 in all 30 queries" in said


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_ids_that_a_missing_value_made_floats(rank, of_plain, tmp_path, suffix):
    whole = plain_log()
    rows = [{**row, **{name: float(row[name]) for name in ("item_id", "query_item_id")}} for row in whole]
    rows.append({**rows[0], "item_id": None})
    write = to_parquet if suffix == "parquet" else to_csv
    assert rank(write(rows, tmp_path / f"log.{suffix}")) == of_plain()
    assert "left out 1 no item" in rank.notes
    assert ("as the catalogue has it" in rank.notes) == (suffix == "csv")


def test_key_that_begins_late(rank, of_plain, tmp_path):
    rows = plain_log()
    for row in rows[:100]:
        del row["position"]
    found = rank(to_jsonl(rows, tmp_path / "log.jsonl"))
    assert found.pop("logged order")  # of the later lists
    assert found == {name: row for name, row in of_plain().items() if name != "logged order"}


def test_a_randomised_bucket_with_platforms(rank, of_plain, tmp_path, capsys):
    """Positions from 1 are noticed; what each would have earned stands in the report, platforms among the slices."""
    rows = [
        {
            **row,
            "position": row["position"] + 1,
            "randomised": "true",
            "platform": row["user_id"][:2],
        }
        for row in plain_log()
    ]
    log = to_csv(rows, tmp_path / "log.csv")
    assert rank(log, "--segment=platform") == of_plain()
    assert "positions begin at 1" in rank.notes
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["off_policy"]["lists"] == 36
    taps = [row for row in plain_log("tap") if row["position"] < 5]
    for cell in report["off_policy"]["rows"]["logged order"].values():
        assert cell["mean"] == pytest.approx(len(taps) / 36)
    assert "chance put these lists in order" in report["row_notes"]["logged order"]
    assert {row["slicing"] for row in report["slices"]["small"]} >= {"platform", "user", "hour, UTC"}
    said = rank(log, "--segment=colour")
    assert "no column colour, which --segment or --cluster names; columns are query_id, user_id" in said
    propensities = [{**row, "propensity": 1.5 if n == 0 else 0.25} for n, row in enumerate(plain_log())]
    rank(to_csv(propensities, tmp_path / "log.csv"))
    assert "left out 1 impossible propensity" in rank.notes


def test_similarity_is_named_and_a_default_that_decides_is_said(rank, of_plain, tmp_path):
    log = to_parquet(plain_log(), tmp_path / "log.parquet")
    assert rank(log, "--similarity=cosine") == of_plain()
    assert "--similarity=dot" not in rank.notes
    assert rank(log) == of_plain()
    assert "of several lengths" in rank.notes
    assert "--similarity=dot takes the inner product" in rank.notes
    assert rank(log, "--similarity=dot")["good"] != of_plain()["good"]
    assert json.loads((tmp_path / "x.json").read_text())["similarity"] == "dot"
    assert "--similarity=dot with --reduce" in rank(log, "--similarity=dot", "--reduce=good=pca:2")


def test_ga4_export(rank, of_plain, tmp_path):
    events = []
    for (query, action), rows in itertools.groupby(plain_log(), key=lambda row: (row["query_id"], row["action"])):
        shown = list(rows)
        events.append({
            "event_timestamp": str(int(shown[0]["time"].timestamp() * 1e6)),
            "event_name": {"impression": "view_item_list", "tap": "select_item"}[action],
            "event_params": [{"key": "ga_session_id", "value": {"int_value": query}}],
            "user_pseudo_id": shown[0]["user_id"],
            "items": [{"item_id": row["item_id"], "index": str(row["position"])} for row in shown],
        })  # fmt: skip
    said = rank(to_jsonl(events, tmp_path / "ga4.jsonl"))
    assert "several items, in column items" in said
    assert "UNNEST(items)" in said
    asked = {row["query_id"]: row["query_item_id"] for row in plain_log()}
    flat = []  # what that query gives, with a session's id and item
    for event in events:
        session = event.pop("event_params")[0]["value"]["int_value"]
        flat += [{**event, **item, "session": session, "asked": asked[session]} for item in event.pop("items")]
    log = to_jsonl(flat, tmp_path / "flat.jsonl")
    flags = ["--log_column=position=index", "--log_column=query_item_id=asked"]
    said = rank(log, *flags)
    assert "no columns user_id, time, action" in said
    flags += ["--log_column=user_id=user_pseudo_id", "--log_column=time=event_timestamp"]
    flags += ["--log_column=action=event_name", "--log_column=query_id=session"]
    assert all(flag in said for flag in flags[2:5])
    said = rank(log, *flags)
    named = ["--log_action=impression=view_item_list", "--log_action=tap=select_item"]
    assert all(flag in said for flag in named)
    assert rank(log, *flags, *named) == of_plain()
    assert "times read as microseconds since 1970" in rank.notes


def test_semicolons_users_na_and_no_action(rank, tmp_path):
    """As Diginetica has it: every row is a click, of a session more often than of a user."""
    taps = [{**row, "time": row["time"].date().isoformat()} for row in plain_log("tap")]
    views = [
        {"sessionId": r["user_id"], "userId": "NA", "itemId": r["item_id"], "timeframe": 1, "eventdate": r["time"]}
        for r in taps
    ]
    log, protocol = to_csv(views, tmp_path / "views.csv", sep=";"), {"protocol": "leave_one_out"}
    said = rank(log, **protocol)
    flags = ["--log_column=user_id=userId", "--log_column=time=eventdate", "--log_column=item_id=itemId"]
    assert all(flag in said for flag in [*flags, "--log_action=tap"])
    said = rank(log, *flags, "--log_action=tap", **protocol)
    assert f"no usable row among {len(taps)} ({len(taps)} no user)" in said
    flags[0] = "--log_column=user_id=sessionId"
    found = rank(log, *flags, "--log_action=tap", **protocol)
    assert "read with ';' between its fields" in rank.notes
    assert found == rank(to_parquet(taps, tmp_path / "same.parquet"), **protocol)


def test_click_columns(rank, of_plain, tmp_path):
    """As the Open Bandit data has it: a row for each item shown, with 0 or 1 for a click."""
    taps = {(row["query_id"], row["item_id"]) for row in plain_log("tap")}
    shown = [
        {
            "timestamp": row["time"],
            "item_id": row["item_id"],
            "position": row["position"] + 1,
            "click": int((row["query_id"], row["item_id"]) in taps),
            "propensity_score": 0.05,
            "user_feature_0": row["user_id"],
        }
        for row in plain_log("impression")
    ]
    log, protocol = to_csv(shown, tmp_path / "bandit.csv", index=True), {"protocol": "leave_one_out"}
    said = rank(log, **protocol)
    assert "no columns user_id, action; columns are column 1 without a name, timestamp" in said.replace(", time,", ",")
    flags = ["--log_column=time=timestamp", "--log_column=action=click"]
    assert all(flag in said for flag in flags)
    flags += ["--log_column=user_id=user_feature_0", "--config.evaluation.first_position=1"]
    said = rank(log, *flags, **protocol)
    named = ["--log_action=impression=0", "--log_action=tap=1"]
    assert all(flag in said for flag in named)
    assert rank(log, *flags, *named, **protocol) == of_plain("leave_one_out")
    assert "leave_one_out" in rank(log, *flags, *named)  # a list of it has no id
