"""siglip-jax rank: ranks each item of a split against the others with one or more embedding stores, and reports.

  siglip-jax rank --config=configs/fashion.py --dataset=data/fashion --output=runs/report.html \\
    --store=old=runs/old/embeddings --store=new=runs/new/embeddings

The last --store (or --new) is compared with all other rows, with --against first; "random" and "raw pixels" come by
themselves. A store may be a file of embeddings: --store=mine=vectors.npy. Made smaller, and at every width:

  --reduce=new=pca:128 --fit=new=runs/new/training_embeddings --ladder=new
"""

from __future__ import annotations

import pathlib

from absl import flags

from siglip_jax.errors import UserError
from tools import options, rows


def define_flags(values: flags.FlagValues) -> None:
    options.define_config(values, default="demo.py")
    options.define_dataset(values)
    options.define_output(values, "The report, an .html file; the same as .json is written beside it.")
    rows.define_flags(values)
    flags.DEFINE_multi_string(
        "slice",
        None,
        "Attribute, or attribute:bands for a number, to slice the queries by; absent, the attributes of relevance.",
        flag_values=values,
    )
    options.define_scann(values)


def main(values: flags.FlagValues) -> None:
    from eval.report import format_table, write_report
    from input_pipeline.dataset import attributes
    from tools import comparison

    if not values.output.endswith(".html"):
        raise UserError(f"--output={values.output}: expected a file name ending in .html")
    config, split = values.config, values.config.evaluation.split
    comparison.relevance_of(config, values.dataset)  # before minutes are spent on rows
    ids, titles, columns = attributes(values.dataset, split)
    sliced = values["slice"].value
    slicings = rows.slicings_of(
        comparison.relevance_attributes(config) if sliced is None else sliced, {"title": titles, **columns}, ids=ids
    )
    compared = rows.read_rows(values, split=split)
    report = comparison.rank(
        compared.rows,
        config=config,
        dataset=values.dataset,
        title=f"Ranking of {pathlib.Path(values.dataset).name}",
        new=compared.new,
        against=compared.against,
        scann=options.scann_options(values.scann),
        slicings=slicings,
        ladders={name: (compared.vectors[name], rungs) for name, rungs in compared.ladders.items()},
        bytes_per_item=compared.bytes_per_item,
        provenance=compared.provenance,
    )
    write_report(values.output, report, pictures=comparison.pictures_by_id(values.dataset, split))
    print(format_table(report))
    print(f"report: {values.output}")
