"""Logs and embedding tables, damaged in every way that a draw comes upon: read, each row counted, or one clear line."""

import contextlib
import csv
import datetime
import decimal
import io
import json
import pathlib
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.embeddings.embedding_files import read_embeddings
from eval.embeddings.stored_vectors import open_vectors
from eval.logs import LogFormat, known_items, read_log, read_queries
from siglip_jax.errors import UserError

ITEMS = [*(str(100 + n) for n in range(12)), "tailoré", "東京", "a,b"]
FORM = LogFormat(actions={"tap": 1, "like": 2})
BEGIN = datetime.datetime(2024, 4, 1, tzinfo=datetime.UTC)
INTERNAL = re.compile(  # what a database, a parser or Python says to those who write programs
    r"(Binder|Conversion|Invalid Input|Parser|Catalog|IO|Out of Range|Invalid) Error|LINE \d|struct_pack|read_csv|"
    r"Traceback|NoneType|codec can't|object at 0x|Arrow|numpy\.",
)
VALUES = [
    *("", " ", "NA", "null", "None", "nan", "100.0", "1e3", "007", "é", "東京", "a,b", 'a"b', "a\tb", "a\nb", "a\r\nb"),
    *("'); drop table raw; --", "\x00", "\ufeff", "\u200b", "x" * 5000, "-1", "9" * 23, "true", "[1, 2]", "{}", "a'b"),
]  # fmt: skip
TIMES = [
    *("2024-04-01", "2024-04-01 10:00:00 UTC", "2024-04-01T10:00:00+0530", "20240401", "2024040110", "1711929600"),
    *("1711929600000", "1711929600.5", "1.7e9", "0", "-1", "5", "infinity", "-infinity", "epoch", "NaT", "99999-01-01"),
    *("2024-02-30", "24:00", "1e99", "1" * 40, "2024-04-01T25:00", "01/04/2024", "2024-04-01 10:00:00 Mars/Phobos"),
]
DAMAGE = b"\x00\xff\xfe\n\r\t\",;'{}[]\\ \x1a0eE"


def log_rows(rng):
    """Two or three lists, with taps: [{column: value}]."""
    rows = []
    for query in range(rng.choice([2, 3])):
        asked, *shown = rng.sample(ITEMS, 5)
        for position, item in enumerate(shown):
            time = (BEGIN + datetime.timedelta(minutes=query)).isoformat()
            row = {"query_id": f"q{query}", "user_id": f"u{query % 2}", "time": time, "item_id": item}
            rows.append({**row, "position": str(position), "action": "impression", "query_item_id": asked})
            if position == query:
                rows.append({**rows[-1], "action": "tap"})
    return rows


def embedding_rows(rng):
    return [{"id": item, **{f"v{k}": repr(rng.uniform(-1, 1)) for k in range(3)}} for item in ITEMS]


def mutate_columns(rows, rng):
    """Named, ordered, dropped, added or filled in another way; as many rows as before."""
    names = list(rows[0])
    name = rng.choice(names)
    other = rng.choice(
        ["", " ", name.upper(), f" {name}", f"{name}_2", "é", 'a"b', "a,b", "a;b", "select", "x" * 300, "0", *names]
    )
    match rng.choice(["rename", "drop", "add", "shuffle", "empty", "same", "swap"]):
        case "rename":
            rows = [{other if key == name else key: value for key, value in row.items()} for row in rows]
        case "drop":
            rows = [{key: value for key, value in row.items() if key != name} for row in rows]
        case "add":
            rows = [{**row, other: rng.choice(VALUES)} for row in rows]
        case "shuffle":
            rng.shuffle(names)
            rows = [{key: row[key] for key in names} for row in rows]
        case "empty":
            rows = [{**row, name: ""} for row in rows]
        case "same":
            value = rng.choice(VALUES)
            rows = [{**row, name: value} for row in rows]
        case "swap":
            rows = [{**row, name: row[rng.choice(names)]} for row in rows]
    return rows


def mutate_values(rows, rng):
    """One to all of the cells of one column; as many rows as before."""
    name = "time" if "time" in rows[0] and rng.random() < 0.5 else rng.choice(list(rows[0]))
    share, values = rng.choice([0.05, 0.5, 1]), TIMES if name == "time" else VALUES
    fixed = rng.choice(values)
    return [
        {**row, name: rng.choice([fixed, rng.choice(values)]) if rng.random() < share else row.get(name, "")}
        for row in rows
    ]


