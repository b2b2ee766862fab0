"""Training on a dataset: the model that it starts from."""

import numpy as np

from input_pipeline.dataset import open_split
from input_pipeline.loader.item_vectors import ItemVectors
from input_pipeline.loader.row_order import first_rows
from input_pipeline.train_tokenizer import train_tokenizer
from tools.workflow.training import start_model


def test_loaded_t_and_b_are_kept(tiny_model, tiny_config, tmp_path):
    params = {**tiny_model.params, "t": np.float32([1.25]), "b": np.float32([-3.5])}
    tiny_model.replace(params=params).save(tmp_path / "model")
    tiny_config.init = str(tmp_path / "model")
    loaded = start_model(tiny_config, "unread")
    assert loaded.params["t"].tolist() == [1.25]
    assert loaded.params["b"].tolist() == [-3.5]


def test_the_start_knows_the_chosen_rows_alone(tiny_config, shop_dataset):
    """Tokenizer and statistics are of them: a learning curve shall not look at the others."""
    tiny_config.data.most, tiny_config.seed = 20, 3
    split = open_split(shop_dataset, "train")
    vectors = np.random.default_rng(0).normal(size=(len(split), 6)).astype(np.float32)
    with tiny_config.unlocked():
        tiny_config.model.features = {"cnn": 6}
        tiny_config.model.adapter = dict(base=4, head=4, mlp_dim=8, depth=1, strength=0.5, weights={})
    model = start_model(tiny_config, shop_dataset, features={"cnn": ItemVectors(vectors, np.arange(len(split)))})
    rows = first_rows(len(split), most=20, seed=3)
    np.testing.assert_allclose(model.params["img"]["mean"], vectors[rows].mean(axis=0, dtype=np.float64), atol=1e-6)
    titles = [model.preprocessing.canonical(split[row]["title"]) for row in rows.tolist()]
    tokenizer = train_tokenizer(titles, vocab_size=tiny_config.preprocessing.vocab_size)
    assert model.preprocessing.tokenizer == tokenizer
