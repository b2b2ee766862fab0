"""Tables of every encoding and separator give the rows that were written."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.catalogue.tables.open_table import open_table
from input_pipeline.catalogue.tables.text_options import TextOptions
from siglip_jax.errors import UserError

ENCODINGS = {
    "cp1252": "Weiß é €",
    "cp932": "東京 ｶﾅ",
    "utf-16": "Weiß 東京",
    "utf-16-be": "é",
    "gb18030": "红色",
    "utf-8": "é",
}


def read(name, data, **options):
    return open_table(lambda: io.BytesIO(data), name=name, text=TextOptions(**options))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_encodings(name, encoding):
    title = ENCODINGS[encoding]
    text = {
        "a.csv": f'id,title\r\n1,"{title}, ""x"""\r\n', "a.tsv": f'id\ttitle\n1\t{title}, "x"\n',
        "a.jsonl": json.dumps({"id": "1", "title": f'{title}, "x"'}, ensure_ascii=False) + "\n",
    }[name]  # fmt: skip
    table = read(name, text.encode(encoding), encoding=encoding)
    assert list(table.rows()) == [({"id": "1", "title": f'{title}, "x"'}, "")]


@given(
    separator=st.sampled_from([";", "|", "\t", "tab", "~", ","]),
    rows=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["C"]), max_size=6)] * 2), min_size=1, max_size=4
    ),
)
def test_separators(separator, rows):
    stream = io.StringIO()
    sign = "\t" if separator == "tab" else separator
    csv.writer(stream, delimiter=sign, quoting=csv.QUOTE_ALL).writerows([("id", "title"), *rows])
    table = read("a.csv", stream.getvalue().encode(), separator=separator)
    assert [tuple(values.values()) for values, _ in table.rows()] == rows


@pytest.mark.parametrize("sign", [";", ",", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_separator_that_is_not_the_usual_one_is_told(sign, suffix):
    table = read(f"a.{suffix}", f"id{sign}title\n1{sign}b c\n".encode())
    assert [values for values, _ in table.rows()] == [{"id": "1", "title": "b c"}]
    usual = sign == {"csv": ",", "tsv": "\t"}[suffix]
    assert table.notes == (
        () if usual else (f"a.{suffix}: read with {sign!r} between its fields; --separator says otherwise",)
    )


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("a.csv", {"encoding": "klingon"}, "encoding 'klingon': unknown"), ("a.csv", {"encoding": "base64"}, "unknown"),
        ("a.csv", {"separator": "ab"}, "expected one letter"), ("a.csv", {"separator": '"'}, "expected one letter"),
        ("a.jsonl", {"separator": ";"}, "--separator is for"),
        ("a.parquet", {"encoding": "cp1252"}, "--encoding is for"),
        ("a.csv", {"encoding": "utf-16"}, "line 1: not utf-16; give the table's own --encoding"),
    ],
)  # fmt: skip
def test_what_cannot_be(name, options, told):
    with pytest.raises(UserError, match=told):
        read(name, b"id,title\n1,a\n\n", **options)


def test_a_mark_tells_the_encoding():
    table = read("a.csv", "id,title\n1,東京\n".encode("utf-16"))
    assert [values["title"] for values, _ in table.rows()] == ["東京"]
    assert table.notes == ("a.csv: read as UTF-16, as its first bytes say",)


def test_rows_of_another_encoding_are_told():
    ((row, problem),) = read("a.csv", b"id,title\n1,Wei\xdf\n").rows()
    assert row["title"] == "Wei\ufffd"
    assert "line 2: not UTF-8; save the table as UTF-8, or name its encoding, as in --encoding=cp1252" in problem
    ((_, problem),) = read("a.csv", "id,title\n1,東\n".encode("cp932") + b"\n", encoding="euc_jp").rows()
    assert "not euc_jp" in problem
