"""The page of a blend: how the ranking changes along the way from the start to the tuned model, and which was chosen.

The report is a dict, as `siglip-jax blend` writes it to blend.json; an estimate is {"mean", "low", "high"}.
  title, split, rule, metric, ends: str;  start: str, or None of an adapter;  models: [str];
  alphas: [float];  chosen: float
  catalogues: {name: {"dataset": str, "queries", "clusters": int, "warnings": [str], "metrics": [name],
    "rows": [{"alpha", "metrics": {name: estimate}, "differences": {name: estimate of row minus alpha 0, paired}}]}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from eval.report import charts, report_text

_TEMPLATE = "blend.html.jinja"
_COLOURS = ("pca", "truncation")  # of the style sheet's two lines


def render_blend(report: dict[str, Any]) -> str:
    """The page, with all that it needs inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(report_text, name) for name in ("number", "signed", "count")}
    catalogues = report["catalogues"]
    metrics = next(iter(catalogues.values()))["metrics"]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        colours=dict(zip(catalogues, _COLOURS, strict=False)),
        charts=[(metric, _chart(report, metric)) for metric in _charted(report["metric"], metrics)],
    )


def _charted(primary: str, metrics: list[str]) -> list[str]:
    """The metric that chose, and one of titles where it was measured: they often fall at another place."""
    return [primary, *(name for name in metrics if name.endswith("/MRR") and name != primary)]


def _chart(report: dict[str, Any], metric: str) -> dict[str, Any]:
    lines = {
        name: [
            {"x": row["alpha"], **{key: row["differences"][metric][key] for key in ("mean", "low", "high")}}
            for row in catalogue["rows"]
        ]
        for name, catalogue in report["catalogues"].items()
    }
    return charts.curves(lines, marked=report["chosen"])
