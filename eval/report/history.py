"""Releases side by side: what earlier reports measured of their new row, beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from eval.report.report_text import plain
from eval.report.saved_report import read_report
from siglip_jax.errors import UserError

_NEEDS = ("protocol", "primary_metric", "rows", "new")
_SAME = ("queries", "items", "left_out", "users", "relevance", "relevant_from", "gain", "actions")
_SAME_LOG = ("events", "first", "last")


def read_history(paths: Sequence[epath.PathLike], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each earlier report, in the order given, and one for this.

    Args:
      paths: of the .json that was written beside each report.
      report: this one, as for `eval.report.write_report`.

    Returns:
      [{"report": title and file, "row": its new row, "mean", "low", "high", "queries", "against": row, "difference": an
        estimate or None, "same_data": whether queries, items, gains and the log's window are those of this report}].

    Raises:
      UserError: a file that is no report, or one of another protocol or metric, whose numbers are not comparable.
    """
    this = plain(report)
    lines = []
    for path in paths:
        earlier = read_report(path, flag="history", needs=_NEEDS)
        for key in ("protocol", "primary_metric"):
            if earlier[key] != this[key]:
                raise UserError(
                    f"--history={path}: {key.replace('_', ' ')} {earlier[key]!r}, this report has {this[key]!r}; "
                    "only reports of one protocol and metric stand in one table"
                )
        lines.append(_line(earlier, epath.Path(path).stem, this))
    return [*lines, _line(this, "this report", this)]


def _line(report: dict[str, Any], name: str, this: dict[str, Any]) -> dict[str, Any]:
    metric, new = report["primary_metric"], report["new"]
    cell = next((row["exact"].get(metric) for row in report["rows"] if row["name"] == new), None) or {}
    first = next((d for d in report.get("differences") or [] if d["metric"] == metric), None)
    return {
        "report": name,
        "row": new,
        **{key: cell.get(key) for key in ("mean", "low", "high")},
        "queries": report.get("queries"),
        "against": None if first is None else first["b"],
        "difference": None if first is None else {key: first[key] for key in ("mean", "low", "high")},
        "same_data": _data(report) == _data(this),
    }


def _data(report: dict[str, Any]) -> list[Any]:
    log = report.get("log") or {}
    return [*(report.get(key) for key in _SAME), *(log.get(key) for key in _SAME_LOG)]
