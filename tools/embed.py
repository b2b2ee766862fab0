"""siglip-jax embed: embeds the pictures of a dataset's split into an embedding store (Parquet with a manifest).

siglip-jax embed --model=runs/fashion --dataset=data/fashion --output=runs/fashion/embeddings
siglip-jax embed --model=mobilenet.tflite --dataset=data/fashion --output=runs/mobilenet/embeddings
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
    from tools import workflow

    encoder = workflow.load_encoder(values.model)
    store = workflow.embed(encoder, dataset=values.dataset, split=values.split, output=values.output)
    print(f"{len(store.ids)} embeddings of {store.vectors.shape[1]} numbers in {values.output}")
