"""A trained encoder leaves the library, checked in a process without it."""

from __future__ import annotations

from typing import Any

from etils import epath

from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError

IMAGES_CHECKED = 64  # of an export
MAX_PIXELS_ERROR = 1e-5
MIN_BYTES_COSINE = 0.9999


def export(
    model: Any, output: epath.PathLike, *, dataset: epath.PathLike, split: str, target_tensorflow: str = ""
) -> None:
    """Writes a SavedModel, compares it with the model in a process without JAX, and prints what was found.

    Raises:
      UserError: the SavedModel differs from the model by more than the limits above.
    """
    from siglip_jax.export import savedmodel

    rows = open_split(dataset, split)
    pictures = [rows[i]["image"] for i in range(min(IMAGES_CHECKED, len(rows)))]
    savedmodel.export_saved_model(model, output, target_tensorflow=target_tensorflow)
    found = savedmodel.check_saved_model(output, model, pictures)
    said = (
        f"SavedModel {output}, loaded without JAX, {len(pictures)} pictures: largest error from pixels "
        f"{found['pixels_max_error']:.1e}, smallest cosine from bytes {found['bytes_min_cosine']:.6f}"
    )
    if not (found["pixels_max_error"] <= MAX_PIXELS_ERROR and found["bytes_min_cosine"] >= MIN_BYTES_COSINE):
        raise UserError(f"{said}; expected at most {MAX_PIXELS_ERROR} and at least {MIN_BYTES_COSINE}: do not serve it")
    print(said)
