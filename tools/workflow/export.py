"""A trained model leaves the library, checked in a process without it."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.dataset import open_split
from input_pipeline.loader.item_vectors import complete_rows
from siglip_jax.errors import UserError
from siglip_jax.export.golden import ODD_TITLES, Call, check_golden, golden_folder, odd_pictures, write_golden
from siglip_jax.export.limits import Limits, limits_of
from tools.workflow.adapters.export_encoders import open_encoders, stacked
from tools.workflow.item_vectors import Features

ITEMS_CHECKED = 64  # of an export
GOLDEN_BYTES = 2**23  # of pictures, and of pixels: so many items are enough
ONNX = ".onnx"


def export(
    model: Any,
    output: epath.PathLike,
    *,
    dataset: epath.PathLike | None,
    split: str,
    features: Features | None = None,
    encoders: Mapping[str, str] | None = None,
    target_tensorflow: str = "",
    text: str = "ids",
) -> None:
    """Writes a SavedModel, or of an adapter an .onnx file, with golden inputs and answers, and checks it with these.

    Args:
      output: a name that ends in .onnx means ONNX.
      dataset, split: whose pictures and titles check the export, or whose stored vectors.
      features: of an adapter; without them its export is checked with vectors that are made up.
      encoders: {feature: network} to join with an adapter, one for each of its features.
      text: what the text tower of a SavedModel takes, see `export_saved_model`.

    Raises:
      UserError: an answer differs from the model's by more than its limits, or the export cannot be made or run.
        Nothing is left of it then.
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
    source = _Source(dataset=dataset, split=split, features=features)
    onnx = output.suffix == ONNX
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as temporary:
        path = pathlib.Path(temporary) / output.name
        if onnx:
            calls, limits = _write_onnx(model, path, source, encoders=encoders, target_tensorflow=target_tensorflow)
        else:
            calls, limits = _write_saved_model(
                model, path, source, encoders=encoders, target_tensorflow=target_tensorflow, text=text
            )
        golden = golden_folder(path)
        runtime = "onnx" if onnx else "savedmodel"
        write_golden(golden, calls, model=f"../{path.name}" if onnx else "..", runtime=runtime)
        kind = "ONNX file" if onnx else "SavedModel"
        said = f"{kind} {output}, run without JAX: {_said(check_golden(golden), limits)}"
        if onnx:
            shutil.move(golden, golden_folder(output))
        shutil.move(path, output)
    print(said + (f"\nof {model.source}" if model.source else ""))


def verify(export: epath.PathLike) -> None:
    """Replays the golden inputs of an export, and prints what was found.

    Raises:
      UserError: no export with golden files, one that cannot be run, or an answer beyond its limits.
    """
    path = pathlib.Path(export)
    golden = golden_folder(path)
    if not (golden / "golden.json").exists():
        raise UserError(f"{path}: no golden.json in {golden}; expected what siglip-jax export wrote")
    print(f"{path}, run without JAX: {_said(check_golden(golden), [])}")


def _said(results: list[dict[str, Any]], limits: Iterable[Limits]) -> str:
    """One line of all answers; a UserError where one is beyond its limits, NaN included."""
    parts, beyond = [], []
    for each in results:
        cosine, allowed = each["min_cosine"], each["limits"]
        of, found = f"{each['rows']} {each['of']}", f"largest error from {each['signature']} {each['max_error']:.1e}"
        expected = f"at most {allowed.get('max_error', 0):.1e}"
        if cosine is not None:
            found = f"smallest cosine from {each['signature']} {cosine:.6f}"
            expected = f"at least {allowed['min_cosine']:.6f}"
        parts.append(f"{of}: {found}")
        if not each["within"]:
            beyond.append(f"{of}: {found}; expected {expected}")
    rounds = "".join(sorted({str(each) for each in limits}))
    if beyond:
        raise UserError(f"export: {'. '.join(beyond)}{rounds}: it is not kept")
    return "; ".join(parts) + rounds


