"""siglip-jax interleave: lists from two embedding stores, mixed by team-draft, to be shown to users.

  siglip-jax interleave --store=old=runs/old/embeddings --store=new=runs/new/embeddings --output=runs/lists.parquet

The shop shows the lists and logs list_id with each event; `siglip-jax abtest --interleaved=runs/lists.parquet
--logs=...` says which store users prefer.
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "store", None, "name=folder or file of embeddings; two.", required=True, flag_values=values
    )
    common_flags.define_output(values, "The lists, a .parquet file.")
    flags.DEFINE_string("queries", "", "Text file with a query item id a line; all items when absent.", values)
    flags.DEFINE_integer("length", 10, "Items of a list.", 1, flag_values=values)
    flags.DEFINE_integer(
        "drafts", 2, "Lists of each query item, by other coins; show them in turn.", 1, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Another seed, other coins.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from eval.comparison.choose_rankers import read_vectors
    from eval.comparison.items import read_items
    from eval.experiments import drafted_table, write_lists
    from eval.rankers import VectorRanker

    if not values.output.endswith(".parquet"):
        raise UserError(f"--output={values.output}: expected a file name ending in .parquet")
    stores = common_flags.named_paths(values.store, flag="store")
    if len(stores) != 2:
        raise UserError(f"--store: {len(stores)} given; expected two, such as --store=old=... --store=new=...")
    items = read_items(None, "", stores)
    rankers = [
        VectorRanker(name, read_vectors(name, path, items=items, dataset=None, any_order=True)[0], ids=items.ids)
        for name, path in stores.items()
    ]
    asked = common_flags.read_ids(values.queries, flag="queries") if values.queries else items.ids
    table = drafted_table(
        rankers, items.ids, asked, names=list(stores), length=values.length, drafts=values.drafts, seed=values.seed
    )
    write_lists(values.output, table, rankers=list(stores))
    print(f"{len(table['list_id'].unique())} lists of {' and '.join(stores)} in {values.output}")
