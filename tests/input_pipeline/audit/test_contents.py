"""The audit counts what a plain loop counts, stays small, and its page holds everything inside and trusts no title."""

import collections
import json
import re

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.audit import audit_dataset
from input_pipeline.audit.audit_page import findings, headline, render
from input_pipeline.audit.contents import Tokens, audit_table
from input_pipeline.audit.writing_scripts import NO_LETTERS, main_scripts
from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset.item_table import SCHEMA, ItemColumns, item_table, open_columns
from siglip_jax.cli import main
from siglip_jax.errors import UserError

EVIL = '<script>alert("x")</script> & "onload="x'
rows = st.lists(
    st.tuples(
        st.sampled_from(["Hat", "hat", "bag ", "bag", "shoe", "Шапка"]),
        st.integers(0, 9),
        st.sampled_from(["train", "test"]),
        st.sampled_from(["", "", "", "corrupt image", "missing image"]),
        st.sampled_from(["red", "blue", "", None]),
    ),
    max_size=40,
)


def table_of(rows) -> pa.Table:
    signatures = np.random.default_rng(0).integers(0, 256, (10, 64), dtype=np.uint8)
    signatures[1] = signatures[0] ^ np.r_[np.zeros(31, np.uint8), np.uint8(7), np.zeros(32, np.uint8)]  # 1 looks like 0
    lines = [
        {
            "row": number, "id": f"i{number}", "title": title, "kind": kind, "detail": kind and f"{kind} of {number}",
            "image_sha256": "" if kind else f"sha{picture}", "split": "" if kind else split, "format": "JPEG",
            "image_signature": None if kind else signatures[picture].tobytes(),
            "height": 100 + picture, "width": 50, "bytes": 1000 * (picture + 1),
        }
        for number, (title, picture, split, kind, _) in enumerate(rows)
    ]  # fmt: skip
    table = pa.Table.from_pylist(lines, schema=SCHEMA)
    colours = pa.StructArray.from_arrays([pa.array([row[4] for row in rows], pa.string())], ["colour"])
    return table.append_column("attributes", colours)


@settings(deadline=None)
@given(rows)
def test_counts(rows):
    audit = audit_table(table_of(rows))
    kept = [row for row in rows if not row[3]]
    assert (audit["rows"], audit["kept"]) == (len(rows), len(kept))
    assert audit["splits"] == collections.Counter(row[2] for row in kept)
    problems = collections.Counter(row[3] for row in rows if row[3])
    assert {kind: problem["count"] for kind, problem in audit["problems"].items()} == problems
    groupings = {
        "equal": lambda row: row[1],
        "near": lambda row: max(row[1], 1),
        "titles": lambda row: row[0].casefold().strip(),
    }
    for name, key in groupings.items():
        found = audit["titles"]["repeated"] if name == "titles" else audit["images"][name]
        members = collections.defaultdict(list)
        for row in kept:
            members[key(row)].append(row)
        several = [group for group in members.values() if len(group) > 1]
        crossing = [group for group in several if len({row[2] for row in group}) > 1]
        expected = (len(several), sum(map(len, several)), len(kept) - len(members), len(crossing))
        assert tuple(found[part] for part in ("groups", "rows", "more", "across_splits")) == expected
        told = [group for part in ("largest", "crossing") for group in found[part]]
        assert all(1 <= len(group["rows"]) <= group["size"] for group in told)
        for group in told:
            assert len({key(rows[row["place"]]) for row in group["rows"]}) == 1
            assert [row["id"] for row in group["rows"]] == [f"i{row['place']}" for row in group["rows"]]
        if name != "near":
            assert sorted((g["size"] for g in told), reverse=True) == sorted(map(len, several), reverse=True)
    colours = collections.Counter(row[4] for row in kept if row[4])
    (colour,) = audit["attributes"]
    assert {value["value"]: value["count"] for value in colour["common"]} == colours
    assert (colour["distinct"], colour["empty"]) == (len(colours), len(kept) - sum(colours.values()))
    for histogram in (*audit["sizes"].values(), audit["titles"]["characters"]):
        assert sum(histogram["counts"]) == len(kept)
    if kept:
        ratios = [50 / (100 + row[1]) for row in kept]
        ratio = audit["sizes"]["aspect_ratio"]
        found = (ratio["smallest"], ratio["median"], ratio["largest"])
        assert found == pytest.approx((min(ratios), np.median(ratios), max(ratios)))
    json.dumps(audit, allow_nan=False)
    page = render(audit | {"dataset": {"folder": "shop"}}, pictures=lambda places: {})
    assert headline(audit) in page


