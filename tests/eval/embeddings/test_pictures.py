"""Which row is of which item's picture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.embeddings.pictures import check_tellable, item_and_picture, picture_row_id
from siglip_jax.errors import UserError

ITEMS = st.dictionaries(st.text("a#2\n", min_size=1, max_size=4), st.integers(1, 12), min_size=1, max_size=6)


@given(items=ITEMS)
def test_rows_tell_item_and_picture_unless_refused(items):
    rows = {(item, number): picture_row_id(item, number) for item, n in items.items() for number in range(1, n + 1)}
    try:
        check_tellable(list(items))
    except UserError:
        assert any(other != item and other.startswith(f"{item}#") for item in items for other in items)
        return
    ids = set(rows.values())
    assert len(ids) == len(rows)
    assert {each: item_and_picture(row_id, ids) for each, row_id in rows.items()} == {each: each for each in rows}


@pytest.mark.parametrize("row_id", ["x#1", "x#02", "x#", "x#2b", "#2", "x"])
def test_other_ids_are_items(row_id):
    assert item_and_picture(row_id, {"x", "", row_id}) == (row_id, 1)
