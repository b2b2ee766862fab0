"""The start, the steps and the mesh. Read by `training.loop`, `training.step`, `training.start` and
`training.parallel`."""

from __future__ import annotations

from siglip_jax.training.config_fields.field import Field, FieldTable, Values, at_least, between, one_of

START = FieldTable(
    "Start",
    "",
    "What a run starts from.",
    {
        "seed": Field(0, "Seed of the random weights, the order of the rows and the changes to examples."),
        "init": Field(
            "",
            "The model to start from, with its preprocessing. Give it to `finetune_config`, whose defaults suit it.",
            Values("a preset's name or a path, as `siglip_jax.load` takes; empty for random weights"),
        ),
    },
)

STEPS = FieldTable(
    "Steps",
    "",
    "What one step computes, and how many there are.",
    {
        "batch_size": Field(256, "Pairs of a step, over all devices.", at_least(1)),
        "microbatch": Field(
            0,
            "Rows of a device that pass through the towers at a time; 0 for all. The loss is over the whole batch "
            "either way. This saves the memory of activations for one more forward pass.",
            at_least(0, "0 for off, or rows per device"),
            free=True,
        ),
        "steps": Field(1000, "Steps of the whole run.", at_least(1)),
        "loss": Field(
            "sigmoid",
            "Loss of the pairs. softmax is that of CLIP: rows of equal title are negatives of each other, b is not "
            "used, and the loss costs a third more.",
            one_of("sigmoid", "softmax"),
        ),
        "same_group": Field(
            "positive",
            "What rows of equal title are to each other: positive pairs, positive pairs of which the k of a row weigh "
            "1/k, pairs that do not count, or negatives, as if their titles differed. Of the sigmoid loss alone.",
            one_of("positive", "mean", "ignore", "negative"),
        ),
    },
)

AVERAGING = FieldTable(
    "Running mean, temperature and bias",
    "",
    "docs/guide/finetuning.md has the reasons.",
    {
        "ema_decay": Field(
            0.0,
            "Share of the old value in the running mean of the parameters. That mean is then the trained model.",
            between(0, 1, "0 for off, or less than 1, such as 0.999", open_high=True),
        ),
        "refit_temperature": Field(
            "none",
            "What of temperature and bias is fitted before the first step, to the model's own embeddings of batches of "
            "this size.",
            one_of("none", "bias", "both"),
        ),
    },
)

_AXIS = Values("a number of devices; -1, on one axis, for those left over")

MESH = FieldTable(
    "Mesh",
    "mesh",
    "How devices are laid out; docs/guide/launch.md has examples. The sizes multiply to the number of devices.",
    {
        "data": Field(-1, "Devices with a whole copy of the parameters each: they share the rows.", _AXIS, free=True),
        "fsdp": Field(1, "Devices that share the rows and the parameters.", _AXIS, free=True),
        "tensor": Field(1, "Devices that share heads and the hidden width of the MLP.", _AXIS, free=True),
    },
)
