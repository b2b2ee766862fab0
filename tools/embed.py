"""siglip-jax embed: embeds the pictures of a dataset's split into an embedding store (Parquet with a manifest).

siglip-jax embed --model=runs/fashion --dataset=data/fashion --output=runs/fashion/embeddings
siglip-jax embed --model=mobilenet.tflite --dataset=data/fashion --output=runs/mobilenet/embeddings
siglip-jax embed --model=pixels:16x12 --dataset=data/fashion --output=runs/pixels/embeddings
siglip-jax embed --embeddings=mine.npy --dataset=data/fashion --output=runs/mine/embeddings
siglip-jax embed --model=runs/adapter --features=cnn=runs/mobilenet/embeddings --dataset=data/fashion --output=...

--features gives an adapter the stored vectors that it was trained on; items without any are left out and named.

--embeddings brings vectors made elsewhere, by id: .npy with .ids.txt beside it, .npz (ids, embeddings), .parquet, .csv.

A row that cannot be read is an error; with --on_error=skip it is left out, named, and recorded in the store, so that
ranking and search know that the item is missing.

Started again after a stop it continues, finished shards kept. Several processes share out the shards
(docs/guide/launch.md).
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_model(values, required=False)
    flags.DEFINE_string("embeddings", None, "File of embeddings, in the place of --model.", flag_values=values)
    common_flags.define_features(values)
    common_flags.define_dataset(values)
    common_flags.define_output(values, "Folder of the embedding store.")
    flags.DEFINE_string("split", "test", "Split to embed.", flag_values=values)
    flags.DEFINE_integer(
        "most", None, "At most so many items, spread over the split: enough to fit a PCA on.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "rows_per_shard",
        8192,
        "Pictures of a shard, which is what a stop loses at most and what processes share out; a multiple of 256, or "
        "less.",
        lower_bound=1,
        flag_values=values,
    )
    common_flags.define_on_error(
        values, "error", "Rows whose record or image cannot be read: error stops, skip leaves them out and names them."
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a store of another model or dataset.", flag_values=values)
    common_flags.define_distributed(values)


def main(values: flags.FlagValues) -> None:
    common_flags.start_distributed(values)
    from eval.embeddings.store import describe_skipped
    from tools.workflow import embedding

    if (values.model is None) == (values.embeddings is None):
        raise UserError("expected either --model to embed with, or --embeddings that are made already")
    where = {"dataset": values.dataset, "split": values.split, "output": values.output}
    if values.embeddings is not None and (values.most is not None or values.on_error != "error" or values.features):
        flag = "most" if values.most is not None else "features" if values.features else "on_error"
        raise UserError(f"--{flag} is of --model: embeddings that are made already are taken as they are")
    if values.embeddings is not None:
        store = embedding.import_embeddings(values.embeddings, **where)
    else:
        store = embedding.embed(
            embedding.load_encoder(values.model, features=common_flags.features_of(values)),
            **where,
            most=values.most,
            rows_per_shard=values.rows_per_shard,
            on_error=values.on_error,
            overwrite=values.overwrite,
        )
    if store.skipped:
        said = describe_skipped(store.skipped)
        print(f"{len(store.skipped)} rows of split {values.split} skipped, as the store's manifest says: {said}")
    print(f"{len(store.ids)} embeddings of {store.vectors.shape[1]} numbers in {values.output}")
