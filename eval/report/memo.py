"""A report as a memo of one page, in Markdown: what was decided, on what, and what to beware of."""

from __future__ import annotations

from typing import Any

from eval.report import report_text
from eval.report.markdown import escaped, table
from eval.report.report_text import number, signed

_ROWS, _METRICS, _SLICES, _NOTES = 12, 4, 5, 4  # what a page holds


def format_memo(report: dict[str, Any]) -> str:
    """Markdown; `report` as for `eval.report.write_report`."""
    data = report_text.plain(report)
    primary = data["primary_metric"]
    parts = [
        f"# {escaped(data['title'])}",
        f"**{escaped(data.get('conclusion') or report_text.headlines(data)[0])}**",
        escaped(data.get("memo") or ""),
        escaped(report_text.meaning(primary)),
        _data(data),
        *(f"> {escaped(line)}" for line in data.get("warnings") or []),
        table(*_rows(data)),
        *(escaped(line) for line in report_text.row_notes(data)),
        table(*_differences(data)),
        *_slices(data),
        _source(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(data: dict[str, Any]) -> str:
    users = f" of {report_text.count(data['users'])} users" if data.get("users") is not None else ""
    queries, items, left_out = (report_text.count(data[key]) for key in ("queries", "items", "left_out"))
    return escaped(
        f"{data['protocol']}: {queries} queries{users}, {items} items; {left_out} queries without a relevant item left "
        f"out; {data['gain']} gain. Brackets: {report_text.level(data)} intervals."
    )


def _rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    metrics = report_text.metric_names(data)[:_METRICS]
    rows = data["rows"]
    if len(rows) > _ROWS:  # those of the headline are always there
        kept = {data.get("new"), data.get("against"), *(row["name"] for row in rows[: _ROWS - 2])}
        rows = [row for row in rows if row["name"] in kept]
    lines = [[row["name"], *(_estimate(row["exact"].get(metric)) for metric in metrics)] for row in rows]
    if any(report_text.query_counts(data).values()):
        lines.append(["queries", *(report_text.queries_of(data, metric) for metric in metrics)])
    return ["", *metrics], lines


def _differences(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    found = [d for d in data["differences"] if d["metric"] == data["primary_metric"]][:_ROWS]
    lines = [
        [
            f"{d['a']} − {d['b']}",
            _signed(d),
            report_text.signed_percent(d.get("relative")),
            report_text.verdict(d),
        ]
        for d in found
    ]
    return ["compared", data["primary_metric"], "relative", "verdict"], lines


def _slices(data: dict[str, Any]) -> list[str]:
    sliced = data.get("slices")
    worse = [row for row in (sliced or {}).get("slices", []) if row["verdict"] == "worse"]
    if not sliced or not sliced["slices"]:
        return []
    if not worse:
        return [f"In none of {sliced['measured']} slices is {escaped(sliced['new'])} worse, all looked at together."]
    lines = [[f"{row['slicing']} {row['label']}", report_text.count(row["queries"]), _signed(row["difference"])]
             for row in worse[:_SLICES]]  # fmt: skip
    head = f"Worse in {len(worse)} of {sliced['measured']} slices:"
    return [head, table(["slice", "queries", "difference"], lines)]


def _source(data: dict[str, Any]) -> str:
    notes = [f"* {escaped(line)}" for line in (data.get("notes") or [])[:_NOTES]]
    versions = (data.get("provenance") or {}).get("versions") or {}
    made = f"* siglip-jax {versions['siglip-jax']}; the page and the JSON have all notes." if versions else ""
    return "\n".join(line for line in [*notes, made] if line)


def _estimate(estimate: dict[str, Any] | None) -> str:
    if not estimate:
        return "–"
    return f"{number(estimate['mean'])} [{number(estimate['low'])}, {number(estimate['high'])}]"


def _signed(estimate: dict[str, Any]) -> str:
    return f"{signed(estimate['mean'])} [{signed(estimate['low'])}, {signed(estimate['high'])}]"
