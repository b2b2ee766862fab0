"""A trained encoder leaves the library, checked in a process without it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.dataset import open_split
from input_pipeline.loader.item_vectors import complete_rows
from siglip_jax.errors import UserError
from siglip_jax.export.limits import Limits, limits_of
from tools.workflow.adapters.export_encoders import open_encoders, stacked
from tools.workflow.item_vectors import Features

ITEMS_CHECKED = 64  # of an export
ONNX = ".onnx"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What an export gave for some items, beside the model.

    Attributes:
      of: the items, in words.
      errors: {what went in: the largest difference of an embedding}.
      cosines: {what went in: the smallest cosine}.
      limits: of both.
    """

    of: str
    errors: dict[str, float]
    limits: Limits
    cosines: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        errors = [f"largest error from {name} {error:.1e}" for name, error in self.errors.items()]
        cosines = [f"smallest cosine from {name} {cosine:.6f}" for name, cosine in self.cosines.items()]
        return f"{self.of}: {', '.join(errors + cosines)}{self.limits}"

    def check(self, said: str) -> None:
        """UserError beyond the limits; NaN is beyond them."""
        error, cosine = self.limits.max_error, self.limits.min_cosine
        if not (all(x <= error for x in self.errors.values()) and all(x >= cosine for x in self.cosines.values())):
            limits = f"at most {error:.1e}" + (f" and at least {cosine:.6f}" if self.cosines else "")
            raise UserError(f"{said}; expected {limits}{self.limits}: it is not kept")


def export(
    model: Any,
    output: epath.PathLike,
    *,
    dataset: epath.PathLike | None,
    split: str,
    features: Features | None = None,
    encoders: Mapping[str, str] | None = None,
    target_tensorflow: str = "",
) -> None:
    """Writes a SavedModel, or of an adapter an .onnx file, compares it with the model, and prints what was found.

    Args:
      output: a name that ends in .onnx means ONNX.
      dataset, split: whose pictures check the export, or whose stored vectors.
      features: of an adapter; without them its export is checked with vectors that are made up.
      encoders: {feature: network} to join with an adapter, one for each of its features.

    Raises:
      UserError: the export differs from the model by more than the limits above, or cannot be made. Nothing is left of
        it then.
    """
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output or remove it")
    wanted = model.architecture.features
    if features is not None:
        features.check(wanted, model="export")
    if encoders and encoders.keys() != wanted.keys():
        flags = ", ".join(f"--encoder={name}=NETWORK" for name in wanted)
        raise UserError(
            f"export: --encoder for {', '.join(encoders)}; expected "
            + (f"{flags}, or none" if wanted else "none, since this model takes pictures")
        )
    if dataset is None and (features is not None or encoders or not wanted):
        raise UserError(f"--dataset is missing: its {'items' if features else 'pictures'} check the export")
    write = _write_onnx if output.suffix == ONNX else _write_saved_model
    options: dict[str, Any] = {"features": features, "encoders": encoders, "target_tensorflow": target_tensorflow}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        path = pathlib.Path(temporary) / output.name
        compared = write(model, path, dataset=dataset, split=split, **options)
        how = "ONNX file {}, run by onnxruntime" if output.suffix == ONNX else "SavedModel {}, loaded without JAX"
        said = f"{how.format(output)}, {compared}"
        compared.check(said)
        shutil.move(path, output)
    print(said + (f"\nof {model.source}" if model.source else ""))


