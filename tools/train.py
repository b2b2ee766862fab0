"""siglip-jax train: fine-tunes SigLIP on a dataset; run again with the same --workdir, it continues.

siglip-jax train --config=configs/fashion.py --dataset=data/fashion --workdir=runs/fashion
siglip-jax train --config=configs/fashion.py --config.optimizer.learning_rate=5e-4 ...
siglip-jax train --config=configs/adapter.py --features=cnn=runs/cnn-train --features=cnn=runs/cnn-test ...
siglip-jax train ... --dry-run

--features trains an adapter on stored vectors, see docs/guide/finetuning.md.
"""

from __future__ import annotations

from absl import flags

from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="demo.py")
    common_flags.define_tokenizer(values)
    common_flags.define_dataset(values)
    common_flags.define_features(values)
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run: checkpoints, metrics, the trained model.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Print memory, FLOPs, sharding, steps and hours on this machine; then stop.",
        flag_values=values,
    )
    common_flags.define_distributed(values)


def main(values: flags.FlagValues) -> None:
    common_flags.start_distributed(values)
    from tools.workflow import training

    config, features = common_flags.config_of(values), common_flags.features_of(values)
    if values.dry_run:
        training.dry_run(config, dataset=values.dataset, features=features)
        return
    training.train_on_dataset(config, dataset=values.dataset, workdir=values.workdir, features=features)
    print(f"trained model in {values.workdir}")
