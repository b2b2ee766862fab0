"""Items of an evaluation that a training split holds too: by id, by picture or by title."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from input_pipeline.audit import Leakage, check_log, find_leakage, find_log_leakage
from input_pipeline.dataset import has_split
from input_pipeline.dataset.item_table import item_table, split_names
from siglip_jax.errors import UserError, checked_on_error

KINDS = {"title": "title", "image": "picture", "id": "id"}  # the last that holds is told


@dataclasses.dataclass(frozen=True)
class LeakedItems:
    """Evaluation items that training saw.

    Attributes:
      found: {id: what of it is in the training split}; None where nobody looked.
      by: what of the items was looked for, in words.
      skip: leave them out, as queries and candidates; otherwise they are an error.
    """

    found: Mapping[str, str] | None = None
    by: str = "id, picture or title"
    skip: bool = False

    def check(self) -> None:
        """Raises a UserError where there are such items, unless they are to be left out."""
        if not self.found or self.skip:
            return
        shown = ", ".join(f"{item!r} ({why})" for item, why in list(self.found.items())[:10])
        raise UserError(
            f"{len(self.found)} evaluation items are in the training split by id, picture or title: {shown}"
            f"{', ...' if len(self.found) > 10 else ''}; leave them out with --leakage=skip"
        )


def in_training(
    dataset: epath.PathLike, split: str, *, train_dataset: epath.PathLike, train_split: str
) -> dict[str, str]:
    """{id: "id", "picture" or "title", what of it is in the training split} for the items of an evaluation split."""
    return _by_item(find_leakage(_items(train_dataset, train_split), _items(dataset, split)))


def _by_item(leakage: Leakage) -> dict[str, str]:
    found, leaked = leakage.found, dict[str, str]()
    for key, kind in KINDS.items():
        leaked |= dict.fromkeys(found.filter(pc.equal(found["key"], key))["id"].to_pylist(), kind)
    return leaked


def training_items(
    dataset: epath.PathLike | None,
    split: str,
    *,
    ids: Sequence[str],
    train_dataset: epath.PathLike | None,
    train_split: str,
    leakage: str,
    output: epath.PathLike,
) -> LeakedItems:
    """`in_training`, where there is something to compare with.

    Args:
      ids: of the items, which alone are known of them without a dataset; the training dataset may know more.
      leakage: "error" or "skip". Without a dataset the error is raised here, otherwise by `LeakedItems.check`.
      output: a .csv file for the list of what is an error here.

    Raises:
      UserError: no such split; leakage without a dataset, unless it is to be skipped.
    """
    skip = checked_on_error("leakage", leakage) == "skip"
    if not dataset:
        if not train_dataset:
            return LeakedItems(by="id", skip=skip)
        if skip:
            found = _by_item(find_log_leakage(train_dataset, ids, train_split=train_split))
        else:
            found = _by_item(check_log(train_dataset, ids, train_split=train_split, output=output))
        return LeakedItems(found, by="id", skip=skip)
    if not train_dataset and (split == train_split or not has_split(dataset, train_split)):
        return LeakedItems(skip=skip)
    found = in_training(dataset, split, train_dataset=train_dataset or dataset, train_split=train_split)
    return LeakedItems(found, skip=skip)


def _items(dataset: epath.PathLike, split: str) -> pa.Table:
    if not has_split(dataset, split):
        raise UserError(f"{dataset}: no split {split}; splits are {', '.join(split_names(dataset))}")
    table = item_table(dataset, columns=("id", "title", "image_sha256", "split"))
    return table.filter(pc.equal(table["split"], split))
