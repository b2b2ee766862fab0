"""What is measured, in words: "ctr=tap/impression", "conversion=any(purchase)", "revenue=value(purchase)".

A term over events is an action (how many of a user), `any(action)` (1 where there is one) or `value(action)` (the sum
of the value column). Over a table of users a term is a column, or `any(column)` (1 where it is above 0). A metric is
numerator/denominator: the sum of one over all users by that of the other; without a denominator, the mean over users.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from siglip_jax.errors import UserError

EXPECTED = "name=term or name=term/term, a term an action, any(action) or value(action), such as ctr=tap/impression"
VALUE = "value"


@dataclasses.dataclass(frozen=True)
class Term:
    """`column` of users' sums; 1 where it is above 0 with `capped`; `amount` sums the value column over the action."""

    column: str
    capped: bool = False
    amount: bool = False

    @property
    def key(self) -> str:
        """Names the sum that it needs."""
        return f"{VALUE}({self.column})" if self.amount else self.column

    def __str__(self) -> str:
        return f"any({self.column})" if self.capped else self.key


@dataclasses.dataclass(frozen=True)
class ExperimentMetric:
    """A metric by name.

    Attributes:
      covariate: terms of the time before, the numerator's and the denominator's; None takes the metric's own over the
        events before the experiment.
      margin: of a guardrail, how much worse it may be; as a share of the control's value with `relative_margin`.
    """

    name: str
    numerator: Term
    denominator: Term | None = None
    covariate: tuple[Term, Term | None] | None = None
    lower_is_better: bool = False
    margin: float | None = None
    relative_margin: bool = False

    @property
    def definition(self) -> str:
        below = "users" if self.denominator is None else f"{self.denominator}"
        return f"{self.numerator} by {below}"

    @property
    def terms(self) -> list[Term]:
        return [term for term in (self.numerator, self.denominator) if term]

    def columns(self, sums: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 [user, 2], numerator and denominator, from {key of a term: [user]}."""
        return _pair(sums, self.numerator, self.denominator)

    def covariate_columns(self, sums: Mapping[str, np.ndarray]) -> np.ndarray:
        """The same of the time before."""
        return _pair(sums, *(self.covariate or (self.numerator, self.denominator)))


def parse_metric(text: str, *, flag: str = "--metric") -> ExperimentMetric:
    """UserError where the text is none."""
    name, sign, body = text.partition("=")
    above, by, below = body.partition("/")
    if not (name.strip() and sign and above and (below or not by)):
        raise UserError(f"{flag}={text}: expected {EXPECTED}")
    numerator = parse_term(above, text, flag=flag)
    return ExperimentMetric(name.strip(), numerator, parse_term(below, text, flag=flag) if by else None)


def parse_term(text: str, whole: str, *, flag: str) -> Term:
    found = re.fullmatch(r"\s*(?:(any|value)\(\s*([^()]+?)\s*\)|([^()/=]+?))\s*", text)
    if not found:
        raise UserError(f"{flag}={whole}: expected {EXPECTED}")
    how, inside, plain = found.groups()
    return Term(inside or plain, capped=how == "any", amount=how == VALUE)


def read_metrics(
    metrics: Sequence[str],
    *,
    guardrails: Sequence[tuple[str, str]] = (),
    lower_is_better: Sequence[str] = (),
    covariates: Sequence[tuple[str, str]] = (),
    default: Sequence[str] = (),
) -> list[ExperimentMetric]:
    """Metrics of the flags of a program.

    Args:
      metrics: as `parse_metric` reads them; `default` where there are none.
      guardrails: (name, margin), "1%" of the control's value or an absolute number.
      covariates: (name, "term" or "term/term").

    Raises:
      UserError: a text that is no metric, a name twice or one that no metric has, a margin that is none.
    """
    found = [parse_metric(text) for text in (metrics or default)]
    names = [metric.name for metric in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--metric={twice[0]}=...: two metrics have this name; give each its own")
    margins = dict(guardrails)
    befores = {name: _covariate(name, text) for name, text in covariates}
    for flag, given in (("guardrail", margins), ("lower_is_better", lower_is_better), ("covariate", befores)):
        if unknown := [name for name in given if name not in names]:
            raise UserError(f"--{flag}={unknown[0]}: no such metric; there are {', '.join(names) or 'none'}")
    out = []
    for metric in found:
        margin, relative = _margin(metric.name, margins[metric.name]) if metric.name in margins else (None, False)
        out.append(
            dataclasses.replace(
                metric,
                covariate=befores.get(metric.name),
                lower_is_better=metric.name in lower_is_better,
                margin=margin,
                relative_margin=relative,
            )
        )
    if out and all(metric.margin is not None for metric in out):
        raise UserError("every metric is a guardrail; give one more --metric that the experiment wants to move")
    return out


def check_terms(metrics: Sequence[ExperimentMetric], known: Collection[str], *, what: str) -> None:
    """UserError where a metric names an action or column that is not there."""
    for metric in metrics:
        covariate = [term for term in metric.covariate or () if term]
        for term in (*metric.terms, *covariate):
            if term.column not in known:
                raise UserError(
                    f"metric {metric.name}: no {what} {term.column!r}; there are {', '.join(sorted(known)) or 'none'}"
                )


def _margin(name: str, text: str) -> tuple[float, bool]:
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        margin = float(number) / (100 if percent else 1)
    except ValueError:
        margin = float("nan")
    if not 0 < margin < (1 if percent else float("inf")):
        raise UserError(
            f"--guardrail={name}={text}: expected how much worse it may be, above 0: a share of the control such as "
            "1%, or a number such as 0.002"
        )
    return margin, percent


def _covariate(name: str, text: str) -> tuple[Term, Term | None]:
    metric = parse_metric(f"{name}={text}", flag="--covariate")
    return metric.numerator, metric.denominator


def _pair(sums: Mapping[str, np.ndarray], above: Term, below: Term | None) -> np.ndarray:
    columns: list[np.ndarray] = []
    for term in (above, below):
        if term is None:
            columns.append(np.ones(len(columns[0])))
        else:
            values = np.asarray(sums[term.key], np.float64)
            columns.append((values > 0).astype(np.float64) if term.capped else values)
    return np.stack(columns, axis=1)
