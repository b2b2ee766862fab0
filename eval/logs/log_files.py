"""The files of a log, and how the rows of each get into the table `raw` of a DuckDB database, as text, times apart.

raw  query, list, user_id, item_id, position, action, query_item: text or null;  time: microseconds since 1970
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence

import duckdb

from eval.logs.log_format import COLUMNS, LIKE, RATED, REQUIRED, LogFormat
from eval.logs.log_times import TIME_OF_TEXT
from siglip_jax.errors import UserError

SUFFIXES = ("parquet", "csv", "tsv", "jsonl")
RAW = (
    "create table raw (query text, list text, user_id text, item_id text, time bigint, position text, action text, "
    "query_item text)"
)
_LONGEST_HEADER = 1 << 16
_MOVIELENS = ({"user_id": "userId", "item_id": "movieId", "time": "timestamp"}, {"time": "timestamp"})


def log_files(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files of the logs named: files as they are, folders by what of .parquet, .csv, .tsv, .jsonl is in them.

    Raises:
      UserError: nothing there, a file of another suffix, or a name that DuckDB would take for a pattern.
    """
    files: list[pathlib.Path] = []
    for given in paths:
        if "://" in given:
            raise UserError(f"--logs={given}: logs are read from local disk; copy them there first")
        path = pathlib.Path(given).expanduser()
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix[1:].lower() in SUFFIXES)
            if not found:
                raise UserError(f"--logs={given}: no .{', .'.join(SUFFIXES)} file in this folder")
            files += found
        elif not path.is_file():
            raise UserError(f"--logs={given}: no such file or folder; expected a log, as .{' or .'.join(SUFFIXES)}")
        elif path.suffix[1:].lower() not in SUFFIXES:
            raise UserError(f"--logs={given}: expected a file that ends in .{', .'.join(SUFFIXES)}")
        else:
            files.append(path)
    if odd := [f for f in files if set(str(f)) & set("*?[")]:
        raise UserError(f"--logs: the name of {odd[0]} holds one of * ? [; rename it")
    if len({f.resolve() for f in files}) < len(files):
        raise UserError("--logs: a file is named twice; its events would be counted twice")
    return files


def insert_file(sql: duckdb.DuckDBPyConnection, file: pathlib.Path, form: LogFormat) -> set[str]:
    """Adds one file to `raw`; which of our columns it has."""
    suffix = file.suffix[1:].lower()
    try:
        columns = _describe(sql, file, suffix)
        names = _names(columns, form, file)
        source = _source(file, suffix, list(names.values() if suffix == "jsonl" else columns))
        text = {ours: f"nullif(trim({_as_text(theirs, columns[theirs])}), '')" for ours, theirs in names.items()}
        kind = columns[names["time"]].upper()
        time = _quoted(names["time"])
        if kind.startswith(("TIMESTAMP", "DATE")):
            text["time"] = f"epoch_us(cast({time} as timestamptz))"
        else:
            text["time"] = TIME_OF_TEXT.format(text["time"])
        if form.like_from and "rating" in names:
            rating = f"try_cast({text['rating']} as double)"
            text["action"] = (
                f"case when {rating} >= {float(form.like_from)!r} then '{LIKE}' when {rating} is not null and not "
                f"isnan({rating}) then '{RATED}' end"
            )
        ordered = ("query_id", "list_id", "user_id", "item_id", "time", "position", "action", "query_item_id")
        sql.execute(f"insert into raw select {', '.join(text.get(c, 'null') for c in ordered)} from {source}")
    except duckdb.Error as error:
        raise UserError(f"log {file}: cannot be read ({_one_line(error)})") from error
    if form.like_from and "rating" in names:
        return set(names) | {"action"}
    return set(names)


