"""Fashion Product Images (44k products, 60x80 pixels) from scratch on a laptop CPU: two cores, a quarter of an hour.

  make demo CATALOG=fashion.zip                      # items.tsv + images/
  make demo CATALOG=archive.zip LAYOUT=fashion       # the public layout: styles.csv + images/

`:tiny` trains a handful of steps, to try the path. `:from=runs/earlier` fine-tunes that run's model instead.
"""

from siglip_jax.training.config import default_config, finetune_config


def get_config(argument: str = ""):
    loaded = argument.startswith("from=")
    if not (loaded or argument in ("", "tiny")):
        raise ValueError(f"argument {argument!r}; expected tiny or from=FOLDER")
    config = finetune_config(argument.removeprefix("from=")) if loaded else default_config()
    config.preprocessing.image_size = (48, 48)
    config.preprocessing.text_length = 16
    config.preprocessing.vocab_size = 4096
    config.data.cache = True

    config.model.patch_size = 12  # 16 patches: many small steps beat few large ones in this time
    config.model.image = dict(width=192, depth=3, mlp_dim=768, heads=3)
    config.model.text = dict(width=128, depth=1, mlp_dim=512, heads=2)
    config.model.init_bias = -4.8  # log(p / (1 - p)) for one positive in a batch of 128

    config.batch_size = 128
    config.steps, config.optimizer.warmup_steps = (1000, 100) if loaded else (3300, 330)
    config.checkpoint_every = 500
    config.log_every = 10
    if argument == "tiny":
        config.steps, config.optimizer.warmup_steps = 4, 1

    config.evaluation.relevance = (
        {"gain": 3, "agree": ("articleType", "gender", "baseColour", "usage")},
        {"gain": 2, "agree": ("articleType", "gender")},
        {"gain": 1, "agree": ("subCategory",)},
    )
    config.evaluation.relevant_from = 2
    return config.lock()
