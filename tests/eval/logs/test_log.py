"""Logs read from every format, checked row by row; their queries against a plain loop over the events."""

import csv
import datetime
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.logs import LogFormat, known_items, read_log, read_queries, repeated_queries
from eval.logs.live_items import live_items
from eval.logs.log_files import log_files, movielens_columns
from eval.logs.log_times import iso, parse_time, times_of
from eval.logs.queries import heavy_users
from siglip_jax.errors import UserError

ACTIONS = {"tap": 1, "like": 2, "purchase": 3}
FORM = LogFormat(actions=ACTIONS)
IDS = [f"i{n}" for n in range(20)]
COLUMNS = ("query_id", "user_id", "time", "item_id", "position", "action", "query_item_id", "list_id")


def event(
    query="q1", item="i1", action="impression", *, user="u1", time=1_700_000_000, position=None, asked="i0", of=""
):
    return dict(zip(COLUMNS, (query, user, time, item, position, action, asked, of), strict=True))


def some_events(seed=0, queries=60):
    """Random sessions with several lists, several actions on an item, and events in no order."""
    rng = random.Random(seed)
    events = []
    for query in range(queries):
        begin = 1_700_000_000 + rng.randrange(10**6)
        common = {"user": f"u{rng.randrange(9)}", "asked": f"i{rng.randrange(20)}"}
        for part in range(rng.choice([1, 1, 2])):
            for position, item in enumerate(rng.sample(range(23), rng.randrange(1, 8))):
                shown = {"query": f"q{query}", "item": f"i{item}", "of": f"l{part}", **common}
                events.append(event(**shown, time=begin + part, position=position))
                for action in ACTIONS:
                    if rng.random() < 0.2:
                        events.append(event(**shown, time=begin + 5 + rng.randrange(50), action=action))
    rng.shuffle(events)
    return events


