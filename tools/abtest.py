"""siglip-jax abtest: reads out an online experiment: who is better, how sure that is, and whether it may be said.

  siglip-jax abtest --logs=logs/ --variant=bucket --control=A --start=2024-07-01 --output=runs/abtest.html

The log has a row for each event (user_id, time, action, and the variant on exposures); docs/guide/experiments.md has
the format. Or a table with a row for each user:

  siglip-jax abtest --users=users.csv --control=A --metric=CTR=taps/impressions --metric=revenue=revenue \\
    --covariate=CTR=taps_before/impressions_before --guardrail=revenue=1% --output=runs/abtest.html

The sample ratio is checked first. Intervals may be looked at every day (--looks=many); --looks=one is for the single
look that was planned. Beside the page lie the same as .json and a memo as .md.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from siglip_jax.errors import UserError
from tools import experiment_flags

if TYPE_CHECKING:
    from eval.experiments import ExperimentUsers, Looks
    from eval.experiments.experiment_metrics import ExperimentMetric


def define_flags(values: flags.FlagValues) -> None:
    def text(name: str, default: str | None, said: str) -> None:
        flags.DEFINE_string(name, default, said, flag_values=values)

    experiment_flags.define_output(values, "The report, an .html file; .json and .md are written beside it.")
    experiment_flags.define_log(values)
    flags.DEFINE_multi_string("users", [], "Instead of --logs: tables with a row for each user.", flag_values=values)
    text("variant", "variant", "The column with the variant.")
    text("control", "", "The variant that others are compared with; one called control, A or old when absent.")
    text("split", "", "The designed split, such as A=50,B=50; equal shares when absent.")
    experiment_flags.define_metrics(values)
    flags.DEFINE_multi_string(
        "guardrail",
        [],
        "name=margin: a --metric that may get worse by no more than 1% (or by 0.002).",
        flag_values=values,
    )
    flags.DEFINE_multi_string("lower_is_better", [], "A --metric that should fall.", flag_values=values)
    flags.DEFINE_multi_string(
        "covariate", [], "name=column[/column]: of a --metric of --users before the experiment.", flag_values=values
    )
    flags.DEFINE_multi_string("segment", [], "Column of the users to look into.", flag_values=values)
    text("start", None, "Events from this time on, ISO 8601; the first exposure when absent. Earlier ones are CUPED's.")
    text("end", None, "Events before this time.")
    flags.DEFINE_integer("pre_days", 0, "Days before --start that CUPED looks at; 0 for all.", 0, flag_values=values)
    text("exposure", "", "The action that shows a variant; exposure or impression when absent.")
    flags.DEFINE_boolean("cuped", True, "Take away what the time before the experiment explains.", flag_values=values)
    experiment_flags.define_look(values)
    flags.DEFINE_float("ratio_alpha", 0.001, "The sample ratio is off below this p.", 0, 1, flag_values=values)
    text("interleaved", "", "Lists of siglip-jax interleave: which store do the taps of --logs prefer?")
    text("credit", "tap", "With --interleaved, the action that credits a store.")
    text("title", "", "Of the report.")


def main(values: flags.FlagValues) -> None:
    from eval.experiments import write_experiment
    from eval.experiments.experiment_text import format_experiment, further_sentences, verdict_sentence

    if not values.output.endswith(".html"):
        raise UserError(f"--output={values.output}: expected a file name ending in .html")
    if bool(values.logs) == bool(values.users):
        raise UserError("give either --logs (events) or --users (a row for each user)")
    look = experiment_flags.look_of(values)
    others = ("metric", "guardrail", "covariate", "lower_is_better", "segment", "split")
    useless = others if values.interleaved else ("credit",)
    if given := [name for name in useless if name in values and values[name].present]:
        raise UserError(f"--{given[0]} has no effect {'with' if values.interleaved else 'without'} --interleaved")
    if values.interleaved:
        _read_interleaving(values, look)
        return
    users, metrics = _read(values)
    report = _report(values, users, metrics, look)
    report["sentence"] = verdict_sentence(report)
    report["sentences"] = further_sentences(report)
    written = write_experiment(values.output, report)
    print(format_experiment(report))
    print(f"\n{', '.join(written)}")


def _read_interleaving(values: flags.FlagValues, look: Looks) -> None:
    from eval.experiments import interleaving_sentence, preference, read_credits, write_interleaving

    if not values.logs:
        raise UserError("--interleaved: give --logs with list_id, item_id and user_id")
    form = experiment_flags.log_of(values)
    found = read_credits(values.interleaved, values.logs, form, action=values.credit)
    report = preference(found.users, found.credits, names=found.names, look=look, requests=found.requests)
    report["simulated"] = found.simulated
    report["sentence"] = interleaving_sentence(report)
    report["title"] = values.title or f"Interleaving: {found.names[0]} and {found.names[1]}"
    report["notes"] = found.notes
    written = write_interleaving(values.output, report)
    print(f"{report['sentence']}\n\n{', '.join(written)}")


def _read(values: flags.FlagValues) -> tuple[ExperimentUsers, list[ExperimentMetric]]:
    from eval.experiments import default_metrics, read_events, read_log_users, read_user_rows
    from tools import common_flags

    covariates = common_flags.pairs(values.covariate, flag="covariate")
    if values.logs:
        if covariates:
            raise UserError("--covariate is for --users; of a log the events before --start are taken")
        form = experiment_flags.log_of(values, variant=values.variant, control=values.control, segments=values.segment)
        with read_events(values.logs, form) as events:
            default = [] if values.metric else default_metrics(events)
            metrics = experiment_flags.metrics_of(values, default=default)
            return read_log_users(events, form, metrics), metrics
    for name in ("start", "end", "exposure", "log_action", "pre_days"):
        if values[name].value != values[name].default:
            raise UserError(f"--{name}: only with --logs")
    metrics = experiment_flags.metrics_of(values, covariates=covariates)
    columns = dict(common_flags.pairs(values.log_column, flag="log_column")) | {"variant": values.variant}
    if unknown := sorted(columns.keys() - {"user_id", "variant"}):
        raise UserError(f"--log_column={unknown[0]}=...: expected user_id, of a table of users")
    users = read_user_rows(
        values.users, metrics, columns=columns, control=values.control, segments=tuple(values.segment)
    )
    return users, metrics


def _report(
    values: flags.FlagValues, users: ExperimentUsers, metrics: list[ExperimentMetric], look: Looks
) -> dict[str, Any]:
    from eval.experiments import heavy_users, novelty, read_out, segments, sequences

    split = experiment_flags.split_of(values.split)
    report = read_out(users, metrics, look=look, split=split, ratio_alpha=values.ratio_alpha, cuped=values.cuped)
    report["title"] = values.title or f"Experiment: {pathlib.Path((values.logs or values.users)[0]).stem}"
    report["sequences"] = sequences(users, metrics, look=look, cuped=values.cuped) if users.days else []
    report["novelty"] = novelty(users, metrics, look=look) if len(users.days) > 1 else []
    report["segments"] = segments(users, metrics, look=look, split=split, cuped=values.cuped)
    report["heavy"] = heavy_users(users, metrics, look=look)
    return report
