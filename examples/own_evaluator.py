"""An evaluator of your own: a run measures it at every checkpoint and keeps the best checkpoint by it.

cd examples && siglip-jax train --config=own_evaluator.py --dataset=../data/shop --workdir=../runs/shop
python examples/own_evaluator.py    # what it measures of random weights, over a made-up catalogue: a few seconds

This file is both the module with the evaluator and the config that names it.
"""

import pathlib
import tempfile

import ml_collections
import numpy as np

from siglip_jax.training.config import default_config


def separation(split) -> dict[str, float]:
    """How far each image is nearer to its own title than to the nearest other title.

    Args:
      split: `tools.workflow.evaluators.EmbeddedSplit`: image and text, float32 [n, d] of unit norm; group [n], equal
        for items of equal title; titles, attributes and more.
    """
    cosine = split.image @ split.text.T
    same = split.group[:, None] == split.group
    own, other = cosine.diagonal(), np.where(same, -np.inf, cosine).max(axis=1)
    return {"margin": (own - other).mean(), "nearest": (own > other).mean()}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    config = default_config()
    config.evaluation.while_training = ("own_evaluator:separation",)  # module:function
    config.evaluation.best_metric = "separation/margin"

    config.preprocessing.image_size, config.model.patch_size = (16, 16), 8
    config.preprocessing.text_length, config.preprocessing.vocab_size = 8, 400
    config.model.image = config.model.text = dict(width=32, depth=1, mlp_dim=64, heads=2)
    config.model.init_bias = -2.7  # log(p / (1 - p)) for one positive in a batch of 16
    config.batch_size, config.steps, config.checkpoint_every = 16, 60, 20
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-3, 5
    return config.lock()


def main(folder: pathlib.Path) -> None:
    from input_pipeline.building import build_dataset
    from input_pipeline.catalogue import read_catalogue
    from input_pipeline.synthetic.synthetic_catalogue import write_synthetic_catalogue
    from tools.workflow.evaluators import make_evaluators
    from tools.workflow.training import start_model

    write_synthetic_catalogue(folder / "catalogue", items=80, size=24)
    build_dataset(read_catalogue(folder / "catalogue"), folder / "dataset", max_left_out=1, progress=False)
    config, dataset = get_config(), folder / "dataset"
    model = start_model(config, dataset)
    for evaluate in make_evaluators(config, model=model, dataset=dataset):
        for name, value in evaluate(0, model.params).items():
            print(f"{name} {value:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(pathlib.Path(temporary))
