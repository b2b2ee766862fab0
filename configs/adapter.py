"""An adapter over encoders that you have: their stored numbers and your titles, minutes on a laptop CPU.

  siglip-jax embed --model=cnn.tflite --dataset=data/shop --split=train --output=runs/cnn-train
  siglip-jax train --config=configs/adapter.py --dataset=data/shop --workdir=runs/adapter \\
    --features=cnn=runs/cnn-train --features=cnn=runs/cnn-test

Stores of coarse pixels, colours and edges are worth their second: `siglip-jax embed --model=pixels:16x12`,
`colours:6x7x7`, `edges:8x6x8`. Give them as further features. No image is read while it trains.

It starts as the encoders themselves. config.model.adapter.strength says how much of the cosine of two images is what
was learned; it can be chosen after training.
`:tiny` trains a handful of steps, to try the path.
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    if argument not in ("", "tiny"):
        raise ValueError(f"argument {argument!r}; expected tiny")
    config = default_config()
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 4096
    config.model.adapter = dict(base=256, head=256, mlp_dim=1024, depth=1, strength=0.7, weights={})
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    # exp(t) stays 5 between a title and what is learned (sqrt(strength) of an image). Where it learns, it grows until
    # only the title of the very item counts, and items that are merely alike rank worse.
    config.model.init_temperature = 6.0
    config.optimizer.freeze_rules = (("t", True),)
    config.model.init_bias = -6.6  # near log(p / (1 - p)) for one positive in a batch of 512

    # A quarter of the numbers shall do for a search by themselves.
    config.matryoshka.widths, config.matryoshka.weights = (128,), (1.0,)

    # Larger batches rank worse for as many items seen (docs/results/fashion.md), smaller ones take longer.
    config.batch_size = 512
    config.optimizer.learning_rate = 4e-3
    config.steps, config.optimizer.warmup_steps = 1000, 40
    config.checkpoint_every = 500
    config.log_every = 10
    if argument == "tiny":
        config.steps, config.optimizer.warmup_steps = 4, 1
    return config.lock()
