"""A model of each new way of resizing: saved, loaded and embedded by the program; asked for in a config."""

import numpy as np
import pytest

from eval.embeddings import read_store
from input_pipeline.dataset import open_split
from siglip_jax import cli
from siglip_jax.loading import load
from siglip_jax.training.start.spec import preprocessing_of

WAYS = [{"resize": "bilinear_pad", "fill": "edge"}, {"resize": "bilinear_scaled_decode"}]


@pytest.mark.parametrize("fields", WAYS, ids=lambda fields: fields["resize"])
def test_saved_and_embedded(tiny_model, shop_dataset, tmp_path, fields):
    tiny_model.replace(preprocessing=tiny_model.preprocessing.replace(**fields)).save(tmp_path / "model")
    arguments = [f"--model={tmp_path / 'model'}", f"--dataset={shop_dataset}", f"--output={tmp_path / 'store'}"]
    assert cli.main(["embed", *arguments]) == 0
    store, model = read_store(tmp_path / "store"), load(tmp_path / "model")
    assert store.manifest["preprocessing"] == model.preprocessing.to_json()
    assert fields.items() <= store.manifest["preprocessing"].items()
    rows = open_split(shop_dataset, "test")
    expected = model.encode_image([rows[k]["image"] for k in range(len(rows))])
    np.testing.assert_allclose(store.vectors, expected, atol=1e-6)


@pytest.mark.parametrize("fields", WAYS, ids=lambda fields: fields["resize"])
def test_asked_for_in_a_config(tiny_config, fields):
    tiny_config.preprocessing.update(fields)
    value = preprocessing_of(tiny_config)
    assert (value.resize, value.fill) == (fields["resize"], fields.get("fill", ""))
