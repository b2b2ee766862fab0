"""NaFlex from a catalogue to embeddings: pictures of any aspect ratio in one batch, trained, saved, loaded."""

import runpy

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches


@pytest.fixture(scope="module")
def naflex_config(config_file):
    config = runpy.run_path(str(config_file))["get_config"]()
    config.preprocessing.resize = "naflex"
    config.preprocessing.max_patches = 9
    config.steps = config.checkpoint_every = 6
    return config


@pytest.fixture(scope="module")
def trained(naflex_config, shop_dataset, tmp_path_factory):
    from tools.workflow.training import train_on_dataset

    workdir = tmp_path_factory.mktemp("naflex") / "run"
    train_on_dataset(naflex_config, dataset=shop_dataset, workdir=workdir)
    return workdir


def pictures():
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((40, 10), (13, 77), (30, 30))]


def test_it_learns_and_comes_back_the_same(trained, tmp_path):
    from tools.workflow.training import metrics_of

    losses = [line["loss"] for line in metrics_of(trained)]
    assert losses[-1] < losses[0]
    model = siglip_jax.load(trained)
    assert model.architecture.naflex
    patches = model.preprocessing.images(pictures())
    assert isinstance(patches, Patches)
    assert patches.shape.tolist() == [[4, 1], [1, 6], [3, 3]]  # of 8 pixels: at most nine, aspect kept
    z = model.encode_image(pictures())
    np.testing.assert_allclose([model.encode_image([one])[0] for one in pictures()], z, atol=1e-6)
    for format, path in (("native", "a"), ("huggingface", "b")):
        model.save(tmp_path / path, format=format)
        np.testing.assert_array_equal(siglip_jax.load(tmp_path / path).encode_image(pictures()), z)


@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")  # a tiny random model
def test_fine_tuning_starts_from_it(trained, naflex_config, shop_dataset, tmp_path):
    from tools.workflow.training import start_model, train_on_dataset

    config = naflex_config.copy_and_resolve_references()
    with config.unlocked():
        config.init = str(trained)
    start = siglip_jax.load(trained)
    np.testing.assert_array_equal(
        start_model(config, shop_dataset).encode_image(pictures()), start.encode_image(pictures())
    )
    tuned = train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")
    assert not np.allclose(tuned.encode_image(pictures()), start.encode_image(pictures()), atol=1e-4)


def test_embeddings_of_a_split(trained, shop_dataset, tmp_path):
    from input_pipeline.dataset import open_split
    from tools.workflow.embedding import embed, load_encoder

    store = embed(load_encoder(str(trained)), dataset=shop_dataset, split="test", output=tmp_path / "store")
    rows = open_split(shop_dataset, "test")
    model = siglip_jax.load(trained)
    expected = model.encode_image([rows[i]["image"] for i in range(len(rows))])
    by_id = dict(zip(store.ids, store.vectors, strict=True))
    np.testing.assert_allclose([by_id[rows[i]["id"]] for i in range(len(rows))], expected, atol=1e-6)


def test_another_preprocessing_is_refused(trained, tmp_path):
    model = siglip_jax.load(trained)
    squashed = model.preprocessing.replace(resize="bilinear", patch_size=0, max_patches=0)
    with pytest.raises(UserError, match="NaFlex patch size 0, the model's is 8"):
        siglip_jax.load(trained, preprocessing=squashed)
    wider = siglip_jax.load(trained, preprocessing=model.preprocessing.replace(max_patches=30))
    assert wider.preprocessing.images(pictures()).shape.prod(axis=1).max() > 9  # a larger budget needs no other weights
    assert np.isfinite(wider.encode_image(pictures())).all()
