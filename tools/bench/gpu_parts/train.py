"""Training from random weights for three minutes on images that are made up: images/s, waiting, the loss."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

from tools.bench.gpu_parts.budget import PartBudget, Row
from tools.bench.gpu_parts.synthetic_images import SPLIT, dataset_of

TITLE = "Training from random weights, B/16-224"
MINUTES = 3.0
SECONDS_TO_END = 25.0  # for the last checkpoint
LINES = 12


def rows(budget: PartBudget) -> Iterator[Row]:
    from siglip_jax.errors import Stopped
    from tools.workflow import training

    dataset = dataset_of(budget)
    workdir = budget.folder / "training"
    shutil.rmtree(workdir, ignore_errors=True)
    config = config_of(budget)
    with contextlib.suppress(Stopped):  # the deadline
        training.train_on_dataset(config, dataset=dataset, workdir=workdir)
    lines = [line for line in training.metrics_of(workdir) if "loss" in line]
    shutil.rmtree(workdir, ignore_errors=True)
    for line in lines[:: max(1, len(lines) // LINES)]:
        yield {
            "what": f"step {line['step']:.0f}",
            "rows": config.batch_size,
            "images/s": line["images_per_second"],
            "% waiting for data": 100 * line["wait_share"],
            "MFU %": 100 * line["mfu"] if "mfu" in line else "-",
            "loss": line["loss"],
        }


def config_of(budget: PartBudget) -> Any:
    from siglip_jax.training.config import default_config

    config = default_config()
    size = budget.choose(
        dict(width=768, depth=12, mlp_dim=3072, heads=12), dict(width=32, depth=1, mlp_dim=64, heads=2)
    )
    config.model.image, config.model.text = size, dict(size)
    config.model.patch_size = budget.choose(16, 8)
    config.model.dtype = budget.choose("bfloat16", "float32")
    config.preprocessing.image_size = budget.choose((224, 224), (16, 16))
    config.preprocessing.text_length = budget.choose(64, 8)
    config.preprocessing.vocab_size = budget.choose(1000, 400)
    config.data.train_split, config.data.cache = SPLIT, False
    config.batch_size = budget.choose(512, 8)
    config.steps = budget.choose(100_000, 4)
    config.optimizer.warmup_steps = budget.choose(100, 1)
    config.optimizer.learning_rate = 3e-4
    config.evaluation.while_training = ()
    config.log_every, config.checkpoint_every = budget.choose(5, 1), config.steps
    config.deadline_minutes = max(0.1, min(MINUTES, (budget.left - SECONDS_TO_END) / 60))
    return config.lock()
