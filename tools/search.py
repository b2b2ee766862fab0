"""siglip-jax search: the nearest items of an item, a picture or a text, as a table or as one JSON object.

siglip-jax search --index=runs/shop/index --item=1163 --dataset=data/shop
siglip-jax search --index=runs/shop/index --image=photo.jpg --model=runs/shop
siglip-jax search --index=runs/shop/index --text="red running shoes" --model=runs/shop --json

--dataset adds titles and attributes. --model is the encoder that the index was embedded with; another one is refused.
"""

from __future__ import annotations

import json
import math
import pathlib

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("index", None, "Folder written by siglip-jax index.", required=True, flag_values=values)
    flags.DEFINE_string("item", None, "Id of an item of the index.", flag_values=values)
    flags.DEFINE_string("image", None, "Picture file.", flag_values=values)
    flags.DEFINE_string("text", None, "A few words.", flag_values=values)
    common_flags.define_model(values, required=False)
    flags.DEFINE_string("dataset", None, "Folder written by siglip-jax data, for titles.", flag_values=values)
    flags.DEFINE_integer("k", 10, "Items to show.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("min_score", -math.inf, "Cosine from which an item is shown.", flag_values=values)
    flags.DEFINE_multi_string(
        "where", [], "attribute=value, or attribute=10..50 (..50, 10..) for numbers: only such items; one attribute "
        "given again lets further values through.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "group_by", None, "Attribute: of the items that share a value of it, only the nearest is shown.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "collapse", None, "Cosine, such as 0.98, from which an item is left out as a near-duplicate of one that is "
        "shown.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float("diversity", 0.0, "0 shows the nearest, 1 the least alike of the near ones.", flag_values=values)
    common_flags.define_allow_low_recall(values)
    flags.DEFINE_boolean("json", False, "One JSON object in the place of the table.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    asked = [name for name in ("item", "image", "text") if values[name].value is not None]
    if len(asked) != 1:
        raise UserError(f"{len(asked)} of --item, --image, --text given; expected exactly one")
    if asked[0] != "item" and values.model is None:
        raise UserError(f"--{asked[0]} needs --model, the encoder that the index was embedded with")
    from eval.search import check_recall, load_index
    from eval.search.answers import Answers, read_known
    from eval.search.selection import Selection

    selection = Selection(
        k=values.k,
        least=values.min_score,
        where=common_flags.filters(values.where, what="--where"),
        group_by=values.group_by,
        collapse=values.collapse,
        diversity=values.diversity,
    )
    for flag in ("where", "group_by"):
        if values[flag].value and values.dataset is None:
            raise UserError(f"--{flag} needs --dataset, which has the attributes")
    index = load_index(values.index)
    check_recall(index, allow=values.allow_low_recall)
    answers = Answers(index, None if values.dataset is None else read_known(values.dataset))
    if values.item is not None:
        found = answers.of_item(values.item, selection)
    else:
        from tools.workflow.query_encoder import QueryEncoder

        picture = None if values.image is None else _read_picture(values.image)
        encoder = QueryEncoder.load(values.model, index=index)
        query = encoder.text(values.text) if picture is None else encoder.image(picture)
        found = {"query": {asked[0]: values[asked[0]].value}, **answers.of_vector(query, selection)}
    print(json.dumps(found, ensure_ascii=False) if values.json else _table(found))


def _read_picture(path: str) -> bytes:
    from input_pipeline.folder_or_zip import MAX_FILE_BYTES

    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"--image={path}: no such file")
    if (size := file.stat().st_size) > MAX_FILE_BYTES:
        raise UserError(f"--image={path}: {size} bytes; the limit is {MAX_FILE_BYTES}")
    return file.read_bytes()


def _table(found: dict) -> str:
    """Rank, score, id, title and attributes of each item, in columns."""
    rows: list[tuple[str, ...]] = [("", "score", "id", "title", "attributes")]
    for place, item in enumerate(found["items"], 1):
        attributes = ", ".join(f"{name}={value}" for name, value in item["attributes"].items())
        rows.append(
            (str(place), f"{item['score']:.3f}", *(_line(item[key]) for key in ("id", "title")), _line(attributes))
        )
    notes = [
        f"no item has {name}={_line(value)}" for name, some in found.get("unmatched", {}).items() for value in some
    ]
    if len(rows) == 1:
        return "\n".join(["no item found", *notes])
    if left_out := found.get("collapsed", 0):
        notes.append(f"{left_out} near-duplicates of these left out")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([*lines, *notes])


def _line(text: str) -> str:
    """Printable, on one line: titles come from elsewhere, and a terminal obeys control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
