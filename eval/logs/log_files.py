"""The files of a log, and how the rows of each get into the table `raw` of a database, as text, times apart.

raw  query, list, user_id, item_id, position, action, query_item, propensity, randomised: text or null;
     time: microseconds since 1970;  reading: of `log_times.READINGS`;
     odd_time: the text of a time that is none or not plausible, else null;  segment_0, ...: of `LogFormat.segments`
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence

from eval.file_damage import describe_damage
from eval.logs.database import Database, Unreadable, literal, quoted
from eval.logs.log_columns import choose_columns
from eval.logs.log_format import LIKE, RATED, REQUIRED, LogFormat
from eval.logs.log_times import FIRST, LAST, reading_of_text, time_of_text
from input_pipeline.catalogue.expand import expand, folder_values
from input_pipeline.catalogue.tables.text_options import other_separator
from siglip_jax.errors import UserError

SUFFIXES = ("parquet", "csv", "tsv", "jsonl")
_RAW = (
    "query text, list text, user_id text, item_id text, time bigint, position text, action text, query_item text, "
    "propensity text, randomised text, reading tinyint, odd_time text"
)
# As tools write that nothing is there.
NO_VALUE = ("", "NA", "N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "\\N")
_LONGEST_HEADER = 1 << 16
_LOOKED_AT = 100  # lines of JSON, for values that hold several
_MOVIELENS = ({"user_id": "userId", "item_id": "movieId", "time": "timestamp"}, {"time": "timestamp"})


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How the text of a file is written; quote is "" for none."""

    delimiter: str = ","
    quote: str = '"'
    assumed: str = ""  # what its suffix does not say


def create_raw(sql: Database, form: LogFormat) -> None:
    """The empty table."""
    sql.execute(f"create table raw ({', '.join([_RAW, *(f'{name} text' for name in segment_columns(form))])})")


def segment_columns(form: LogFormat) -> list[str]:
    """What the segments of a log are called in `raw` and in `events`."""
    return [f"segment_{number}" for number in range(len(form.segments))]


