"""SigLIP 2 So400m/14 at 384 pixels, global batch 16,384, on a TPU v5p:8x8x8 slice (512 chips).

  siglip-jax compile --config=configs/so400m_14_384.py
  siglip-jax train --config=configs/so400m_14_384.py --dataset=gs://BUCKET/data --workdir=gs://BUCKET/runs/so400m

on every worker of the slice (docs/guide/launch.md).
"""

from siglip_jax.training.config import default_config


def get_config(argument: str = ""):
    config = default_config()
    config.topology = "v5p:8x8x8"
    config.mesh.fsdp = 8

    config.init = "google/siglip2-so400m-patch14-384"
    config.model.dtype = "bfloat16"
    config.model.remat = "dots_no_batch"

    config.batch_size = 16_384
    config.steps = 10_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    return config.lock()
