"""The report in words: what an interval allows to say, numbers as they are printed, and the table for a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from eval.statistics import significance
from eval.statistics.significance import weight_in_words

_WIDTH = 110  # characters of the terminal table
_ALL_METRICS = 2  # pairs up to which differences are listed in every metric


def headlines(report: dict[str, Any]) -> list[str]:
    """One sentence for each difference in the primary metric, in the order given; the first is the page's headline."""
    metric = report["primary_metric"]
    means = {row["name"]: row["exact"].get(metric, {}).get("mean") for row in report["rows"]}
    sentences = []
    for difference in report["differences"]:
        if difference["metric"] != metric:
            continue
        a, b = difference["a"], difference["b"]
        said = verdict(difference)
        if said == "not measured":
            sentences.append(f"{_capital(a)} and {b} were not compared: no difference in {metric} could be computed.")
            continue
        claim = {
            "undecided": f"Undecided whether {a} ranks better than {b}",
            "too few": f"Too few to say whether {a} ranks better than {b}",
        }.get(said, f"{_capital(a)} ranks {said} than {b}")
        low, high = decisive(difference)
        interval = f"{level(report)} interval {signed(low)} to {signed(high)}"
        values = f"{metric} {number(means.get(a))} against {number(means.get(b))}"
        sentences.append(f"{claim}: {values}, difference {signed(difference['mean'])} ({interval}).")
    return sentences or [f"No comparison was made in {metric}."]


_MEANINGS = {  # of metrics, to somebody who has never met them
    "nDCG": "1 where the first{k} places of a list stand in the best order there is, 0 where nothing relevant is among "
    "them; what stands higher counts more",
    "precision": "the share of the first{k} places that hold something relevant",
    "recall": "the share of all that is relevant that stands among the first{k} places",
    "hit": "the share of queries with something relevant among the first{k} places",
    "MRR": "1 / the place of the first relevant item, 0 where there is none: 0.5 is the second place",
    "MAP": "the precision at the places of the relevant items, averaged: 1 where all of them come first",
    "ERR": "1 / the place at which somebody who reads down the list is satisfied, on average",
    "RBP": "how much that is relevant is met by somebody who goes on to the next place with a fixed probability",
    "Rprec": "the share of relevant items among as many first places as there are relevant items",
}


def meaning(metric: str) -> str:
    """What a metric is, in a sentence; "" for one that the table of `eval.metrics` was given by somebody else."""
    kind, _, k = metric.replace("_exp", "").partition("@")
    said = _MEANINGS.get(kind.partition("(")[0])
    return f"{metric} is {said.format(k=f' {k}' if k else '')}. It is a mean over queries." if said else ""