def test_groups_that_differ_come_first_and_their_rows_too():
    same = [("hat", 3, "train", "", "")] * 6
    differing = [("bag", 4, "train", "", "")] * 3 + [("shoe", 4, "train", "", "")]
    largest = audit_table(table_of([*same, *differing]))["images"]["equal"]["largest"]
    assert [(group["size"], group["distinct"]) for group in largest] == [(4, 2), (6, 1)]
    assert [row["title"] for row in largest[0]["rows"]] == ["bag", "shoe", "bag", "bag"]


def test_many_rows_make_no_large_audit():
    rng = np.random.default_rng(0)
    count = 30_000
    rows = [(f"title {number // 2}" * 40, int(picture), "train", "corrupt image" if number % 3 else "", f"v{number}")
            for number, picture in enumerate(rng.integers(0, 10, count))]  # fmt: skip
    audit = audit_table(table_of(rows))
    assert len(json.dumps(audit)) < 150_000
    assert audit["problems"]["corrupt image"]["count"] == 20_000
    assert len(audit["problems"]["corrupt image"]["examples"]) == 20


def test_tokens_that_are_cut():
    table = table_of([("hat", k, "train", "", "") for k in range(5)] + [("one two three", 9, "train", "", "")])
    tokens = Tokens(encode=lambda titles: [title.split() for title in titles], text_length=3)
    found = audit_table(table, tokens=tokens)["titles"]["tokens"]
    assert (found["smallest"], found["largest"], found["cut"]) == (2, 4, 1)
    assert [(row["title"], row["tokens"]) for row in found["examples"]] == [("one two three", 4)]


@pytest.mark.parametrize(
    ("title", "script"),
    [
        ("Red dress 36", "Latin"), ("Ｒｅｄ", "Latin"), ("красное платье", "Cyrillic"), ("فستان أحمر", "Arabic"),
        ("红色连衣裙", "Han"), ("ワンピース", "Japanese"), ("のワンピース", "Japanese"), ("ﾜﾝﾋﾟｰｽ", "Japanese"),
        ("빨간 드레스", "Hangul"), ("लाल पोशाक", "Devanagari"),
        ("123 - !", NO_LETTERS), ("", NO_LETTERS), ("👗", NO_LETTERS), ("PC ケースカバー", "Japanese"),
    ],
)  # fmt: skip
def test_scripts(title, script):
    assert main_scripts([title])[0] == {script: 1}


def test_scripts_of_many_titles():
    titles = ["hat", "шапка", "hat шапка шапка", "12"] * 50_000
    assert main_scripts(titles) == ({"Cyrillic": 100_000, "Latin": 50_000, NO_LETTERS: 50_000}, 50_000)
    assert main_scripts([]) == ({}, 0)


@pytest.fixture
def evil_dataset(tmp_path):
    """Twelve items, two of whose pictures are one saved twice, with titles and values that a page must escape."""
    rng = np.random.default_rng(0)
    (tmp_path / "shop" / "images").mkdir(parents=True)
    lines = ["id\ttitle\tcolour"]
    for number in range(12):
        lines.append(f"i{number}\t{EVIL} {number}\t{EVIL}")
        if number != 5:
            blocks = PIL.Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            picture = blocks.resize((90 + 20 * number, 96), PIL.Image.Resampling.NEAREST)
        picture.save(tmp_path / "shop" / "images" / f"i{number}.jpg", quality=90 - number)
    (tmp_path / "shop" / "images" / "i7.jpg").write_bytes(b"no picture")
    (tmp_path / "shop" / "items.tsv").write_text("\n".join(lines) + "\n")
    build_dataset(read_catalogue(tmp_path / "shop"), tmp_path / "data", max_left_out=1, progress=False)
    return tmp_path / "data"


