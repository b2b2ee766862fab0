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

--update embeds what is new in the dataset or was changed, keeps the rest and drops what is gone; who reads the store
reads the old one until the new one is whole. --dtype=float16 or int8 stores smaller numbers. --pool=mean makes
one vector of all pictures of an item, with --pool_by=product of all items of a product; --pool=each a row of each.

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
    flags.DEFINE_boolean(
        "update", False, "Embed only what is new or was changed since the store was made.", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", None, ["float32", "float16", "int8"],
        "Numbers of the store; int8 has a scale for each vector. By default float32, or what an updated store has.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "pool", None, ["mean", "each"],
        "All pictures of an item, not the first alone. mean: as one vector, the mean of unit vectors made a unit "
        "vector again. each: a row of each, 17, 17#2, 17#3; search shows an item once, by its nearest picture.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "pool_by", None, "With --pool: items that are equal in this attribute are one.", flag_values=values
    )
    common_flags.define_distributed(values)


def main(values: flags.FlagValues) -> None:
    common_flags.start_distributed(values)
    from eval.embeddings.store import describe_skipped, read_manifest, skipped_of
    from tools.workflow import embedding

    if (values.model is None) == (values.embeddings is None):
        raise UserError("expected either --model to embed with, or --embeddings that are made already")
    where = {"dataset": values.dataset, "split": values.split, "output": values.output}
    if values.pool_by and not values.pool:
        raise UserError("--pool_by says which items are one; say how they become one, --pool=mean")
    if values.pool_by and values.pool != "mean":
        raise UserError(f"--pool={values.pool}: a row of each picture is not pooled; leave --pool_by out")
    if values.pool and values.features and not values.pool_by:
        raise UserError(
            f"--pool={values.pool}: an adapter has one vector of an item; give --pool_by, or leave --pool out"
        )
    if values.update and values.overwrite:
        raise UserError("--update keeps what is unchanged, --overwrite nothing: give one of them")
    changes = None
    if values.embeddings is not None:
        given = [name for name in ("most", "features", "update", "pool") if getattr(values, name)]
        if given := given + ["on_error"] * (values.on_error != "error"):
            raise UserError(f"--{given[0]} is of --model: embeddings that are made already are taken as they are")
        embedding.import_embeddings(values.embeddings, **where, dtype=values.dtype)
    else:
        changes = embedding.embed_split(
            embedding.load_encoder(values.model, features=common_flags.features_of(values)),
            **where,
            most=values.most,
            rows_per_shard=values.rows_per_shard,
            on_error=values.on_error,
            overwrite=values.overwrite,
            update=values.update,
            dtype=values.dtype,
            pool=values.pool,
            pool_by=values.pool_by,
        )
    manifest = read_manifest(values.output)
    if skipped := skipped_of(manifest):
        said = describe_skipped(skipped)
        print(f"{len(skipped)} rows of split {values.split} skipped, as the store's manifest says: {said}")
    if changes is not None:
        print(changes)
    print(f"{manifest['count']} embeddings of {manifest['dimension']} numbers in {values.output}")
