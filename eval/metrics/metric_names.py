"""Ranking metrics as values with a name, as in ir_measures: nDCG@5, MRR, ERR@10, RBP(0.8).

Everything here is read from `eval.metrics.metric_table.METRICS`.
"""

import re
from collections.abc import Sequence

from eval.metrics.metric_table import METRICS, Definition, Metric
from siglip_jax.errors import UserError

_NUMBERS = {"@k": r"@(?P<k>[1-9][0-9]{0,8})", "(p)": r"\((?P<p>0?\.[0-9]{1,6})\)"}


def known_metrics() -> list[str]:
    """Every name that `parse_metric` takes, with k and p for the numbers: "nDCG@k", "nDCG", ..., "RBP(p)@k"."""
    return [kind + form for kind, definition in METRICS.items() for form in definition.forms]


def parse_metric(name: str) -> Metric:
    """Raises UserError on a name that is not known."""
    return _parse(name)[0]


def report_name(metric: str, *, gain: str) -> str:
    """The name a report prints: nDCG@5 under the exponential gain is nDCG_exp@5; other metrics have no gain."""
    parsed, definition, _ = _parse(metric)
    exponential = gain == "exponential" and definition.uses_gain
    return metric.replace(parsed.kind, f"{parsed.kind}_exp", 1) if exponential else metric


def trec_name(metric: str) -> str | None:
    """What trec_eval calls it, such as ndcg_cut_5 for nDCG@5; None for what trec_eval does not have."""
    parsed, definition, form = _parse(metric)
    known = definition.forms[form]
    return known if known is None or parsed.k is None else f"{known}_{parsed.k}"


def max_cutoff(metrics: Sequence[str]) -> int:
    """The deepest k among the metrics, 0 when none has one. Raises UserError on an unknown name."""
    return max((parse_metric(name).k or 0 for name in metrics), default=0)


def needs_max_grade(metrics: Sequence[str]) -> bool:
    """Whether any asks for the highest grade that labels can have (ERR). UserError on an unknown name."""
    return any(_parse(name)[1].needs_max_grade for name in metrics)


def has_uncut(metrics: Sequence[str]) -> bool:
    """Whether any looks at the whole ranking (MRR, MAP, nDCG without @k, ...). UserError on an unknown name."""
    return any(parse_metric(name).k is None for name in metrics)


def _parse(name: str) -> tuple[Metric, Definition, str]:
    """The metric, its entry and the form of its name."""
    for kind, definition in METRICS.items() if isinstance(name, str) else ():
        if not name.startswith(kind):
            continue
        for form in definition.forms:
            pattern = "".join(_NUMBERS[part] for part in re.findall(r"@k|\(p\)", form))
            match = re.fullmatch(re.escape(kind) + pattern, name)
            found = match.groupdict() if match else {}
            p = float(found["p"]) if found.get("p") else None
            if match and p != 0:
                return Metric(kind, int(found["k"]) if found.get("k") else None, p), definition, form
    raise UserError(
        f"unknown metric {name!r}: known are {', '.join(known_metrics())} with k >= 1 and 0 < p < 1, "
        "such as nDCG@5 or RBP(0.8)"
    )
