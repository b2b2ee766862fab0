"""Training on a dataset: the model that it starts from."""

import numpy as np

from tools.workflow.training import start_model


def test_loaded_t_and_b_are_kept(tiny_model, tiny_config, tmp_path):
    params = {**tiny_model.params, "t": np.float32([1.25]), "b": np.float32([-3.5])}
    tiny_model.replace(params=params).save(tmp_path / "model")
    tiny_config.init = str(tmp_path / "model")
    loaded = start_model(tiny_config, "unread")
    assert loaded.params["t"].tolist() == [1.25]
    assert loaded.params["b"].tolist() == [-3.5]
