"""A published SigLIP, or a model of your own, fine-tuned with the defaults of docs/guide/finetuning.md.

  siglip-jax train --config=configs/finetune.py --dataset=data/shop --workdir=runs/shop
  siglip-jax train --config=configs/finetune.py:runs/earlier --config.optimizer.freeze=image ...

Made for a v5e:2x4 slice, or one GPU of 80 GB. The argument is what `siglip_jax.load` takes: a preset's name, a folder,
an .npz, a training run's workdir.
"""

from siglip_jax.training.config import finetune_config


def get_config(argument: str = "google/siglip2-base-patch16-256"):
    config = finetune_config(argument)
    # Users report 1e-4 to ruin models of this size (open_clip issue 1093); the default was measured on small towers.
    config.optimizer.learning_rate = 1e-5
    config.model.dtype = "bfloat16"
    config.model.remat = "dots_no_batch"
    config.topology = "v5e:2x4"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.batch_size = 1024
    config.microbatch = (
        128  # all rows of one of eight chips; eight times as many pass through one GPU, one after another
    )
    config.steps = 2000
    config.optimizer.warmup_steps = 200
    return config.lock()
