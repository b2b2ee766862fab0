"""SigLIP 2 B/16 at 256 pixels, global batch 32,768, on a TPU v5e:16x16 slice (256 chips).

  siglip-jax compile --config=configs/siglip2_b16_256.py
  siglip-jax train --config=configs/siglip2_b16_256.py --dataset=gs://BUCKET/data --workdir=gs://BUCKET/runs/b16

on every worker of the slice (docs/guide/launch.md).
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    config.topology = "v5e:16x16"
    config.mesh.fsdp = 16

    config.init = "google/siglip2-base-patch16-256"
    config.model.dtype = "bfloat16"
    config.model.remat = "dots_no_batch"

    config.batch_size = 32_768
    config.steps = 10_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    return config.lock()
