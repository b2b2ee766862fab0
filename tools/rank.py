"""siglip-jax rank: ranks each item of a split against the others with one or more embedding stores, and reports.

  siglip-jax rank --config=configs/fashion.py --dataset=data/fashion --output=runs/report.html \\
    --store=old=runs/old/embeddings --store=new=runs/new/embeddings

The last --store is the one that is compared with all others; "random" and "raw pixels" rows come by themselves.
"""

from __future__ import annotations

import pathlib

from absl import flags

from siglip_jax.errors import UserError
from tools import options


def define_flags(values: flags.FlagValues) -> None:
    options.define_config(values, default="demo.py")
    options.define_dataset(values)
    options.define_output(values, "The report, an .html file; the same as .json is written beside it.")
    flags.DEFINE_multi_string("store", None, "name=folder of an embedding store.", required=True, flag_values=values)
    flags.DEFINE_multi_string("baseline", ["random", "raw pixels"], "Rows that need no store.", flag_values=values)
    options.define_scann(values)


def main(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.report import format_table, write_report
    from input_pipeline.dataset import attributes, dataset_fingerprint
    from tools import comparison

    if not values.output.endswith(".html"):
        raise UserError(f"--output={values.output}: expected a file name ending in .html")
    split = values.config.evaluation.split
    ids, _, _ = attributes(values.dataset, split)
    folders = options.named_paths(values.store, flag="store")
    if taken := folders.keys() & set(values.baseline):
        raise UserError(f"--store={taken.pop()}=...: a baseline has this name; choose another")
    stores = {name: read_store(folder) for name, folder in folders.items()}
    for name, store in stores.items():
        comparison.check_same_items(name, store, ids, fingerprint=dataset_fingerprint(values.dataset))
    vectors = comparison.baseline_vectors(values.baseline, dataset=values.dataset, split=split)
    vectors |= {name: store.vectors for name, store in stores.items()}
    report = comparison.rank(
        vectors,
        config=values.config,
        dataset=values.dataset,
        title=f"Ranking of {pathlib.Path(values.dataset).name}",
        new=list(stores)[-1],
        scann=options.scann_options(values.scann),
        provenance={"stores": {name: store.manifest.get("model", {}) for name, store in stores.items()}},
    )
    write_report(values.output, report, pictures=comparison.pictures_by_id(values.dataset, split))
    print(format_table(report))
    print(f"report: {values.output}")
