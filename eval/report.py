"""The ranking report: one self-contained HTML page, the same as JSON, and a plain-text table for the terminal.

The page loads nothing from anywhere: style, charts and pictures are inside. Every sentence in it is derived from the
numbers it is given; titles and names are data and are escaped.

The report is a dict:
  title, protocol, gain ("linear" or "exponential"), primary_metric: str;  queries, items, left_out: int
  relevance: [{"gain": 3, "agree": ["type", "colour"]}, ...];  relevant_from: int
  resampled: what the bootstrap draws, "queries" when absent
  rows: [{"name", "exact": {metric: {"mean", "low", "high"}}, "scann": the same or None,
          "scann_recall": {"recall@10": float} or None, "tie_rate": float}, ...]
  differences: [{"a", "b", "metric", "mean", "low", "high"}, ...]  a minus b, paired by query; 95 % intervals throughout
  loss_curve: [{"step": int, "loss": float}, ...]
  grid: [{"query": id, "title", "systems": [{"name", "results": [{"id", "title", "gain"}, ...]}, ...]}, ...]
  provenance: {name: str, number, list or dict}
  notes: sentences to print below the counts, none when absent
"""

from __future__ import annotations

import base64
import io
import json
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from PIL import Image

from siglip_jax.errors import UserError

_TEMPLATE = "report.html.jinja"
_THUMBNAIL = 144  # pixels: twice the width shown, for dense screens
_LEAST_RECALL = 0.98  # below this the index, not the encoder, may decide a ScaNN column
_WIDTH = 110  # characters of the terminal table


def write_report(path: epath.PathLike, report: dict[str, Any], *, pictures: Callable[[str], bytes]) -> None:
    """Write the page to `path` (for example `runs/demo/report.html`) and its data to the same name ending in .json.

    `pictures` gives the encoded image of an item by its id; where it raises KeyError or OSError, or gives no image, the
    page has an empty frame. In the JSON, numbers that are not finite are null.

    Raises:
        UserError: the name ending in .json is that of the page, or of a file that is no earlier report.
    """
    target = epath.Path(path)
    beside = target.with_suffix(".json")
    if beside == target:
        raise UserError(f"report {target}: its data goes to that name; expected a page such as {target.stem}.html")
    if beside.exists() and not _is_report(beside):
        raise UserError(
            f"report {target}: its data would overwrite {beside}, which is no earlier report; choose another name"
        )
    data = _plain(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "percent": _percent}
    page = environment.get_template(_TEMPLATE).render(
        report=data,
        headlines=headlines(data),
        metrics=_metric_names(data),
        has_scann=any(row.get("scann") for row in data["rows"]),
        low_recall=[row["name"] for row in data["rows"] if (_recall(row) or 1) < _LEAST_RECALL],
        least_recall=_LEAST_RECALL,
        differences=[d | {"verdict": _verdict(d), "bar": bar} for d, bar in _bars(data["differences"])],
        curve=_loss_curve(data["loss_curve"]),
        thumbnails=_thumbnails(data["grid"], pictures),
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")


def headlines(report: dict[str, Any]) -> list[str]:
    """One sentence for each difference in the primary metric, in the order given; the first is the page's headline."""
    metric = report["primary_metric"]
    means = {row["name"]: row["exact"].get(metric, {}).get("mean") for row in report["rows"]}
    sentences = []
    for difference in report["differences"]:
        if difference["metric"] != metric:
            continue
        a, b = difference["a"], difference["b"]
        verdict = _verdict(difference)
        if verdict == "not measured":
            sentences.append(f"{_capital(a)} and {b} were not compared: no difference in {metric} could be computed.")
            continue
        if verdict == "undecided":
            claim = f"Undecided whether {a} ranks better than {b}"
        else:
            claim = f"{_capital(a)} ranks {verdict} than {b}"
        interval = f"95 % interval {_signed(difference['low'])} to {_signed(difference['high'])}"
        values = f"{metric} {_number(means.get(a))} against {_number(means.get(b))}"
        sentences.append(f"{claim}: {values}, difference {_signed(difference['mean'])} ({interval}).")
    return sentences or [f"No comparison was made in {metric}."]


def format_table(report: dict[str, Any]) -> str:
    """The report as plain text of at most 110 columns: headlines, one line a row, one line a difference."""
    data = _plain(report)
    primary = data["primary_metric"]
    has_scann = any(row.get("scann") for row in data["rows"])
    header = ["", f"{primary} [95 %]"]
    lines = [[row["name"], _interval(row["exact"].get(primary), _number)] for row in data["rows"]]
    extra: list[list[str]] = []
    if has_scann:
        extra.append(["ScaNN", *(_number((row["scann"] or {}).get(primary, {}).get("mean")) for row in data["rows"])])
        extra.append(["recall@10", *(_number(_recall(row)) for row in data["rows"])])
    for metric in _metric_names(data)[1:]:
        extra.append([metric, *(_number(row["exact"].get(metric, {}).get("mean")) for row in data["rows"])])
    extra.append(["ties", *(_percent(row.get("tie_rate")) for row in data["rows"])])
    table = [header, *lines]
    for column in extra:  # as many as fit; the page and the JSON have them all
        wider = [[*cells, cell] for cells, cell in zip(table, column, strict=True)]
        if len(_align(wider)[0]) <= _WIDTH:
            table = wider
    differences = [
        [f"{d['a']} − {d['b']}", d["metric"], _interval(d, _signed), _verdict(d)] for d in data["differences"]
    ]
    counts = (
        f"{data['queries']} queries, {data['items']} items, {data['left_out']} queries without a relevant item left out"
    )
    prose = [*headlines(data), "", f"{data['protocol']}; {data['gain']} gain", counts, *data.get("notes", []), ""]
    wrapped = [line for text in prose for line in textwrap.wrap(text, _WIDTH) or [""]]
    return "\n".join([*wrapped, *_align(table), "", *_align(differences)]).rstrip()


def _is_report(path: epath.Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "protocol" in found


def _align(table: list[list[str]]) -> list[str]:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    if not table:
        return []
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return lines


def _metric_names(report: dict[str, Any]) -> list[str]:
    """Every metric of any row, the primary one first."""
    names = dict.fromkeys([report["primary_metric"]])
    for row in report["rows"]:
        names |= dict.fromkeys(row["exact"]) | dict.fromkeys(row.get("scann") or {})
    return list(names)


def _recall(row: dict[str, Any]) -> float | None:
    return (row.get("scann_recall") or {}).get("recall@10")


def _verdict(difference: dict[str, Any]) -> str:
    """What a 95 % interval of a minus b allows to say of a. Zero throughout is undecided too."""
    low, high = difference["low"], difference["high"]
    if difference["mean"] is None or low is None or high is None:
        return "not measured"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def _bars(differences: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, float] | None]]:
    """Where each interval and its mean lie on one common axis from 0 to 100, and where zero does."""
    ends = [d[key] for d in differences for key in ("low", "high") if d[key] is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / span, 2)

    for d in differences:
        measured = _verdict(d) != "not measured"
        yield d, {key: place(d[key]) for key in ("low", "mean", "high")} | {"zero": place(0.0)} if measured else None


