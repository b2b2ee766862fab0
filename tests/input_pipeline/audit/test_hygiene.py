"""Accidents of exports: what is one and what is none, counted as a plain loop counts them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.audit.hygiene import IDS, NEARLY_EQUAL, TITLES, find_accidents, is_mojibake, plain_id, sentence
from input_pipeline.audit.writing_scripts import main_scripts

CASES = {
    "with HTML": (
        ["<b>SALE</b> shirt", "Levi&#39;s &amp; Co", "a<br/>b", "&nbsp;", "<p class='x'>y</p>"],
        ["a < b > c", "M&S shirt", "I <3 you", "A & B; C", "5 > 3"],
    ),
    "decoded wrongly at some time": (
        ["WeiÃŸe Tasse", "caf\ufffd", "CrÃ¨me brÃ»lÃ©e", "â‚¬5", "Ð¨Ð°Ð¿ÐºÐ°"],
        ["Weiße Tasse", "Crème brûlée", "Ãrvore", "Шапка", "NAÏVE", "Älg – ny", "東京", "São Ângela"],
    ),
    "standing for no product": (["Untitled", " no title ", "無題"], ["Untitled Goose Game", "Test tube"]),
    "rounded by a spreadsheet": (["1.23E+05", "4E+12", "8,9E+12"], ["123E05", "E+05", "a1E+5"]),
    "of whole numbers written as fractions": (["123.0", "7.00"], ["1.5", "v1.0", "1.0.0"]),
}


def accidents(ids, titles):
    """Of pictures that are fine."""
    return find_accidents(ids, titles, pa.chunked_array([["JPEG"] * len(ids)], pa.string()), np.full(len(ids), 9.0))


@pytest.mark.parametrize(("what", "those", "others"), [(what, *cases) for what, cases in CASES.items()])
def test_kinds(what, those, others):
    is_one = (TITLES | IDS)[what]
    assert [text for text in those if not is_one(text)] == []
    assert [text for text in others if is_one(text)] == []


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0x24F), min_size=1))
def test_text_that_was_decoded_as_latin1(text):
    """The alphabets of Europe."""
    assert is_mojibake(text.encode().decode("latin-1"))


@given(st.text(st.sampled_from([chr(code) for code in (*range(32, 127), *range(0xC0, 0x100))])))
def test_text_of_western_europe_is_none(text):
    assert not is_mojibake(text)


@pytest.mark.parametrize(
    "other", ["a-1", "A-1 ", " A -1", "Ａ－１", "A\u200b-1", "\ufeffA-1", "A\u00a0-1"]
)  # fmt: skip
def test_ids_that_people_take_for_one(other):
    assert plain_id(other) == plain_id("A-1")
    ids = pa.chunked_array([["A-1", "b"], [other, "c"]])
    (found,) = accidents(ids, pa.chunked_array([["hat"] * 4]))
    assert found == {"of": "id", "what": NEARLY_EQUAL, "count": 2, "examples": ["A-1", other]}


def test_sentences():
    titles = pa.chunked_array([["<b>x</b>", "hat", "<i>y</i>", "Untitled"]])
    ids = pa.chunked_array([["1", "2"], ["3", "4"]])
    formats = pa.chunked_array([["JPEG", "PNG"], ["JPEG turned by EXIF", "JPEG"]])
    found = find_accidents(ids, titles, formats, np.array([4.0, 1.0, 9.0, 3.0]))
    assert [sentence(each) for each in found] == [
        "2 titles with HTML, such as '<b>x</b>' and '<i>y</i>'.",
        "1 title standing for no product, such as 'Untitled'.",
        "1 picture that browsers turn by an EXIF mark, which is ignored here, such as that of '3'.",
        "2 pictures with a side of fewer than 4 pixels, such as that of '2' and '4'.",
    ]
    assert accidents(pa.chunked_array([], pa.string()), pa.chunked_array([], pa.string())) == []


def test_a_japanese_shop_has_one_script():
    titles = ["赤いワンピース", "ﾜﾝﾋﾟｰｽ", "のれん", "東京", "長袖 シャツ"]
    assert main_scripts(titles) == ({"Japanese": 5}, 0)
    assert main_scripts(["红色连衣裙", "黑色", "ワンピース"]) == ({"Han": 2, "Japanese": 1}, 0)
    assert main_scripts(["Tシャツ"]) == ({"Japanese": 1}, 1)
