"""The page of an experiment, self-contained, in the style of the ranking report; its JSON and its memo beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from eval.experiments import experiment_text
from eval.experiments.experiment_text import format_memo
from eval.report import charts, report_text
from siglip_jax.errors import UserError

_KIND = "experiment"


def write_experiment(path: epath.PathLike, report: dict[str, Any]) -> list[str]:
    """The page to `path`, its data to the same name in .json, its memo to .md; their names.

    Raises:
      UserError: one of the others is there and was not written for such a page.
    """
    data = report_text.plain(report)
    return _write(path, data, render_experiment(data), format_memo(data))


def write_interleaving(path: epath.PathLike, report: dict[str, Any]) -> list[str]:
    """As `write_experiment`, of what `preference` found, with "title", "sentence" and "notes"."""
    data = report_text.plain(report)
    page = _environment().get_template("interleaving.html.jinja").render(report=data)
    notes = "".join(f"* {note}\n" for note in data["notes"])
    return _write(path, data, page, f"# {data['title']}\n\n**{data['sentence']}**\n\n{notes}")


def render_experiment(data: dict[str, Any]) -> str:
    """The page of a report of JSON's own types."""
    places, ticks = charts.bars([_lift(row["effect"]) for row in data["metrics"]])
    cells = data["segments"]["rows"]
    drawn = [cell["effect"] | {"low_all": cell["low_all"], "high_all": cell["high_all"]} for cell in cells]
    spots, segment_ticks = charts.bars(drawn)
    return (
        _environment()
        .get_template("experiment.html.jinja")
        .render(
            report=data,
            rows=[row | {"bar": bar} for row, bar in zip(data["metrics"], places, strict=True)],
            ticks=ticks,
            sequences=[line | {"chart": _chart(line)} for line in data["sequences"] if len(line["points"]) > 1],
            segments=[
                cell | {"bar": bar, "all": {"low": cell["low_all"], "high": cell["high_all"]}}
                for cell, bar in zip(cells, spots, strict=True)
            ],
            segment_ticks=segment_ticks,
            several=len(data["variants"]) > 2,
        )
    )


def _write(path: epath.PathLike, data: dict[str, Any], page: str, memo: str) -> list[str]:
    target = epath.Path(path)
    beside, words = target.with_suffix(".json"), target.with_suffix(".md")
    if beside.exists() and not _is_experiment(beside):
        raise UserError(f"--output={target}: its data would overwrite {beside}, no experiment's; choose another name")
    if words.exists() and not beside.exists():
        raise UserError(f"--output={target}: its memo would overwrite {words}; choose another name")
    text = json.dumps({"kind": _KIND, **data}, indent=1, ensure_ascii=False, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    for place, content in ((target, page), (beside, text + "\n"), (words, memo)):
        place.write_text(content, encoding="utf-8")
    return [str(target), str(beside), str(words)]


def _environment() -> jinja2.Environment:
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, here.parent / "report"]),  # the style sheet is the ranking report's
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("percent", "value_text", "p_text", "interval_text", "margin_text", "lift_range")
    environment.filters |= {name: getattr(experiment_text, name) for name in names} | {"count": report_text.count}
    return environment


def _lift(effect: dict[str, Any] | None) -> dict[str, Any] | None:
    if not effect:
        return None
    return {"mean": effect["relative"], "low": effect["relative_low"], "high": effect["relative_high"]}


def _chart(line: dict[str, Any]) -> dict[str, Any]:
    """SVG places of the lift by day: the sequence's band, the single look's, the estimate."""
    left, right, top, bottom, width, height = 84, 836, 16, 240, 860, 290
    points = [p for p in line["points"] if all(p[k] is not None for k in ("low", "high", "one_low", "one_high"))]
    final = points[-1] if points else None
    spread = max((p["relative"] - p["low"] for p in points[len(points) // 4 :]), default=0.1)
    middle = final["relative"] if final else 0.0
    low, high = min(middle - spread, 0) * 1.08, max(middle + spread, 0) * 1.08  # the first days are cut
    first, last = (points[0]["day"], points[-1]["day"]) if points else (0, 1)

    def x(day: float) -> float:
        return round(left + (right - left) * (day - first) / ((last - first) or 1), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (min(max(value, low), high) - low) / ((high - low) or 1), 1)

    def band(below: str, above: str) -> str:
        there = [f"{x(p['day'])} {y(p[above])}" for p in points]
        back = [f"{x(p['day'])} {y(p[below])}" for p in reversed(points)]
        return "M" + "L".join(there + back) + "Z" if points else ""

    every = max(1, (len(points) + 5) // 6)
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "bottom": bottom,
        "zero": y(0.0),
        "always": band("low", "high"),
        "once": band("one_low", "one_high"),
        "path": "M" + "L".join(f"{x(p['day'])} {y(p['relative'])}" for p in points) if points else "",
        "ticks_x": [{"at": x(p["day"]), "label": p["date"][5:]} for p in points[::every]],
        "ticks_y": [
            {"at": y(v), "label": f"{100 * v:+g} %".replace("-", "−").replace("+0 ", "0 ")}
            for v in charts.nice_ticks(low, high, about=5)
        ],
    }


def _is_experiment(path: epath.Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == _KIND
