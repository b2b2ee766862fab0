"""siglip-jax embed: embeds the pictures of a dataset's split into an embedding store (Parquet with a manifest).

siglip-jax embed --model=runs/fashion --dataset=data/fashion --output=runs/fashion/embeddings
siglip-jax embed --model=mobilenet.tflite --dataset=data/fashion --output=runs/mobilenet/embeddings

Started again after a stop it continues, finished shards kept. Several processes (docs/launch.md) share out the shards.
"""

from __future__ import annotations

from absl import flags

from tools import options


def define_flags(values: flags.FlagValues) -> None:
    options.define_model(values)
    options.define_dataset(values)
    options.define_output(values, "Folder of the embedding store.")
    flags.DEFINE_string("split", "test", "Split to embed.", flag_values=values)
    flags.DEFINE_integer(
        "rows_per_shard",
        8192,
        "Pictures of a shard, which is what a stop loses at most and what processes share out; a multiple of 256, or "
        "less.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a store of another model or dataset.", flag_values=values)
    options.define_distributed(values)


def main(values: flags.FlagValues) -> None:
    options.start_distributed(values)
    from tools import workflow

    store = workflow.embed(
        workflow.load_encoder(values.model),
        dataset=values.dataset,
        split=values.split,
        output=values.output,
        rows_per_shard=values.rows_per_shard,
        overwrite=values.overwrite,
    )
    print(f"{len(store.ids)} embeddings of {store.vectors.shape[1]} numbers in {values.output}")