class _Source:
    """What an export is checked with."""

    def __init__(self, *, dataset: epath.PathLike | None, split: str, features: Features | None):
        self.dataset, self.split, self.features = dataset, split, features

    def pictures(self) -> tuple[list[bytes], dict[str, np.ndarray]]:
        """Of the first items, and their stored vectors where there are any."""
        assert self.dataset is not None
        rows = open_split(self.dataset, self.split)
        chosen, vectors = self._stored() if self.features is not None else (np.arange(len(rows)), {})
        found: list[bytes] = []
        for row in chosen[:ITEMS_CHECKED]:
            picture = rows[int(row)]["image"]
            if found and sum(map(len, found)) + len(picture) > GOLDEN_BYTES:
                break
            found.append(picture)
        return found, {name: x[: len(found)] for name, x in vectors.items()}

    def titles(self) -> list[str]:
        """Of the first items, and odd ones."""
        rows = [] if self.dataset is None else open_split(self.dataset, self.split)
        return [rows[row]["title"] for row in range(min(ITEMS_CHECKED, len(rows)))] + list(ODD_TITLES)

    def vectors(self, model: Any) -> tuple[str, dict[str, np.ndarray]]:
        """What an adapter alone is checked with, and words for it."""
        if self.features is not None:
            return "stored vectors", self._stored()[1]
        made_up = np.random.default_rng(0).normal(size=(ITEMS_CHECKED, model.architecture.image.numbers))
        mean, scale = (np.asarray(model.params["img"][name], np.float64) for name in ("mean", "scale"))
        sizes = model.architecture.features
        parts = np.split((mean + scale * made_up).astype(np.float32), np.cumsum(list(sizes.values()))[:-1], axis=1)
        return "made-up vectors (none by --features)", dict(zip(sizes, parts, strict=True))

    def _stored(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rows of the first items that have all features, and these."""
        assert self.features is not None
        assert self.dataset is not None
        stored = self.features.of_split(self.dataset, self.split)
        rows = complete_rows(stored)[:ITEMS_CHECKED]
        if not len(rows):
            raise UserError(f"export: no item of split {self.split} has all features; expected stores of one split")
        return rows, {name: each.take(rows) for name, each in stored.items()}


def _write_saved_model(
    model: Any,
    path: pathlib.Path,
    source: _Source,
    *,
    encoders: Mapping[str, str] | None,
    target_tensorflow: str,
    text: str,
) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export import savedmodel

    opened = open_encoders(encoders, savedmodel=True) if encoders else None
    if opened:
        calls, limits = _of_joined(model, source, opened)
    elif model.architecture.features:
        calls, limits = _of_features(model, source)
    else:
        calls, limits = _of_pictures(model, source)
    all_limits = [limits]
    if text != "none":
        texts, limits = _of_titles(model, source, strings=text == "strings")
        calls, all_limits = calls + texts, [*all_limits, limits]
        by_bytes = [call for call in calls if call.signature == "serving_default"]
        if by_bytes:
            calls.append(_of_scores(model, by_bytes[0], texts[-1]))
    savedmodel.export_saved_model(model, path, target_tensorflow=target_tensorflow, encoders=opened, text=text)
    return calls, all_limits


def _of_pictures(model: Any, source: _Source) -> tuple[list[Call], Limits]:
    """Bytes, odd ones among them, and pixels."""
    pictures = source.pictures()[0] + list(odd_pictures().values())
    pixels = model.preprocessing.images(pictures)
    expected, limits = model.encode_image(pixels), limits_of(model, pixels)
    some = max(4, min(len(pixels), GOLDEN_BYTES // pixels[0].nbytes))
    return [
        _by_bytes("serving_default", pictures, expected, limits),
        _by_error("pixels", {"pixels": pixels[:some]}, expected[:some], limits, of="pictures"),
    ], limits


def _of_features(model: Any, source: _Source) -> tuple[list[Call], Limits]:
    of, vectors = source.vectors(model)
    limits = limits_of(model, vectors)
    return [_by_error("features", vectors, model.encode_image(vectors), limits, of=of)], limits


def _of_joined(model: Any, source: _Source, opened: Mapping[str, Any]) -> tuple[list[Call], Limits]:
    pictures, stored = source.pictures()
    pixels = stacked(opened, pictures)
    vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
    expected, limits = model.encode_image(vectors), limits_of(model, vectors)
    calls = [
        _by_bytes("serving_default", pictures, expected, limits),
        _by_error("pixels", pixels, expected, limits, of="pictures"),
        _by_error("features", vectors, expected, limits, of="vectors"),
    ]
    if stored:
        of = "pictures, against stored vectors"
        calls.append(_by_bytes("serving_default", pictures, model.encode_image(stored), limits, of=of))
    return calls, limits


def _of_titles(model: Any, source: _Source, *, strings: bool) -> tuple[list[Call], Limits]:
    """Token ids, and last what the scores take."""
    if model.preprocessing is None or model.preprocessing.tokenizer is None:
        architecture = model.architecture
        shape = ITEMS_CHECKED, architecture.text_length
        ids = np.random.default_rng(0).integers(0, architecture.vocab_size, shape).astype(np.int32)
        limits = limits_of(model, ids, tower="text")
        return [_by_error("text_ids", {"ids": ids}, model.encode_text(ids), limits, of="made-up rows of ids")], limits
    titles = source.titles()
    ids = model.preprocessing.text(titles)
    expected, limits = model.encode_text(ids), limits_of(model, ids, tower="text")
    calls = [_by_error("text_ids", {"ids": ids}, expected, limits, of="titles")]
    if strings:
        given = [title.encode() for title in titles]
        calls.append(_by_error("text", {"text": given}, expected, limits, of="titles"))
    return calls, limits


def _of_scores(model: Any, pictures: Call, titles: Call, *, most: int = 8) -> Call:
    """Logits of some pictures with some texts."""
    image, text = pictures.expected[:most], titles.expected[:most]
    # As far as an image at its smallest cosine may move a logit.
    assert pictures.min_cosine is not None
    assert titles.max_error is not None
    distance = np.sqrt(2 * (1 - pictures.min_cosine)) + titles.max_error * np.sqrt(text.shape[1])
    error = float(np.exp(np.asarray(model.params["t"], np.float32)[0]) * distance)
    inputs = {name: values[:most] for call in (pictures, titles) for name, values in call.inputs.items()}
    expected = model.logits(image, text)
    return Call(signature="scores", inputs=inputs, expected=expected, of="pictures", max_error=error, output="logits")


def _write_onnx(
    model: Any,
    path: pathlib.Path,
    source: _Source,
    *,
    encoders: Mapping[str, str] | None,
    target_tensorflow: str,
) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export import onnx_adapter

    if target_tensorflow:
        raise UserError("--target_tensorflow is of SavedModels; leave it out for .onnx")
    if not encoders:
        calls, limits = _of_features(model, source)
        onnx_adapter.export_onnx(model, path)
        return calls, [limits]
    opened = open_encoders(encoders, savedmodel=False)
    pictures, stored = source.pictures()
    pixels = stacked(opened, pictures)
    given = {name: opened[name].network_input(pixels[name]) for name in opened}
    vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
    limits = limits_of(model, vectors)
    calls = [_by_error("pixels", given, model.encode_image(vectors), limits, of="pictures")]
    if stored:
        expected, of = model.encode_image(stored), "pictures, against stored vectors"
        calls.append(_by_cosine("pixels", given, expected, limits, of=of))
    onnx_adapter.export_onnx(model, path, encoders={name: each.network for name, each in opened.items()})
    return calls, [limits]


def _by_error(signature: str, inputs: Mapping[str, Any], expected: np.ndarray, limits: Limits, *, of: str) -> Call:
    return Call(signature=signature, inputs=inputs, expected=expected, of=of, max_error=limits.max_error)


def _by_cosine(signature: str, inputs: Mapping[str, Any], expected: np.ndarray, limits: Limits, *, of: str) -> Call:
    return Call(signature=signature, inputs=inputs, expected=expected, of=of, min_cosine=limits.min_cosine)


def _by_bytes(
    signature: str, pictures: Sequence[bytes], expected: np.ndarray, limits: Limits, *, of: str = "pictures"
) -> Call:
    return _by_cosine(signature, {"image_bytes": pictures}, expected, limits, of=of)
