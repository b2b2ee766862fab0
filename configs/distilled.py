"""One small tower that learns from a teacher, such as the adapter of configs/adapter.py, and serves at its own cost.

  siglip-jax embed --model=runs/adapter --split=train --features=... --output=runs/teacher
  siglip-jax train --config=configs/distilled.py --dataset=data/shop --workdir=runs/distilled \\
    --config.teacher.store=runs/teacher

From random weights, 48 pixels, three quarters of an hour on a laptop CPU. `:tiny` trains a handful of steps, to try
the path.
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    if argument not in ("", "tiny"):
        raise ValueError(f"argument {argument!r}; expected tiny")
    config = default_config()
    config.preprocessing.image_size = (48, 48)
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 4096
    config.data.cache = True
    config.data.shift, config.data.zoom = 3, 0.1

    config.model.patch_size = 8
    config.model.image = dict(width=192, depth=3, mlp_dim=768, heads=3)
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    # As in configs/adapter.py: a temperature that learns parts items that are alike.
    config.model.init_temperature = 5.0
    config.optimizer.freeze_rules = (("t", True),)
    config.model.init_bias = -4.8  # log(p / (1 - p)) for one positive in a batch of 128

    config.teacher.cosine = 10.0

    config.batch_size = 128
    config.steps, config.optimizer.warmup_steps = 6500, 300
    config.checkpoint_every = 1300
    config.log_every = 10
    if argument == "tiny":
        config.steps, config.optimizer.warmup_steps = 4, 1
    return config.lock()