def write(path, events, *, columns=COLUMNS, names=None):
    names = names or columns
    rows = [[e[column] for column in columns] for e in events]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({n: [row[k] for row in rows] for k, n in enumerate(names)}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([names, *(["" if v is None else v for v in row] for row in rows)])
    return path


@pytest.fixture
def read(tmp_path):
    """read(events or paths, form=FORM) -> an open Log; closed at the end."""
    logs = []

    def open_log(events, form=FORM, ids=IDS, suffix=".parquet"):
        paths = [str(write(tmp_path / f"log{len(logs)}{suffix}", events))] if isinstance(events, list) else [events]
        logs.append(read_log(paths, items=ids, form=form, show=False))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def rows_of(log):
    return sorted(
        map(
            str,
            log.sql.execute('select query, list, "user", item, time, position, action, gain from events').fetchall(),
        )
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_holds_the_same_log(read, suffix):
    events = some_events()
    assert rows_of(read(events, suffix=suffix)) == rows_of(read(events))


def test_a_folder_is_read_whole(tmp_path, read):
    events = some_events()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    write(tmp_path / "in" / "a.csv", events[:50])
    write(tmp_path / "in" / "deep" / "b.jsonl", events[50:])
    (tmp_path / "in" / "readme.txt").write_text("no log")
    assert rows_of(read(str(tmp_path / "in"))) == rows_of(read(events))


def test_columns_of_other_names(tmp_path, read):
    names = ["q", "who", "ts", "thing", 'po"s', "action", "query_item_id", "list_id"]
    events = some_events()
    path = write(tmp_path / "other.csv", events, names=names)
    columns = {"query_id": "q", "user_id": "who", "time": "ts", "item_id": "thing", "position": 'po"s'}
    assert rows_of(read(str(path), LogFormat(ACTIONS, columns=columns))) == rows_of(read(events))


def test_times():
    texts = ["2024-07-01", "2024-07-01T06:00:00Z", "2024-07-01 06:00:00.25+02:00", "1700000000", "1700000000123"]
    texts += ["1700000000123456", "1700000000123456789", "964982703.5", ""]
    utc = datetime.UTC
    expected = [
        datetime.datetime(2024, 7, 1, tzinfo=utc),
        datetime.datetime(2024, 7, 1, 6, tzinfo=utc),
        datetime.datetime(2024, 7, 1, 4, 0, 0, 250_000, tzinfo=utc),
    ]
    micro = [round(t.timestamp() * 1e6) for t in expected]
    micro += [
        1_700_000_000_000_000,
        1_700_000_000_123_000,
        *[1_700_000_000_123_456] * 2,
        964_982_703_500_000,
    ]
    assert times_of(texts, what="time", ids=texts).tolist() == [*micro, np.iinfo(np.int64).min]
    assert iso(micro[1]) == "2024-07-01T06:00:00Z"
    with pytest.raises(UserError, match=r"--from=soon.*ISO 8601"):
        parse_time("soon", flag="--from")


def test_parquet_times_keep_their_zone(tmp_path, read):
    when = datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.UTC)
    plain = [event(time=t) for t in (when.isoformat(), when.timestamp())]
    typed = pa.table(
        {**{c: [plain[0][c]] for c in COLUMNS}, "time": pa.array([when], pa.timestamp("ns", "Asia/Tokyo"))}
    )
    pq.write_table(typed, tmp_path / "typed.parquet")
    found = [
        log.sql.arrays("select time from events")[0].tolist()
        for log in (read(plain[:1]), read(plain[1:]), read(str(tmp_path / "typed.parquet")))
    ]
    assert found == [[round(when.timestamp() * 1e6)]] * 3


def test_impossible_rows_are_counted_by_kind_or_refused(read):
    good = [event(position=0), event(action="tap")]
    bad = [
        event(time="yesterday"),
        event(time=None),
        event(user=None),
        event(item=""),
        event(query=None),
        event(action=None),
        event(position=-1),
        event(position=0.5),
        event(position="first"),
        good[0],
    ]
    log = read([*good, *bad], suffix=".jsonl")
    assert log.counts["rows"] == 12
    assert log.counts["events"] == 2
    assert log.counts["skipped"] == {
        "duplicate row": 1,
        "impossible position": 3,
        "no action": 1,
        "no item": 1,
        "no query": 1,
        "no time": 2,
        "no user": 1,
    }
    with pytest.raises(UserError, match=r"1 duplicate row, 3 impossible position.*among 12 rows"):
        read([*good, *bad], LogFormat(ACTIONS, on_error="error"), suffix=".jsonl")
    with pytest.raises(UserError, match="no usable row among 2"):
        read(bad[:2], suffix=".jsonl")
    one_based = [event(position=1), event(item="i2", position=0)]
    assert read(one_based, LogFormat(ACTIONS, first_position=1)).counts["skipped"] == {"impossible position": 1}


def test_an_action_without_a_gain_is_named_with_its_count(read):
    events = [event(), *(event(item=f"i{n}", action="wish") for n in range(3)), event(action="share")]
    with pytest.raises(UserError, match=r"'wish' \(3 rows\), 'share' \(1 rows\).*config.evaluation.actions"):
        read(events)
    assert read(events, LogFormat({**ACTIONS, "wish": 0, "share": 0.5})).counts["actions"]["wish"] == 3


@pytest.mark.parametrize(
    ("actions", "said"),
    [({"tap": -1}, "nothing is worth"), ({"tap": "much"}, "tap='much'"), ({"tap": 0}, "nothing is worth"),
     ({}, "nothing is worth"),
     ({"impression": 1}, "being shown is worth 0"), ({"tap": float("nan")}, "tap=nan"), ({"tap": True}, "tap=True")],
)  # fmt: skip
def test_gains_that_are_none(read, actions, said):
    with pytest.raises(UserError, match=said):
        read([event()], LogFormat(actions))


def test_damaged_files_say_which_and_why(tmp_path):
    def refused(name, content, said, form=FORM):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            read_log([str(path)], items=IDS, form=form, show=False)

    header = b"query_id,user_id,time,item_id,action\n"
    refused("a.csv", header + b"q,u,1,i1,tap\nq,u,1\n", "a.csv: line 3 has 3 fields; expected 5")
    refused("b.jsonl", b'{"query_id": 1', "b.jsonl: line 1 is not JSON")
    refused("c.parquet", b"nothing", "c.parquet: it is no Parquet file")
    refused("d.csv", b"", "d.csv: the first line is ''")
    refused("e.csv", b"a,a\n", "column names, each once")
    refused("f.csv", b"user_id,time,action\n", "no column item_id; columns are user_id, time, action; .*--log_column")
    refused("g.csv", b"user_id,time,item_id\n", "no column action")
    refused("h.csv", b"\xff\xfe", "h.csv: line 1 is not UTF-8")
    refused("i.csv", header, "no column ts", LogFormat(ACTIONS, columns={"time": "ts"}))
    refused("j.csv", header, "log_columns: 'when'", LogFormat(ACTIONS, columns={"when": "ts"}))
    refused("k.csv", header, "no usable row among 0")
    refused("l.txt", b"", r"expected a file that ends in .parquet")
    for paths, said in (
        (["/nowhere"], "no such file"),
        (["gs://bucket/log"], "local disk"),
        ([str(tmp_path / "a.csv")] * 2, "named twice"),
    ):
        with pytest.raises(UserError, match=said):
            log_files(paths)
    (tmp_path / "log[1].csv").write_bytes(header)
    with pytest.raises(UserError, match="rename it"):
        log_files([str(tmp_path / "log[1].csv")])


def test_ratings_are_likes_from_a_number_on(tmp_path, read):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,5,4.0,964982703\n1,6,3.5,964982704\n2,5,,7\n"
    )
    columns = movielens_columns([str(tmp_path / "ratings.csv")])
    log = read(str(tmp_path / "ratings.csv"), LogFormat({"like": 1}, columns=columns, like_from=4), ids=["5", "6"])
    assert log.counts["actions"] == {"like": 1, "rated": 1}
    assert log.counts["skipped"] == {"no action": 1}
    (tmp_path / "interactions.tsv").write_text("user_id\titem_id\trating\ttimestamp\n")
    assert movielens_columns([str(tmp_path / "interactions.tsv")]) == {"time": "timestamp"}
    with pytest.raises(UserError, match="MovieLens has userId"):
        movielens_columns([str(write(tmp_path / "none.csv", [event()]))])
    with pytest.raises(UserError, match='needs a gain of "like"'):
        read([event()], LogFormat({"tap": 1}, like_from=4))


