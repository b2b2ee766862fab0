"""A trained model leaves the library, checked in a process without it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.export import verify_export
from siglip_jax.export.golden import Call, check_golden, golden_folder, write_golden
from siglip_jax.export.limits import Limits, limits_of
from tools.workflow.adapters.export_encoders import open_encoders, stacked
from tools.workflow.exports import ranking_check
from tools.workflow.exports.export_target import ExportTarget
from tools.workflow.exports.golden_calls import (
    GoldenSource,
    asked_of,
    by_cosine,
    by_error,
    of_decoded,
    of_features,
    of_joined,
    of_pictures,
    of_scores,
    of_titles,
)
from tools.workflow.exports.ranking_check import RankingSample
from tools.workflow.exports.smaller_output import SmallerOutput
from tools.workflow.item_vectors import Features

# Of an ONNX tower in fewer bits; float32 is held to float32's own limits.
LEAST_COSINE = {"float16": 0.999, "int8": 0.98}
_HOW = {"savedmodel": "run without JAX", "onnx": "run without JAX", "jax": "run without this library"}
_ASKED = ("serving_default", "pixels", "images", "patches", "features", "text_ids")  # the first there is ranked with


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """How the ranking is compared.

    Attributes:
      config: whose `evaluation` says relevance and gain; None for the agreement of the dataset's attributes.
      items: of the sample; 0 to leave the comparison out.
      max_change: of nDCG@5.
    """

    config: ml_collections.ConfigDict | None = None
    items: int = ranking_check.SAMPLE
    max_change: float = ranking_check.MAX_CHANGE


def export(
    model: Any, target: ExportTarget, *, features: Features | None = None, ranking: RankingOptions | None = None
) -> None:
    """Writes a SavedModel, an .onnx file or StableHLO programs, with golden inputs and answers, which check it.

    Args:
      target: what is written where, by `check_target`.
      features: of an adapter; without them its export is checked with vectors that are made up.
      ranking: how the ranking is compared, with a dataset.

    Raises:
      UserError: an answer differs from the model's by more than its limits, or the ranking does, or the export cannot
        be made or run. Nothing is left of it then.
    """
    ranking, encoders, takes = ranking or RankingOptions(), target.encoders, target.takes
    wanted, runtime = model.architecture.features, target.runtime
    onnx = runtime == "onnx"
    if features is not None:
        features.check(wanted, model="export")
    if encoders and encoders.keys() != wanted.keys():
        flags = ", ".join(f"--encoder={name}=NETWORK" for name in wanted)
        raise UserError(
            f"--encoder for {', '.join(encoders)}; expected "
            + (f"{flags}, or none" if wanted else "none, since this model takes pictures")
        )
    if target.dataset is None and (features is not None or encoders or not wanted):
        raise UserError(f"--dataset is missing: its {'items' if features else 'pictures'} check the export")
    source = GoldenSource(dataset=target.dataset, split=target.split, features=features)
    smaller = SmallerOutput.of(target.smaller, model, store=target.store)
    with target.written_aside() as path:
        opened = open_encoders(encoders, savedmodel=not onnx) if encoders else {}
        if onnx:
            if wanted and target.tower == "image":
                if takes:
                    raise UserError(f"--takes={takes} is of towers; an adapter takes vectors or what its encoders do")
                calls, limits = _write_onnx_adapter(model, path, source, opened=opened, precision=target.precision)
            else:
                calls, limits = _write_onnx_tower(
                    model, path, source, tower=target.tower, precision=target.precision, takes=takes
                )
        elif runtime == "jax":
            calls, limits = _write_programs(model, path, source)
        else:
            calls, limits = _write_saved_model(
                model, path, source, opened=opened, target_tensorflow=target.target_tensorflow, text=target.text,
                smaller=smaller,
            )  # fmt: skip
        golden, asked = golden_folder(path), path.with_name(f"{path.name}.sample")
        write_golden(golden, calls, model=f"../{path.name}" if onnx else "..", runtime=runtime)
        if smaller is not None:
            smaller.save(golden)
        sample = _sample(model, source, calls, opened=opened, smaller=smaller, options=ranking)
        questions = sample.write(asked, runtime=runtime) if isinstance(sample, RankingSample) else []
        checked = check_golden(golden, sample=asked if questions else None)
        said = f"{target.kind} {target.output}, {_HOW[runtime]}: {_said(checked, limits, end=': it is not kept')}"
        found = {"not_measured": sample} if isinstance(sample, str) else sample.compare(
            asked, questions, max_change=ranking.max_change
        )  # fmt: skip
        shutil.rmtree(asked, ignore_errors=True)
        _write_found(path, golden, found)
    print(f"{said}\n{ranking_check.told(found)}" + (f"\nof {model.source}" if model.source else ""))


def _sample(
    model: Any,
    source: GoldenSource,
    calls: Iterable[Call],
    *,
    opened: Mapping[str, Any],
    smaller: SmallerOutput | None,
    options: RankingOptions,
) -> RankingSample | str:
    """What the export is asked for the ranking; why it is not asked, otherwise."""
    signatures = {call.signature for call in calls}
    signature = next((name for name in _ASKED if name in signatures), "")
    if source.dataset is None:
        return "it needs --dataset"
    if not signature:
        return f"no signature takes items ({', '.join(sorted(signatures))})"
    if not options.items:
        return "by --rank_sample=0"
    if signature == "features" and source.features is None:
        return "it needs --features"
    if signature == "text_ids" and (model.preprocessing is None or model.preprocessing.tokenizer is None):
        return "the model has no tokenizer"
    items, inputs, vectors = asked_of(model, signature, source, options.items, opened=opened)
    rules: Any = ranking_check.rules_by_attributes(items)
    gain = "exponential"
    if options.config is not None:
        rules, gain = options.config.evaluation.relevance, options.config.evaluation.gain
    if not rules:
        return "no attribute of the dataset is shared by items; give --config, whose evaluation.relevance says what is"
    return RankingSample(
        items=items,
        rules=rules,
        gain=gain,
        signature=signature,
        inputs=inputs,
        expected=vectors if smaller is None else smaller(vectors),
        whole=None if smaller is None else vectors,
        of={"features": "stored vectors", "text_ids": "titles"}.get(signature, "images"),
    )


def _write_found(path: pathlib.Path, golden: pathlib.Path, found: dict[str, Any]) -> None:
    """What the comparison found, beside the golden inputs and in the manifest of a folder."""
    for manifest in (golden / verify_export.GOLDEN, path / "siglip_jax.json"):
        if manifest.exists():
            told = {**files.read_json(epath.Path(manifest)), "ranking": found}
            manifest.write_text(json.dumps(told, indent=1) + "\n")


def verify(export: epath.PathLike) -> None:
    """Replays the golden inputs of an export, and prints what was found.

    Raises:
      UserError: no export with golden files, one that cannot be run, or an answer beyond its limits.
    """
    path = pathlib.Path(export)
    golden = golden_folder(path)
    if not (golden / "golden.json").exists():
        raise UserError(f"{path}: no golden.json in {golden}; expected what siglip-jax export wrote")
    print(f"{path}, run by itself: {_said(check_golden(golden), [])}")


def _said(results: list[dict[str, Any]], limits: Iterable[Limits], *, end: str = "") -> str:
    """One line of all answers; a UserError that ends so where one is beyond its limits, NaN included."""
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
        raise UserError(f"{'. '.join(beyond)}{rounds}{end}")
    return "; ".join(parts) + rounds


def _write_saved_model(
    model: Any,
    path: pathlib.Path,
    source: GoldenSource,
    *,
    opened: Mapping[str, Any],
    target_tensorflow: str,
    text: str,
    smaller: SmallerOutput | None,
) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export import savedmodel

    if opened:
        calls, limits = of_joined(model, source, opened)
    elif model.architecture.features:
        calls, limits = of_features(model, source)
    else:
        calls, limits = of_pictures(model, source)
    all_limits = [limits]
    if text != "none":
        texts, limits = of_titles(model, source, strings=text == "strings")
        calls, all_limits = calls + texts, [*all_limits, limits]
        by_bytes = [call for call in calls if call.signature == "serving_default"]
        if by_bytes:
            calls.append(of_scores(model, by_bytes[0], texts[-1]))
    savedmodel.export_saved_model(
        model,
        path,
        target_tensorflow=target_tensorflow,
        encoders=opened,
        text=text,
        smaller=smaller.graph(model.architecture.embedding_dim) if smaller else None,
        warmup=_warmup(calls),
    )
    return smaller.calls(calls) if smaller else calls, all_limits


def _warmup(calls: Iterable[Call]) -> list[tuple[str, dict[str, Any]]]:
    """Of each signature a request of one row and one of eight, each of which compiles a program."""
    first = {call.signature: call for call in calls if call.signature not in ("pixels", "patches", "scores")}
    return [
        (signature, {name: values[:rows] for name, values in call.inputs.items()})
        for signature, call in first.items()
        for rows in (1, 8)
    ]


def _write_programs(model: Any, path: pathlib.Path, source: GoldenSource) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export import stablehlo_folder

    calls, limits = (of_features if model.architecture.features else of_pictures)(model, source)
    texts, limits_of_text = of_titles(model, source, strings=False)
    stablehlo_folder.export_programs(model, path)
    return [call for call in calls if call.signature != "serving_default"] + texts, [limits, limits_of_text]


def _write_onnx_tower(
    model: Any, path: pathlib.Path, source: GoldenSource, *, tower: str, precision: str, takes: str
) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export.onnx import onnx_towers

    if tower == "image" and takes == "images":
        onnx_towers.check_resize(model)
        calls, limits = of_decoded(model, source)
    elif tower == "image":
        calls, limits = of_pictures(model, source)
        calls = [call for call in calls if call.signature == "pixels"]
        # What `siglip-jax embed --model=FILE.onnx` reads, so that `rank` can compare the export with the model.
        own = model.preprocessing.to_json()
        settings = {name: own[name] for name in ("resize", "fill", "value_range") if name in own}
        path.with_name(path.name + ".json").write_text(json.dumps(settings) + "\n")
    else:
        calls, limits = of_titles(model, source, strings=False)
    if precision in LEAST_COSINE:
        least = LEAST_COSINE[precision]
        calls = [dataclasses.replace(call, max_error=None, min_cosine=least) for call in calls]
    onnx_towers.export_tower(model, path, tower=tower, precision=precision, takes=takes)
    return calls, [limits]


def _write_onnx_adapter(
    model: Any, path: pathlib.Path, source: GoldenSource, *, opened: Mapping[str, Any], precision: str
) -> tuple[list[Call], list[Limits]]:
    from siglip_jax.export.onnx import onnx_adapter

    if precision != "float32":
        raise UserError(f"--precision={precision} is of towers; an adapter is written in float32: leave it out")
    if not opened:
        calls, limits = of_features(model, source)
        onnx_adapter.export_onnx(model, path)
        return calls, [limits]
    pictures, stored = source.pictures()
    pixels = stacked(opened, pictures)
    given = {name: opened[name].network_input(pixels[name]) for name in opened}
    vectors = {name: opened[name].encode_image(pixels[name]) for name in opened}
    limits = limits_of(model, vectors)
    calls = [by_error("pixels", given, model.encode_image(vectors), limits, of="pictures")]
    if stored:
        expected, of = model.encode_image(stored), "pictures, against stored vectors"
        calls.append(by_cosine("pixels", given, expected, limits, of=of))
    onnx_adapter.export_onnx(model, path, encoders={name: each.network for name, each in opened.items()})
    return calls, [limits]
