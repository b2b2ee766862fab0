"""The ranking report: one self-contained HTML page, and the same as JSON.

The page loads nothing from anywhere: style, charts and pictures are inside. Every sentence in it is derived from the
numbers it is given; titles and names are data and are escaped.

The report is a dict; an estimate is {"mean", "low", "high"}, intervals are of one confidence throughout.
  title, protocol, gain ("linear" or "exponential"), primary_metric: str;  queries, items, left_out: int
  relevance: [{"gain": 3, "agree": ["type", "colour"]}, ...];  relevant_from: int
  rows: [{"name", "exact": {metric: estimate}, "scann": the same or None,
          "scann_recall": {"recall@10": float} or None, "tie_rate": float}, ...]
  differences: [{"a", "b", "metric", and an estimate of a minus b, paired by query}, ...]
  loss_curve: [{"step": int, "loss": float}, ...]
  grid: [{"query": id, "title", "systems": [{"name", "results": [{"id", "title", "gain"}, ...]}, ...]}, ...]
  provenance: {name: str, number, list or dict}
What follows may be absent:
  conclusion: str, the page's first sentence, in the place of the one made of the first difference
  minimum_detectable: float, the difference in the primary metric that such data would show
  warnings: [str], what a reader must know before the numbers (leaks, heavy users, an index of low recall)
  missing: {store: [{"row", "id", "reason"}]}, items that it was embedded without, and that no row has
  notes: [str], sentences below the counts: what was left out, and why
  confidence: float, of all intervals, 0.95 when absent
  weights: {way: effective clusters}, in which ways queries are taken as dependent, and what that leaves of them
  memo: str, one line;  decision: what `eval.statistics.decide` gives
  new, against: names of the two rows in the headline
  max_grade: number, the highest grade there can be, where a metric (ERR) depends on it
  users: int;  list_length: int, or {"min", "median", "mean", "max"}
  rows: also "bytes_per_item": int; "scann_change": {metric: estimate of ScaNN minus exact, paired by query}
  differences: also "relative", "p": float; "verdict": str; of several comparisons "low_all", "high_all", "p_all", the
    interval that holds for all differences in this metric at once, by which the verdict goes, and its p
  row_notes: {row name: str}, what the table has to say of single rows
  similarity: str, by what vectors are compared
  columns: [{"name", "note", "values": {row name: number or estimate}}], more columns of the first table
  off_policy: {"estimators": [name], "depth": int, "lists": int,
    "rows": {row name: {estimator: an estimate, "effective" lists and whether they are "enough"}},
    "difference": {estimator: an estimate of new minus against} or None}: what each would have earned, see
    `eval.protocols.off_policy.estimators`
  beyond: {"metrics": [name], "rows": {row name: {metric: number or estimate}}, "notes": {what: str}}, coverage, say
  ladders: what `eval.comparison.dimension_ladder.measure_ladder` gives, a list
  slices: what `eval.statistics.slices.measure_slices` gives, with "new", "base", "metric": names
  trend: the same by day or week, in the order of time
  history: what `eval.report.history.read_history` gives, releases side by side
  gains, losses: as grid, each also "values": {row name: the primary metric of this query}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from eval.report import charts, report_text
from eval.report.memo import format_memo
from eval.report.report_text import format_table, headlines
from eval.report.thumbnails import thumbnails
from siglip_jax.errors import UserError

__all__ = ["format_table", "headlines", "write_report"]

_TEMPLATE = "report.html.jinja"
_LEAST_RECALL = 0.98  # below this the index, not the encoder, may decide a ScaNN column
_SLICES_OPEN, _SLICES_SHOWN = 14, 60  # rows of the slice table before a fold, and in the page at all
_EXAMPLE_ROWS = 6  # systems of an example


def write_report(path: epath.PathLike, report: dict[str, Any], *, images: Callable[[str], bytes]) -> None:
    """Write the page to `path` (for example `runs/demo/report.html`) and its data to the same name ending in .json.

    A `path` that ends in .md gets a memo of one page, in Markdown, instead.

    `images` gives the encoded image of an item by its id; where it raises KeyError or OSError, or gives no image, the
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
    data = report_text.plain(report)
    page = format_memo(data) if target.suffix == ".md" else render(data, images=images)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")


