"""siglip-jax interleave: lists from two embedding stores, mixed by team-draft, to be shown to users.

  siglip-jax interleave --store=old=runs/old/embeddings --store=new=runs/new/embeddings --output=runs/lists.parquet

The shop shows the lists and logs list_id with each event; `siglip-jax abtest --interleaved=runs/lists.parquet
--logs=...` says which store users prefer.
"""

from __future__ import annotations

import pathlib

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
    import numpy as np
    import pyarrow as pa

    from eval.comparison.choose_rankers import read_vectors
    from eval.comparison.items import read_items
    from eval.experiments import draft_lists, write_lists
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
    place = {item: row for row, item in enumerate(items.ids)}
    asked = list(items.ids)
    if values.queries:
        try:
            asked = [line for line in pathlib.Path(values.queries).read_text().splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--queries={values.queries}: expected a text file with an item id a line") from error
        if unknown := [item for item in asked if item not in place]:
            raise UserError(f"--queries: {len(unknown)} ids are not in the stores, such as {unknown[0]!r}")
    if len(items.ids) < 2 or not asked:
        raise UserError("--store: expected two items or more, and a query item")
    names = list(stores)
    columns: dict[str, list] = {name: [] for name in ("list_id", "query_item_id", "position", "item_id", "ranker")}
    queries = np.array([place[item] for item in asked])
    for query, draft, drafted, teams in draft_lists(
        rankers, queries, length=values.length, drafts=values.drafts, seed=values.seed
    ):
        columns["list_id"] += [f"{items.ids[query]}#{draft}"] * len(drafted)
        columns["query_item_id"] += [items.ids[query]] * len(drafted)
        columns["position"] += range(len(drafted))
        columns["item_id"] += [items.ids[row] for row in drafted]
        columns["ranker"] += [names[team] for team in teams]
    table = pa.table(columns)
    write_lists(values.output, table, rankers=names)
    print(f"{len(set(columns['list_id']))} lists of {names[0]} and {names[1]} in {values.output}")
