"""Items of an evaluation that a training split holds too: by id, by picture or by title."""

from __future__ import annotations

from collections.abc import Iterable

from etils import epath

from input_pipeline.dataset import has_split, open_split
from input_pipeline.split import normalise_title
from siglip_jax.errors import UserError


def in_training(
    dataset: epath.PathLike, split: str, *, train_dataset: epath.PathLike, train_split: str
) -> dict[str, str]:
    """{id: "id", "picture" or "title", what of it is in the training split} for the items of an evaluation split."""
    theirs: dict[str, set[str]] = {"id": set(), "picture": set(), "title": set()}
    for keys in _keys(train_dataset, train_split):
        for kind, key in keys.items():
            theirs[kind].add(key)
    return {
        keys["id"]: next(kind for kind, key in keys.items() if key in theirs[kind])
        for keys in _keys(dataset, split)
        if any(key in theirs[kind] for kind, key in keys.items())
    }


def training_items(
    dataset: epath.PathLike | None, split: str, *, train_dataset: epath.PathLike | None, train_split: str
) -> dict[str, str] | None:
    """`in_training` where there is something to compare with; None where there is not.

    Raises:
      UserError: a training dataset without one to compare it with.
    """
    if not dataset:
        if train_dataset:
            raise UserError(f"--train_dataset={train_dataset}: the pictures to look for are in --dataset; give it too")
        return None
    if not train_dataset and (split == train_split or not has_split(dataset, train_split)):
        return None
    return in_training(dataset, split, train_dataset=train_dataset or dataset, train_split=train_split)


def _keys(dataset: epath.PathLike, split: str) -> Iterable[dict[str, str]]:
    rows = open_split(dataset, split)
    for start in range(0, len(rows), 1024):
        for row in rows[start : start + 1024]:
            yield {"id": row["id"], "picture": row["image_sha256"], "title": normalise_title(row["title"])}