# --- queries ----------------------------------------------------------------------------------------------------------


def by_hand(events, *, lists, since=0, until=2e9):
    """{(query, list): (user, asked, {item: (gain, position)})}, by a loop."""
    found, begins = {}, {}
    for e in events:
        begins[e["query_id"]] = min(e["time"], begins.get(e["query_id"], 2e9))
    for e in events:
        if not (since <= begins[e["query_id"]] < until) or e["item_id"] == e["query_item_id"]:
            continue
        key = (e["query_id"], e["list_id"] if lists else "")
        _, _, items = found.setdefault(key, (e["user_id"], e["query_item_id"], {}))
        gain, position = items.get(e["item_id"], (0, -1))
        places = [p for p in (position, e["position"]) if p is not None and p >= 0]
        items[e["item_id"]] = (max(gain, ACTIONS.get(e["action"], 0)), min(places, default=-1))
    if not lists:
        for _, _, items in found.values():
            for item in [item for item, (gain, _) in items.items() if not gain]:
                del items[item]
    return found


def as_dict(log, queries):
    users, items = log.user_names(), log.item_names()
    owner = queries.owner
    return {
        (queries.ids[i], queries.list_ids[i]): (
            users[queries.users[i]],
            items[queries.items[i]],
            {
                items[queries.candidates[k]]: (int(queries.gains[k]), int(queries.positions[k]))
                for k in np.flatnonzero(owner == i)
            },
        )
        for i in range(len(queries))
    }


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("window", [{}, {"since": 1_700_300_000, "until": 1_700_700_000}])
def test_queries_equal_a_loop(read, lists, window):
    events = some_events(seed=3)
    log = read(events)
    micro = {name: value * 1_000_000 for name, value in window.items()}
    queries = read_queries(log, query_item="query_item_id", lists=lists, **micro)
    expected = by_hand(events, lists=lists, **window)
    found = as_dict(log, queries)
    if not lists:  # a query without anything of worth stays, to be counted as left out
        expected = {key: value for key, value in expected.items() if value[2]}
        found = {key: value for key, value in found.items() if value[2]}
    assert found == expected
    assert (np.diff(queries.times) >= 0).all()
    candidates, gains, positions = queries.padded(2, 9)
    for row, query in enumerate(range(2, 9)):
        part = slice(queries.starts[query], queries.starts[query + 1])
        length = part.stop - part.start
        for padded, flat, empty in ((candidates, "candidates", -1), (gains, "gains", 0), (positions, "positions", -1)):
            np.testing.assert_array_equal(padded[row, :length], getattr(queries, flat)[part])
            assert (padded[row, length:] == empty).all()
    if lists:
        for query in range(len(queries)):
            place = queries.positions[queries.starts[query] : queries.starts[query + 1]]
            assert (np.diff(place[place >= 0]) >= 0).all()


