"""Logs of several files: every way to name them reads the same events, and folders are columns."""

import pathlib

import pytest

from eval.logs import LogFormat, read_log
from eval.logs.log_files import log_files
from siglip_jax.errors import UserError

FORM = LogFormat({"tap": 1}, columns={"time": "day", "action": "event"})


@pytest.fixture
def parts(tmp_path):
    """Two days of two kinds of event, in files of one name."""
    for day in ("2024-04-01", "2024-04-02"):
        for event in ("impression", "tap"):
            folder = tmp_path / "logs" / f"day={day}" / f"event={event}"
            folder.mkdir(parents=True)
            (folder / "part.csv").write_text(f"user_id,item_id\nu,{day[-1]}\nv,9\n")
            (folder / ".part.csv.crc").write_text("no log")
    return tmp_path / "logs"


def events(*paths, form=FORM):
    with read_log([str(path) for path in paths], items=["1", "2", "9"], form=form, show=False) as log:
        return sorted(log.sql.execute('select "user", item, time, action from events').fetchall())


def test_every_way_to_name_the_files(parts):
    whole = events(parts)
    assert len(whole) == 8
    assert {row[2] for row in whole} == {1711929600 * 10**6, 1712016000 * 10**6}
    assert {row[3] for row in whole} == {"impression", "tap"}
    assert events(parts / "day=*") == whole
    assert events(parts / "*" / "*" / "part.csv") == whole
    assert events(parts / "day=2024-04-{01..02}" / "event=*" / "*.csv") == whole
    assert events(parts / "day=2024-04-{01..02}") == whole
    assert events(*log_files([str(parts)])) == whole
    one = parts / "day=2024-04-01" / "event=tap" / "part.csv"
    assert events(one) == [row for row in whole if row[3] == "tap" and row[2] == 1711929600 * 10**6]


def test_a_column_of_the_file_comes_before_its_folder(tmp_path):
    folder = tmp_path / "event=tap" / "user_id=x"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"user_id": "u", "item_id": "1", "day": "2024-04-01"}\n')
    assert events(tmp_path / "event=*") == [(0, 0, 1711929600 * 10**6, "tap")]


def test_what_is_not_there_is_named(parts):
    for path, said in (
        (parts / "day=2024-04-{01..03}", "day=2024-04-03: no such file; of the 3 in .* 1 are missing"),
        (parts / "none*.csv", "no file is named so"),
        (parts / "none.csv", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=said):
            log_files([str(path)])
    with pytest.raises(UserError, match="named twice"):
        log_files([str(parts), str(pathlib.Path(parts, "day=*"))])
