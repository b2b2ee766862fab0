"""siglip-jax simulate: simulated sessions over a dataset's split, as a log to try `siglip-jax rank --logs` on.

siglip-jax simulate --config=configs/fashion.py --dataset=data/fashion --output=runs/simulated.parquet
siglip-jax simulate --config=configs/fashion.py --dataset=data/fashion --output=runs/experiment.parquet \\
  --store=old=runs/old/embeddings --store=new=runs/new/embeddings

The config's relevance rules tell what simulated users like. Every id says "simulated", and so does every report. With
two stores the sessions are an online experiment, to try `siglip-jax abtest` on: half of the users get the lists of the
second store from the middle of the days on; before, all get those of the first. With --interleaved they are shown the
lists of `siglip-jax interleave`.
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "store", [], "name=embeddings; two, the control first, for an online experiment.", flag_values=values
    )
    flags.DEFINE_string(
        "interleaved", "", "Lists of siglip-jax interleave, for users who are shown these.", flag_values=values
    )
    common_flags.define_config(values, default="demo.py")
    common_flags.define_dataset(values)
    common_flags.define_output(values, "The log, a .parquet file.")
    for name, default, text in (
        ("queries", 2000, "How many."),
        ("users", 300, "How many; few of them ask much."),
        ("length", 20, "Items of a list."),
        ("days", 60, "That the queries are spread over."),
        ("heavy", 0, "Events of one user beyond all others."),
        ("seed", 0, "Another seed, other sessions."),
    ):
        flags.DEFINE_integer(name, default, text, flag_values=values)


def main(values: flags.FlagValues) -> None:
    from eval.comparison.by_attributes import relevance_of
    from eval.simulate import Sessions, simulate_log, write_simulated_log
    from input_pipeline.dataset import attributes

    if not values.output.endswith(".parquet"):
        raise UserError(f"--output={values.output}: expected a file name ending in .parquet")
    if values.store or values.interleaved:
        _simulate_experiment(values)
        return
    sessions = Sessions(
        queries=values.queries,
        users=values.users,
        length=values.length,
        days=values.days,
        heavy=values.heavy,
        seed=values.seed,
    )
    ids, _, _ = attributes(values.dataset, values.config.evaluation.split)
    table = simulate_log(relevance_of(values.config, values.dataset), ids, sessions)
    write_simulated_log(values.output, table)
    print(f"{table.num_rows} simulated events of {values.queries} simulated queries in {values.output}")


def _simulate_experiment(values: flags.FlagValues) -> None:
    from eval.comparison.by_attributes import relevance_over
    from eval.comparison.choose_rankers import read_vectors
    from eval.comparison.items import read_items
    from eval.experiments import read_lists
    from eval.rankers import VectorRanker
    from eval.simulate import write_simulated_log
    from eval.simulated_experiment import ExperimentSessions, simulate_experiment, simulate_interleaved

    if values.heavy or (values.store and values.interleaved):
        raise UserError("--heavy, --store, --interleaved: expected one of them at most")
    stores = common_flags.named_paths(values.store, flag="store")
    items = read_items(values.dataset, values.config.evaluation.split, stores)
    rankers = {
        name: VectorRanker(name, read_vectors(name, path, items=items, dataset=values.dataset, any_order=False)[0])
        for name, path in stores.items()
    }
    days = values.days // 2
    sessions = ExperimentSessions(
        queries=values.queries,
        users=values.users,
        length=values.length,
        pool=min(4 * values.length, len(items.ids) - 1),
        before=days,
        days=values.days - days,
        seed=values.seed,
    )
    relevance = relevance_over(values.config, items)
    if values.interleaved:
        table = simulate_interleaved(relevance, items.ids, read_lists(values.interleaved), sessions)
    else:
        table = simulate_experiment(relevance, items.ids, rankers, sessions)
    write_simulated_log(values.output, table)
    starts = "" if values.interleaved else f"; the simulated experiment starts on {sessions.start}"
    print(f"{table.num_rows} simulated events of {values.queries} simulated queries in {values.output}{starts}")