def _loss_curve(curve: list[dict[str, Any]]) -> dict[str, Any] | None:
    """SVG paths in a 720 x 240 box: every point as it was, and a running mean over a twentieth of the steps."""
    points = [(p["step"], p["loss"]) for p in curve if p["loss"] is not None]
    if len(points) < 2:
        return None
    steps, losses = zip(*points, strict=True)
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    window = 2 * (len(points) // 40) + 1
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    # Centred, and narrower at the two ends: a trailing mean would lag behind a falling curve.
    reach = [min(window // 2, i, len(points) - 1 - i) for i in range(len(points))]
    means = [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]

    def x(step: float) -> float:
        return round(52 + 656 * (step - steps[0]) / ((steps[-1] - steps[0]) or 1), 1)

    def y(loss: float) -> float:
        return round(12 + 192 * (high - loss) / span, 1)

    def line(values: Iterable[float]) -> str:
        return "M" + "L".join(f"{x(s)} {y(v)}" for s, v in zip(steps, values, strict=True))

    marks_y = [low + span * i / 4 for i in range(5)]
    marks_x = sorted({steps[0], steps[-1], *(round(steps[0] + (steps[-1] - steps[0]) * i / 4) for i in (1, 2, 3))})
    return {
        "raw": line(losses),
        "mean": line(means),
        "window": window,
        "last": losses[-1],
        "first": losses[0],
        "ticks_y": [{"at": y(v), "label": f"{v:.3g}"} for v in marks_y],
        "ticks_x": [{"at": x(v), "label": f"{v:,}"} for v in marks_x],
    }


def _thumbnails(grid: list[dict[str, Any]], pictures: Callable[[str], bytes]) -> dict[str, str | None]:
    """A data: address for each item of the grid; None for a picture that cannot be had or read."""
    ids = dict.fromkeys(query["query"] for query in grid)
    ids |= dict.fromkeys(r["id"] for query in grid for system in query["systems"] for r in system["results"])
    return {item: _thumbnail(pictures, item) for item in ids}


def _thumbnail(pictures: Callable[[str], bytes], item: str) -> str | None:
    try:
        picture = Image.open(io.BytesIO(pictures(item))).convert("RGB")
    except (KeyError, OSError):
        return None
    # Small pictures are enlarged here, not by the browser, which would blur them.
    scale = _THUMBNAIL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _plain(value: Any) -> Any:
    """The same in JSON's own types: numpy scalars and arrays unwrapped, tuples as lists, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _interval(estimate: dict[str, Any] | None, form: Callable[[float | None], str]) -> str:
    if not estimate:
        return "–"
    return f"{form(estimate['mean'])} [{form(estimate['low'])}, {form(estimate['high'])}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
