"""siglip-jax embed: embeds the pictures of a dataset's split into an embedding store (Parquet with a manifest).

siglip-jax embed --model=runs/fashion --dataset=data/fashion --output=runs/fashion/embeddings
"""

from __future__ import annotations

from absl import flags

from tools import options


def define_flags(values: flags.FlagValues) -> None:
    options.define_model(values)
    options.define_dataset(values)
    options.define_output(values, "Folder of the embedding store.")
    flags.DEFINE_string("split", "test", "Split to embed.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from siglip_jax.model import load
    from tools import workflow

    store = workflow.embed(
        load(values.model), dataset=values.dataset, split=values.split, output=values.output, name=values.model
    )
    print(f"{len(store.ids)} embeddings of {store.vectors.shape[1]} numbers in {values.output}")
