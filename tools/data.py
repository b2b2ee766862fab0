"""siglip-jax data: a catalogue becomes a TFDS dataset in ArrayRecord files, with an audit.

The catalogue is a folder or .zip with items.tsv, .csv, .jsonl or .parquet (columns id, title, image, and any
attributes) and the pictures, or a parquet with the pictures inside, or WebDataset tars, or a TFDS dataset;
docs/guide/data.md has them all. Splits are made by title and picture, so that no duplicate is on both sides. A build
that was stopped goes on with the same command.

  siglip-jax data --catalog=shop.zip --output=data/shop
  siglip-jax data --catalog=archive.zip --layout=fashion --output=data/fashion
  siglip-jax data --catalog='shards/shop-{000..123}.tar' --output=data/shop
  siglip-jax data --catalog=tfds:coco_captions --keys=title=captions/text --output=data/coco
  siglip-jax data --catalog=shop.zip --only=type=dress --only=type=skirt --output=data/dresses
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "catalog",
        None,
        "Folder, .zip, table, tars or tfds:NAME; several tables or tars as a range, a pattern, or given again.",
        required=True,
        flag_values=values,
    )
    common_flags.define_output(values, "Folder of the dataset.")
    common_flags.define_layout(values)
    for column in ("id", "title", "image"):
        several = "" if column == "id" else "; several between commas for further ones"
        told = f"Column that holds the {column}{several}."
        flags.DEFINE_string(f"{column}_column", column, told, flag_values=values)
    flags.DEFINE_string(
        "encoding", "", "Of a .csv, .tsv or .jsonl that is not UTF-8: cp1252, cp932, ...", flag_values=values
    )
    flags.DEFINE_string(
        "separator", "", "Between the fields of a .csv or .tsv: one letter, or tab.", flag_values=values
    )
    flags.DEFINE_boolean(
        "dots_in_keys",
        False,
        "Of tars: names have dots, so a key ends at the last and not at the first.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "keys",
        [],
        "Of tfds:NAME, part=feature: where id, title and image are, such as title=captions/text,image=image.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "split", ["train=0.8", "test=0.2"], "name=share, once for each split.", flag_values=values
    )
    flags.DEFINE_list(
        "split_by",
        ["title", "image"],
        "What rows that must be in one split have in common: title, image, near (pictures look alike), attributes.",
        flag_values=values,
    )
    flags.DEFINE_string("time_column", "", "Column that holds the time; with --split_time.", flag_values=values)
    flags.DEFINE_multi_string(
        "split_time", [], "Split by time: test from this date on, or name=date once for each.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "only",
        [],
        "attribute=value of the rows to take; given again, other values of the attribute, or other attributes as well.",
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Of the split.", flag_values=values)
    common_flags.define_on_error(values, "skip", "Bad rows: skip leaves them out, error stops; both list them.")
    common_flags.define_max_left_out(values)
    flags.DEFINE_boolean("overwrite", False, "Replace a dataset that is there.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from input_pipeline.catalogue.tables.text_options import TextOptions
    from tools.workflow import data

    fractions: dict[str, float] = {}
    for entry in values.split:
        name, _, share = entry.partition("=")
        if name in fractions:
            raise UserError(f"--split={entry}: {name} is given twice; give each split once")
        try:
            fractions[name] = float(share)
        except ValueError as error:
            raise UserError(f"--split={entry}: expected name=share, such as train=0.8") from error
    times: dict[str, str] = {}
    for entry in values.split_time:
        name, sign, date = entry.rpartition("=")
        name = name if sign else "test"
        if name in times:
            raise UserError(f"--split_time={entry}: {name} is given twice; give each split once")
        times[name] = date
    if times and values["split"].using_default_value:
        fractions = {}
    keys: dict[str, str] = {}
    for entry in values["keys"].value or []:  # values.keys is a method
        name, sign, feature = entry.partition("=")
        if not (name and sign and feature) or name in keys:
            raise UserError(f"--keys={entry}: expected part=feature, each part once, such as title=captions/text")
        keys[name] = feature
    columns = {name: str(values[f"{name}_column"].value) for name in ("id", "title", "image")}
    data.build_data(
        values.catalog if len(values.catalog) > 1 else values.catalog[0],
        values.output,
        layout=values.layout,
        columns={name: column for name, column in columns.items() if column != name},
        keys=keys,
        text=TextOptions(encoding=values.encoding, separator=values.separator),
        dots_in_keys=values.dots_in_keys,
        fractions=fractions,
        only=common_flags.filters(values.only, what="--only"),
        seed=values.seed,
        split_by=values.split_by,
        time_column=values.time_column,
        split_times=times,
        on_error=values.on_error,
        max_left_out=values.max_left_out,
        overwrite=values.overwrite,
    )