def format_table(report: dict[str, Any]) -> str:
    """The report as plain text of at most 110 columns: the conclusion, one line a row, one line a difference."""
    data = plain(report)
    primary = data["primary_metric"]
    has_scann = any(row.get("scann") for row in data["rows"])
    header = ["", f"{primary} [{level(data)}]"]
    lines = [[row["name"], _interval(row["exact"].get(primary), number)] for row in data["rows"]]
    counted = [["queries", queries_of(data, primary)]] * any(map(bool, query_counts(data).values()))
    extra: list[list[str]] = []
    if has_scann:
        means = [(row.get("scann") or {}).get(primary, {}).get("mean") for row in data["rows"]]
        extra.append([f"ScaNN {primary}", *map(number, means)])
        changes = [scann_change(row, primary) for row in data["rows"]]
        cells = [_interval(c, signed) if c and c["low"] is not None else "–" for c in changes]
        extra.append([f"change [{level(data)}]", *cells])
        extra.append([recall_label(data), *(number(scann_recall(row)) for row in data["rows"])])
    extra.append(["ties", *(percent(row.get("tie_rate")) for row in data["rows"])])
    for metric in metric_names(data)[1:]:
        extra.append([metric, *(number(row["exact"].get(metric, {}).get("mean")) for row in data["rows"])])
    table = [header, *lines, *counted]
    for column in extra:  # as many as fit; the page and the JSON have them all
        column = [*column, *[queries_of(data, column[0])] * len(counted)]
        wider = [[*cells, cell] for cells, cell in zip(table, column, strict=True)]
        if len(align(wider)[0]) <= _WIDTH:
            table = wider
    pairs = len({(d["a"], d["b"]) for d in data["differences"]})
    shown = [d for d in data["differences"] if pairs <= _ALL_METRICS or d["metric"] == primary]
    differences = [[f"{d['a']} − {d['b']}", d["metric"], _interval(d, signed), verdict(d)] for d in shown]
    if any(d.get("low_all") is not None for d in shown):
        wider = [[*cells, _all_at_once(d)] for cells, d in zip(differences, shown, strict=True)]
        differences = wider if len(align(wider)[0]) <= _WIDTH else differences
    counts = (
        f"{data['queries']} queries, {data['items']} items, {data['left_out']} queries without a relevant item left out"
    )
    said = headlines(data) if pairs <= _ALL_METRICS else headlines(data)[:1]
    if data.get("conclusion"):
        said = [data["conclusion"], *said[1:]]
    said += [f"For the memo: {data['memo']}"] if data.get("memo") else []
    grades = f"; ERR with grades up to {data['max_grade']:g}" if data.get("max_grade") is not None else ""
    alike = {"cosine": "; cosine", "dot": "; inner product"}.get(data.get("similarity") or "", "")
    head = f"{data['protocol']}; {data['gain']} gain{grades}{alike}"
    prose = [*said, *data.get("warnings", []), "", head, counts]
    prose += [weights_in_words(data)] if data.get("weights") else []
    prose += [*data.get("notes", []), ""]
    wrapped = [line for text in prose for line in textwrap.wrap(text, _WIDTH) or [""]]
    own_notes = [line for text in row_notes(data) for line in textwrap.wrap(text, _WIDTH)]
    tables = [[*align(table), *own_notes], align(differences), _earned_lines(data), _ladder_lines(data)]
    tables += [_slice_lines(data), _history_lines(data)]
    return "\n".join([*wrapped, *(line for lines in tables if lines for line in [*lines, ""])]).rstrip()


def _ladder_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for found in report.get("ladders") or []:
        sure = level(report)
        table = [[f"{found['row']}", "bytes", f"{found['metric']} [{sure}]", f"lost [{sure}]"]]
        table += [
            [
                f"{rung['method']} {rung['width']}, {rung['precision']}",
                str(rung["bytes"]),
                _interval(rung, number),
                _interval(rung["difference"], signed),
            ]
            for rung in found["rungs"]
        ]
        lines += align(table)
    return lines


def _earned_lines(report: dict[str, Any]) -> list[str]:
    """What each row would have earned, by each estimator; the page has the intervals of all."""
    found = report.get("off_policy")
    if not found:
        return []
    names = found["estimators"]
    header = [f"earned in the first {found['depth']} places", *(f"{name} [{level(report)}]" for name in names)]

    def cell(value: dict[str, Any], said: str) -> str:
        return said if value["enough"] else f"too few ({value['effective']:.0f})"

    rows = found["rows"].items()
    wide = align([header, *([row, *(cell(c[n], _interval(c[n], number)) for n in names)] for row, c in rows)])
    if len(wide[0]) <= _WIDTH:
        return wide
    return align([[header[0], *names], *([r, *(cell(c[n], number(c[n]["mean"])) for n in names)] for r, c in rows)])


def _slice_lines(report: dict[str, Any], *, most: int = 5) -> list[str]:
    sliced = report.get("slices")
    if not sliced or not sliced["slices"]:
        return []
    heading = f"{sliced['metric']} difference [{level(report)}]"
    table = [[f"worst of {sliced['measured']} slices", "queries", heading, ""]]
    for row in sliced["slices"][:most]:
        shown = row["difference"] or row["new"]
        form = signed if row["difference"] else number
        table.append(
            [f"{row['slicing']} {row['label']}", str(row["queries"]), _interval(shown, form), row["verdict"] or ""]
        )
    return align(table)


def weights_in_words(report: dict[str, Any]) -> str:
    """What is taken as dependent, and how much evidence that leaves."""
    ways = " or ".join(f"one {way.replace('_', ' ')}" for way in report["weights"])
    return f"Queries of {ways} are taken as dependent: {weight_in_words(report['queries'], report['weights'])}."


def metric_names(report: dict[str, Any]) -> list[str]:
    """Every metric of any row, the primary one first."""
    names = dict.fromkeys([report["primary_metric"]])
    for row in report["rows"]:
        names |= dict.fromkeys(row["exact"]) | dict.fromkeys(row.get("scann") or {})
    return list(names)


