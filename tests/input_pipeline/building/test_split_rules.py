"""Splits by any keys and by time: nothing crosses, nothing of the future is trained on, what is left out is listed."""

import collections
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.building import build_dataset
from input_pipeline.building.split import OUT, check_moments, linked_groups, parse_times, split_by_time, split_rows
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError

KEYS = ("title", "image", "seller", "near")
rows = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sampled_from("stuvwxyz"),
        st.sampled_from(["", "", "", "kim", "lee", None]),
        st.integers(0, 9),
        st.integers(0, 6),
    ),
    max_size=25,
)


def columns_of(rows) -> dict[str, pa.Array]:
    titles, images, sellers, near, _ = zip(*rows, strict=True) if rows else [()] * 5
    text = {"title": titles, "image": images, "seller": sellers}
    return {name: pa.array(values, pa.string()) for name, values in text.items()} | {"near": pa.array(near, pa.int64())}


def groups_by_hand(rows, keys) -> list[int]:
    """Labels spread along links until nothing changes."""
    labels = list(range(len(rows)))
    while True:
        smallest: dict[tuple, int] = {}
        links = [
            [(key, row[KEYS.index(key)]) for key in keys if row[KEYS.index(key)] not in ("", None)] for row in rows
        ]
        for label, names in zip(labels, links, strict=True):
            for name in names:
                smallest[name] = min(label, smallest.get(name, label))
        new = [min([label, *(smallest[name] for name in names)]) for label, names in zip(labels, links, strict=True)]
        if new == labels:
            return labels
        labels = new


@settings(deadline=None)
@given(rows, st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.integers(0, 3))
def test_groups_and_splits_by_any_keys(rows, keys, seed):
    columns = columns_of(rows)
    expected = groups_by_hand(rows, keys)
    np.testing.assert_array_equal(linked_groups(columns, keys), expected)
    splits, groups = split_rows(columns, fractions={"train": 0.5, "test": 0.5}, seed=seed, keys=keys)
    np.testing.assert_array_equal(groups, expected)
    assert len({(group, int(split)) for group, split in zip(expected, splits, strict=True)}) == len(set(expected))


@settings(deadline=None)
@given(rows, st.lists(st.sampled_from(KEYS), min_size=1, unique=True))
def test_time(rows, keys):
    """Day 0 is no time; validation from day 3, test from day 5."""
    times = np.array([f"2024-06-0{row[4]}" if row[4] else "NaT" for row in rows], "datetime64[us]")
    groups = linked_groups(columns_of(rows), keys)
    moments = check_moments({"validation": "2024-06-03", "test": "2024-06-05"})
    splits = split_by_time(times, groups, moments=moments)
    wanted = [OUT if not row[4] else 0 if row[4] < 3 else 1 if row[4] < 5 else 2 for row in rows]
    where = collections.defaultdict(list)
    for group, want in zip(groups.tolist(), wanted, strict=True):
        where[group].append(want)
    for group, want, split in zip(groups.tolist(), wanted, splits.tolist(), strict=True):
        first = min((other for other in where[group] if other != OUT), default=OUT)
        assert split == (want if want == first else OUT)


def test_times_as_they_are_written():
    texts = ["2024-06-01", "2024-06-01T02:00:00+02:00", "2024-06-01 00:00", "2024-06-01T00:00:00Z", "1717200000",
             "1717200000.0", "", "yesterday", "2024-13-01", "12", "20240601"]  # fmt: skip
    times = parse_times(pa.array(texts))
    assert (times[:6] == np.datetime64("2024-06-01")).all()
    assert np.isnat(times[6:10]).all()
    assert times[10] == np.datetime64("2024-06-01")


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ({"test": "soon"}, "split time 'soon'; expected a date such as 2024-06-01"),
        ({"train": "2024-01-01"}, "train is what is before"),
        ({"a": "2024-02-01", "b": "2024-01-31"}, "expected each later than the one before"),
        ({"a/b": "2024-02-01"}, "split name 'a/b'"),
    ],
)
def test_bad_moments(moments, message):
    with pytest.raises(UserError, match=message):
        check_moments(moments)


