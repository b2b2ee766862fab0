"""Datasets of chosen attributes."""

import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.filter import choose_items
from input_pipeline.dataset import attributes
from siglip_jax.errors import UserError


def test_chosen_rows(shop):
    catalogue = read_catalogue(shop)
    types = sorted({item.attributes["type"] for item in catalogue.rows})[:2]
    colour = catalogue.rows[0].attributes["colour"]
    chosen = choose_items(catalogue, {"type": types})
    assert chosen.rows == [item for item in catalogue.rows if item.attributes["type"] in types]
    assert 0 < len(chosen.rows) < len(catalogue.rows)
    both = choose_items(catalogue, {"type": [catalogue.rows[0].attributes["type"]], "colour": [colour]})
    assert catalogue.rows[0] in both.rows
    assert {item.attributes["colour"] for item in both.rows} == {colour}
    assert choose_items(catalogue, {}).rows == catalogue.rows


def test_a_dataset_of_two_types(shop, tmp_path):
    catalogue = read_catalogue(shop)
    types = sorted({item.attributes["type"] for item in catalogue.rows})[:2]
    audit = build_dataset(catalogue, tmp_path / "two", only={"type": types}, max_left_out=1, progress=False)
    assert audit["only"] == {"type": types}
    assert audit["rows"] + audit["not_chosen"] == len(catalogue.rows)
    assert audit["not_chosen"] > 0
    _, _, values = attributes(tmp_path / "two", "train")
    assert set(values["type"]) == set(types)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"flavour": ["sweet"]}, "only flavour=sweet: no such attribute; items.* has "),
        ({"type": ["spaceship"]}, "only type=spaceship: no row has this value; values are "),
    ],
)
def test_misspelt_choices_are_refused(shop, only, message):
    with pytest.raises(UserError, match=message):
        choose_items(read_catalogue(shop), only)