def mutate_bytes(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 1, 3, 40])
        match rng.choice(["put", "cut", "end", "again", "set"]):
            case "put":
                content[at:at] = bytes(rng.choice(DAMAGE) for _ in range(length))
            case "cut":
                del content[at : at + length]
            case "end":
                del content[max(at, 1) :]
            case "again":
                content[at:at] = content[at : at + 20 * length]
            case "set":
                content[at : at + length] = bytes(rng.randrange(256) for _ in range(length))
    return bytes(content)


def encode(text, rng):
    match rng.choice(["utf-8"] * 6 + ["utf-8-sig", "cp1252", "utf-16", "cp932", "utf-32-le"]):
        case "utf-8":
            return text.encode("utf-8", "surrogatepass")
        case other:
            return text.encode(other, "replace")


def as_text(rows, suffix, rng):
    if suffix == "jsonl":
        odd = lambda value: rng.choice([value, [value], {"a": value}, None, 1.5, 10**30, True])  # noqa: E731
        rows = [{k: odd(v) if rng.random() < 0.02 else v for k, v in row.items()} for row in rows]
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)
    file = io.StringIO()
    delimiter = rng.choice([",", ",", ",", ";", "|", "\t"]) if suffix == "csv" else "\t"
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(
        file, delimiter=delimiter, quoting=quoting, lineterminator=rng.choice(["\n", "\n", "\r\n", "\r"])
    )
    writer.writerows([list(rows[0]), *([row.get(key, "") for key in rows[0]] for row in rows)])
    return file.getvalue()


def parquet_column(values, rng):
    """As text, or as another type where the values allow it."""
    unit, instant = rng.choice(["s", "ms", "us", "ns"]), datetime.datetime.fromisoformat
    draws = [
        lambda: pa.array([int(v) for v in values]),
        lambda: pa.array([float(v) for v in values]),
        lambda: pa.array([decimal.Decimal(v) for v in values]),
        lambda: pa.array([instant(v) for v in values], pa.timestamp(unit)),
        lambda: pa.array([instant(v).date() for v in values]),
        lambda: pa.array([rng.choice([-(2**63), 2**63 - 1, 0]) for _ in values], pa.timestamp("us")),
        lambda: pa.array(values).dictionary_encode(),
        lambda: pa.array([str(v).encode() for v in values], pa.binary()),
        lambda: pa.array([[v] for v in values]),
        lambda: pa.array([{"a": v} for v in values]),
        lambda: pa.array([bool(v) for v in values]),
        lambda: pa.array([rng.randrange(2**31) for _ in values], pa.time32("s")),
        lambda: pa.array([rng.choice([v, None]) for v in values]),
        lambda: pa.nulls(len(values)),
        lambda: pa.array([float(rng.choice(["nan", "inf", "1e300", "100"])) for _ in values]),
    ]  # fmt: skip
    try:
        return rng.choice(draws)() if rng.random() < 0.3 else pa.array(values, pa.large_string())
    except (ValueError, ArithmeticError, pa.ArrowException):
        return pa.array([str(value).encode("utf-8", "replace").decode() for value in values])


def write(rows, path, rng):
    """How many rows it holds; None where that is not known any more."""
    if path.suffix == ".parquet":
        columns = {name: [row.get(name, "") for row in rows] for name in rows[0]}
        if "v0" in columns and rng.random() < 0.9:
            columns = {
                n: [float(v) if n != "id" and is_number(v) else v for v in values] for n, values in columns.items()
            }
        try:
            table = pa.table(
                {n: pa.array(v) if isinstance(v[0], float) else parquet_column(v, rng) for n, v in columns.items()}
            )
        except (pa.ArrowException, UnicodeError):
            table = pa.table({name: list(map(repr, values)) for name, values in columns.items()})
        pq.write_table(
            table, path, compression=rng.choice(["none", "snappy", "zstd"]), row_group_size=rng.choice([3, 1000])
        )
        content = path.read_bytes()
    elif path.suffix == ".npz":
        numbers = np.array([[float(v) if is_number(v) else np.nan for v in list(row.values())[1:4]] for row in rows])
        ids = np.array([str(row.get("id", "")) for row in rows])
        kinds = [np.float32, np.float16, np.int64, np.complex64, np.bool_, str]
        with np.errstate(all="ignore"):
            numbers = numbers.astype(rng.choice(kinds)) if rng.random() < 0.2 else numbers
        rng.choice([np.savez, np.savez_compressed])(
            path, **{rng.choice(["ids"] * 9 + ["id"]): ids, "embeddings": numbers}
        )
        content = path.read_bytes()
    else:
        text = as_text(rows, path.suffix[1:], rng)
        content = encode(text, rng)
        path.write_bytes(content)
    if rng.random() < 0.35:
        path.write_bytes(mutate_bytes(content, rng))
        return None
    return len(rows)


