"""The audit of a dataset as one self-contained HTML page, and the same as JSON.

The page loads nothing from anywhere: style, charts and pictures are inside. Every sentence in it is derived from the
numbers; titles and names are data and are escaped.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import pyarrow.compute as pc

from input_pipeline.audit.contents import Tokens, audit_table
from input_pipeline.audit.hygiene import sentence
from input_pipeline.dataset import dataset_fingerprint, open_split
from input_pipeline.dataset.item_table import ItemColumns, open_columns, split_names
from input_pipeline.duplicates.near_images import NEAR
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image

_TEMPLATE = "audit.html.jinja"
_THUMBNAIL = 128  # pixels
_EXTREME = 3.0  # longer side by shorter side
_LEAST_SIDE = 224  # pixels, the smallest size of published checkpoints
_CHART = (360, 96)  # pixels
_SHOWN_ENDS = 8  # pictures at each end of a scale


def audit_dataset(
    dataset_dir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    near: int | None = NEAR,
    tokens: Tokens | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Audits a dataset, writes the page to `output` (.html) and its data beside it (.json), and returns the data.

    Raises:
      UserError: no dataset, or an output of another name or that would overwrite something else.
    """
    output, beside = check_output(output)
    columns = open_columns(dataset_dir, progress=progress)
    audit = audit_table(columns, near=near, tokens=tokens)
    audit["dataset"] = {"folder": pathlib.Path(dataset_dir).name, **_provenance(pathlib.Path(dataset_dir))}
    page = render(audit, pictures=lambda places: _pictures(dataset_dir, columns, places))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    beside.write_text(json.dumps(audit, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return audit


def check_output(output: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """The paths of the page and of its data; refuses what `audit_dataset` would, before long work."""
    output = pathlib.Path(output)
    if output.suffix != ".html":
        raise UserError(f"{output}: expected a file name ending in .html")
    beside = output.with_suffix(".json")
    if beside.exists() and not _is_audit(beside):
        raise UserError(f"{output}: its data would overwrite {beside}, which is no such audit; choose another name")
    return output, beside


def write_page(dataset_dir: str | os.PathLike, output: str | os.PathLike) -> dict[str, Any]:
    """The page of a dataset that was just built, without what is costly to find; returns `audit_table`'s data.

    It does not say where the dataset lies, so that equal builds have equal pages.
    """
    columns = open_columns(dataset_dir, progress=False)
    audit = audit_table(columns, near=None)
    page = render(
        audit | {"dataset": _provenance(pathlib.Path(dataset_dir))},
        pictures=lambda places: _pictures(dataset_dir, columns, places),
    )
    pathlib.Path(output).write_text(page, encoding="utf-8")
    return audit


def findings(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to look at, each a kind ("warning" or "note") and a sentence; the gravest first."""
    kept, images, titles, sizes = audit["kept"], audit["images"], audit["titles"], audit["sizes"]
    found: list[tuple[str, str]] = []
    if crossing := images["equal"]["across_splits"]:
        found.append(("warning", f"{_many(crossing, 'picture')} in several splits: the test is not of new items."))
    if crossing := titles["repeated"]["across_splits"]:
        found.append(("warning", f"{_many(crossing, 'title')} in several splits: the test is not of new items."))
    near = images.get("near", {})
    if crossing := near.get("across_splits", 0):
        lie = f"{_many(crossing, 'group')} of pictures that look alike {'lies' if crossing == 1 else 'lie'}"
        found.append(
            ("warning", f"{lie} in several splits; --split_by=title,image,near of the build keeps them in one.")
        )
    bad = audit["rows"] - kept
    if bad:
        kinds = ", ".join(f"{_number(problem['count'])} {kind}" for kind, problem in audit["problems"].items())
        found.append(("warning", f"{_many(bad, 'row')} ({_share(bad, audit['rows'])}) left out: {kinds}."))
    found += [
        ("warning", f"{sentence[:1].upper()}{sentence[1:]}.") for sentence in audit.get("dataset", {}).get("notes", ())
    ]
    if cut := titles.get("tokens", {}).get("cut", 0):
        length = titles["tokens"]["text_length"]
        found.append(("warning", f"{_many(cut, 'title')} ({_share(cut, kept)}) cut at {length} tokens."))
    found += [("warning", sentence(accident)) for accident in audit["accidents"]]
    for attribute in audit["attributes"]:
        if attribute["empty"] > kept / 2:
            share = _share(attribute["empty"], kept)
            found.append(("note", f"The attribute {attribute['name']} is empty in {share} of the rows."))
    if kept and sizes["shorter_side"]["median"] < _LEAST_SIDE:
        median = _number(sizes["shorter_side"]["median"])
        found.append(("note", f"Half of the pictures have a shorter side of {median} pixels or fewer."))
    ratio = sizes["aspect_ratio"]
    if kept and (ratio["largest"] > _EXTREME or ratio["smallest"] < 1 / _EXTREME):
        ends = f"{_ratio(ratio['smallest'])} to {_ratio(ratio['largest'])}"
        found.append(("note", f"Aspect ratios (width to height) go from {ends}; squashed to a square, these are bent."))
    if mixed := titles["mixed_scripts"]:
        found.append(("note", f"{_many(mixed, 'title')} ({_share(mixed, kept)}) in more than one script."))
    return found


def headline(audit: Mapping[str, Any]) -> str:
    kept, images = audit["kept"], audit["images"]
    parts = [f"{_number(kept)} of {_number(audit['rows'])} rows kept"]
    if more := images["equal"]["more"]:
        parts.append(f"{_share(more, kept)} repeat a picture byte for byte")
    if (more := images.get("near", {}).get("more", 0)) > images["equal"]["more"]:
        parts.append(f"{_share(more, kept)} repeat one or look like it")
    if more := audit["titles"]["repeated"]["more"]:
        parts.append(f"{_share(more, kept)} repeat a title")
    return "; ".join(parts) + "."


def render(audit: Mapping[str, Any], *, pictures: Callable[[Sequence[int]], dict[int, bytes]]) -> str:
    """The page; `pictures` gives the encoded pictures of rows by their place, those that it can."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "ratio": _ratio, "size": _size}
    environment.globals |= {"share": _share, "chart": _chart}
    shown = _shown(audit)
    found = pictures(sorted({row["place"] for rows in shown.values() for row in rows}))
    return environment.get_template(_TEMPLATE).render(
        audit=audit,
        headline=headline(audit),
        findings=findings(audit),
        shown=shown,
        thumbnails={place: _thumbnail(data) for place, data in found.items()},
    )


def _shown(audit: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{part of the page: the rows it shows pictures of}."""
    shown: dict[str, list[dict[str, Any]]] = {}
    groups = {
        f"{name} {part}": kind[part] for name, kind in audit["images"].items() for part in ("largest", "crossing")
    }
    groups["titles largest"] = audit["titles"]["repeated"]["largest"]
    for name, some in groups.items():
        shown[name] = [row for group in some for row in group["rows"]]
    for name in ("aspect_ratio", "shorter_side"):
        lowest, highest = (audit["sizes"][name][end] for end in ("lowest", "highest"))
        low = lowest[:_SHOWN_ENDS]
        places = {row["place"] for row in low}
        high = [row for row in highest[:_SHOWN_ENDS] if row["place"] not in places]
        shown[name] = low if name == "shorter_side" else [*low, *high[::-1]]
    return shown


def _chart(histogram: Mapping[str, Any], form: str, *, mark: float | None = None) -> dict[str, Any] | None:
    """Bars of a histogram in a box, labels below three of its edges, and where a mark lies; None for one value."""
    edges, counts = histogram["edges"], histogram["counts"]
    if len(counts) < 2:
        return None
    width, height = _CHART
    step, most = width / len(counts), max(counts)
    bars = [
        {
            "x": round(number * step + 0.5, 1),
            "width": round(step - 1, 1),
            "height": round(max(height * count / most, 1 if count else 0), 1),
            "label": f"{_form(low, form)} to {_form(high, form)}: {_number(count)} rows",
        }
        for number, (count, low, high) in enumerate(zip(counts, edges, edges[1:], strict=False))
    ]
    places = sorted({0, len(counts) // 2, len(counts)})
    ticks = [{"x": round(place * step, 1), "label": _form(edges[place], form)} for place in places]
    chart: dict[str, Any] = {"width": width, "height": height, "bars": bars, "ticks": ticks, "mark": None}
    if mark is not None and edges[0] <= mark <= edges[-1]:
        chart["mark"] = round(float(np.interp(mark, edges, np.arange(len(edges)))) * step, 1)
    return chart


def _form(value: float, form: str) -> str:
    return {"ratio": _ratio, "size": _size, "number": _number}[form](value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.3g}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}:1" if value >= 1 else f"1:{1 / value:.3g}"


def _size(value: float | None) -> str:
    """Bytes as people read them."""
    if value is None:
        return "–"
    units = ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def _share(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.0f} %" if percent >= 10 or percent == int(percent) else f"{percent:.1f} %"


def _many(count: int, what: str) -> str:
    return f"{_number(count)} {what}{'' if count == 1 else 's'}"


def _is_audit(path: pathlib.Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "images" in found


def _provenance(folder: pathlib.Path) -> dict[str, Any]:
    """What the build wrote of itself, but for its lists of rows."""
    try:
        built = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
        names = (
            "table",
            "catalogue_sha256",
            "seed",
            "fractions",
            "split_by",
            "time_column",
            "split_times",
            "only",
            "notes",
        )
        told = {name: built[name] for name in names if built.get(name)}
    except (OSError, ValueError, AttributeError):
        return {}
    return {**told, "fingerprint": dataset_fingerprint(folder)}


def _pictures(dataset_dir: str | os.PathLike, columns: ItemColumns, places: Sequence[int]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    split = columns.column("split", only_kept=False)
    wanted = np.array(places, np.int64)
    for name in split_names(dataset_dir):
        here = np.flatnonzero(pc.equal(split, name).to_numpy())
        mine = wanted[np.isin(wanted, here)]
        records = open_split(dataset_dir, name).__getitems__(np.searchsorted(here, mine))
        found |= {place: record["image"] for place, record in zip(mine.tolist(), records, strict=True)}
    return found


def _thumbnail(data: bytes) -> str | None:
    """A data: address; None for what cannot be decoded."""
    try:
        picture = PIL.Image.fromarray(decode_image(data))
    except UserError:
        return None
    scale = _THUMBNAIL / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
