"""siglip-jax plan: how many users and days an online experiment needs, from the variance of a log.

  siglip-jax plan --logs=logs/ --lift=3% --metric=CTR=tap/impression --metric='conversion=any(purchase)'

--report=runs/report.json puts the offline difference of `siglip-jax rank` beside it. --looks=many plans for an
experiment that is looked at every day, which takes more users at most and often fewer.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags
from etils import epath

from siglip_jax.errors import UserError
from tools import experiment_flags


def define_flags(values: flags.FlagValues) -> None:
    experiment_flags.define_log(values)
    experiment_flags.define_metrics(values)
    flags.DEFINE_string("lift", None, "The lift to find, such as 3%.", required=True, flag_values=values)
    flags.DEFINE_string("split", "control=1,new=1", "Variants and their shares, the control first.", flag_values=values)
    flags.DEFINE_float("power", 0.8, "The chance to find the lift.", flag_values=values)
    flags.DEFINE_float("traffic", 1.0, "The share of all users that take part.", flag_values=values)
    flags.DEFINE_float("confidence", 0.95, "Of the verdict.", flag_values=values)
    flags.DEFINE_enum("looks", "one", ["one", "many"], "As of siglip-jax abtest.", flag_values=values)
    flags.DEFINE_integer(
        "comparisons", 0, "That share the level; every metric and variant when 0.", 0, flag_values=values
    )
    flags.DEFINE_string("start", None, "Events from this time on, ISO 8601.", flag_values=values)
    flags.DEFINE_string("end", None, "Events before this time.", flag_values=values)
    flags.DEFINE_string("report", "", "The .json of siglip-jax rank, for the offline difference.", flag_values=values)
    flags.DEFINE_string("output", "", "The plan as a .json file.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from eval.experiments import Looks, PlannedTest, default_metrics, offline_difference, plan, read_events
    from eval.experiments.experiment_metrics import read_metrics
    from eval.experiments.planning import format_plan
    from eval.report.report_text import plain
    from eval.report.saved_report import read_report

    if not values.logs:
        raise UserError("give --logs: the variance is that of a log")
    if values.output and not values.output.endswith(".json"):
        raise UserError(f"--output={values.output}: expected a file name ending in .json")
    split = experiment_flags.split_of(values.split) or {}
    test = PlannedTest(
        lift=experiment_flags.lift_of(values.lift, flag="lift"),
        shares=tuple(split.values()),
        power=values.power,
        traffic=values.traffic,
        look=Looks(looks=values.looks, confidence=values.confidence),
    )
    offline = (
        offline_difference(read_report(values.report, flag="report", needs=("primary_metric", "differences")))
        if values.report
        else ""
    )
    form = experiment_flags.log_of(values)
    with read_events(values.logs, form, variants=False) as events:
        metrics = read_metrics(values.metric, default=[] if values.metric else default_metrics(events))
        comparisons = values.comparisons or len(metrics) * (len(split) - 1)
        test = dataclasses.replace(test, comparisons=comparisons)
        made = plan(events, metrics, test, since=form.start, until=form.end)
    print(format_plan(made, offline=offline))
    if values.output:
        path = epath.Path(values.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain({"kind": "plan", **made, "offline": offline}), indent=1) + "\n")