def is_number(text):
    try:
        return bool(float(text)) or True
    except ValueError:
        return False


def drawn(seed, folder, kind):
    """(a mutated file, how many rows it holds or None)."""
    rng = random.Random(f"{kind} {seed}")
    rows = log_rows(rng) if kind == "log" else embedding_rows(rng)
    for change in rng.choices([mutate_columns, mutate_values], k=rng.choice([0, 1, 1, 2])):
        rows = change(rows, rng)
    suffixes = ["csv", "tsv", "jsonl", "parquet"] if kind == "log" else ["csv", "parquet", "npz", "tsv", "jsonl"]
    path = folder / f"{kind}{seed}.{rng.choice(suffixes)}"
    return path, write(rows, path, rng)


def said_clearly(error, path):
    text = " ".join(str(error).split())  # as the program prints it
    assert len(text) < 900, text
    assert not INTERNAL.search(text.replace(str(path), "")), text


def rows_by_python(path):
    """Rows of a text file, by Python's own readers."""
    if path.suffix == ".parquet":
        with contextlib.suppress(pa.ArrowException, OSError):  # pandas' part of it may be damaged
            return pq.read_metadata(path).num_rows
        return None
    lines = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return sum(bool(line.strip()) for line in lines.split("\n"))
    header = lines.splitlines()[0]
    own = {".csv": ",", ".tsv": "\t"}[path.suffix]
    delimiter = own if own in header else next(sign for sign in ";\t|," if sign in header)
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" and not header.startswith('"') else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, quoting=quoting)
    return sum(map(bool, reader)) - 1


def check_log(path, rows):
    try:
        log = read_log([str(path)], items=ITEMS, form=FORM, show=False)
    except UserError as error:
        said_clearly(error, path)
        return "refused"
    with log:
        counts = log.counts
        assert counts["rows"] == counts["events"] + sum(counts["skipped"].values())
        assert rows is None or counts["rows"] == rows
        assert counts["rows"] == rows_by_python(path) or rows_by_python(path) is None
        assert log.sql.one("select count(*) from events") == (counts["events"],)
        try:
            queries = read_queries(log, query_item="query_item_id", lists=True)
            known_items(queries, items=log.items, rule="skip")
        except UserError as error:
            said_clearly(error, path)
    return "read"


def check_embeddings(path, rows):
    found = []
    for read in (read_embeddings, open_vectors):
        try:
            file = read(str(path))
        except UserError as error:
            said_clearly(error, path)
            found.append(None)
        else:
            vectors = file.vectors if read is read_embeddings else np.concatenate(file.parts)
            ids = file.ids if read is read_embeddings else file.ids.to_pylist()
            with np.errstate(over="ignore"):
                found.append((list(ids), vectors.astype(np.float32)))
    one, other = found
    assert (one is None) == (other is None)
    if one is None:
        return "refused"
    assert one[0] == other[0]
    np.testing.assert_array_equal(one[1], other[1])
    assert rows is None or len(one[0]) == rows
    return "read"


def run(kind, seeds, folder):
    check = check_log if kind == "log" else check_embeddings
    outcomes = {}
    for seed in seeds:
        path, rows = drawn(seed, folder, kind)
        try:
            outcome = check(path, rows)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, {path.name}: {error!r}") from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        pathlib.Path(path).unlink()
    return outcomes


@pytest.mark.parametrize("kind", ["log", "embeddings"])
def test_some_mutated_files(kind, tmp_path):
    assert set(run(kind, range(20), tmp_path)) == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["log", "embeddings"])
def test_many_mutated_files(kind, tmp_path):
    assert set(run(kind, range(20, 620), tmp_path)) == {"read", "refused"}