def test_what_speaks_against_an_item_outweighs_what_speaks_for_it(read):
    form = LogFormat({**ACTIONS, "hide": -1, "report": -3})
    actions = {"i1": ["tap", "hide"], "i2": ["purchase", "report", "hide"], "i3": ["tap", "like"], "i4": []}
    events = [event(item=item, action=action) for item, done in actions.items() for action in ["impression", *done]]
    queries = read_queries(read(events, form), query_item="query_item_id", lists=True)
    assert dict(zip(queries.candidates.tolist(), queries.gains.tolist(), strict=True)) == {1: -1, 2: -3, 3: 2, 4: 0}
    whole = read_queries(read(events, form), query_item="query_item_id", lists=False)
    assert whole.candidates.tolist() == [3]


def test_what_the_log_says_of_chance_and_segments(read, tmp_path):
    rows = [
        {
            **event(item=f"i{n}", position=n, time=1_700_000_000 + 60 * (n == 1)),
            "propensity": p,
            "randomised": r,
            "app": a,
        }
        for n, (p, r, a) in enumerate([("0.5", "true", "ios"), ("0.25", "0", "web"), ("", "", "")])
    ]
    rows.append({**rows[0], "item_id": "i9", "propensity": "1.5"})
    path = tmp_path / "log.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    log = read(str(path), LogFormat(ACTIONS, segments=("app",)))
    assert log.counts["skipped"] == {"impossible propensity": 1}
    queries = read_queries(log, query_item="query_item_id", lists=True)
    np.testing.assert_array_equal(queries.propensities, [0.25, np.nan])  # i0 is the query item
    assert queries.randomised.tolist() == [False]
    assert queries.segments["app"].tolist() == ["ios"]
    kept = queries.keep(np.array([False]), reason="none")
    assert (len(kept.segments["app"]), len(kept.propensities), len(kept.randomised)) == (0, 0, 0)


def test_unusable_queries_are_counted_by_reason(read):
    events = [
        *(event(query="ok", item=f"i{n}", position=n) for n in range(3)),
        event(query="two users", user="u1"),
        event(query="two users", user="u2"),
        event(query="two items", asked="i3"),
        event(query="two items", asked="i4", item="i5"),
        event(query="nothing asked", asked=None),
        event(query="gone", asked="unheard of"),
    ]
    queries = read_queries(read(events), query_item="query_item_id", lists=True)
    assert queries.ids.tolist() == ["ok"]
    assert queries.left_out == {
        "no query item": 1,
        "query item not in the catalogue": 1,
        "several query items": 1,
        "several users": 1,
    }
    assert queries.dropped == {"the query item itself": {"candidates": 1, "relevant": 0}}  # i0 in the list of i0


