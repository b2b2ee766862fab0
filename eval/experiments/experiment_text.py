"""An experiment in words: its verdict in one sentence, a table for the terminal, a memo in Markdown."""

from __future__ import annotations

import math
import textwrap
from typing import Any, TypeGuard

from eval.experiments.read_out import BETTER, BROKEN, HOLDS, NOT_MEASURED, TOO_FEW, WORSE
from eval.report import report_text
from eval.report.markdown import escaped, table

_WIDTH = 110
_ENTRIES = 4  # of a list in a sentence


def verdict_sentence(report: dict[str, Any]) -> str:
    """What the experiment says, first of all."""
    simulated = "Simulated: " if report["simulated"] else ""
    ratio = report["sample_ratio"]
    if not ratio["ok"]:
        said = ", ".join(f"{count:,} in {name}" for name, count in ratio["users"].items())
        wanted = ", ".join(f"{count:,.0f}" for count in ratio["expected"].values())
        return (
            f"{simulated}No verdict: the sample ratio is off. Users are {said} where {wanted} were expected "
            f"(p {p_text(ratio['p'])}), so the groups differ by more than the variant; find out who is missing."
        )
    parts = [_of_treatment(report, name) for name in report["variants"][1:]]
    return simulated + " ".join(parts)


def _of_treatment(report: dict[str, Any], name: str) -> str:
    rows = [row for row in report["metrics"] if row["treatment"] == name]
    goals = [row for row in rows if not row["guardrail"]]
    found = [row for row in goals if row["verdict"] in (BETTER, WORSE)]
    rest = [row for row in goals if row not in found]
    pieces = []
    for kind in (BETTER, WORSE):
        if chosen := [f"{r['metric']} ({lift_text(r)})" for r in found if r["verdict"] == kind]:
            pieces.append(f"{kind} than {report['control']} in {_listed(chosen)}")
    kinds = {kind: [r["metric"] for r in rest if r["verdict"] == kind] for kind in (TOO_FEW, NOT_MEASURED)}
    if unsure := [r["metric"] for r in rest if r["verdict"] not in kinds]:
        pieces.append(f"undecided in {_listed(unsure)}")
    said = [f"{name} is {', '.join(pieces)}."] if pieces else []
    if few := kinds[TOO_FEW]:
        said.append(f"Too few data to judge {name} in {_listed(few)}.")
    if nothing := kinds[NOT_MEASURED]:
        said.append(f"{_listed(nothing)} cannot be measured in {name}: users do not differ, or the divisor is 0.")
    sentence = " ".join(said)
    guardrails = [row for row in rows if row["guardrail"]]
    for kind, words in ((HOLDS, "holds"), (BROKEN, "is broken")):
        if chosen := [f"{r['metric']} ({margin_text(r)})" for r in guardrails if r["verdict"] == kind]:
            sentence += f" Guardrail {_listed(chosen)} {words}."
    if chosen := [f"{r['metric']} ({margin_text(r)})" for r in guardrails if r["verdict"] not in (HOLDS, BROKEN)]:
        sentence += f" Guardrail {_listed(chosen)} is not shown to hold."
    return sentence


def further_sentences(report: dict[str, Any]) -> list[str]:
    """How it was judged, and what the other parts of the report found."""
    confidence, days = f"{100 * report['confidence']:g} %", len(report["days"])
    users = ", ".join(f"{count:,} in {name}" for name, count in report["users"].items())
    period = f" over {days} days ({report['days'][0]} to {report['days'][-1]})" if days else ""
    ratio = report["sample_ratio"]
    out = [f"Users: {users}{period}; sample ratio {'as designed' if ratio['ok'] else 'off'}, p {p_text(ratio['p'])}."]
    if report["looks"] == "many":
        out.append(
            f"Intervals are {confidence} confidence sequences: they hold however often, and whenever, one looks "
            f"(scaled to an expected lift of {100 * report['lift']:g} %)."
        )
    else:
        out.append(
            f"Intervals are {confidence} for one look alone, the one that was planned; looking every day and stopping "
            "at a good one finds effects that are not there."
        )
    goals = sum(not row["guardrail"] for row in report["metrics"])
    if goals > 1:
        out.append(
            f"The {goals} comparisons share the level (Holm), and each interval is shown at the level that decides it."
        )
    reduced = [row for row in report["metrics"] if row["cuped"] and row["cuped"]["reduction"] > 0.005]
    if reduced:
        said = ", ".join(f"{row['metric']} by {100 * row['cuped']['reduction']:.0f} %" for row in reduced[:_ENTRIES])
        out.append(f"What users did before the experiment (CUPED) takes variance away: {said}.")
    for line in report.get("novelty", []) if ratio["ok"] else []:
        if line["verdict"] in ("wears off", "grows"):
            out.append(
                f"The lift of {line['treatment']} in {line['metric']} {line['verdict']}: {percent(line['early'])} in a "
                f"user's first {line['cut']} days, {percent(line['late'])} later (p {p_text(line['p'])}, one look)."
            )
    for line in report.get("heavy", []):
        first = line["users"][0]
        without = ", ".join(f"{name} {percent(lift)}" for name, lift in line["without"].items())
        out.append(
            f"{line['count']} heavy user{'s' * (line['count'] > 1)} in {line['metric']}, such as {first['user']} "
            f"({first['variant']}, {100 * first['share']:.1f} % of all); without them the lift is {without}."
        )
    for reason, found in report["left_out"].items():
        out.append(f"Left out: {found['users']:,} users {reason}, such as {str(found['example'])[:60]!r}.")
    return out