def log_files(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files of the logs named: files as they are, ranges and patterns (`day={00..30}/*.csv`), and folders by what
    of .parquet, .csv, .tsv, .jsonl is in them.

    Raises:
      UserError: nothing there, a file of another suffix, or a name that DuckDB would take for a pattern.
    """
    files: list[pathlib.Path] = []
    for given in paths:
        if "://" in given:
            raise UserError(f"--logs={given}: logs are read from local disk; copy them there first")
        place = pathlib.Path(given).expanduser()
        for path in [place] if place.exists() else (expand(given, [f".{s}" for s in SUFFIXES]) or [place]):
            files += _files_of(path, given)
    if odd := [f for f in files if set(str(f)) & set("*?[")]:
        raise UserError(f"--logs: the name of {odd[0]} holds one of * ? [; rename it")
    if len({f.resolve() for f in files}) < len(files):
        raise UserError("--logs: a file is named twice; its events would be counted twice")
    return files


def _files_of(path: pathlib.Path, given: str) -> list[pathlib.Path]:
    if path.is_dir():
        below = (file for file in path.rglob("*") if file.name[0] != "." and file.is_file())
        found = sorted(file for file in below if file.suffix[1:].lower() in SUFFIXES)
        if not found:
            raise UserError(f"--logs={given}: no .{', .'.join(SUFFIXES)} file in this folder")
        return found
    if not path.is_file():
        raise UserError(f"--logs={given}: no such file or folder; expected a log, as .{' or .'.join(SUFFIXES)}")
    if path.suffix[1:].lower() not in SUFFIXES:
        raise UserError(f"--logs={given}: expected a file that ends in .{', .'.join(SUFFIXES)}")
    return [path]


def insert_file(sql: Database, file: pathlib.Path, form: LogFormat) -> tuple[set[str], str]:
    """Adds one file to `raw`: (which of our columns it has, what was assumed of how it is written).

    Folders such as `day=01` on its path are columns too.
    """
    source = event_file(sql, file)
    names = choose_columns(source.columns, form, file)
    segments = _segments(source.columns, form, file)
    text = {ours: f"nullif(trim({source.cell(theirs)}), '')" for ours, theirs in names.items()}
    for ours in ("user_id", "query_id", "action", "position", "propensity", "randomised"):
        if ours in text:
            text[ours] = f"case when {text[ours]} not in {NO_VALUE!r} then {text[ours]} end"
    written = text["time"]
    text["time"], text["reading"] = source.time(names["time"], form.time_unit)
    text["odd_time"] = f"case when ({text['time']} between {FIRST} and {LAST - 1}) is not true then {written} end"
    acted = set(names)
    if form.like_from and "rating" in names:
        rating = f"try_cast({text['rating']} as double)"
        text["action"] = (
            f"case when {rating} >= {float(form.like_from)!r} then '{LIKE}' when {rating} is not null and not "
            f"isnan({rating}) then '{RATED}' end"
        )
        acted.add("action")
    else:
        text["action"] = _renamed(text.get("action", "null"), form.action_names)
        acted |= {"action"} if "" in form.action_names else set()
    ordered = ("query_id", "list_id", "user_id", "item_id", "time", "position", "action", "query_item_id", "propensity")
    cells_of = [text.get(name, "null") for name in (*ordered, "randomised", "reading", "odd_time")]
    cells_of += [f"coalesce(trim({source.cell(name)}), '')" for name in segments]
    source.insert(sql, "raw", cells_of, of=[*names.values(), *segments])
    return acted, source.assumed


def _segments(columns: Mapping[str, str], form: LogFormat, file: pathlib.Path) -> list[str]:
    """The columns of `form.segments`; raises a UserError where one is not there."""
    for name in form.segments:
        if name not in columns:
            known = ", ".join(columns)
            raise UserError(f"log {file}: no column {name}, which --segment or --cluster names; columns are {known}")
    return list(form.segments)


def _damaged(
    file: pathlib.Path, suffix: str, dialect: Dialect, columns: Sequence[str] | Mapping[str, str]
) -> UserError:
    said = describe_damage(file, suffix, delimiter=dialect.delimiter, quote=dialect.quote, fields=len(columns))
    return UserError(f"log {file}: {said}")


def _renamed(action: str, names: Mapping[str, str]) -> str:
    """SQL of an action under our name for it."""
    cases = " ".join(f"when {literal(theirs)} then {literal(ours)}" for theirs, ours in names.items() if theirs)
    renamed = f"case {action} {cases} else {action} end" if cases else action
    return f"coalesce({renamed}, {literal(names[''])})" if "" in names else renamed


def _describe(sql: Database, file: pathlib.Path, suffix: str) -> tuple[Dialect, dict[str, str]]:
    """(how it is written, {column: type} of one file); of JSON lines the keys of all, since a key may begin late."""
    try:
        if suffix == "jsonl":
            keys = sql.execute(
                f"select distinct unnest(json_keys(json)) from read_ndjson_objects({literal(str(file))})"
            ).fetchall()
            nested = _nested_keys(file)
            return Dialect(), {key: "NESTED" if key in nested else "TEXT" for (key,) in sorted(keys)}
        if suffix == "parquet":
            found = sql.execute(f"describe select * from read_parquet({literal(str(file))})").fetchall()
            return Dialect(), {row[0]: "NESTED" if row[1].endswith("[]") else row[1] for row in found}
    except Unreadable as error:
        raise _damaged(file, suffix, Dialect(), []) from error
    return _header(file, suffix)


def _nested_keys(file: pathlib.Path) -> set[str]:
    """Keys whose values are lists of objects, in the first lines."""
    nested: set[str] = set()
    with open(file, "rb") as lines:
        for line in itertools.islice(lines, _LOOKED_AT):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # that it is damaged is said where it is read
            if isinstance(record, dict):
                nested |= {k for k, v in record.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    return nested


def _header(file: pathlib.Path, suffix: str) -> tuple[Dialect, dict[str, str]]:
    """Of a .csv or .tsv; its first line says what is between its fields."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            line = text.readline(_LONGEST_HEADER).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise _damaged(file, suffix, Dialect(), []) from error
    own = "," if suffix == "csv" else "\t"
    delimiter = other_separator(next(csv.reader([line]), []) if own == "," else line.split(own)) or own
    fields = line.split(delimiter)
    quoted_tsv = delimiter == "\t" and all(len(f) > 1 and f[0] == f[-1] == '"' for f in fields)
    dialect = Dialect(delimiter, "" if delimiter == "\t" and not quoted_tsv else '"')
    if delimiter != own:
        dialect = dataclasses.replace(dialect, assumed=f"read with {delimiter!r} between its fields")
    elif quoted_tsv:
        dialect = dataclasses.replace(dialect, assumed="quotes round its fields are taken off")
    header = next(csv.reader([line], delimiter=delimiter), []) if dialect.quote else fields
    header = [name or f"column {number} without a name" for number, name in enumerate(header, 1)]
    if not line or len(set(header)) < len(header):
        raise UserError(f"log {file}: the first line is {line[:100]!r}; expected column names, each once")
    return dialect, dict.fromkeys(header, "TEXT")


def _source(file: pathlib.Path, suffix: str, dialect: Dialect, columns: Sequence[str]) -> str:
    """SQL that reads the columns of a file; as text, but from Parquet."""
    name = literal(str(file))
    if suffix == "parquet":
        return f"read_parquet({name}, hive_partitioning = false)"
    wanted = "{" + ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns) + "}"
    if suffix == "jsonl":
        return f"read_json({name}, format = 'newline_delimited', columns = {wanted}, hive_partitioning = false)"
    sign = dialect.quote
    marks = f"delim = {literal(dialect.delimiter)}, quote = '{sign}', escape = '{sign}'"
    return (
        f"read_csv({name}, header = true, auto_detect = false, columns = {wanted}, {marks}, hive_partitioning = false)"
    )


