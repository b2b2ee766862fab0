"""What is true of every encoder without a file: `pixels:`, `colours:`, `edges:`."""

import numpy as np
import pytest

from eval.embeddings import read_store
from eval.embeddings.encoders.encoder_table import open_network
from siglip_jax import cli

NAMES = {"pixels:4x3": 36, "colours:3x5x4": 60, "edges:4x3x4": 48}  # and how many numbers they give


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter(name):
    encoder = open_network(name)
    shape = (5, *encoder.preprocessing.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    one_by_one = [encoder.encode_image(image[None])[0] for image in images]
    np.testing.assert_array_equal(encoder.encode_image(images), one_by_one)


@pytest.mark.parametrize(("name", "numbers"), NAMES.items())
def test_embed_makes_a_store(shop_dataset, tmp_path, name, numbers):
    arguments = ["embed", f"--model={name}", f"--dataset={shop_dataset}", f"--output={tmp_path / 'store'}"]
    assert cli.main(arguments) == 0
    store = read_store(tmp_path / "store")
    assert store.vectors.shape == (len(store.ids), numbers)
    assert store.manifest["model"]["name"] == name