def test_a_million_rows_take_no_loop():
    count = 1_000_000
    number = np.arange(count)
    columns = {"title": pa.array(number // 2).cast(pa.string()), "image": pa.array((number + 1) // 2 % 250_000)}
    groups = linked_groups(columns, ("title", "image"))
    assert not groups.any()  # one chain through all rows, and no recursion


@pytest.fixture
def shop(tmp_path):
    """Eight rows: a seller with many titles, a picture saved again, relisted titles, a time that is none."""
    lines = ["id\ttitle\tseller\tcreated_at"]
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    listed = [
        ("old hat", "kim", "2024-05-01"),
        ("old bag", "kim", "2024-05-02"),
        ("new hat", "kim", "2024-06-02"),
        ("Old  Hat", "lee", "2024-06-03"),
        ("new bag", "", "2024-06-04"),
        ("new shoe", "", "2024-06-01T00:00:00Z"),
        ("old shoe", "", "no idea"),
        ("bag again", "", "2024-06-05"),
    ]
    for number, (title, seller, created) in enumerate(listed):
        lines.append(f"i{number}\t{title}\t{seller}\t{created}")
        if number == 7:  # the picture of the old bag, saved again
            picture = PIL.Image.open(tmp_path / "images" / "i1.jpg")
        else:
            blocks = PIL.Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
            picture = blocks.resize((96, 96), PIL.Image.Resampling.NEAREST)
        picture.save(tmp_path / "images" / f"i{number}.jpg", quality=90 - number)
    (tmp_path / "items.tsv").write_text("\n".join(lines) + "\n")
    return read_catalogue(tmp_path)


def test_a_build_by_time(shop, tmp_path):
    options = {"time_column": "created_at", "split_times": {"test": "2024-06-01"}, "max_left_out": 1, "progress": False}
    audit = build_dataset(shop, tmp_path / "plain", **options)
    ids = {name: [row["id"] for row in open_split(tmp_path / "plain", name)] for name in ("train", "test")}
    assert ids == {"train": ["i0", "i1"], "test": ["i2", "i4", "i5", "i7"]}
    assert audit["problems"] == {"in an earlier split": 1, "no time": 1}
    assert [(row["id"], row["kind"]) for row in audit["problem_rows"]] == [
        ("i3", "in an earlier split"), ("i6", "no time"),
    ]  # fmt: skip
    assert (audit["split_times"], audit["kept"], audit["rows"]) == ({"test": "2024-06-01"}, 6, 8)

    build_dataset(shop, tmp_path / "near", split_by=("title", "image", "near", "seller"), **options)
    assert [row["id"] for row in open_split(tmp_path / "near", "test")] == ["i4", "i5"]
    # What the rule leaves out is no fault of the catalogue; a time that cannot be read is.
    with pytest.raises(UserError, match="1 in an earlier split, 1 no time among 8 rows"):
        build_dataset(shop, tmp_path / "no", on_error="error", **options)
    listed = json.loads((tmp_path / "no.audit.json").read_text())["problem_rows"]
    assert [row["id"] for row in listed] == ["i3", "i6"]


def test_a_build_by_seller(shop, tmp_path):
    build_dataset(
        shop,
        tmp_path / "out",
        split_by=("title", "seller"),
        fractions={"a": 0.5, "b": 0.5},
        max_left_out=1,
        progress=False,
    )
    names = [{row["id"] for row in open_split(tmp_path / "out", name)} for name in ("a", "b")]
    assert sum({"i0", "i1", "i2", "i3"} <= name for name in names) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_by": ("title", "seler")}, "split by seler: .*attributes: seller, created_at"),
        ({"split_by": ()}, "split by nothing"),
        ({"split_times": {"test": "2024-06-01"}}, "give both the column"),
        ({"time_column": "created_at"}, "give both the column"),
        ({"time_column": "when", "split_times": {"test": "2024-06-01"}}, "time column when: no such attribute"),
        (
            {"time_column": "created_at", "split_times": {"test": "2024-06-01"}, "fractions": {"train": 1.0}},
            "by share and by time",
        ),
        (
            {"time_column": "created_at", "split_times": {"test": "2034-06-01"}},
            "split test would be empty.*another time",
        ),
    ],
)
def test_rules_that_cannot_be_followed(shop, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build_dataset(shop, tmp_path / "out", max_left_out=1, progress=False, **options)
    assert not (tmp_path / "out").exists()
