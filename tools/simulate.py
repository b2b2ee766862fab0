"""siglip-jax simulate: simulated sessions over a dataset's split, as a log to try `siglip-jax rank --logs` on.

siglip-jax simulate --config=configs/fashion.py --dataset=data/fashion --output=runs/simulated.parquet

The config's relevance rules tell what simulated users like. Every id says "simulated", and so does every report.
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
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
