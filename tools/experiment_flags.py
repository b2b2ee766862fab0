"""Flags that the programs of experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

if TYPE_CHECKING:
    from eval.experiments import ExperimentLog, Looks
    from eval.experiments.experiment_metrics import ExperimentMetric

define_output = common_flags.define_output


def define_log(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "logs", [], "Events, as Parquet, CSV, TSV or JSON lines; files or folders.", flag_values=values
    )
    flags.DEFINE_multi_string("log_column", [], "ours=theirs, a column of another name.", flag_values=values)
    flags.DEFINE_multi_string("log_action", [], "ours=theirs, an action of another word.", flag_values=values)
    flags.DEFINE_enum(
        "duplicates", "drop", ["drop", "keep"], "Rows that equal another in every column.", flag_values=values
    )


def define_metrics(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "metric",
        [],
        "name=term/term or name=term, such as CTR=tap/impression, conversion=any(purchase), revenue=value(purchase); "
        "of --users, columns. Absent, these three where the log has them.",
        flag_values=values,
    )


def define_look(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "looks",
        "many",
        ["many", "one"],
        "many: a confidence sequence, which may be looked at daily; one: Student's t, for the look that was planned.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "expected_lift", "5%", "The lift that the sequence is narrowest for; set it before.", flag_values=values
    )
    flags.DEFINE_float("confidence", 0.95, "Of intervals.", flag_values=values)


def look_of(values: flags.FlagValues) -> Looks:
    from eval.experiments import Looks

    return Looks(
        looks=values.looks, lift=lift_of(values.expected_lift, flag="expected_lift"), confidence=values.confidence
    )


def log_of(
    values: flags.FlagValues, *, variant: str = "variant", control: str = "", segments: Sequence[str] = ()
) -> ExperimentLog:
    from eval.experiments import ExperimentLog
    from eval.logs.log_times import parse_time

    columns = dict(common_flags.pairs(values.log_column, flag="log_column"))
    actions = {theirs: ours for ours, theirs in common_flags.pairs(values.log_action, flag="log_action")}
    given = {name: values[name].value for name in ("start", "end") if name in values}
    times = {name: parse_time(value, flag=f"--{name}") for name, value in given.items() if value is not None}
    start, end = times.get("start"), times.get("end")
    if start is not None and end is not None and end <= start:
        raise UserError(f"--start={values.start} --end={values.end}: expected an end after the start")
    return ExperimentLog(
        columns=columns | ({"variant": variant} if variant != "variant" else {}),
        actions=actions,
        control=control,
        start=start,
        end=end,
        before=values.pre_days if "pre_days" in values else 0,
        exposure=values.exposure if "exposure" in values else "",
        segments=tuple(segments),
        duplicates=values.duplicates,
    )


def metrics_of(
    values: flags.FlagValues, *, default: Sequence[str] = (), covariates: Sequence[tuple[str, str]] = ()
) -> list[ExperimentMetric]:
    from eval.experiments.experiment_metrics import read_metrics

    return read_metrics(
        values.metric,
        guardrails=common_flags.pairs(values.guardrail, flag="guardrail"),
        lower_is_better=values.lower_is_better,
        covariates=covariates,
        default=default,
    )


def lift_of(text: str, *, flag: str) -> float:
    """ "3%" -> 0.03. UserError where it is none."""
    number = text.strip().removesuffix("%")
    try:
        return float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError as error:
        raise UserError(f"--{flag}={text}: expected a relative effect, such as 3% or 0.03") from error


def split_of(text: str) -> dict[str, float] | None:
    """ "A=50,B=50" -> {"A": 50.0, "B": 50.0}; None for "". UserError where it is none."""
    if not text:
        return None
    found: dict[str, float] = {}
    for part in text.split(","):
        name, sign, share = part.rpartition("=")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if not (name.strip() and sign and 0 < number < float("inf")) or name.strip() in found:
            raise UserError(f"--split={text}: expected variant=share for each, such as A=50,B=50")
        found[name.strip()] = number
    return found
