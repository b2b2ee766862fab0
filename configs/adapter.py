"""An adapter over encoders that you have: their stored numbers and your titles, minutes on a laptop CPU.

  siglip-jax embed --model=cnn.tflite --dataset=data/shop --split=train --output=runs/cnn-train
  siglip-jax train --config=configs/adapter.py --dataset=data/shop --workdir=runs/adapter \\
    --features=cnn=runs/cnn-train --features=cnn=runs/cnn-test

No image is read while it trains. It starts as the encoders themselves, and half of the cosine of two
images stays theirs (config.model.adapter.strength).
`:tiny` trains a handful of steps, to try the path.
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    if argument not in ("", "tiny"):
        raise ValueError(f"argument {argument!r}; expected tiny")
    config = default_config()
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 4096
    config.model.adapter = dict(base=256, head=256, mlp_dim=1024, depth=1, strength=0.5, weights={})
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    config.model.init_bias = -7.6  # log(p / (1 - p)) for one positive in a batch of 2,048

    config.batch_size = 2048
    config.steps, config.optimizer.warmup_steps = 400, 40
    config.checkpoint_every = 100
    config.log_every = 10
    if argument == "tiny":
        config.steps, config.optimizer.warmup_steps = 4, 1
    return config.lock()