def test_the_query_item_may_be_the_query_or_the_first_action(read):
    events = [event(query="i7", item="i1"), event(query="i7", item="i2", action="tap", time=1_700_000_009)]
    events += [
        event(query="i7", item="i3", time=1_700_000_020),
        event(query="i7", item="i4", action="like", time=1_700_000_030),
    ]
    log = read(events)
    queries = read_queries(log, query_item="query_id", lists=False)
    assert as_dict(log, queries)["i7", ""][1:] == ("i7", {"i2": (1, -1), "i4": (2, -1)})
    queries = read_queries(log, query_item="first:tap", lists=True)
    assert as_dict(log, queries)["i7", ""][1:] == ("i2", {"i3": (0, -1), "i4": (2, -1)})
    assert queries.times.tolist() == [1_700_000_009 * 10**6]
    for wrong, said in (("first:purchase", "no event 'purchase'"), ("anchor", "expected query_item_id, query_id")):
        with pytest.raises(UserError, match=said):
            read_queries(log, query_item=wrong, lists=True)


def test_items_that_the_catalogue_lacks(read):
    log = read([event(item="i1"), event(item="new", action="tap"), event(item="newer"), event(item="i2", action="tap")])
    queries = read_queries(log, query_item="query_item_id", lists=True)
    assert log.counts["unknown_items"] == 2
    known = known_items(queries, items=len(IDS), rule="skip")
    assert as_dict(log, known)["q1", ""][2] == {"i1": (0, -1), "i2": (1, -1)}
    assert known.dropped == {"not in the catalogue": {"candidates": 2, "relevant": 1}}
    with pytest.raises(UserError, match="2 candidates of 1 queries are not in the catalogue"):
        known_items(queries, items=len(IDS), rule="error")


def test_a_query_written_twice_is_found(read):
    events = some_events(seed=5)
    again = [{**e, "query_id": "again"} for e in events if e["query_id"] == "q7"]
    queries = read_queries(read(events), query_item="query_item_id", lists=True)
    doubled = read_queries(read([*events, *again]), query_item="query_item_id", lists=True)
    assert not repeated_queries(queries).any()
    repeated = repeated_queries(doubled)
    assert repeated.sum() == (queries.ids == "q7").sum() > 0
    assert set(doubled.ids[repeated]) <= {"q7", "again"}
    other = [{**e, "action": "tap" if e["action"] == "impression" else e["action"]} for e in again]
    assert not repeated_queries(read_queries(read([*events, *other]), query_item="query_item_id", lists=True)).any()


def test_a_user_far_above_the_others_is_found(read):
    events = some_events()
    assert heavy_users(read(events)) == {}
    clicks = [event(query=f"h{n}", user="robot", action="tap", time=1_700_000_000 + n) for n in range(10_000)]
    assert heavy_users(read([*events, *clicks])) == {"robot": 10_000}


def test_live_items(read):
    columns = {"created": ["2024-01-01", "", "1700000000"], "gone": ["", "2024-03-01", ""]}
    live = live_items(columns, ["a", "b", "c"], live_from="created", live_until="gone")
    at = times_of(["2023-12-31", "2024-01-01", "2024-03-01"], what="", ids=["", "", ""])
    assert live.at(at).tolist() == [[False, True, True], [True, True, True], [True, False, True]]
    assert live.unknown == 1
    assert live.pairs(np.array([0, 1]), at[[0, 2]]).tolist() == [False, False]
    log = read(
        [event(item="a", time=50), event(item="a", time=40), event(item="c", time=45)],
        form=LogFormat(ACTIONS, time_unit="s"), ids=["a", "b", "c"],
    )  # fmt: skip
    assert log.counts["skipped"] == {}
    seen = live_items({}, ["a", "b", "c"], live_from="first_seen", log=log)
    assert seen.at(np.array([39, 40, 45]) * 10**6).tolist() == [[False] * 3, [True, False, False], [True, False, True]]
    assert live_items({}, ["a"]).at(np.array([0])).all()
    with pytest.raises(UserError, match="live_from='born': no such attribute; the catalogue has created, gone"):
        live_items(columns, ["a", "b", "c"], live_from="born")
    with pytest.raises(UserError, match="created of item 'a' is 'soon'"):
        live_items({"created": ["soon"]}, ["a"], live_from="created")