def _write_saved_model(
    model: Any,
    path: pathlib.Path,
    *,
    dataset: epath.PathLike | None,
    split: str,
    features: Features | None,
    encoders: Mapping[str, str] | None,
    target_tensorflow: str,
) -> Compared:
    from siglip_jax.export import savedmodel

    if encoders:
        opened = open_encoders(encoders, savedmodel=True)
        pictures, stored = _pictures(dataset, split, features)
        pixels = stacked(opened, pictures)
        vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
        expected = model.encode_image(vectors)
        savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow, encoders=opened)
        found = savedmodel.run_without_jax(
            path, {"pixels": pixels, "serving_default": {"image": pictures}, "features": vectors}
        )
        cosines = {"bytes": _cosine(found["serving_default"], expected)}
        if stored:
            cosines["bytes to stored vectors"] = _cosine(found["serving_default"], model.encode_image(stored))
        errors = {name: float(np.abs(found[name] - expected).max()) for name in ("pixels", "features")}
        limits = limits_of(model, vectors)
        return Compared(of=f"{len(pictures)} pictures", errors=errors, cosines=cosines, limits=limits)
    if model.architecture.features:
        of, vectors = _vectors(model, dataset=dataset, split=split, features=features)
        savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow)
        error = savedmodel.check_features(path, model, vectors)
        return Compared(of=of, errors={"features": error}, limits=limits_of(model, vectors))
    pictures, _ = _pictures(dataset, split, None)
    savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow)
    both = savedmodel.check_saved_model(path, model, pictures)
    return Compared(
        of=f"{len(pictures)} pictures",
        errors={"pixels": both["pixels_max_error"]},
        cosines={"bytes": both["bytes_min_cosine"]},
        limits=limits_of(model, model.preprocessing.images(pictures)),
    )


def _write_onnx(
    model: Any,
    path: pathlib.Path,
    *,
    dataset: epath.PathLike | None,
    split: str,
    features: Features | None,
    encoders: Mapping[str, str] | None,
    target_tensorflow: str,
) -> Compared:
    from siglip_jax.export import onnx_adapter

    if target_tensorflow:
        raise UserError("--target_tensorflow is of SavedModels; leave it out for .onnx")
    cosines: dict[str, float] = {}
    if encoders:
        opened = open_encoders(encoders, savedmodel=False)
        pictures, stored = _pictures(dataset, split, features)
        pixels = stacked(opened, pictures)
        given = {name: opened[name].network_input(pixels[name]) for name in opened}
        vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
        of, what = f"{len(pictures)} pictures", "pixels"
        onnx_adapter.export_onnx(model, path, encoders={name: each.network for name, each in opened.items()})
    else:
        (of, given), what, stored = _vectors(model, dataset=dataset, split=split, features=features), "features", {}
        vectors = given
        onnx_adapter.export_onnx(model, path)
    found = onnx_adapter.run_onnx(path, given)
    if stored:
        cosines["pixels to stored vectors"] = _cosine(found, model.encode_image(stored))
    error = float(np.abs(found - model.encode_image(vectors)).max())
    return Compared(of=of, errors={what: error}, cosines=cosines, limits=limits_of(model, vectors))


def _cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sum(found * expected, axis=-1).min())


def _pictures(
    dataset: epath.PathLike | None, split: str, features: Features | None
) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """Pictures of the first items, and their stored vectors where there are any."""
    assert dataset is not None
    rows = open_split(dataset, split)
    if features is None:
        return [rows[i]["image"] for i in range(min(ITEMS_CHECKED, len(rows)))], {}
    chosen, vectors = _stored(dataset, split, features)
    return [rows[int(i)]["image"] for i in chosen], vectors


def _stored(dataset: epath.PathLike, split: str, features: Features) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of the first items that have all features, and these."""
    stored = features.of_split(dataset, split)
    rows = complete_rows(stored)[:ITEMS_CHECKED]
    if not len(rows):
        raise UserError(f"export: no item of split {split} has all features; expected stores of one split")
    return rows, {name: each.take(rows) for name, each in stored.items()}


def _vectors(
    model: Any, *, dataset: epath.PathLike | None, split: str, features: Features | None
) -> tuple[str, dict[str, np.ndarray]]:
    """What an adapter alone is checked with, and words for it."""
    if features is not None:
        assert dataset is not None
        rows, vectors = _stored(dataset, split, features)
        return f"stored vectors of {len(rows)} items", vectors
    made_up = np.random.default_rng(0).normal(size=(ITEMS_CHECKED, model.architecture.image.numbers))
    mean, scale = (np.asarray(model.params["img"][name], np.float64) for name in ("mean", "scale"))
    sizes = model.architecture.features
    parts = np.split((mean + scale * made_up).astype(np.float32), np.cumsum(list(sizes.values()))[:-1], axis=1)
    return f"{ITEMS_CHECKED} made-up vectors (none by --features)", dict(zip(sizes, parts, strict=True))
