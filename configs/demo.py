"""The synthetic catalogue of `make demo`, on a laptop CPU: two cores, a few minutes.

  make demo

`:tiny` trains a handful of steps, to try the path.
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    if argument not in ("", "tiny"):
        raise ValueError(f"argument {argument!r}; expected tiny")
    config = default_config()
    with config.unlocked():
        config.synthetic_items = 2000

    config.preprocessing.image_size = (48, 48)
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 1024
    config.data.cache = True
    # 2,000 pictures are soon learnt by heart, unless they differ each time.
    config.data.shift, config.data.zoom = 4, 0.2

    config.model.patch_size = 8
    config.model.image = dict(width=128, depth=3, mlp_dim=512, heads=2)
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    config.model.init_bias = -4.1  # log(p / (1 - p)) for one positive in a batch of 64

    config.batch_size = 64
    config.steps = 1000
    config.optimizer.warmup_steps = 100
    config.checkpoint_every = 250
    config.log_every = 10
    if argument == "tiny":
        config.steps, config.optimizer.warmup_steps = 4, 1

    config.evaluation.relevance = (
        {"gain": 3, "agree": ("type", "colour", "pattern")},
        {"gain": 2, "agree": ("type", "colour")},
        {"gain": 1, "agree": ("type",)},
    )
    config.evaluation.relevant_from = 2
    return config.lock()
