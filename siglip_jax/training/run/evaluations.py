"""What evaluators report: numbers, each under a name that nothing else has."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.training.param_rules import Params

Evaluator = Callable[[int, Params], Mapping[str, Any]]  # (step, params) -> {metric: number}
STEP = "step"  # of a line of the log
_BEST = "config.evaluation.best_metric"


def known_names(evaluators: Sequence[Evaluator]) -> list[str] | None:
    """What the evaluators will report, where each says it in an attribute `names`; None where one does not."""
    found = [getattr(each, "names", None) for each in evaluators]
    return None if None in found else [name for names in found if names is not None for name in names]


def measure(evaluators: Sequence[Evaluator], step: int, params: Params, *, taken: Collection[str]) -> dict[str, float]:
    """The metrics of all evaluators.

    Args:
      taken: names of the metrics of a step, which no evaluator may use.

    Raises:
      UserError: something else than {text: number}, a name that two use or that is taken.
    """
    reported: dict[str, Any] = {}
    for number, each in enumerate(evaluators, 1):
        name = f"{number} ({getattr(each, '__name__', type(each).__name__)})"
        reported[name] = checked_metrics(name, each(step, params))
    check_distinct({"training itself": (STEP, *taken)} | reported, where="evaluators")
    return {metric: value for metrics in reported.values() for metric, value in metrics.items()}


def checked_metrics(name: str, metrics: Any) -> dict[str, float]:
    """What an evaluator returned as {metric: float}; UserError where it is something else."""
    if not isinstance(metrics, Mapping):
        raise UserError(f"evaluator {name} returned a {type(metrics).__name__}; expected {{metric: number}}")
    checked = {}
    for metric, value in metrics.items():
        if not isinstance(metric, str) or not metric:
            raise UserError(f"evaluator {name} returned a metric named {metric!r}; expected text")
        number = value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value
        if not isinstance(number, numbers.Real):
            raise UserError(f"evaluator {name} returned a {type(value).__name__} for {metric!r}; expected a number")
        checked[metric] = float(number)
    return checked


def check_distinct(reported: Mapping[str, Iterable[str]], *, where: str) -> None:
    """Raises a UserError where two of {who: names of its metrics} report one name."""
    owners: dict[str, str] = {}
    for who, names in reported.items():
        for metric in names:
            if metric in owners:
                raise UserError(f"{where}: {owners[metric]} and {who} both report {metric!r}; rename one of them")
            owners[metric] = who


def check_best(metric: str, known: Collection[str]) -> None:
    """Raises a UserError where nothing reports the best metric that a config names."""
    if metric and metric not in known:
        raise UserError(f"{_BEST}={metric!r}; expected one of {', '.join(known)}")