def render(data: dict[str, Any], *, images: Callable[[str], bytes]) -> str:
    """The page of a report of JSON's own types."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    forms = ("number", "signed", "percent", "signed_percent", "count", "p_value")
    environment.filters |= {name: getattr(report_text, name) for name in forms}
    primary = data["primary_metric"]
    has_scann = any(row.get("scann") for row in data["rows"])
    row_bars, row_ticks = charts.bars([row["exact"].get(primary) for row in data["rows"]])
    first = [d for d in data["differences"] if d["metric"] == primary]
    shown_rows = _example_rows(data)
    grid = [
        query | {"systems": [s for s in query["systems"] if s["name"] in shown_rows]}
        for query in data["grid"]
    ]  # fmt: skip
    gains, losses = data.get("gains") or [], data.get("losses") or []
    lead, end, aside = (data.get("conclusion") or headlines(data)[0]).partition("). ")  # what follows is how sure
    return environment.get_template(_TEMPLATE).render(
        report=data,
        level=report_text.level(data),
        weights=report_text.weights_in_words(data) if data.get("weights") else "Queries are taken as independent.",
        lead=lead + end.rstrip(),
        aside=aside,
        meaning=report_text.meaning(primary),
        legend_entries=_legend(data),
        sentences=headlines(data)[1:],
        metrics=report_text.metric_names(data),
        rows=[
            row | {"bar": bar, "change": report_text.scann_change(row, primary)}
            for row, bar in zip(data["rows"], row_bars, strict=True)
        ],
        row_ticks=row_ticks,
        has_scann=has_scann,
        compared_at_once=sum(d.get("low_all") is not None for d in first),
        has_bytes=any(row.get("bytes_per_item") for row in data["rows"]),
        recall_label=report_text.recall_label(data),
        queries_of={name: report_text.queries_of(data, name) for name in report_text.metric_names(data)},
        most_queries={name: max(n.values(), default=0) for name, n in report_text.query_counts(data).items()},
        recall_name=next((name for row in data["rows"] for name in row.get("scann_recall") or {}), "recall"),
        low_recall=[row["name"] for row in data["rows"] if (report_text.scann_recall(row) or 1) < _LEAST_RECALL],
        least_recall=_LEAST_RECALL,
        headline=first[0] | {"verdict": report_text.verdict(first[0])} if first else None,
        means={row["name"]: row["exact"].get(primary) for row in data["rows"]},
        primary_differences=_forest(first),
        other_differences=_forest([d for d in data["differences"] if d["metric"] != primary]),
        p_name=next((name for name in ("p_all", "p") if any(d.get(name) is not None for d in first)), None),
        ladders=[found | {"chart": charts.ladder(found)} for found in data.get("ladders") or []],
        slices=_slices(data.get("slices")),
        trend=_slices(data.get("trend")),
        slices_open=_SLICES_OPEN,
        curve=charts.loss_curve(data["loss_curve"]),
        grid=grid,
        hidden_rows=[row["name"] for row in data["rows"] if row["name"] not in shown_rows] if grid else [],
        changes=[("Largest gains", gains), ("Largest losses", losses)] if gains or losses else [],
        thumbnails=thumbnails(_shown([*gains, *losses, *grid]), images),
    )


def _legend(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What each gain means: {"colour": 0 to 3, "text"}, the highest first."""
    if data.get("actions"):
        worth: dict[float, list[str]] = {}
        for action, gain in data["actions"].items():
            worth.setdefault(gain, []).append(action)
        entries = [
            (gain, f"{gain:g}: {', '.join(names)}") for gain, names in sorted(worth.items(), reverse=True) if gain
        ]
        entries.append((0, "0: none of these"))
    else:
        entries = [(rule["gain"], f"{rule['gain']:g}: same {', '.join(rule['agree'])}") for rule in data["relevance"]]
        entries.append((0, "0: none of these"))
    return [{"colour": max(0, min(3, math.ceil(gain))), "text": text} for gain, text in entries]


def _is_report(path: epath.Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "protocol" in found


def _example_rows(data: dict[str, Any]) -> set[str]:
    """The rows whose results examples show: the two of the headline, then the first ones without a reduction."""
    names = [row["name"] for row in data["rows"]]
    leading = [data[key] for key in ("new", "against") if data.get(key) in names]
    reduced = {name for name in names if any(name.startswith(f"{other}, ") for other in names)}
    order = [*leading, *(n for n in names if n not in reduced), *(n for n in names if n in reduced)]
    return set(list(dict.fromkeys(order))[:_EXAMPLE_ROWS])


def _forest(differences: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences with their verdicts, and where each lies on one common axis."""
    places, ticks = charts.bars(differences)
    rows = [d | {"verdict": report_text.verdict(d), "bar": bar} for d, bar in zip(differences, places, strict=True)]
    return {"rows": rows, "ticks": ticks}


def _slices(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """The slices that the page shows, the worst, with their places on one axis; without a base those of the level."""
    if not found:
        return None
    rows = found["slices"][:_SLICES_SHOWN]
    drawn = [row["difference"] or row["new"] for row in rows]
    places, ticks = charts.bars(drawn, zero=any(row["difference"] for row in rows))
    shown = [row | {"drawn": e, "bar": bar} for row, e, bar in zip(rows, drawn, places, strict=True)]
    return found | {"slices": shown, "ticks": ticks, "hidden": len(found["slices"]) - len(rows)}


def _shown(examples: list[dict[str, Any]]) -> Iterator[str]:
    """Items in the order the page shows them, each as often as it does."""
    for query in examples:
        yield query["query"]
        yield from (result["id"] for system in query["systems"] for result in system["results"])