def movielens_columns(paths: Sequence[str]) -> dict[str, str]:
    """The columns of MovieLens' ratings (userId, movieId, rating, timestamp), or of the same with user_id, item_id.

    Raises:
      UserError: a file with neither.
    """
    file = log_files(paths)[0]
    with Database() as sql:
        _, there = _describe(sql, file, file.suffix[1:].lower())
    for columns in _MOVIELENS:
        names = {ours: columns.get(ours, ours) for ours in (*REQUIRED, "rating")}
        if set(names.values()) <= there.keys():
            return dict(columns)
    raise UserError(
        f"log {file}: columns are {', '.join(there)}; MovieLens has userId, movieId, rating, timestamp (ratings.csv)"
    )


def _as_text(name: str, kind: str) -> str:
    """SQL of a column as text; whole numbers that pandas made floats beside missing values are whole again."""
    column = quoted(name)
    if kind.upper() not in ("DOUBLE", "FLOAT"):
        return f"cast({column} as text)"
    whole = f"{column} = floor({column}) and abs({column}) < {2**53}"
    text = f"when {whole} then cast(cast({column} as bigint) as text) else cast({column} as text)"
    return f"case when isnan({column}) then null {text} end"


@dataclasses.dataclass(frozen=True)
class EventFile:
    """A file of rows of any columns, and SQL of its columns.

    Attributes:
      columns: {name: type}; folders such as `day=01` on its path are of type "FOLDER".
      assumed: what its suffix does not say of how it is written, "" for nothing.
    """

    file: pathlib.Path
    suffix: str
    dialect: Dialect
    columns: Mapping[str, str]
    folders: Mapping[str, str]

    @property
    def assumed(self) -> str:
        return f"{self.file}: {self.dialect.assumed}" if self.dialect.assumed else ""

    def cell(self, name: str) -> str:
        """As text."""
        return literal(self.folders[name]) if name in self.folders else _as_text(name, self.columns[name])

    def text(self, name: str) -> str:
        """As text without blanks around it; what stands for no value is null."""
        return f"case when trim({self.cell(name)}) not in {NO_VALUE!r} then trim({self.cell(name)}) end"

    def time(self, name: str, unit: str) -> tuple[str, str]:
        """SQL of (microseconds since 1970, the one of `log_times.READINGS` that its text has)."""
        kind, column = self.columns[name].upper(), quoted(name)
        if kind.startswith(("TIMESTAMP", "DATE")):
            instant = f"try_cast({column} as timestamptz)"
            zoned = "null" if "TIME ZONE" in kind or "TZ" in kind else "0"
            return f"case when isfinite({instant}) then epoch_us({instant}) end", zoned
        reading = reading_of_text(self.text(name), unit)
        return time_of_text(self.text(name), reading), reading

    def insert(self, sql: Database, table: str, cells: Sequence[str], *, of: Sequence[str]) -> None:
        """Adds SQL cells of every row to a table.

        Args:
          of: the columns that the cells are of; of JSON lines no other key is looked at.

        Raises:
          UserError: the file is damaged.
        """
        own = [name for name in self.columns if name not in self.folders]
        read = [name for name in dict.fromkeys(of) if name in own] if self.suffix == "jsonl" else own
        try:
            source = _source(self.file, self.suffix, self.dialect, read)
            sql.execute(f"insert into {table} select {', '.join(cells)} from {source}")
        except Unreadable as error:
            raise _damaged(self.file, self.suffix, self.dialect, own) from error


def event_file(sql: Database, file: pathlib.Path) -> EventFile:
    """UserError where the file is damaged or its header has a name twice."""
    suffix = file.suffix[1:].lower()
    dialect, columns = _describe(sql, file, suffix)
    folders = {name: value for name, value in folder_values(file.as_posix()).items() if name not in columns}
    return EventFile(file, suffix, dialect, columns | dict.fromkeys(folders, "FOLDER"), folders)
