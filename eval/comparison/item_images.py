"""The images of the items: as a baseline that knows pixels alone, and for the report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from etils import epath

from eval.comparison.items import Items
from eval.rankers import baselines
from input_pipeline.dataset import open_split
from input_pipeline.loader import iterate_split
from input_pipeline.progress import progress
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

BATCH = 256


def pixel_vectors(dataset: epath.PathLike, split: str, *, items: Items, side: int = 32) -> np.ndarray:
    """The images of a split's items, float32 [n, side * side * 3], as "raw pixels": squashed to side x side, centred.

    Raises:
      UserError: one of these images cannot be read.
    """
    preprocessing = Preprocessing(image_size=(side, side))
    total = len(open_split(dataset, split))
    wanted = np.zeros(total, bool)
    wanted[items.rows] = True
    on_error = "error" if wanted.all() else "skip"
    batches = iterate_split(dataset, split=split, preprocessing=preprocessing, batch_size=BATCH, on_error=on_error)
    watched = progress(batches, total=total, label="raw pixels", unit="images", step=BATCH)
    images = np.concatenate([batch["image"][wanted[batch["index"]]] for batch in watched])
    if lost := [bad for bad in batches.skipped if wanted[bad.row]]:
        raise UserError(
            f"{dataset}: split {split}: {lost[0]}, though the stores have it; embed again, or leave out raw pixels"
        )
    return baselines.raw_pixels(images)


def images_by_id(dataset: epath.PathLike, split: str, *, items: Items) -> Callable[[str], bytes]:
    """id -> encoded image, for the report."""
    source = open_split(dataset, split)
    places = dict(zip(items.ids, items.rows, strict=True))
    return lambda item: source[places[item]]["image"]