def _describe(sql: duckdb.DuckDBPyConnection, file: pathlib.Path, suffix: str) -> dict[str, str]:
    """{column: type} of one file; of JSON lines the keys of all, since a key may begin late."""
    if suffix == "jsonl":
        keys = sql.execute(
            f"select distinct unnest(json_keys(json)) from read_ndjson_objects({_literal(str(file))})"
        ).fetchall()
        return {key: "TEXT" for (key,) in keys}
    if suffix == "parquet":
        found = sql.execute(f"describe select * from read_parquet({_literal(str(file))})").fetchall()
        return {row[0]: row[1] for row in found}
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            line = text.readline(_LONGEST_HEADER).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"log {file}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    header = line.split("\t") if suffix == "tsv" else next(csv.reader([line]), [])
    if len(header) == 1 and (sign := next((s for s in ";\t|," if s in line), "")):
        raise UserError(
            f"log {file}: {sign!r} is between its fields ({line[:60]!r}); expected a comma in a .csv, a tab in a .tsv: "
            "save it so"
        )
    header = [name or f"column {number} without a name" for number, name in enumerate(header, 1)]
    if not line or len(set(header)) < len(header):
        raise UserError(f"log {file}: the first line is {line[:100]!r}; expected column names, each once")
    return dict.fromkeys(header, "TEXT")


def _source(file: pathlib.Path, suffix: str, columns: Sequence[str]) -> str:
    """SQL that reads the columns of a file; as text, but from Parquet."""
    name = _literal(str(file))
    if suffix == "parquet":
        return f"read_parquet({name})"
    wanted = "{" + ", ".join(f"{_literal(column)}: 'VARCHAR'" for column in columns) + "}"
    if suffix == "jsonl":
        return f"read_json({name}, format = 'newline_delimited', columns = {wanted})"
    dialect = "delim = ',', quote = '\"', escape = '\"'" if suffix == "csv" else "delim = '\t', quote = '', escape = ''"
    return f"read_csv({name}, header = true, auto_detect = false, columns = {wanted}, {dialect})"


def _names(columns: Mapping[str, str], form: LogFormat, file: pathlib.Path) -> dict[str, str]:
    """{our column: the file's} of those that are there."""
    known = ", ".join(columns) or "none"
    names = {ours: form.columns.get(ours, ours) for ours in COLUMNS}
    for ours, theirs in names.items():
        if theirs not in columns and (ours in REQUIRED or ours in form.columns):
            raise UserError(
                f"log {file}: no column {theirs}; columns are {known}; name it with --log_column={ours}=..."
            )
    names = {ours: theirs for ours, theirs in names.items() if theirs in columns}
    if form.like_from and "rating" not in names:
        raise UserError(f"log {file}: no column rating for like_from={form.like_from:g}; columns are {known}")
    if not form.like_from and "action" not in names:
        raise UserError(f"log {file}: no column action (nor like_from for a rating); columns are {known}")
    return names


def movielens_columns(paths: Sequence[str]) -> dict[str, str]:
    """The columns of MovieLens' ratings (userId, movieId, rating, timestamp), or of the same with user_id, item_id.

    Raises:
      UserError: a file with neither.
    """
    file = log_files(paths)[0]
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as sql:
        try:
            there = _describe(sql, file, file.suffix[1:].lower())
        except duckdb.Error as error:
            raise UserError(f"log {file}: cannot be read ({_one_line(error)})") from error
    for columns in _MOVIELENS:
        names = {ours: columns.get(ours, ours) for ours in (*REQUIRED, "rating")}
        if set(names.values()) <= there.keys():
            return dict(columns)
    raise UserError(
        f"log {file}: columns are {', '.join(there)}; MovieLens has userId, movieId, rating, timestamp (ratings.csv)"
    )


def _as_text(name: str, kind: str) -> str:
    """SQL of a column as text; whole numbers that pandas made floats beside missing values are whole again."""
    column = _quoted(name)
    if kind.upper() not in ("DOUBLE", "FLOAT"):
        return f"cast({column} as text)"
    whole = f"{column} = floor({column}) and abs({column}) < {2**53}"
    text = f"when {whole} then cast(cast({column} as bigint) as text) else cast({column} as text)"
    return f"case when isnan({column}) then null {text} end"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).partition("Possible fixes")[0].split())[:200]
