"""A trained encoder leaves the library, checked in a process without it."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.dataset import open_split
from input_pipeline.loader.item_vectors import complete_rows
from siglip_jax.errors import UserError
from tools.workflow.item_vectors import Features

ITEMS_CHECKED = 64  # of an export
MAX_ERROR = 1e-5  # of an embedding from equal pixels or vectors
MIN_BYTES_COSINE = 0.9999


def export(
    model: Any,
    output: epath.PathLike,
    *,
    dataset: epath.PathLike | None,
    split: str,
    features: Features | None = None,
    target_tensorflow: str = "",
) -> None:
    """Writes a SavedModel, compares it with the model in a process without JAX, and prints what was found.

    Args:
      dataset, split: whose pictures check the export, or whose stored vectors.
      features: of an adapter; without them its export is checked with vectors that are made up.

    Raises:
      UserError: the SavedModel differs from the model by more than the limits above. Nothing is left of it then.
    """
    from siglip_jax.export import savedmodel

    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output or remove it")
    adapter = bool(model.architecture.features)
    if features is not None:
        features.check(model.architecture.features, model="export")
    if dataset is None and (features is not None or not adapter):
        raise UserError(f"--dataset is missing: its {'items' if adapter else 'pictures'} check the export")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        path = pathlib.Path(temporary) / output.name
        if adapter:
            of, vectors = _vectors(model, dataset=dataset, split=split, features=features)
            savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow)
            error = savedmodel.check_features(path, model, vectors)
            said = f"{of}: largest error {error:.1e}"
            good, limits = error <= MAX_ERROR, f"at most {MAX_ERROR}"
        else:
            rows = open_split(dataset, split)  # type: ignore[arg-type]
            pictures = [rows[i]["image"] for i in range(min(ITEMS_CHECKED, len(rows)))]
            savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow)
            found = savedmodel.check_saved_model(path, model, pictures)
            error, cosine = found["pixels_max_error"], found["bytes_min_cosine"]
            said = f"{len(pictures)} pictures: largest error from pixels {error:.1e}, "
            said += f"smallest cosine from bytes {cosine:.6f}"
            good = error <= MAX_ERROR and cosine >= MIN_BYTES_COSINE
            limits = f"at most {MAX_ERROR} and at least {MIN_BYTES_COSINE}"
        said = f"SavedModel {output}, loaded without JAX, {said}"
        if not good:
            raise UserError(f"{said}; expected {limits}: it is not kept")
        shutil.move(path, output)
    print(said)


def _vectors(
    model: Any, *, dataset: epath.PathLike | None, split: str, features: Features | None
) -> tuple[str, dict[str, np.ndarray]]:
    """What an adapter's export is checked with, and words for it."""
    if features is not None:
        assert dataset is not None
        stored = features.of_split(dataset, split)
        rows = complete_rows(stored)[:ITEMS_CHECKED]
        if not len(rows):
            raise UserError(f"export: no item of split {split} has all features; expected stores of one split")
        return f"stored vectors of {len(rows)} items", {name: each.take(rows) for name, each in stored.items()}
    made_up = np.random.default_rng(0).normal(size=(ITEMS_CHECKED, model.architecture.image.numbers))
    statistics = {name: np.asarray(model.params["img"][name], np.float64) for name in ("mean", "scale")}
    made_up = (statistics["mean"] + statistics["scale"] * made_up).astype(np.float32)
    sizes = model.architecture.features
    parts = np.split(made_up, np.cumsum(list(sizes.values()))[:-1], axis=1)
    return f"{ITEMS_CHECKED} made-up vectors (none by --features)", dict(zip(sizes, parts, strict=True))