def test_the_page(evil_dataset, tmp_path):
    audit = audit_dataset(evil_dataset, tmp_path / "out" / "audit.html", progress=False)
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8")) == audit
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert "http" not in page
    assert "11 of 12 rows kept" in page
    assert audit["images"]["near"]["groups"] == 1
    (group,) = audit["images"]["near"]["largest"] + audit["images"]["near"]["crossing"]
    assert sorted(row["id"] for row in group["rows"]) == ["i4", "i5"]
    assert page.count("data:image/jpeg;base64,") >= 11
    assert "no picture</span>" not in page
    assert any("1 row (8.3 %) left out: 1 corrupt image." in sentence for _, sentence in findings(audit))
    assert audit["dataset"]["split_by"] == ["title", "image"]
    again = audit_dataset(evil_dataset, tmp_path / "out" / "audit.html", progress=False)
    assert again == audit


def test_the_build_leaves_a_page_with_what_its_audit_says(evil_dataset, tmp_path):
    page = (evil_dataset / "audit.html").read_text(encoding="utf-8")
    built = json.loads((evil_dataset / "audit.json").read_text(encoding="utf-8"))
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,)', page) == []
    assert "http" not in page
    assert "11 of 12 rows kept" in page
    assert built["fingerprint"] in page
    assert page.count("data:image/jpeg;base64,") >= 11
    assert "Pictures that look alike were not looked for" in page
    audit = audit_dataset(evil_dataset, tmp_path / "audit.html", near=None, progress=False)
    assert built["contents"] == {name: audit[name] for name in built["contents"]}
    assert built["contents"].keys() == audit.keys() - {"rows", "kept", "splits", "problems", "dataset"}
    assert "Pictures that look alike were not looked for" in (tmp_path / "audit.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="choose another name"):
        audit_dataset(evil_dataset, evil_dataset / "audit.html", progress=False)


def test_columns_are_those_of_the_table(evil_dataset):
    table = item_table(evil_dataset, progress=False)
    kept = table.filter(pc.equal(table["kind"], ""))
    for columns in (open_columns(evil_dataset), ItemColumns(table)):
        for name in SCHEMA.names:
            assert columns.column(name, only_kept=False).to_pylist() == table[name].to_pylist()
            assert columns.column(name).to_pylist() == kept[name].to_pylist()
        assert columns.attribute_names == ["colour"]
        assert columns.attribute("colour").to_pylist() == [row["colour"] for row in kept["attributes"].to_pylist()]


def test_a_table_that_is_damaged(evil_dataset, tmp_path):
    data = bytearray((evil_dataset / "rows.parquet").read_bytes())
    for cut in (100, len(data) - 20):
        (evil_dataset / "rows.parquet").write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"rows\.parquet: not readable .*build the dataset again"):
            audit_dataset(evil_dataset, tmp_path / "audit.html", progress=False)
    data[4:2000] = bytes(1996)
    (evil_dataset / "rows.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.parquet: not readable"):
        audit_dataset(evil_dataset, tmp_path / "audit.html", progress=False)
    assert not (tmp_path / "audit.html").exists()


def test_leaks_between_splits_are_said_first():
    lines = [
        ("hat", 0, "train", "", ""),
        ("cap", 1, "test", "", ""),
        ("bag", 5, "train", "", ""),
        ("bag", 6, "test", "", ""),
    ]
    sentences = [sentence for _, sentence in findings(audit_table(table_of(lines)))]
    assert sentences[0] == "1 title in several splits: the test is not of new items."
    assert sentences[1].startswith("1 group of pictures that look alike lies in several splits; --split_by=")


def test_the_program(evil_dataset, tmp_path, capsys):
    output = tmp_path / "audit.html"
    assert main(["audit", f"--dataset={evil_dataset}", f"--output={output}", "--near=-1"]) == 0
    assert "11 of 12 rows kept" in capsys.readouterr().out
    assert "near" not in json.loads(output.with_suffix(".json").read_text())["images"]
    (tmp_path / "mine.json").write_text("{}")
    for arguments, message in (
        ([f"--output={tmp_path}/audit.htm"], "expected a file name ending in .html"),
        ([f"--output={tmp_path}/mine.html"], "choose another name"),
        ([f"--output={output}", "--dataset=nowhere"], "no dataset here"),
        ([f"--output={output}", "--tokenizer=nowhere"], "No such file or directory"),
        ([f"--output={output}", "--near=40"], "near"),
    ):
        assert main(["audit", f"--dataset={evil_dataset}", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_an_output_that_is_no_page(evil_dataset, tmp_path):
    with pytest.raises(UserError, match=r"expected a file name ending in \.html"):
        audit_dataset(evil_dataset, tmp_path / "audit", progress=False)
