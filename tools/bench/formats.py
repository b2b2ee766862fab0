"""siglip-jax bench formats: what each export of a model gives in cosine and ranking, by its own consumer.

siglip-jax bench formats --config=configs/demo.py --dataset=runs/demo/dataset --model=runs/demo/train/...
siglip-jax bench formats ... --transformers=PYTHON     its row, with a Python that has torch and transformers

The pictures of the evaluation split are embedded by each export, in a process that has what its users have and nothing
of this library, and each item is ranked against the others, as `siglip-jax rank` does. Differences are those to the
model itself, paired by query; intervals are of 95 %.
"""

from __future__ import annotations

import pathlib
import tempfile

from absl import flags

from tools import common_flags

BATCH = 64


def define_flags(values: flags.FlagValues) -> None:
    from tools.bench.export_parts.export_rows import ROWS

    common_flags.define_config(values, default="demo.py")
    common_flags.define_dataset(values)
    common_flags.define_model(values)
    flags.DEFINE_list("rows", list(ROWS), "Exports; the model itself, jax, is always there.", flag_values=values)
    flags.DEFINE_string(
        "transformers", None, "A Python that has torch and transformers, for their row.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    import numpy as np

    from eval.comparison.by_attributes import rank_by_attributes, relevance_over
    from eval.comparison.items import read_split
    from eval.rankers import VectorRanker
    from eval.statistics import mean_interval, paired_difference
    from input_pipeline.dataset import open_split
    from siglip_jax.loading import load
    from tools.bench import measuring
    from tools.bench.export_parts import export_rows
    from tools.bench.export_parts.consumer_process import write_pictures

    config, split = values.config, values.config.evaluation.split
    items = read_split(values.dataset, split)
    relevance_over(config, items)  # says at once what is wrong with it
    model = load(values.model)
    names = export_rows.chosen(values.rows, python=values.transformers)
    rows, vectors = open_split(values.dataset, split), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_pictures(folder / "pictures.npz", [rows[row]["image"] for row in range(len(rows))])
        for name, path in export_rows.write_exports(model, folder, names).items():
            with export_rows.consumers_of(
                {name: path}, folder / "pictures.npz", folder=folder, python=values.transformers
            ) as consumers:
                consumers[name].embed(0, len(rows), batch=BATCH, save=folder / "found.npy")
            vectors[name] = np.load(folder / "found.npy")
    result = rank_by_attributes(
        [VectorRanker(name, found, ids=items.ids) for name, found in vectors.items()],
        config=config,
        dataset=values.dataset,
        items=items,
    )
    metric, clusters = result.protocol.measures.primary, result.queries.clusters
    table, itself = [], export_rows.JAX
    for name, found in vectors.items():
        cosines = np.sum(found * vectors[itself], axis=1, dtype=np.float64)
        mean = mean_interval(result.values[name], clusters=clusters)
        change = paired_difference(result.values[name], result.values[itself], clusters=clusters)
        difference = "-" if name == itself else f"{change.mean:+.5f} [{change.low:+.5f}, {change.high:+.5f}]"
        cells = [f"{cosines.min():.6f}", f"{cosines.mean():.6f}", f"{mean.mean:.5f} [{mean.low:.3f}, {mean.high:.3f}]"]
        table.append([name, *cells, difference])
    print(f"{measuring.machine()}; {len(rows):,} pictures of {split}, {len(rows) - result.unanswerable:,} queries")
    print(measuring.table(("", "least cosine", "mean cosine", metric, "difference to jax"), table))
