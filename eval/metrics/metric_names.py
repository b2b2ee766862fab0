"""Ranking metrics as values with a name, as in ir_measures: nDCG@5, MRR, ERR@10, RBP(0.8)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from siglip_jax.errors import UserError

KNOWN_METRICS = (
    *("nDCG@k", "precision@k", "recall@k", "hit@k", "MRR", "MRR@k", "nDCG", "MAP", "MAP@k"),
    *("ERR@k", "RBP(p)", "RBP(p)@k", "Rprec"),
)
_NAME = re.compile(
    r"(?:(?P<cut>nDCG|precision|recall|hit|MRR|MAP|ERR)@(?P<k>[1-9][0-9]{0,8})"
    r"|(?P<whole>nDCG|MRR|MAP|Rprec)"
    r"|RBP\((?P<persistence>0?\.[0-9]{1,6})\)(?:@(?P<rbp_k>[1-9][0-9]{0,8}))?)"
)
_TREC_NAMES = {
    "nDCG": "ndcg",
    "nDCG@": "ndcg_cut",
    "precision@": "P",
    "recall@": "recall",
    "hit@": "success",
    "MRR": "recip_rank",
    "MAP": "map",
    "MAP@": "map_cut",
    "Rprec": "Rprec",
}


@dataclass(frozen=True)
class Metric:
    """A parsed name."""

    kind: str  # "nDCG", "precision", "recall", "hit", "MRR", "MAP", "ERR", "RBP" or "Rprec"
    k: int | None  # None: the whole ranking
    persistence: float | None = None  # of RBP


def parse_metric(name: str) -> Metric:
    """Raises UserError on a name that is not known."""
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or (match["persistence"] and not float(match["persistence"]) > 0):
        raise UserError(
            f"unknown metric {name!r}: known are {', '.join(KNOWN_METRICS)} with k >= 1 and 0 < p < 1, "
            "such as nDCG@5 or RBP(0.8)"
        )
    if match["persistence"]:
        return Metric("RBP", int(match["rbp_k"]) if match["rbp_k"] else None, float(match["persistence"]))
    return Metric(match["whole"] or match["cut"], int(match["k"]) if match["k"] else None)


def report_name(metric: str, *, gain: str) -> str:
    """The name a report prints: nDCG@5 under the exponential gain is nDCG_exp@5; other metrics have no gain."""
    exponential = gain == "exponential" and parse_metric(metric).kind == "nDCG"
    return metric.replace("nDCG", "nDCG_exp") if exponential else metric


def trec_name(metric: str) -> str | None:
    """What trec_eval calls it, such as ndcg_cut_5 for nDCG@5; None for what trec_eval does not have."""
    parsed = parse_metric(metric)
    known = _TREC_NAMES.get(parsed.kind + ("" if parsed.k is None else "@"))
    return known and (known if parsed.k is None else f"{known}_{parsed.k}")


def max_cutoff(metrics: Sequence[str]) -> int:
    """The deepest k among the metrics, 0 when none has one. Raises UserError on an unknown name."""
    return max((parse_metric(name).k or 0 for name in metrics), default=0)


def needs_max_grade(metrics: Sequence[str]) -> bool:
    """Whether any asks for the highest grade that labels can have (ERR). UserError on an unknown name."""
    return any(parse_metric(name).kind == "ERR" for name in metrics)


def has_uncut(metrics: Sequence[str]) -> bool:
    """Whether any looks at the whole ranking (MRR, MAP, nDCG without @k, ...). UserError on an unknown name."""
    return any(parse_metric(name).k is None for name in metrics)
