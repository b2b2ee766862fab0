"""Names of others stay names."""

from hypothesis import given
from hypothesis import strategies as st

from eval.report.markdown import table


def read(row):
    """(cells of a row as a reader of Markdown sees them, signs that were not escaped)."""
    cells, bare, letters = [""], "", iter(row)
    for letter in letters:
        if letter == "\\":
            cells[-1] += next(letters)
        elif letter == "|":
            cells.append("")
        else:
            cells[-1] += letter
            bare += letter
    return [cell.strip(" ") for cell in cells[1:-1]], bare


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_a_row_has_the_cells_that_were_given(cells):
    _, _, row = table([""] * len(cells), [cells]).split("\n")
    found, bare = read(row)
    assert found == [" ".join(cell.split()) for cell in cells]
    assert not set(bare) & set("<*_`")


def test_numbers_stand_to_the_right():
    assert table(["row", "n"], [["a|b", 3]]) == "| row | n |\n| --- | ---: |\n| a\\|b | 3 |"
    assert table(["row"], []) == ""
