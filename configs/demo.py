"""The synthetic catalogue of `make demo`, on a laptop CPU.

siglip-jax demo
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    with config.unlocked():
        config.synthetic_items = 1600

    config.preprocessing.image_size = (48, 48)
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 1024
    config.data.cache = True

    config.model.patch_size = 8
    config.model.image = dict(width=128, depth=4, mlp_dim=512, heads=2)
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    config.model.unroll = 4
    config.model.init_bias = -5.5  # log(p / (1 - p)) for one positive in a batch of 256

    config.batch_size = 256
    config.steps = 200 if argument != "tiny" else 4
    config.optimizer.warmup_steps = config.steps // 10
    config.checkpoint_every = 100
    config.log_every = 5

    config.evaluation.relevance = (
        {"gain": 3, "agree": ("type", "colour", "pattern")},
        {"gain": 2, "agree": ("type", "colour")},
        {"gain": 1, "agree": ("type",)},
    )
    config.evaluation.relevant_from = 2
    return config.lock()