def format_experiment(report: dict[str, Any]) -> str:
    """For the terminal."""
    header = ["", "metric", report["control"], "variant", "lift", "interval", "p (Holm)", "verdict"]
    rows = [[row["treatment"], row["metric"], *_cells(row)] for row in report["metrics"]]
    lines = report_text.align([header, *rows], left=(0, 1, 7))
    said = [report["sentence"], *report["warnings"], "", *report["sentences"], ""]
    wrapped = [line for text in said for line in textwrap.wrap(text, _WIDTH) or [""]]
    return "\n".join([*wrapped, *lines])


def format_memo(report: dict[str, Any]) -> str:
    """One page of Markdown."""
    header = ["metric", report["control"], "variant", "lift", "interval", "p (Holm)", "verdict"]
    lines = []
    for row in report["metrics"]:
        name = f"{row['metric']} ({row['definition']})"
        if len(report["variants"]) > 2:
            name = f"{row['treatment']}: {name}"
        shown = _cells(row)
        lines.append([name, *shown[:-2], margin_text(row) if row["guardrail"] else shown[-2], shown[-1]])
    said = [*report["warnings"], *report["sentences"]]
    for line in report.get("sequences", []) if report["sample_ratio"]["ok"] else []:
        day = line["first_day"]
        said.append(
            f"{line['treatment']}, {line['metric']}: "
            + (f"0 % first left out on {day}." if day else "0 % never left out.")
        )
    parts = [f"# {escaped(report['title'])}", f"**{escaped(report['sentence'])}**", table(header, lines, left=(0, 6))]
    return "\n\n".join([*parts, "\n".join(f"* {escaped(text)}" for text in said)]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    """Of a metric: both values, lift, interval, p, verdict."""
    return [
        value_text(row["control"]),
        value_text(row["treated"]),
        percent((row["effect"] or {}).get("relative")),
        interval_text(row["effect"]),
        "guardrail" if row["guardrail"] else p_text(row["p_holm"]),
        row["verdict"],
    ]


def lift_text(row: dict[str, Any]) -> str:
    return f"{percent(row['effect']['relative'])}, interval {interval_text(row['effect'])}"


def margin_text(row: dict[str, Any]) -> str:
    margin = f"{100 * row['margin']:g} %" if row["relative_margin"] else f"{row['margin']:g}"
    return f"margin {margin}"


def interval_text(effect: dict[str, Any] | None) -> str:
    if not effect:
        return "–"
    return lift_range({"low": effect["relative_low"], "high": effect["relative_high"]})


def lift_range(ends: dict[str, Any]) -> str:
    """Where the control may be 0, a lift has no bound."""
    low, high = ends["low"], ends["high"]
    return f"{percent(low)} to {percent(high)}" if _known(low) and _known(high) else "no bound"


def percent(value: float | None) -> str:
    """A lift, with its sign."""
    if not _known(value):
        return "–"
    digits = 2 if abs(value) < 0.001 else 1
    text = f"{100 * value:+.{digits}f} %"
    return (text if float(text[:-2]) else text[1:]).replace("-", "−")


def value_text(value: float | None) -> str:
    """Four significant digits."""
    if not _known(value):
        return "–"
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def p_text(value: float | None) -> str:
    if not _known(value):
        return "–"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _listed(names: list[str]) -> str:
    shown = names[:_ENTRIES] + ([f"{len(names) - _ENTRIES} more"] if len(names) > _ENTRIES else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