def query_counts(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """{metric: {row: queries that its mean is over}}, of what is known."""
    counts: dict[str, dict[str, int]] = {name: {} for name in metric_names(report)}
    for row in report["rows"]:
        for name, estimate in row["exact"].items():
            if (estimate or {}).get("queries") is not None:
                counts[name][row["name"]] = estimate["queries"]
    return counts


def queries_of(report: dict[str, Any], metric: str) -> str:
    """Over how many queries a column is, "16 to 431" where its rows differ; "" for what is no metric."""
    found = sorted(set(query_counts(report).get(metric, {}).values()))
    return "" if not found else count(found[0]) if len(found) == 1 else f"{count(found[0])} to {count(found[-1])}"


def row_notes(report: dict[str, Any]) -> list[str]:
    """What the table itself has to say of single rows."""
    return [f"{name}: {text}" for name, text in (report.get("row_notes") or {}).items()]


def recall_label(report: dict[str, Any]) -> str:
    """What the column of the index's recall is called, at its own depth: no metric has this name."""
    names = (name for row in report["rows"] for name in row.get("scann_recall") or {})
    return f"ScaNN {next(names, 'recall')}"


def scann_recall(row: dict[str, Any]) -> float | None:
    """The one share of the exact neighbours that a row's index found, None without an index."""
    return next(iter((row.get("scann_recall") or {}).values()), None)


def scann_change(row: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """What the approximate index changes of a metric: an estimate, its interval None where it was not computed."""
    if found := (row.get("scann_change") or {}).get(metric):
        return found
    exact, scann = (((row.get(key) or {}).get(metric) or {}).get("mean") for key in ("exact", "scann"))
    return None if exact is None or scann is None else {"mean": scann - exact, "low": None, "high": None}


def level(report: dict[str, Any]) -> str:
    """The confidence of all intervals, such as "95 %"."""
    return f"{100 * report.get('confidence', 0.95):g} %"


def decisive(difference: dict[str, Any]) -> tuple[float | None, float | None]:
    """The interval that a verdict goes by: of all comparisons at once where there are several."""
    if difference.get("low_all") is not None:
        return difference["low_all"], difference["high_all"]
    return difference["low"], difference["high"]


def verdict(difference: dict[str, Any]) -> str:
    """What was concluded of a minus b; where nothing was, what the interval says. Zero throughout is undecided too."""
    if difference.get("verdict"):
        return difference["verdict"]
    low, high = decisive(difference)
    if difference["mean"] is None or low is None or high is None:
        return "not measured"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def plain(value: Any) -> Any:
    """The same in JSON's own types: numpy scalars and arrays unwrapped, tuples as lists, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def number(value: float | None) -> str:
    return "–" if value is None else significance.unsigned_zero(f"{value:.3f}").replace("-", "−")


def signed(value: float | None) -> str:
    return "–" if value is None else significance.signed(value)


def percent(value: float | None) -> str:
    return "–" if value is None else significance.unsigned_zero(f"{100 * value:.1f}") + " %"


def signed_percent(value: float | None) -> str:
    return "–" if value is None else significance.unsigned_zero(f"{100 * value:+.1f}").replace("-", "−") + " %"


def count(value: float | None) -> str:
    """Whole numbers with thousands apart; others to one place."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _history_lines(report: dict[str, Any]) -> list[str]:
    lines = report.get("history") or []
    if not lines:
        return []
    sure = level(report)
    table = [["release", "row", f"{report['primary_metric']} [{sure}]", "queries", "over", f"difference [{sure}]", ""]]
    for line in lines:
        difference = _interval(line["difference"], signed) if line["difference"] else "–"
        same = "" if line["same_data"] else "other data"
        value = _interval(line, number)
        table.append(
            [line["report"], line["row"], value, count(line["queries"]), line["against"] or "–", difference, same]
        )
    return align(table)


def align(table: list[list[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Columns padded to their widest cell: those of words to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]


def _interval(estimate: dict[str, Any] | None, form: Callable[[float | None], str]) -> str:
    if not estimate:
        return "–"
    return f"{form(estimate['mean'])} [{form(estimate['low'])}, {form(estimate['high'])}]"


def _all_at_once(difference: dict[str, Any]) -> str:
    low, high = difference.get("low_all"), difference.get("high_all")
    return "" if low is None else f"all at once [{signed(low)}, {signed(high)}]"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
